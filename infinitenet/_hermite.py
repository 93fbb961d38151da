"""Expectations of functions of two Gaussian variables, by series of Hermite polynomials."""

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ._polar import legendre


Shape: TypeAlias = tuple[int, ...]

# Terms, and as many of them as are unrolled at once.
TERMS, _BLOCK = 256, 16

# Edges of panels of Gauss-Legendre quadrature: dense at zero, where functions of large
# variances saturate, and such that polynomials of the highest degree are resolved. At the
# end, these times the density are below 3e-16.
_EDGES = np.concatenate([[0, 0.15, 0.5], np.linspace(1.2, 12, 10)])
_POINTS = 16

# Bound of the error, in units of that which it could be at most, such that it is rounding
# in the sum of a network.
_TOLERANCE = 1e-11

# Coefficients take no more memory than so many arrays of the result's shape, or than so
# many numbers.
_ARRAYS, _NUMBERS = 8, 2**18


def gaussian_nodes(dtype: np.dtype) -> tuple[Float[Array, " m"], Float[Array, " m"]]:
    """Nodes and weights for the standard normal density."""
    x, w = legendre(_POINTS)
    widths = np.diff(_EDGES)[:, None]
    x, w = (_EDGES[:-1, None] + widths * x).ravel(), (widths * w).ravel()
    w = w * np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)
    both = np.concatenate([-x[::-1], x]), np.concatenate([w[::-1], w])
    return jnp.asarray(both[0], dtype), jnp.asarray(both[1], dtype)


def is_worthwhile(q1: Shape, k: Shape, q2: Shape) -> bool:
    """Whether there are far fewer variances than covariances, which are to share them."""
    variances, size = math.prod(q1) + math.prod(q2), math.prod(map(max, q1, k, q2))
    few = TERMS * variances <= max(_ARRAYS * size, _NUMBERS)
    return 2 * variances < size and few


def coefficients(
    fn: Callable[[Array], Array], s: Float[Array, "..."]
) -> tuple[Float[Array, "n ..."], Float[Array, "n_blocks ..."], Float[Array, "..."]]:
    r"""Of $f(s z)$ in normalised Hermite polynomials of a standard normal $z$.

    **Returns:** the coefficients; what is left of $E[f^2]$ after each block of them; and
    $E[f^2]$ itself.
    """
    z, w = gaussian_nodes(s.dtype)

    def step(carry, n):
        before, h = carry
        after = (z * h - jnp.sqrt(n) * before) / jnp.sqrt(n + 1)
        return (h, after), h

    degrees = jnp.arange(TERMS, dtype=s.dtype)
    _, h = lax.scan(step, (jnp.zeros_like(z), jnp.ones_like(z)), degrees)
    f = fn(z.reshape(-1, *(1,) * s.ndim) * s[None])
    product = lambda a, b: jnp.tensordot(a, b, (-1, 0), precision=lax.Precision.HIGHEST)
    a, norm = product(h * w[None], f), product(w, f * f)
    blocks = jnp.sum((a * a).reshape(-1, _BLOCK, *s.shape), 1)
    return a, jnp.abs(norm[None] - jnp.cumsum(blocks, 0)), norm


def series(
    pairs: Sequence[tuple[Callable[[Array], Array], Callable[[Array], Array]]],
    s1: Float[Array, "..."],
    c: Float[Array, "..."],
    s2: Float[Array, "..."],
) -> tuple[tuple[Float[Array, "..."], ...], Bool[Array, "..."]]:
    r"""$E[f(u) g(v)] = \sum_n a_n b_n c^n$ for pairs of functions.

    Coefficients $a_n$ and $b_n$ belong to the variances, so that little is left to do for
    each correlation $c$. By the inequality of Cauchy and Schwarz the error after $N$ terms
    is no more than $|c|^N$ times the root of what is left of $E[f^2] E[g^2]$.

    **Returns:** the expectations, and where they have converged.
    """
    known: dict[tuple[int, int], tuple[Array, Array, Array]] = {}

    def of(fn, s):
        key = id(fn), id(s)
        if key not in known:
            known[key] = coefficients(fn, s)
        return known[key]

    sides = [(of(f, s1), of(g, s2)) for f, g in pairs]
    blocks = jnp.max(jnp.stack([_blocks(side) for both in sides for side in both]))
    last = blocks - 1
    good = jnp.ones(jnp.broadcast_shapes(s1.shape, c.shape, s2.shape), bool)
    power = jnp.abs(c) ** (_BLOCK * blocks)
    for (_, rest1, norm1), (_, rest2, norm2) in sides:
        left = jnp.sqrt(rest1[last]) * jnp.sqrt(rest2[last])
        good &= power * left <= _tolerance(c) * jnp.sqrt(norm1) * jnp.sqrt(norm2)

    def add(i, totals):
        start = _BLOCK * (last - i)
        out = []
        for total, ((a, *_), (b, *_)) in zip(totals, sides, strict=True):
            a, b = (lax.dynamic_slice_in_dim(x, start, _BLOCK) for x in (a, b))
            for n in reversed(range(_BLOCK)):
                total = total * c + a[n] * b[n]
            out.append(total)
        return tuple(out)

    zeros = tuple(jnp.zeros(good.shape, c.dtype) for _ in pairs)
    return lax.fori_loop(0, blocks, add, zeros), good


def _tolerance(c: Array) -> float:
    return max(_TOLERANCE, 4 * float(jnp.finfo(c.dtype).eps))


def _blocks(side: tuple[Array, Array, Array]) -> Array:
    """As many as any of the functions needs for correlations of 1, or all."""
    _, rest, norm = side
    converged = rest <= _tolerance(norm) * norm[None]
    needed = jnp.sum(~converged.reshape(len(rest), -1).all(1))
    return jnp.minimum(needed + 1, len(rest)).astype(int)
