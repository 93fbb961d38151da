"""Functions of symmetric matrices, with safe derivatives."""

import functools as ft
import math
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .._checks import guard, indefinite
from .._tracing import is_traced


# Products are exact to the dtype's precision on all hardware.
dot = ft.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


def unit_rounding(n: int, dtype) -> float:
    """Bound on the rounding of sums of `n` terms, relative to their absolute values.

    At least 16 ULPs, as entries are rounded too, however few there are.
    """
    return max(n, 16) * float(jnp.finfo(dtype).eps)


class Spectral(NamedTuple):
    r"""A function $g$ of symmetric matrices, given by its values on eigenvalues.

    - `value(l, s)`: $g(l)$, given parameters `s`.
    - `slope(a, b, s)`: the divided difference $(g(a) - g(b)) / (a - b)$, which is
        $g'(a)$ if both are the same.
    - `rate(l, s, t_s)`: the derivative by `s`, in the direction of `t_s`.
    """

    value: Callable[..., Array]
    slope: Callable[..., Array]
    rate: Callable[..., Array]


@eqx.filter_custom_jvp
@eqx.filter_jit
def spectral_apply(
    k: Float[Array, "n n"],
    eigenvalues: Float[Array, " n"],
    eigenvectors: Float[Array, "n n"],
    s: PyTree[Array],
    v: Float[Array, "n m"],
    *,
    fn: Spectral,
) -> Float[Array, "n m"]:
    r"""$g(K) v$, with derivatives that are finite at repeated eigenvalues.

    JAX differentiates eigenvectors, which at repeated eigenvalues have no derivative.
    But $g(K)$ has one (Daleckii and Krein 1965): in the basis of eigenvectors,
    $dg_{ij} = dK_{ij} (g(l_i) - g(l_j)) / (l_i - l_j)$.

    Derivatives of second order are those of JAX, so for distinct eigenvalues only.

    **Arguments:**

    - `k`: a symmetric matrix, which only serves to be differentiated.
    - `eigenvalues`, `eigenvectors`: its decomposition.
    - `s`: the parameters of `fn`.
    - `v`: what to multiply.
    - `fn`: the function $g$.
    """
    del k
    return dot(eigenvectors, fn.value(eigenvalues, s)[:, None] * dot(eigenvectors.T, v))


@spectral_apply.def_jvp
@eqx.filter_jit
def _spectral_apply_jvp(primals, tangents, *, fn):
    k, l, u, s, v = primals
    # The tangents of the decomposition are those of `k`, in another form.
    t_k, _, _, t_s, t_v = tangents
    uv = dot(u.T, v)
    t_uv = jnp.zeros_like(uv)
    if t_k is not None:
        slope = fn.slope(l[:, None], l[None, :], s)
        t_uv = t_uv + dot(slope * dot(dot(u.T, (t_k + t_k.T) / 2), u), uv)
    if jax.tree.leaves(t_s):
        t_uv = t_uv + fn.rate(l, s, t_s)[:, None] * uv
    if t_v is not None:
        t_uv = t_uv + fn.value(l, s)[:, None] * dot(u.T, t_v)
    return spectral_apply(k, l, u, s, v, fn=fn), dot(u, t_uv)


def safe_sqrt(x: Array) -> Array:
    # Both `where`s, as the derivative at zero would be NaN times zero.
    return jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1)), 0)


def _slope_of_sqrt(a: Array, b: Array, s: None) -> Array:
    del s
    total = safe_sqrt(a) + safe_sqrt(b)
    # Zero eigenvalues stay zero as far as derivatives know.
    return jnp.where(total > 0, 1 / jnp.where(total > 0, total, 1), 0)


SQRT = Spectral(
    value=lambda l, s: safe_sqrt(l),
    slope=_slope_of_sqrt,
    rate=lambda l, s, t_s: jnp.zeros_like(l),
)


#
# Functions of an eigenvalue l >= 0 and of the time s = t / N. At infinite time,
# directions of eigenvalue zero have not moved. Each `where` comes with another that
# keeps infinity and zero out of the branch not taken, as derivatives would be NaN.
#


def _decay(l: Array, s: Array) -> Array:
    """`exp(-l s)`."""
    finite = jnp.isfinite(s)
    value = jnp.exp(-l * jnp.where(finite, s, 1))
    return jnp.where(finite, value, jnp.where(l > 0, 0, 1).astype(value.dtype))


def _integral(l: Array, s: Array) -> Array:
    """The integral of `_decay` from 0 to `s`: `(1 - exp(-l s)) / l`, or `s` at 0."""
    finite, positive = jnp.isfinite(s), l > 0
    time, rate = jnp.where(finite, s, 1), jnp.where(positive, l, 1)
    value = jnp.where(positive, -jnp.expm1(-rate * time) / rate, time)
    return jnp.where(finite, value, jnp.where(positive, 1 / rate, 0))


def _moved(l: Array, s: Array) -> Array:
    """`1 - exp(-l s)`."""
    finite = jnp.isfinite(s)
    value = -jnp.expm1(-l * jnp.where(finite, s, 1))
    return jnp.where(finite, value, jnp.where(l > 0, 1, 0).astype(value.dtype))


def _slope_of_moved(a: Array, b: Array, s: Array) -> Array:
    low, high = jnp.minimum(a, b), jnp.maximum(a, b)
    finite = jnp.isfinite(s)
    # Both zero: the rank is taken not to change.
    limit = jnp.where((low > 0) | (high == 0), 0, 1 / jnp.where(high > 0, high, 1))
    time = jnp.where(finite, s, 1)
    return jnp.where(finite, _decay(low, time) * _integral(high - low, time), limit)


def _slope_of_integral(a: Array, b: Array, s: Array) -> Array:
    low, high = jnp.minimum(a, b), jnp.maximum(a, b)
    # Follows from `l * _integral(l, s) == _moved(l, s)`. Digits cancel if `high * s` is
    # small, even zero: there the power series below it is exact instead.
    series = (high == 0) | (high * s < 1)
    safe = jnp.where(series, 1, high)
    by_difference = (_slope_of_moved(a, b, s) - _integral(low, s)) / safe
    time = jnp.where(series & jnp.isfinite(s), s, 0)
    x, y = low * time, high * time
    # sum_k (-1)^(k + 1) h_k(x, y) / (k + 2)!, where h_k = sum_i x^i y^(k - i) <= k + 1:
    # the terms after the 18th are below float64's rounding.
    power = symmetric = jnp.ones_like(x)
    coefficient = -0.5
    total = coefficient * symmetric
    for k in range(1, 19):
        power = power * x
        symmetric = power + y * symmetric
        coefficient = -coefficient / (k + 2)
        total = total + coefficient * symmetric
    return jnp.where(series, time**2 * total, by_difference)


MOVED = Spectral(_moved, _slope_of_moved, lambda l, s, t_s: t_s * l * _decay(l, s))
REMAINING = Spectral(
    _decay,
    lambda a, b, s: -_slope_of_moved(a, b, s),
    lambda l, s, t_s: -t_s * l * _decay(l, s),
)
# Its value leaves out directions of eigenvalue zero: see `Spectrum.null_integral`.
# The derivatives by the matrix and by time have them.
INTEGRAL = Spectral(
    lambda l, s: jnp.where(l > 0, _integral(l, s), 0),
    _slope_of_integral,
    lambda l, s, t_s: t_s * jnp.where(jnp.isfinite(s), _decay(l, s), 0),
)


_negative = (
    "its lowest eigenvalue is too negative to be zero up to rounding, so it is not a "
    "kernel, and training would diverge."
)


class Spectrum(eqx.Module):
    """A positive semi-definite matrix and its eigendecomposition.

    - `k`: the matrix.
    - `eigenvalues`: ascending. Those which cannot be told from zero are zero.
    - `eigenvectors`: the columns.
    """

    k: Float[Array, "n n"]
    eigenvalues: Float[Array, " n"]
    eigenvectors: Float[Array, "n n"]

    def apply(
        self, fn: Spectral, s: PyTree[Array], v: Float[Array, "n m"]
    ) -> Float[Array, "n m"]:
        """The function of the matrix, times `v`."""
        l, u = self.eigenvalues, self.eigenvectors
        return spectral_apply(self.k, l, u, s, v, fn=fn)

    @property
    def longest(self) -> Float[Array, ""]:
        """The time after which all has converged that is told from zero.

        What is not told from zero would move on, but by rounding alone: by time times
        rounding, whose derivatives grow with the square of time.
        """
        unit = unit_rounding(1, self.eigenvalues.dtype)
        high = jax.lax.stop_gradient(jnp.max(self.eigenvalues))
        time = -math.log(jnp.finfo(high.dtype).eps) / (unit * jnp.where(high > 0, high, 1))
        return jnp.where(high > 0, time, jnp.inf)

    def null_part(self, v: Float[Array, "n m"]) -> Float[Array, "n m"]:
        """`v` projected to the directions of eigenvalue zero."""
        null = (self.eigenvalues == 0).astype(v.dtype)[:, None]
        # The rule of `INTEGRAL` has the derivative by the matrix.
        u = jax.lax.stop_gradient(self.eigenvectors)
        return dot(u, null * dot(u.T, v))

    def null_integral(
        self, share: Array, noise: Array, size: Array, elapsed: Float[Array, ""]
    ) -> Float[Array, "..."]:
        """What directions of eigenvalue zero add to an integral: its value there,
        `elapsed`, times `share`.

        Joint kernels of train and test are positive, so that their `share` is zero: it
        is rounding of terms of size `size`, and must not be multiplied by large times.
        `noise` has the values of `share`, but not its derivative by the test kernel,
        which is no rounding.
        """
        # The rule of the integral has the derivative by time.
        elapsed = jax.lax.stop_gradient(
            jnp.where(jnp.isfinite(elapsed), jnp.minimum(elapsed, self.longest), elapsed)
        )
        unit = unit_rounding(len(self.k), share.dtype)
        l = jax.lax.stop_gradient(self.eigenvalues)
        lowest = jnp.min(jnp.where(l > 0, l, jnp.inf))
        # Rounding turns a null vector by `eps * max(l) / l[k]` towards the `k`th, whose
        # share is at most `sqrt(l[k])`. It matters once that has moved: if
        # `l[k] * elapsed > 1`.
        worst = jnp.max(l) * jnp.minimum(elapsed, 1 / lowest)
        unit = unit * jnp.sqrt(jnp.maximum(worst, 1))
        share = share - jnp.where(jnp.abs(share) <= unit * size, noise, 0)
        return share * jnp.where(jnp.isfinite(elapsed), elapsed, 0)

    def shifted(self, shift: Float[Array, ""]) -> "Spectrum":
        """That of the matrix plus a multiple of the identity."""
        index = jnp.arange(len(self.k))
        k = self.k.at[index, index].add(shift)
        return Spectrum(k, self.eigenvalues + shift, self.eigenvectors)


def decompose(name: str, k: Float[Array, "n n"]) -> Spectrum:
    """**Raises:** `ValueError` if `k`, named `name`, has a negative eigenvalue."""
    l, u, negative = _eigh(k)
    known = None if is_traced(k) else k
    l = guard(
        l,
        lambda _: negative,
        lambda _: indefinite(name, known, _negative),
        indefinite(name, None, _negative),
    )
    return Spectrum(k, l, u)


@jax.jit
def _eigh(k: Float[Array, "n n"]) -> tuple[Array, Array, Array]:
    """Eigenvalues, eigenvectors, and whether the lowest is too negative to be zero."""
    l, u = jnp.linalg.eigh(k)
    high = jnp.max(jnp.abs(l))
    negative = l[0] < -unit_rounding(len(l), l.dtype) * high
    # LAPACK finds zero eigenvalues to within 1.5 ULPs of the largest one, for all sizes
    # (tried up to 600). A bound that grows with `n`, as is usual for ranks, would in
    # float32 take true eigenvalues of a thousand points for zero.
    return jnp.where(l <= unit_rounding(1, l.dtype) * high, 0, l), u, negative


def _inverse_sqrt(l: Array, s: None) -> Array:
    del s
    return jnp.where(l > 0, 1 / safe_sqrt(jnp.where(l > 0, l, 1)), 0)


def _slope_of_inverse_sqrt(a: Array, b: Array, s: None) -> Array:
    x, y = _inverse_sqrt(a, s), _inverse_sqrt(b, s)
    # Of `x - y` over `1 / x^2 - 1 / y^2`, and of `x` over `1 / x^2` with a zero: the rank
    # is taken not to change.
    total = x + y
    both = -jnp.square(x * y) / jnp.where(total > 0, total, 1)
    return jnp.where(x * y > 0, both, total**3)


# Of the pseudo-inverse: zero at eigenvalue zero.
INVERSE_SQRT = Spectral(
    value=_inverse_sqrt,
    slope=_slope_of_inverse_sqrt,
    rate=lambda l, s, t_s: jnp.zeros_like(l),
)
