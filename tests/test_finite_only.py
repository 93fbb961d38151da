"""Layers that have no kernel in closed form, in finite networks."""

import itertools as it

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import infinitenet as inn


def _normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def _windows(n, size, stride, padding):
    """The positions that each window looks at, and the one at its centre."""
    out = (n - size) // stride + 1 if padding == "VALID" else -(-n // stride)
    before = 0 if padding == "VALID" else max((out - 1) * stride + size - n, 0) // 2
    windows = []
    for o in range(out):
        seen = [o * stride + d - before for d in range(size)]
        centre = seen[(size - 1) // 2]
        if padding == "CIRCULAR":
            windows.append(([i % n for i in seen], centre))
        else:
            windows.append(([i for i in seen if 0 <= i < n], centre))
    return windows


@pytest.mark.parametrize("padding", ["VALID", "SAME", "CIRCULAR"])
def test_max_pool(padding):
    x, layer = _normal(0, 5, 4, 2) - 5, inn.MaxPool((3, 2), (1, 2), padding)
    each = [_windows(5, 3, 1, padding), _windows(4, 2, 2, padding)]
    for share in (0, 0.3):
        missing = np.random.default_rng(0).random((5, 4)) < share
        want = np.zeros((*map(len, each), 2))
        for o, p in it.product(*(range(len(windows)) for windows in each)):
            (rows, row), (columns, column) = each[0][o], each[1][p]
            if not missing[row, column]:
                there = [q for q in it.product(rows, columns) if not missing[q]]
                want[o, p] = np.max([x[q] for q in there], 0)
        got = layer.carry(inn.Inputs(x, missing=missing))
        np.testing.assert_allclose(got.array, want, rtol=1e-14)
    np.testing.assert_array_equal(layer(jnp.asarray(x)), layer.carry(inn.Inputs(x)).array)


def test_batch_norm():
    x, missing = _normal(0, 6, 3, 2), np.random.default_rng(0).random((6, 3)) < 0.3
    layer = inn.BatchNorm("batch", 0.1)
    for mask in (np.zeros((6, 3), bool), missing):
        inputs = inn.Inputs(x, missing=mask)
        got = jax.vmap(layer.carry, axis_name="batch")(inputs).array
        present = x[~mask]
        want = (x - present.mean(0)) / np.sqrt(present.var(0) + 0.1)
        np.testing.assert_allclose(got, np.where(mask[..., None], 0, want), atol=1e-13)
    with pytest.raises(inn.LayerError, match="axis_name='batch'"):
        layer(jnp.ones((3, 2)))


def test_softmax():
    x, missing = _normal(0, 3, 2), np.array([False, True, False])
    e = np.exp(x)
    np.testing.assert_allclose(inn.Softmax()(x), e / e.sum(1, keepdims=True), rtol=1e-13)
    want = np.log(e / e.sum(0))
    np.testing.assert_allclose(inn.LogSoftmax(0)(x), want, rtol=1e-13)
    inputs = inn.Inputs(x, missing=missing)
    some = np.where(missing[:, None], 0, e)
    got = inn.Softmax((0, 1)).carry(inputs).array
    np.testing.assert_allclose(got, some / some.sum(), rtol=1e-13)
    got = inn.LogSoftmax(0).carry(inputs).array
    with np.errstate(divide="ignore"):
        want = np.where(missing[:, None], 0, np.log(some / some.sum(0)))
    np.testing.assert_allclose(got, want, rtol=1e-13)


_finite_only = [inn.MaxPool(2), inn.BatchNorm(), inn.Softmax(), inn.LogSoftmax()]


@pytest.mark.parametrize("layer", _finite_only, ids=repr)
def test_finite_only(layer):
    """They are drawn with whatever follows; kernels are refused before they are begun."""
    net = inn.Sequential([inn.Conv(3, 2), layer, inn.Relu(), inn.Dense(1)])
    x = jnp.ones((2, 6, 2))
    drawn = net.init(jr.key(0), x[0])
    assert jax.vmap(drawn, axis_name="batch")(x).shape[0] == 2
    match = r"layers\[1\] .* has no kernel in closed form.*monte_carlo_gram"
    for fn in (lambda: inn.gram(net, x), lambda: net.kernel(x[0])):
        with pytest.raises(inn.LayerError, match=match):
            fn()
