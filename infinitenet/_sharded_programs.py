"""Programs that all devices of a mesh run at the same time, on parts of a matrix."""

import dataclasses
import functools as ft
import math
from collections.abc import Callable

import jax
import jax.lax as lax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jaxtyping import Array, PyTree

from ._entries import AbstractEntry, alone, finish_alone, finish_pairs, Pair, pairs
from ._grid import Grid
from ._schedule import blocks
from ._symmetry import from_above, mirrored
from ._tiles import cut


@ft.lru_cache(maxsize=64)
def programs_of(
    grid: Grid, entry: AbstractEntry, rows: int, columns: int, step: int, symmetric: bool
) -> "Programs":
    """Those made before, if there are any: to compile them takes long."""
    return Programs(grid, entry, rows, columns, step, symmetric)


@dataclasses.dataclass(eq=False)
class Programs:
    """For tiles of `rows` and `columns`, and `step` entries of the diagonal at a time.

    Only those that write tiles of a symmetric matrix, or its diagonal, communicate.
    """

    grid: Grid
    entry: AbstractEntry
    rows: int
    columns: int
    step: int
    symmetric: bool

    @ft.cached_property
    def inputs(self) -> Callable[..., tuple[PyTree, PyTree]]:
        """The inputs of a tile on each device.

        By itself, as a compiler that merges it with what follows would round otherwise
        than without a mesh.
        """
        rows, columns = self.rows, self.columns
        run = lambda x1, x2, at: (cut(x1, at[0, 0], rows), cut(x2, at[0, 1], columns))
        axes = (None, None) if self.symmetric else (self.grid.of_rows, self.grid.of_columns)
        return self.grid.map(run, (*map(jax.P, axes), self.grid.on_each))

    @ft.cached_property
    def tile(self) -> Callable[..., PyTree]:
        """A part of a tile on each device."""

        def run(arrays, x1, x2, part):
            return _with_axis(pairs(self.entry, arrays, x1, x2, part))

        on_each = self.grid.on_each
        return self.grid.map(run, (jax.P(), on_each, on_each, jax.P()))

    @ft.cached_property
    def finish_tile(self) -> Callable[..., Pair]:
        def run(arrays, total, at):
            tile = finish_pairs(self.entry, arrays, _without_axis(total))
            if not self.symmetric:
                return _with_axis(tile)
            on_diagonal = at[0, 0] == at[0, 1]
            choose = lambda a, b: jnp.where(on_diagonal, a, b)
            return _with_axis(jax.tree.map(choose, from_above(tile), tile))

        return self.grid.map(run, (jax.P(), self.grid.on_each, self.grid.on_each))

    #
    # Putting tiles together
    #

    @property
    def margin(self) -> tuple[int, int]:
        """Around blocks, for tiles that are of other devices in part or as a whole."""
        size = max(self.rows, self.columns) if self.symmetric else 0
        return size, size

    @ft.cached_property
    def empty(self) -> Callable[[Pair], Pair]:
        """Blocks for tiles such as some."""
        sizes = zip(self.grid.block, self.margin, strict=True)
        shape = tuple(size + 2 * margin for size, margin in sizes)
        make = lambda k: jnp.zeros((1, *shape, *k.shape[3:]), k.dtype)
        return self.grid.map(lambda tiles: jax.tree.map(make, tiles), self.grid.on_each)

    @ft.cached_property
    def write(self) -> Callable[..., Pair]:
        write = self._write_half if self.symmetric else self._write_own
        specs = (self.grid.on_each,) * 3
        return self.grid.map(write, specs, donate_argnums=0)

    def _write_own(self, out: Pair, tiles: Pair, at: Array) -> Pair:
        place = lambda out, k: lax.dynamic_update_slice(
            out, k, (0, at[0, 0], at[0, 1]) + (0,) * (k.ndim - 3)
        )
        return jax.tree.map(place, out, tiles)

    def _write_half(self, out: Pair, tiles: Pair, at: Array) -> Pair:
        tiles, at = lax.all_gather((tiles, at), self.grid.axes, axis=0, tiled=True)
        corner = jnp.array(self.grid.corner())
        margin, block = jnp.array(self.margin), jnp.array(self.grid.block)

        def place(out: Array, k: Array, at: Array) -> Array:
            at = jnp.clip(at - corner + margin, 0, block + margin)
            return lax.dynamic_update_slice(out, k, (at[0], at[1]) + (0,) * (k.ndim - 2))

        def one(i: Array, out: Pair) -> Pair:
            tile = jax.tree.map(lambda k: k[i], tiles)
            put = lambda tile, at: (
                lambda out: jax.tree.map(lambda out, k: place(out, k, at), out, tile)
            )
            return put(tile, at[i])(put(mirrored(tile), at[i][::-1])(out))

        own = lax.fori_loop(0, len(at), one, _without_axis(out))
        return _with_axis(own)

    #
    # The diagonal
    #

    @ft.cached_property
    def diagonal(self) -> Callable[..., PyTree]:
        """A part of entries of inputs with themselves, from some start on."""

        def run(arrays, x, start, part):
            return _with_axis(alone(self.entry, arrays, cut(x, start, self.step), part))

        return self.grid.map(run, (jax.P(), self.grid.on_each, jax.P(), jax.P()))

    @ft.cached_property
    def finish_diagonal(self) -> Callable[..., Pair]:
        def run(arrays, total):
            return _with_axis(finish_alone(self.entry, arrays, _without_axis(total)))

        return self.grid.map(run, (jax.P(), self.grid.on_each))

    def join_diagonal(self, at: list[int], parts: list[Pair]) -> Pair:
        """That of all inputs of a device, from parts which start at some of them."""
        size = blocks(self.grid.n1, math.prod(self.grid.shape))

        def join(*parts: Array) -> Array:
            whole = jnp.zeros((1, size, *parts[0].shape[2:]), parts[0].dtype)
            for start, k in zip(at, parts, strict=True):
                whole = whole.at[:, start : start + self.step].set(k)
            return whole

        specs = (self.grid.on_each,) * len(parts)
        return self.grid.map(lambda *parts: jax.tree.map(join, *parts), specs)(*parts)

    @ft.cached_property
    def write_diagonal(self) -> Callable[[Pair, Pair], Pair]:
        margin = self.margin[0]

        def write(out: Array, diagonal: Array) -> Array:
            diagonal = lax.all_gather(diagonal[0], self.grid.axes, axis=0, tiled=True)
            row, column = self.grid.corner()
            rows = row + jnp.arange(self.grid.block[0])
            columns = rows - column
            # Out of bounds, and so dropped, where the diagonal is not in this block.
            inside = (columns >= 0) & (columns < self.grid.block[1]) & (rows < self.grid.n1)
            at = jnp.where(inside, columns + margin, out.shape[2])
            known = diagonal[jnp.minimum(rows, self.grid.n1 - 1)]
            return out.at[0, rows - row + margin, at].set(known, mode="drop")

        run = lambda out, diagonal: jax.tree.map(write, out, diagonal)
        return self.grid.map(run, (self.grid.on_each,) * 2, donate_argnums=0)

    @ft.cached_property
    def whole(self) -> Callable[[Pair], Pair]:
        """One matrix of all blocks."""
        grid = self.grid
        (rows, columns), block = self.margin, grid.block
        inner = lambda k: k[0, rows : rows + block[0], columns : columns + block[1]]
        joined = grid.mapped(
            lambda out: jax.tree.map(inner, out),
            grid.on_each,
            jax.P(grid.of_rows, grid.of_columns),
        )
        crop = lambda out: jax.tree.map(lambda k: k[: grid.n1, : grid.n2], joined(out))
        return jax.jit(crop, out_shardings=NamedSharding(grid.mesh, grid.spec))


def _with_axis(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda k: k[None], tree)


def _without_axis(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda k: k[0], tree)
