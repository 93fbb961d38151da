"""Cholesky factors, in little memory."""

import jax
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
    if len(k) <= _SMALL or is_traced((k, noise)):
        return _whole(k, noise)
    return _by_columns(k, noise)


# Smaller ones are cheap to copy.
_SMALL = 2048
# Each block of columns is compiled by itself, and takes as large a part of the memory.
_N_BLOCKS = 16


@jax.jit
def _whole(k: Float[Array, "n n"], noise: Float[Array, "..."]) -> Float[Array, "n n"]:
    return jax.lax.linalg.cholesky(add_noise(k, noise), symmetrize_input=False)


def _blocks(n: int) -> list[slice]:
    """Some equal parts of the rows, the last of which may be shorter."""
    width = -(-n // _N_BLOCKS)
    return [slice(i, min(i + width, n)) for i in range(0, n, width)]


@jax.jit
def _by_columns(k: Float[Array, "n n"], noise: Float[Array, "..."]) -> Float[Array, "n n"]:
    """The left-looking algorithm: each block of columns, from those before it."""
    noise = jnp.broadcast_to(noise, (len(k),))
    out = jnp.zeros_like(k)
    for block in _blocks(len(k)):
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
    if len(factor) <= _SMALL or is_traced((factor, b)):
        return solve_triangular(factor, b, lower=True)
    return _forwards(factor, b)


def solve_upper(factor: Float[Array, "n n"], b: Float[Array, "n m"]) -> Float[Array, "n m"]:
    r"""$L^{-T} b$."""
    if len(factor) <= _SMALL or is_traced((factor, b)):
        return solve_triangular(factor, b, lower=True, trans=1)
    return _backwards(factor, b)


# `solve_triangular` copies all of the matrix, into the order of LAPACK.
@jax.jit
def _forwards(factor: Float[Array, "n n"], b: Float[Array, "n m"]) -> Float[Array, "n m"]:
    out = jnp.zeros_like(b)
    for block in _blocks(len(b)):
        rest = b[block] - dot(factor[block, : block.start], out[: block.start])
        out = out.at[block].set(solve_triangular(factor[block, block], rest, lower=True))
    return out


@jax.jit
def _backwards(factor: Float[Array, "n n"], b: Float[Array, "n m"]) -> Float[Array, "n m"]:
    out = jnp.zeros_like(b)
    for block in reversed(_blocks(len(b))):
        rest = b[block] - dot(factor[block.stop :, block].T, out[block.stop :])
        new = solve_triangular(factor[block, block], rest, lower=True, trans=1)
        out = out.at[block].set(new)
    return out
