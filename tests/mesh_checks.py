"""Kernel matrices over eight devices, in a process that has these: see `test_mesh.py`.

`python mesh_checks.py FOLDER` runs every check, and leaves matrices there to compare with.
"""

import functools as ft
import pathlib
import sys
import tempfile
import traceback
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding

import infinitenet as inn
from infinitenet._batch import first_of
from infinitenet._entries import one, program_of
from infinitenet._mesh import auto_mesh
from infinitenet._parts import Parts
from infinitenet._sharded import ShardedGram


DENSE = inn.Sequential([inn.Dense(4, 1.3, 0.2), inn.Relu(), inn.Dense(1)])
POOLED = inn.Sequential(
    [
        inn.Conv(4, (3,), padding="SAME", W_std=1.3, b_std=0.2),
        inn.Relu(),
        inn.Conv(4, (2,), (2,), padding="SAME"),
        inn.GlobalAvgPool(),
        inn.Dense(1, 1.1, 0.1),
    ]
)
POSITIONS = inn.Sequential([inn.Conv(4, (2,)), inn.Relu(), inn.Dense(1)])
_rng = np.random.default_rng(0)
VECTORS = _rng.normal(size=(2, 17, 3))
SEQUENCES = _rng.normal(size=(2, 17, 6, 2))
NAMES = ("rows", "columns")


def mesh(*shape, kind=AxisType.Auto):
    devices = np.array(jax.devices()[: np.prod(shape)]).reshape(shape)
    names = NAMES[: len(shape)]
    return Mesh(devices, names, axis_types=(kind,) * len(shape))


def close(got, want, rtol=1e-12):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol, 1e-13)


def equal(got, want):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert np.array_equal(np.asarray(a), np.asarray(b))


def options(memory=None):
    return {"ntk": True, "demand": inn.Demand(), "memory": memory}


def memory_for(net, x, area, demand=inn.Demand(), workers=1):
    """Room for so many entries of a tile."""
    memory = None
    while True:
        parts = Parts(net, x, x, True, demand, memory, workers=workers)
        if memory is not None and parts.area <= area:
            return memory
        # With less memory, pooled networks have smaller arrays.
        memory = 8 * area * workers * program_of_one(parts).largest_of_pairs


def program_of_one(parts):
    """That of a part of one entry."""
    first = first_of(parts.x1), first_of(parts.x2)
    return program_of(parts.entry, one, parts.arrays, *first, parts.entry.parts[0])


#
# Checks
#


def check_ragged_sizes():
    """From 1 to 17 rows and columns, which devices need not divide."""
    x, y = VECTORS
    whole, alone = inn.gram(DENSE, x, y), inn.gram(DENSE, x)
    for n1, n2, shape in ((1, 1, (4, 2)), (1, 17, (2,)), (5, 2, (2, 3)), (13, 9, (4, 2))):
        part = jax.tree.map(lambda k, n1=n1, n2=n2: k[:n1, :n2], whole)
        close(inn.gram(DENSE, x[:n1], y[:n2], mesh=mesh(*shape)), part)
    for n, shape in ((1, (2, 3)), (3, (4, 2)), (17, (4, 2))):
        part = jax.tree.map(lambda k, n=n: k[:n, :n], alone)
        got = inn.gram(DENSE, x[:n], mesh=mesh(*shape))
        close(got, part)
        equal(got, jax.tree.map(lambda k: k.T, got))


def check_networks():
    x, y = SEQUENCES
    close(inn.gram(POOLED, x, y, mesh=mesh(2, 3)), inn.gram(POOLED, x, y))
    close(inn.gram(POSITIONS, x[:7], mesh=mesh(2, 3)), inn.gram(POSITIONS, x[:7]))
    x, every = x[:5], inn.Demand(inn.Pairs.ALL)
    close(
        inn.gram(POSITIONS, x, demand=every, mesh=mesh(2)),
        inn.gram(POSITIONS, x, demand=every),
    )
    x = VECTORS[0, :6]
    got = inn.gram(DENSE, x, mesh=mesh(2), ntk=False)
    assert got.ntk is None
    close(got.nngp, inn.gram(DENSE, x).nngp)


def check_several_inputs():
    net = inn.Sequential(
        [inn.Parallel([inn.Dense(4), inn.Dense(4)]), inn.FanInSum(), inn.Relu()]
    )
    net = inn.Sequential([net, inn.Dense(1)])
    x = tuple(VECTORS)
    close(inn.gram(net, x, mesh=mesh(4, 2)), inn.gram(net, x))


def check_masks():
    missing = np.arange(6) > np.arange(17)[:, None] % 5 + 1
    x = inn.Inputs(SEQUENCES[0], missing=missing)
    close(inn.gram(POOLED, x, mesh=mesh(4, 2)), inn.gram(POOLED, x))


def check_axis_types():
    """Of the mesh that is given, and of another one that is set."""
    x, y = VECTORS[:, :8]
    want, alone = inn.gram(DENSE, x, y), inn.gram(DENSE, x)
    auto, explicit = AxisType.Auto, AxisType.Explicit
    for kind, current in ((auto, explicit), (explicit, auto), (explicit, explicit)):
        given = mesh(4, 2, kind=kind)
        with jax.set_mesh(mesh(4, 2, kind=current)):
            got, half = inn.gram(DENSE, x, y, mesh=given), inn.gram(DENSE, x, mesh=given)
        close(got, want)
        close(half, alone)
        assert got.ntk.sharding == NamedSharding(given, jax.P(*NAMES))
        assert half.ntk.sharding == NamedSharding(given, jax.P(*NAMES))


def check_last_bit():
    """The same tiles are the same, wherever they are computed."""
    # Products of seven channels are where a compiler rounds otherwise if it merges them
    # with what cuts these inputs out of all.
    wide = np.random.default_rng(1).normal(size=(2, 16, 7))
    vectors = VECTORS[:, :16]
    each = [(DENSE, vectors), (DENSE, wide), (POOLED, SEQUENCES[:, :16])]
    # Roots of variances, and their inverses in another function.
    each.append((inn.Sequential([inn.Dense(4), inn.ExpNormalized()]), vectors))
    for net, (x, y) in each:
        memory = memory_for(net, x, 4)
        for args in ((x, y), (x,)):
            want = inn.gram(net, *args, memory=memory)
            for shape in ((4, 2), (2,)):
                got = inn.gram(net, *args, memory=memory, mesh=mesh(*shape))
                # Of symmetric matrices, tiles are of other shapes.
                (equal if len(args) == 2 else close)(got, want)


def check_tiles():
    """Tiles are of the size that memory has room for."""
    x, y = SEQUENCES[:, :16]
    # Of eight entries, but only of what is computed of two rows.
    memory = memory_for(POOLED, x, 8)
    tiles = ShardedGram(POOLED, x, y, mesh=auto_mesh(mesh(4, 2)), **options(memory))
    assert (tiles.programs.rows, tiles.programs.columns) == (2, 2)


def check_shardings():
    x, y = VECTORS
    for n1, n2, shape, spec in (
        (8, 6, (4, 2), ("rows", "columns")),
        (8, 5, (4, 2), ("rows", None)),
        (7, 6, (4, 2), (None, "columns")),
        (7, 5, (4, 2), (None, None)),
        (8, 5, (2,), ("rows", None)),
    ):
        on = mesh(*shape)
        got = inn.gram(DENSE, x[:n1], y[:n2], mesh=on)
        for k in (got.nngp, got.ntk):
            assert k.sharding.is_equivalent_to(NamedSharding(on, jax.P(*spec)), 2)


_COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "all-to-all",
    "collective-permute",
    "reduce-scatter",
    "collective-broadcast",
)


def check_place_of_inputs():
    """Without a mesh, matrices are on the device of the inputs."""
    device = jax.devices()[3]
    x = jax.device_put(VECTORS[0, :8], device)
    for memory in (None, memory_for(DENSE, x, 4)):
        assert inn.gram(DENSE, x, memory=memory).ntk.devices() == {device}


def check_sharded_inputs():
    """Without a mesh, in one tile and in several."""
    for kind in (AxisType.Auto, AxisType.Explicit):
        given = mesh(8, kind=kind)
        sharding = NamedSharding(given, jax.P("rows"))
        for net, each in ((DENSE, VECTORS), (POOLED, SEQUENCES)):
            x, y = each[:, :16]
            first, second = (jax.device_put(a, sharding) for a in (x, y))
            want = inn.gram(net, x, y)
            for memory in (None, memory_for(net, x, 8)):
                gram = ft.partial(
                    inn.gram, net, first, second, memory=memory, progress=False
                )
                close(gram(), want)
                # Arrays on explicit axes are of no use in a program without these.
                with jax.set_mesh(given):
                    close(jax.jit(gram)(), want)


def check_sharded_inputs_under_jit():
    """Known ones, and those that are traced too."""
    x, y = VECTORS[:, :8]
    both, alone = inn.gram(DENSE, x, y), inn.gram(DENSE, x)
    diagonal = inn.gram_diagonal(DENSE, x)
    gram = ft.partial(inn.gram, DENSE, progress=False)
    diagonal_of = ft.partial(inn.gram_diagonal, DENSE)
    for kind in (AxisType.Auto, AxisType.Explicit):
        given = mesh(8, kind=kind)
        spread = NamedSharding(given, jax.P("rows"))
        first, second = (jax.device_put(a, spread) for a in (x, y))
        with jax.set_mesh(given):
            close(jax.jit(gram)(first), alone)
            close(jax.jit(lambda y, x=first: gram(x, y))(second), both)
            close(jax.jit(diagonal_of)(first), diagonal)
            for a, b in ((first, second), (x, y)):
                on_mesh = ft.partial(gram, mesh=given)
                close(jax.jit(ft.partial(on_mesh, a, b))(), both)
                close(jax.jit(ft.partial(on_mesh, a))(), alone)
                close(jax.jit(ft.partial(diagonal_of, a))(), diagonal)


def check_within_shard_map():
    """Known arrays are not parts of what devices do each by themselves."""
    x, y = VECTORS[:, :5]
    given = mesh(8)
    fns = (
        lambda x: inn.gram(DENSE, x, progress=False).ntk.sum(),
        lambda x: inn.gram(DENSE, x, y, progress=False).ntk.sum(),
        lambda x: inn.gram_diagonal(DENSE, x).ntk.sum(),
    )
    spec = jax.P("rows")
    for fn in fns:
        for a in (x, jax.numpy.asarray(x)):
            times = lambda s, fn=fn, a=a: s * fn(a)
            each = jax.shard_map(times, mesh=given, in_specs=spec, out_specs=spec)
            want = fn(x)
            close(each(np.ones(8)), np.full(8, want))
            with jax.set_mesh(given):
                close(jax.jit(each)(np.ones(8)), np.full(8, want))


def check_stores():
    """Of inputs that are spread over axes of either kind, under `jit` too."""
    x = VECTORS[0, :16]
    want = inn.gram(DENSE, x)
    for kind in (AxisType.Auto, AxisType.Explicit):
        spread = jax.device_put(x, NamedSharding(mesh(8, kind=kind), jax.P("rows")))
        with tempfile.TemporaryDirectory() as folder:
            for a in (spread, x):
                store = ft.partial(inn.gram, DENSE, a, store=f"{folder}/k", progress=False)
                for got in (store(), jax.jit(store)()):
                    close(got, want)


def check_no_communication():
    """Programs that compute tiles need nothing of other devices."""
    # Whether of two sets, or of one with itself.
    for net, x, symmetric in ((DENSE, VECTORS, True), (POOLED, SEQUENCES, False)):
        second = None if symmetric else x[1]
        tiles = ShardedGram(net, x[0], second, mesh=auto_mesh(mesh(4, 2)), **options())
        x1, x2, at = tiles._inputs()
        at, part = tiles._on_each(at[0]), tiles.entry.parts[0]
        inputs: Any = tiles.programs.inputs
        tile: Any = tiles.programs.tile
        args = inputs(x1, x2, at)
        for lowered in (inputs.lower(x1, x2, at), tile.lower(tiles.arrays, *args, part)):
            text = lowered.compile().as_text()
            # One program, which all of the devices run.
            assert "num_partitions=8" in text
            found = [name for name in _COLLECTIVES if name in text]
            assert not found, found


def check_progress():
    done = []
    x = VECTORS[0, :16]
    memory = memory_for(DENSE, x, 4)
    inn.gram(
        DENSE, x, memory=memory, mesh=mesh(4, 2), progress=lambda *args: done.append(args)
    )
    assert done[0] == (0, 256) and done[-1] == (256, 256)
    assert sorted(done) == done and len(done) > 3


def _error(**options):
    try:
        inn.gram(DENSE, VECTORS[0], **options)
    except ValueError as error:
        return str(error)
    raise AssertionError("There was no error.")


def check_errors():
    assert "jax.sharding.Mesh" in _error(mesh=jax.devices())
    assert "jax.sharding.Mesh" in _error(mesh=8)
    assert "axis" in _error(
        mesh=Mesh(np.array(jax.devices()).reshape(2, 2, 2), tuple("abc"))
    )
    assert "axis" in _error(mesh=Mesh(np.array(jax.devices()[0]), ()))
    assert "memory" in _error(mesh=mesh(4, 2), memory=1)
    with_nan = VECTORS[0].copy()
    with_nan[3, 1] = np.nan
    for args in ((with_nan,), (VECTORS[0], with_nan)):
        try:
            inn.gram(DENSE, *args, mesh=mesh(4, 2))
        except ValueError as error:
            assert "finite" in str(error)
        else:
            raise AssertionError("There was no error.")
    large = inn.Sequential([DENSE, inn.Dense(1, W_std=1e200), inn.Dense(1, W_std=1e200)])
    try:
        inn.gram(large, VECTORS[0], mesh=mesh(4, 2))
    except ValueError as error:
        assert "overflow" in str(error)
    else:
        raise AssertionError("There was no error.")


def check_regression():
    """The posterior from matrices that are spread."""
    x, y = VECTORS
    x_test, targets = y[:8], np.sin(x[:16].sum(1, keepdims=True))
    x = x[:16]

    def posterior(k_train, k_test, k_test_test):
        posterior = inn.condition(k_train.ntk, targets, diag_reg=1e-2)
        return posterior.predict(k_test.ntk, k_test_test.ntk)

    each = (x,), (x_test, x), (x_test,)
    want = posterior(*(inn.gram(DENSE, *pair) for pair in each))
    for kind in (AxisType.Auto, AxisType.Explicit):
        on = mesh(4, 2, kind=kind)
        got = posterior(*(inn.gram(DENSE, *pair, mesh=on) for pair in each))
        close(got, want, rtol=1e-10)


def save_matrices(folder):
    """What several processes are compared with."""
    for name, k in matrices(mesh(2, 2)).items():
        np.save(folder / f"{name}.npy", np.asarray(k))


def matrices(on):
    # Devices do not divide one of the axes, of which each has all.
    x, y = SEQUENCES[:, :10]
    memory = memory_for(POOLED, x, 6)
    both = inn.gram(POOLED, x, y[:7], memory=memory, mesh=on)
    alone = inn.gram(POOLED, x, memory=memory, mesh=on)
    return {"both": both.ntk, "alone": alone.ntk}


def main(folder):
    failed = False
    checks = {name: fn for name, fn in globals().items() if name.startswith("check_")}
    for name, check in checks.items():
        try:
            check()
        except Exception:
            failed = True
            print(f"{name}:\n{traceback.format_exc()}")
    save_matrices(folder)
    sys.exit(failed)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
