"""Cholesky factors, in little memory."""

import jax
import jax.lax as lax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from .._tracing import is_traced
from .spectral import dot


@jax.jit
def add_noise(k: Float[Array, "n n"], noise: Float[Array, "..."]) -> Float[Array, "n n"]:
    """`noise`, a scalar or of shape `(n,)`, added to the diagonal."""
    index = jnp.arange(len(k))
    return k.at[index, index].add(noise)


def factorise(k: Float[Array, "n n"], noise: Float[Array, "..."]) -> Float[Array, "n n"]:
    """The lower Cholesky factor of a symmetric matrix plus noise; NaN if there is none.

    That of a large matrix, if it is known, takes the memory of the result and of a few
    columns. JAX's own copies the matrix twice more.
    """
    if len(k) <= SMALL or is_traced((k, noise)):
        return _whole(k, noise)
    return _by_columns(k, noise)


# Smaller ones are cheap to copy.
SMALL = 2048
# Each block of columns is compiled by itself, and takes as large a part of the memory.
_N_BLOCKS = 16


@jax.jit
def _whole(k: Float[Array, "n n"], noise: Float[Array, "..."]) -> Float[Array, "n n"]:
    return lax.linalg.cholesky(add_noise(k, noise), symmetrize_input=False)


def blocks(n: int) -> list[slice]:
    """Some equal parts of the rows, the last of which may be shorter."""
    width = -(-n // _N_BLOCKS)
    return [slice(i, min(i + width, n)) for i in range(0, n, width)]


@jax.jit
def _by_columns(k: Float[Array, "n n"], noise: Float[Array, "..."]) -> Float[Array, "n n"]:
    """The left-looking algorithm: each block of columns, from those before it."""
    noise = jnp.broadcast_to(noise, (len(k),))
    out = jnp.zeros_like(k)
    for block in blocks(len(k)):
        width = block.stop - block.start
        # Read once, so that it is written in place.
        rows = out[block.start :, : block.start]
        columns = k[block.start :, block] - dot(rows, rows[:width].T)
        corner = _whole(columns[:width], noise[block])
        below = solve_triangular(corner, columns[width:].T, lower=True).T
        out = out.at[block, block].set(corner).at[block.stop :, block].set(below)
    return out


def solve_lower(factor: Float[Array, "n n"], b: Float[Array, "n m"]) -> Float[Array, "n m"]:
    r"""$L^{-1} b$."""
    if len(factor) <= SMALL or is_traced((factor, b)):
        return solve_triangular(factor, b, lower=True)
    return _forwards(factor, b)


def solve_upper(factor: Float[Array, "n n"], b: Float[Array, "n m"]) -> Float[Array, "n m"]:
    r"""$L^{-T} b$."""
    if len(factor) <= SMALL or is_traced((factor, b)):
        return solve_triangular(factor, b, lower=True, trans=1)
    return _backwards(factor, b)


# `solve_triangular` copies all of the matrix into the order of LAPACK, by columns. That of
# the transpose is right as it is. Loops, as otherwise the parts of the matrix would be
# copied all at once. The last block may overlap with the one before it, of which it then
# solves some rows again.


@jax.jit
def _forwards(factor: Float[Array, "n n"], b: Float[Array, "n m"]) -> Float[Array, "n m"]:
    width, upper = -(-len(b) // _N_BLOCKS), factor.T

    def solve(i, out):
        start = jnp.minimum(i * width, len(b) - width)
        out = _cleared(out, start, width)
        rows = lax.dynamic_slice_in_dim(upper, start, width, axis=1).T
        rest = lax.dynamic_slice_in_dim(b, start, width) - dot(rows, out)
        corner = lax.dynamic_slice(upper, (start, start), (width, width))
        new = solve_triangular(corner, rest, trans=1)
        return lax.dynamic_update_slice_in_dim(out, new, start, axis=0)

    return lax.fori_loop(0, _N_BLOCKS, solve, jnp.zeros_like(b))


@jax.jit
def _backwards(factor: Float[Array, "n n"], b: Float[Array, "n m"]) -> Float[Array, "n m"]:
    width, upper = -(-len(b) // _N_BLOCKS), factor.T

    def solve(i, out):
        start = jnp.maximum(len(b) - (i + 1) * width, 0)
        out = _cleared(out, start, width)
        rows = lax.dynamic_slice_in_dim(upper, start, width)
        rest = lax.dynamic_slice_in_dim(b, start, width) - dot(rows, out)
        corner = lax.dynamic_slice(upper, (start, start), (width, width))
        new = solve_triangular(corner, rest)
        return lax.dynamic_update_slice_in_dim(out, new, start, axis=0)

    return lax.fori_loop(0, _N_BLOCKS, solve, jnp.zeros_like(b))


def _cleared(out: Array, start: Array, width: int) -> Array:
    zero = jnp.zeros((width, out.shape[1]), out.dtype)
    return lax.dynamic_update_slice_in_dim(out, zero, start, axis=0)
