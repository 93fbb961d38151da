"""Matrices that are put together from tiles."""

import functools as ft
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ._batch import batch_size
from ._covariance import Covariance, Pairs
from ._entries import Pair
from ._tiles import empty, Tile, write_tile


# Arrays of NumPy which begin at multiples of so many bytes become JAX's without a copy.
_ALIGNMENT = 64


class Assembly:
    """Matrices of `n1` rows and `n2` columns, of which the last tile to be written counts.

    If they are symmetric, tiles are written to either side of the diagonal.
    """

    def __init__(self, n1: int, n2: int, *, symmetric: bool):
        self.n1, self.n2, self.symmetric = n1, n2, symmetric
        self.on_host = jax.default_backend() == "cpu"
        self._out: PyTree[Any] = None
        self._device: Any = None

    def write(self, tile: Pair, at: Tile) -> None:
        """Copies a tile, which has been computed."""
        if self.on_host:
            self._write_on_host(tile, at)
            return
        if self._out is None:
            self._out = empty(tile, self.n1, self.n2)
        write = _write_both if self.symmetric else write_tile
        self._out = write(self._out, tile, at.row, at.column)

    def finish(self) -> Pair:
        """The matrices, to which nothing can be written any more."""
        assert self._out is not None
        put = lambda a: jax.device_put(a, self._device, may_alias=True)
        out = jax.tree.map(put, self._out) if self.on_host else self._out
        return jax.block_until_ready(out)

    def _write_on_host(self, tile: Pair, at: Tile) -> None:
        # Without programs of JAX, each of which would wait for those of the workers.
        if self._out is None:
            shape = self.n1, self.n2
            like = lambda k: _aligned((*shape, *k.shape[2:]), k.dtype)
            self._out = jax.tree.map(like, tile)
            # Where tiles are, but for those on several devices.
            devices = list(jax.tree.leaves(tile)[0].devices())
            self._device = devices[0] if len(devices) == 1 else None

        def write(cov: Covariance, out: Covariance) -> None:
            memory: Any = out.array
            k = np.asarray(cov.array)
            if self.symmetric:
                _write(memory, k.transpose(_mirrored_axes(cov)), at.column, at.row)
            _write(memory, k, at.row, at.column)

        is_cov = lambda node: isinstance(node, Covariance)
        jax.tree.map(write, tile, self._out, is_leaf=is_cov)


def _write(out: np.ndarray, k: np.ndarray, row: int, column: int) -> None:
    out[row : row + k.shape[0], column : column + k.shape[1]] = k


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    size = int(np.prod(shape)) * dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


@jax.jit
def symmetrised(tile: Pair, diagonal: Pair) -> Pair:
    """Tiles on the diagonal hold each entry twice, perhaps with other rounding."""
    index = jnp.arange(batch_size(tile))
    tile = jax.tree.map(lambda a, b: (a + b) / 2, tile, mirrored(tile))
    return jax.tree.map(lambda k, k0: k.at[index, index].set(k0), tile, diagonal)


def mirrored(tile: Pair) -> Pair:
    """Swaps both inputs."""
    return jax.tree.map(_mirrored, tile, is_leaf=lambda k: isinstance(k, Covariance))


def _mirrored(cov: Covariance) -> Covariance:
    """Of arrays of JAX or of NumPy: these are not copied."""
    axes = _mirrored_axes(cov)
    return jax.tree.map(lambda k: k.transpose(axes), cov)


def _mirrored_axes(cov: Covariance) -> tuple[int, ...]:
    """Of a matrix of covariances."""
    if cov.pairs != Pairs.ALL:
        return 1, 0, *range(2, cov.array.ndim)
    ndim = (cov.array.ndim - 2) // 2
    return 1, 0, *range(2 + ndim, 2 + 2 * ndim), *range(2, 2 + ndim)


@ft.partial(jax.jit, donate_argnums=0)
def _write_both(out: Pair, tile: Pair, row: Array, column: Array) -> Pair:
    out = write_tile(out, mirrored(tile), column, row)
    return write_tile(out, tile, row, column)
