"""Tiles that one program computes.

Arrays of a tile stay in the cache of a core if it is small, but then it takes longer to
begin it than to compute it. So there are many in a program: one after the other in a loop,
where nothing else happens between them, or side by side if that takes too long as well.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.lax as lax
import numpy as np
from jaxtyping import Array, Int, PyTree

from ._entries import AbstractEntry, pairs
from ._tiles import Cost, cover, cut, half, least, Tiling


class Stacks(NamedTuple):
    """Tiles of `rows` and `columns`, and where they start.

    Those of each program are `side_by_side` in each step of a loop. There are as many in
    each program: at the end some start at -1, which are none.
    """

    rows: int
    columns: int
    starts: Int[np.ndarray, "programs steps side_by_side 2"]


def to_stacks(tiling: Tiling, cost: Cost, side_by_side: int = 1) -> Stacks:
    """The tiles of a matrix, in order, for as many programs as run at once, or more."""
    rows, columns, tiles = tiling
    most = max(cost.most // (rows * columns), 1)
    # Small matrices are not worth several programs.
    at_once = cost.at_once if len(tiles) * rows * columns > cost.beginning else 1
    programs = -(-len(tiles) // (most * at_once)) * at_once
    each = -(-len(tiles) // programs)
    if each * rows * columns < cost.fewest:
        each = 1
    steps = -(-each // side_by_side)
    side_by_side = -(-each // steps)
    programs = -(-len(tiles) // (steps * side_by_side))
    starts = np.full((programs * steps * side_by_side, 2), -1, np.int32)
    starts[: len(tiles)] = tiles
    return Stacks(rows, columns, starts.reshape(programs, steps, side_by_side, 2))


def half_stacks(n: int, cost: Cost) -> Stacks:
    """Tiles of one half of a symmetric matrix.

    Those on its diagonal are superfluous by half, the more so the larger they are.

    **Arguments:**

    - `n`: the number of rows.
    - `cost`: of a step.
    """

    def together(side: int) -> int:
        return max(min(cost.step // side**2, cost.longest // side), 1)

    def time(side: int) -> float:
        each = -(-half(n, side) // cost.at_once)
        steps = -(-each // together(side))
        tiles = -(-each // steps)
        return steps * (tiles * (side**2 + cost.edge * side) + cost.beginning)

    side = least(n, min(max(math.isqrt(cost.step), 1), cost.longest), time)
    tiling = cover(n, n, side, side, symmetric=True)
    if side == 1:
        off = tuple(tile for tile in tiling.tiles if tile.row != tile.column)
        tiling = tiling._replace(tiles=off)
    return to_stacks(tiling, cost, together(side))


@dataclasses.dataclass(frozen=True)
class Stacked:
    """The function of a program for tiles of some shape."""

    rows: int
    columns: int

    def __call__(
        self,
        entry: AbstractEntry,
        arrays: PyTree,
        x1: PyTree,
        x2: PyTree,
        starts: Int[Array, "steps side_by_side 2"],
        part: PyTree,
    ) -> PyTree:
        def tile(start: Int[Array, " 2"]) -> PyTree:
            rows = cut(x1, start[0], self.rows)
            return pairs(entry, arrays, rows, cut(x2, start[1], self.columns), part)

        def step(starts: Int[Array, "side_by_side 2"]) -> PyTree:
            if len(starts) > 1:
                return jax.vmap(tile)(starts)
            return jax.tree.map(lambda k: k[None], tile(starts[0]))

        if len(starts) > 1:
            return lax.map(step, starts)
        return jax.tree.map(lambda k: k[None], step(starts[0]))
