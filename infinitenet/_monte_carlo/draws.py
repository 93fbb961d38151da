"""Random models: functions of a key, whatever library they come from."""

import functools as ft
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, PRNGKeyArray, PyTree

from .._batch import batch_of_one, batch_size, first_of, to_batch
from .._empirical.model import BatchFunction, CoupledFunction, to_examples
from .._layer import AbstractLayer
from .._layers.finite_only import BatchNorm


class Layers(eqx.Module):
    """A network of infinitenet, the weights of which are drawn by `init`."""

    net: AbstractLayer

    def __call__(self, key: PRNGKeyArray, x: PyTree[Array]) -> Any:
        return self.net.init(key, first_of(x))


class InitApply(eqx.Module):
    """Two functions, as of Flax Linen and Haiku."""

    init: Callable[[PRNGKeyArray, PyTree], PyTree]
    apply: Callable[[PyTree, PyTree], PyTree]

    def __call__(self, key: PRNGKeyArray, x: PyTree[Array]) -> Any:
        return BatchFunction(self.apply, self.init(key, x))


class Function(eqx.Module):
    """A function that returns a model."""

    fn: Callable[[PRNGKeyArray], Any]

    def __call__(self, key: PRNGKeyArray, x: PyTree[Array]) -> Any:
        del x
        return self.fn(key)


class Noisy(eqx.Module):
    """A model with a key for each example, given as data next to it."""

    model: Any
    impl: str = eqx.field(static=True)

    def __call__(self, inputs: tuple[PyTree, Array]) -> PyTree:
        x, data = inputs
        return self.model(x, key=jr.wrap_key_data(data, impl=self.impl))


def _on_batch(axis_name: str, model: Any, x: PyTree) -> PyTree:
    return jax.vmap(model, axis_name=axis_name)(x)


# Far from what `init` may have split the same key into, as keys of equal number are equal.
_NOISE = 2**32 - 1


class Sampler(eqx.Module):
    """Random models along with what they are given.

    - `draw`: from a key and a batch to a model.
    - `noisy`: whether examples need keys, as those of dropout do.
    - `axis_name`: of the batch, if its examples depend on each other.
    """

    draw: Callable[[PRNGKeyArray, PyTree], Any]
    noisy: bool = eqx.field(static=True)
    axis_name: str | None = eqx.field(static=True)

    def __call__(
        self, key: PRNGKeyArray, x1: PyTree, x2: PyTree | None
    ) -> tuple[Any, PyTree, PyTree | None]:
        """A model, and its inputs."""
        model = self.draw(key, x1)
        if self.noisy:
            n1, n2 = batch_size(x1), 0 if x2 is None else batch_size(x2)
            keys = jr.split(jr.fold_in(key, jnp.uint32(_NOISE)), n1 + n2)
            data = jr.key_data(keys)
            x1 = (x1, data[:n1])
            x2 = None if x2 is None else (x2, data[n1:])
            model = Noisy(model, str(jr.key_impl(key)))
        if self.axis_name is not None:
            model = CoupledFunction(ft.partial(_on_batch, self.axis_name), model)
        return model, x1, x2


def to_sampler(
    net: Any, key: PRNGKeyArray, x1: PyTree, x2: PyTree | None
) -> tuple[Sampler, PyTree, PyTree | None]:
    """How to draw models, and the batches of inputs as arrays.

    **Raises:** `ValueError` for what nothing can be drawn from.
    """
    draw = _to_draw(net)
    if isinstance(net, AbstractLayer):
        x1, x2 = to_batch("x1", x1), None if x2 is None else to_batch("x2", x2)
    else:
        x1 = to_examples("x1", x1, None)
        x2 = None if x2 is None else to_examples("x2", x2, None)
    model = _model_struct(draw, key, x1)
    axis_name = _axis_of_batch(model)
    noisy = _is_noisy(model, first_of(x1), axis_name)
    return Sampler(draw, noisy, axis_name), x1, x2


def _to_draw(net: Any) -> Any:
    if isinstance(net, AbstractLayer):
        return Layers(net)
    if isinstance(net, tuple):
        if len(net) != 2 or not all(map(callable, net)):
            raise ValueError(
                "`net` must be a pair of functions, `init(key, x)` and `apply(weights, "
                f"x)`, if it is a tuple, but it is {net!r}."
            )
        return InitApply(*net)
    if not callable(net):
        raise ValueError(
            "`net` must be a layer, a function `net(key)` that draws a model, or a pair of "
            f"functions `(init, apply)`, but it is {net!r}."
        )
    return Function(net)


def _model_struct(draw: Any, key: PRNGKeyArray, x: PyTree) -> Any:
    """A model without numbers."""
    if isinstance(draw, Layers):
        return eqx.filter_eval_shape(draw, key, x)
    try:
        model = eqx.filter_eval_shape(draw, key, x)
    except Exception as error:
        what = "init(key, x1)" if isinstance(draw, InitApply) else "net(key)"
        raise ValueError(
            f"`{what}` failed: {type(error).__name__}: {error}\n`net` must be a function "
            "of a random key that returns a model with new weights, such as `lambda key: "
            "equinox.nn.MLP(3, 1, 64, 2, key=key)`, or a pair `(init, apply)`. Kernels of "
            "given weights are those of `empirical_kernel`."
        ) from error
    if not callable(model):
        raise ValueError(
            "`net` must return a model, that is a function of one example, such as an "
            f"Equinox module, but `net(key)` is {eqx.tree_pformat(model)}. Give the pair "
            "`(net, apply)` if it returns weights."
        )
    return model


def _axis_of_batch(model: Any) -> str | None:
    """The name of the axis that `BatchNorm` sums over, if it is in the network."""
    if not isinstance(model, AbstractLayer):
        return None
    is_norm = lambda node: isinstance(node, BatchNorm)
    nodes = jax.tree.leaves(model, is_leaf=is_norm)
    names = sorted({node.axis_name for node in nodes if isinstance(node, BatchNorm)})
    if len(names) > 1:
        raise ValueError(
            f"`net` has layers `BatchNorm` of several axes, {names}, but there is one "
            "batch only: give them all the same `axis_name`."
        )
    return names[0] if names else None


def _is_noisy(model: Any, example: PyTree, axis_name: str | None) -> bool:
    """Whether it works with a key, but not without."""
    if isinstance(model, BatchFunction | CoupledFunction):
        return False

    def works(**options: Any) -> bool:
        def one(model: Any, x: PyTree) -> PyTree:
            fn = lambda x: model(x, **options)
            if axis_name is None:
                return fn(x)
            return jax.vmap(fn, axis_name=axis_name)(batch_of_one(x))

        try:
            eqx.filter_eval_shape(one, model, example)
        except Exception:
            return False
        return True

    return not works() and works(key=jr.key(0))
