"""Functions of angles between Gaussian variables, with safe values and derivatives.

XLA's own `arccos` and `arctan2` are not vectorised on CPU (about 10 ns per element, where
the polynomials below take less than 2), and their derivatives are infinite or NaN just
where kernels need them: at identical inputs, and at inputs of zero.
"""

import functools as ft
import math

import jax
import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float


# arccos(1 - t) / sqrt(t) for 0 <= t <= 1: a Chebyshev fit, relative error below 2e-8. So
# in float32 its error is that of rounding. Lowest power first.
_ARCCOS = (1.414213544, 0.1178534394, 0.02647000176, 0.008244196078)
_ARCCOS += (0.001399002327, 0.003457262444, -0.002078148734, 0.001237004854)

# arcsin(x) / x in powers of x**2, for 0 <= x <= sqrt(1 / 2): likewise.
_ARCSIN = (0.9999999868, 0.1666699324, 0.07486846864, 0.04663624662, 0.0158277096)
_ARCSIN += (0.07822954271, -0.09404725882, 0.1119615034)

# (2**x - 1) / x for |x| <= 1 / 2: likewise.
_EXP2M1 = (0.693147188, 0.240226498, 0.0555035739, 0.00961823758, 0.00133907583)
_EXP2M1 += (0.000154035122,)

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
    # XLA makes `rsqrt(q)` of `1 / sqrt(q)`, unless the root has other uses: it merges equal
    # roots before it looks for them in programs for several devices, and afterwards in all
    # others. So it would round otherwise there, if this were `1 / root`.
    inverse = 1 / jnp.where(positive, root, 1)
    return jnp.where(positive, root, 0), jnp.where(positive, inverse, 0)


def snapped_root(t: Array) -> Array:
    """`sqrt(t)` of the distance `t` of a correlation from 1, and zero if that is rounding.

    Its derivative is infinite at zero: it is zero here. That matters although callers have
    their own rules, as JAX forgets those in loops under forward-over-reverse mode.
    """
    inside = t > _SNAP * jnp.finfo(t.dtype).eps
    return jnp.where(inside, jnp.sqrt(jnp.where(inside, t, 1)), 0)


def _acute(root: Array, t: Array) -> Array:
    """`arccos(1 - t) / pi`, given `sqrt(t)`, which may be zero where `t` is rounding."""
    if is_narrow(t):
        return root * _polynomial(_ARCCOS, t) * (1 / np.pi)
    return jnp.arctan2(root, jnp.sqrt(2 - t)) * (2 / np.pi)


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
    t = 1 - jnp.abs(k * (r1 * r2))
    root = snapped_root(t)
    acute = _acute(root, t)
    kappa0 = jnp.where(k < 0, acute, 1 - acute)
    sine = root * jnp.sqrt(2 - t)
    return s1 * s2 * (sine * (1 / np.pi)) + k * kappa0, kappa0


def sum_known(*terms: tuple[Array, Array | SymbolicZero]) -> Array | SymbolicZero:
    """Sum of coefficients times tangents, where those that are zero cost nothing."""
    known = [a * b for a, b in terms if not isinstance(b, SymbolicZero)]
    return ft.reduce(jnp.add, known) if known else terms[0][1]


def _arc_cosine_jvp(primals, tangents):
    q1, k, q2 = primals
    t_q1, t_k, t_q2 = tangents
    kappa1, kappa0 = arc_cosine(q1, k, q2)  # Not inlined, for derivatives of this rule.
    (_, r1), (_, r2) = roots(q1), roots(q2)
    # Of log(sqrt(q1 q2)). Most often the variances have no tangents: the NTK is the
    # derivative along the covariance alone.
    t_log = sum_known((r1**2 / 2, t_q1), (r2**2 / 2, t_q2))
    # kappa1 = sqrt(q1 q2) sin / pi + k kappa0
    t_kappa1 = sum_known((kappa0, t_k), (kappa1 - k * kappa0, t_log))
    # The derivative of an angle is infinite at 0 and pi: return zero, which is right on
    # the diagonal of a kernel matrix, where the angle stays zero.
    c = k * (r1 * r2)
    t = 1 - jnp.abs(c)
    sine = snapped_root(t) * jnp.sqrt(2 - t)
    inverse = jnp.where(sine > 0, 1 / (np.pi * jnp.where(sine > 0, sine, 1)), 0)
    t_kappa0 = sum_known((inverse * (r1 * r2), t_k), (-inverse * c, t_log))
    zero = jnp.zeros_like(kappa1)
    return (kappa1, kappa0), (dense(t_kappa1, zero), dense(t_kappa0, zero))


def dense(tangent: Array | SymbolicZero, zero: Array) -> Array:
    """Tangents as arrays, where those that are known to be zero are `zero`."""
    return zero if isinstance(tangent, SymbolicZero) else tangent


arc_cosine.defjvp(_arc_cosine_jvp, symbolic_zeros=True)


def angle(sine: Float[Array, "..."], cosine: Float[Array, "..."]) -> Float[Array, "..."]:
    """The angle of a sine and a positive cosine, both of which are known to all digits.

    Callers have a rule for its derivative, but JAX forgets those in loops under
    forward-over-reverse mode: so there is no minimum in it, nor a sign of what may be zero.
    """
    if not is_narrow(sine):
        return jnp.arctan2(sine, cosine)
    steep = jnp.abs(sine) > cosine
    smaller = jnp.where(steep, cosine, sine)
    acute = smaller * _polynomial(_ARCSIN, smaller**2)
    return jnp.where(steep, jnp.sign(sine) * (np.pi / 2 - acute), acute)


def determinant(
    q1: Float[Array, "..."],
    k: Float[Array, "..."],
    q2: Float[Array, "..."],
    scale: Float[Array, "..."] | float = 1.0,
) -> Float[Array, "..."]:
    """`q1 q2 - k**2`, not negative by rounding, times the square of `scale`."""
    magnitude = jnp.abs(k)
    # Both products cancel for similar inputs: not so from differences, which are exact
    # then. For variances of different sizes it is the differences that cancel.
    similar = q1 + q2 < 3 * magnitude
    d1, d2 = (q1 - magnitude) * scale, (q2 - magnitude) * scale
    # Scaled before they are multiplied, so that nothing overflows.
    q1, k, q2 = q1 * scale, magnitude * scale, q2 * scale
    det = jnp.where(similar, d1 * d2 + k * (d1 + d2), q1 * q2 - k * k)
    return jnp.where(det >= 0, det, 0)


def _root_and_square(
    q1: Float[Array, "..."], k: Float[Array, "..."], q2: Float[Array, "..."]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """`((1 + q1) (1 + q2))**-0.5`, and the square of the cosine of the arcsine below."""
    p1, p2 = 1 / (1 + q1), 1 / (1 + q2)
    root = jnp.sqrt(p1) * jnp.sqrt(p2)
    # (1 + q1) (1 + q2) - k**2 = 1 + q1 + q2 + (q1 q2 - k**2), where both sides cancel for
    # large variances of similar inputs. Divided by the first term, nothing overflows.
    excess = determinant(q1, k, q2, root)
    return root, p1 + p2 - p1 * p2 + excess


@jax.custom_jvp
def arc_sine(
    q1: Float[Array, "..."], k: Float[Array, "..."], q2: Float[Array, "..."]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    r"""$\arcsin(k / \sqrt{(1 + q_1)(1 + q_2)})$, and its derivative along `k`.

    ??? cite "Reference"
        Williams, Computing with Infinite Networks, NeurIPS 1996: section 3.1.
    """
    root, square = _root_and_square(q1, k, q2)
    cosine = jnp.sqrt(square)
    return angle(k * root, cosine), root / cosine


def _arc_sine_jvp(primals, tangents):
    _, k, _ = primals
    value, slope = arc_sine(*primals)  # Not inlined, for derivatives of this rule.
    p1, p2 = (1 / (1 + q) for q in primals[::2])
    t_q1, t_k, t_q2 = tangents
    t_value = sum_known(
        (slope, t_k), (-slope * k * p1 / 2, t_q1), (-slope * k * p2 / 2, t_q2)
    )
    t_slope = _slope_tangent(slope, primals, tangents)
    zero = jnp.zeros_like(value)
    return (value, slope), (dense(t_value, zero), dense(t_slope, zero))


def _slope_tangent(slope, primals, tangents):
    q1, k, q2 = primals
    t_q1, t_k, t_q2 = tangents
    return sum_known(
        (slope * slope * (slope * k), t_k),
        (-slope * slope * (slope * (1 + q2)) / 2, t_q1),
        (-slope * slope * (slope * (1 + q1)) / 2, t_q2),
    )


arc_sine.defjvp(_arc_sine_jvp, symbolic_zeros=True)


@jax.custom_jvp
def arc_sine_slope(
    q1: Float[Array, "..."], k: Float[Array, "..."], q2: Float[Array, "..."]
) -> Float[Array, "..."]:
    r"""$1 / \sqrt{(1 + q_1)(1 + q_2) - k^2}$, the derivative of `arc_sine` by itself.

    Its square root is of the inverse, as XLA is slower at inverse square roots.
    """
    root, square = _root_and_square(q1, k, q2)
    return root * jnp.sqrt(1 / square)


def _arc_sine_slope_jvp(primals, tangents):
    slope = arc_sine_slope(*primals)  # Not inlined, for derivatives of this rule.
    tangent = _slope_tangent(slope, primals, tangents)
    return slope, dense(tangent, jnp.zeros_like(slope))


arc_sine_slope.defjvp(_arc_sine_slope_jvp, symbolic_zeros=True)


@jax.custom_jvp
def fast_expm1(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """`exp(x) - 1` of what is not positive, in half of the time of `jnp.expm1` on a CPU.

    In float32 it is without `jnp.exp`, so that XLA does not take it to be expensive. It
    would store the result in memory otherwise, for whatever else depends on it.
    """
    if x.dtype == jnp.float32:
        return _exp2m1(jnp.maximum(x * (1 / math.log(2)), -40))  # Already -1 there.
    series = jnp.ones_like(x)
    for n in range(15, 1, -1):
        series = 1 + x / n * series
    return jnp.where(x > -0.5, x * series, jnp.exp(x) - 1)


def _exp2m1(x: Float[Array, "..."]) -> Float[Array, "..."]:
    r"""$2^x - 1 = (2^n - 1) + 2^n (2^r - 1)$ for $x = n + r$, so $n = 0$ for small $x$."""
    n = jnp.round(x)
    r = x - n
    # By its bits, of which the last 23 are not of the exponent.
    bits = (n * 2**23 + 127 * 2**23).astype(jnp.int32)
    power = lax.bitcast_convert_type(bits, jnp.float32)
    return (power - 1) + power * (r * _polynomial(_EXP2M1, r))


@fast_expm1.defjvp
def _fast_expm1_jvp(primals, tangents):
    value = fast_expm1(*primals)
    return value, (value + 1) * tangents[0]
