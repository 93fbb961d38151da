"""Kernel matrices as tiles, each of which can be computed by itself."""

import functools as ft
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ._assembly import assembly
from ._batch import batch_size
from ._entries import Pair
from ._kernel import Demand
from ._layer import AbstractLayer
from ._overflow import finite
from ._parts import Parts
from ._progress import Progress
from ._stacks import half_stacks, to_stacks
from ._symmetry import symmetrised
from ._tiles import choose_tiles, cut, starts, Tile


class TiledGram:
    """A matrix of kernels between inputs, or of some with themselves if `x2` is `None`.

    Tiles are of the same shape, and do not depend on each other.
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
    ):
        self.symmetric = x2 is None
        self.parts = Parts(net, x1, x1 if x2 is None else x2, ntk, demand, memory)
        self.n1, self.n2 = batch_size(self.parts.x1), batch_size(self.parts.x2)
        # Parts of one tile are computed at a time too, and so are those of an array.
        one_part = len(self.parts.entry.parts) == 1
        self._cost = self.parts.cost._replace(at_once=self.parts.workers if one_part else 1)
        self.tiling = choose_tiles(
            self.n1, self.n2, self.parts.area, symmetric=self.symmetric, cost=self._cost
        )

    def compute(self, tiles: Sequence[Tile]) -> Iterator[Pair]:
        """The entries of some tiles, in order."""
        size = self.tiling.rows, self.tiling.columns
        if not self.symmetric:
            yield from self.parts.tiles(tiles, *size)
            return
        # Single entries on the diagonal need nothing else than that.
        others = [t for t in tiles if t.row != t.column or self.tiling.rows > 1]
        entries = self.parts.tiles(others, *size)
        for tile in tiles:
            if tile.row != tile.column:
                yield next(entries)
                continue
            diagonal = cut(self._diagonal, tile.row, self.tiling.rows)
            if self.tiling.rows == 1:
                yield jax.tree.map(lambda k: k[None], diagonal)
            else:
                yield symmetrised(next(entries), diagonal)

    @ft.cached_property
    def _diagonal(self) -> Pair:
        """From inputs alone, which is exact: see `Kernel.alone`."""
        return _diagonal(self.parts)

    def whole(self, report: Progress) -> Pair:
        """The matrix in memory.

        **Raises:** `ValueError` if it is not finite.
        """
        parts, total = self.parts, self.n1 * self.n2
        report(0, total)
        if len(self.tiling.tiles) == 1 and not (self.symmetric and self.n1 > 1):
            (only,) = self.compute(self.tiling.tiles)
            only = jax.block_until_ready(only)
            report(total, total)
            return finite(only)
        if self.symmetric:
            stacks = half_stacks(self.n1, self._cost)
        else:
            stacks = to_stacks(self.tiling, self._cost)
        out = assembly(self.n1, self.n2, parts.like, symmetric=self.symmetric)
        write = ft.partial(out.write_stacks, stacks)
        for done, _ in enumerate(parts.stacks(stacks, write), 1):
            report(done * total // len(stacks.starts), total)
        if self.symmetric:
            out.write_diagonal(self._diagonal)
        matrix = out.finish()
        return matrix if out.is_finite else finite(matrix)


def tiled_diagonal(
    net: AbstractLayer, x: PyTree, *, ntk: bool, demand: Demand, memory: int | None
) -> Pair:
    """The kernel of each input with itself."""
    return _diagonal(Parts(net, x, x, ntk, demand, memory))


def _diagonal(parts: Parts) -> Pair:
    n = batch_size(parts.x1)
    size = min(parts.alone, n)
    at, out = starts(n, size), None
    for start, part in zip(at, parts.diagonals(at, size), strict=True):
        if len(at) == 1:
            return part
        if out is None:
            out = jax.tree.map(lambda k: jnp.zeros((n, *k.shape[1:]), k.dtype), part)
        out = jax.tree.map(lambda out, k, i=start: out.at[i : i + size].set(k), out, part)
    assert out is not None
    return out
