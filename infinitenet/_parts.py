"""Parts of tiles of kernel matrices, which are computed side by side."""

import functools as ft
import itertools as it
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jaxtyping import PyTree

from ._batch import shape_of_one
from ._by_distances import by_distances
from ._entries import (
    AbstractEntry,
    add,
    alone,
    entry_of,
    finish_alone,
    finish_pairs,
    one,
    Pair,
    pairs,
    program_of,
)
from ._kernel import Demand
from ._layer import AbstractLayer
from ._tiles import (
    beginning_of,
    choose_area,
    Cost,
    cut,
    most_entries,
    most_inputs,
    most_of,
    Tile,
    to_memory,
)
from ._uniform import common_variance
from ._workers import keep_memory, n_workers, run_all


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
        # With little memory, one at a time.
        enough = most_of(memory) >= self.workers * program.largest_of_pairs
        self.workers = self.workers if enough else 1
        self.area = choose_area(program.largest_of_pairs, memory // self.workers)
        longest = most_inputs(program.largest_of_one, memory // self.workers)
        self.cost = Cost(longest, beginning_of(program.largest_of_pairs))
        # Of inputs with themselves, entries that are computed at a time.
        self.alone = min(self.area, longest)
        self.most = most_entries(program.largest_of_pairs, memory)

    def tiles(self, tiles: Sequence[Tile], rows: int, columns: int) -> Iterator[Pair]:
        """The entries of tiles of some shape, in order."""
        x1, x2 = cut(self.x1, 0, rows), cut(self.x2, 0, columns)
        program = program_of(self.entry, pairs, self.arrays, x1, x2, self.entry.parts[0])

        def run(tile: Tile, part: Any) -> PyTree:
            x1 = cut(self.x1, tile.row, rows)
            return program(self.arrays, x1, cut(self.x2, tile.column, columns), part)

        return self._sums(run, tiles, self.entry.parts, finish_pairs)

    def diagonals(self, at: Sequence[int], size: int) -> Iterator[Pair]:
        """The kernel of each input with itself, of those from each of some starts."""
        x = cut(self.x1, 0, size)
        parts = self.entry.parts_alone
        program = program_of(self.entry, alone, self.arrays, x, parts[0])
        run = lambda start, part: program(self.arrays, cut(self.x1, start, size), part)
        return self._sums(run, at, parts, finish_alone)

    def _sums(
        self,
        run: Callable[..., PyTree],
        items: Sequence[Any],
        parts: Sequence[Any],
        finish: Callable[..., Pair],
    ) -> Iterator[Pair]:
        each = it.product(items, parts)
        # Threads are of no use to a single program.
        workers = min(self.workers, len(items) * len(parts))
        results = run_all((ft.partial(run, *pair) for pair in each), workers)
        program = None
        for _ in items:
            total = next(results)
            for _ in parts[1:]:
                total = add(total, next(results))
            if program is None:
                program = program_of(self.entry, finish, self.arrays, total)
            yield program(self.arrays, total)
