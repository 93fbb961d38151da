"""The dual of a function that is linear between -1 and 1, and constant elsewhere."""

import jax
import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erf
from jaxtyping import Array, Float

from ._polar import arcs, legendre
from ._special import dense, roots, sum_known


# Nodes, and the least distance to which they are dense.
_NODES, _LEAST = 64, 1e-5


@jax.custom_jvp
def clip_moments(
    q1: Float[Array, "..."], k: Float[Array, "..."], q2: Float[Array, "..."]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    r"""$E[\phi(u) \phi(v)]$ and $E[\phi'(u) \phi'(v)]$.

    For $\phi(x) = \max(-1, \min(x, 1))$. The second derivative of $\phi$ are masses at -1 and 1. Hence with the joint density
    $p$ of $u, v$, as a function of the covariance $t$ too, the second one's derivative is

    $$
    g(t) = 2 p(1, 1; t) - 2 p(1, -1; t),
    $$

    and these are $k P(|u| < 1) P(|v| < 1) + \int_0^k (k - t) g(t) dt$ and
    $P(|u| < 1) P(|v| < 1) + \int_0^k g(t) dt$, where $t = \sqrt{q_1 q_2} \cos b$.
    """
    (s1, r1), (s2, r2) = roots(q1), roots(q2)
    s, r = s1 * s2, r1 * r2
    c = jnp.clip(jnp.abs(k) * r, 0, 1)
    _, start = arcs(c)
    # Densities change where `b` is about as large as this.
    difference = jnp.abs(r1 - r2)
    layer = jnp.maximum(difference, _LEAST)
    log = jnp.log1p((np.pi / 2 - start) / layer)

    def add(sums, node):
        x, w = node
        shift = layer * jnp.expm1(log * x)
        b = start + shift
        cosine, sine = jnp.cos(b), jnp.sin(b)
        # Of (1 / q1 + 1 / q2 - 2 cos b / s) / (2 sin(b)^2), without cancellation.
        apart = difference / jnp.where(sine > 0, sine, 1)
        apart = apart * apart / 2
        same = jnp.exp(-apart - r / (1 + cosine))
        # -2 cos b of the other signs, instead: 4 cos b / (2 s sin(b)^2) more.
        sine2 = jnp.where(sine > 0, sine * sine, 1)
        other = jnp.exp(-apart - r / (1 + cosine) - 2 * cosine * r / sine2)
        weight = w * log * (shift + layer) * (same - other) / np.pi
        # c - cos b = 2 sin((b + start) / 2) sin((b - start) / 2)
        gap = 2 * jnp.sin((b + start) / 2) * jnp.sin(shift / 2)
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


def _given(q1, k, q2):
    r"""Half of $E[\phi''(u) \phi(v)]$: the first moment's derivative along `q1`.

    That is minus the density of $u$ at 1 times $m = E[\phi(v) | u = 1]$. And its
    derivative along `k`, which is the second moment's derivative along `q1`.
    """
    (_, r1), (s2, r2) = roots(q1), roots(q2)
    c = jnp.clip(k * (r1 * r2), -1, 1)
    # Mean, standard deviation, and its inverse.
    mean = c * s2 * r1
    spread, inverse = roots((1 - jnp.abs(c)) * (1 + jnp.abs(c)))
    spread, inverse = s2 * spread, r2 * inverse
    below, above = (-1 - mean) * inverse, (1 - mean) * inverse
    known = inverse > 0
    cdf = lambda x: (1 + erf(x * 0.5**0.5)) / 2
    pdf = lambda x: jnp.where(known, jnp.exp(-x * x / 2) * (2 * np.pi) ** -0.5, 0)
    inside = jnp.where(known, cdf(above) - cdf(below), jnp.abs(mean) < 1)
    outside = jnp.where(known, cdf(-above) - cdf(below), jnp.sign(mean))
    outside = jnp.where(known | (jnp.abs(mean) >= 1), outside, 0)
    expected = mean * inside + outside + spread * (pdf(below) - pdf(above))
    # dm/dk = P(|v| < 1) / q1 + (pdf(-1) - pdf(1)) / 2 * (-2 k / q1), of `v` given `u`.
    along_k = r1 * r1 * (inside - k * inverse * (pdf(below) - pdf(above)))
    return -_density(r1) * expected, -_density(r1) * along_k


def _curvature(q1, k, q2):
    """The second moment's derivative along `k`: zero for collinear variables."""
    (_, r1), (_, r2) = roots(q1), roots(q2)
    c = jnp.clip(k * (r1 * r2), -1, 1)
    sine, inverse = roots((1 - jnp.abs(c)) * (1 + jnp.abs(c)))
    difference, total = (r1 - r2) * inverse, (r1 + r2) * inverse
    # (r1^2 + r2^2 -+ 2 c r1 r2) / sine^2, of equal and opposite signs.
    equal = difference * difference + 2 * r1 * r2 / (1 + jnp.abs(c))
    other = total * total - 2 * r1 * r2 / (1 + jnp.abs(c))
    densities = (jnp.exp(-equal / 2) - jnp.exp(-other / 2)) * jnp.sign(c)
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
