"""Monte Carlo kernels: against averages over explicit Jacobians, and exact kernels."""

# Estimates have optional parts, and NumPy's types are wide.
# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false
# pyright: reportArgumentType=false, reportOperatorIssue=false, reportCallIssue=false

import functools as ft
import os
import pathlib
import signal
import subprocess
import sys

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np
import pytest
from helpers import quick_jit
from scipy import stats

import infinitenet as inn
from infinitenet._monte_carlo.deviation import deviation


KEY = jr.key(7)


def _normal(seed, *shape):
    return jr.normal(jr.key(seed), shape)


#
# Averages over explicit Jacobians
#


def _samples(draw, key, evaluate, n, ntk):
    """Both kernels of each of some networks, from their outputs and Jacobians."""

    def one(i):
        network_key = jr.fold_in(key, i)
        model = draw(network_key)
        weights, rest = eqx.partition(model, inn.trainable(model))
        fn = lambda weights: evaluate(eqx.combine(weights, rest), network_key)
        f = fn(weights)
        if not ntk:
            return f @ f.T / f.shape[1], None
        jacobian = jax.jacrev(fn)(weights)
        rows = [j.reshape(*f.shape, -1) for j in jax.tree.leaves(jacobian)]
        k = sum(jnp.einsum("nop,mop->nm", j, j) for j in rows)
        return f @ f.T / f.shape[1], k / f.shape[1]

    return quick_jit(jax.vmap(one))(jnp.arange(n))


def _layers(*layers):
    return inn.Sequential(layers)


SEQUENCES = _normal(1, 3, 6, 2)
VECTORS = _normal(2, 4, 3)
TUPLE = (VECTORS, _normal(3, 4, 2))
MASKED = inn.Inputs(SEQUENCES, missing=np.arange(6) > np.array([[5], [3], [2]]))


def _dropout(net, key):
    """Each example has a key of its own."""
    keys = jr.split(jr.fold_in(key, jnp.uint32(2**32 - 1)), len(VECTORS))
    return jax.vmap(lambda x, key: net(x, key=key))(TUPLE, keys)


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        dense = ft.partial(nn.Dense, param_dtype=jnp.float64)
        return dense(2)(jnp.tanh(dense(4)(x)))


FLAX = MLP()
HAIKU = hk.without_apply_rng(
    hk.transform(lambda x: hk.Linear(2)(jnp.tanh(hk.Linear(4)(x))))
)

# Network, inputs, and how the model drawn is evaluated, if not by `jax.vmap` of examples.
CASES = {
    "max_pool": (
        _layers(
            inn.Dense(3),
            inn.Swish(),
            inn.MaxPool((2,)),
            inn.GlobalAvgPool(),
            inn.Dense(2),
        ),
        MASKED,
        None,
    ),
    "batch_norm": (
        _layers(inn.Dense(4), inn.BatchNorm("batch"), inn.Softmax(), inn.Dense(2)),
        VECTORS,
        lambda net, key: jax.vmap(net, axis_name="batch")(VECTORS),
    ),
    "dropout": (
        _layers(
            inn.Parallel([inn.Dense(4), inn.Dense(4)]),
            inn.FanInSum(),
            inn.Dropout(0.5),
            inn.Dense(2),
        ),
        TUPLE,
        _dropout,
    ),
    "equinox": (
        lambda key: eqx.nn.MLP(3, 2, 4, 1, jnp.tanh, key=key),
        VECTORS,
        None,
    ),
    "flax": (
        (FLAX.init, FLAX.apply),
        VECTORS,
        lambda weights, key: FLAX.apply(weights, VECTORS),
    ),
    "haiku": (HAIKU, VECTORS, lambda weights, key: HAIKU.apply(weights, VECTORS)),
}


@pytest.mark.parametrize("name", CASES)
def test_is_average(name):
    net, x, evaluate = CASES[name]
    if isinstance(net, inn.AbstractLayer):
        draw = lambda key: net.init(key, jax.tree.map(lambda x: x[0], x))
    else:
        draw = (lambda key: net[0](key, x)) if isinstance(net, tuple) else net
    if evaluate is None:
        evaluate = lambda model, key: jax.vmap(model)(x)
    n, rows, x1, x2 = 5, slice(None), x, None
    if name == "equinox":
        rows, x1, x2 = slice(1), x[:1], x
    # Derivatives take most of the time, and do not depend on how networks are drawn.
    ntk = name in ("max_pool", "batch_norm", "equinox")
    nngp, tangent = _samples(draw, KEY, evaluate, n, ntk)
    estimate = inn.monte_carlo_gram(net, KEY, x1, x2, n_samples=n, ntk=ntk)
    assert estimate.n_samples == n and estimate.reached is None
    assert (estimate.gram.ntk is None) is not ntk
    for name, samples in (("nngp", nngp), ("ntk", tangent))[: 1 + ntk]:
        samples = np.asarray(samples)[:, rows]
        k, se = getattr(estimate.gram, name), getattr(estimate.standard_error, name)
        np.testing.assert_allclose(k, samples.mean(0), rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(se, stats.sem(samples), rtol=1e-9, atol=1e-14)


#
# Statistics
#


def _one_hidden_layer(width, outputs, nonlinearity):
    """Its kernels are unbiased whatever the width."""
    return _layers(inn.Dense(width, 1.5, 0.2), nonlinearity, inn.Dense(outputs, 1.2, 0.3))


def _arrays(tree):
    return list(map(np.asarray, jax.tree.leaves(tree)))


@pytest.fixture(scope="module")
def repeated():
    """Estimates of 400 keys, and the kernel."""
    net = _one_hidden_layer(16, 8, inn.Erf())
    x = jnp.eye(3) + 0.3 * _normal(4, 3, 3)
    estimate = quick_jit(
        jax.vmap(lambda key: inn.monte_carlo_gram(net, key, x, n_samples=(4, 32)))
    )
    return estimate(jr.split(jr.key(11), 400)), inn.gram(net, x)


def test_unbiased(repeated):
    estimate, exact = repeated
    for mean, k in zip(*map(_arrays, (estimate.gram, exact)), strict=True):
        z = (np.mean(mean, 0) - k) / stats.sem(mean, axis=0)
        assert np.max(np.abs(z)) < 3.5


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_coverage(repeated, level):
    estimate, exact = repeated
    for record in estimate.records[1:]:
        lower, upper = record.interval(level)
        for low, high, k in zip(*map(_arrays, (lower, upper, exact)), strict=True):
            covered = np.mean((low <= k) & (k <= high), axis=0)
            # Of each of 9 entries: three standard deviations are at most 5 %.
            assert np.max(np.abs(covered - level)) < 0.055
            assert abs(np.mean(covered) - level) < 0.03


def test_error_falls_with_samples(repeated):
    estimate, exact = repeated
    for name in ("nngp", "ntk"):
        k = np.asarray(getattr(exact, name))
        errors = [np.asarray(getattr(r.gram, name)) - k for r in estimate.records]
        squares = np.stack([np.mean(np.square(e), axis=(1, 2)) for e in errors])
        # Over blocks of keys, for the error of the slope.
        blocks = squares.reshape(2, 10, -1).mean(-1)
        logs = np.log([record.n_samples for record in estimate.records])
        slopes = np.polyfit(logs, np.log(blocks) / 2, 1)[0]
        assert abs(slopes.mean() + 0.5) < 3 * stats.sem(slopes)
        assert stats.sem(slopes) < 0.03


def test_standard_error(repeated):
    # The mean of its square is the variance of the estimates.
    estimate, exact = repeated
    for k, se in zip(*map(_arrays, (estimate.gram, estimate.standard_error)), strict=True):
        ratio = np.mean(np.square(se), 0) / np.var(k, axis=0, ddof=1)
        assert np.max(np.abs(ratio - 1)) < 0.25
    # z-scores are of Student's distribution, of 31 degrees of freedom.
    comparison = jax.vmap(lambda e: e.compare(exact))(estimate)
    for each in (comparison.nngp, comparison.ntk):
        assert abs(np.mean(np.square(each.z)) - 31 / 29) < 0.1


def test_convergence_in_width(tmp_path):
    # The variance in the second hidden layer is a mean over the first one, of relative
    # variance 5 / width, and the kernel is proportional to the mean of its square.
    dense = ft.partial(inn.Dense, parameterization="standard")
    net = lambda width: _layers(dense(width), inn.Relu(), dense(width), inn.Monomial(2))
    x, widths = jnp.ones((1, 2)), (4, 16)
    folder = tmp_path / "new" / "folder"
    options = {"checkpoint": folder, "progress": False}
    c = inn.monte_carlo_convergence(net, widths, KEY, x, n_samples=(9, 4000), **options)
    assert c.ntk.shape == c.nngp.shape == c.nngp_sampling.shape == (2, 2)
    for i, width in enumerate(widths):
        assert abs(c.nngp[i, 1] - 5 / width) < 3 * c.nngp_sampling[i, 1]
        np.testing.assert_allclose(
            c.ntk_sampling[i, 0] * 3 / 4000**0.5, c.ntk_sampling[i, 1]
        )
    order = np.log(c.ntk[0, 1] / c.ntk[1, 1]) / np.log(4)
    assert abs(order - 1) < 0.3
    # What is in the folder is not computed again.
    seen = []
    options["progress"] = lambda done, total: seen.append((done, total))
    again = inn.monte_carlo_convergence(net, widths, KEY, x, n_samples=4000, **options)
    assert seen == [(4000, 8000), (8000, 8000)]
    np.testing.assert_array_equal(again.nngp, c.nngp[:, 1:])
    # Given, rather than computed, and twice as large.
    half = jax.tree.map(lambda k: 2 * k, inn.gram(net(1), x))
    options["exact"] = half
    other = inn.monte_carlo_convergence(net, widths, KEY, x, n_samples=4000, **options)
    np.testing.assert_allclose(other.nngp, np.abs(c.nngp[:, 1:] - 1) / 2)
    assert "4 to 16 and up to 4000 networks" in repr(c)


#
# Runs
#


SMALL = _layers(inn.Dense(2), inn.Relu(), inn.Dense(2))


def _run(net=SMALL, key=KEY, x=VECTORS, **options):
    options = {"ntk": False, "progress": False} | options
    return inn.monte_carlo_gram(net, key, x, **options)


def _assert_same(a, b):
    """Bit by bit."""
    assert a.n_samples == b.n_samples
    for x, y in zip(*map(_arrays, (a, b)), strict=True):
        np.testing.assert_array_equal(x, y)


def test_samples_are_of_their_own_keys():
    records = _run(n_samples=(1, 2, 3, 7)).records
    assert [record.n_samples for record in records] == [1, 2, 3, 7]
    _assert_same(records[-1], _run(n_samples=7).records[0])
    _assert_same(_run(key=jr.key_data(KEY), n_samples=7), _run(n_samples=7))
    # Mean of three, less that of two.
    k = 3 * records[2].gram.nngp - 2 * records[1].gram.nngp
    net = SMALL.init(jr.fold_in(KEY, 2), VECTORS[0])
    f = jax.vmap(net)(VECTORS)
    np.testing.assert_allclose(k, f @ f.T / 2, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(
        records[1].std.nngp, np.abs(k_0_less_k_1(records)) / 2**0.5, rtol=1e-9, atol=1e-14
    )


def k_0_less_k_1(records):
    return 2 * (records[0].gram.nngp - records[1].gram.nngp)


def test_samples_at_once():
    one = _run(n_samples=(3, 7, 12))
    several = _run(n_samples=(3, 7, 12), samples_at_once=5)
    for a, b in zip(*map(_arrays, (one, several)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)
    # Whatever was recorded on the way.
    straight = _run(n_samples=12, samples_at_once=5)
    _assert_same(straight.records[0], several.records[-1])


def test_rtol():
    options = {"n_samples": (10, 400), "rtol": 0.2}
    estimate = _run(**options)
    assert estimate.reached and 16 <= estimate.n_samples < 400
    assert [r.n_samples for r in estimate.records] == [10, estimate.n_samples]
    assert estimate.relative_standard_error <= 0.2
    before = _run(n_samples=estimate.n_samples - 1)
    assert before.relative_standard_error > 0.2 and before.reached is None
    _assert_same(_run(**options, samples_at_once=1), estimate)
    assert _run(n_samples=20, rtol=0.01).reached is False


def test_continues(tmp_path):
    # For more samples, for less, for other records; several times.
    file = tmp_path / "new" / "kernel.npz"
    for n_samples in (3, (2, 9), 5, (2, 4, 12), 12):
        fresh = _run(n_samples=n_samples)
        _assert_same(_run(n_samples=n_samples, checkpoint=file, save_every=0.0), fresh)
    done = []
    _run(n_samples=12, checkpoint=file, progress=lambda n, total: done.append(n))
    assert done == [12]


_script = """
import os, signal, sys
import jax
jax.config.update("jax_enable_x64", True)
import jax.numpy as jnp
import infinitenet as inn

net = inn.Sequential([inn.Dense(2), inn.Relu(), inn.Dense(2)])
x = jnp.asarray(eval(sys.argv[1]))

def progress(done, total):
    if done > 20:
        os.kill(os.getpid(), signal.SIGKILL)

inn.monte_carlo_gram(
    net, jax.random.key(7), x, n_samples=(2, 60), ntk=False, checkpoint="kernel.npz",
    save_every=0.0, progress=progress,
)
"""


def test_continues_after_kill(tmp_path):
    package = pathlib.Path(inn.__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-P", "-c", _script, repr(VECTORS.tolist())],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(package)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    file = tmp_path / "kernel.npz"
    seen = []
    progress = lambda n, total: seen.append(n)
    continued = _run(n_samples=(2, 60), checkpoint=file, progress=progress)
    # Some of the work was not done again.
    assert seen[1] - 1 > 2 and seen[-1] == 60
    _assert_same(continued, _run(n_samples=(2, 60)))


def test_other_checkpoint(tmp_path):
    file = tmp_path / "kernel.npz"
    _run(n_samples=2, checkpoint=file)
    net = _layers(inn.Dense(2, 1.1), inn.Relu(), inn.Dense(2))
    for change, name in (
        ({"key": jr.key(8)}, "`key`"),
        ({"x": VECTORS + 1e-9}, "`x1`"),
        ({"x2": VECTORS}, "`x2`"),
        ({"ntk": True}, "`ntk`"),
        ({"trace_axes": ()}, "`trace_axes`"),
        ({"net": net}, "`net`"),
        ({"net": lambda key: SMALL.init(key, VECTORS[0])}, "`net`"),
    ):
        with pytest.raises(ValueError, match=f"of another run: its .*{name}"):
            _run(**({"n_samples": 2, "checkpoint": file} | change))


def _linear(weight, x):
    return x @ weight


def _draw(scale, bad, key):
    """A linear model, or for some keys one of a bad weight."""
    weight = scale * jr.normal(key, (3, 2))
    is_bad = jr.uniform(jr.fold_in(key, 1)) < 0.1
    return inn.BatchFunction(_linear, jnp.where(is_bad, bad, weight))


def test_other_function_in_checkpoint(tmp_path):
    # Of which nothing is known but what comes out.
    file = tmp_path / "kernel.npz"
    make = lambda scale: eqx.Partial(_draw, jnp.asarray(scale), jnp.asarray(0.0))
    _run(make(1.0), n_samples=2, checkpoint=file)
    same = _run(make(1.0), n_samples=4, checkpoint=file)
    _assert_same(same, _run(make(1.0), n_samples=4))
    with pytest.raises(ValueError, match="kernel that differs from that of `net` by"):
        _run(make(1.001), n_samples=4, checkpoint=file)


def test_not_finite(tmp_path):
    draw = eqx.Partial(_draw, jnp.asarray(1.0), jnp.asarray(jnp.inf))
    keys = jax.vmap(lambda i: jr.fold_in(KEY, i))(jnp.arange(50))
    first = int(np.argmax([np.isinf(draw(key).weights[0, 0]) for key in keys]))
    assert first > 1
    file = tmp_path / "kernel.npz"
    text = f"Sample {first} is not finite.* The {first} samples before it are in .*npz"
    with pytest.raises(ValueError, match=text):
        _run(draw, n_samples=50, checkpoint=file, samples_at_once=4)
    kept = _run(draw, n_samples=first, checkpoint=file, samples_at_once=4)
    _assert_same(kept, _run(draw, n_samples=first, samples_at_once=4))
    # Its square overflows.
    large = eqx.Partial(_draw, jnp.asarray(1.0), jnp.asarray(1e90))
    with pytest.raises(ValueError, match=f"Sample {first} is not finite, or so large"):
        _run(large, n_samples=50)
    with pytest.raises(RuntimeError, match="overflow"):
        jax.block_until_ready(quick_jit(lambda x: _run(draw, x=x, n_samples=50))(VECTORS))


def test_interruption_is_kept(tmp_path):
    file = tmp_path / "kernel.npz"

    def interrupt(done, total):
        if done > 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _run(n_samples=100, checkpoint=file, progress=interrupt, save_every=1e9)
    done = []
    _run(n_samples=9, checkpoint=file, progress=lambda n, total: done.append(n))
    assert done[0] > 2


#
# Use
#


def test_gradient():
    # Kernels are proportional to the variance of the last layer.
    def loss(scale):
        net = _layers(inn.Dense(2), inn.Relu(), inn.Dense(2, scale))
        k = _run(net, n_samples=(2, 3)).gram.nngp
        return jnp.sum(k), k

    gradient, k = quick_jit(jax.grad(loss, has_aux=True))(jnp.asarray(1.0))
    np.testing.assert_allclose(gradient, 2 * np.sum(k), rtol=1e-10)
    np.testing.assert_allclose(k, _run(n_samples=3).gram.nngp, rtol=1e-12, atol=1e-14)


def test_comparison(repeated):
    several, exact = repeated
    estimate = jax.tree.map(lambda k: k[0], several)
    right = estimate.compare(exact)
    assert right.n_samples == 32 and right.nngp.consistent() and right.ntk.consistent()
    assert "NTK: relative error" in repr(right) and "inconsistent" not in repr(right)
    for each, k, mean in zip(
        (right.nngp, right.ntk), *map(_arrays, (exact, estimate.gram)), strict=True
    ):
        error = np.linalg.norm(mean - k) / np.linalg.norm(k)
        np.testing.assert_allclose(each.relative_error, error)
        assert each.within(0.999) == 1
    wrong = estimate.compare(jax.tree.map(lambda k: 1.5 * k, exact))
    assert not wrong.ntk.consistent() and not wrong.nngp.consistent()
    assert repr(wrong).count("inconsistent with sampling error alone (p < ") == 2
    assert estimate.compare(inn.Gram(exact.nngp, None)).ntk is None
    assert "relative standard error" in repr(estimate)
    with pytest.raises(ValueError, match="`k.nngp` must have shape"):
        estimate.compare(jax.tree.map(lambda k: k[:2], exact))
    with pytest.raises(ValueError, match="`k` must be a Gram"):
        estimate.compare(exact.nngp)
    with pytest.raises(ValueError, match="`level` must be above 0.79"):
        right.nngp.consistent(0.5)
    # Of all keys, at most 1 % are called inconsistent.
    z = jax.vmap(lambda estimate: estimate.compare(exact).ntk.root_mean_square)(several)
    assert np.mean(z > stats.t.ppf(0.995, 31)) < 0.015


def test_rounding_is_no_deviation():
    # As of the NTK of linear models, which is the same for all weights.
    k, zero = jnp.asarray([[1.0, 0.2], [0.2, 0.0]]), jnp.zeros((2, 2))
    for error in (0, 2 * np.finfo(float).eps):
        each = deviation(k * (1 + error) + error, zero, k, 10)
        assert np.max(np.abs(each.z)) < 1 and each.consistent()
    assert not deviation(k + 1e-9, zero, k, 10).consistent()


def test_diagonal_on_devices():
    # Of explicit axes, as `jax.make_mesh` makes them.
    mesh = jax.make_mesh((1,), ("rows",))
    diagonal = _run(n_samples=4, diagonal_axes=(0,), mesh=mesh)
    assert isinstance(diagonal.gram, inn.GramDiagonal)
    expected = jnp.diagonal(_run(n_samples=4).gram.nngp)
    np.testing.assert_allclose(diagonal.gram.nngp, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_samples": 0}, "`n_samples` must be at least 1"),
        ({"n_samples": -3}, "`n_samples` must be at least 1"),
        ({"n_samples": (4, 2)}, "`n_samples` must be at least 1, and ascend"),
        ({"n_samples": ()}, "`n_samples` must be a whole number"),
        ({"n_samples": np.array([2.5])}, "`n_samples` must be a whole number"),
        ({"rtol": 0.0, "n_samples": 50}, "`rtol` must be a positive number"),
        ({"rtol": 0.1, "n_samples": 9}, "`n_samples` must be at least 16 with `rtol`"),
        ({"samples_at_once": 0}, "`samples_at_once` must be a whole number of at least 1"),
        ({"key": jr.split(KEY, 2)}, "`key` must be a single random key"),
        ({"x": VECTORS[0]}, "`x1` must have a batch axis"),
        ({"x": VECTORS * jnp.nan}, "`x1` has 12 entries which are NaN"),
        ({"x": VECTORS[:, :0]}, "empty"),
        ({"net": 3}, "`net` must be a layer"),
        ({"net": (jnp.sin,)}, "`net` must be a pair of functions"),
        ({"net": eqx.nn.MLP(3, 2, 4, 1, key=KEY)}, r"`net\(key\)` failed"),
        ({"net": lambda key: jr.normal(key, (3, 2))}, "`net` must return a model"),
        ({"net": lambda key: SMALL}, "`model` has no weights yet"),
        ({"net": lambda key: lambda x: x}, "`model` has no weights"),
        (
            {"net": lambda key: inn.BatchFunction(lambda w, x: (x @ w, x @ w), jnp.eye(3))},
            "`net` must return one array, but it returns 2",
        ),
        (
            {"net": _layers(inn.BatchNorm("a"), inn.Dense(2), inn.BatchNorm("b"))},
            "`net` has layers `BatchNorm` of several axes",
        ),
        ({"net": _layers(inn.Conv(2, (3,)))}, "Conv"),
        ({"trace_axes": (5,)}, "`trace_axes` has axis 5"),
        ({"trace_axes": (0,)}, "`trace_axes` has axis 0"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        _run(**({"n_samples": 2} | options))


def test_one_sample_has_no_error():
    estimate = _run(n_samples=1)
    assert repr(estimate) == "<MonteCarloGram of 1 network: 4 × 4>"
    for ask in (
        lambda: estimate.standard_error,
        lambda: estimate.std,
        lambda: estimate.interval(),
        lambda: estimate.compare(estimate.gram),
        lambda: estimate.relative_standard_error,
    ):
        with pytest.raises(ValueError, match="no standard error, as `n_samples` is 1"):
            ask()
    with pytest.raises(ValueError, match="`level` must be a probability"):
        _run(n_samples=2).interval(95.0)


def test_errors_under_transformations():
    for options in ({"rtol": 0.1}, {"checkpoint": "kernel.npz"}):
        with pytest.raises(ValueError, match="`rtol` and `checkpoint` need values"):
            jax.jit(lambda x, options=options: _run(x=x, n_samples=20, **options))(VECTORS)


def test_errors_of_convergence():
    converge = ft.partial(inn.monte_carlo_convergence, key=KEY, x1=VECTORS, n_samples=2)
    layer = lambda width: inn.Dense(width)
    with pytest.raises(ValueError, match="`widths` must be positive whole numbers"):
        converge(layer, (2, 1))
    with pytest.raises(ValueError, match="`exact` must be given"):
        converge(lambda width: lambda key: None, (2,))
    with pytest.raises(ValueError, match="`exact` has no NTK"):
        converge(layer, (2,), exact=inn.gram(layer(2), VECTORS, ntk=False))
    with pytest.raises(ValueError, match="has no kernel in closed form"):
        converge(lambda width: _layers(inn.Dense(width), inn.Softmax()), (2,))
    with pytest.raises(ValueError, match="`n_samples` must go to 2 at least"):
        converge(layer, (2,), n_samples=1, ntk=False)
    with pytest.raises(ValueError, match="`exact.nngp` must have shape"):
        exact = inn.gram(layer(2), VECTORS[1:], ntk=False)
        converge(layer, (2,), exact=exact, ntk=False)


def test_plot():
    rng = np.random.default_rng(0)
    errors = jnp.asarray(rng.uniform(0.1, 1, (3, 4)))
    widths, counts = jnp.asarray([1, 2, 4]), jnp.asarray([1, 10, 100, 1000])
    c = inn.MonteCarloConvergence(widths, counts, errors, None, errors, None)
    for along, x, lines in (("samples", counts, errors), ("width", widths, errors.T)):
        ax = inn.plot.convergence(c, "nngp", along=along)
        ax.figure.canvas.draw()
        *drawn, slope = ax.get_lines()
        for line, expected in zip(drawn[::2], lines, strict=True):
            np.testing.assert_array_equal(line.get_xdata(), x)
            np.testing.assert_array_equal(line.get_ydata(), expected)
        a, b = np.asarray(slope.get_ydata())[[0, -1]]
        np.testing.assert_allclose(b / a, (x[0] / x[-1]) ** 0.5)
        assert ax.get_xscale() == ax.get_yscale() == "log"
        plt.close("all")
    with pytest.raises(ValueError, match="`convergence` has no NTK"):
        inn.plot.convergence(c)
    with pytest.raises(ValueError, match="`along` must be one of"):
        inn.plot.convergence(c, "nngp", along="depth")
