"""Parts of tiles of kernel matrices, which are computed side by side."""

import functools as ft
import itertools as it
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, PyTree

from ._batch import shape_of_one
from ._by_distances import by_distances
from ._entries import (
    AbstractEntry,
    add,
    alone,
    entry_of,
    finish_alone,
    finish_one,
    finish_pairs,
    finish_stacks,
    finish_tile,
    one,
    Pair,
    pairs,
    program_of,
)
from ._flow_of_arrays import check_closure
from ._kernel import Demand
from ._layer import AbstractLayer
from ._stacks import Stacked, Stacks
from ._tiles import (
    choose_area,
    cost_of,
    cut,
    most_entries,
    most_of,
    Tile,
    to_memory,
)
from ._uniform import common_variance
from ._workers import keep_memory, n_workers, run_all


_T = TypeVar("_T")


class Parts:
    """How the entries of a matrix are computed, and how many at a time."""

    def __init__(
        self,
        net: AbstractLayer,
        x1: PyTree,
        x2: PyTree,
        ntk: bool,
        demand: Demand,
        memory: int | None,
        workers: int | None = None,
    ):
        keep_memory()
        self.workers = n_workers() if workers is None else workers
        variance = common_variance(net, x1, x2)
        self.arrays, entry = entry_of(net, ntk, demand, variance)
        memory = to_memory(memory)
        most = most_of(memory // self.workers)
        of_one = shape_of_one(x1)
        self.entry: AbstractEntry = by_distances(entry, self.arrays, of_one, most) or entry
        self.x1 = self.entry.inputs(self.arrays, x1)
        self.x2 = self.x1 if x2 is x1 else self.entry.inputs(self.arrays, x2)
        one1, one2 = shape_of_one(self.x1), shape_of_one(self.x2)
        part = self.entry.parts[0]
        program = program_of(self.entry, one, self.arrays, one1, one2, part)
        check_closure(program.jaxpr.consts)
        # One entry, of which there are but the shapes.
        self.like = program_of(self.entry, finish_one, self.arrays, program.out).out
        # With little memory, one at a time.
        enough = most_of(memory) >= self.workers * program.largest_of_pairs
        self.workers = self.workers if enough else 1
        self.area = choose_area(program.largest_of_pairs, memory // self.workers)
        self.cost = cost_of(
            program.largest_of_pairs, program.largest_of_one, memory // self.workers
        )
        # Of inputs with themselves, entries that are computed at a time.
        self.alone = min(self.area, self.cost.longest)
        self.most = most_entries(program.largest_of_pairs, memory)

    def tiles(self, tiles: Sequence[Tile], rows: int, columns: int) -> Iterator[Pair]:
        """The entries of tiles of some shape, in order."""
        x1, x2 = cut(self.x1, 0, rows), cut(self.x2, 0, columns)
        program = program_of(self.entry, pairs, self.arrays, x1, x2, self.entry.parts[0])

        def run(tile: Tile, part: Any) -> PyTree:
            x1 = cut(self.x1, tile.row, rows)
            return program(self.arrays, x1, cut(self.x2, tile.column, columns), part)

        finish = lambda _, total: self._finish(finish_pairs, total)
        return self._sums(run, tiles, self.entry.parts, finish)

    def stacks(
        self,
        stacks: Stacks,
        write: Callable[[Int[np.ndarray, "steps side_by_side 2"], Pair], None],
    ) -> Iterator[None]:
        """Computes tiles, and writes them: where each begins, and its entries.

        Several may be written at a time.
        """
        fn, parts = Stacked(stacks.rows, stacks.columns), self.entry.parts
        about = self.arrays, self.x1, self.x2, stacks.starts[0], parts[0]
        program = program_of(self.entry, fn, *about)
        run = lambda starts, part: program(*about[:3], starts, part)
        finish = lambda starts, total: write(starts, self._finish_stacks(total))
        return self._sums(run, list(stacks.starts), parts, finish)

    def diagonals(self, at: Sequence[int], size: int) -> Iterator[Pair]:
        """The kernel of each input with itself, of those from each of some starts."""
        x = cut(self.x1, 0, size)
        parts = self.entry.parts_alone
        program = program_of(self.entry, alone, self.arrays, x, parts[0])
        run = lambda start, part: program(self.arrays, cut(self.x1, start, size), part)
        finish = lambda _, total: self._finish(finish_alone, total)
        return self._sums(run, at, parts, finish)

    def _finish(self, fn: Callable[..., Pair], *of: PyTree) -> Pair:
        return program_of(self.entry, fn, self.arrays, *of)(self.arrays, *of)

    def _finish_stacks(self, total: PyTree) -> Pair:
        steps, side_by_side = jax.tree.leaves(total)[0].shape[:2]
        if side_by_side > 1 or self.entry.is_whole:
            return self._finish(finish_stacks, total)
        # One by one, so that rounding does not depend on how many there are.
        each = [self._finish(finish_tile, total, np.int32(i)) for i in range(steps)]
        return jax.tree.map(lambda *k: jnp.stack(k)[:, None], *each)

    def _sums(
        self,
        run: Callable[..., PyTree],
        items: Sequence[Any],
        parts: Sequence[Any],
        finish: Callable[[Any, PyTree], _T],
    ) -> Iterator[_T]:
        """What becomes of the sum of parts of each item, in order."""
        # Threads are of no use to a single program.
        workers = min(self.workers, len(items) * len(parts))
        if len(parts) == 1:
            whole = lambda item: finish(item, run(item, parts[0]))
            yield from run_all((ft.partial(whole, item) for item in items), workers)
            return
        each = it.product(items, parts)
        results = run_all((ft.partial(run, *pair) for pair in each), workers)
        for item in items:
            total = next(results)
            for _ in parts[1:]:
                total = add(total, next(results))
            yield finish(item, total)
