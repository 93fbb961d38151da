r"""Expectations of the softmax of independent Gaussian variables.

If $G_j$ are independent Gumbel variables, then $\operatorname{softmax}_c(f)$ is the
probability that $f_c + G_c$ is the largest of all $f_j + G_j$. So its expectation is

$$
E[\operatorname{softmax}_c(f)] = \int H_c'(u) \prod_{j \ne c} H_j(u)\, du,
$$

where $H_j$ is the distribution function of $f_j + G_j$: one integral, for any number of
classes. All functions in it are smooth, so that the trapezoidal rule converges
exponentially.
"""

import functools as ft
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .spectral import safe_sqrt, unit_rounding


# Nodes of the integral over `u`, and of those that `H_j` are. Odd, as every other node is
# a rule by itself, from the first to the last.
_NODES, _INNER = 161, 57

# Neither of the two rules below has to be good for variances which the other is for.
_SMALL = 1.44

# Standard deviations beyond which the normal distribution has less than 1e-16. That much
# of the Gumbel distribution is below `-_GUMBEL_LOW`, and above `_GUMBEL_HIGH`.
_NORMAL_END, _GUMBEL_LOW, _GUMBEL_HIGH = 8.5, 3.7, 37.0

# Nodes are spread evenly up to about this many scales, and beyond that exponentially.
_EVEN = 4.0

# The rules for `H_j` are exact up to this, as tried for all variances.
_INNER_ERROR = 1e-12

# About how many numbers are computed at once. Few fit a cache, many occupy a GPU.
_BLOCK = 2**17


#
# The distribution of the sum of a Gaussian and a Gumbel variable
#


def _inner_rules() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Standard normal and standard Gumbel nodes, each with the weights of all nodes and
    with those of every other.
    """
    e = np.linspace(-_NORMAL_END, _NORMAL_END, _INNER)
    # Even nodes in `t` double the exponents of both tails.
    t = np.linspace(-_GUMBEL_LOW, _GUMBEL_LOW, _INNER)
    g = np.exp(-t) - t
    densities = np.exp(-(e**2) / 2), np.exp(-g - np.exp(-g)) * (1 + np.exp(-t))
    mask = np.stack([np.ones(_INNER), np.arange(_INNER) % 2 == 0])
    # Sums of the densities are as exact as the rules: normalised, as constants are too.
    w_e, w_g = (d * mask / np.sum(d * mask, axis=1, keepdims=True) for d in densities)
    return e, w_e.T, g, w_g.T


def _gumbel_derivatives(n: int, y: Array) -> list[Array]:
    r"""Derivatives up to the `n`th of $\exp(-w)$ by $y$, where $w = e^{-y}$.

    Each is a polynomial $P$ of $w$ times $\exp(-w)$, of which the derivative is
    $w (P - P')$ times that.
    """
    # Further down the value is kept at a tiny number, not to become NaN.
    lowest = 0.1 - math.log(-math.log(jnp.finfo(y.dtype).tiny))
    w = jnp.exp(-jnp.maximum(y, lowest))
    value, p, out = jnp.exp(-w), np.polynomial.Polynomial([1.0]), []
    for _ in range(n + 1):
        out.append(value * _horner(p.coef, w))
        p = (p - p.deriv()) * np.polynomial.Polynomial([0.0, 1.0])
    return out


def _normal_derivatives(n: int, y: Array) -> list[Array]:
    """Derivatives up to the `n`th of the normal distribution function."""
    density = jnp.exp(-jnp.square(y) / 2) / math.sqrt(2 * math.pi)
    value = jax.scipy.special.erfc(-y / math.sqrt(2)) / 2
    p, out = np.polynomial.Polynomial([1.0]), [value]
    for _ in range(n):
        out.append(density * _horner(p.coef, y))
        p = p.deriv() - p * np.polynomial.Polynomial([0.0, 1.0])
    return out


def _horner(coefficients: np.ndarray, x: Array) -> Array:
    out = jnp.full_like(x, coefficients[-1])
    for c in coefficients[-2::-1]:
        out = out * x + float(c)
    return out


@ft.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _distribution(
    n: int, z: Float[Array, "*#batch nodes"], variance: Float[Array, "*#batch 1"]
) -> tuple[tuple[Array, Array], ...]:
    r"""$H(z) = P(\sqrt v\, \varepsilon + G \le z)$ and its derivatives, up to the `n`th.

    For small variances $E_\varepsilon[e^{-e^{-(z - \sqrt v \varepsilon)}}]$, of which the
    integrand would have a step otherwise; for others $E_G[\Phi((z - G) / \sqrt v)]$.

    Derivatives by the variance are half of second derivatives, as $H$ solves the heat
    equation. So they are right at variance zero too.

    **Returns:** for each derivative the value, and that of the coarser rule.
    """
    small = variance < _SMALL
    std = safe_sqrt(jnp.where(small, variance, 1))
    scale = jnp.sqrt(jnp.where(small, 1, variance))
    e, w_e, g, w_g = (jnp.asarray(x, z.dtype) for x in _inner_rules())

    def narrow(z, x, w):
        return [(w[0] * f, w[1] * f) for f in _gumbel_derivatives(n, z - std * x[0])]

    def wide(z, x, w):
        fs = _normal_derivatives(n, (z - x[1]) / scale)
        fs = [f / scale**k for k, f in enumerate(fs)]
        return [(w[2] * f, w[3] * f) for f in fs]

    def either(*node):
        return jax.tree.map(ft.partial(jnp.where, small), narrow(*node), wide(*node))

    def integrate(fn):
        zero = jnp.zeros_like(z)
        add = lambda sums, node: (jax.tree.map(jnp.add, sums, fn(z, *node)), None)
        nodes = jnp.stack([e, g], axis=1), jnp.concatenate([w_e, w_g], axis=1)
        return tuple(jax.lax.scan(add, [(zero, zero)] * (n + 1), nodes)[0])

    # Most often it is the same for all, and costs half as much or less.
    which = jnp.where(jnp.all(small), 0, jnp.where(jnp.any(small), 1, 2))
    branches = [ft.partial(integrate, fn) for fn in (narrow, either, wide)]
    return jax.lax.switch(which, branches)


@_distribution.defjvp
def _distribution_jvp(n, primals, tangents):
    t_z, t_variance = tangents
    out = _distribution(n + 2, *primals)
    along = lambda first, second: first * t_z + second * t_variance / 2
    t_out = [jax.tree.map(along, out[k + 1], out[k + 2]) for k in range(n + 1)]
    return out[: n + 1], tuple(t_out)


#
# The largest of such sums
#


def _outer_rule(
    mean: Float[Array, "batch classes"], variance: Float[Array, "batch classes"]
) -> tuple[Float[Array, "batch nodes"], Float[Array, "batch nodes"]]:
    """Nodes, and weights of the trapezoidal rule, for the largest sum.

    It is above the lower end of each sum. From the highest of these ends on, at any
    distance, only those distributions still change that are as wide as this distance. So
    nodes may be at distances that grow in proportion.
    """
    std = safe_sqrt(variance)
    low = mean - _NORMAL_END * std - _GUMBEL_LOW
    low = jnp.max(low, axis=-1, keepdims=True)
    # The tail is exponential, or if that is further out Gaussian.
    gaussian = (_NORMAL_END + 0.1) * std
    high = jnp.where(std < _NORMAL_END, _GUMBEL_HIGH + variance / 2, gaussian)
    high = jnp.max(mean + high, axis=-1, keepdims=True)
    even = _EVEN * jnp.sqrt(1 + jnp.min(variance, axis=-1, keepdims=True))
    end = jnp.log1p((high - low) / even)
    t = end * jnp.linspace(0, 1, _NODES, dtype=mean.dtype)[None]
    return low + even * jnp.expm1(t), even * jnp.exp(t) * end / (_NODES - 1)


def _batch_softmax(
    mean: Float[Array, "batch classes"], variance: Float[Array, "batch classes"]
) -> tuple[Float[Array, "batch classes"], Float[Array, "batch classes"]]:
    """Expectations, and estimates of their errors."""
    # Softmax takes no notice of shifts, but rounding does.
    mean = mean - jax.lax.stop_gradient(jnp.max(mean, axis=-1, keepdims=True))
    fixed = jax.lax.stop_gradient((mean, variance))
    u, w = (x[:, None] for x in _outer_rule(*fixed))
    value, density = _distribution(1, u - mean[..., None], variance[..., None])
    tiny = jnp.finfo(u.dtype).tiny

    def integrate(cdf, pdf, w):
        log = jnp.log(jnp.maximum(cdf, tiny))
        # Not by a quotient of values, of which derivatives could overflow.
        others = jnp.exp(jnp.sum(log, axis=1, keepdims=True) - log)
        return jnp.sum(pdf * others * w, axis=-1)

    p = integrate(value[0], density[0], w)
    coarse = integrate(value[1][..., ::2], density[1][..., ::2], 2 * w[..., ::2])
    total = jnp.sum(p, axis=-1, keepdims=True)
    least = max(_INNER_ERROR, unit_rounding(p.shape[-1], p.dtype))
    # Twice as many nodes nearly double the number of right digits.
    digits = jnp.maximum(jnp.abs(p - coarse) ** 1.5, jnp.abs(total - 1))
    return p / total, jax.lax.stop_gradient(jnp.maximum(digits, least))


@jax.jit
def expected_softmax(
    mean: Float[Array, "n classes"], variance: Float[Array, "n classes"]
) -> tuple[Float[Array, "n classes"], Float[Array, "n classes"]]:
    r"""$E[\operatorname{softmax}(f)]$ of independent Gaussian variables $f_c$.

    **Arguments:** means, and variances, which may differ: finite, and not negative.

    **Returns:** probabilities, and estimates of their absolute errors.
    """
    n, classes = mean.shape
    most = max(1, _BLOCK // (classes * _NODES))
    if n <= most:
        return _batch_softmax(mean, variance)
    blocks = -(-n // most)
    size = -(-n // blocks)
    split = lambda x: jnp.pad(x, ((0, blocks * size - n), (0, 0)), mode="edge").reshape(
        blocks, size, classes
    )
    out = jax.lax.map(lambda x: _batch_softmax(*x), (split(mean), split(variance)))
    return jax.tree.map(lambda x: x.reshape(-1, classes)[:n], out)
