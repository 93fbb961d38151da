"""Models of any library, as functions of their weights and of one example."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._batch import batch_of_one, shape_of_one, to_batch
from .._checks import are_finite, check_finite
from .._layer import AbstractLayer
from .._path import LayerError
from .._tracing import is_traced
from .._weights import AbstractModel, FreeWeights, trainable
from .abstract import of_shapes


def _to_weights(weights: PyTree) -> FreeWeights:
    if isinstance(weights, FreeWeights):
        return weights
    # Other libraries may load weights as arrays of NumPy.
    is_numpy = lambda x: isinstance(x, np.ndarray)
    return FreeWeights(
        jax.tree.map(lambda x: jnp.asarray(x) if is_numpy(x) else x, weights)
    )


class AbstractFunction(AbstractModel):
    """A function of weights and of a batch of examples."""

    fn: eqx.AbstractVar[Callable[[PyTree, PyTree], PyTree]]
    free: eqx.AbstractVar[FreeWeights]

    @property
    def weights(self) -> PyTree:
        """What `fn` is called with."""
        return self.free.tree

    def __call__(self, x: PyTree) -> PyTree:
        return self.fn(self.free.tree, x)


class BatchFunction(AbstractFunction):
    """A function of weights and of a batch, in which each example is by itself.

    It makes a model of what is not an Equinox module: Flax, Haiku, or plain JAX.

    !!! example

        ```python no-run
        model = inn.BatchFunction(module.apply, module.init(key, x))  # Flax Linen
        apply = hk.without_apply_rng(hk.transform(forward)).apply
        model = inn.BatchFunction(apply, weights)  # Haiku
        graph, weights, rest = nnx.split(module, nnx.Param, ...)  # Flax NNX
        model = inn.BatchFunction(lambda w, x: nnx.merge(graph, w, rest)(x), weights)
        ```

    A program is compiled for each `fn`: define it once, as each `lambda` is another one.
    """

    fn: Callable[[PyTree, PyTree], PyTree]
    free: FreeWeights = eqx.field(converter=_to_weights)


class CoupledFunction(AbstractFunction):
    """A function of weights and of a batch, in which examples depend on each other.

    With batch normalisation, say. Its kernel is that of the outputs on all of one batch
    with those on all of another, and much more expensive than that of a
    [`infinitenet.BatchFunction`][].

    !!! example

        ```python no-run
        net = inn.Sequential([inn.Dense(64), inn.BatchNorm("batch"), inn.Relu()])
        fn = lambda net, x: jax.vmap(net, axis_name="batch")(x)
        model = inn.CoupledFunction(fn, net.init(key, x[0]))
        ```
    """

    fn: Callable[[PyTree, PyTree], PyTree]
    free: FreeWeights = eqx.field(converter=_to_weights)


_init_doc = """**Arguments:**

- `fn`: a function `fn(weights, x)` of weights and of a batch of inputs, which returns
    outputs of shape `(n, *outputs)`, or a pytree of such.
- `weights`: a pytree of arrays, all of which are trained; or a model, of which those are
    that [`infinitenet.trainable`][] tells.
"""
BatchFunction.__init__.__doc__ = CoupledFunction.__init__.__doc__ = _init_doc


class Unit(eqx.Module):
    """A model as a function of its weights and of one unit of inputs.

    A unit is one example, or the whole batch if its examples are coupled.
    """

    weights: PyTree
    rest: PyTree
    coupled: bool = eqx.field(static=True)

    def __call__(self, weights: PyTree, x: PyTree) -> PyTree:
        model = eqx.combine(weights, self.rest)
        if isinstance(model, BatchFunction):
            out = model(batch_of_one(x))
            return jax.tree.map(_single, out)
        return model(x)


def _single(out: Any) -> Any:
    if jnp.shape(out)[:1] != (1,):
        raise ValueError(
            "`fn` must return outputs with a first axis of examples, but given one example "
            f"their shape is {jnp.shape(out)}."
        )
    return out[0]


def to_unit(model: Any) -> Unit:
    """The model, taken apart.

    **Raises:** `ValueError` for what is not a model, or has no finite weights.
    """
    if not callable(model):
        raise ValueError(
            f"`model` must be a function of one example, such as an Equinox module, but "
            f"it is {model!r}. Make one by `BatchFunction(fn, weights)`."
        )
    weights, rest = eqx.partition(model, trainable(model))
    if not jax.tree.leaves(weights):
        raise ValueError(_no_weights(model))
    if any(map(jnp.iscomplexobj, jax.tree.leaves(weights))):
        raise ValueError(
            "`model` has complex weights: give their real and imaginary parts as weights, "
            "as gradients along these are what descent follows."
        )
    check_weights(weights)
    return Unit(weights, rest, isinstance(model, CoupledFunction))


def _no_weights(model: Any) -> str:
    if isinstance(model, AbstractLayer):
        return (
            "`model` has no weights yet: draw them by `net.init(key, x)` with one example "
            "`x`. (Or it has no layers with weights.)"
        )
    return (
        "`model` has no weights, that is no arrays of floating-point numbers. If it is a "
        "function `fn(weights, x)`, use `BatchFunction(fn, weights)`."
    )


def check_weights(weights: PyTree, name: str = "model") -> None:
    """**Raises:** `ValueError` if a weight is known not to be finite, with its place."""
    remedy = "Train with a smaller learning rate."
    if are_finite([leaf for leaf in jax.tree.leaves(weights) if not is_traced(leaf)]):
        return
    for path, leaf in jax.tree_util.tree_leaves_with_path(weights):
        if not is_traced(leaf):
            place = f"{name}{jax.tree_util.keystr(path)}"
            check_finite(place, jnp.asarray(leaf), remedy)


def to_examples(name: str, x: PyTree, model: Any) -> PyTree:
    """A batch of inputs as arrays with a common first axis, integers included.

    **Raises:** `ValueError` if they are not so, or not finite.
    """
    if isinstance(model, AbstractLayer):
        return to_batch(name, x)
    leaves = jax.tree.leaves(x)
    if not leaves or not all(isinstance(a, jax.Array | np.ndarray) for a in leaves):
        raise ValueError(
            f"`{name}` must be an array, or a pytree of arrays, with a first axis of "
            f"examples, but it is a {type(x).__name__}."
        )
    sizes = {a.shape[:1] for a in leaves}
    if len(sizes) > 1 or sizes & {(), (0,)}:
        raise ValueError(
            f"`{name}` must have a first axis of examples, at least one and as many in "
            f"each array, but the shapes are {[a.shape for a in leaves]}. Add an axis by "
            f"`{name}[None]` for a single example."
        )
    for leaf in leaves:
        if not is_traced(leaf) and jnp.issubdtype(leaf.dtype, jnp.inexact):
            check_finite(name, jnp.asarray(leaf), "Leave these examples out.")
    return jax.tree.map(jnp.asarray, x)


_REMEDY = (
    "If it needs a key (dropout), use `eqx.nn.inference_mode(model)`, the mode "
    '"test", or give it one: `eqx.Partial(model, key=key)`. If it has state (batch '
    "normalisation), fix that: `inn.BatchFunction(lambda model, x: jax.vmap(lambda x: "
    "model(x, state)[0])(x), model)`, in inference mode. If examples of a batch depend on "
    "each other, use `inn.CoupledFunction`. If it takes batches, `inn.BatchFunction`. "
    "The first axis of inputs is that of examples: give `x[None]` for a single one."
)


@of_shapes
def unit_outputs(unit: Unit, x: PyTree, name: str = "x1") -> PyTree[jax.ShapeDtypeStruct]:
    """Shapes of the outputs on one of a batch of units, `name` for messages.

    **Raises:** `ValueError`, with the remedy, if the model cannot be evaluated.
    """
    x = shape_of_one(x)
    try:
        out = eqx.filter_eval_shape(lambda unit, x: unit(unit.weights, x), unit, x)
    except LayerError:
        raise
    except Exception as error:
        shapes = jax.tree.map(lambda x: x.shape, x)
        what = "the batch" if unit.coupled else "one example"
        raise ValueError(
            f"`model` failed on {what} of `{name}`, of shape {shapes}: "
            f"{type(error).__name__}: {error}\n{_REMEDY}"
        ) from error
    leaves = jax.tree.leaves(out)
    good = [
        isinstance(a, jax.ShapeDtypeStruct) and jnp.issubdtype(a.dtype, jnp.floating)
        for a in leaves
    ]
    if not leaves or not all(good):
        raise ValueError(
            "`model` must return arrays of real floating-point numbers, but it returns "
            f"{eqx.tree_pformat(out)}. Leave out what is no output, such as state.\n"
            f"{_REMEDY}"
        )
    return out
