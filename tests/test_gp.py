"""Gaussian-process regression on kernel matrices."""

# A prediction without covariance has `None` there.
# pyright: reportOptionalOperand=false, reportOptionalMemberAccess=false
# pyright: reportArgumentType=false, reportCallIssue=false

import functools as ft
import json
import pathlib

import equinox as eqx
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.stats
from jax.test_util import check_grads

from infinitenet._inference import cholesky
from infinitenet._inference.gp import condition


_folder = pathlib.Path(__file__).parent / "oracle"
_arrays = np.load(_folder / "predict.npz")
_cases = json.loads((_folder / "predict.json").read_text())["cases"]
_cases = {c["name"]: c for c in _cases if c["function"] == "gp_inference"}


def _kernels(seed=0, n=6, n_test=4):
    """Of smooth functions, with a little noise so that none is singular."""
    x = np.random.default_rng(seed).normal(size=(n + n_test, 3))
    k = np.exp(-((x[:, None] - x[None]) ** 2).sum(-1) / 4) + 1e-3 * np.eye(n + n_test)
    k = jnp.asarray(k)
    return k[:n, :n], k[n:, :n], k[n:, n:]


def _naive(k_dd, k_td, k_tt, y, noise):
    inverse = np.linalg.inv(k_dd + noise * np.eye(len(k_dd)))
    mean = np.tensordot(k_td @ inverse, y, 1)
    return mean, k_tt - k_td @ inverse @ k_td.T


def _close(out, want, rtol):
    """Relative to the root mean square of the expected array."""
    want = np.asarray(want)
    assert out.shape == want.shape
    assert np.max(np.abs(out - want)) <= rtol * np.sqrt(np.mean(want**2))


@pytest.mark.parametrize("name", _cases)
def test_stored_values(name):
    # `ntk` are trained ensembles: in test_flow.py.
    case = _cases[name]
    inputs = {k: _arrays[v] for k, v in case["inputs"].items()}
    reg = case["options"].get("diag_reg", 0.0)
    absolute = case["options"].get("diag_reg_absolute_scale", False)
    for get in set(case["get"]) - {"ntk"}:
        k = get.removesuffix("gp") if get == "ntkgp" else get
        k_dd, k_td, k_tt = (inputs[f"{k}_{pair}"] for pair in ("dd", "td", "tt"))
        posterior = condition(k_dd, inputs["y_train"], diag_reg=reg, absolute=absolute)
        p = posterior.predict(k_td, k_tt if case["with_cov"] else None)
        outputs = case["outputs"]
        _close(p.mean, _arrays[outputs[f"{get}_mean"]], 1e-8)
        if case["with_cov"]:
            _close(p.covariance, _arrays[outputs[f"{get}_cov"]], 1e-8)


@pytest.mark.parametrize("outputs", [(), (2, 3)])
@pytest.mark.parametrize("absolute", [False, True])
def test_against_inverse(outputs, absolute, getkey):
    k_dd, k_td, k_tt = _kernels()
    k_dd = 2 * k_dd
    y = jr.normal(getkey(), (6, *outputs))
    posterior = condition(k_dd, y, diag_reg=0.1, absolute=absolute)
    p = posterior.predict(k_td, k_tt)
    noise = 0.1 if absolute else 0.1 * np.trace(k_dd) / 6
    mean, covariance = _naive(k_dd, k_td, k_tt, y, noise)
    np.testing.assert_allclose(p.mean, mean, rtol=1e-10)
    np.testing.assert_allclose(p.covariance, covariance, rtol=1e-10, atol=1e-12)
    alone = posterior.predict(k_td)
    np.testing.assert_array_equal(alone.mean, p.mean)
    assert alone.covariance is None
    only = posterior.predict(k_td, jnp.diagonal(k_tt))
    assert only.covariance is None
    np.testing.assert_allclose(only.variance, np.diag(covariance), rtol=1e-10)


def test_interpolates():
    k_dd, _, _ = _kernels()
    y = jnp.arange(6.0)
    posterior = condition(k_dd, y)
    p = posterior.predict(k_dd, k_dd)
    np.testing.assert_allclose(p.mean, y, atol=1e-11)
    assert p.std.max() < 1e-6
    # Some of these are negative before they are clipped.
    assert posterior.predict(k_dd, jnp.diagonal(k_dd)).variance.min() >= 0


@pytest.mark.parametrize("outputs", [(), (2,)])
def test_log_marginal_likelihood(outputs, getkey):
    k_dd, _, _ = _kernels()
    y = jr.normal(getkey(), (6, *outputs))
    out = condition(k_dd, y, diag_reg=0.2, absolute=True).log_marginal_likelihood()
    normal = scipy.stats.multivariate_normal(np.zeros(6), k_dd + 0.2 * np.eye(6))
    want = normal.logpdf(np.asarray(y).reshape(6, -1).T).sum()
    np.testing.assert_allclose(out, want, rtol=1e-11)


def test_noise_of_each_example(getkey):
    k_dd, k_td, k_tt = _kernels()
    y, noise = jr.normal(getkey(), (6, 2)), jr.uniform(getkey(), (6,))
    p = condition(k_dd, y, diag_reg=noise, absolute=True).predict(k_td, k_tt)
    mean, covariance = _naive(k_dd + jnp.diag(noise), k_td, k_tt, y, 0)
    np.testing.assert_allclose(p.mean, mean, rtol=1e-10)
    np.testing.assert_allclose(p.covariance, covariance, rtol=1e-9, atol=1e-12)
    relative = condition(3 * k_dd, y, diag_reg=noise)
    expected = jnp.mean(jnp.diagonal(3 * k_dd)) * noise
    np.testing.assert_allclose(relative.noise, expected, rtol=1e-14)


@pytest.mark.parametrize("noise", ["the same", "other", "of each"])
def test_extend(noise, getkey):
    k, y = _kernels(n=9)[0], jr.normal(getkey(), (9, 2))
    first = {"the same": 0.1, "other": 0.2, "of each": jnp.linspace(0.1, 0.6, 6)}[noise]
    new = {"the same": None, "other": 0.3, "of each": jnp.linspace(0.7, 0.9, 3)}[noise]
    reg = (
        0.1
        if noise == "the same"
        else jnp.zeros(9).at[:6].set(first).at[6:].set(jnp.asarray(new))
    )
    want = condition(k, y, diag_reg=reg, absolute=True)
    out = condition(k[:6, :6], y[:6], diag_reg=first, absolute=True)
    # One, then two.
    cut = (lambda x, a, b: x[a:b] if jnp.ndim(x) else x) if new is not None else None
    for a, b in ((6, 7), (7, 9)):
        added = None if cut is None else cut(new, a - 6, b - 6)
        out = out.extend(k[a:b, :a], k[a:b, a:b], y[a:b], noise=added)
    same = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)
    jax.tree.map(
        same, (out.y_train, out.factor, out.weights), (y, want.factor, want.weights)
    )
    same(out.log_marginal_likelihood(), want.log_marginal_likelihood())
    same(out.noise, want.noise)


def _run(k_dd, k_td, k_tt, y, reg):
    posterior = condition(k_dd, y, diag_reg=reg)
    p = posterior.predict(k_td, k_tt)
    variance = posterior.predict(k_td, jnp.diagonal(k_tt)).variance
    sample = p.sample(jr.key(0), 2)
    return p.mean, p.std, variance, sample, posterior.log_marginal_likelihood()


def test_transformations(getkey):
    # All compositions agree with the plain function.
    y = jr.normal(getkey(), (3, 6, 2))
    reg = jnp.array([0.0, 0.1, 0.2])
    ks = jax.tree.map(lambda *k: jnp.stack(k), *[_kernels(seed) for seed in range(3)])
    want = [_run(*(k[i] for k in ks), y[i], reg[i]) for i in range(3)]
    want = jax.tree.map(lambda *x: jnp.stack(x), *want)
    close = ft.partial(np.testing.assert_allclose, rtol=1e-7, atol=1e-9)
    jax.tree.map(close, jax.jit(jax.vmap(_run))(*ks, y, reg), want)
    posteriors = eqx.filter_vmap(condition)(ks[0], y)
    means = eqx.filter_vmap(lambda p, k: p.predict(k).mean)(posteriors, ks[1])
    close(means[0], want[0][0])


def test_gradients(getkey):
    k_dd, k_td, k_tt = _kernels(n=4, n_test=2)
    y = jr.normal(getkey(), (4,))
    symmetric = lambda k: jnp.asarray(k + k.T) / 2

    @jax.jit
    def run(k_dd, k_td, k_tt, y, reg):
        return _run(symmetric(k_dd), k_td, symmetric(k_tt), y, reg)

    args = (k_dd, k_td, k_tt, y, jnp.array(0.1))
    check_grads(run, args, order=1, eps=1e-6, rtol=1e-5, atol=1e-5)


def test_second_test_set_does_not_factorise(getkey):
    k_dd, k_td, k_tt = _kernels()
    posterior = condition(k_dd, jnp.ones(6))
    text = str(jax.make_jaxpr(lambda k: posterior.predict(k, k_tt).covariance)(k_td))
    assert "cholesky" not in text
    assert "triangular_solve" in text


def test_variance_forms_no_square():
    k_dd, k_td, _ = _kernels(n_test=7)
    posterior = condition(k_dd, jnp.ones(6))
    run = lambda k: posterior.predict(k, jnp.ones(7)).variance
    assert "f64[7,7]" not in str(jax.make_jaxpr(run)(k_td))


@hypothesis.given(
    seed=st.integers(0, 10_000),
    noise=st.floats(1e-6, 1.0),
    scale=st.floats(1e-6, 1e6),
)
@hypothesis.settings(max_examples=20)
def test_covariance_is_positive(seed, noise, scale):
    k_dd, k_td, k_tt = (scale * k for k in _kernels(seed))
    # The same inputs once more: their variances are next to nothing.
    k_td, k_tt = jnp.block([[k_td], [k_dd]]), jnp.block([[k_tt, k_td], [k_td.T, k_dd]])
    p = condition(k_dd, jnp.ones(6), diag_reg=noise).predict(k_td, k_tt)
    lowest = jnp.linalg.eigvalsh(p.covariance)[0]
    assert lowest >= -p.tolerance
    assert p.tolerance < 1e-10 * scale
    assert jnp.all(jnp.isfinite(p.sample(jr.key(0), 2)))


def test_float32():
    k_dd, k_td, k_tt = (k.astype(jnp.float32) for k in _kernels())
    y = jnp.arange(6.0)
    p = condition(k_dd, y, diag_reg=0.1).predict(k_td, k_tt)
    assert p.mean.dtype == p.covariance.dtype == p.std.dtype == jnp.float32
    assert p.sample(jr.key(0), 1).dtype == jnp.float32
    mean, _ = _naive(*_kernels(), y, 0.1 * 1.001)
    np.testing.assert_allclose(p.mean, mean, rtol=1e-4)


#
# Errors
#


def _duplicates():
    x = np.array([[0.0], [1.0], [1.0], [2.0]])
    return jnp.asarray(np.exp(-((x - x.T) ** 2)))


@pytest.mark.parametrize(
    "k", [_duplicates(), jnp.ones((3, 3)), jnp.zeros((2, 2)), -jnp.eye(2)]
)
def test_singular(k):
    y = jnp.ones(len(k))
    message = "not positive definite to working precision.*`diag_reg`"
    with pytest.raises(ValueError, match="`k_train_train`: .* Its eigenvalues are"):
        condition(k, y)
    with pytest.raises(ValueError, match=message):
        condition(k, y)
    run = eqx.filter_jit(lambda k: condition(k, y).weights)
    with pytest.raises(RuntimeError, match=message):
        jax.block_until_ready(run(k))
    with pytest.raises(RuntimeError, match=message):
        jax.grad(lambda k: jnp.sum(condition(k, y).weights))(k)


def test_advice_mends_singular():
    k = _duplicates()
    with pytest.raises(ValueError) as info:
        condition(k, jnp.ones(4))
    reg = float(str(info.value).split(" or by ")[1].split(",")[0])
    assert reg < 1e-12
    assert jnp.all(jnp.isfinite(condition(k, jnp.ones(4), diag_reg=reg).weights))


_k_dd, _k_td, _k_tt = _kernels()
_y = jnp.ones(6)
_bad = {
    "`k_train_train`": lambda: condition(_k_td, _y),
    "`y_train`.*one_hot": lambda: condition(_k_dd, jnp.arange(6)),
    "`y_train` must have shape \\(6,": lambda: condition(_k_dd, jnp.ones(5)),
    "`y_train` has 6 entries": lambda: condition(_k_dd, _y * jnp.nan),
    "`diag_reg`": lambda: condition(_k_dd, _y, diag_reg=-1.0),
    "`k_test_train`.*transposed": lambda: condition(_k_dd, _y).predict(_k_td.T),
    "`k_test_test` must have": lambda: condition(_k_dd, _y).predict(_k_td, _k_dd),
    "`k_test_test` must be symm": lambda: condition(_k_dd, _y).predict(_k_td, _k_td[:, :4]),
    "`k_test_test` must have shape \\(4,": lambda: condition(_k_dd, _y).predict(_k_td, _y),
    "`k_test_test` has 4 entries": lambda: condition(_k_dd, _y).predict(
        _k_td, jnp.full(4, jnp.inf)
    ),
    "far below zero.*same network": lambda: (
        condition(_k_dd, _y).predict(_k_td, -jnp.ones(4)).variance
    ),
    "no covariance": lambda: (
        condition(_k_dd, _y).predict(_k_td, jnp.ones(4)).sample(jr.key(0), 1)
    ),
    "`diag_reg` must be a scalar, or": lambda: condition(_k_dd, _y, diag_reg=_y[:2]),
    "`noise` differs between": lambda: condition(_k_dd, _y, diag_reg=_y).extend(
        _k_td, _k_tt, _y[:4]
    ),
    "`k_new_new`: it is not positive definite": lambda: condition(_k_dd, _y).extend(
        _k_dd[:2], _k_dd[:2, :2], _y[:2]
    ),
    "`k_new_train`.*transposed": lambda: condition(_k_dd, _y).extend(_k_td.T, _k_tt, _y),
    "`k_new_new` must have shape": lambda: condition(_k_dd, _y).extend(_k_td, _k_dd, _y),
    "`y_new`.*one row": lambda: condition(_k_dd, _y).extend(_k_td, _k_tt, _y),
    "far below zero": lambda: condition(_k_dd, _y).predict(2 * _k_dd, _k_dd).std,
}


@pytest.mark.parametrize("message", _bad)
def test_bad_arguments(message):
    with pytest.raises(ValueError, match=message):
        _bad[message]()


def test_bad_variance_under_jit():
    posterior = condition(_k_dd, _y)
    run = eqx.filter_jit(lambda k: posterior.predict(_k_td, k).variance)
    with pytest.raises(RuntimeError, match="far below zero"):
        jax.block_until_ready(run(-jnp.ones(4)))


def test_large_factors_are_as_small_ones():
    # Large ones are computed block by block.
    n = 2049
    x = np.random.default_rng(0).normal(size=(n, 5))
    k = jnp.asarray(np.exp(x @ x.T / 5 - 1))
    y = jnp.asarray(x[:, :2])
    noise = jnp.linspace(0.1, 0.2, n)
    posterior = condition(k, y, diag_reg=noise, absolute=True)
    factor = scipy.linalg.cholesky(np.asarray(k) + np.diag(noise), lower=True)
    np.testing.assert_allclose(posterior.factor, factor, atol=1e-10)
    weights = scipy.linalg.cho_solve((factor, True), np.asarray(y))
    np.testing.assert_allclose(posterior.weights, weights, atol=1e-9)
    whole = k.nbytes
    compiled = cholesky._by_columns.lower(k, noise).compile().memory_analysis()
    assert compiled.output_size_in_bytes == whole
    assert compiled.temp_size_in_bytes < 0.5 * whole
    for solve in (cholesky._forwards, cholesky._backwards):
        compiled = solve.lower(k, y).compile().memory_analysis()
        assert compiled.temp_size_in_bytes < 0.3 * whole
