"""Tiles of a matrix: how large they are, and where."""

import functools as ft
import math
import numbers
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ._batch import batch_size


# Bytes of one array of a tile which still let the layers before and after share the cache
# of a CPU core. Measured: four times more is two times slower for networks with pooling,
# and four times less is slower by the overhead of each layer.
_CACHE = 2**20

# The same of entries of at most so many bytes: networks without positions do little with
# each, so that it takes longer to begin a layer, and to read all inputs for their products.
# With much more the cores share a cache for which other programs compete.
_LIGHT, _LARGER_CACHE = 64, 2**21

# The same for all tiles of a program, which are in memory only at its end.
_MEMORY = 2**24

# Loops that touch fewer bytes are compiled by XLA on CPU as a single function, in which
# tiles would be rounded otherwise than alone.
_FUNCTION = 2**10

# Bytes of such an array of which the computations take as long as it takes to begin them.
_BEGINNING = 2**17

# What a row, or a column, of a tile takes by itself, in entries, is so much divided by the
# root of their bytes. Measured for entries of 4 to 4000 bytes.
_EDGE = 80

# More parts than are needed, of each side of a symmetric matrix, that are considered.
_MORE = 64

# The same of any other matrix, of which none is superfluous.
_FEW = 4

# How many arrays of the largest size are alive at once in a layer: the inputs and outputs
# of a convolution, with NTK, and the same extended by padding.
_ALIVE = 8


class Tile(NamedTuple):
    """Rows and columns from some start, of fixed numbers."""

    row: int
    column: int

    def moved(self, rows: int, columns: int) -> "Tile":
        return Tile(self.row + rows, self.column + columns)


class Tiling(NamedTuple):
    """Numbers of rows and columns of all tiles, and where these start.

    All tiles are of the same shape, so that there is one program to be compiled. So the
    last ones overlap with those before them.
    """

    rows: int
    columns: int
    tiles: tuple[Tile, ...]


class Cost(NamedTuple):
    """What decides on the size of tiles, besides their area.

    - `longest`: the most rows, and columns, of which there is memory for what is computed
        of each input.
    - `most`, `fewest`: the most entries of a program for several tiles, and the fewest.
    - `step`: the most entries of tiles that it computes side by side.
    - `at_once`: how many programs run at a time.
    - `beginning`: the number of entries that are computed in the time that it takes to
        begin and to end a tile.
    - `edge`: the same for each row, and for each column, of a tile.
    """

    longest: int = sys.maxsize
    most: int = sys.maxsize
    fewest: int = 0
    step: int = sys.maxsize
    at_once: int = 1
    beginning: int = 0
    edge: float = 0.0


def default_memory() -> int:
    """Half of the device's memory, in bytes."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] // 2
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def to_memory(memory: Any) -> int:
    """A number of bytes, the default of which is half of what there is.

    **Raises:** `ValueError` for anything else.
    """
    if memory is None:
        return default_memory()
    is_number = isinstance(memory, numbers.Real) and not isinstance(memory, bool)
    if not is_number or not 0 <= float(memory) < math.inf:
        raise ValueError(f"`memory` must be a number of bytes, but it is {memory!r}.")
    return int(float(memory))


def choose_area(entry: int, memory: int) -> int:
    """The number of entries of a tile, when each takes arrays of `entry` bytes.

    **Raises:** `ValueError` if the memory does not suffice for a single one.
    """
    area = most_entries(entry, memory)
    if area < 1:
        raise ValueError(
            f"`memory` must be at least {_ALIVE * entry} bytes for this network and these "
            f"inputs, but it is {memory}. Networks with pooling or attention need memory "
            "for all pairs of positions: use smaller images, strides, or `Flatten`."
        )
    return _within(area, entry, _CACHE if entry > _LIGHT else _LARGER_CACHE)


def _within(most: int, entry: int, size: int) -> int:
    """At most so many entries that their arrays are of some size, of a CPU's cache."""
    if jax.default_backend() != "cpu":
        return most
    return min(most, max(size // entry, 1))


def cost_of(entry: int, one: int, memory: int) -> Cost:
    """When each entry takes arrays of `entry` bytes, and each input of `one` bytes."""
    most = most_entries(entry, memory)
    return Cost(
        longest=max(memory // (_ALIVE * one), 1),
        most=_within(most, entry, _MEMORY),
        fewest=_FUNCTION // entry,
        step=_within(most, entry, _CACHE),
        beginning=_BEGINNING // entry,
        edge=_EDGE / math.sqrt(entry),
    )


def most_entries(entry: int, memory: int) -> int:
    """As `choose_area`, whether they fit into the cache or not."""
    return memory // (_ALIVE * entry)


def most_of(memory: int) -> int:
    """Bytes that one array of a tile may take."""
    return memory // _ALIVE


def choose_tiles(
    n1: int, n2: int, area: int, *, symmetric: bool, cost: Cost = Cost()
) -> Tiling:
    """Covers a matrix, or the half of it on one side of its diagonal, by tiles.

    **Arguments:**

    - `n1`, `n2`: the number of rows and of columns.
    - `area`: the largest number of entries of a tile.
    - `symmetric`: whether to leave out tiles below the diagonal.
    - `cost`: of a tile, if it is.
    """
    rows, columns = tile_shape(n1, n2, area, symmetric=symmetric, cost=cost)
    return cover(n1, n2, rows, columns, symmetric=symmetric)


def tile_shape(
    n1: int, n2: int, area: int, *, symmetric: bool, cost: Cost = Cost()
) -> tuple[int, int]:
    """The numbers of rows and columns of tiles: see `choose_tiles`."""
    side = min(max(math.isqrt(area), 1), cost.longest)
    if symmetric:
        side = _side(n1, side, cost)
        return side, side
    most = min(max(side, area // n2), cost.longest)

    def time(shape: tuple[int, int]) -> int:
        tiles = math.prod(-(-n // size) for n, size in zip((n1, n2), shape, strict=True))
        # Small matrices are not worth several.
        return -(-tiles // cost.at_once) * max(math.prod(shape), cost.beginning)

    shapes = [
        (r, c)
        for r in _sides(n1, most, _FEW)
        for c in _sides(n2, min(area // r, cost.longest), _FEW)
    ]
    return min(shapes, key=time)


def cover(n1: int, n2: int, rows: int, columns: int, *, symmetric: bool) -> Tiling:
    """As `choose_tiles`, by tiles of a given shape."""
    tiles = [Tile(i, j) for i in starts(n1, rows) for j in starts(n2, columns)]
    if symmetric:
        tiles = [tile for tile in tiles if tile.row <= tile.column]
    return Tiling(rows, columns, tuple(tiles))


def _side(n: int, most: int, cost: Cost) -> int:
    """The side of tiles of a symmetric matrix that take least: those on its diagonal are
    half superfluous, the more so the larger they are."""

    def time(side: int) -> int:
        return -(-half(n, side) // cost.at_once) * (side**2 + cost.beginning)

    return least(n, most, time)


def half(n: int, side: int) -> int:
    """How many tiles of some side a symmetric matrix needs."""
    parts = -(-n // side)
    # Single entries of the diagonal are known without tiles.
    return parts * (parts + 1) // 2 - parts * (side == 1)


def least(n: int, most: int, time: Callable[[int], float]) -> int:
    """The side of tiles, of at most `most`, by which `n` rows take least time."""
    return min(_sides(n, most, _MORE), key=time)


def _sides(n: int, most: int, more: int) -> Iterator[int]:
    """Sizes of equal parts, of at most some size, of `n`, for some more than are needed."""
    fewest = -(-n // min(n, most))
    return (-(-n // parts) for parts in range(fewest, min(n, fewest + more) + 1))


def starts(n: int, size: int) -> list[int]:
    """Where parts of some size begin which cover `n`: the last may overlap."""
    return [min(i * size, n - size) for i in range(-(-n // size))]


def empty(tile: PyTree[Array], n1: int, n2: int) -> PyTree[Array]:
    """Matrices of `n1` rows and `n2` columns, with further axes as those of a tile."""
    return jax.tree.map(lambda k: jnp.zeros((n1, n2, *k.shape[2:]), k.dtype), tile)


def cut(x: PyTree[Array], start: int | Array, size: int) -> PyTree[Array]:
    """Examples of a batch, from some start."""
    return x if size == batch_size(x) else _cut(x, start, size)


@ft.partial(jax.jit, static_argnums=2)
def _cut(x: PyTree[Array], start: int | Array, size: int) -> PyTree[Array]:
    return jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, start, size), x)


# It gives the memory of the matrix back, so that there is one copy of it only.
@ft.partial(jax.jit, donate_argnums=0)
def write_tile(
    out: PyTree[Array], tile: PyTree[Array], row: int | Array, column: int | Array
) -> PyTree[Array]:
    """Writes tiles into matrices, which cannot be used any more."""

    def write(out: Array, tile: Array) -> Array:
        start = (row, column) + (0,) * (out.ndim - 2)
        return lax.dynamic_update_slice(out, tile, start)

    return jax.tree.map(write, out, tile)
