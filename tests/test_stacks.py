"""Programs that compute several tiles of a kernel matrix."""

from typing import Any

import jax
import jax.random as jr
import numpy as np
import pytest
from nets import architectures

import infinitenet as inn
from infinitenet import _tiled as tiled, _tiles as sizes
from infinitenet._assembly import DeviceAssembly, HostAssembly
from infinitenet._stacks import half_stacks, to_stacks
from infinitenet._tiled import TiledGram
from infinitenet._tiles import cost_of


@pytest.mark.parametrize("n", [1, 2, 7, 16])
def test_programs_of_several_tiles(n):
    """Of either matrix, on the host and as on other devices."""
    x, y = (jr.normal(jr.key(i), (k, 4, 3)) for i, k in enumerate((n, n + 3)))
    net = inn.Sequential([inn.Conv(4, (3,)), inn.Relu(), inn.Flatten(), inn.Dense(1)])
    for x2 in (y, None):
        want = inn.gram(net, x, x if x2 is None else x2)
        for memory in (2**30, 2**14):
            tiles = TiledGram(net, x, x2, ntk=True, demand=inn.Demand(), memory=memory)
            # Others than CPUs run one program at a time.
            for assembly, workers in ((HostAssembly, 2), (DeviceAssembly, 1)):
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(tiled, "assembly", assembly)
                    patch.setattr(tiles.parts, "workers", workers)
                    got = [k.array for k in tiles.whole(lambda done, total: None) if k]
                for a, b in zip(got, (want.nngp, want.ntk), strict=True):
                    np.testing.assert_allclose(a, b, rtol=1e-6)
                    assert x2 is not None or np.array_equal(a, a.T)


@pytest.mark.parametrize("name", ["conv_only", "conv_only_pooled", "pooled_attention"])
def test_rounded_as_alone(name, monkeypatch):
    """Tiles one after the other in a program, and what is left to do after them."""
    monkeypatch.setattr(sizes, "_CACHE", 2**12)
    make, shape = architectures[name]
    x, y = jr.normal(jr.key(0), (2, 17, *shape))
    of = make(8), x, y
    options: dict[str, Any] = {"ntk": True, "demand": inn.Demand(), "memory": None}
    tiles = TiledGram(*of, **options)
    stacks = to_stacks(tiles.tiling, tiles._cost)
    assert stacks.starts.shape[1] > 1 and tiles.tiling.rows > 1
    whole = tiles.whole(lambda done, total: None)
    each = TiledGram(*of, **options).compute(tiles.tiling.tiles)
    for tile, part in reversed([*zip(tiles.tiling.tiles, each, strict=True)]):
        for k, own in zip(*map(jax.tree.leaves, (whole, part)), strict=True):
            at = tile.moved(-tile.row % stacks.rows, -tile.column % stacks.columns)
            own = np.asarray(own)[at.row - tile.row :, at.column - tile.column :]
            ends = at.moved(*own.shape[:2])
            assert np.array_equal(k[at.row : ends.row, at.column : ends.column], own)


@pytest.mark.parametrize("symmetric", [False, True])
def test_tiles_of_light_entries(symmetric, monkeypatch):
    """Of which there are many in a tile: whatever is not finite in one of them is found."""
    net = inn.Sequential([inn.Dense(4), inn.Relu(), inn.Dense(1)])
    x = jr.normal(jr.key(0), (61, 3))
    y = None if symmetric else jr.normal(jr.key(1), (40, 3))
    want = inn.gram(net, x, y)
    monkeypatch.setattr(sizes, "_LARGER_CACHE", 4_000)
    options: dict[str, Any] = {"ntk": True, "demand": inn.Demand(), "memory": None}
    assert len(TiledGram(net, x, y, **options).tiling.tiles) > 2
    np.testing.assert_allclose(inn.gram(net, x, y).ntk, want.ntk, rtol=1e-13)
    overflowing = x.at[50].mul(1e160)
    with pytest.raises(ValueError, match="overflowed"):
        inn.gram(net, overflowing, y if y is None else 1e160 * y)


@pytest.mark.parametrize("n", [2, 9, 40, 301])
@pytest.mark.parametrize("at_once", [1, 2, 5])
@pytest.mark.parametrize(
    ("entry", "step"), [(4, 2**18), (2000, 500), (10**5, 10), (10**7, 1)]
)
def test_stacks(n, at_once, entry, step):
    """Every entry above the diagonal is of exactly one tile."""
    cost = cost_of(entry, entry, 2**34)._replace(at_once=at_once)
    assert cost.step * entry <= max(2**20, entry)
    rows, columns, starts = half_stacks(n, cost)
    assert rows == columns and starts.shape[2] * rows**2 <= max(cost.step, 1)
    seen = np.zeros((n, n), int)
    for i, j in starts.reshape(-1, 2):
        if i >= 0:
            own = (-(-i // rows) * rows, i + rows), (-(-j // rows) * rows, j + rows)
            seen[slice(*own[0]), slice(*own[1])] += 1
    above = np.triu(np.ones((n, n), bool), 1)
    assert np.all(seen[above] == 1)
