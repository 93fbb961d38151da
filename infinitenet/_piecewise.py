"""The dual of a function that is linear between -1 and 1, and constant elsewhere."""

import jax
import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erf
from jaxtyping import Array, Float

from ._correlation_map import interpolate
from ._expectations import correlation
from ._polar import arcs, legendre
from ._special import dense, roots, snapped_root, sum_known


# Nodes, and the least distance to which they are dense.
_NODES, _LEAST = 64, 1e-5


@jax.custom_jvp
def clip_moments(
    q1: Float[Array, "..."], k: Float[Array, "..."], q2: Float[Array, "..."]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    r"""$E[\phi(u) \phi(v)]$ and $E[\phi'(u) \phi'(v)]$.

    For $\phi(x) = \max(-1, \min(x, 1))$. The second derivative of $\phi$ are masses at -1
    and 1. Hence with the joint density $p$ of $u, v$, as a function of the covariance $t$
    too, the second one's derivative is

    $$
    g(t) = 2 p(1, 1; t) - 2 p(1, -1; t),
    $$

    and these are $k P(|u| < 1) P(|v| < 1) + \int_0^k (k - t) g(t) dt$ and
    $P(|u| < 1) P(|v| < 1) + \int_0^k g(t) dt$, where $t = \sqrt{q_1 q_2} \cos b$.
    """
    (s1, r1), (s2, r2) = roots(q1), roots(q2)
    s, r = s1 * s2, r1 * r2
    c = jnp.clip(jnp.abs(k) * r, 0, 1)
    sine_c, _ = _sine(c)
    c = jnp.where(sine_c > 0, c, 1)
    _, start = arcs(c)
    # Densities change where `b` is about as large as this.
    difference = jnp.abs(r1 - r2)
    layer = jnp.maximum(difference, _LEAST)
    log = jnp.log1p((np.pi / 2 - start) / layer)

    def add(sums, node):
        x, w = node
        shift = layer * jnp.expm1(log * x)
        half_sine, half_cosine = jnp.sin(shift / 2), jnp.cos(shift / 2)
        # c - cos b for b = arccos(c) + shift, without cancellation; and sin b.
        gap = 2 * half_sine * (c * half_sine + sine_c * half_cosine)
        # Never below zero by rounding, as `other` is of its exponential.
        cosine = jnp.maximum(c - gap, 0)
        sine = sine_c + 2 * half_sine * (c * half_cosine - sine_c * half_sine)
        inverse = 1 / jnp.where(sine > 0, sine, 1)
        # Of (1 / q1 + 1 / q2 -+ 2 cos b / s) / (2 sin(b)^2), likewise.
        apart = difference * inverse
        exponent = apart * apart / 2 + r / (1 + cosine)
        other = jnp.expm1(-2 * cosine * r * inverse * inverse)
        weight = -w * log * (shift + layer) * jnp.exp(-exponent) * other / np.pi
        return (sums[0] + gap * weight, sums[1] + weight), None

    nodes = tuple(jnp.asarray(a, k.dtype) for a in legendre(_NODES))
    zeros = (jnp.zeros(jnp.broadcast_shapes(q1.shape, k.shape, q2.shape), k.dtype),) * 2
    (first, second), _ = lax.scan(add, zeros, nodes)
    central = _central(r1) * _central(r2)
    return k * central + jnp.sign(k) * s * first, central + second


def _central(r: Array) -> Array:
    """`P(|u| < 1)`, given the inverse of the standard deviation, which is zero for none."""
    return jnp.where(r > 0, erf(r * 0.5**0.5), 1)


def _density(r: Array) -> Array:
    """Of `u` at 1, likewise."""
    return r * jnp.exp(-r * r / 2) * (2 * np.pi) ** -0.5


def _sine(c: Array) -> tuple[Array, Array]:
    """Of the angle, and its inverse: both are zero for collinear variables."""
    t = 1 - jnp.abs(c)
    sine = snapped_root(t) * jnp.sqrt(2 - t)
    positive = sine > 0
    return sine, jnp.where(positive, 1 / jnp.where(positive, sine, 1), 0)


def _given(q1, k, q2):
    r"""Half of $E[\phi''(u) \phi(v)]$: the first moment's derivative along `q1`.

    That is minus the density of $u$ at 1 times $m = E[\phi(v) | u = 1]$. And its
    derivative along `k`, which is the second moment's derivative along `q1`.
    """
    (_, r1), (s2, r2) = roots(q1), roots(q2)
    c = jnp.clip(k * (r1 * r2), -1, 1)
    # Mean, standard deviation, and its inverse.
    mean = c * s2 * r1
    spread, inverse = _sine(c)
    spread, inverse = s2 * spread, r2 * inverse
    below, above = (-1 - mean) * inverse, (1 - mean) * inverse
    known = inverse > 0
    cdf = lambda x: (1 + erf(x * 0.5**0.5)) / 2
    pdf = lambda x: jnp.where(known, jnp.exp(-x * x / 2) * (2 * np.pi) ** -0.5, 0)
    # Of collinear variables which leave together, half is due to each.
    excess = jnp.abs(mean) - 1
    together = jnp.abs(excess) < float(jnp.finfo(c.dtype).eps) ** 0.5
    collinear = jnp.where(together, 0.5, jnp.where(excess < 0, 1.0, 0.0))
    inside = jnp.where(known, cdf(above) - cdf(below), collinear)
    outside = cdf(-above) - cdf(below)
    outside = jnp.where(known, outside, jnp.sign(mean) * (1 - collinear))
    expected = mean * inside + outside + spread * (pdf(below) - pdf(above))
    # dm/dk = P(|v| < 1) / q1 + (pdf(-1) - pdf(1)) / 2 * (-2 k / q1), of `v` given `u`.
    along_k = r1 * r1 * (inside - k * inverse * (pdf(below) - pdf(above)))
    return -_density(r1) * expected, -_density(r1) * along_k


def _curvature(q1, k, q2):
    """The second moment's derivative along `k`: zero for collinear variables."""
    (_, r1), (_, r2) = roots(q1), roots(q2)
    c = jnp.clip(k * (r1 * r2), -1, 1)
    _, inverse = _sine(c)
    difference = (r1 - r2) * inverse
    # (r1^2 + r2^2 -+ 2 |c| r1 r2) / sine^2, of equal and opposite signs.
    equal = difference * difference + 2 * r1 * r2 / (1 + jnp.abs(c))
    other = jnp.expm1(-2 * jnp.abs(c) * r1 * r2 * inverse * inverse)
    densities = -jnp.exp(-equal / 2) * other * jnp.sign(c)
    return r1 * r2 * inverse * densities / np.pi


def _clip_moments_jvp(primals, tangents):
    q1, k, q2 = primals
    t_q1, t_k, t_q2 = tangents
    value, slope = clip_moments(q1, k, q2)  # Not inlined, for derivatives of this rule.
    first1, second1 = _given(q1, k, q2)
    first2, second2 = _given(q2, k, q1)
    t_value = sum_known((slope, t_k), (first1, t_q1), (first2, t_q2))
    t_slope = sum_known((_curvature(q1, k, q2), t_k), (second1, t_q1), (second2, t_q2))
    zero = jnp.zeros_like(value)
    return (value, slope), (dense(t_value, zero), dense(t_slope, zero))


clip_moments.defjvp(_clip_moments_jvp, symbolic_zeros=True)


@jax.custom_jvp
def clip_moments_at(
    q: Float[Array, ""], k: Float[Array, "*s"]
) -> tuple[Float[Array, "*s"], Float[Array, "*s"]]:
    """`clip_moments(q, k, q)`, by interpolation in the angle: under `vmap` much faster."""

    def at(c):
        each = q.reshape(1)
        return clip_moments(each, q * c, each)

    value, slope = interpolate(at, correlation(q, k, q)[0])
    return value, slope


def _clip_moments_at_jvp(primals, tangents):
    q, k = primals
    t_q, t_k = tangents
    value, slope = clip_moments_at(q, k)
    first, second = _given(q, k, q)
    t_value = sum_known((slope, t_k), (2 * first, t_q))
    t_slope = sum_known((_curvature(q, k, q), t_k), (2 * second, t_q))
    zero = jnp.zeros_like(value)
    return (value, slope), (dense(t_value, zero), dense(t_slope, zero))


clip_moments_at.defjvp(_clip_moments_at_jvp, symbolic_zeros=True)
