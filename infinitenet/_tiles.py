"""Programs that are run on tiles of a matrix, one after the other."""

from collections.abc import Callable, Iterator
import math
import os
from typing import NamedTuple

import jax
import jax.extend.core as jex
from jaxtyping import PyTree


# Bytes of one array of a tile which still let the layers before and after share the cache
# of a CPU core. Measured: four times more is two times slower for networks with pooling,
# and four times less is slower by the overhead of each layer.
_CACHE = 2**20

# How many arrays of the largest size are alive at once in a layer: the inputs and outputs
# of a convolution, with NTK, and the same extended by padding.
_ALIVE = 8


class Tile(NamedTuple):
    """Rows and columns from some start, of fixed numbers."""

    row: int
    column: int


class Tiling(NamedTuple):
    """Numbers of rows and columns of all tiles, and where these start.

    All tiles are of the same shape, so that there is one program to be compiled. So the
    last ones overlap with those before them.
    """

    rows: int
    columns: int
    tiles: tuple[Tile, ...]


def compile_program(fn: Callable[..., PyTree], *args: PyTree) -> Callable[..., PyTree]:
    """`fn` for arguments of these shapes, without its Python.

    Functions within `fn` that are under `jit` are compiled by themselves, whereas `jit` of
    all of `fn` would make one program of them.
    """
    flat, structure = jax.tree.flatten(args)
    jaxpr, shapes = jax.make_jaxpr(
        lambda *flat: fn(*jax.tree.unflatten(structure, flat)), return_shape=True
    )(*flat)
    run, out = jex.jaxpr_as_fun(jaxpr), jax.tree.structure(shapes)
    return lambda *args: jax.tree.unflatten(out, run(*jax.tree.leaves(args)))


def largest_array(fn: Callable[..., PyTree], *args: PyTree) -> int:
    """Bytes of the largest array that `fn` computes on the way."""
    flat, structure = jax.tree.flatten(args)
    jaxpr = jax.make_jaxpr(lambda *flat: fn(*jax.tree.unflatten(structure, flat)))(*flat)
    return max(v.aval.size * v.aval.dtype.itemsize for v in _variables(jaxpr.jaxpr))


def _variables(jaxpr: jex.Jaxpr) -> Iterator[jex.Var]:
    for eqn in jaxpr.eqns:
        yield from (v for v in eqn.outvars if hasattr(v.aval, "dtype"))
        for value in jax.tree.leaves(
            list(eqn.params.values()), is_leaf=lambda p: isinstance(p, jex.Jaxpr)
        ):
            if isinstance(value, jex.ClosedJaxpr):
                yield from _variables(value.jaxpr)
            elif isinstance(value, jex.Jaxpr):
                yield from _variables(value)


def default_memory() -> int:
    """Half of the device's memory, in bytes."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] // 2
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def choose_area(entry: int, memory: int | None) -> int:
    """The number of entries of a tile, when each takes arrays of `entry` bytes.

    **Raises:** `ValueError` if the memory does not suffice for a single one.
    """
    memory = default_memory() if memory is None else memory
    area = memory // (_ALIVE * entry)
    if area < 1:
        raise ValueError(
            f"`memory` must be at least {_ALIVE * entry} bytes for this network and these "
            f"inputs, but it is {memory}. Networks with pooling or attention need memory "
            "for all pairs of positions: use smaller images, strides, or `Flatten`."
        )
    if jax.default_backend() == "cpu":
        area = min(area, max(_CACHE // entry, 1))
    return area


def choose_tiles(n1: int, n2: int, area: int, *, symmetric: bool) -> Tiling:
    """Covers a matrix, or the half of it on one side of its diagonal, by tiles.

    **Arguments:**

    - `n1`, `n2`: the number of rows and of columns.
    - `area`: the largest number of entries of a tile.
    - `symmetric`: whether to leave out tiles below the diagonal.
    """
    side = max(math.isqrt(area), 1)
    if symmetric:
        # With few tiles to a side, those on the diagonal would be much of the work.
        side = min(side, max(-(-n1 // 8), 64))
        rows = columns = _even(n1, side)
    else:
        rows = _even(n1, max(side, area // n2))
        columns = _even(n2, area // rows)
    tiles = [Tile(i, j) for i in starts(n1, rows) for j in starts(n2, columns)]
    if symmetric:
        tiles = [tile for tile in tiles if tile.row <= tile.column]
    return Tiling(rows, columns, tuple(tiles))


def _even(n: int, most: int) -> int:
    """The size of equal parts of `n` of at most some size, with the least overlap."""
    return -(-n // -(-n // min(n, most)))


def starts(n: int, size: int) -> list[int]:
    """Where parts of some size begin which cover `n`: the last may overlap."""
    return [min(i * size, n - size) for i in range(-(-n // size))]
