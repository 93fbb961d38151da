"""Functions of angles between Gaussian variables, with safe values and derivatives.

XLA's own `arccos` and `arctan2` are not vectorised on CPU (about 10 ns per element, where
the polynomials below take less than 2), and their derivatives are infinite or NaN just
where kernels need them: at identical inputs, and at inputs of zero.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float


# arccos(1 - t) / sqrt(t) for 0 <= t <= 1: a Chebyshev fit, relative error below 2e-8. So
# in float32 its error is that of rounding. Lowest power first.
_ARCCOS = (1.414213544, 0.1178534394, 0.02647000176, 0.008244196078)
_ARCCOS += (0.001399002327, 0.003457262444, -0.002078148734, 0.001237004854)

# arctan(x) / x in powers of x**2, for 0 <= x <= 1: likewise.
_ARCTAN = (0.999999984, -0.333330668, 0.199924836, -0.142025705, 0.106367541)
_ARCTAN += (-0.0749544544, 0.0425876075, -0.0160050305, 0.0028340643)

# Correlations which are this many units of rounding from 1 are taken to be 1. The angle
# is about sqrt(2 (1 - c)), so that rounding of `c` alone makes an angle of 5e-4 (float32)
# between copies of an input, which would cost half of the digits of the NTK, at each layer.
_SNAP = 4


def _polynomial(coefficients: tuple[float, ...], x: Array) -> Array:
    out = jnp.full_like(x, coefficients[-1])
    for a in reversed(coefficients[:-1]):
        out = out * x + a
    return out


def is_narrow(x: Array) -> bool:
    """Whether the polynomials above are exact up to rounding."""
    return jnp.finfo(x.dtype).bits <= 32


def roots(
    q: Float[Array, "*s"],
) -> tuple[Float[Array, "*s"], Float[Array, "*s"]]:
    """`sqrt(q)` and `1 / sqrt(q)`, both of which are zero where `q` is.

    Both `where`s are needed: without the inner one, derivatives are NaN at zero.
    """
    positive = q > 0
    root = jnp.sqrt(jnp.where(positive, q, 1))
    return jnp.where(positive, root, 0), jnp.where(positive, 1 / root, 0)


def _snap(c: Array) -> tuple[Array, Array]:
    """A correlation within `[-1, 1]`, and its distance `1 - abs(c)` from the ends."""
    t = 1 - jnp.abs(c)
    inside = t > _SNAP * jnp.finfo(c.dtype).eps
    return jnp.where(inside, c, jnp.sign(c)), jnp.where(inside, t, 0)


def _sine(t: Array) -> Array:
    """The sine of the angle of which the cosine is `1 - t` or `t - 1`.

    Its derivative is infinite at zero: return zero there. It matters although callers have
    their own rules, as JAX forgets those in loops under forward-over-reverse mode.
    """
    positive = t > 0
    t = jnp.where(positive, t, 1)
    return jnp.where(positive, jnp.sqrt(t * (2 - t)), 0)


def _supplement(c: Array, t: Array) -> Array:
    """`1 - arccos(c) / pi`."""
    positive = t > 0
    t = jnp.where(positive, t, 1)
    if is_narrow(c):
        acute = jnp.sqrt(t) * _polynomial(_ARCCOS, t) / jnp.pi
    else:
        acute = 2 / jnp.pi * jnp.arctan2(jnp.sqrt(t), jnp.sqrt(2 - t))
    acute = jnp.where(positive, acute, 0)
    return jnp.where(c < 0, acute, 1 - acute)


@jax.custom_jvp
def arc_cosine(
    q1: Float[Array, "..."], k: Float[Array, "..."], q2: Float[Array, "..."]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    r"""Arc-cosine kernels of orders 1 and 0, in terms of covariances.

    For Gaussian $u, v$ of variances `q1, q2` and covariance `k`, of correlation
    $c = \cos\theta$, these are $2 E[\max(u, 0) \max(v, 0)]$ and $2 P(u, v > 0)$:

    $$
    \sqrt{q_1 q_2}\, (\sin\theta + (\pi - \theta) \cos\theta) / \pi
    \quad\text{and}\quad 1 - \theta / \pi.
    $$

    The second is the derivative of the first along `k` (Price's theorem). Both come from
    one function as otherwise XLA would compute the angle twice.

    ??? cite "Reference"
        Cho & Saul, Kernel Methods for Deep Learning, NeurIPS 2009: section 2.
    """
    (s1, r1), (s2, r2) = roots(q1), roots(q2)
    # Clipping takes place in here, out of sight of differentiation: else the NTK would
    # be zero wherever rounding gives `c >= 1`, as on the diagonal of a kernel matrix.
    c, t = _snap(k * (r1 * r2))
    kappa0 = _supplement(c, t)
    return s1 * s2 * _sine(t) / jnp.pi + k * kappa0, kappa0


def _arc_cosine_jvp(primals, tangents):
    q1, k, q2 = primals
    t_q1, t_k, t_q2 = tangents
    kappa1, kappa0 = arc_cosine(q1, k, q2)  # Not inlined, for derivatives of this rule.
    (_, r1), (_, r2) = roots(q1), roots(q2)
    zero = jnp.zeros_like(kappa1)
    # Tangents of log(sqrt(q1 q2)). Most often the variances have none: the NTK is the
    # derivative along the covariance alone.
    t_log = zero
    for r, t_q in ((r1, t_q1), (r2, t_q2)):
        if not isinstance(t_q, SymbolicZero):
            t_log = t_log + r**2 * t_q / 2
    t_k = zero if isinstance(t_k, SymbolicZero) else t_k
    # kappa1 = sqrt(q1 q2) sin / pi + k kappa0
    t_kappa1 = kappa0 * t_k + (kappa1 - k * kappa0) * t_log
    # The derivative of an angle is infinite at 0 and pi: return zero, which is right on
    # the diagonal of a kernel matrix, where the angle stays zero.
    c, t = _snap(k * (r1 * r2))
    sin = jnp.sqrt(jnp.where(t > 0, t * (2 - t), 1))
    t_c = t_k * (r1 * r2) - c * t_log
    t_kappa0 = jnp.where(t > 0, t_c / (jnp.pi * sin), 0)
    return (kappa1, kappa0), (t_kappa1, t_kappa0)


arc_cosine.defjvp(_arc_cosine_jvp, symbolic_zeros=True)


def angle(y: Float[Array, "..."], x: Float[Array, "..."]) -> Float[Array, "..."]:
    """`arctan2(y, x)` for `x > 0`. Not to be differentiated."""
    if not is_narrow(y):
        return jnp.arctan2(y, x)
    magnitude = jnp.abs(y)
    steep = magnitude > x
    ratio = jnp.where(steep, x, magnitude) / jnp.where(steep, magnitude, x)
    acute = ratio * _polynomial(_ARCTAN, ratio**2)
    return jnp.sign(y) * jnp.where(steep, np.pi / 2 - acute, acute)


@jax.custom_jvp
def arc_sine(
    q1: Float[Array, "..."], k: Float[Array, "..."], q2: Float[Array, "..."]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    r"""$\arcsin(k / \sqrt{(1 + q_1)(1 + q_2)})$, and its derivative along `k`.

    ??? cite "Reference"
        Williams, Computing with Infinite Networks, NeurIPS 1996: section 3.1.
    """
    p1, p2 = 1 / (1 + q1), 1 / (1 + q2)
    root = jnp.sqrt(p1) * jnp.sqrt(p2)
    # (1 + q1) (1 + q2) - k**2 = 1 + q1 + q2 + (q1 q2 - k**2), where both sides cancel for
    # large variances of similar inputs. Not so the last term from differences, which are
    # exact then. Divided by the first term, nothing overflows.
    d1, d2 = (q1 - jnp.abs(k)) * root, (q2 - jnp.abs(k)) * root
    excess = d1 * d2 + jnp.abs(k) * root * (d1 + d2)
    cosine = jnp.sqrt(p1 + p2 - p1 * p2 + jnp.where(excess >= 0, excess, 0))
    return angle(k * root, cosine), root / cosine


def _arc_sine_jvp(primals, tangents):
    q1, k, q2 = primals
    t_q1, t_k, t_q2 = tangents
    value, slope = arc_sine(q1, k, q2)  # Not inlined, for derivatives of this rule.
    zero = jnp.zeros_like(value)
    t_k = zero if isinstance(t_k, SymbolicZero) else t_k
    t_value, t_log = slope * t_k, slope * (slope * k) * t_k
    for q, other, t_q in ((q1, q2, t_q1), (q2, q1, t_q2)):
        if not isinstance(t_q, SymbolicZero):
            t_value = t_value - slope * k * (t_q / (2 * (1 + q)))
            t_log = t_log - slope * (slope * (1 + other)) * (t_q / 2)
    return (value, slope), (t_value, slope * t_log)


arc_sine.defjvp(_arc_sine_jvp, symbolic_zeros=True)
