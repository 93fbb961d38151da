"""Which device computes which tile of a matrix, and when."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from ._tiles import Cost, starts, tile_shape


class Schedule(NamedTuple):
    """Rounds, in each of which every device computes one tile.

    - `rows`, `columns`: the shape of tiles.
    - `starts`: the first row and the first column of each tile.
    """

    rows: int
    columns: int
    starts: Int[np.ndarray, "rounds devices 2"]

    def idle_share(self, n1: int, n2: int, *, symmetric: bool) -> float:
        """Of the time of all devices, the share in which none of them adds anything.

        That is, for tiles that all take the same time, and without communication: the last
        round may not need all devices, and tiles overlap where they do not divide a matrix.
        """
        needed = n1 * (n1 + 1) / 2 if symmetric else n1 * n2
        rounds, devices, _ = self.starts.shape
        return 1 - needed / (rounds * devices * self.rows * self.columns)


def blocks(n: int, parts: int) -> int:
    """The size of equal parts that cover `n`."""
    return -(-n // parts)


def own_blocks(
    n1: int, n2: int, shape: tuple[int, int], area: int, cost: Cost = Cost()
) -> Schedule:
    """Each device computes its own block of the matrix, of which nobody else needs any."""
    size = blocks(n1, shape[0]), blocks(n2, shape[1])
    rows, columns = tile_shape(*size, area, symmetric=False, cost=cost)
    corners = np.array([(i * size[0], j * size[1]) for i, j in np.ndindex(*shape)])
    i, j = np.meshgrid(starts(size[0], rows), starts(size[1], columns), indexing="ij")
    tiles = np.stack([i.ravel(), j.ravel()], 1).astype(np.int32)
    return Schedule(rows, columns, tiles[:, None] + corners[None].astype(np.int32))


def balanced_half(
    n: int, shape: tuple[int, int], area: int, cost: Cost = Cost()
) -> Schedule:
    """The tiles on and above the diagonal of a symmetric matrix, dealt out like cards.

    The last round is filled up with tiles that are computed twice.
    """
    devices = math.prod(shape)
    cost = cost._replace(at_once=devices)
    size, _ = tile_shape(n, n, area, symmetric=True, cost=cost)
    at = np.array(starts(n, size), np.int32)
    # There are millions of tiles of few entries.
    i, j = (index.astype(np.int32) for index in np.triu_indices(len(at)))
    rounds = blocks(len(i), devices)
    # Backwards, as where tiles overlap the first one counts, and is written last.
    order = np.arange(rounds * devices, dtype=np.int32)[::-1] % np.int32(len(i))
    tiles = np.stack([at[i[order]], at[j[order]]], 1)
    return Schedule(size, size, tiles.reshape(rounds, devices, 2))
