r"""Taylor polynomials of models in their weights.

Along the line $w_0 + t (w - w_0)$ a model is a function of one variable $t$. Each `jax.jvp`
differentiates all orders before it at once, so that these are the primal values of the next
one: then XLA finds what the orders have in common, and computes it once.
"""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .._weights import AbstractModel, FreeWeights, trainable
from .model import AbstractFunction, BatchFunction, check_weights, to_unit


class _Frozen(eqx.Module):
    """Arrays that are never trained: `trainable` does not see in what they are."""

    leaves: tuple[Array, ...] = eqx.field(converter=tuple)
    structure: Any = eqx.field(static=True)

    @property
    def tree(self) -> PyTree:
        return jax.tree.unflatten(self.structure, self.leaves)


def _freeze(tree: PyTree) -> _Frozen:
    return _Frozen(*jax.tree.flatten(tree))


def _constant(tree: PyTree) -> PyTree:
    """The same, of which nothing has a derivative."""
    stop = lambda x: lax.stop_gradient(x) if eqx.is_inexact_array(x) else x
    return jax.tree.map(stop, tree)


class TaylorFunction(AbstractModel):
    """The Taylor polynomial of a function of weights, made by
    [`infinitenet.linearize`][] or [`infinitenet.taylor_expand`][].

    It is called as the function is: `taylor(weights, *args, **kwargs)`.

    - `fn`: the function.
    - `degree`: of the polynomial.
    """

    fn: Callable[..., PyTree]
    degree: int = eqx.field(static=True)
    frozen: _Frozen
    rest: PyTree

    @property
    def centre(self) -> PyTree:
        """The weights about which it is expanded."""
        return eqx.combine(self.frozen.tree, self.rest)

    def __call__(self, weights: PyTree, *args: Any, **kwargs: Any) -> PyTree:
        centre, rest = _constant((self.frozen.tree, self.rest))
        weights = self._align("weights", weights)
        displacement = jax.tree.map(_difference, weights, centre)
        fn = lambda weights: self.fn(eqx.combine(weights, rest), *args, **kwargs)
        return _polynomial(fn, centre, displacement, self.degree)

    def _align(self, name: str, weights: PyTree) -> PyTree[Array]:
        """Those weights by which it is expanded, in its own structure.

        **Raises:** `ValueError`, with the place, if one is missing or of another shape.
        """
        given, known = _by_path(weights), _by_path(self.centre)
        needed = _by_path(self.frozen.tree)
        for path in [*needed, *given]:
            if path not in given or path not in known:
                which = "lacks" if path in known else "has"
                raise ValueError(
                    f"`{name}` {which} `{name}{path}`, unlike the model at the point of "
                    "expansion: both must be of the same structure."
                )
        for path, centre in needed.items():
            _check_alike(f"{name}{path}", given[path], centre)
        aligned = [jnp.asarray(given[path]) for path in needed]
        return jax.tree.unflatten(self.frozen.structure, aligned)

    def __repr__(self) -> str:
        name = getattr(self.fn, "__name__", None) or repr(self.fn)
        return f"TaylorFunction({name}, degree={self.degree})"


class TaylorModel(AbstractModel):
    """The Taylor polynomial of a model in its weights, made by
    [`infinitenet.linearize`][] or [`infinitenet.taylor_expand`][].

    It is called as the model is. [`infinitenet.trainable`][] marks its weights, which begin
    at the model's, and not the point of expansion, which has no derivatives either.

    - `function`: the polynomial, as a function of a model and its arguments.
    - `free`: the weights.
    """

    function: TaylorFunction
    free: FreeWeights

    def __call__(self, *args: Any, **kwargs: Any) -> PyTree:
        return self.function(self.free.tree, *args, **kwargs)

    @property
    def degree(self) -> int:
        """Of the polynomial."""
        return self.function.degree

    @property
    def centre(self) -> Any:
        """The model about which it is expanded."""
        return self.function.centre

    @property
    def model(self) -> Any:
        """The model itself, with the weights of the polynomial."""
        return eqx.combine(self.free.tree, self.function.rest)

    def at(self, model: Any) -> "TaylorModel":
        """The same polynomial at the weights of another model.

        **Arguments:**

        - `model`: of the same structure. Only its weights are of use.

        **Returns:** A [`infinitenet.TaylorModel`][].

        **Raises:** `ValueError`, with the place, if a weight is missing or of another
            shape.
        """
        return TaylorModel(self.function, FreeWeights(self.function._align("model", model)))

    def __repr__(self) -> str:
        return f"TaylorModel({self.centre!r}, degree={self.degree})"


def linearize(model: Any, weights: PyTree = None) -> Any:
    r"""A model, linear in its weights: $f(w_0) + J(w_0) (w - w_0)$.

    That is [`infinitenet.taylor_expand`][] of degree 1, which has the details. Training the
    linear model is what its empirical NTK tells, exactly: wide networks follow it, equation
    (1) of Lee et al. (2019).

    !!! example

        ```python no-run
        linear = inn.linearize(net)  # After `init`, or any Equinox module.
        weights, rest = eqx.partition(linear, inn.trainable(linear))
        loss = lambda weights: inn.half_mse(jax.vmap(eqx.combine(weights, rest))(x), y)
        gradients = jax.grad(loss)(weights)

        apply = inn.linearize(module.apply, variables)  # Flax, Haiku, or plain JAX.
        outputs = apply(new_variables, x)
        ```

    ??? cite "Reference"
        ```bibtex
        @inproceedings{lee2019wide,
            title={Wide Neural Networks of Any Depth Evolve as Linear Models},
            author={Jaehoon Lee and Lechao Xiao and Samuel S. Schoenholz and Yasaman Bahri
                    and Roman Novak and Jascha Sohl-Dickstein and Jeffrey Pennington},
            booktitle={Advances in Neural Information Processing Systems},
            year={2019},
        }
        ```

    **Arguments:**

    - `model`, `weights`: as for [`infinitenet.taylor_expand`][].

    **Returns:** as [`infinitenet.taylor_expand`][].

    **Raises:** `ValueError` as [`infinitenet.taylor_expand`][].
    """
    return taylor_expand(model, 1, weights)


def taylor_expand(model: Any, degree: int, weights: PyTree = None) -> Any:
    r"""The Taylor polynomial of a model in its weights, around those that it has:
    $\sum_{k=0}^d \frac 1 {k!} \frac {d^k} {dt^k} f(w_0 + t (w - w_0))$ at $t = 0$.

    Its own weights are trained as those of the model, by any optimiser. Those weights that
    [`infinitenet.trainable`][] tells vary; all else, integers included, is as it was when
    the model was expanded. So are outputs that are not floating-point numbers. Call
    `eqx.nn.inference_mode` before, not after.

    Compile it: under `jax.jit` the cost of outputs grows about linearly with the degree,
    but by a factor of two for each degree otherwise, within loops
    ([`infinitenet.Repeat`][]), and for gradients.

    The polynomial knows nothing of kinks. That of a network with ReLU tends to the network
    only while no unit changes sign.

    !!! example

        ```python no-run
        quadratic = inn.taylor_expand(net, 2)
        quadratic(x)  # As `net(x)`,
        quadratic.at(trained)(x)  # and close to `trained(x)`.
        ```

    ??? cite "Reference"
        ```bibtex
        @article{bai2020taylorized,
            title={Taylorized Training: Towards Better Approximation of Neural Network
                   Training at Finite Width},
            author={Yu Bai and Ben Krause and Huan Wang and Caiming Xiong
                    and Richard Socher},
            journal={arXiv:2002.04010},
            year={2020},
        }
        ```

    **Arguments:**

    - `model`: a network after `init`, any other Equinox module, a
        [`infinitenet.BatchFunction`][] or a [`infinitenet.CoupledFunction`][]. Or a
        function `fn(weights, *args, **kwargs)`, with its `weights`.
    - `degree`: $d$, at least 0.
    - `weights`: where to expand a function, a pytree of arrays. `None` for models, which
        have weights of their own.

    **Returns:**

    A [`infinitenet.TaylorModel`][], which is called as the model, and has the same weights.
    Of a `BatchFunction` or `CoupledFunction` it is one again. Of a function it is a
    [`infinitenet.TaylorFunction`][], which is called as the function.

    It can be compiled, vectorised over weights and arguments, and differentiated by both,
    forwards and in reverse. There are no derivatives by the point of expansion.

    **Raises:** `ValueError` if `degree` is not a whole number of at least 0, or if there
        are no weights, or some that are not finite; and when it is called, with the place,
        if weights are of another structure or shape.
    """
    if isinstance(degree, bool) or not isinstance(degree, int) or degree < 0:
        raise ValueError(
            f"`degree` must be a whole number of at least 0, but it is {degree!r}. Use 1 "
            "for a linear model."
        )
    if weights is not None:
        return _of_function(model, degree, weights)
    if isinstance(model, AbstractFunction):
        to_unit(model)  # For its checks.
        function = _expand(model.fn, degree, model.weights)
        # Copies, so that those of the centre are left if these are donated to a program.
        return type(model)(function, jax.tree.map(_copy, model.weights))
    if not isinstance(model, eqx.Module) and not _has_weights(model):
        raise ValueError(
            "`model` has no weights, that is no arrays of floating-point numbers. If it is "
            "a function `fn(weights, ...)`, give its weights: `linearize(fn, weights)` or "
            "`taylor_expand(fn, degree, weights)`."
        )
    unit = to_unit(model)
    weights = jax.tree.map(_copy, unit.weights)
    return TaylorModel(_expand(_call, degree, model), FreeWeights(weights))


def _of_function(fn: Any, degree: int, weights: PyTree) -> TaylorFunction:
    if not callable(fn) or isinstance(fn, AbstractModel):
        raise ValueError(
            "`weights` are those of a function `fn(weights, ...)`, but `model` is "
            f"{fn!r}. A model has its own, and is evaluated at others by "
            "`linearize(model).at(other)`."
        )
    # It also takes arrays of NumPy.
    weights = BatchFunction(fn, weights).weights
    if not _has_weights(weights):
        raise ValueError(
            "`weights` must have arrays of floating-point numbers, but they are "
            f"{eqx.tree_pformat(weights)}."
        )
    check_weights(weights, "weights")
    return _expand(fn, degree, weights)


def _expand(fn: Callable[..., PyTree], degree: int, weights: PyTree) -> TaylorFunction:
    centre, rest = eqx.partition(weights, trainable(weights))
    return TaylorFunction(fn, degree, _freeze(centre), rest)


def _call(model: Callable[..., PyTree], *args: Any, **kwargs: Any) -> PyTree:
    return model(*args, **kwargs)


def _has_weights(model: Any) -> bool:
    return any(jax.tree.leaves(trainable(model)))


def _copy(leaf: Any) -> Any:
    return jnp.copy(leaf) if eqx.is_inexact_array(leaf) else leaf


#
# Displacements
#


def _by_path(tree: PyTree) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def _check_alike(name: str, weight: Any, centre: Array) -> None:
    if jnp.shape(weight) != centre.shape:
        raise ValueError(
            f"`{name}` has shape {jnp.shape(weight)}, but {centre.shape} at the point of "
            "expansion. For several models at once, use `jax.vmap`."
        )
    dtype = jnp.result_type(weight)
    if jnp.issubdtype(dtype, jnp.complexfloating) and not jnp.iscomplexobj(centre):
        raise ValueError(f"`{name}` is {dtype}, but real at the point of expansion.")


def _difference(weight: Array, centre: Array) -> Array:
    return (weight - centre).astype(centre.dtype)


#
# Derivatives along a line
#


def _polynomial(
    fn: Callable[[PyTree], PyTree], centre: PyTree, displacement: PyTree, degree: int
) -> PyTree:
    """Derivatives are taken of those outputs that have any; the others are of `centre`."""

    def outputs(weights):
        varying, rest = eqx.partition(fn(weights), eqx.is_inexact_array)
        return (varying,), rest

    orders = outputs
    for _ in range(degree):
        orders = _next_order(orders, displacement)
    terms, rest = orders(centre)
    return eqx.combine(jax.tree.map(_sum, *terms), rest)


def _next_order(orders: Callable, displacement: PyTree) -> Callable:
    def more(weights):
        terms, slopes, rest = jax.jvp(orders, (weights,), (displacement,), has_aux=True)
        return (*terms, slopes[-1]), rest

    return more


def _sum(*derivatives: Array) -> Array:
    out, *higher = derivatives
    for order, derivative in enumerate(higher, 1):
        out = out + derivative / math.factorial(order)
    return out
