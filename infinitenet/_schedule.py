"""Which device computes which tile of a matrix, and when."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from ._tiles import choose_tiles, Tiling


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


def own_blocks(n1: int, n2: int, shape: tuple[int, int], area: int) -> Schedule:
    """Each device computes its own block of the matrix, of which nobody else needs any."""
    size = blocks(n1, shape[0]), blocks(n2, shape[1])
    tiling = choose_tiles(*size, area, symmetric=False)
    corners = np.array([(i * size[0], j * size[1]) for i, j in np.ndindex(*shape)])
    tiles = np.array(tiling.tiles)
    return Schedule(tiling.rows, tiling.columns, tiles[:, None] + corners[None])


def balanced_half(n: int, shape: tuple[int, int], area: int) -> Schedule:
    """The tiles on and above the diagonal of a symmetric matrix, dealt out like cards.

    The last round is filled up with tiles that are computed twice. Tiles are so small that
    there is work for all, if possible.
    """
    devices = math.prod(shape)
    tiling = _for_all(n, area, devices)
    tiles = np.array(tiling.tiles)
    rounds = blocks(len(tiles), devices)
    # Backwards, as where tiles overlap the first one counts, and is written last.
    order = np.arange(rounds * devices)[::-1] % len(tiles)
    return Schedule(tiling.rows, tiling.columns, tiles[order].reshape(rounds, devices, 2))


def _for_all(n: int, area: int, devices: int) -> Tiling:
    tiling = choose_tiles(n, n, area, symmetric=True)
    while len(tiling.tiles) < 4 * devices and tiling.rows > 1:
        area = (tiling.rows // 2) ** 2
        tiling = choose_tiles(n, n, max(area, 1), symmetric=True)
    return tiling
