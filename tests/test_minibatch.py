"""Training on some examples in each step, of any model, against plain loops."""

# What is missing fails a test in any case.
# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import infinitenet as inn


_x = jr.normal(jr.key(0), (7, 3))
_y = jnp.sin(_x[:, :1])
_batches = inn.Batches(2, jr.key(1))
_rate = optax.sgd(0.1, momentum=0.5)


def _mlp(key):
    return eqx.nn.MLP(3, 1, 4, 1, jax.nn.tanh, key=key)


def _member(ensemble, i):
    return jax.tree.map(lambda a: a[i] if eqx.is_array(a) else a, ensemble)


def _train(ensemble, steps, **options):
    options = {"batches": _batches, "progress": False, **options}
    return inn.train_ensemble(ensemble, _x, _y, _rate, steps, **options)


def _equal(a, b):
    a, b = eqx.filter((a, b), eqx.is_array)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def _close(a, b, rtol=1e-9):
    a, b = eqx.filter((a, b), eqx.is_array)
    compare = lambda a, b: np.testing.assert_allclose(a, b, rtol, 1e-3 * rtol)
    jax.tree.map(compare, a, b)


@pytest.fixture(scope="module")
def ensemble():
    return inn.draw_ensemble(_mlp, jr.key(2), None, 4)


def test_epochs():
    # Each epoch is of different examples, in an order of its own, for each network.
    indices = jax.vmap(
        jax.vmap(lambda member, step: _batches.indices(7, member, step), (None, 0)),
        (0, None),
    )(jnp.arange(40), jnp.arange(6))
    assert indices.shape == (40, 6, 2)
    epochs = np.asarray(indices).reshape(40, 2, 6)
    for member in epochs:
        for epoch in member:
            assert len(set(epoch.tolist())) == 6
    # Of 5040 possible orders.
    assert len({tuple(epoch.tolist()) for epoch in epochs.reshape(80, 6)}) > 75
    # All examples are as often first: chi-squared of six degrees of freedom.
    counts = np.bincount(epochs[..., 0].ravel(), minlength=7)
    assert np.sum((counts - 80 / 7) ** 2) / (80 / 7) < 22
    assert _batches.steps_per_epoch(7) == 3


def test_single_networks(ensemble):
    trained = _train(ensemble, [0, 1, 5, 8])

    @eqx.filter_jit
    def train(net, member):
        weights, rest = eqx.partition(net, eqx.is_inexact_array)

        def step(carry, i):
            def loss(weights):
                f = jax.vmap(eqx.combine(weights, rest))(_x[index])
                return jnp.sum((f - _y[index]) ** 2) / (2 * len(index))

            weights, state = carry
            index = _batches.indices(7, member, i)
            change, state = _rate.update(jax.grad(loss)(weights), state)
            return (optax.apply_updates(weights, change), state), None

        start = (weights, _rate.init(weights))
        (weights, _), _ = jax.lax.scan(step, start, jnp.arange(8))
        return weights, jax.vmap(eqx.combine(weights, rest))(_x)  # pyright: ignore

    for member in range(4):
        weights, f = train(_member(ensemble, member), member)
        _close(weights, eqx.filter(_member(trained.ensemble, member), eqx.is_array))
        # Losses are those of all examples.
        _close(trained.train_loss[-1, member], np.mean((f - _y) ** 2) / 2)


def test_order_of_training_does_not_matter(ensemble):
    # Neither where it is stopped, nor which networks are trained together.
    whole = _train(ensemble, [8])
    _equal(_train(ensemble, [1, 2, 4, 8]).ensemble, whole.ensemble)
    _close(_train(ensemble, [8], members_at_once=2).ensemble, whole.ensemble, 1e-12)


def test_batches_of_all_examples(ensemble):
    whole = _train(ensemble, [8], batches=None)
    _close(_train(ensemble, [8], batches=inn.Batches(7, jr.key(0))), whole, 1e-12)


def test_under_transformations(ensemble):
    def run(rate):
        trained = inn.train_ensemble(
            ensemble, _x, _y, optax.sgd(rate), [3, 8], batches=_batches, progress=False
        )
        return trained.train_loss

    rates, run = jnp.asarray([0.1, 0.2]), jax.jit(run)
    _close(jax.jit(jax.vmap(run))(rates), jnp.stack([run(rate) for rate in rates]))


def _apply(weights, x):
    """One output, of the numbers and of the labels of each example."""
    hidden = jnp.tanh(x["numbers"] @ weights["W"] + weights["table"][x["labels"]])
    return {"out": hidden @ weights["v"]}


def _make(key):
    keys = jr.split(key, 3)
    shapes = {"W": (3, 4), "table": (5, 4), "v": (4,)}
    draws = {n: jr.normal(k, s) for k, (n, s) in zip(keys, shapes.items(), strict=True)}
    return inn.BatchFunction(_apply, draws)


def test_functions_of_pytrees():
    x = {"numbers": _x, "labels": jnp.arange(7) % 5}
    y = {"target": _y[:, 0], "weight": jnp.arange(7.0)}

    def loss(f, y):
        return jnp.mean(y["weight"] * (f["out"] - y["target"]) ** 2)

    ensemble = inn.draw_ensemble(_make, jr.key(0), None, 2)
    trained = inn.train_ensemble(
        ensemble, x, y, optax.sgd(0.01), 30, loss=loss, batches=_batches, x_test=x
    )
    f = inn.evaluate_ensemble(trained.ensemble, x)
    assert f["out"].shape == (2, 7)
    _close(trained.test_outputs["out"][-1], f["out"])
    _close(inn.evaluate_ensemble(trained.ensemble, x, 3), f)
    for i in range(2):
        weights = _member(trained.ensemble, i).weights
        _close(_apply(weights, x)["out"], f["out"][i])
        assert loss(_apply(weights, x), y) < trained.train_loss[0, i] / 2
    with pytest.raises(ValueError, match="must end in one array: give a `loss`"):
        inn.train_ensemble(ensemble, x, _y, optax.sgd(0.01), 1)


def test_coupled_examples():
    # A network that subtracts the mean over the batch.
    def apply(weights, x):
        h = x @ weights
        return h - jnp.mean(h, axis=0, keepdims=True)

    make = lambda key: inn.CoupledFunction(apply, jr.normal(key, (3, 1)))
    ensemble = inn.draw_ensemble(make, jr.key(0), None, 2)
    trained = inn.train_ensemble(ensemble, _x, _y, optax.sgd(1.0), 100, ntk_drift=_x)
    # Linear regression, with a mean.
    centred, y = _x - _x.mean(axis=0)[None], np.asarray(_y)
    w = np.linalg.lstsq(centred, y, rcond=None)[0]
    _close(trained.train_loss[-1], np.full(2, np.mean((centred @ w - y) ** 2) / 2), 1e-6)
    assert jnp.max(trained.ntk_drift) < 1e-12  # pyright: ignore


@pytest.mark.parametrize(
    "options, match",
    [
        ({"batches": inn.Batches(8, jr.key(0))}, "at most the number of examples, 7.* 8"),
        (
            {"batches": _batches, "loss": lambda f, y: jnp.mean(f) - y},
            r"`y_train` must have a first axis of the 7 examples",
        ),
    ],
)
def test_bad_batches(options, match, ensemble):
    y = _y if "loss" not in options else jnp.ones(())
    with pytest.raises(ValueError, match=match):
        inn.train_ensemble(ensemble, _x, y, _rate, 1, **options)
    with pytest.raises(ValueError, match="`size` must be at least 1"):
        inn.Batches(0, jr.key(0))


def test_bad_models(ensemble):
    for bad, match in (
        (inn.BatchFunction(_apply, {}), "no weights yet.*make"),
        (_mlp(jr.key(0)), "several networks, stacked"),
        (jax.tree.map(lambda a: a / 0 if eqx.is_array(a) else a, ensemble), "infinite"),
    ):
        with pytest.raises(ValueError, match=match):
            _train(bad, 1)
    with pytest.raises(ValueError, match="`model` failed on one example"):
        inn.train_ensemble(ensemble, _x[:, :2], _y, _rate, 1)
    with pytest.raises(ValueError, match="`x` must be an example"):
        inn.draw_ensemble(inn.Dense(1), jr.key(0), None, 2)
