"""Inference for a network and data."""

# A prediction without covariance has `None` there.
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import infinitenet as inn


_net = inn.Sequential([inn.Dense(8, 1.4, 0.1), inn.Relu(), inn.Dense(2, 1.0, 0.2)])
_x = jr.normal(jr.key(0), (10, 3))
_x_train, _x_test, _y = _x[:6], _x[6:], jr.normal(jr.key(1), (6, 2))
_close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("trained", [inn.LastLayer(), inn.AllLayers()])
def test_posterior(trained):
    k = inn.gram(_net, _x)
    k = k.ntk if isinstance(trained, inn.AllLayers) else k.nngp
    want = inn.condition(k[:6, :6], _y, diag_reg=0.1).predict(k[6:, :6], k[6:, 6:])
    posterior = inn.network_posterior(_net, _x_train, _y, trained=trained, diag_reg=0.1)
    only, joint = posterior.predict(_x_test), posterior.predict_jointly(_x_test)
    _close(joint.mean, want.mean)
    _close(joint.covariance, want.covariance)
    assert only.covariance is None
    _close(only.mean, want.mean)
    _close(only.std, want.std)


@pytest.mark.parametrize("trained", [inn.LastLayer(), inn.AllLayers()])
def test_ensemble(trained):
    k, t = inn.gram(_net, _x), jnp.array([0.5, 20.0])
    cut = lambda a, b: jax.tree.map(lambda k: k[a, b], k)
    dd, td = cut(slice(6), slice(6)), cut(slice(6, 10), slice(6))
    options = {"trained": trained, "weight_decay": 0.1, "diag_reg": 0.2}
    ensemble = inn.infinite_ensemble(dd, _y, **options)
    want = ensemble.predict(t, td, k.nngp[6:, 6:])
    out = inn.network_ensemble(_net, _x_train, _y, **options)
    only, joint = out.predict(t, _x_test), out.predict_jointly(t, _x_test)
    _close(joint.mean, want.mean)
    _close(joint.covariance, want.covariance)
    assert only.covariance is None
    _close(only.mean, want.mean)
    _close(only.std, want.std)
    _close(out.predict_train(t).covariance, ensemble.predict_train(t).covariance)


def test_compositions():
    @eqx.filter_jit
    def run(W_std, x_test):
        net = inn.Sequential([inn.Dense(8, W_std, 0.1), inn.Erf(), inn.Dense(2)])
        posterior = inn.network_posterior(net, _x_train, _y, diag_reg=0.1)
        ensemble = inn.network_ensemble(net, _x_train, _y)
        return posterior.predict(x_test).std, ensemble.predict(2.0, x_test).mean

    widths = jnp.array([0.8, 1.3])
    want = [run(W_std, _x_test) for W_std in widths]
    out = jax.vmap(run, in_axes=(0, None))(widths, _x_test)
    for i in range(2):
        jax.tree.map(lambda a, b, i=i: _close(a[i], b), out, want[i])


@pytest.mark.parametrize("demand", [inn.Demand(), inn.Demand(cross=inn.Pairs.ALL)])
def test_gram_diagonal(demand):
    net = inn.Sequential([inn.Conv(4, (3,), padding="SAME", b_std=0.1), inn.Relu()])
    x = jr.normal(jr.key(2), (5, 4, 3))
    out, k = inn.gram_diagonal(net, x, demand=demand), inn.gram(net, x, demand=demand)
    index = jnp.arange(5)
    _close(out.nngp, k.nngp[index, index])
    _close(out.ntk, k.ntk[index, index])
    # In parts, and under transformations.
    parts = inn.gram_diagonal(net, x, ntk=False, memory=20_000, demand=demand)
    _close(parts.nngp, out.nngp)
    assert parts.ntk is None
    traced = jax.jit(lambda x: inn.gram_diagonal(net, x, demand=demand).ntk)(x)
    _close(traced, out.ntk)


def test_errors():
    with pytest.raises(ValueError, match="`x_train`"):
        inn.network_posterior(_net, _x[:, 0], _y)
    with pytest.raises(ValueError, match="`y_train` must have shape"):
        inn.network_posterior(_net, _x_train, _y[:3])
    with pytest.raises(ValueError, match=r"positive definite.*`diag_reg`"):
        inn.network_posterior(_net, jnp.concatenate([_x, _x]), jnp.ones(20))
