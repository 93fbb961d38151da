"""Kernel matrices as tiles, each of which can be computed by itself."""

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ._assembly import Assembly, symmetrised
from ._batch import batch_size
from ._entries import Pair
from ._kernel import Demand
from ._layer import AbstractLayer
from ._parts import Parts
from ._progress import Progress
from ._tiles import choose_tiles, starts, Tile


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
        self.tiling = choose_tiles(
            self.n1, self.n2, self.parts.area, symmetric=self.symmetric
        )

    def compute(self, tiles: Sequence[Tile]) -> Iterator[Pair]:
        """The entries of some tiles, in order."""
        size = self.tiling.rows, self.tiling.columns
        for tile, out in zip(tiles, self.parts.tiles(tiles, *size), strict=True):
            if self.symmetric and tile.row == tile.column:
                # From inputs alone, which is exact: see `Kernel.alone`.
                (diagonal,) = self.parts.diagonals([tile.row], self.tiling.rows)
                out = symmetrised(out, diagonal)
            yield out

    def whole(self, report: Progress) -> Pair:
        """The matrix in memory."""
        # Backwards: so where tiles overlap the first one counts, as it does in a store.
        tiles = self.tiling.tiles[::-1]
        total, out = self.n1 * self.n2, Assembly(self.n1, self.n2, symmetric=self.symmetric)
        report(0, total)
        for done, (tile, new) in enumerate(zip(tiles, self.compute(tiles), strict=True), 1):
            out.write(new, tile)
            report(done * total // len(tiles), total)
        return out.finish()


def tiled_diagonal(
    net: AbstractLayer, x: PyTree, *, ntk: bool, demand: Demand, memory: int | None
) -> Pair:
    """The kernel of each input with itself."""
    parts = Parts(net, x, x, ntk, demand, memory)
    n = batch_size(x)
    size = min(parts.area, n)
    at, out = starts(n, size), None
    for start, part in zip(at, parts.diagonals(at, size), strict=True):
        if out is None:
            out = jax.tree.map(lambda k: jnp.zeros((n, *k.shape[1:]), k.dtype), part)
        out = jax.tree.map(lambda out, k, i=start: out.at[i : i + size].set(k), out, part)
    assert out is not None
    return out
