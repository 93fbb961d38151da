"""Matrices that are put together from tiles."""

import functools as ft
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree

from ._batch import batch_size
from ._covariance import Covariance, Pairs
from ._entries import Pair
from ._finite import all_finite
from ._stacks import Stacks
from ._tiles import Tile, write_tile


# Arrays of NumPy which begin at multiples of so many bytes become JAX's without a copy.
_ALIGNMENT = 64


class Assembly:
    """Matrices of `n1` rows and `n2` columns, of entries like one of them.

    If they are symmetric, tiles are written to either side of the diagonal. On CPUs they
    are in arrays of NumPy, which the tiles are written to.
    """

    def __init__(
        self,
        n1: int,
        n2: int,
        like: Pair,
        *,
        symmetric: bool,
        on_host: bool | None = None,
    ):
        self.symmetric = symmetric
        self.on_host = jax.default_backend() == "cpu" if on_host is None else on_host
        make = _aligned if self.on_host else jnp.zeros
        self._out: PyTree[Any] = jax.tree.map(
            lambda k: make((n1, n2, *k.shape), k.dtype), like
        )
        self._device: Any = None
        # Whether all that was written is known to be.
        self.is_finite = self.on_host

    def write_stacks(
        self, stacks: Stacks, starts: Int[np.ndarray, "steps side_by_side 2"], tiles: Pair
    ) -> None:
        """Copies tiles of a program. Several threads may do so at the same time."""
        write = self._write_on_device
        if self.on_host:
            # But for those on several devices.
            devices = list(jax.tree.leaves(tiles)[0].devices())
            self._device = devices[0] if len(devices) == 1 else None
            write, tiles = self._write_on_host, self._on_host(tiles)
        for index in np.ndindex(starts.shape[:2]):
            start = Tile(*starts[index].tolist())
            if start.row >= 0:
                # Others begin before, so that all are of the same shape.
                skip = -start.row % stacks.rows, -start.column % stacks.columns
                own = *index, *(slice(s, None) for s in skip)
                write(tiles, own, start.moved(*skip))

    def _on_host(self, kernels: Pair) -> PyTree[np.ndarray]:
        out = jax.tree.map(np.asarray, kernels)
        # Here, so that each thread looks at its own, and in one step.
        if not all_finite(jax.tree.leaves(out)):
            self.is_finite = False
        return out

    def _write_on_device(self, tiles: Pair, own: tuple[Any, ...], at: Tile) -> None:
        write = write_tile
        if self.symmetric:
            write = _write_on_diagonal if at.row == at.column else _write_both
        self._out = write(self._out, jax.tree.map(lambda k: k[own], tiles), *at)

    def _write_on_host(self, tiles: Pair, own: tuple[Any, ...], at: Tile) -> None:
        # Without programs of JAX, each of which would wait for those of the workers.
        for cov, out in zip(tiles, self._out, strict=True):
            if cov is None:
                continue
            # Arrays of NumPy.
            k: Any = cov.array[own]
            memory: Any = out.array
            _write(memory, k, at.row, at.column)
            if self.symmetric:
                other = k.transpose(_mirrored_axes(out))
                _write(memory, other, at.column, at.row, at.row == at.column)

    def write_diagonal(self, diagonal: Pair) -> None:
        """Copies the entries of each input with itself."""
        if not self.on_host:
            self._out = with_diagonal(self._out, diagonal)
            return
        kernels = self._on_host(diagonal)
        for memory, k in zip(*map(jax.tree.leaves, (self._out, kernels)), strict=True):
            index = np.arange(len(k))
            memory[index, index] = k

    def finish(self) -> Pair:
        """The matrices, to which nothing can be written any more."""
        put = lambda a: jax.device_put(a, self._device, may_alias=True)
        out = jax.tree.map(put, self._out) if self.on_host else self._out
        return jax.block_until_ready(out)


def _write(
    out: np.ndarray, k: np.ndarray, row: int, column: int, below: bool = False
) -> None:
    """Writes a part of a matrix, or what is below the diagonal of that part."""
    part = out[row : row + k.shape[0], column : column + k.shape[1]]
    if below:
        where = np.tri(len(k), k=-1, dtype=bool)
        np.copyto(part, k, where=where.reshape(*where.shape, *[1] * (k.ndim - 2)))
    else:
        part[...] = k


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    size = int(np.prod(shape)) * dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


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


@ft.partial(jax.jit, donate_argnums=0)
def _write_on_diagonal(out: Pair, tile: Pair, row: Array, column: Array) -> Pair:
    return write_tile(out, from_above(tile), row, column)
