"""Kernel matrices of every network, of 1 to 17 rows and columns: however they are computed
they are the same, and to the last bit where tiles are."""

import itertools as it

import jax
import numpy as np
import pytest
from equality import MOST, NAMES, NOVEL, plan, Problem, same
from processes import finish, joined, run_together, start

import infinitenet as inn


pytest.importorskip("zarr")

_all = pytest.mark.parametrize("name", NAMES)
_dtypes = pytest.mark.parametrize("dtype", ["float64", "float32"])
_novel = pytest.mark.parametrize("name", NOVEL)
# Those of which the fast tests compute matrices over devices.
_few = [*NOVEL[2::20], "pooled_attention"]
# Those of which a slow test computes matrices of all pairs of numbers.
_all_pairs = NOVEL[::4]


def _stored(problem, n1, n2, memory, folder):
    """The matrix and its tiles, the same with and without a store."""
    x, y = problem.inputs(n1, n2)
    stored = problem.gram(x, y, memory=memory, store=folder)
    gram = problem.gram(x, y, memory=memory)
    if n2 is None:
        # Tiles of a symmetric matrix are smaller in memory.
        problem.check(gram, n1, n2)
        problem.check(stored, n1, n2)
    else:
        assert same(stored, gram)
    return stored, inn.open_gram(folder).tiling


def _check_some_tiles(problem, gram, tiling, memory, symmetric):
    """Against the matrix of each alone, which the same program computes."""
    rows, columns, tiles = tiling
    for i, j in tiles[-1:] + tiles[:: -(-len(tiles) // 3)]:
        if symmetric and i == j:
            continue
        second = problem.batch(j if symmetric else MOST + j, columns)
        alone = problem.tile(problem.batch(i, rows), second, memory)
        # The last tiles overlap with those before them, which count there.
        i_own, j_own = -(-i // rows) * rows, -(-j // columns) * columns
        for whole, k in zip((gram.nngp, gram.ntk), alone, strict=True):
            own = np.asarray(whole)[i_own : i + rows, j_own : j + columns]
            assert np.array_equal(np.asarray(k)[i_own - i :, j_own - j :], own)


def _drawn(name):
    """One matrix: of each pair of both sets of inputs, or of the first with itself."""
    ((n1, n2, *_),) = plan(name, 1)
    return n1, None if NAMES.index(name) % 2 else n2


@_novel
def test_tiles_and_stores(name, tmp_path):
    problem, (n1, n2) = Problem(name), _drawn(name)
    entries = n1 * (n2 or n1)
    memory = problem.memory(max(entries // 6, 1))
    gram, tiling = _stored(problem, n1, n2, memory, tmp_path)
    assert len(tiling.tiles) > 1 or entries == 1
    _check_some_tiles(problem, gram, tiling, memory, n2 is None)


def test_every_size_is_drawn():
    rows, columns = zip(*map(_drawn, NOVEL), strict=True)
    assert set(rows) == set(columns) - {None} == set(range(1, MOST + 1))


def _check_meshes(folder, names, count, processes, dtype="float64", seconds=300):
    """Over eight devices against one, and over four of several processes against these."""
    args = folder, count, dtype, *names
    (text,) = finish([start("equality.py", *args, devices=8)], seconds)
    print(text)
    each = {path.stem: np.load(path) for path in folder.glob("*.npz")}
    for n in processes:
        parts = folder / str(n)
        parts.mkdir()
        run_together(n, parts, count, *names, seconds=seconds)
        for name, wanted in each.items():
            for kind, want in wanted.items():
                assert np.array_equal(joined(parts, f"{name}-{kind}", want), want)
    return text, each


def test_meshes(tmp_path):
    _, each = _check_meshes(tmp_path, _few, 1, [2])
    assert len(each) > 2


#
# All sizes, and all networks
#


@pytest.fixture
def cleared():
    """A process may map only so many executables."""
    yield
    jax.clear_caches()


@pytest.mark.slow
@pytest.mark.usefixtures("cleared")
@_dtypes
@_all
def test_every_size(name, dtype):
    """Each of 1 to 17 rows and of columns, in tiles of at most four entries."""
    problem = Problem(name, dtype)
    memory, numbers = problem.memory(4), range(1, MOST + 1)
    sizes = [(n1, n2) for n1, n2, *_ in plan(name, MOST)]
    if name in _all_pairs and dtype == "float64":
        sizes = it.product(numbers, numbers)
    for n1, n2 in it.chain(sizes, ((n, None) for n in numbers)):
        problem.check(problem.gram(*problem.inputs(n1, n2), memory=memory), n1, n2)
    print(f"{name}, {dtype}: {problem.deviation:.1e}")


@pytest.mark.slow
@pytest.mark.usefixtures("cleared")
@_dtypes
@_all
def test_several_sizes(name, dtype, tmp_path):
    """With and without a store, in tiles and in as few as possible."""
    problem = Problem(name, dtype)
    for n1, n2, area, _ in plan(name, 2 if dtype == "float64" else 1):
        for k in (n2, None):
            inputs, memory = problem.inputs(n1, k), problem.memory(area)
            gram, tiling = _stored(problem, n1, k, memory, tmp_path / f"{n1}-{k}")
            problem.check(gram, n1, k)
            _check_some_tiles(problem, gram, tiling, memory, k is None)
            problem.check(problem.gram(*inputs), n1, k)
    print(f"{name}, {dtype}: {problem.deviation:.1e}")


@pytest.mark.slow
@pytest.mark.parametrize("part", range(16))
def test_all_on_meshes(part, tmp_path):
    """Three matrices of each kind, on meshes of three shapes."""
    processes = [2, 4] if part % 4 == 0 else [2]
    _check_meshes(tmp_path, NAMES[part::16], 3, processes, seconds=7200)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(8))
def test_all_on_meshes_in_float32(part, tmp_path):
    _check_meshes(tmp_path, NAMES[part::8], 1, [], "float32", seconds=7200)
