"""Finite ensembles, against plain loops over single networks and analytic solutions."""

# What is missing fails a test in any case.
# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false

import os
import pathlib
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import infinitenet as inn


def _net(width=8):
    return inn.Sequential([inn.Dense(width, 1.5, 0.05), inn.Erf(), inn.Dense(1, 1.5, 0.05)])


@pytest.fixture
def data():
    x = jnp.asarray([[-2.0], [-0.4], [0.7], [2.2]])
    return x, jnp.sin(x)


@pytest.fixture
def ensemble(getkey, data):
    return inn.draw_ensemble(_net(), getkey(), data[0][0], 3)


def _member(ensemble, i):
    return jax.tree.map(lambda a: np.asarray(a)[i] if eqx.is_array(a) else a, ensemble)


def _train(ensemble, data, optimiser, steps, **options):
    x, y = data
    return inn.train_ensemble(ensemble, x, y, optimiser, steps, **options)


@eqx.filter_jit
def _step(weights, state, rest, x, y, optimiser):
    """One step of one network, and its loss and outputs before."""

    def loss(weights):
        net = eqx.combine(weights, rest)
        f = jnp.stack([net(each) for each in x])
        return jnp.sum((f - y) ** 2) / (2 * y.size), f

    (value, f), gradient = jax.value_and_grad(loss, has_aux=True)(weights)
    change, state = optimiser.update(gradient, state, weights)
    return optax.apply_updates(weights, change), state, value, f


def _plain(net, x, y, optimiser, steps):
    """One network, by a loop of separate steps; all its losses and all its outputs."""
    weights, rest = eqx.partition(net, inn.trainable(net))
    state = optimiser.init(weights)
    losses, outputs = [], []
    for _ in range(steps + 1):
        net = eqx.combine(weights, rest)
        weights, state, loss, f = _step(weights, state, rest, x, y, optimiser)
        losses.append(np.asarray(loss))
        outputs.append(np.asarray(f))
    return net, np.stack(losses), np.stack(outputs)


_outputs = eqx.filter_jit(lambda net, x: jax.vmap(net)(x))


def _allclose(a, b, rtol=1e-9):
    # The same numerics, up to the order of sums.
    np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-3 * rtol)


_optimisers = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.02, momentum=0.9),
    "schedule": optax.sgd(optax.linear_schedule(0.1, 0.0, 7)),
    "adam": optax.adam(1e-2),
    "decay": optax.adamw(1e-2, weight_decay=0.1),
}


def test_draw(getkey, data):
    key = getkey()
    ensemble = inn.draw_ensemble(_net(), key, data[0][0], 3)
    f = inn.evaluate_ensemble(ensemble, data[0])
    assert f.shape == (3, 4, 1)
    for i, each in enumerate(jr.split(key, 3)):
        _allclose(f[i], _outputs(_net().init(each, data[0][0]), data[0]))
    with pytest.raises(ValueError, match="`n` must be at least 1"):
        inn.draw_ensemble(_net(), key, data[0][0], 0)


@pytest.mark.parametrize(
    "name, members_at_once", [*((name, None) for name in _optimisers), ("adam", 2)]
)
def test_members_are_single_networks(name, members_at_once, ensemble, data):
    x, y = data
    x_test, y_test = np.asarray(x)[:2] + 0.1, np.asarray(y)[:2]
    trained = inn.train_ensemble(
        ensemble,
        x,
        y,
        _optimisers[name],
        [0, 1, 2, 5, 12],
        x_test=jnp.asarray(x_test),
        y_test=jnp.asarray(y_test),
        members_at_once=members_at_once,
    )
    assert trained.steps.tolist() == [0, 1, 2, 5, 12]
    assert trained.train_outputs is not None
    assert trained.test_outputs is not None and trained.test_loss is not None
    assert trained.test_outputs.shape == (5, 3, 2, 1)
    # Optax computes schedules in float32, and compiled together they round differently.
    rtol = 1e-5 if name == "schedule" else 1e-9
    steps = np.asarray(trained.steps)
    for i in range(3):
        single = _member(ensemble, i)
        last, losses, outputs = _plain(single, x, y, _optimisers[name], 12)
        _allclose(np.asarray(trained.train_loss)[:, i], losses[steps], rtol)
        _allclose(np.asarray(trained.train_outputs)[:, i], outputs[steps], rtol)
        f = np.asarray(_outputs(last, x_test))
        _allclose(np.asarray(trained.test_outputs)[-1, i], f, rtol)
        _allclose(
            np.asarray(trained.test_loss)[-1, i], np.mean((f - y_test) ** 2) / 2, rtol
        )
        _allclose(_outputs(_member(trained.ensemble, i), x_test), f, rtol)


def test_records_do_not_depend_on_each_other(ensemble, data):
    each = _train(ensemble, data, optax.adam(0.01), range(301))
    few = _train(ensemble, data, optax.adam(0.01), 300)
    assert few.steps[0] == 0 and few.steps[-1] == 300
    assert 30 < len(few.steps) <= 51
    # Exactly the same program, stopped elsewhere.
    assert jnp.array_equal(each.train_loss[few.steps], few.train_loss)
    assert each.train_outputs is not None and few.train_outputs is not None
    assert jnp.array_equal(each.train_outputs[few.steps], few.train_outputs)


def test_line_search(ensemble, data):
    trained = _train(ensemble, data, optax.lbfgs(), 10)
    assert jnp.all(trained.train_loss[-1] < 0.1 * trained.train_loss[0])


def test_only_weights_move(ensemble, data):
    trained = _train(ensemble, data, optax.adamw(0.1), 3).ensemble
    is_weight = inn.trainable(ensemble)
    for inverse in (False, True):
        before, after = (
            jax.tree.leaves(eqx.filter(net, is_weight, inverse=inverse))
            for net in (ensemble, trained)
        )
        before, after = ([a for a in x if eqx.is_array(a)] for x in (before, after))
        # Two layers of `W` and `b`. Else, their two scales each, and two of `Erf`.
        assert len(before) == (6 if inverse else 4)
        for a, b in zip(before, after, strict=True):
            assert bool(jnp.all(a == b)) == inverse


def test_other_loss(ensemble, data):
    x, y = data
    labels = (y[:, 0] > 0).astype(int)

    def loss(f, labels):
        f = jnp.concatenate([jnp.zeros_like(f), f], axis=-1)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(f, labels))

    trained = inn.train_ensemble(ensemble, x, labels, optax.sgd(0.5), 50, loss=loss)
    assert jnp.all(trained.train_loss[-1] < 0.5 * trained.train_loss[0])
    bad = lambda f, y: (f - y) ** 2
    with pytest.raises(ValueError, match="`loss` must return a scalar"):
        inn.train_ensemble(ensemble, x, y, optax.sgd(0.1), 1, loss=bad)


def test_outputs_may_be_left_out(ensemble, data):
    trained = _train(ensemble, data, optax.sgd(0.1), 4, x_test=data[0], keep_outputs=False)
    assert trained.train_outputs is None and trained.test_outputs is None
    assert trained.test_loss is None
    assert trained.train_loss.shape == (5, 3)
    assert "3 networks after 4 steps: train loss" in repr(trained)


def test_times(ensemble, data):
    trained = _train(ensemble, data, optax.sgd(0.1), [0, 2, 5])
    _allclose(trained.times(0.1), [0, 0.2, 0.5])
    _allclose(trained.times(0.1, momentum=0.5), [0, 0.25, 0.80625])
    schedule = optax.linear_schedule(0.0, 1.0, 4)
    _allclose(trained.times(schedule), [0, 0.25, 0.25 + 0.5 + 0.75 + 1])


def test_progress(ensemble, data):
    calls = []
    _train(
        ensemble,
        data,
        optax.sgd(0.1),
        10,
        members_at_once=2,
        progress=lambda *call: calls.append(call),
    )
    done = [call[0] for call in calls]
    assert done == sorted(done) and done[-1] == 30
    assert {call[1] for call in calls} == {30}


def test_jit_and_vmap(ensemble, data):
    """A learning rate may be an array."""

    def run(ensemble, rate):
        return _train(ensemble, data, optax.sgd(rate), 30)

    eager = run(ensemble, jnp.asarray(0.1))
    jitted = eqx.filter_jit(run)(ensemble, jnp.asarray(0.1))
    _allclose(eager.train_outputs, jitted.train_outputs)
    mapped = jax.vmap(lambda rate: run(ensemble, rate).train_loss)(jnp.asarray([0.1, 0]))
    _allclose(eager.train_loss, mapped[0])
    _allclose(mapped[1], jnp.broadcast_to(mapped[1, 0], mapped[1].shape))
    assert jnp.array_equal(eager.steps, jitted.steps)
    with pytest.raises(RuntimeError, match="Training diverged"):
        jax.block_until_ready(eqx.filter_jit(run)(ensemble, jnp.asarray(1e30)).train_loss)


def test_compiles_once(data, ensemble):
    traces = []

    def loss(f, y):
        traces.append(None)
        return inn.half_mse(f, y)

    optimiser = optax.sgd(0.1)
    _train(ensemble, data, optimiser, 20, loss=loss)
    first = len(traces)
    _train(ensemble, data, optimiser, [3, 77], loss=loss)
    # Once to check what it returns, and once to evaluate it at the start.
    assert len(traces) <= first + 2


def test_divergence(ensemble, data):
    with pytest.raises(ValueError, match=r"at step \d+, the loss of 3 of the 3.*max_lea"):
        _train(ensemble, data, optax.sgd(1e3), 5000)

    def loss(f, y):
        return jnp.where(jnp.mean((f - y) ** 2) < 1e-2, jnp.nan, inn.half_mse(f, y))

    x, y = data
    run = lambda steps: inn.train_ensemble(
        _member(ensemble, slice(0, 1)), x, y, optax.sgd(0.1), steps, loss=loss
    )
    losses = _plain(_member(ensemble, 0), x, y, optax.sgd(0.1), 200)[1]
    first = int(np.argmax(losses < 0.5e-2))
    assert first > 1
    before = run(first - 1)
    assert before.steps[-1] == first - 1
    # Recorded or not, all that came before is there.
    for steps in (200, first, [1, 300]):
        with pytest.raises(inn.TrainingDiverged, match=f"at step {first},") as error:
            run(steps)
        assert error.value.step == first and error.value.members == range(1)
        trained = error.value.trained
        assert trained.steps[-1] == first - 1 and error.value.finished is None
        assert jnp.array_equal(trained.train_loss[-1], before.train_loss[-1])
        assert eqx.tree_equal(trained.ensemble, before.ensemble)
    assert trained.steps.tolist() == [1, first - 1]


def test_divergence_of_a_part(ensemble, data):
    x, y = data
    # Of the last of three networks, all others of which are trained before.
    wild = eqx.tree_at(
        lambda net: net.layers[2].weights.W,
        ensemble,
        ensemble.layers[2].weights.W.at[2].multiply(1e200),
    )
    with pytest.raises(inn.TrainingDiverged, match="at step 0, the loss of 1 of") as error:
        inn.train_ensemble(wild, x, y, optax.sgd(0.1), [0, 4], members_at_once=1)
    assert error.value.trained is None and error.value.members == range(2, 3)
    tame = jax.tree.map(lambda a: a[:2] if eqx.is_array(a) else a, ensemble)
    expected = _train(tame, data, optax.sgd(0.1), [0, 4])
    _allclose(error.value.finished.train_outputs, expected.train_outputs)
    _allclose(
        inn.evaluate_ensemble(error.value.finished.ensemble, x), expected.train_outputs[-1]
    )


def _ntk(net, x):
    """The mean over outputs of products of Jacobians."""
    weights, rest = eqx.partition(net, inn.trainable(net))
    fn = lambda weights: jax.vmap(eqx.combine(weights, rest))(x)
    jacobians = [
        j.reshape(*j.shape[:2], -1) for j in jax.tree.leaves(jax.jacobian(fn)(weights))
    ]
    products = [jnp.einsum("iop,jop->ij", j, j) / j.shape[1] for j in jacobians]
    return sum(products)


def test_ntk_drift(getkey, data):
    x = data[0]
    make = lambda key: eqx.nn.MLP(1, 2, 5, 1, jax.nn.tanh, key=key)
    ensemble = inn.draw_ensemble(make, getkey(), None, 3)
    y = jnp.concatenate([jnp.sin(x), x], axis=1)
    trained = inn.train_ensemble(ensemble, x, y, optax.sgd(0.3), [0, 3, 9], ntk_drift=x[1:])
    assert trained.ntk_drift.shape == (3, 3)
    assert jnp.max(trained.ntk_drift[0]) < 1e-14
    ntk = eqx.filter_jit(lambda net: _ntk(net, x[1:]))
    for i in range(3):
        before, after = ntk(_member(ensemble, i)), ntk(_member(trained.ensemble, i))
        expected = jnp.linalg.norm(after - before) / jnp.linalg.norm(before)
        assert expected > 1e-3
        _allclose(trained.ntk_drift[-1, i], expected)
    assert "NTK moved by" in repr(trained)


_on_devices = """
import jax
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_num_cpu_devices", 4)
import equinox as eqx, jax.numpy as jnp, jax.random as jr, numpy as np, optax
import infinitenet as inn

x = jr.normal(jr.key(0), (5, 3))
y, adam, batches = jnp.sin(x[:, :1]), optax.adam(0.05), inn.Batches(2, jr.key(3))
net = inn.Sequential([inn.Dense(6), inn.Erf(), inn.Dense(1)])
ensemble = inn.draw_ensemble(net, jr.key(1), x[0], 8)

def train(ensemble, mesh, **options):
    options = {
        "ntk_drift": x[1:],
        "batches": batches,
        "x_test": x[:2],
        "members_at_once": 4,
        "progress": False,
        **options,
    }
    return inn.train_ensemble(ensemble, x, y, adam, [0, 4, 9], mesh=mesh, **options)

def close(a, b):
    a, b = eqx.filter((a, b), eqx.is_array)
    compare = lambda a, b: np.testing.assert_allclose(a, b, 1e-10, 1e-12)
    jax.tree.map(compare, *jax.tree.map(np.asarray, (a, b)))

one = train(ensemble, None)
for kind in (jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit):
    mesh = jax.make_mesh((2, 2), ("members", "other"), axis_types=(kind, kind))
    out = train(ensemble, mesh)
    close(out, one)
    sharding = jax.sharding.NamedSharding(mesh, jax.P("members"))
    for leaf in jax.tree.leaves(eqx.filter(out.ensemble, eqx.is_array)):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
        assert leaf.sharding.mesh == mesh
    close(inn.evaluate_ensemble(out.ensemble, x[:2]), one.test_outputs[-1])

with jax.set_mesh(mesh):
    close(train(ensemble, mesh), one)
# The networks are where they were, also if they are read from a file.
for _ in range(2):
    more = train(out.ensemble, None, checkpoint="run.npz", save_every=0)
    assert jax.tree.leaves(more.ensemble)[0].sharding.mesh == mesh
    close(more, train(one.ensemble, None))
jitted = jax.jit(lambda x: train(ensemble, mesh, x_test=x).test_outputs)
close(jitted(x[:2]), one.test_outputs)
try:
    train(ensemble, mesh, members_at_once=3)
except ValueError as error:
    assert "has 2 devices" in str(error) and "`members_at_once`, 3, must be" in str(error)
else:
    raise AssertionError
"""


def test_mesh(tmp_path):
    package = str(pathlib.Path(inn.__file__).resolve().parents[1])
    done = subprocess.run(
        [sys.executable, "-P", "-c", _on_devices],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": package},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def _bad_inputs():
    x = jnp.linspace(-1, 1, 4)[:, None]
    y, sgd = jnp.sin(x), optax.sgd(0.1)
    yield "y_train.*shape", lambda e: (e, x, y[:, 0], sgd, 1), {}
    yield "y_train.*shape", lambda e: (e, x, y[:3], sgd, 1), {}
    yield "y_train.*one_hot", lambda e: (e, x, jnp.ones((4, 1), int), sgd, 1), {}
    yield "y_train.*NaN", lambda e: (e, x, y.at[0, 0].set(jnp.nan), sgd, 1), {}
    yield "x_train.*NaN", lambda e: (e, x.at[0, 0].set(jnp.nan), y, sgd, 1), {}
    yield "x_train.*axis", lambda e: (e, x[:, 0], y, sgd, 1), {}
    yield "`ensemble`.*draw_ensemble", lambda e: (_net(), x, y, sgd, 1), {}
    yield "stacked", lambda e: (_net().init(jr.key(0), x[0]), x, y, sgd, 1), {}
    yield "ensemble", lambda e: (None, x, y, sgd, 1), {}
    yield "optimiser", lambda e: (e, x, y, 0.1, 1), {}
    yield "`steps` must be at least 1", lambda e: (e, x, y, sgd, 0), {}
    yield "steps", lambda e: (e, x, y, sgd, 2.5), {}
    yield "`steps`.*whole", lambda e: (e, x, y, sgd, []), {}
    yield "`steps`.*ascend", lambda e: (e, x, y, sgd, [0, 4, 2]), {}
    yield "`steps`.*ascend", lambda e: (e, x, y, sgd, [0]), {}
    yield "`x_test`: give both", lambda e: (e, x, y, sgd, 1), {"y_test": y}
    yield "y_test.*shape", lambda e: (e, x, y, sgd, 1), {"x_test": x[:2], "y_test": y}
    yield "members_at_once", lambda e: (e, x, y, sgd, 1), {"members_at_once": 0}


@pytest.mark.parametrize("match, args, options", list(_bad_inputs()))
def test_bad_inputs(match, args, options, ensemble):
    # Wrong types are found before by the type checker, which tests have.
    with pytest.raises((ValueError, TypeError), match=match):
        inn.train_ensemble(*args(ensemble), **options)


@pytest.fixture(scope="module")
def wide():
    """Wide networks, trained slowly, and what they are at infinite width."""
    net = _net(256)
    x = jnp.asarray([[-2.0], [-0.4], [0.7], [2.2]])
    y, x_test = jnp.sin(x), jnp.linspace(-3, 3, 5)[:, None]

    @jax.jit
    def kernels(x, x_test):
        return (
            inn.gram(net, x),
            inn.gram(net, x_test, x),
            inn.gram(net, x_test, ntk=False).nngp,
        )

    k, k_test_train, k_test_test = kernels(x, x_test)
    assert k.ntk is not None
    rate = float(inn.max_learning_rate(k.ntk)) / 30
    ensemble = inn.draw_ensemble(net, jr.key(1), x[0], 32)
    trained = inn.train_ensemble(
        ensemble, x, y, optax.sgd(rate), [0, 20, 100, 300, 700], x_test=x_test
    )
    infinite = inn.infinite_ensemble(k, y)
    predict = eqx.filter_jit(lambda infinite, *args: infinite.predict(*args))
    prediction = predict(infinite, trained.times(rate), k_test_train, k_test_test)
    return trained, infinite, prediction, y


def test_gradient_flow(wide):
    trained, infinite, prediction, _ = wide
    comparison = inn.compare(trained.test_outputs, prediction)
    assert comparison.z_mean.shape == (5, 5, 1)
    # Five times of five points, strongly correlated; the seed is fixed.
    for z in (comparison.z_mean, comparison.z_variance):
        assert 0.2 < jnp.sqrt(jnp.mean(z**2)) < 1.6
        assert jnp.max(jnp.abs(z)) < 3.5
    # Wrong by a factor of two in time, it would be seen.
    other = eqx.tree_at(lambda p: p.mean, prediction, prediction.mean[::-1])
    assert jnp.max(jnp.abs(inn.compare(trained.test_outputs, other).z_mean)) > 5


def test_losses(wide):
    trained, infinite, _, y = wide
    prediction = infinite.predict_train(jnp.asarray([0.0]))
    f = trained.train_outputs[:1]
    comparison = inn.compare(f, prediction, y)
    _allclose(comparison.ensemble_loss, trained.train_loss[:1].mean(axis=1))
    assert jnp.abs(comparison.z_loss[0]) < 3


def test_compare_without_times(getkey):
    """Against NumPy, and against the distribution of Gaussian samples."""
    a = jr.normal(getkey(), (3, 3))
    prediction = inn.Prediction(jr.normal(getkey(), (3, 2)), a @ a.T)
    y = jr.normal(getkey(), (3, 2))
    f = prediction.sample(getkey(), 50)
    got = inn.compare(f, prediction, y)
    sigma = np.sqrt(np.diag(a @ a.T))[:, None]
    mean, std = np.mean(f, axis=0), np.std(f, axis=0, ddof=1)
    _allclose(got.z_mean, (mean - prediction.mean) * 50**0.5 / sigma)
    _allclose(got.z_variance, (std**2 / sigma**2 - 1) * 24.5**0.5)
    sample = (np.cov(f[..., 0].T) + np.cov(f[..., 1].T)) / 2
    _allclose(got.ensemble_covariance, sample)
    variance = np.square(a @ a.T) + np.outer(sigma, sigma) ** 2
    _allclose(got.z_covariance, (sample - a @ a.T) / np.sqrt(variance / (49 * 2)))
    samples = prediction.sample(getkey(), 40_000)
    losses = np.mean((samples - y[None]) ** 2, axis=(1, 2)) / 2
    error = abs(losses.mean() - inn.expected_loss(prediction, y))
    assert error < 4 * losses.std() / 200
    # The standard deviation of a sample standard deviation of heavy tails: a few per cent.
    assert got.loss_std is not None
    np.testing.assert_allclose(got.loss_std, losses.std(), rtol=0.05)
    assert repr(got).startswith("<Comparison of 50 networks: z-scores")
    assert got.member_loss.shape == (50,) and got.train is None and got.ntk_drift is None
    with pytest.raises(ValueError, match="give `y`"):
        _ = inn.compare(f, prediction).z_loss


def test_z_scores_of_covariances(getkey):
    """Of samples of the very distribution they are standard normal."""
    a = jr.normal(getkey(), (3, 3))
    prediction = inn.Prediction(jnp.zeros((3, 4)), a @ a.T)
    f = prediction.sample(getkey(), 200 * 30).reshape(200, 30, 3, 4)
    z = jax.vmap(lambda f: inn.compare(f, prediction).z_covariance)(f)
    # Of variances the standard error is about the root of 2 over 200.
    np.testing.assert_allclose(jnp.mean(z, axis=0), 0, atol=4 / 200**0.5)
    np.testing.assert_allclose(jnp.var(z, axis=0), 1, atol=4 * (2 / 200) ** 0.5)


def test_compare_trained(wide):
    trained, infinite, prediction, y = wide
    y_test = jnp.zeros((5, 1))
    trained = eqx.tree_at(
        lambda t: t.ntk_drift, trained, trained.train_loss, is_leaf=lambda x: x is None
    )
    train = inn.Prediction(jnp.zeros((5, 4, 1)), jnp.broadcast_to(jnp.eye(4), (5, 4, 4)))
    both = inn.compare(trained, prediction, y_test, train_prediction=train, y_train=y)
    alone = inn.compare(trained.test_outputs, prediction, y_test)
    assert both.train is not None and both.train.train is None
    _allclose(both.z_covariance, alone.z_covariance)
    _allclose(both.member_loss, jnp.mean(trained.test_outputs**2, axis=(2, 3)) / 2)
    _allclose(both.train.member_loss, trained.train_loss)
    assert both.train.mean.shape == (5, 4, 1)
    assert jnp.array_equal(both.ntk_drift, trained.train_loss)  # pyright: ignore
    text = repr(both)
    for each in ("covariance rms", "; 0.", "on training data:", "NTK moved by"):
        assert each in text
    # Without test inputs, it is of training data.
    no_test = eqx.tree_at(lambda t: t.test_outputs, trained, None)
    _allclose(inn.compare(no_test, train).z_mean, both.train.z_mean)
    with pytest.raises(ValueError, match="`y_train` was given without"):
        inn.compare(trained, prediction, y_train=y)
    with pytest.raises(ValueError, match="give `trained` in place of its outputs"):
        inn.compare(trained.test_outputs, prediction, train_prediction=train)


def test_compare_bad_inputs(getkey):
    prediction = inn.Prediction(jnp.zeros((3, 2)), jnp.eye(3))
    f = jnp.zeros((4, 3, 2))
    for bad in (f[0], f[:, :2], f[None]):
        with pytest.raises(ValueError, match="`outputs` must have shape"):
            inn.compare(bad, prediction)
    with pytest.raises(ValueError, match="`keep_outputs=True`"):
        inn.compare(None, prediction)
    with pytest.raises(ValueError, match="at least 2 networks"):
        inn.compare(f[:1], prediction)
    with pytest.raises(ValueError, match="NaN"):
        inn.compare(f.at[0, 0, 0].set(jnp.nan), prediction)
    with pytest.raises(ValueError, match="`y` must have shape"):
        inn.compare(f, prediction, jnp.zeros(3))
    with pytest.raises(ValueError, match="no covariance"):
        inn.compare(f, inn.Prediction(jnp.zeros((3, 2)), None))
