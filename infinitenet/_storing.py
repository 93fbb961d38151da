"""Computing kernel matrices into stores."""

import os
import time
from collections.abc import Sequence

import jax
import numpy as np

from ._batch import to_batches
from ._custom_types import Arrays
from ._entries import check_arguments
from ._kernel import Demand
from ._layer import AbstractLayer
from ._manifest import manifest_of
from ._mesh import without_explicit_axes
from ._progress import Pace, Progress, reporting
from ._store import open_or_create, StoredGram
from ._tiled import TiledGram
from ._tiles import Tile
from ._tracing import is_traced, of_known_arrays


# Seconds of work between two looks at what other processes have done meanwhile.
_SECONDS = 10.0


def store_gram(
    net: AbstractLayer,
    x1: Arrays,
    x2: Arrays | None = None,
    *,
    store: str | os.PathLike,
    share: tuple[int, int] | None = None,
    ntk: bool = True,
    memory: int | None = None,
    progress: Progress | bool = True,
    demand: Demand = Demand(),
) -> StoredGram:
    """Kernel matrices on disk, which may be larger than memory.

    They are written tile by tile. What is there already is not computed again: call it with
    the same arguments to go on after an interruption. Any number of processes may work on
    the same store at once, also on several machines with a common file system.

    !!! example

        ```python
        stored = inn.store_gram(net, x_train, store="kernels.zarr")
        stored.ntk[:100]  # Reads these rows.
        ```

        On a cluster, job `i` of 100 does its share:

        ```python
        inn.store_gram(net, x_train, store="kernels.zarr", share=(i, 100))
        ```

    **Arguments:**

    - `net`, `x1`, `x2`, `ntk`, `demand`: as for [`infinitenet.gram`][].
    - `store`: a folder, which is made if it does not exist. It remembers what it is of.
    - `share`: `(i, n)` to compute only the `i`th of `n` equal shares, from 0 on. By default
        all that is missing is computed.
    - `memory`: bytes that a tile may use. It may differ between runs: tiles are as large as
        in the first one.
    - `progress`: as for `gram`. Entries that are in the store count as done.

    **Returns:** A [`infinitenet.StoredGram`][]. It is complete once all shares are done.

    **Raises:** `ValueError` as `gram`, or if the store is of other kernels, or is something
    else. `OSError` if it cannot be written. Nothing that was written before is lost then.
    `ImportError` without Zarr: `pip install "infinitenet[store]"`.

    Entries that overflow are stored as they are: only `load` of `gram` refuses them.
    """
    check_arguments(net, demand)
    if is_traced((net, x1, x2)):
        raise ValueError(
            "`store` needs arrays of known values: none that `jax.jit`, `jax.grad` or "
            "`jax.vmap` is tracing. Call it outside of these."
        )
    index, count = _to_share(share)
    with of_known_arrays():
        x1, x2 = to_batches(x1, x2)
        # Tiles are written to disk, wherever they are.
        x1, x2 = jax.tree.map(without_explicit_axes, (x1, x2))
        tiles = TiledGram(net, x1, x2, ntk=ntk, demand=demand, memory=memory)
        manifest = manifest_of(net, x1, x2, ntk, demand)
        stored = open_or_create(store, manifest, tiles.tiling)
        tiles.tiling = stored.tiling
        _fit_memory(tiles, stored)
        _fill(tiles, stored, stored.tiling.tiles[index::count], progress)
    return stored


def _to_share(share: tuple[int, int] | None) -> tuple[int, int]:
    index, count = (0, 1) if share is None else share
    if not 0 <= index < count:
        raise ValueError(
            f"`share` must be `(i, n)`, the `i`th of `n` shares, `i` from 0 to `n - 1`, "
            f"but it is {share}."
        )
    return index, count


def _fit_memory(tiles: TiledGram, stored: StoredGram) -> None:
    """Computes as many tiles at a time as there is memory for.

    It may be less than it was when their size was chosen.
    """
    rows, columns, _ = stored.tiling
    at_once = tiles.parts.most // (rows * columns)
    tiles.parts.workers = min(tiles.parts.workers, at_once)
    if at_once < 1:
        raise ValueError(
            f"The tiles of the store {stored.path}, of {rows} x {columns} entries, no "
            f"longer fit into `memory`, which has room for {tiles.parts.most} entries: "
            "raise it, or give another path as `store` to begin anew with smaller tiles."
        )


def _fill(
    tiles: TiledGram,
    stored: StoredGram,
    wanted: Sequence[Tile],
    progress: Progress | bool,
) -> None:
    """Computes those tiles that are missing or damaged."""
    todo = [tile for tile in wanted if not stored.has(tile)]
    # In another order in each process, so that they seldom work on the same.
    todo = [todo[i] for i in np.random.default_rng().permutation(len(todo))]
    total = tiles.n1 * tiles.n2 * len(wanted) // len(stored.tiling.tiles)
    with reporting(progress, "kernel", "entries") as report:

        def tell(left: int) -> None:
            report(total - total * left // max(len(wanted), 1), total)

        tell(len(todo))
        pace = Pace(_SECONDS, 2 * tiles.parts.workers)
        while todo:
            began = time.monotonic()
            batch, todo = _next_missing(stored, todo, pace.steps)
            for k, values in enumerate(tiles.compute(batch)):
                stored.write(batch[k], values)
                tell(len(todo) + len(batch) - k - 1)
            pace.heed(time.monotonic() - began)


def _next_missing(
    stored: StoredGram, todo: Sequence[Tile], size: int
) -> tuple[list[Tile], list[Tile]]:
    """The next tiles that no other process has written meanwhile, and those after them."""
    batch: list[Tile] = []
    for k, tile in enumerate(todo):
        if len(batch) == size:
            return batch, list(todo[k:])
        if not stored.has(tile):
            batch.append(tile)
    return batch, []
