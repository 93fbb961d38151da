"""Matrices of inputs with themselves, which are the same on both sides of the diagonal."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ._batch import batch_size
from ._covariance import Covariance, Pairs
from ._entries import Pair


@jax.jit
def symmetrised(tile: Pair, diagonal: Pair) -> Pair:
    """A tile on the diagonal, which is known by itself."""
    return with_diagonal(from_above(tile), diagonal)


def from_above(tile: Pair) -> Pair:
    """Of a tile on the diagonal, both sides as that above it: rounding may differ."""

    def both(k: Array, other: Array) -> Array:
        below = jnp.tri(len(k), dtype=bool).reshape(len(k), len(k), *[1] * (k.ndim - 2))
        return jnp.where(below, other, k)

    return jax.tree.map(both, tile, mirrored(tile))


@jax.jit
def with_diagonal(tile: Pair, diagonal: Pair) -> Pair:
    index = jnp.arange(batch_size(tile))
    return jax.tree.map(lambda k, k0: k.at[index, index].set(k0), tile, diagonal)


def mirrored(tile: Pair) -> Pair:
    """Swaps both inputs, in arrays of JAX or of NumPy: these are not copied."""
    return jax.tree.map(_mirrored, tile, is_leaf=lambda k: isinstance(k, Covariance))


def _mirrored(cov: Covariance) -> Covariance:
    axes = mirrored_axes(cov)
    return jax.tree.map(lambda k: k.transpose(axes), cov)


def mirrored_axes(cov: Covariance) -> tuple[int, ...]:
    """Those of a matrix of covariances, with both inputs swapped."""
    if cov.pairs != Pairs.ALL:
        return 1, 0, *range(2, cov.array.ndim)
    ndim = (cov.array.ndim - 2) // 2
    return 1, 0, *range(2 + ndim, 2 + 2 * ndim), *range(2, 2 + ndim)
