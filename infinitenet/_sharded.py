"""Kernel matrices over the devices of a mesh, of one or of several processes."""

import functools as ft
import math

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from ._batch import batch_size
from ._entries import add, Pair
from ._grid import Grid
from ._kernel import Demand
from ._layer import AbstractLayer
from ._parts import Parts
from ._progress import Progress
from ._schedule import balanced_half, blocks, own_blocks
from ._sharded_programs import programs_of
from ._tiles import starts


class ShardedGram:
    """A matrix of kernels between inputs, or of some with themselves if `x2` is `None`.

    Rows are spread over the first axis of the mesh, and columns over the second one. All
    processes run the same programs at the same time. Those that compute tiles do not
    communicate. If the matrix is not symmetric, each device computes tiles of its own
    block: else those on and above the diagonal are dealt out to all, and after each round
    every device takes from them what is in its block.
    """

    def __init__(
        self,
        net: AbstractLayer,
        x1: PyTree,
        x2: PyTree | None,
        *,
        ntk: bool,
        demand: Demand,
        memory: int | None,
        mesh: Mesh,
    ):
        self.symmetric, second = x2 is None, x1 if x2 is None else x2
        parts = Parts(net, x1, second, ntk, demand, memory, workers=1)
        # Arrays of NumPy are the same on all devices, also if these are of other processes.
        host = jax.tree.map(np.asarray, (parts.arrays, parts.x1, parts.x2))
        self.arrays, self.x1, self.x2 = host
        self.grid = grid = Grid(mesh, batch_size(x1), batch_size(second))
        about = grid.shape, parts.area, parts.cost
        if self.symmetric:
            schedule = balanced_half(grid.n1, *about)
        else:
            schedule = own_blocks(grid.n1, grid.n2, *about)
        self.entry, self.starts = parts.entry, schedule.starts
        # Inputs of each device, of which it computes the diagonal.
        self.own = blocks(grid.n1, math.prod(grid.shape))
        self.programs = programs_of(
            grid,
            parts.entry,
            schedule.rows,
            schedule.columns,
            min(self.own, parts.alone),
            self.symmetric,
        )

    def whole(self, report: Progress) -> Pair:
        """The matrix, spread over the mesh."""
        rounds, total = len(self.starts), self.grid.n1 * self.grid.n2
        x1, x2, starts = self._inputs()
        out = None
        report(0, total)
        for i in range(rounds):
            at = self._on_each(starts[i])
            tiles = self._tiles(x1, x2, at)
            out = self.programs.empty(tiles) if out is None else out
            out = jax.block_until_ready(self.programs.write(out, tiles, at))
            report((i + 1) * total // rounds, total)
        assert out is not None
        if self.symmetric:
            # From inputs alone, which is exact: see `Kernel.alone`.
            out = self.programs.write_diagonal(out, self._diagonal())
        return self.programs.whole(out)

    def _inputs(self) -> tuple[PyTree, PyTree, np.ndarray]:
        """The inputs, and where tiles start among those of each device."""
        grid = self.grid
        if self.symmetric:
            x = jax.tree.map(lambda x: grid.put(x, jax.P()), self.x1)
            return x, x, self.starts
        n1, n2 = (b * parts for b, parts in zip(grid.block, grid.shape, strict=True))
        x1 = grid.padded(self.x1, n1, jax.P(grid.of_rows))
        x2 = grid.padded(self.x2, n2, jax.P(grid.of_columns))
        return x1, x2, self.starts % np.array(grid.block)

    def _on_each(self, values: np.ndarray) -> Array:
        return self.grid.put(values, self.grid.on_each)

    def _tiles(self, x1: PyTree, x2: PyTree, at: Array) -> Pair:
        """A tile on each device."""
        x1, x2 = self.programs.inputs(x1, x2, at)
        run = lambda part: self.programs.tile(self.arrays, x1, x2, part)
        total = ft.reduce(add, map(run, self.entry.parts))
        return self.programs.finish_tile(self.arrays, total, at)

    def _diagonal(self) -> Pair:
        """The kernel of each input with itself, some of them on each device."""
        programs = self.programs
        n = self.own * math.prod(self.grid.shape)
        x = self.grid.padded(self.x1, n, self.grid.on_each)
        at, out = starts(self.own, programs.step), []
        for start in at:
            run = lambda part, i=start: programs.diagonal(self.arrays, x, i, part)
            total = ft.reduce(add, map(run, self.entry.parts_alone))
            out.append(programs.finish_diagonal(self.arrays, total))
        return programs.join_diagonal(at, out)
