"""Finite networks, trained by Optax, against the infinite width: any loss, five times.

Moments of finite networks are biased by $O(1 / \\text{width})$. That is estimated from two
widths, and taken off: $2 m_{512} - m_{256}$ is what is compared.
"""

# Outputs that were not asked for are `None`.
# pyright: reportArgumentType=false, reportOptionalSubscript=false

import functools as ft

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import infinitenet as inn


_members, _rate, _steps = 100, 0.25, np.array([2, 10, 40, 100, 200])
_n_train, _n_test, _n_outputs = 6, 3, 2
_x = jr.normal(jr.key(0), (_n_train + _n_test, 3))
_x_train, _x_test = _x[:_n_train], _x[_n_train:]
_labels = jax.nn.one_hot(jnp.array([0, 1, 1, 0, 1, 0]), _n_outputs)


def _net(depth, width):
    hidden = depth * [inn.Dense(width, 1.3, 0.1), inn.Erf()]
    return inn.Sequential([*hidden, inn.Dense(_n_outputs, 1.2, 0.1)])


def _moments(f):
    """Of outputs `(times, members, points, outputs)`: means, and covariances of points."""
    mean = jnp.mean(f, axis=1)
    centred = f - mean[:, None]
    covariance = jnp.einsum("tmio,tmjo->toij", centred, centred) / (f.shape[1] - 1)
    return mean, covariance


def _finite(depth, loss, y):
    out = []
    for width in (512, 256):
        net = _net(depth, width)
        ensemble = inn.draw_ensemble(net, jr.key(1000 + width), _x[0], _members)
        trained = inn.train_ensemble(
            ensemble,
            _x_train,
            y,
            optax.sgd(_rate),
            _steps,
            loss=loss,
            x_test=_x_test,
            progress=False,
        )
        f = jnp.concatenate([trained.train_outputs, trained.test_outputs], axis=2)
        out.append(_moments(f))
    return tuple(2 * wide - narrow for wide, narrow in zip(*out, strict=True))


def _check(finite, infinite):
    """z-scores, of which the variance grows by $2^2 + 1$ in the extrapolation."""
    (mean, covariance), (mu, sigma) = finite, infinite
    variance = jnp.diagonal(sigma, axis1=-2, axis2=-1)
    error = jnp.sqrt(5 * jnp.swapaxes(variance, 1, 2) / _members)
    product = variance[..., :, None] * variance[..., None, :]
    errors = jnp.sqrt(5 * (product + sigma**2) / (_members - 1))
    for z in ((mean - mu) / error, (covariance - sigma) / errors):
        assert jnp.sqrt(jnp.mean(z**2)) < 1.5
        # Of some 400 numbers; those of covariances have heavier tails than Gaussians.
        assert jnp.max(jnp.abs(z)) < 5.5


_depths = [1, pytest.param(2, marks=pytest.mark.slow)]


@pytest.mark.parametrize("depth", _depths)
def test_mean_squared_error(depth):
    # Exact in the learning rate.
    y = 2 * _labels - 1
    ensemble = inn.network_ensemble(_net(depth, 1), _x_train, y)
    t = inn.Steps(_steps, inn.GradientDescent(_rate))
    p = ensemble.predict_jointly(t, _x)
    covariance = jnp.broadcast_to(
        p.covariance[:, None], (len(_steps), _n_outputs, len(_x), len(_x))
    )
    _check(_finite(depth, inn.half_mse, y), (p.mean, covariance))


@pytest.mark.parametrize("depth", _depths)
def test_cross_entropy(depth):
    # Of many infinite networks, each from its own initial function.
    n_samples = 2000
    k = inn.gram(_net(depth, 1), _x)
    prior = inn.Prediction(jnp.zeros((len(_x), _n_outputs)), k.nngp)
    f_0 = prior.sample(jr.key(1), n_samples)
    train = slice(_n_train)
    flow = inn.loss_flow(
        k.ntk[train, train],
        _labels,
        inn.softmax_cross_entropy,
        optimiser=inn.GradientDescent(_rate),
    )

    @eqx.filter_jit
    @ft.partial(jax.vmap, out_axes=1)
    def solve(f_0):
        path = flow.solve(
            _steps.astype(float), f_0[train], solver=diffrax.Tsit5(), progress=False
        )
        test = path.test(k.ntk[_n_train:, train], f_0[_n_train:])
        return jnp.concatenate([path.train, test], axis=1)

    finite = _finite(depth, inn.softmax_cross_entropy, _labels)
    _check(finite, _moments(solve(f_0)))
