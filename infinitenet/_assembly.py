"""Matrices that are put together from tiles."""

import abc
import functools as ft
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree

from ._entries import Pair
from ._finite import all_finite
from ._stacks import Stacks
from ._symmetry import from_above, mirrored, mirrored_axes, with_diagonal
from ._tiles import Tile, write_tile


# Arrays of NumPy which begin at multiples of so many bytes become JAX's without a copy.
_ALIGNMENT = 64


class AbstractAssembly(abc.ABC):
    """Matrices of `n1` rows and `n2` columns, of entries like one of them.

    If they are symmetric, tiles are written to either side of the diagonal.

    - `is_finite`: whether all that was written is known to be.
    """

    is_finite: bool

    def __init__(self, n1: int, n2: int, like: Pair, *, symmetric: bool):
        self.symmetric = symmetric
        self._out: PyTree[Any] = jax.tree.map(
            lambda k: self._empty((n1, n2, *k.shape), k.dtype), like
        )

    def write_stacks(
        self, stacks: Stacks, starts: Int[np.ndarray, "steps side_by_side 2"], tiles: Pair
    ) -> None:
        """Copies tiles of a program."""
        tiles = self._received(tiles)
        for index in np.ndindex(starts.shape[:2]):
            start = Tile(*starts[index].tolist())
            if start.row >= 0:
                # Others begin before, so that all are of the same shape.
                skip = -start.row % stacks.rows, -start.column % stacks.columns
                own = *index, *(slice(s, None) for s in skip)
                self._write(tiles, own, start.moved(*skip))

    @abc.abstractmethod
    def write_diagonal(self, diagonal: Pair) -> None:
        """Copies the entries of each input with itself."""

    @abc.abstractmethod
    def finish(self) -> Pair:
        """The matrices, to which nothing can be written any more."""

    @abc.abstractmethod
    def _empty(self, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        """Memory for a matrix."""

    @abc.abstractmethod
    def _received(self, kernels: Pair) -> PyTree[Any]:
        """What a program has computed, where it will be copied from."""

    @abc.abstractmethod
    def _write(self, tiles: PyTree[Any], own: tuple[Any, ...], at: Tile) -> None:
        """Copies one of them, or what is not in others."""


def assembly(n1: int, n2: int, like: Pair, *, symmetric: bool) -> AbstractAssembly:
    """That of the device: see `AbstractAssembly`."""
    of_cpu = jax.default_backend() == "cpu"
    make = HostAssembly if of_cpu else DeviceAssembly
    return make(n1, n2, like, symmetric=symmetric)


class HostAssembly(AbstractAssembly):
    """In arrays of NumPy, on CPUs. Several threads may write at the same time.

    Programs of JAX that write would wait for those of the workers.
    """

    is_finite = True
    _device: Any = None

    def _empty(self, shape, dtype):
        size = int(np.prod(shape)) * dtype.itemsize
        memory = np.empty(size + _ALIGNMENT, np.uint8)
        start = -memory.ctypes.data % _ALIGNMENT
        return memory[start : start + size].view(dtype).reshape(shape)

    def _received(self, kernels):
        # Where the inputs were put, but for those on several devices.
        first = jax.tree.leaves(kernels)[0]
        devices = list(first.devices()) if first.committed else []
        self._device = devices[0] if len(devices) == 1 else None
        out = jax.tree.map(np.asarray, kernels)
        # Here, so that each thread looks at its own, and in one step.
        if not all_finite(jax.tree.leaves(out)):
            self.is_finite = False
        return out

    def _write(self, tiles, own, at):
        for cov, out in zip(tiles, self._out, strict=True):
            if cov is None:
                continue
            k = cov.array[own]
            _copy(out.array, k, at)
            if self.symmetric:
                other = k.transpose(mirrored_axes(out))
                _copy(out.array, other, Tile(at.column, at.row), at.row == at.column)

    def write_diagonal(self, diagonal):
        kernels = self._received(diagonal)
        for out, k in zip(*map(jax.tree.leaves, (self._out, kernels)), strict=True):
            index = np.arange(len(k))
            out[index, index] = k

    def finish(self):
        put = lambda a: jax.device_put(a, self._device, may_alias=True)
        return jax.block_until_ready(jax.tree.map(put, self._out))


def _copy(out: np.ndarray, k: np.ndarray, at: Tile, below: bool = False) -> None:
    """Writes a part of a matrix, or what is below the diagonal of that part."""
    part = out[at.row : at.row + k.shape[0], at.column : at.column + k.shape[1]]
    if below:
        where = np.tri(len(k), k=-1, dtype=bool)
        np.copyto(part, k, where=where.reshape(*where.shape, *[1] * (k.ndim - 2)))
    else:
        part[...] = k


class DeviceAssembly(AbstractAssembly):
    """In the memory of a device, where all that is computed is."""

    # It is looked at as a whole.
    is_finite = False

    def _empty(self, shape, dtype):
        return jnp.zeros(shape, dtype)

    def _received(self, kernels):
        return kernels

    def _write(self, tiles, own, at):
        write = write_tile
        if self.symmetric:
            write = _write_on_diagonal if at.row == at.column else _write_both
        self._out = write(self._out, jax.tree.map(lambda k: k[own], tiles), *at)

    def write_diagonal(self, diagonal):
        self._out = with_diagonal(self._out, diagonal)

    def finish(self):
        return jax.block_until_ready(self._out)


@ft.partial(jax.jit, donate_argnums=0)
def _write_both(out: Pair, tile: Pair, row: Array, column: Array) -> Pair:
    out = write_tile(out, mirrored(tile), column, row)
    return write_tile(out, tile, row, column)


@ft.partial(jax.jit, donate_argnums=0)
def _write_on_diagonal(out: Pair, tile: Pair, row: Array, column: Array) -> Pair:
    return write_tile(out, from_above(tile), row, column)
