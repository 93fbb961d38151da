"""Networks of vectors as maps of numbers: of variances, and of correlations."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from ._checks import check_finite, check_floating, check_not_negative, guard
from ._covariance import Covariance, Pairs
from ._kernel import Kernel
from ._layer import AbstractLayer, check, infinite, to_layer
from ._layers.affine import AbstractAffine
from ._path import LayerError
from ._pointwise import AbstractPointwise
from ._signal import Signal
from ._special import roots
from ._weights import without_weights


def _check_iterable(net: AbstractLayer, width: int, dtype: jnp.dtype) -> int:
    """The width of the outputs of a layer, which must be able to take these again."""
    signal = Signal((width,), dtype).affine((width,))
    for _ in range(2):
        signal = check(net, signal)
        if not isinstance(signal, Signal) or signal.spatial:
            raise LayerError(
                net,
                "must take vectors to vectors, one array without positions for another, "
                "to be looked at as a map of correlations. Leave out `FanOut`, or end in "
                "a layer such as `FanInSum`.",
            )
    return signal.channels


def _check_output(net: AbstractLayer, width: int, dtype: jnp.dtype) -> int:
    """The width of the inputs, if the layer can take such."""
    signal = check(net, Signal((width,), dtype).affine((width,)))
    if not isinstance(signal, Signal) or signal.spatial:
        raise LayerError(net, "must give one array, without positions.")
    return width


def _width_for(
    net: AbstractLayer,
    dtype: jnp.dtype,
    fits: Callable[[AbstractLayer, int, jnp.dtype], int],
) -> int:
    """A width of inputs that fits, as shortcuts make demands. The last error otherwise."""
    is_affine = lambda node: isinstance(node, AbstractAffine)
    nodes = jax.tree.leaves(net, is_leaf=is_affine)
    widths = [n.parameterization.outputs(n.width) for n in nodes if is_affine(n)]
    error = None
    for width in dict.fromkeys([1, *widths]):
        try:
            return fits(net, width, dtype)
        except LayerError as this:
            error = this
    assert error is not None
    raise error


def width_of_block(block: AbstractLayer, dtype: jnp.dtype) -> int:
    """Of the outputs of a layer that can be repeated.

    **Raises:** `ValueError` if it cannot be.
    """
    return _width_for(block, dtype, _check_iterable)


def _scalars(name: str, x: ArrayLike) -> Float[Array, "..."]:
    x = x if isinstance(x, jax.Array) else jnp.asarray(x, float)
    return check_floating(name, x, "Convert it with `astype(float)`.")


_VARIANCE = "It is the variance of Gaussian inputs, `x . x / channels`."


def to_variances(name: str, q: ArrayLike, remedy: str = _VARIANCE) -> Float[Array, "..."]:
    """**Raises:** `ValueError` if one is negative or not finite."""
    q = _scalars(name, q)
    return check_finite(name, check_not_negative(name, q, q.dtype, remedy), remedy)


def variance_after(net: AbstractLayer, width: int, q: Float[Array, ""]) -> Array:
    """Of one input."""
    k = Covariance(q, Pairs.SAME)
    kernel = Kernel(k, None, None, None, alone=True, channels=width)
    return infinite(net, kernel).nngp.array


def _after(net: AbstractLayer, width: int, q1: Array, k: Array, q2: Array) -> Kernel:
    k11, k12, k22 = (Covariance(each, Pairs.SAME) for each in (q1, k, q2))
    return infinite(net, Kernel(k12, None, k11, k22, alone=False, channels=width))


def _has_jumps(net: AbstractLayer, dtype: jnp.dtype) -> Bool[Array, ""]:
    """Whether a nonlinearity is piecewise constant, and not constant."""
    is_pointwise = lambda node: isinstance(node, AbstractPointwise)
    half, one = jnp.asarray(0.5, dtype), jnp.asarray(1.0, dtype)
    out = jnp.zeros((), bool)
    for node in jax.tree.leaves(net, is_leaf=is_pointwise):
        if is_pointwise(node) and node.flat:
            out |= node.dual(one, half, one) != node.dual(one, one, one)
    return out


def chi_1(net: AbstractLayer, width: int, q: Float[Array, ""]) -> Array:
    """The derivative along the covariance, for inputs that are nearly equal."""
    along = lambda k: _after(net, width, q, k, q).nngp.array
    _, slope = jax.jvp(along, (q,), (jnp.ones_like(q),))
    # That of a discontinuous function, for which layers have some finite number.
    return jnp.where(_has_jumps(net, q.dtype), jnp.inf, slope)


def correlation_after(
    net: AbstractLayer, width: int, c: Array, q1: Array, q2: Array
) -> Array:
    """Of two inputs."""
    (s1, _), (s2, _) = roots(q1), roots(q2)
    # One product where both are the same, of which the root is not exact.
    k = c * (q1 if q1 is q2 else s1 * s2)
    out = _after(net, width, q1, k, q2)
    assert out.cov1 is not None and out.cov2 is not None  # As they are given.
    (_, r1), (_, r2) = roots(out.cov1.array), roots(out.cov2.array)
    return out.nngp.array * r1 * r2


_vector_variance = eqx.filter_jit(
    lambda net, width, q: jnp.vectorize(lambda q: variance_after(net, width, q))(q)
)
_vector_correlation = eqx.filter_jit(
    lambda net, width, *args: jnp.vectorize(
        lambda *args: correlation_after(net, width, *args)
    )(*args)
)


def variance_map(net: AbstractLayer, q: ArrayLike) -> Float[Array, "..."]:
    r"""The variance after an infinitely wide network, of inputs of a given variance.

    For `Sequential([phi, Dense(width, W_std, b_std)])` it is

    $$
    V(q) = \sigma_W^2 E[\phi(u)^2] + \sigma_b^2, \quad u \sim \mathcal{N}(0, q).
    $$

    ??? cite "Reference"
        Poole, Lahiri, Raghu, Sohl-Dickstein & Ganguli, Exponential expressivity in deep
        neural networks through transient chaos, NeurIPS 2016: section 2.1.

    **Arguments:**

    - `net`: a network or a part of one, from vectors to vectors. It may begin with a
        nonlinearity: inputs are taken to be Gaussian.
    - `q`: variances $x \cdot x / N$ of inputs $x$ of $N$ channels, of any shape.

    **Returns:** variances of the same shape. Differentiable along `q` and along the
    hyperparameters of `net`.

    **Raises:** `ValueError` if a variance is negative, or if the network does not take
        vectors to vectors.
    """
    net, q = without_weights(to_layer(net, "net")), to_variances("q", q)
    return _vector_variance(net, _width_for(net, q.dtype, _check_output), q)


def correlation_map(
    net: AbstractLayer, c: ArrayLike, q1: ArrayLike = 1.0, q2: ArrayLike | None = None
) -> Float[Array, "..."]:
    r"""The correlation after an infinitely wide network, of inputs of given correlation.

    For `Sequential([phi, Dense(width, W_std, b_std)])` it is

    $$
    \frac{\sigma_W^2 E[\phi(u) \phi(v)] + \sigma_b^2}{\sqrt{V(q_1) V(q_2)}}
    $$

    for Gaussian $u, v$ of variances $q_1, q_2$ and correlation $c$, where $V$ is
    [`infinitenet.variance_map`][].

    ??? cite "Reference"
        Poole, Lahiri, Raghu, Sohl-Dickstein & Ganguli, Exponential expressivity in deep
        neural networks through transient chaos, NeurIPS 2016: section 2.2.

    **Arguments:**

    - `net`: as for [`infinitenet.variance_map`][].
    - `c`: correlations, from -1 to 1.
    - `q1`, `q2`: variances of both inputs, which are equal by default.

    These arrays broadcast.

    **Returns:** correlations, zero where either variance is. Differentiable along all of
    them and along the hyperparameters of `net`.

    **Raises:** `ValueError` if a variance is negative or a correlation larger than one, or
        if the network does not take vectors to vectors.
    """
    net = without_weights(to_layer(net, "net"))
    c, q1 = _scalars("c", c), to_variances("q1", q1)
    q2 = q1 if q2 is None else to_variances("q2", q2)
    message = "`c` must be a correlation, from -1 to 1."
    # With room for rounding, as correlations are quotients.
    beyond = lambda c: ~jnp.all(jnp.abs(c) <= 1 + 16 * jnp.finfo(c.dtype).eps)
    c = guard(c, beyond, lambda c: f"{message} It is {c}.", message)
    shape = jnp.broadcast_shapes(c.shape, q1.shape, q2.shape)
    c, q1, q2 = (jnp.broadcast_to(each, shape) for each in (c, q1, q2))
    return _vector_correlation(net, _width_for(net, c.dtype, _check_output), c, q1, q2)
