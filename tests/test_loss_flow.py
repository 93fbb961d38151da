"""Gradient flow on any loss."""

import functools as ft
import json
import pathlib

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import optimistix
import pytest
from jax.flatten_util import ravel_pytree
from jax.test_util import check_grads

import infinitenet as inn
from infinitenet._inference.flow import gradient_flow
from infinitenet._inference.integration import choose_solver
from infinitenet._inference.loss_flow import _check_schedule, loss_flow
from infinitenet._inference.losses import (
    half_mse,
    huber,
    sigmoid_cross_entropy,
    softmax_cross_entropy,
)
from infinitenet._inference.optimisers import GradientDescent, HeavyBall, Nesterov


_folder = pathlib.Path(__file__).parent / "oracle"
_arrays = np.load(_folder / "predict.npz")
_cases = json.loads((_folder / "predict.json").read_text())["cases"]
_cases = {c["name"]: c for c in _cases if c["function"] == "gradient_descent"}
_tsit5 = diffrax.Tsit5()


def _exactly(t):
    return diffrax.ClipStepSizeController(
        diffrax.PIDController(rtol=1e-11, atol=1e-12), step_ts=t
    )


class _Loss(eqx.Module):
    """One program for both: the share of the cross-entropy, as a mean over all entries."""

    share: jax.Array

    def __call__(self, f, y):
        entropy = softmax_cross_entropy(f, y) / f.shape[-1]
        return self.share * entropy + (1 - self.share) * half_mse(f, y)


_stored_times = jnp.array([0.5, 1.0, 5.0, 20.0, 50.0])


@pytest.mark.parametrize("name", _cases)
def test_stored_values(name):
    case = _cases[name]
    inputs = {k: _arrays[v] for k, v in case["inputs"].items()}
    options = case.get("options", {})
    rate, momentum = options.get("learning_rate", 1.0), options.get("momentum")
    loss = _Loss(jnp.asarray(float(case["loss"] == "cross_entropy")))
    optimiser = GradientDescent(rate) if momentum is None else HeavyBall(rate, momentum)
    flow = loss_flow(inputs["k_dd"], inputs["y_train"], loss, optimiser=optimiser)
    t = _stored_times
    controller = _exactly(t)
    f_0 = inputs.get("f_train_0")
    out = flow.solve(t, f_0, solver=_tsit5, stepsize_controller=controller)
    k_td = inputs["k_td"]
    # The stored time is this one times the root of the learning rate.
    found = {
        "fx_train": out.train,
        "fx_test": out.test(k_td, inputs.get("f_test_0")),
        "qx_train": out.train_velocity / rate**0.5,
        "qx_test": out.test_velocity(k_td) / rate**0.5,
    }
    for key, array in case["outputs"].items():
        kind, _, time = key.rpartition("_")
        want = _arrays[array]
        at = jnp.asarray(np.searchsorted(t, case["times"][time]))
        scale = np.sqrt(np.mean(want**2))
        assert found[kind][at].shape == want.shape
        assert np.max(np.abs(found[kind][at] - want)) <= 1e-8 * scale


#
# Closed forms
#


def _kernel(eigenvalues, n_test=2, seed=0):
    """Of train and test, with these eigenvalues on the training inputs."""
    rng = np.random.default_rng(seed)
    n = len(eigenvalues)
    u = np.linalg.qr(rng.normal(size=(n, n)))[0]
    root = u * np.sqrt(eigenvalues)
    test = rng.normal(size=(n_test, n)) / np.sqrt(n)
    return jnp.asarray(root @ root.T), jnp.asarray(test @ root.T)


_y, _f_0 = jr.normal(jr.key(1), (2, 6, 2))
_long = np.geomspace(10, 1e9, 20)
_wide = 3 * np.geomspace(1, 1e-8, 6)


@pytest.mark.parametrize("eigenvalues", [_wide, 3 * np.repeat([1, 0.5, 0], 2)])
def test_closed_form_over_eight_decades(eigenvalues):
    k, k_td = _kernel(eigenvalues)
    f_test_0 = jnp.ones((2, 2))
    out = loss_flow(k, _y, half_mse).solve(_long, _f_0)
    want = gradient_flow(k, _y)
    np.testing.assert_allclose(out.train, want.train(_long, _f_0), atol=1e-6)
    test = want.test(_long, k_td, _f_0, f_test_0)
    np.testing.assert_allclose(out.test(k_td, f_test_0), test, atol=1e-6)
    loss = jax.vmap(half_mse, (0, None))(out.train, _y)
    np.testing.assert_allclose(out.loss, loss, rtol=1e-12)
    velocity = -jnp.einsum("ij,tjk->tik", k, out.train - _y[None]) / _y.size
    np.testing.assert_allclose(out.train_velocity, velocity, atol=1e-12)
    velocity = -jnp.einsum("ij,tjk->tik", k_td, out.train - _y[None]) / _y.size
    np.testing.assert_allclose(out.test_velocity(k_td), velocity, atol=1e-12)
    # Thousands of times fewer than explicit ones, for all of these times.
    assert out.steps < 400
    assert "Kvaerno5" in repr(out)


def test_weight_decay():
    # It decays to the initial outputs: in each eigenvector by itself.
    k, _ = _kernel(_wide)
    decay = 1e-4
    out = loss_flow(k, _y, half_mse, weight_decay=decay).solve(_long, _f_0)
    l, u = np.linalg.eigh(np.asarray(k))
    rate = l / _y.size + decay
    share = (l / _y.size / rate) * -np.expm1(-rate * _long[:, None])
    want = np.asarray(_f_0) + np.einsum(
        "ij,tj,jk->tik", u, share, u.T @ np.asarray(_y - _f_0)
    )
    np.testing.assert_allclose(out.train, want, atol=1e-6)


def test_regularisation_and_duplicates():
    # Two equal examples of different labels, and noise on the diagonal.
    x = jr.normal(jr.key(0), (5, 3))
    x = jnp.concatenate([x, x[:1]])
    t = np.geomspace(10, 1e9, 20)
    options = {"diag_reg": 0.1, "absolute": True}
    out = loss_flow(x @ x.T, _y, half_mse, **options).solve(t, _f_0)
    want = gradient_flow(x @ x.T, _y, **options).train(t, _f_0)
    np.testing.assert_allclose(out.train, want, atol=1e-6)


#
# Rates of convergence
#


_labels = jax.nn.one_hot(jnp.array([0, 1, 2, 0, 1, 2]), 3)
_k, _k_td = _kernel(3 * np.geomspace(1, 0.01, 6))


_kvaerno5 = diffrax.Kvaerno5(root_finder=optimistix.Newton(1e-12, 1e-12))


@pytest.mark.slow
@pytest.mark.parametrize("solver, order", [(diffrax.Heun(), 2), (_kvaerno5, 5)])
def test_order_of_solvers(solver, order, getkey):
    flow = loss_flow(_k, _labels, softmax_cross_entropy)
    f_0 = 2 * jr.normal(getkey(), (6, 3))
    options = {"stepsize_controller": diffrax.ConstantStepSize(), "solver": solver}
    run = lambda dt0: flow.solve(16.0, f_0, dt0=dt0, **options).test(_k_td)
    controller = _exactly(jnp.array([16.0]))
    exact = flow.solve(16.0, f_0, solver=_tsit5, stepsize_controller=controller)
    errors = [np.abs(run(dt) - exact.test(_k_td)).max() for dt in (1.0, 0.5)]
    np.testing.assert_allclose(np.log2(errors[0] / errors[1]), order, atol=0.2)


def _gradient(f, y):
    p = np.exp(f - f.max(1, keepdims=True))
    return (p / p.sum(1, keepdims=True) - y) / len(y)


def _descend(rate, momentum, steps, *, nesterov=False):
    """Gradient descent of the weights of the linear model. `momentum`: of each step."""
    l, u = np.linalg.eigh(np.asarray(_k))
    features, y = u * np.sqrt(l), np.asarray(_labels)
    w, velocity = np.zeros((6, 3)), np.zeros((6, 3))
    for k in range(steps):
        m = momentum(k + 1)
        ahead = w + m * velocity if nesterov else w
        velocity = m * velocity - rate * features.T @ _gradient(features @ ahead, y)
        w = w + velocity
    return features @ w


# Optimiser of a learning rate; its momentum; power of the rate in the error; time in
# units of `rate ** -power`.
_descents = {
    "gradient": (GradientDescent, lambda rate: lambda k: 0.0, 1, False),
    "heavy ball": (
        lambda rate: HeavyBall(rate, momentum=1 - rate**0.5),
        lambda rate: lambda k: 1 - rate**0.5,
        0.5,
        False,
    ),
    "nesterov": (
        lambda rate: Nesterov(rate, momentum=1 - rate**0.5),
        lambda rate: lambda k: 1 - rate**0.5,
        0.5,
        True,
    ),
    "increasing": (
        Nesterov,
        lambda rate: lambda k: (k - 1) / (k + 2),
        0.5,
        True,
    ),
}


# Those in `_fast` and the stored values, of heavy-ball momentum, suffice for each change.
_fast = ("nesterov", "increasing")
_rest = [pytest.param(x, marks=pytest.mark.slow) for x in _descents if x not in _fast]
_quarters = jnp.array([0.25, 0.5, 0.75, 1.0])


@pytest.mark.parametrize("name", [*_fast, *_rest])
def test_discrete_steps_approach_the_flow(name):
    make, momentum, power, nesterov = _descents[name]
    errors = []
    for rate in (0.01, 0.0025):
        steps = round(8 * rate**-power)
        flow = loss_flow(_k, _labels, softmax_cross_entropy, optimiser=make(rate))
        out = flow.solve(steps * _quarters, solver=_tsit5).train[-1]
        naive = _descend(rate, momentum(rate), steps, nesterov=nesterov)
        errors.append(np.abs(out - naive).max())
    assert errors[1] < 0.1 * np.abs(naive).max()
    order = np.log(errors[0] / errors[1]) / np.log(4)
    np.testing.assert_allclose(order, power, atol=0.15 * power)


@pytest.mark.slow
def test_momentum_of_optax():
    # With a schedule, which multiplies the momentum there.
    rate, steps = 1e-3, 300
    schedule = optax.cosine_decay_schedule(rate, steps)
    optimiser = optax.sgd(schedule, momentum=0.97)
    l, u = np.linalg.eigh(np.asarray(_k))
    features = jnp.asarray(u * np.sqrt(l))
    loss = lambda w: softmax_cross_entropy(features @ w, _labels)

    def step(carry, _):
        w, state = carry
        update, state = optimiser.update(jax.grad(loss)(w), state)
        return (w + update, state), None

    w = jnp.zeros((6, 3))
    w = jax.lax.scan(step, (w, optimiser.init(w)), None, steps)[0][0]
    flow = loss_flow(
        _k,
        _labels,
        softmax_cross_entropy,
        optimiser=HeavyBall(schedule, momentum=0.97),  # pyright: ignore
    )
    out = flow.solve(steps).train
    np.testing.assert_allclose(out, features @ w, atol=0.05 * np.abs(out).max())


def test_linearised_finite_network(getkey):
    net = inn.Sequential([inn.Dense(5), inn.Erf(), inn.Dense(3)])
    x, x_test = jr.normal(getkey(), (4, 2)), jr.normal(getkey(), (2, 2))
    net = net.init(getkey(), x[0])
    weights, rest = eqx.partition(net, inn.trainable(net))
    flat, unravel = ravel_pytree(weights)
    apply = lambda w, x: jax.vmap(eqx.combine(unravel(w), rest))(x)
    f_0, f_test_0 = apply(flat, x), apply(flat, x_test)
    j, j_test = (jax.jacobian(apply)(flat, x) for x in (x, x_test))
    kernel = lambda a, b: jnp.einsum("iap,jbp->ijab", a, b)
    y = _labels[:4]
    flow = loss_flow(kernel(j, j), y, softmax_cross_entropy)
    out = flow.solve(20.0, f_0, solver=_tsit5)
    with pytest.raises(ValueError, match=r"shape \(n_test, 4, 3, 3\)"):
        out.test(jnp.ones((2, 4)))
    test = out.test(kernel(j_test, j), f_test_0)
    errors = []
    for steps in (200, 400):
        w = np.zeros(len(flat))
        for _ in range(steps):
            gradient = _gradient(np.asarray(f_0 + j @ w), np.asarray(y))
            w = w - 20 / steps * np.einsum("iap,ia->p", j, gradient)
        errors.append(
            [
                np.abs(out.train - f_0 - j @ w).max(),
                np.abs(test - f_test_0 - j_test @ w).max(),
            ]
        )
    errors = np.array(errors)
    assert errors.max() < 0.01
    np.testing.assert_allclose(np.log2(errors[0] / errors[1]), 1, atol=0.1)


#
# Losses
#


def test_losses():
    f, y = np.asarray(jr.normal(jr.key(0), (5, 3))), np.asarray(_labels[:5])
    p = np.exp(f) / np.exp(f).sum(1, keepdims=True)
    softmax = softmax_cross_entropy(f, y)
    np.testing.assert_allclose(softmax, -np.log(p[y == 1]).mean(), rtol=1e-12)
    q = 1 / (1 + np.exp(-f))
    want = -(y * np.log(q) + (1 - y) * np.log(1 - q)).mean()
    np.testing.assert_allclose(sigmoid_cross_entropy(f, y), want, rtol=1e-12)
    error = np.abs(f - y)
    want = np.where(error < 0.5, error**2 / 2, 0.5 * (error - 0.25)).mean()
    np.testing.assert_allclose(huber(0.5)(f, y), want, rtol=1e-12)


def test_robust_losses_are_stiff():
    # Though flat at the start.
    flow = loss_flow(_kernel(_wide)[0], 0 * _y, huber(1.0))
    one = jnp.ones(())
    solver = flow._prepare(jnp.full((6, 2), 1000.0), None, 0 * one, 1e9 * one)[2]
    assert isinstance(solver, diffrax.Kvaerno5)


def test_losses_of_labels():
    # Targets are what the loss takes.
    labels = {"labels": jnp.array([0, 1, 2, 0, 1, 2]), "name": jnp.zeros(())}

    def loss(f, y):
        fn = optax.losses.softmax_cross_entropy_with_integer_labels
        return jnp.mean(fn(f, y["labels"]))

    flow = loss_flow(_k, labels, loss)
    with pytest.raises(ValueError, match="`f_train_0` is needed"):
        flow.solve(10.0)
    of_labels, want = (
        fl._prepare(jnp.ones((6, 3)), None, jnp.zeros(()), jnp.ones(()))[0]
        for fl in (flow, loss_flow(_k, _labels, softmax_cross_entropy))
    )
    z = jr.normal(jr.key(0), (6, 3))
    np.testing.assert_allclose(of_labels.gradient(z), want.gradient(z), atol=1e-15)


def test_losses_train_ensembles(getkey):
    net = inn.Sequential([inn.Dense(4), inn.Erf(), inn.Dense(3)])
    x = jr.normal(getkey(), (6, 2))
    ensemble = inn.draw_ensemble(net, getkey(), x[0], 2)
    options = {"loss": softmax_cross_entropy, "progress": False}
    out = inn.train_ensemble(ensemble, x, _labels, optax.sgd(0.1), 3, **options)
    assert jnp.all(out.train_loss[-1] < out.train_loss[0])
    with pytest.raises(ValueError, match="shape .* of the outputs"):
        inn.train_ensemble(ensemble, x, _labels[:, :2], optax.sgd(0.1), 3, **options)


#
# Trajectories
#


_sgd = HeavyBall(0.5, momentum=0.9)
_flow = loss_flow(_k, _labels, softmax_cross_entropy, optimiser=_sgd)
_t = jnp.array([0.0, 10.0, 100.0, 1000.0])


def test_going_on():
    whole = _flow.solve(_t, solver=_tsit5)
    first = _flow.solve(_t / 10, solver=_tsit5)
    second = _flow.solve(_t + first.end.t, start=first.end, solver=_tsit5)
    np.testing.assert_allclose(first.train[-1], second.train[0], rtol=1e-12)
    # At 100, 110, 200 and 1100: again to the end of `whole`.
    at = jnp.array([100.0, 300.0, 900.0, 1000.0])
    again = _flow.solve(at, start=first.end, solver=_tsit5)
    np.testing.assert_allclose(again.train[::3], whole.train[2:], atol=1e-7)
    np.testing.assert_allclose(again.test(_k_td)[::3], whole.test(_k_td)[2:], atol=1e-7)
    velocity = whole.train_velocity[2:]
    np.testing.assert_allclose(again.train_velocity[::3], velocity, atol=1e-8)
    with pytest.raises(ValueError, match="not be before `start.t`.* 100.0, but it begins"):
        _flow.solve(_t, start=first.end)
    with pytest.raises(ValueError, match="part of `start`"):
        _flow.solve(1e4, jnp.zeros((6, 3)), start=first.end)
    other = _make(k=_joint)
    with pytest.raises(ValueError, match="on the same kernel"):
        other.solve(1e4, start=first.end)
    with pytest.raises(ValueError, match="saveat=diffrax.SaveAt"):
        whole.evaluate(1.0)


def test_dense_output_and_too_few_steps():
    calls = []
    report = lambda done, total: calls.append((done, total))
    options = {"saveat": diffrax.SaveAt(dense=True), "max_steps": 30, "progress": report}
    message = r"within `max_steps=30`, but to .* only.*solver=diffrax.Kvaerno5\(\)"
    with pytest.raises(ValueError, match=message):
        _flow.solve(_t, solver=_tsit5, **options)
    assert calls == sorted(calls)
    assert calls[0][1] == 100
    out = _flow.solve(_t, solver=_tsit5, throw=False, **options)
    assert "not reached, which hold the state at that time" in repr(out)
    assert out.result == diffrax.RESULTS.max_steps_reached
    assert out.steps == 30
    np.testing.assert_array_equal(out.reached, _t <= out.end.t)
    assert not out.reached[-1]
    # Interpolation, and what unreached times hold.
    t = out.end.t * _quarters
    want, some = _flow.solve(t, solver=_tsit5), out.evaluate(t)
    np.testing.assert_allclose(out.train[-1], want.train[-1], atol=1e-7)
    np.testing.assert_allclose(some.test(_k_td), want.test(_k_td), atol=1e-6)
    for name in ("t", "train", "train_velocity", "loss"):
        np.testing.assert_allclose(getattr(some, name), getattr(want, name), atol=1e-6)
        assert jnp.all(jnp.isfinite(getattr(out, name)))
    with pytest.raises(ValueError, match="reached, from 0 to .*: it has 2000"):
        out.evaluate(2000.0)
    with pytest.raises(RuntimeError, match="not within the times"):
        jax.block_until_ready(eqx.filter_jit(lambda t: out.evaluate(t).train)(1e4 * t))


def test_loss_below():
    t = jnp.array([1.0, 1e4])
    out = _flow.solve(t, event=inn.loss_below(0.3), solver=_tsit5)
    np.testing.assert_allclose(out.loss[1], 0.3, rtol=1e-5)
    np.testing.assert_array_equal(out.reached, [True, False])
    assert "1 of them not reached" in repr(out)
    assert "by an event" in repr(out)
    # Also if it is so from the start.
    out = _flow.solve(t, event=inn.loss_below(10.0), solver=_tsit5)
    np.testing.assert_array_equal(out.reached, False)
    np.testing.assert_array_equal(out.train, 0)
    assert out.end.t == 0


@pytest.mark.slow
def test_steady_state():
    k, _ = _kernel(3 * np.geomspace(1, 0.1, 6))
    t, event = jnp.array([1.0, 1e5]), inn.steady_state(1e-9, 1e-9)
    out = loss_flow(k, _y, half_mse).solve(t, _f_0, solver=_tsit5, event=event)
    assert 1 < out.end.t < 1e4
    np.testing.assert_allclose(out.train[1], _y, atol=1e-6)


def test_choice_of_solvers():
    one = jnp.ones(())
    assert isinstance(choose_solver(10, one, 1e3 * one), diffrax.Tsit5)
    assert isinstance(choose_solver(10, one, 1e6 * one), diffrax.Kvaerno5)
    assert isinstance(choose_solver(10_000, one, 1e6 * one), diffrax.Tsit5)
    solvers = []
    jax.make_jaxpr(lambda one: solvers.append(choose_solver(10, one, one)))(one)
    assert isinstance(solvers[0], diffrax.Kvaerno5)
    assert "Tsit5" in repr(_flow.solve(_t))


@pytest.mark.slow
def test_float32():
    k, k_td = _kernel(3 * np.geomspace(1, 1e-3, 6))
    single = lambda x: x.astype(jnp.float32)
    flow = loss_flow(single(k), _y, half_mse)
    out = flow.solve(_long, single(_f_0), event=inn.loss_below(1e-3))
    want = gradient_flow(k, _y).train(_long, _f_0)
    assert out.train.dtype == out.test(single(k_td)).dtype == jnp.float32
    assert out.end.t < 1e9
    done = np.asarray(out.reached)
    np.testing.assert_allclose(out.train[done], want[done], atol=1e-4)
    np.testing.assert_allclose(out.loss[~done], 1e-3, rtol=1e-3)


#
# Transformations
#


def _run(x, x_test, y, f_0, rate, momentum, decay, t, solver=None, adjoint=None):
    """Of a kernel with repeated eigenvalues, zero among them, if `x` is so."""
    optimiser = HeavyBall(rate, momentum)
    flow = loss_flow(
        x @ x.T, y, half_mse, optimiser=optimiser, weight_decay=decay, diag_reg=0.0
    )
    out = flow.solve(t, f_0, solver=solver, adjoint=adjoint)
    return out.train, out.test(x_test @ x.T), out.train_velocity, out.loss, out.end.t


def _arguments(seed):
    x_test, y, f_0 = jr.normal(jr.key(seed), (3, 4, 2))
    rate, momentum, decay = jnp.array(0.3), jnp.array(0.5), jnp.array(0.02)
    t = jnp.array([1.0, 30.0 + seed])
    return jnp.tile(jnp.eye(2), (2, 1)), x_test, y, f_0, rate, momentum, decay, t


@pytest.mark.parametrize("batch", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_compositions_and_gradients(batch):
    # Along changes of the inputs, so that the rank stays, and eigenvalues come apart.
    each = [_arguments(seed) for seed in range(batch)]
    direction = jax.tree.map(jnp.ones_like, each[0])
    direction = (jnp.tile(jr.normal(jr.key(5), (2, 2)), (2, 1)), *direction[1:])

    def run(h, args):
        args = jax.tree.map(lambda x, dx: x + h * dx, args, direction)
        return jnp.concatenate([jnp.ravel(x) for x in _run(*args, solver=_tsit5)])

    @jax.jit
    def both(args):
        out, pull = jax.vjp(lambda args: run(0.0, args), args)
        return out, pull(jnp.linspace(1, 2, out.size))[0]

    if batch == 1:
        all_of_it = [both(*each)]
    else:
        stacked = jax.vmap(both)(jax.tree.map(lambda *x: jnp.stack(x), *each))
        all_of_it = [jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(batch)]
    for (out, gradient), args in zip(all_of_it, each, strict=True):
        np.testing.assert_allclose(out, run(0.0, args), atol=1e-7)
        change = (run(1e-4, args) - run(-1e-4, args)) / 2e-4
        want = jnp.sum(jnp.linspace(1, 2, change.size) * change)
        along = jax.tree.map(lambda g, d: jnp.sum(g * d), gradient, direction)
        np.testing.assert_allclose(sum(along), want, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["rev", "fwd"])
def test_gradients(mode):
    args = _arguments(0)
    adjoint = {"fwd": diffrax.ForwardMode(), "rev": None}[mode]

    @jax.jit
    def run(h, *args):
        x = args[0] + jnp.tile(h, (2, 1))
        return _run(x, *args[1:], solver=_tsit5, adjoint=adjoint)

    args = (jnp.zeros((2, 2)), *args)
    check_grads(run, args, order=1, modes=[mode], eps=1e-4, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_gradient_of_implicit_solver():
    # Against the closed form.
    x, _, y, f_0, *_ = _arguments(0)
    direction = jr.normal(jr.key(5), (2, 2))
    t = jnp.array([1e2, 1e5])

    def run(h, y, t, solve):
        z = x + h * jnp.tile(direction, (2, 1))
        return jnp.sum(jnp.sin(solve(z @ z.T, y, t)))

    numeric = lambda k, y, t: loss_flow(k, y, half_mse).solve(t, f_0).train
    exact = lambda k, y, t: gradient_flow(k, y).train(t, f_0)
    out, want = (
        jax.jit(jax.grad(ft.partial(run, solve=fn), (0, 1, 2)))(0.0, y, t)
        for fn in (numeric, exact)
    )
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6)
    jax.tree.map(close, out, want)


def test_errors_under_jit():
    run = eqx.filter_jit(
        lambda y, t: loss_flow(_k, y, softmax_cross_entropy).solve(
            t, solver=_tsit5, max_steps=20
        )
    )
    cases = {
        "negative": (_labels - 1 / 3, jnp.ones(1)),
        "was not solved up to `t`": (_labels, jnp.array([1e6])),
    }
    for message, args in cases.items():
        with pytest.raises(RuntimeError, match=message):
            jax.block_until_ready(run(*args).train)
    check = jax.jit(ft.partial(_check_schedule, GradientDescent(lambda t: 0.5 - t)))
    with pytest.raises(RuntimeError, match="`learning_rate` must be at least 0"):
        jax.block_until_ready(check(jnp.ones(1), jnp.zeros(())))


#
# Errors
#


_joint = jnp.einsum("ij,ab->ijab", _k, jnp.eye(3))
_ce = softmax_cross_entropy


def _make(y=_labels, loss=_ce, k=_k, **options):
    return loss_flow(k, y, loss, **options)


_bad = {
    "`k_train_train` must be symm": lambda: _make(k=_k + jnp.triu(_k)),
    r"`k_train_train` must have shape \(n, n\), or": lambda: _make(k=_joint[..., :2]),
    "`k_train_train`.*negative": lambda: _make(k=-_k),
    "labels of classes, use.*one_hot": lambda: _make(jnp.arange(6)),
    "negative.*not less its mean": lambda: _make(_labels - 1 / 3),
    "above 1": lambda: _make(2 * _labels, sigmoid_cross_entropy),
    "`y_train` has 18 entries": lambda: _make(_labels * jnp.nan),
    r"`y_train` must have shape \(6, \*outputs\)": lambda: _make(_labels[:5]),
    "with at least two classes": lambda: _make(jnp.ones((6, 1))).solve(1.0),
    "must have the shape.*of the outputs": lambda: _flow.solve(1.0, jnp.zeros((6, 2))),
    "must have the shape.*outputs": lambda: _make(_y[:, :1], half_mse).solve(
        1.0, jnp.zeros(6)
    ),
    "`loss` must return a scalar": lambda: _make(loss=lambda f, y: f - y).solve(1.0),
    "NaN or infinite at the start": lambda: _make(
        loss=lambda f, y: jnp.sum(jnp.log(f))
    ).solve(1.0),
    "`weight_decay` must not": lambda: _make(weight_decay=-1.0),
    "`weight_decay` must be a sc": lambda: _make(weight_decay=jnp.ones(2)),
    "`diag_reg`": lambda: _make(diag_reg=-1.0),
    "`learning_rate` must be pos": lambda: GradientDescent(0.0),
    "`learning_rate` must be a s": lambda: GradientDescent(jnp.ones(2)),
    "`momentum` must be at least": lambda: HeavyBall(0.1, momentum=1.0),
    "`momentum` .* but it is -1": lambda: Nesterov(0.1, momentum=-1.0),
    "`learning_rate` must be at least 0.* from -0.5": lambda: _make(
        optimiser=GradientDescent(lambda t: 0.5 - t)
    ).solve(1.0),
    "`delta` must be positive": lambda: huber(-1.0),
    "`target` must be a scalar": lambda: inn.loss_below(jnp.ones(2)),
    "`t` must not be negative or NaN, but it is -1": lambda: _flow.solve(-1.0),
    "`t` must not be negative": lambda: _flow.solve(jnp.nan),
    "`t` has 1 entries.*steady_state": lambda: _flow.solve(jnp.inf),
    "`t` must increase": lambda: _flow.solve(jnp.array([2.0, 1.0])),
    "`t` must increase.*unique": lambda: _flow.solve(jnp.array([1.0, 1.0])),
    "`t` must be a scalar or a v": lambda: _flow.solve(jnp.ones((2, 2))),
    "`f_train_0` must have shape": lambda: _flow.solve(1.0, jnp.zeros((5, 3))),
    "`f_train_0` has 18 entries": lambda: _flow.solve(1.0, jnp.full((6, 3), jnp.nan)),
    "as the kernel's outputs": lambda: _make(k=_joint).solve(1.0, jnp.zeros((6, 2))),
    "give `dt0`": lambda: _flow.solve(1.0, stepsize_controller=diffrax.ConstantStepSize()),
    "`saveat` can only be": lambda: _flow.solve(1.0, saveat=diffrax.SaveAt(steps=True)),
    "`k_test_train`.*transposed": lambda: _flow.solve(_t).test(_k_td.T),
    "`f_test_0` must have shape": lambda: _flow.solve(_t).test(_k_td, jnp.ones((2, 2))),
}


@pytest.mark.parametrize("message", _bad)
def test_bad_arguments(message):
    with pytest.raises(ValueError, match=message):
        _bad[message]()
