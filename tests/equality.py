"""Kernel matrices of every network of these tests, each computed in several ways.

`python equality.py FOLDER COUNT DTYPE NETWORKS...` compares those over eight devices with
those of one of them, and leaves some there for several processes to be compared with.
"""

import functools as ft
import pathlib
import sys
import traceback

import jax
import jax.numpy as jnp
import numpy as np
from helpers import build, case_demand, case_inputs, load, novel, quick_jit
from mesh_checks import memory_for, mesh, program_of_one
from nets import architectures

import infinitenet as inn
from infinitenet._batch import to_batch
from infinitenet._mesh import auto_mesh
from infinitenet._sharded import ShardedGram
from infinitenet._tiled import TiledGram
from infinitenet._tiles import Tile
from infinitenet._workers import n_workers


# The largest number of rows and of columns.
MOST = 17

_cases, _arrays = load("kernels")
_cases = {f"oracle_{case['name']}": case for case in _cases}
NAMES = [*architectures, *_cases]
# Without those of other sizes, degrees and depths than some before them.
NOVEL = [*architectures, *novel(_cases)]

# That of float64 is above rounding of quadrature, and far below what matters. In float32
# each way is within 1e-5 of float64, and tiles of other shapes may be rounded otherwise.
_tolerances = {"float64": 1e-11, "float32": 2e-5}

_areas = 4, 1, 6
_shapes = (4, 2), (8,), (2, 2)
# Of those that several processes compute too.
_together = _shapes[-1]


def plan(name, count):
    """Numbers of rows and of columns, entries of tiles, and shapes of meshes.

    17 of them have every number of rows, and of columns, and three every area and every
    shape. Other networks begin with others.
    """
    first = NAMES.index(name)
    for k in range(count):
        i = first + k
        area = _areas[(first // len(_shapes) + k) % len(_areas)]
        columns = 1 + (5 * i + first // MOST) % MOST
        yield 1 + i % MOST, columns, area, _shapes[i % len(_shapes)]


#
# Networks and inputs
#


def _stored(name, dtype):
    """Of stored inputs over and over, each of them a little different."""
    case = _cases[name]
    x, _ = case_inputs(case, _arrays, dtype)
    index = np.arange(2 * MOST) % len(jax.tree.leaves(x)[0])
    x = jax.tree.map(lambda a: np.asarray(a)[index], x)
    array = x.array if isinstance(x, inn.Inputs) else x
    # By factors, as positions that are missing are zero.
    factors = 1 + 0.3 * np.random.default_rng(0).normal(size=array.shape)
    array = (factors * array).astype(dtype)
    if isinstance(x, inn.Inputs):
        missing, pattern = x.positions.missing, x.positions.pattern
        array = inn.Inputs(array, missing=missing, pattern=pattern)
    return build(case["layers"]), array, case_demand(case)


def _architecture(name, dtype):
    network, shape = architectures[name]
    x = np.random.default_rng(0).normal(size=(2 * MOST, *shape))
    return network(96), x.astype(dtype), inn.Demand()


class Problem:
    """A network, and 17 inputs for the rows and 17 for the columns of a matrix.

    Matrices of `n1` rows and `n2` columns are of the first of them. Without `n2` they are
    of inputs with themselves.
    """

    def __init__(self, name, dtype="float64"):
        make = _architecture if name in architectures else _stored
        self.net, x, self.demand = make(name, np.dtype(dtype))
        # Parts of arrays of NumPy need no programs.
        self._inputs = jax.tree.map(np.asarray, x)
        self.x, self.y = self.batch(0, MOST), self.batch(MOST, MOST)
        self._tolerance = _tolerances[dtype]
        self.deviation = 0.0

    def batch(self, start, n):
        index = slice(start, start + n)
        return jax.tree.map(lambda a: jnp.asarray(a[index]), self._inputs)

    def inputs(self, n1, n2):
        return self.batch(0, n1), None if n2 is None else self.batch(MOST, n2)

    def memory(self, area, workers=None):
        """Room for tiles of so many entries."""
        workers = n_workers() if workers is None else workers
        return memory_for(self.net, to_batch("x", self.x), area, self.demand, workers)

    def gram(self, x, y=None, **options):
        options = {"demand": self.demand, "progress": False} | options
        return inn.gram(self.net, x, y, **options)

    def as_tiles(self, x, y, memory, make=TiledGram, **options):
        """What computes a matrix in tiles."""
        x, y = (x if x is None else to_batch("x", x) for x in (x, y))
        options |= {"ntk": True, "demand": self.demand, "memory": memory}
        return make(self.net, x, y, **options)

    def tile(self, x, y, memory):
        """A matrix, as the program for tiles of its shape computes it."""
        tiled = self.as_tiles(x, y, memory)
        (tile,) = tiled.parts.tiles([Tile(0, 0)], tiled.n1, tiled.n2)
        return [k.array for k in tile if k is not None]

    @ft.cached_property
    def _pairs(self):
        """Of each pair by itself: with the second inputs, and with themselves."""

        def arrays(*pair):
            kernel = self.net.kernel(*pair, demand=self.demand)
            return kernel.nngp.array, kernel.ntk.array

        def run(x, y):
            both = jax.tree.map(lambda *a: jnp.concatenate(a), x, y)
            row = lambda x: jax.vmap(lambda y: arrays(x, y))(both)
            return jax.vmap(row)(x), jax.vmap(arrays)(x)

        x, y = to_batch("x", self.x), to_batch("y", self.y)
        rows, alone = jax.tree.map(np.array, quick_jit(run)(x, y))
        index = np.arange(MOST)
        for k, diagonal in zip(rows, alone, strict=True):
            k[index, index] = diagonal
        return [k[:, MOST:] for k in rows], [k[:, :MOST] for k in rows]

    def check(self, got, n1, n2):
        """Against each pair by itself, relative to the root mean square of all."""
        columns = n1 if n2 is None else n2
        for a, all_ in zip(jax.tree.leaves(got), self._pairs[n2 is None], strict=True):
            want = all_[:n1, :columns]
            assert a.shape == want.shape and a.dtype == want.dtype
            rms = np.sqrt(np.mean(np.square(all_)))
            deviation = np.max(np.abs(np.asarray(a) - want)) / max(rms, 1e-30)
            self.deviation = max(self.deviation, float(deviation))
            assert deviation < self._tolerance, (deviation, n1, n2)


def same(got, want):
    return all(map(np.array_equal, jax.tree.leaves(got), jax.tree.leaves(want)))


#
# Over devices
#


def _places(n1, n2, rows, columns, starts):
    """Where the tile of each entry begins, of those that are written in some order."""
    out = np.zeros((n1, n2, 2), int)
    for i, j in starts:
        out[i : i + rows, j : j + columns] = i, j
    return out


def _same_tiles(problem, n1, n2, memory, on):
    """Whether entries are at the same places of tiles of the same shape."""
    about = *problem.inputs(n1, n2), memory
    tiled = problem.as_tiles(*about)
    sharded = problem.as_tiles(*about, ShardedGram, mesh=auto_mesh(on))
    shape, other = tiled.tiling[:2], sharded.programs
    if shape != (other.rows, other.columns):
        return False
    if n2 is None:
        # Otherwise, those of the diagonal may be of other shapes.
        return shape == (1, 1) and other.step == tiled.parts.area == 1
    places = ft.partial(_places, n1, n2, *shape)
    # Of tiles that overlap, the first one counts.
    return np.array_equal(
        places(tiled.tiling.tiles[::-1]), places(sharded.starts.reshape(-1, 2))
    )


def _is_one_function(problem, n1, n2, memory):
    """Whether XLA on CPU compiles a loop over layers as one function, as it is so small.

    Then it joins operations of different layers, and for several devices others than for
    one: so results may differ by the rounding of these.
    """
    tiled = problem.as_tiles(*problem.inputs(n1, n2), memory)
    parts, (rows, columns, _) = tiled.parts, tiled.tiling
    is_small = rows * columns < parts.cost.fewest
    return is_small and "scan[" in str(program_of_one(parts).jaxpr)


def _nearly_same(got, want):
    def of(a, b):
        a, b = np.asarray(a), np.asarray(b)
        rms = np.sqrt(np.mean(np.square(b)))
        return np.max(np.abs(a - b)) <= 8 * np.finfo(b.dtype).eps * rms

    return all(map(of, jax.tree.leaves(got), jax.tree.leaves(want)))


def _each(problem, name, count):
    """Matrices that are compared: their sizes, inputs, memory, and shape of the mesh."""
    for n1, n2, area, shape in plan(name, count):
        for sizes in ((n1, n2), (n1, None)):
            yield sizes, problem.inputs(*sizes), problem.memory(area, 1), shape


def _label(name, sizes):
    return "-".join(map(str, (name, *sizes)))


def _check(name, count, dtype, folder):
    problem, alike = Problem(name, dtype), 0
    for sizes, inputs, memory, shape in _each(problem, name, count):
        tiled = problem.gram(*inputs, memory=memory)
        got = problem.gram(*inputs, memory=memory, mesh=mesh(*shape))
        problem.check(tiled, *sizes)
        problem.check(got, *sizes)
        if _same_tiles(problem, *sizes, memory, mesh(*shape)):
            equal = same(got, tiled)
            alike += equal
            joined = not equal and _is_one_function(problem, *sizes, memory)
            assert equal or (joined and _nearly_same(got, tiled)), (sizes, shape)
        if shape == _together:
            np.savez(folder / _label(name, sizes), nngp=got.nngp, ntk=got.ntk)
    print(f"{name}: {problem.deviation:.1e}, {alike} of {2 * count} to the last bit")


def matrices(count, names):
    """Those over four devices, which may be of several processes."""
    for name in names:
        problem = Problem(name)
        for sizes, inputs, memory, shape in _each(problem, name, count):
            if shape == _together:
                k = problem.gram(*inputs, memory=memory, mesh=mesh(*shape))
                yield f"{_label(name, sizes)}-nngp", k.nngp
                yield f"{_label(name, sizes)}-ntk", k.ntk
        jax.clear_caches()


def main(folder, count, dtype, *names):
    failed = []
    for name in names:
        try:
            _check(name, int(count), dtype, pathlib.Path(folder))
        except Exception:
            failed.append(name)
            print(f"{name}:\n{traceback.format_exc()}")
        # A process may map only so many executables.
        jax.clear_caches()
    sys.exit(f"Failed: {failed}" if failed else 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
