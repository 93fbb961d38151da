"""Expectations of products of Gaussian variables, with safe derivatives."""

import functools as ft

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._special import (
    arc_cosine,
    arc_sine,
    dense,
    determinant,
    roots,
    snapped_root,
    sum_known,
)


#
# x Phi(x)
#


@jax.custom_jvp
def gelu_moments(
    q1: Float[Array, "..."], k: Float[Array, "..."], q2: Float[Array, "..."]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    r"""$E[u \Phi(u)\, v \Phi(v)]$, and its derivative along `k`.

    With $p_i = 1 / (1 + q_i)$, $D = (1 + q_1) (1 + q_2) - k^2$ and
    $s = \arctan(k / \sqrt D)$ these are

    $$
    \frac k4 + \frac1{2\pi} \Bigl(k s + \frac{k^2 p_1 p_2}{\sqrt D}
        + q_1 q_2 p_1 p_2 \sqrt D\Bigr),
    \quad
    \frac14 + \frac1{2\pi} \Bigl(s + \frac k{\sqrt D} (1 / D + p_1 + p_2)\Bigr).
    $$

    The second is written such that no large terms cancel, as they would if the first were
    differentiated automatically.
    """
    p1, p2 = 1 / (1 + q1), 1 / (1 + q2)
    s, inverse = arc_sine(q1, k, q2)
    square = inverse * k * (k * p1) * p2  # In an order in which nothing overflows.
    value = k * s + square + q1 * p1 * (q2 * p2) / inverse
    slope = s + k * inverse * (inverse * inverse + p1 + p2)
    factor = 1 / (2 * np.pi)
    return k / 4 + factor * value, 0.25 + factor * slope


def _gelu_moments_jvp(primals, tangents):
    q1, k, q2 = primals
    t_q1, t_k, t_q2 = tangents
    value, slope = gelu_moments(q1, k, q2)  # Not inlined, for derivatives of this rule.
    p1, p2 = 1 / (1 + q1), 1 / (1 + q2)
    _, inverse = arc_sine(q1, k, q2)
    factor = inverse * (1 / (2 * np.pi))
    c, d = inverse * k, inverse * inverse
    half = determinant(q1, k, q2) / 2
    along_q = lambda p1, q2: factor * p1 * (half + p1 * (q2 + 2 * half) - c * c / 2)
    t_value = sum_known((slope, t_k), (along_q(p1, q2), t_q1), (along_q(p2, q1), t_q2))
    both = 3 * d + p1 + p2
    along_k = factor * (1 + d + p1 + p2 + c * c * both)
    along_q = lambda p1, q2: -factor * k * (p1 / 2 + p1 * p1 + both * d * (1 + q2) / 2)
    t_slope = sum_known((along_k, t_k), (along_q(p1, q2), t_q1), (along_q(p2, q1), t_q2))
    zero = jnp.zeros_like(value)
    return (value, slope), (dense(t_value, zero), dense(t_slope, zero))


gelu_moments.defjvp(_gelu_moments_jvp, symbolic_zeros=True)


#
# Powers of positive parts
#


def _sequence(degree: int, q1: Array, k: Array, q2: Array) -> list[Array]:
    r"""$E[u_+^n v_+^n]$ of all degrees $n$ up to one.

    By Gaussian integration by parts, twice,
    $K_n = (2 n - 1) k K_{n - 1} + (n - 1)^2 (q_1 q_2 - k^2) K_{n - 2}$.
    """
    kappa1, kappa0 = arc_cosine(q1, k, q2)
    out = [kappa0 / 2, kappa1 / 2]
    det = determinant(q1, k, q2)
    for n in range(2, degree + 1):
        out.append((2 * n - 1) * k * out[-1] + (n - 1) ** 2 * det * out[-2])
    return out[: degree + 1]


def _mixed(degree: int, q1: Array, k: Array, q2: Array) -> Array:
    r"""$L_n = E[u_+^{n - 2} v_+^n]$ for $n \geq 2$.

    By Gaussian integration by parts,
    $L_n = (n - 1) q_2 K_{n - 2} + (n - 2) k L_{n - 1}$ from $n = 3$ on. For $n = 2$ the
    derivative of the step adds a term at $u = 0$, of which the density is $1 / \sqrt{2 \pi
    q_1}$. It is written with the correlation, which is zero for variances of zero.
    """
    (_, r1), (_, r2) = roots(q1), roots(q2)
    c = k * (r1 * r2)
    t = 1 - jnp.abs(c)
    sine = snapped_root(t) * jnp.sqrt(2 - t)
    moments = _sequence(max(degree - 2, 0), q1, k, q2)
    out = q2 * (moments[0] + c * sine * (1 / (2 * np.pi)))
    for n in range(3, degree + 1):
        out = (n - 1) * q2 * moments[n - 2] + (n - 2) * k * out
    return out


def rectified_moment(
    degree: int,
    q1: Float[Array, "..."],
    k: Float[Array, "..."],
    q2: Float[Array, "..."],
) -> Float[Array, "..."]:
    r"""$E[u_+^n v_+^n]$ for a degree $n$, where zero to the power of zero counts 1/2.

    Its derivative along `k` is $n^2$ times that of degree $n - 1$ (Price's theorem).

    ??? cite "Reference"
        Cho & Saul, Kernel Methods for Deep Learning, NeurIPS 2009: section 2.
    """
    if degree < 2:
        return arc_cosine(q1, k, q2)[1 - degree] / 2
    return _higher_moment(degree, q1, k, q2)


@ft.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _higher_moment(degree: int, q1: Array, k: Array, q2: Array) -> Array:
    return _sequence(degree, q1, k, q2)[degree]


def _higher_moment_jvp(degree, primals, tangents):
    q1, k, q2 = primals
    t_q1, t_k, t_q2 = tangents
    value = _higher_moment(degree, q1, k, q2)
    along_k = degree**2 * rectified_moment(degree - 1, q1, k, q2)
    # Half of the expectation of the second derivative in one variable.
    second = degree * (degree - 1) / 2
    t_value = sum_known(
        (along_k, t_k),
        (second * _mixed(degree, q1, k, q2), t_q1),
        (second * _mixed(degree, q2, k, q1), t_q2),
    )
    return value, dense(t_value, jnp.zeros_like(value))


_higher_moment.defjvp(_higher_moment_jvp, symbolic_zeros=True)
