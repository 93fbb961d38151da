"""Kernel matrices in tiles."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import tile_memory

import infinitenet as inn
from infinitenet._parts import Parts
from infinitenet._tiled import TiledGram
from infinitenet._tiles import choose_area, choose_tiles
from infinitenet._workers import run_all


_net = inn.Sequential(
    [
        inn.Conv(8, (3,), padding="SAME", W_std=1.3, b_std=0.2),
        inn.Relu(),
        inn.GlobalAvgPool(),
        inn.Dense(2, 1.1, 0.1),
    ]
)
_x = np.asarray(jr.normal(jr.key(0), (11, 5, 2)))
_y = np.asarray(jr.normal(jr.key(1), (7, 5, 2)))
# Room for one to a few entries of this network: 5 x 5 positions, padded, in float64.
_few = 8 * 7 * 7 * 8 * 6


def _pairwise(net, x, y):
    kernel = jax.vmap(jax.vmap(net.kernel, (None, 0)), (0, None))(x, y)
    return kernel.nngp.array, kernel.ntk.array


def test_entries_are_kernels_of_pairs():
    gram = inn.gram(_net, _x, _y)
    for got, want in zip((gram.nngp, gram.ntk), _pairwise(_net, _x, _y), strict=True):
        assert got.shape == (11, 7)
        np.testing.assert_allclose(got, want, rtol=1e-12)
    pair = _net.kernel(_x[3], _y[2])
    np.testing.assert_allclose(gram.ntk[3, 2], pair.ntk.array, rtol=1e-12)


@pytest.mark.parametrize("memory", [_few, 3 * _few, 10 * _few])
def test_tiles_make_the_whole(memory):
    """Also for numbers of inputs that tiles do not divide."""
    whole, tiled = inn.gram(_net, _x, _y), inn.gram(_net, _x, _y, memory=memory)
    np.testing.assert_allclose(tiled.nngp, whole.nngp, rtol=1e-12)
    np.testing.assert_allclose(tiled.ntk, whole.ntk, rtol=1e-12)
    whole, tiled = inn.gram(_net, _x), inn.gram(_net, _x, memory=memory)
    np.testing.assert_allclose(tiled.nngp, whole.nngp, rtol=1e-12)
    np.testing.assert_allclose(tiled.ntk, whole.ntk, rtol=1e-12)
    assert np.array_equal(tiled.ntk, tiled.ntk.T)


def test_without_ntk():
    gram = inn.gram(_net, _x, ntk=False)
    assert gram.ntk is None
    np.testing.assert_allclose(gram.nngp, inn.gram(_net, _x).nngp, rtol=1e-12)
    pair = _net.kernel(_x[0], _x[1], ntk=False)
    assert pair.ntk is None
    # Nor is it computed: half of the operations on pairs of positions are gone.
    count = lambda ntk: str(
        jax.make_jaxpr(lambda x, y: _net.kernel(x, y, ntk=ntk).nngp.array)(_x[0], _x[1])
    ).count("f64[5,5]")
    assert count(ntk=False) < 0.6 * count(ntk=True)


def test_positions():
    """Networks without readout keep positions, equal ones or all pairs."""
    net = inn.Sequential([inn.Conv(8, (2,), W_std=1.2), inn.Relu(), inn.Conv(8, (2,))])
    same = inn.gram(net, _x, _y)
    assert same.ntk.shape == (11, 7, 3)
    every = inn.Demand(inn.Pairs.ALL)
    pairs = inn.gram(net, _x, _y, demand=every)
    assert pairs.ntk.shape == (11, 7, 3, 3)
    np.testing.assert_allclose(jnp.einsum("nmpp->nmp", pairs.ntk), same.ntk, rtol=1e-12)
    # Symmetric under an exchange of both inputs and positions.
    alone = inn.gram(net, _x, demand=every, memory=20_000)
    np.testing.assert_allclose(
        alone.ntk, inn.gram(net, _x, _x, demand=every).ntk, rtol=1e-6
    )
    assert np.array_equal(alone.ntk, jnp.transpose(alone.ntk, (1, 0, 3, 2)))


def test_pooling_of_what_has_no_positions():
    """It does nothing there, neither to marginals."""
    layers = [inn.Conv(5, (2,)), inn.GlobalAvgPool(), inn.Dense(5), inn.Relu()]
    want = inn.gram(inn.Sequential(layers), _x, _y).ntk
    twice = inn.Sequential([*layers[:2], inn.GlobalAvgPool(), *layers[2:]])
    np.testing.assert_allclose(inn.gram(twice, _x, _y).ntk, want, rtol=1e-12)
    pool = inn.Sequential([inn.Relu(), inn.GlobalAvgPool(), inn.Dense(5)])
    plain = inn.Sequential([inn.Relu(), inn.Dense(5)])
    got, want = (
        inn.gram(inn.Sequential([inn.Dense(5), inn.Repeat(block, 3)]), _x[:, 0]).ntk
        for block in (pool, plain)
    )
    np.testing.assert_allclose(got, want, rtol=1e-12)


def test_flatten_of_one_position():
    """Leaves features Gaussian, so that a nonlinearity may follow."""
    conv, rest = inn.Conv(5, (5,), W_std=1.2), [inn.Relu(), inn.Dense(2)]
    want = inn.gram(inn.Sequential([conv, inn.GlobalAvgPool(), *rest]), _x).ntk
    got = inn.gram(inn.Sequential([conv, inn.Flatten(), *rest]), _x).ntk
    np.testing.assert_allclose(got, want, rtol=1e-12)


def test_dtypes():
    single = inn.gram(_net, _x.astype(np.float32))
    assert single.nngp.dtype == single.ntk.dtype == np.float32
    assert inn.gram(_net, _x).nngp.dtype == np.float64
    half = inn.gram(_net, jnp.asarray(_x, jnp.bfloat16))
    assert half.nngp.dtype == np.float32


def test_double_precision_that_is_not_enabled():
    """Arrays of NumPy are in double precision by default: nothing warns of it."""
    with jax.enable_x64(False):
        assert inn.gram(_net, np.asarray(_x, np.float64)).ntk.dtype == jnp.float32


@pytest.mark.parametrize("transform", [jax.jit, jax.grad, lambda f: jax.jit(jax.grad(f))])
@pytest.mark.parametrize("traced", [False, True])
def test_values_that_cannot_be_seen(transform, traced):
    """Else their gradient would be zero."""
    x = _x[:2, 0]

    def kernel(a, x=x):
        layers = [inn.Dense(4), inn.Elementwise(lambda z: jnp.tanh(a * z)), inn.Dense(1)]
        return inn.gram(inn.Sequential(layers), a * x if traced else x, x).nngp.sum()

    with pytest.raises(ValueError, match="a field of an `equinox.Module`"):
        transform(kernel)(1.0)


def test_initialised_networks_have_the_same_kernel():
    net = _net.init(jr.key(0), _x[0])
    assert np.array_equal(inn.gram(net, _x).ntk, inn.gram(_net, _x).ntk)


def test_several_inputs():
    net = inn.Sequential([inn.Parallel([inn.Dense(4), inn.Dense(4, 0.5)]), inn.FanInSum()])
    a, b = _x[:, 0], _x[:, 1]
    want = a @ a.T / 2 + 0.25 * b @ b.T / 2
    np.testing.assert_allclose(inn.gram(net, (a, b)).nngp, want, rtol=1e-12)
    np.testing.assert_allclose(inn.gram(net, (a, b), (a, b)).nngp, want, rtol=1e-12)
    assert net.init(jr.key(0), (a[0], b[0]))((a[0], b[0])).shape == (4,)


def test_progress():
    calls = []
    inn.gram(_net, _x, _y, memory=_few, progress=lambda *args: calls.append(args))
    done, totals = zip(*calls, strict=True)
    assert set(totals) == {77} and done[-1] == 77 and list(done) == sorted(done)
    assert len(calls) > 3


def test_progress_of_a_single_tile():
    calls = []
    inn.gram(_net, _x, _y, progress=lambda *args: calls.append(args))
    assert calls == [(0, 77), (77, 77)]


def test_progress_bar_is_for_long_work(capsys):
    inn.gram(_net, _x)
    assert capsys.readouterr().err == ""


def test_interruption():
    """It ends at the next tile."""

    def interrupt(done, total):
        if done > 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        inn.gram(_net, _x, _y, memory=_few, progress=interrupt)


@pytest.mark.parametrize("n1, n2, area", [(1, 1, 1), (7, 5, 6), (100, 3, 20), (64, 64, 9)])
def test_choose_tiles(n1, n2, area):
    for symmetric in (False, True):
        n2 = n1 if symmetric else n2
        tiling = choose_tiles(n1, n2, area, symmetric=symmetric)
        assert tiling.rows * tiling.columns <= max(area, 1)
        covered = np.zeros((n1, n2), int)
        for row, column in tiling.tiles:
            assert 0 <= row <= n1 - tiling.rows and 0 <= column <= n2 - tiling.columns
            covered[row : row + tiling.rows, column : column + tiling.columns] += 1
        assert np.all((covered + covered.T if symmetric else covered) > 0)


def test_choose_area():
    assert choose_area(2**10, 5 * 2**13) == 5  # Of the budget.
    assert choose_area(2**10, 2**40) < 2**20  # Of the cache.
    with pytest.raises(ValueError, match="memory"):
        choose_area(2**30, 2**30)


def test_tiles_do_not_depend_on_depth():
    """Hyperparameters of many layers are not arrays of each entry."""
    x = jnp.asarray(_x.reshape(11, 10))

    def area(depth):
        net = inn.Sequential(depth * [inn.Dense(8), inn.Relu()] + [inn.Dense(1)])
        return Parts(net, x, x, ntk=True, demand=inn.Demand(), memory=2**20).area

    assert area(3) == area(40)


def test_mixed_precision():
    """All is computed in the higher one, from inputs as they are."""
    both = inn.Parallel([inn.Dense(4), inn.Dense(4)])
    net = inn.Sequential([both, inn.FanInSum(), inn.Relu(), inn.Dense(1)])
    x = _x[:, 0].astype(np.float32), _x[:, 0].astype(np.float64)
    gram, diagonal = inn.gram(net, x), inn.gram_diagonal(net, x)
    assert gram.ntk.dtype == jnp.float64
    assert np.array_equal(jnp.diag(gram.ntk), diagonal.ntk)
    same = inn.gram(net, tuple(part.astype(np.float64) for part in x))
    np.testing.assert_allclose(gram.ntk, same.ntk, rtol=1e-14)


def test_within_workers():
    """Calls within calls do not wait for each other."""
    one = lambda: inn.gram(_net, _x, memory=2 * _few).ntk
    assert len(list(run_all([one] * 4, 2))) == 4


def test_memory_of_inputs():
    """Of many channels, what is computed of each input counts too."""
    net = inn.Sequential([inn.Dense(8), inn.Relu(), inn.Dense(1)])
    x, memory = jnp.ones((100, 5000)), 2**22
    parts = Parts(net, x, x, ntk=True, demand=inn.Demand(), memory=memory)
    tiling = TiledGram(net, x, x, ntk=True, demand=inn.Demand(), memory=memory).tiling
    used = tile_memory(parts, x[: tiling.rows], x[: tiling.columns])
    assert parts.workers * (used.temp_size_in_bytes + used.output_size_in_bytes) < memory


def test_peak_memory_is_bounded():
    """Pooled 32x32 images in a fresh process, tile by tile."""
    program = """
import resource
import numpy as np
import infinitenet as inn

layers = 2 * [inn.Conv(8, (3, 3), padding="SAME"), inn.Relu()]
net = inn.Sequential([*layers, inn.GlobalAvgPool(), inn.Dense(1)])
x = np.random.default_rng(0).normal(size=(3, 32, 32, 3)).astype("float32")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
inn.gram(net, x, x[:1])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    out = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    # A pair has arrays of 4 MiB; the rest is the compiler.
    assert int(out.stdout) < 300


def test_repr_of_layers():
    """As they would be written."""
    for text in (
        "GlobalAvgPool()",
        "Polynomial([1, 0.5])",
        "Index((slice(None, None, 2),))",
        "Dropout(0.5)",
    ):
        assert repr(eval(f"inn.{text}")) == text
    assert repr(inn.Elementwise(jnp.arctan)) == "Elementwise(arctan)"


def test_repr_of_parameterization():
    assert repr(inn.Dense(8, parameterization="standard")) == (
        "Dense(8, parameterization='standard')"
    )
    net = inn.Dense(8, 2.0, parameterization="standard", s=(1, 2))
    assert repr(net) == (
        "Dense(8, W_std=2, parameterization=StandardParameterization((1, 2)))"
    )


def test_repr():
    net = inn.Sequential([inn.Conv(8, (3, 3), (2, 2), b_std=0.1), inn.Residual(inn.Relu())])
    assert repr(net) == (
        "Sequential([\n"
        "    Conv(8, (3, 3), strides=(2, 2), b_std=0.1),\n"
        "    Residual(Relu()),\n"
        "])"
    )
