"""Kernel matrices on disk: whole or missing, whatever happens."""

import errno
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import infinitenet as inn
from infinitenet import _storing as storing
from infinitenet._progress import reporting
from infinitenet._store import StoredGram
from infinitenet._tiled import TiledGram


zarr = pytest.importorskip("zarr")

_dense = inn.Sequential([inn.Dense(8, 1.4, 0.1), inn.Relu(), inn.Dense(2)])
_conv = inn.Sequential([inn.Conv(8, (2,), W_std=1.2), inn.Relu(), inn.Conv(8, (2,))])
_pool = inn.Sequential([*_conv.layers, inn.GlobalAvgPool(), inn.Dense(1)])
_x = np.asarray(jr.normal(jr.key(0), (11, 5, 2)))
_y = np.asarray(jr.normal(jr.key(1), (7, 5, 2)))
# Room for tiles of a few entries.
_memory: dict[str, Any] = {"memory": 40_000, "progress": False}


def _with(**options: Any) -> dict[str, Any]:
    return _memory | options


def _same(got, want):
    for a, b in ((got.nngp, want.nngp), (got.ntk, want.ntk)):
        assert (a is None) == (b is None)
        if a is not None:
            assert a.dtype == b.dtype and np.array_equal(a, b)


def _whole(path):
    """What is stored without any interruption."""
    return inn.gram(_pool, _x, **_memory, store=path)


def _close(got, want):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def _chunks(path):
    """The files of chunks, by their places."""
    return {
        str(file.relative_to(path)): file
        for file in sorted(pathlib.Path(path).rglob("*"))
        if file.is_file() and file.name != "zarr.json"
    }


@pytest.fixture
def computed(monkeypatch):
    """The tiles that are computed, in all threads."""
    out, compute = [], TiledGram.compute

    def counting(self, tiles):
        for tile, values in zip(tiles, compute(self, tiles), strict=True):
            out.append(tile)
            yield values

    monkeypatch.setattr(TiledGram, "compute", counting)
    return out


_cases: dict[str, Any] = {
    "symmetric": (_pool, (_x,), {}),
    "ragged": (_pool, (_x, _y), {}),
    "without NTK": (_pool, (_x,), {"ntk": False}),
    "positions": (_conv, (_x, _y), {"memory": 5000}),
    "pairs of positions": (_conv, (_x,), {"demand": inn.Demand(inn.Pairs.ALL)}),
    "dense": (_dense, (_x[:, 0],), {"memory": 6000}),
    "single": (_dense, (_x[:, 0].astype(np.float32), _y[:, 0]), {"memory": 3000}),
    "several inputs": (
        inn.Sequential([inn.Parallel([inn.Dense(4), inn.Dense(4)]), inn.FanInSum()]),
        ((_x[:, 0], _x[:, 1]),),
        {"memory": 3000},
    ),
}


@pytest.mark.parametrize("name", list(_cases))
def test_as_in_memory(name, tmp_path):
    net, args, options = _cases[name]
    options = _with(**options)
    want = inn.gram(net, *args, **options, store=tmp_path / "new" / "a.zarr")
    # Tiles of a symmetric matrix are smaller in memory.
    check = _same if len(args) > 1 else _close
    check(inn.gram(net, *args, **options), want)
    assert os.listdir(tmp_path / "new") == ["a.zarr"]
    stored = inn.open_gram(str(tmp_path / "new" / "a.zarr"))
    assert stored.is_complete and stored.nngp.shape == want.nngp.shape
    assert len(stored.tiling.tiles) > 2
    _same(stored.load(), want)


def test_chunks_are_tiles(tmp_path):
    stored = inn.store_gram(_pool, _x, _y, **_memory, store=tmp_path)
    assert stored.nngp.chunks == stored.tiling[:2]
    assert len(_chunks(tmp_path)) == 2 * len(stored.tiling.tiles) > 8
    # None of the sizes divides the number of inputs.
    assert 11 % stored.tiling.rows and 7 % stored.tiling.columns


def test_only_what_is_missing(computed, tmp_path):
    want = inn.gram(_pool, _x, **_memory, store=tmp_path)
    n = len(computed)
    assert n == len(set(computed)) > 5
    calls = []
    options = _with(progress=lambda *call: calls.append(call))
    _same(inn.gram(_pool, _x, **options, store=tmp_path), want)
    assert len(computed) == n and calls == [(121, 121)]
    # One of the NNGP and one below the diagonal, of the NTK.
    stored = inn.open_gram(tmp_path)
    last = stored.nngp.cdata_shape[0] - 1
    for i, lost in enumerate(["nngp/c/0/1", f"ntk/c/{last}/0"]):
        (tmp_path / lost).unlink()
        assert not stored.is_complete
        with pytest.raises(ValueError, match="lacks 1 chunks. Call"):
            stored.load()
        calls.clear()
        _same(inn.gram(_pool, _x, **options, store=tmp_path), want)
        assert len(computed) == n + i + 1
        assert 121 > calls[0][0] > 80 and calls[-1] == (121, 121)
    assert computed[-2:] == [(0, stored.tiling.columns), (0, 11 - stored.tiling.columns)]


def _flipped(whole, i):
    out = bytearray(whole)
    out[i] ^= 1 << (i % 8)
    return bytes(out)


def test_each_flipped_byte_is_seen(computed, tmp_path):
    want = inn.gram(_pool, _x, **_memory, store=tmp_path)
    n = len(computed)
    for name, file in list(_chunks(tmp_path).items())[::5]:
        whole = file.read_bytes()
        for damaged in (
            *(_flipped(whole, i) for i in (0, 9, len(whole) - 1)),
            whole[:-1],
            b"",
        )[:: 1 if "nngp" in name else 3]:
            file.write_bytes(damaged)
            with pytest.raises(ValueError, match="has damaged chunks"):
                inn.open_gram(tmp_path).load()
            _same(inn.gram(_pool, _x, **_memory, store=tmp_path), want)
            n += 1
            assert len(computed) == n and file.read_bytes() == whole


_other = inn.Sequential([inn.Dense(8, 1.4, 0.1), inn.Erf(), inn.Dense(2)])
_elementwise = lambda fn: inn.Sequential([inn.Dense(4), inn.Elementwise(fn)])
_z = _x[:, 0]


@pytest.mark.parametrize(
    "net, change, names",
    [
        (_other, {}, ["network"]),
        (inn.Sequential([inn.Dense(8, 1.4, 0.1), *_dense.layers[1:]][:2]), {}, ["network"]),
        (
            inn.Sequential([inn.Dense(8, 1.4 + 1e-9, 0.1), *_dense.layers[1:]]),
            {},
            ["hyperparameters"],
        ),
        (_dense, {"x1": _z + 1e-9}, ["x1"]),
        (_dense, {"x1": _z[:4]}, ["shape", "x1"]),
        (_dense, {"x2": _z}, ["symmetric", "x2"]),
        (_dense, {"x1": _z.astype(np.float32)}, ["hyperparameters", "dtype", "x1"]),
        (_dense, {"ntk": False}, ["ntk"]),
        (_dense, {"demand": inn.Demand(inn.Pairs.ALL)}, ["demand"]),
    ],
)
def test_other_kernels(net, change, names, tmp_path):
    inn.store_gram(_dense, _z, store=tmp_path)
    before = _chunks(tmp_path).keys()
    with pytest.raises(ValueError, match="is of other kernels: its .*another path") as info:
        inn.gram(net, **({"x1": _z} | change), store=tmp_path)
    for name in set(names) - {"hyperparameters"}:
        assert f"its {name} is " in str(info.value), info.value
    assert "x1" in names or "its x1" not in str(info.value)
    assert _chunks(tmp_path).keys() == before


def test_functions_are_told_apart(tmp_path):
    """By what they do, as their names tell little."""
    one, other, again = (lambda x: 2 * x), (lambda x: 3 * x), (lambda x: 2 * x)
    inn.store_gram(_elementwise(one), _z, store=tmp_path)
    inn.store_gram(_elementwise(again), _z, store=tmp_path)
    with pytest.raises(ValueError, match="its program is"):
        inn.store_gram(_elementwise(other), _z, store=tmp_path)


def test_initialised_networks_have_the_same_store(computed, tmp_path):
    inn.store_gram(_dense, _z, store=tmp_path)
    n = len(computed)
    inn.store_gram(_dense.init(jr.key(0), _z[0]), _z, store=tmp_path)
    assert len(computed) == n


def test_versions(tmp_path):
    inn.store_gram(_dense, _z, store=tmp_path)
    file = tmp_path / "zarr.json"
    text = file.read_text()
    file.write_text(text.replace(f'"{jax.__version__}"', '"0.0.1"'))
    with pytest.raises(ValueError, match='its JAX version is "0.0.1", but here it is'):
        inn.store_gram(_dense, _z, store=tmp_path)
    assert inn.open_gram(tmp_path).load().ntk.shape == (11, 11)
    file.write_text(text.replace('"format": 1', '"format": 2'))
    with pytest.raises(ValueError, match="of format 2, by another version"):
        inn.open_gram(tmp_path)


def test_what_is_no_store(tmp_path):
    (tmp_path / "file").write_text("x")
    zarr.create_array(tmp_path / "foreign", shape=(3,), dtype="float64")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "precious").write_text("x")
    inn.store_gram(_dense, _z, store=tmp_path / "damaged")
    metadata = tmp_path / "damaged" / "ntk" / "zarr.json"
    metadata.write_bytes(metadata.read_bytes()[:-20])
    inn.store_gram(_dense, _z, store=tmp_path / "altered")
    metadata = tmp_path / "altered" / "ntk" / "zarr.json"
    metadata.write_text(metadata.read_text().replace("11", "12"))
    for name in ("file", "foreign", "folder", "damaged", "altered"):
        with pytest.raises(ValueError, match=f"{name} that is no store.*another path"):
            inn.gram(_dense, _z, store=tmp_path / name)
        with pytest.raises(ValueError, match="no store of kernels"):
            inn.open_gram(tmp_path / name)
    with pytest.raises(ValueError, match="There is no store at .*none"):
        inn.open_gram(tmp_path / "none")
    assert not (tmp_path / "none").exists()
    assert (tmp_path / "folder" / "precious").read_text() == "x"


def test_memory_may_change(computed, tmp_path):
    want = inn.gram(_pool, _x, **_memory, store=tmp_path)
    (tmp_path / "ntk" / "c" / "0" / "0").unlink()
    n = len(computed)
    more = _with(memory=10**8)
    got = inn.gram(_pool, _x, **more, store=tmp_path)
    np.testing.assert_allclose(got.ntk, want.ntk, rtol=1e-12)
    assert len(computed) == n + 1
    inn.store_gram(_pool, _x, **more, store=tmp_path / "large")
    with pytest.raises(ValueError, match="no longer fit into `memory`.*raise it"):
        inn.gram(_pool, _x, **_memory, store=tmp_path / "large")


def test_shares(computed, tmp_path):
    want = _whole(tmp_path / "whole")
    computed.clear()
    done = []
    for i in range(3):
        stored = inn.store_gram(_pool, _x, **_memory, store=tmp_path / "a", share=(i, 3))
        assert stored.is_complete == (i == 2)
        done.append(len(computed) - sum(done))
    assert max(done) - min(done) <= 1 and len(computed) == len(set(computed))
    _same(inn.open_gram(tmp_path / "a").load(), want)
    # More shares than tiles.
    inn.store_gram(_pool, _x, **_memory, store=tmp_path / "a", share=(999, 1000))
    for share in ((3, 3), (-1, 2), (0, 0)):
        with pytest.raises(ValueError, match="`share` must be"):
            inn.store_gram(_pool, _x, store=tmp_path / "a", share=share)


def test_interrupted(computed, tmp_path):
    def interrupt(done, total):
        if done > 50:
            raise KeyboardInterrupt

    options = _with(progress=interrupt)
    with pytest.raises(KeyboardInterrupt):
        inn.gram(_pool, _x, **options, store=tmp_path / "a")
    n = len(computed)
    got = _whole(tmp_path / "a")
    assert len(computed) == len(set(computed)) > n > 0
    _same(got, _whole(tmp_path / "whole"))


def test_full_disk(computed, tmp_path, monkeypatch):
    writes, replace = [], pathlib.Path.replace

    def full(self, target):
        writes.append(target)
        if len(writes) > 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(pathlib.Path, "replace", full)
    match = "could not be written .No space left on device.. All tiles .* are good"
    with pytest.raises(OSError, match=match) as info:
        inn.gram(_pool, _x, **_memory, store=tmp_path / "a")
    assert info.value.errno == errno.ENOSPC
    monkeypatch.undo()
    monkeypatch.setattr(TiledGram, "compute", TiledGram.compute)
    files = _chunks(tmp_path / "a")
    assert files and not any(name.endswith("partial") for name in files)
    bytes_ = {name: file.read_bytes() for name, file in files.items()}
    _same(_whole(tmp_path / "a"), _whole(tmp_path / "whole"))
    # The tile that failed may be written again.
    files = _chunks(tmp_path / "a")
    assert all(files[name].read_bytes() == b for name, b in bytes_.items())


def test_stray_files(tmp_path):
    want = inn.gram(_pool, _x, **_memory, store=tmp_path)
    old, new = (tmp_path / "ntk" / "c" / "0" / f"0.{i}.partial" for i in range(2))
    old.write_text("x")
    new.write_text("x")
    os.utime(old, (0, 0))
    _same(inn.gram(_pool, _x, **_memory, store=tmp_path), want)
    assert new.exists() and not old.exists()


def test_overflow(computed, tmp_path):
    """It is stored as it is, and not computed again."""
    x = _z.astype(np.float32) * 1e30
    for _ in range(2):
        with pytest.raises(ValueError, match="The kernel has overflowed"):
            inn.gram(_dense, x, store=tmp_path)
    assert len(computed) == 1


def test_other_programs_can_read_it(tmp_path):
    want = inn.gram(_conv, _x, _y, memory=5000, store=tmp_path)
    group = zarr.open_group(tmp_path, mode="r")
    assert np.array_equal(group["ntk"][:], want.ntk)
    assert group["ntk"].metadata.dimension_names == ("x1", "x2", "position_0")
    # By hand, without Zarr: numbers of a chunk and four bytes of a checksum.
    chunk = (tmp_path / "nngp" / "c" / "0" / "1" / "0").read_bytes()[:-4]
    rows, columns, positions = group["nngp"].chunks
    values = np.frombuffer(chunk, "<f8").reshape(rows, columns, positions)
    assert np.array_equal(values, want.nngp[:rows, columns : 2 * columns])
    assert json.loads((tmp_path / "zarr.json").read_text())["node_type"] == "group"


def test_xarray(tmp_path):
    xarray = pytest.importorskip("xarray")
    want = inn.gram(_conv, _x, _y, **_memory, store=tmp_path)
    with xarray.open_zarr(tmp_path, consolidated=False, chunks=None) as data:
        assert data["ntk"].dims == ("x1", "x2", "position_0")
        assert np.array_equal(data["ntk"].values, want.ntk)


def test_float64_where_jax_has_none(tmp_path):
    inn.store_gram(_dense, _z, store=tmp_path)
    with (
        jax.enable_x64(False),
        pytest.raises(ValueError, match="is of float64, which JAX has not"),
    ):
        inn.open_gram(tmp_path).load()


def test_without_extras(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(ImportError, match=r'pip install "infinitenet\[store\]"'):
        inn.gram(_dense, _z, store=tmp_path)
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(ImportError, match=r'pip install "infinitenet\[beam\]"'):
        inn.beam_gram(_dense, _z, store=tmp_path)
    with pytest.raises(ValueError, match="`shares` must be at least 1"):
        inn.beam_gram(_dense, _z, store=tmp_path, shares=0)
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    with pytest.raises(ValueError, match="either `store` or `mesh`"):
        inn.gram(_dense, _z, store=tmp_path, mesh=mesh)


def test_time_left_is_of_what_was_missing():
    """A bar does not take what was in the store for fast work."""
    tqdm = pytest.importorskip("tqdm.auto")
    bars, init = [], tqdm.tqdm.__init__

    def noting(self, *args, **kwargs):
        init(self, *args, **kwargs)
        bars.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tqdm.tqdm, "__init__", noting)
        with reporting(True, "kernel", "entries") as report:
            report(90, 100)
            report(92, 100)
    assert (bars[0].initial, bars[0].n, bars[0].total) == (90, 92, 100)


def test_under_jit(tmp_path):
    with pytest.raises(ValueError, match="`store` needs arrays of known values"):
        jax.jit(lambda x: inn.gram(_dense, x, store=tmp_path).ntk)(jnp.asarray(_z))
    # Known arrays, of NumPy or of JAX, are stored while something else is traced.
    for i, x in enumerate((_z, jnp.asarray(_z))):
        store = f"{tmp_path}/{i}"
        stored = lambda a, x=x, store=store: a * inn.gram(_dense, x, store=store).ntk
        got = jax.jit(stored)(2.0)
        np.testing.assert_allclose(got, 2 * inn.gram(_dense, _z).ntk, rtol=1e-12)


#
# Several processes
#


# Each tile takes a while, and its name is written down. After some it waits for its end.
_child = """
import os, sys, time
import jax
jax.config.update("jax_enable_x64", True)
import infinitenet as inn, test_store
from infinitenet._tiled import TiledGram

path, seconds, log, most = sys.argv[1], float(sys.argv[2]), sys.argv[3], int(sys.argv[4])
compute = TiledGram.compute

def slow(self, tiles):
    global most
    for tile, values in zip(tiles, compute(self, tiles), strict=True):
        time.sleep(seconds if most else 600)
        most -= 1
        with open(log, "a") as file:
            file.write(f"{tile.row},{tile.column}\\n")
        yield values

TiledGram.compute = slow
inn.store_gram(test_store._pool, test_store._x, **test_store._memory, store=path)
"""


def _start(path, seconds, log, most=sys.maxsize):
    folders = [pathlib.Path(__file__).parent, pathlib.Path(inn.__file__).parents[1]]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, folders))}
    args = [sys.executable, "-c", _child, *map(str, (path, seconds, log, most))]
    return subprocess.Popen(args, env=env)


def _lines(log):
    return log.read_text().split() if log.exists() else []


def _whole_tiles(path):
    """How many are there. Each chunk is whole, if it is there at all."""
    if not path.exists():
        return 0
    stored = inn.open_gram(path)
    for name, array in (("nngp", stored.nngp), ("ntk", stored.ntk)):
        for i, j in np.ndindex(*array.cdata_shape):
            if (path / name / "c" / str(i) / str(j)).exists():
                array.blocks[i, j]
    return sum(map(stored.has, stored.tiling.tiles))


def _kill_and_resume(path, log, times, seed, most=sys.maxsize):
    """Kills a process again and again, at random. Each starts where the last one ended,
    and computes so many tiles.

    Returns how many were killed: fewer if the store is complete before.
    """
    draw, killed = random.Random(seed), 0
    while killed < times and not (path.exists() and inn.open_gram(path).is_complete):
        before, kept = len(_lines(log)), _whole_tiles(path)
        with _start(path, 0.02, log, most) as child:
            # Not while it imports: then there is nothing to lose.
            while child.poll() is None and len(_lines(log)) == before:
                time.sleep(0.01)
            time.sleep(draw.uniform(0, 0.15))
            child.send_signal(signal.SIGKILL)
        # It may also have been faster.
        assert child.returncode in (0, -signal.SIGKILL)
        killed += child.returncode != 0
        new = len(_lines(log)) - before
        # The one that was being written is lost, at most.
        assert kept + new - 1 <= _whole_tiles(path) <= kept + new
    return killed


def _finished(path):
    with _start(path, 0, path.with_suffix(".log")) as child:
        assert child.wait() == 0
    return inn.open_gram(path).load()


def test_killed(tmp_path):
    # Of ten tiles.
    assert _kill_and_resume(tmp_path / "a", tmp_path / "log", 3, 0, most=3) == 3
    _same(_finished(tmp_path / "a"), _whole(tmp_path / "whole"))


@pytest.mark.slow
def test_killed_often(tmp_path):
    want, killed = _whole(tmp_path / "whole"), []
    while sum(killed) < 200:
        k = len(killed)
        path, log = tmp_path / f"{k}", tmp_path / f"log{k}"
        killed.append(_kill_and_resume(path, log, 3, k))
        _same(_finished(path), want)
    print(f"{sum(killed)} kills in {len(killed)} stores")


def test_two_workers(tmp_path):
    log = tmp_path / "log"
    children = [_start(tmp_path / "a", 0.05, log) for _ in range(2)]
    assert [child.wait() for child in children] == [0, 0]
    stored = inn.open_gram(tmp_path / "a")
    assert stored.is_complete
    _same(stored.load(), _whole(tmp_path / "whole"))
    # Those in work when the other one has begun, or at the end, may be done twice.
    assert len(_lines(log)) <= 2 * len(stored.tiling.tiles)


def test_looks_before_it_computes(computed, tmp_path, monkeypatch):
    """While this process computes its first tiles, another one does all others."""
    write = StoredGram.write
    monkeypatch.setattr(storing, "_SECONDS", 0.0)

    def slow(self, tile, values):
        monkeypatch.setattr(StoredGram, "write", write)
        inn.store_gram(_pool, _x, **_memory, store=tmp_path)
        computed.append("other")
        write(self, tile, values)

    monkeypatch.setattr(StoredGram, "write", slow)
    inn.store_gram(_pool, _x, **_memory, store=tmp_path)
    least = 2 * (os.cpu_count() or 1)
    assert len(computed) - computed.index("other") <= least


@pytest.mark.slow
def test_beam(tmp_path):
    beam = pytest.importorskip("apache_beam")
    options = beam.options.pipeline_options.PipelineOptions(
        ["--direct_num_workers=2", "--direct_running_mode=multi_processing"]
    )
    with beam.Pipeline(options=options) as pipeline:
        step = inn.beam_gram(_pool, _x, memory=40_000, store=tmp_path / "a", shares=4)
        assert pipeline | step is not None
    _same(inn.open_gram(tmp_path / "a").load(), _whole(tmp_path / "whole"))
