"""Gradient flow in closed form, and ensembles trained by it."""

# A prediction without covariance has `None` there.
# pyright: reportOptionalOperand=false, reportOptionalMemberAccess=false
# pyright: reportArgumentType=false, reportCallIssue=false

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
import scipy.linalg
from jax.test_util import check_grads

from infinitenet._inference.flow import gradient_flow, max_learning_rate
from infinitenet._inference.gp import condition
from infinitenet._inference.infinite_ensemble import (
    AllLayers,
    infinite_ensemble,
    LastLayer,
)
from infinitenet._matrices import Gram


_folder = pathlib.Path(__file__).parent / "oracle"
_arrays = np.load(_folder / "predict.npz")
_cases = json.loads((_folder / "predict.json").read_text())["cases"]
_cases = {case["name"]: case for case in _cases}
_trained = {"nngp": LastLayer(), "ntk": AllLayers()}


def _names(*functions):
    return [name for name, case in _cases.items() if case["function"] in functions]


def _joint(key, n=5, n_test=3, rank=8):
    """A kernel of train and test inputs: pairs dd, td, tt."""
    x = jr.normal(key, (n + n_test, rank))
    k = x @ x.T / rank
    return k[:n, :n], k[n:, :n], k[n:, n:]


def _flow_naive(k_dd, k_td, y, s, f_0, f_test_0):
    """From the exponential of the linear equation of train and test outputs together."""
    n, m = len(k_dd), len(k_td)
    big = np.block([[-k_dd, np.zeros((n, m))], [-k_td, np.zeros((m, m))]])
    change = scipy.linalg.expm(big * s) @ np.concatenate([f_0 - y, f_test_0])
    return y + change[:n], change[n:]


#
# Stored values
#


def _close(out, want):
    """To 1e-8 of the root mean square of the expected array."""
    want = np.asarray(want)
    assert out.shape == want.shape
    scale = np.sqrt(np.mean(want**2)) if np.any(want) else 1
    assert np.max(np.abs(out - want)) <= 1e-8 * scale


def _options(case):
    options = case.get("options", {})
    reg = options.get("diag_reg", 0.0)
    absolute = options.get("diag_reg_absolute_scale", False)
    return options.get("learning_rate", 1.0), {"diag_reg": reg, "absolute": absolute}


def _times(case, learning_rate):
    for name, t in case["times"].items():
        yield name, None if t is None else learning_rate * np.asarray(t)


@pytest.mark.parametrize("name", [*_names("gradient_descent_mse"), "mse_by_ode"])
def test_stored_flows(name):
    case = _cases[name]
    inputs = {k: _arrays[v] for k, v in case["inputs"].items()}
    learning_rate, reg = _options(case)
    flow = gradient_flow(inputs["k_dd"], inputs["y_train"], **reg)
    f = "fx" if name == "mse_by_ode" else "f"
    initial = inputs.get("f_train_0"), inputs.get("f_test_0")
    for time, t in _times(case, learning_rate):
        want = {k: _arrays[v] for k, v in case["outputs"].items()}
        _close(flow.train(t, initial[0]), want[f"{f}_train_{time}"])
        if "k_td" in inputs:
            _close(flow.test(t, inputs["k_td"], *initial), want[f"{f}_test_{time}"])


@pytest.mark.parametrize("name", _names("gp_inference"))
def test_stored_ensembles_at_convergence(name):
    case = _cases[name]
    inputs = {k: _arrays[v] for k, v in case["inputs"].items()}
    _, reg = _options(case)
    inputs = jax.tree.map(jnp.asarray, inputs)
    k_dd, k_td = (Gram(inputs[f"nngp_{i}"], inputs[f"ntk_{i}"]) for i in ("dd", "td"))
    k_tt = inputs["nngp_tt"] if case["with_cov"] else None
    for get in ("nngp", "ntk"):
        trained = _trained[get]
        ensemble = infinite_ensemble(k_dd, inputs["y_train"], trained=trained, **reg)
        p = ensemble.predict(None, k_td, k_tt)
        _close(p.mean, _arrays[case["outputs"][f"{get}_mean"]])
        if case["with_cov"]:
            _close(p.covariance, _arrays[case["outputs"][f"{get}_cov"]])


@pytest.mark.parametrize("get", _trained)
@pytest.mark.parametrize("name", _names("gradient_descent_mse_ensemble"))
def test_stored_ensembles(name, get):
    case = _cases[name]
    learning_rate, reg = _options(case)
    want = {k: jnp.asarray(_arrays[v]) for k, v in case["outputs"].items()}
    y = _arrays[case["inputs"]["y_train"]]
    k_dd = Gram(want["k_nngp_dd"], want["k_ntk_dd"])
    ensemble = infinite_ensemble(k_dd, y, trained=_trained[get], **reg)
    for time, t in _times(case, learning_rate):
        if "x_test" in case["inputs"]:
            k_td = Gram(want["k_nngp_td"], want["k_ntk_td"])
            k_tt = want["k_nngp_tt"] if case["with_cov"] else None
            p = ensemble.predict(t, k_td, k_tt)
        else:
            p = ensemble.predict_train(t)
        _close(p.mean, want[f"{get}_{time}_mean"])
        if case["with_cov"]:
            _close(p.covariance, want[f"{get}_{time}_cov"])


@pytest.mark.parametrize("name", _names("max_learning_rate"))
def test_stored_learning_rates(name):
    case = _cases[name]
    momentum = case["options"].get("momentum", 0.0)
    ntk = _arrays[case["inputs"]["ntk_dd"]]
    out = max_learning_rate(ntk, case["options"]["y_train_size"], momentum=momentum)
    _close(out, _arrays[case["outputs"]["max_learning_rate"]])


#
# Flows
#


@pytest.mark.parametrize("outputs", [(), (2, 2)])
@pytest.mark.parametrize("rank", [8, 3])
def test_against_expm(outputs, rank, getkey):
    k_dd, k_td, _ = _joint(getkey(), rank=rank)
    y, f_0 = jr.normal(getkey(), (2, 5, *outputs))
    f_test_0 = jr.normal(getkey(), (3, *outputs))
    t = jnp.array([[0.0, 1e-6, 0.1], [3.0, 50.0, 1000.0]])
    flow = gradient_flow(k_dd, y)
    train, test = flow.train(t, f_0), flow.test(t, k_td, f_0, f_test_0)
    assert train.shape == (2, 3, 5, *outputs)
    assert test.shape == (2, 3, 3, *outputs)
    for i in np.ndindex(t.shape):
        flat = [np.asarray(x).reshape(len(x), -1) for x in (y, f_0, f_test_0)]
        naive = _flow_naive(k_dd, k_td, flat[0], t[i] / y.size, *flat[1:])
        # The exponential of a matrix of norm 1e3 / N has lost as many ULPs.
        for out, want in zip((train[i], test[i]), naive, strict=True):
            np.testing.assert_allclose(out.reshape(want.shape), want, atol=1e-11)


def test_flow_off_the_range(getkey):
    # Not a joint kernel: test outputs grow for ever, as the exact flow does.
    k_dd, _, _ = _joint(getkey(), rank=2)
    k_td, y = jr.normal(getkey(), (3, 5)), jr.normal(getkey(), (5, 1))
    want = _flow_naive(k_dd, k_td, y, 100 / 5, 0 * y, np.zeros((3, 1)))[1]
    out = gradient_flow(k_dd, y).test(100.0, k_td)
    np.testing.assert_allclose(out, want, rtol=1e-9, atol=1e-10)


def test_gradient_descent_approaches_the_flow_at_first_order(getkey):
    k_dd, k_td, _ = _joint(getkey())
    y = jr.normal(getkey(), (5, 2))
    t, errors = 20.0, []
    flow = gradient_flow(k_dd, y)
    for steps in (100, 200, 400):
        f, f_test = np.zeros((5, 2)), np.zeros((3, 2))
        for _ in range(steps):
            gradient = (f - y) / y.size
            f = f - t / steps * k_dd @ gradient
            f_test = f_test - t / steps * k_td @ gradient
        pairs = ((f, flow.train(t)), (f_test, flow.test(t, k_td)))
        errors.append([np.abs(a - b).max() for a, b in pairs])
    order = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    np.testing.assert_allclose(order, 1, atol=0.03)


def test_largest_learning_rate(getkey):
    # Just below it gradient descent converges, and just above it does not.
    k, y = _joint(getkey())[0], jr.normal(getkey(), (5, 2))
    for momentum in (0.0, 0.8):
        largest = max_learning_rate(k, y.size, momentum=momentum)
        for factor, converges in ((0.99, True), (1.01, False)):
            rate = np.asarray(factor * largest * k / y.size)
            i = np.eye(5)
            step = np.block([[(1 + momentum) * i - rate, -momentum * i], [i, 0 * i]])
            assert (np.abs(np.linalg.eigvals(step)).max() < 1) == converges
    one = max_learning_rate(k, 5)
    np.testing.assert_array_equal(max_learning_rate(k), one)


@pytest.mark.parametrize("repeat", ["same label", "other label"])
def test_duplicates(repeat, getkey):
    # As one point with the mean of the labels and twice the rate.
    x = jr.normal(getkey(), (4, 6))
    x = jnp.concatenate([x, x[:1]])
    x_test = jr.normal(getkey(), (3, 6))
    y = jr.normal(getkey(), (5,))
    y = y.at[4].set(y[0]) if repeat == "same label" else y
    flow = gradient_flow(x @ x.T, y)
    single = condition(x[:4] @ x[:4].T, y[:4].at[0].set((y[0] + y[4]) / 2))
    want = single.predict(x_test @ x[:4].T).mean
    for t in (1e5, 1e8, 1e12, jnp.inf, None):
        out = flow.test(t, x_test @ x.T)
        np.testing.assert_allclose(out, want, rtol=1e-8)
        fit = flow.train(t)
        np.testing.assert_allclose(fit[jnp.array([0, 4])], (y[0] + y[4]) / 2)
        np.testing.assert_allclose(fit[1:4], y[1:4], rtol=1e-8)


def test_zero_kernel():
    flow = gradient_flow(jnp.zeros((3, 3)), jnp.ones(3))
    t = jnp.array([0.0, 1.0, 1e12, jnp.inf])
    np.testing.assert_array_equal(flow.train(t), 0)
    np.testing.assert_array_equal(flow.test(t, jnp.zeros((2, 3))), 0)


@hypothesis.given(
    seed=st.integers(0, 10_000),
    rank=st.integers(1, 8),
    t=st.floats(0, 1e12),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
)
@hypothesis.settings(max_examples=25)
def test_any_time(seed, rank, t, scale):
    k_dd, k_td, k_tt = (scale * k for k in _joint(jr.key(seed), rank=rank))
    # The errors on the training inputs only ever decrease.
    flow = gradient_flow(k_dd, jnp.ones(5))
    errors = jnp.linalg.norm(1 - flow.train(jnp.array([t, 2 * t, jnp.inf])), axis=1)
    assert jnp.all(jnp.diff(errors) <= 1e-12)
    assert errors[0] <= np.sqrt(5) + 1e-12
    for trained in _trained.values():
        ensemble = infinite_ensemble(Gram(k_dd, k_dd), jnp.ones(5), trained=trained)
        p = ensemble.predict(jnp.array(t), Gram(k_td, k_td), k_tt)
        assert jnp.all(jnp.isfinite(p.mean))
        lowest = jnp.linalg.eigvalsh(p.covariance)[0]
        norm = jnp.linalg.norm(jnp.block([[k_dd, k_td.T], [k_td, k_tt]]), 2)
        assert lowest >= -8 * np.finfo(float).eps * norm
        assert lowest >= -p.tolerance
        assert jnp.all(jnp.isfinite(p.std))


@hypothesis.given(seed=st.integers(0, 10_000), reg=st.floats(1e-6, 1.0))
@hypothesis.settings(max_examples=15)
def test_before_and_after(seed, reg):
    # At first the prior, and at last Gaussian-process inference.
    k_dd, k_td, k_tt = _grams(jr.key(seed))
    y = jr.normal(jr.key(seed + 1), (5, 2))
    for trained in _trained.values():
        ensemble = infinite_ensemble(k_dd, y, trained=trained, diag_reg=reg)
        before, after = (ensemble.predict(t, k_td, k_tt) for t in (0.0, jnp.inf))
        np.testing.assert_array_equal(before.mean, 0)
        np.testing.assert_allclose(before.covariance, k_tt, atol=1e-14)
        get = "ntk" if isinstance(trained, AllLayers) else "nngp"
        posterior = condition(getattr(k_dd, get), y, diag_reg=reg)
        want = posterior.predict(getattr(k_td, get), k_tt)
        np.testing.assert_allclose(after.mean, want.mean, atol=1e-8)
        if get == "nngp":
            np.testing.assert_allclose(after.covariance, want.covariance, atol=1e-9)


#
# Ensembles
#


def _grams(key):
    nngp, ntk = _joint(key), _joint(jr.fold_in(key, 1))
    return (*(Gram(*pair) for pair in zip(nngp[:2], ntk[:2], strict=True)), nngp[2])


@pytest.mark.parametrize("trained", _trained.values(), ids=_trained)
def test_ensemble_is_the_average_of_flows(trained, getkey):
    # Its moments, by linearity: outputs of flows from each direction of the prior.
    k_dd, k_td, k_tt = _grams(getkey())
    y, t = jr.normal(getkey(), (5, 2)), jnp.array([0.0, 2.0, 30.0])
    ensemble = infinite_ensemble(k_dd, y, trained=trained)
    kernels = (k_dd.ntk, k_td.ntk) if trained == AllLayers() else (k_dd.nngp, k_td.nngp)
    joint = jnp.block([[k_dd.nngp, k_td.nngp.T], [k_td.nngp, k_tt]])
    root = jnp.linalg.cholesky(joint)
    flow = gradient_flow(kernels[0], jnp.zeros((5, 8)))
    # The flow's time is divided by the number of entries of other targets.
    t_flow = t * (5 * 8) / y.size
    train = flow.train(t_flow, root[:5])
    test = flow.test(t_flow, kernels[1], root[:5], root[5:])
    p, q = ensemble.predict(t, k_td, k_tt), ensemble.predict_train(t)
    for prediction, change in ((p, test), (q, train)):
        want = change @ jnp.matrix_transpose(change)
        np.testing.assert_allclose(prediction.covariance, want, atol=1e-11)
    mean = gradient_flow(kernels[0], y)
    np.testing.assert_allclose(p.mean, mean.test(t, kernels[1]), atol=1e-13)
    np.testing.assert_allclose(q.mean, mean.train(t), atol=1e-13)
    assert ensemble.predict(t, k_td).covariance is None


@pytest.mark.parametrize("diag_reg", [0.0, 0.1])
def test_last_layer_becomes_the_posterior(diag_reg, getkey):
    k_dd, k_td, k_tt = _grams(getkey())
    y = jr.normal(getkey(), (5, 2))
    k_dd, k_td = Gram(k_dd.nngp, None), Gram(k_td.nngp, None)
    ensemble = infinite_ensemble(k_dd, y, trained=LastLayer(), diag_reg=diag_reg)
    want = condition(k_dd.nngp, y, diag_reg=diag_reg).predict(k_td.nngp, k_tt)
    out = ensemble.predict(None, k_td, k_tt)
    np.testing.assert_allclose(out.mean, want.mean, rtol=1e-9)
    np.testing.assert_allclose(out.covariance, want.covariance, atol=1e-11)


@pytest.mark.parametrize("trained", _trained.values(), ids=_trained)
def test_ensemble_before_and_after(trained, getkey):
    k_dd, k_td, k_tt = _grams(getkey())
    y = jr.normal(getkey(), (5,))
    ensemble = infinite_ensemble(k_dd, y, trained=trained)
    before = ensemble.predict(0, k_td, k_tt)
    np.testing.assert_array_equal(before.mean, 0)
    np.testing.assert_allclose(before.covariance, k_tt, atol=1e-15)
    np.testing.assert_allclose(ensemble.predict_train(0.0).covariance, k_dd.nngp)
    after = ensemble.predict_train()
    np.testing.assert_allclose(after.mean, y, rtol=1e-12)
    np.testing.assert_allclose(after.covariance, 0, atol=1e-13)
    assert after.std.max() < 1e-6


def test_second_test_set_does_not_factorise(getkey):
    k_dd, k_td, k_tt = _grams(getkey())
    ensemble = infinite_ensemble(k_dd, jnp.ones(5))
    run = lambda k: ensemble.predict(jnp.ones(3), k, k_tt)
    text = str(eqx.filter_make_jaxpr(run)(k_td)[0])
    assert "eigh" not in text
    assert "dot_general" in text


#
# Transformations
#


def _run(k_dd, k_td, k_tt, y, t, reg):
    ensemble = infinite_ensemble(k_dd, y, diag_reg=reg)
    p, q = ensemble.predict(t, k_td, k_tt), ensemble.predict_train(t)
    flow = gradient_flow(k_dd.nngp, y, diag_reg=reg)
    out = flow.train(t, 2 * y), flow.test(t, k_td.nngp, 2 * y, 1 + 0 * k_tt[:, :2])
    return p.mean, p.covariance, q.mean, q.covariance, out, max_learning_rate(k_dd.ntk)


def test_compositions(getkey):
    args = [(*_grams(getkey()), jr.normal(getkey(), (5, 2))) for _ in range(3)]
    stack = lambda *x: jnp.stack(x)
    batch, t, reg = jax.tree.map(stack, *args), jnp.arange(3.0), jnp.arange(3) / 10
    want = [_run(*arg, t[i], reg[i]) for i, arg in enumerate(args)]
    want = jax.tree.map(stack, *want)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)
    jax.tree.map(close, jax.jit(jax.vmap(_run))(*batch, t, reg), want)
    grad = jax.grad(lambda *args: sum(map(jnp.sum, jax.tree.leaves(_run(*args)))))
    want = jax.jit(grad)(*args[1], t[1], reg[1])
    out = jax.jit(jax.vmap(grad))(*batch, t, reg)
    jax.tree.map(lambda a, b: close(a[1], b), out, want)


def test_gradients(getkey):
    k_dd, k_td, k_tt = _grams(getkey())
    symmetric = lambda k: jax.tree.map(lambda k: jnp.asarray(k + k.T) / 2, k)

    @jax.jit
    def run(k_dd, k_td, k_tt, y, t, reg):
        return _run(symmetric(k_dd), k_td, symmetric(k_tt), y, t, reg)

    y, reg = jr.normal(getkey(), (5, 2)), jnp.array(0.1)
    # Central differences need times on both sides, so that none is zero.
    for t in (1e-3, 0.3, 20.0):
        args = (k_dd, k_td, k_tt, y, jnp.array(t), reg)
        check_grads(run, args, order=1, eps=1e-5, rtol=1e-5, atol=1e-6)


def test_gradients_of_degenerate_kernels(getkey):
    # Repeated eigenvalues, zero among them: along changes of the inputs, so that the
    # rank stays. JAX's derivative of eigenvectors is NaN here.
    x = jnp.concatenate([jnp.eye(3), jnp.eye(3)])
    x_test, y = jr.normal(getkey(), (2, 3)), jr.normal(getkey(), (6,))
    direction = jr.normal(getkey(), (3, 3))

    def run(h, t):
        z = x + h * jnp.concatenate([direction, direction])
        ensemble = infinite_ensemble(Gram(z @ z.T, z @ z.T), y)
        k_td = x_test @ z.T
        p = ensemble.predict(t, Gram(k_td, k_td), x_test @ x_test.T)
        q = ensemble.predict_train(t)
        arrays = p.mean, p.covariance, q.mean, q.covariance
        return jnp.concatenate([jnp.ravel(array) for array in arrays])

    value, forward, reverse = (jax.jit(f) for f in (run, jax.jacfwd(run), jax.jacrev(run)))
    for t in (0.0, 2.0, 1e3, jnp.inf):
        want = (value(1e-5, t) - value(-1e-5, t)) / 2e-5
        out = forward(0.0, t)
        np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(reverse(0.0, t), out, atol=1e-9)


def test_derivative_by_time_is_the_flow(getkey):
    k_dd, k_td, _ = _joint(getkey(), rank=3)
    y = jr.normal(getkey(), (5,))
    flow = gradient_flow(k_dd, y)
    for t in (0.0, 1.0, 100.0):
        rate = -(flow.train(t) - y) / y.size
        for run, k in ((flow.train, k_dd), (lambda t: flow.test(t, k_td), k_td)):
            out = jax.jacfwd(run)(t)
            np.testing.assert_allclose(out, k @ rate, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(jax.jacfwd(flow.train)(jnp.inf), 0)


def test_float32():
    # The smallest eigenvalues are below `n * eps` of the largest, but right.
    x = jr.normal(jr.key(0), (300, 20))
    k = 0.5 * jnp.exp((x @ x.T) / 20 - 1) + 0.5
    k = k + 1e-3 * jnp.eye(300)
    y = jr.normal(jr.key(1), (300, 1))
    t = jnp.array([1e2, 1e4])
    single = gradient_flow(k.astype(jnp.float32), y)
    out, want = single.train(t), gradient_flow(k, y).train(t)
    assert out.dtype == jnp.float32
    # They are exact to a few `eps` of the largest: to 1e-4, times `t / N` = 33.
    np.testing.assert_allclose(out, want, atol=5e-3)
    assert jnp.all(single.spectrum.eigenvalues > 0)


#
# Errors
#


_k_dd, _k_td, _k_tt = _grams(jr.key(0))
_y = jnp.ones((5, 2))
_indefinite = _k_dd.ntk - 0.5 * jnp.eye(5)


def _flow():
    return gradient_flow(_k_dd.ntk, _y)


def _ensemble(**kwargs):
    return infinite_ensemble(_k_dd, _y, **kwargs)


_bad = {
    "`ntk_train_train` must be square|square matrix": lambda: gradient_flow(_k_td.ntk, _y),
    "`y_train`.*one_hot": lambda: gradient_flow(_k_dd.ntk, jnp.arange(5)),
    "`ntk_train_train`: .* eigenvalues.*`diag_reg`": lambda: gradient_flow(_indefinite, _y),
    "`t` must not be negative": lambda: _flow().train(-1.0),
    "`t` must not be negative or NaN": lambda: _flow().test(jnp.nan, _k_td.ntk),
    "`f_train_0`.*one row for each": lambda: _flow().train(1.0, _y[:2]),
    "`f_train_0`.*the outputs of `y_train`": lambda: _flow().train(1.0, _y[:, 0]),
    "`f_test_0` must have shape \\(3,": lambda: _flow().test(1.0, _k_td.ntk, None, _y),
    "`k_test_train`.*transposed": lambda: _flow().test(1.0, _k_td.ntk.T),
    "`k_train_train.nngp` must be a square": lambda: infinite_ensemble(_k_td, _y),
    "`k_train_train.ntk`: .* eigenvalues": lambda: infinite_ensemble(
        Gram(_k_dd.nngp, _indefinite), _y
    ),
    "`k_train_train` has no NTK.*LastLayer": lambda: infinite_ensemble(
        Gram(_k_dd.nngp, None), _y
    ),
    "`k_test_train` has no NTK": lambda: _ensemble().predict(1.0, Gram(_k_td.nngp, None)),
    "`k_test_test` must have shape": lambda: _ensemble().predict(1.0, _k_td, _k_dd.nngp),
    "`k_test_train.nngp` has 15": lambda: _ensemble().predict(
        1.0, Gram(_k_td.nngp * jnp.nan, _k_td.ntk), _k_tt
    ),
    "`y_size`.*5 training examples.*it is 7": lambda: max_learning_rate(_k_dd.ntk, 7),
    "`momentum`": lambda: max_learning_rate(_k_dd.ntk, momentum=-0.1),
}


@pytest.mark.parametrize("message", _bad)
def test_bad_arguments(message):
    with pytest.raises(ValueError, match=message):
        _bad[message]()


def test_bad_values_under_jit():
    train = lambda k, t: gradient_flow(k, _y).train(t)
    for run in (eqx.filter_jit(train), eqx.filter_jit(jax.vmap(train, (None, 0)))):
        with pytest.raises(RuntimeError, match="`ntk_train_train`: .*too negative"):
            jax.block_until_ready(run(_indefinite, jnp.ones(1)))
        with pytest.raises(RuntimeError, match="`t` must not be negative"):
            jax.block_until_ready(run(_k_dd.ntk, -jnp.ones(1)))


def test_advice_mends():
    with pytest.raises(ValueError) as info:
        gradient_flow(_indefinite, _y)
    assert "absolute=True" in str(info.value)
    reg = float(str(info.value).split("raise `diag_reg` by ")[1].split()[0])
    assert jnp.all(gradient_flow(_indefinite, _y, diag_reg=reg, absolute=True).train())
