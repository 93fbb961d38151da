"""Expectations of functions of two Gaussian variables, in polar coordinates."""

import dataclasses
from collections.abc import Callable

import jax
import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


# Of two arrays, to several arrays whose expectations are wanted.
Integrand = Callable[[Array, Array], tuple[Array, ...]]

# Beyond this distance the density is below 3e-18 of that at the origin.
_END = 9.0

# Nodes are as dense as those of a logarithm of the distance from places where functions
# may change fast, shifted by this much: radii near zero, and angles at which either
# variable is zero, in units of its inverse standard deviation there.
_RADIUS, _ANGLE = 0.15, 0.5

# Arrays of nodes times entries have up to this many numbers: then vectorised, as loops
# over single entries would take most of their time for nothing.
_BLOCK = 2**13


@dataclasses.dataclass(frozen=True)
class Resolution:
    """Numbers of nodes: of angles in each half of an arc, and of radii."""

    angles: int
    radii: int


# Errors of 1e-12 for variances up to 100, and of 1e-8.
FINE = Resolution(20, 36)
COARSE = Resolution(13, 24)


def legendre(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of Gauss-Legendre quadrature from 0 to 1."""
    x, w = np.polynomial.legendre.leggauss(n)
    return (x + 1) / 2, w / 2


def _radii(n: int, even: bool) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights for `exp(-r**2 / 2)`, of either sign."""
    x, w = legendre(n)
    log = np.log1p(_END / _RADIUS)
    r = _RADIUS * np.expm1(log * x)
    w = w * log * (r + _RADIUS) * np.exp(-(r**2) / 2)
    return (r, 2 * w) if even else (np.concatenate([r, -r]), np.concatenate([w, w]))


def line(
    integrand: Integrand,
    s1: Float[Array, "..."],
    s2: Float[Array, "..."],
    *,
    even: bool = False,
) -> tuple[Float[Array, "..."], ...]:
    """Expectations of functions of multiples `s1, s2` of one standard normal variable."""
    r, w = _radii(FINE.radii, even)
    nodes = jnp.asarray(r, s1.dtype), jnp.asarray(w / np.sqrt(2 * np.pi), s1.dtype)
    one = jax.ShapeDtypeStruct((), s1.dtype)
    zeros = jnp.zeros(jnp.broadcast_shapes(s1.shape, s2.shape), s1.dtype)

    def add(sums, node):
        r, w = node
        return _add(sums, [w * f for f in integrand(r * s1, r * s2)]), None

    zeros = (zeros,) * len(jax.eval_shape(integrand, one, one))

    return lax.scan(add, zeros, nodes)[0]


def _angles(n: int) -> tuple[np.ndarray, ...]:
    """Nodes and weights in four halves of arcs, and which ones these are.

    First whether signs of the variables are opposite, then whether it is the half at the
    end of which the second one is zero, rather than the first one.
    """
    x, w = legendre(n)
    shape = (2, 2, n)
    opposite, second = np.arange(2)[:, None, None], np.arange(2)[:, None]
    each = (x, w, opposite.astype(bool), second.astype(bool))
    return tuple(np.broadcast_to(a, shape).ravel() for a in each)


def arcs(
    c: Float[Array, "..."],
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """`pi - arccos(c)` and `arccos(c)`, both without cancellation."""
    # The derivative of a root is infinite at zero: JAX sees it where it forgets rules.
    t = 1 - jnp.abs(c)
    inside = t > 0
    root = jnp.where(inside, jnp.sqrt(jnp.where(inside, t, 1)), 0)
    acute = 2 * jnp.arcsin(root * 0.5**0.5)
    obtuse = np.pi - acute
    return jnp.where(c < 0, acute, obtuse), jnp.where(c < 0, obtuse, acute)


def polar(
    integrand: Integrand,
    s1: Float[Array, "..."],
    c: Float[Array, "..."],
    s2: Float[Array, "..."],
    *,
    resolution: Resolution = FINE,
    even: bool = False,
) -> tuple[Float[Array, "..."], ...]:
    r"""Expectations of functions of Gaussian variables.

    These are $u = s_1 r \cos\psi$ and $v = s_2 r \cos(\psi - \theta)$, where $\cos\theta =
    c$, $\psi$ is uniform and $r$ is of density $r e^{-r^2 / 2}$, so that no correlation is
    special. Angles are split where $u = 0$ and where $v = 0$: kinks there do no harm, nor
    layers in which functions of large variances saturate, as nodes are dense at both ends
    of each arc. Arrays broadcast.

    **Arguments:**

    - `integrand`: the functions.
    - `s1`, `s2`: standard deviations, `c`: the correlation.
    - `resolution`: the numbers of nodes.
    - `even`: whether the functions are the same at `(-u, -v)`.

    **Returns:** the expectations. Memory is that of a few arrays of the result's shape.
    """
    shape = jnp.broadcast_shapes(s1.shape, c.shape, s2.shape)
    dtype = c.dtype
    same, opposite = arcs(c)
    layer = 1 / (1 + jnp.maximum(s1, s2) / _ANGLE)
    radii, weights = _radii(resolution.radii, even)
    weights = weights * np.abs(radii) / (2 * np.pi)
    block = _block(len(radii), max(int(np.prod(shape)), 1))
    blocks = lambda a: jnp.asarray(a.reshape(-1, block), dtype)
    radii = blocks(radii), blocks(weights)
    one = jax.ShapeDtypeStruct((), dtype)
    zeros = tuple(jnp.zeros(shape, dtype) for _ in jax.eval_shape(integrand, one, one))

    def at_angle(total, node):
        x, w, is_opposite, is_second = node
        arc = jnp.where(is_opposite, opposite, same)
        log = jnp.log1p(arc / 2 / layer)
        distance = layer * jnp.expm1(log * x)
        near, far = jnp.sin(distance), jnp.sin(arc - distance)
        u = s1 * jnp.where(is_second, far, near)
        v = s2 * jnp.where(is_second, near, far) * jnp.where(is_opposite, -1, 1)
        sums, _ = lax.scan(_along(integrand, u, v), zeros, radii)
        return _add(total, [w * log * (distance + layer) * f for f in sums]), None

    nodes = tuple(
        jnp.asarray(a, dtype if a.dtype.kind == "f" else bool)
        for a in _angles(resolution.angles)
    )
    return lax.scan(at_angle, zeros, nodes)[0]


def _along(integrand, u, v):
    """Adds nodes on the line through zero and `(u, v)`."""

    def add(sums, nodes):
        r, w = (a.reshape(-1, *(1,) * u.ndim) for a in nodes)
        values = integrand(r * u[None], r * v[None])
        return _add(sums, [jnp.sum(w * f, 0) for f in values]), None

    return add


def _add(total, terms):
    return tuple(a + b for a, b in zip(total, terms, strict=True))


def _block(nodes: int, entries: int) -> int:
    """How many nodes at once: a divisor of their number."""
    most = max(_BLOCK // entries, 1)
    return max(n for n in range(1, nodes + 1) if nodes % n == 0 and n <= most)
