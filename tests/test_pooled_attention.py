"""Kernels of networks with global pooling of attention, by distances up to there."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import check_single_precision, tile_memory

import infinitenet as inn
from infinitenet._entries import Entry
from infinitenet._parts import Parts
from infinitenet._pooled_attention import PooledAttentionEntry


_rng = np.random.default_rng(0)


def _normal(*shape):
    return _rng.normal(size=shape)


def _conv(size, strides=None, padding="SAME"):
    return inn.Conv(4, size, strides, padding, W_std=1.3, b_std=0.2)


def _attention(**options):
    stds = {"W_key_std": 1.2, "W_value_std": 1.1, "W_query_std": 0.9, "W_out_std": 1.3}
    given: Any = stds | {"b_std": 0.3} | options
    return inn.SelfAttention(4, 4, 4, 1, **given)


def _net(*layers, pool=None, end=()):
    pool = inn.GlobalAvgPool() if pool is None else pool
    return inn.Sequential([*layers, pool, *end, inn.Dense(1, 1.2, 0.1)])


def _embedded(kind, **options):
    decay = lambda d: jnp.exp(-0.5 * d)
    return _attention(
        pos_emb_type=kind, pos_emb_decay_fn=decay, W_pos_emb_std=0.7, **options
    )


_networks = {
    "images": (
        _net(
            *[_conv((3, 3)), inn.Relu()] * 3,
            _conv((2, 2), (2, 1)),
            inn.Residual(inn.Sequential([inn.Erf(), _conv((3, 2))])),
            _attention(),
        ),
        (4, 6, 2),
    ),
    "sequences": (
        _net(
            inn.Sequential([_conv((3,), (2,)), inn.Relu()]),
            inn.Sequential([inn.Dense(4), inn.LayerNorm()]),
            _attention(attention_mechanism="ABS"),
            pool=inn.GlobalSumPool(),
        ),
        (8, 9),
    ),
    "inputs": (_net(_attention(attention_mechanism="IDENTITY", b_std=None)), (5, 3)),
    "added": (_net(_conv((3,)), inn.Relu(), _embedded("SUM")), (6, 2)),
    "concatenated": (
        _net(_conv((3,)), _embedded("CONCAT", n_chan_pos_emb=3), pool=inn.GlobalSumPool()),
        (6, 2),
    ),
    "standard": (
        inn.Sequential(
            [
                inn.Conv(4, (3,), padding="SAME", parameterization="standard"),
                inn.Relu(),
                _attention(attention_mechanism="RELU"),
                inn.GlobalAvgPool(),
                inn.Dropout(0.7),
                inn.Dense(1, parameterization="standard"),
            ]
        ),
        (6, 2),
    ),
    "volumes": (_net(_conv((2, 3, 2)), inn.Relu(), _attention()), (2, 3, 2, 1)),
}
_all = pytest.mark.parametrize("name", _networks)


def _parts(net, x, memory=None):
    return Parts(net, x, x, True, inn.Demand(), memory)


def _inputs(name):
    """Some of which are nearly the same, and one is zero."""
    net, shape = _networks[name]
    x = _normal(6, *shape)
    x[4] = x[0] * (1 + 1e-6)
    x[5] = 0
    assert isinstance(_parts(net, jnp.asarray(x)).entry, PooledAttentionEntry)
    return net, x


def _all_pairs(net, x1, x2=None):
    """From all pairs of positions, as `gram` computes what is transformed."""

    def run(x1, x2):
        gram = inn.gram(net, x1, x2)
        return gram.nngp, gram.ntk

    return jax.jit(run)(x1, x2)


def _close(gram, want, rtol=1e-11, atol=1e-13):
    for a, b in zip((gram.nngp, gram.ntk), want, strict=True):
        np.testing.assert_allclose(a, b, rtol, atol)


@_all
def test_all_pairs(name):
    net, x = _inputs(name)
    _close(inn.gram(net, x[:4], x[2:]), _all_pairs(net, x[:4], x[2:]), rtol=1e-10)
    want = _all_pairs(net, x)
    _close(inn.gram(net, x), want, rtol=1e-10)
    _close(inn.gram_diagonal(net, x), map(jnp.diag, want))


@_all
def test_pairs(name):
    net, x = _inputs(name)
    pair = net.kernel(x[1], x[3])
    gram = inn.gram(net, x[:2], x[2:])
    np.testing.assert_allclose(gram.nngp[1, 1], pair.nngp.array, rtol=1e-11)
    np.testing.assert_allclose(gram.ntk[1, 1], pair.ntk.array, rtol=1e-11)


def test_gradient():
    """Of inputs, and of hyperparameters, by finite differences of what is not traced."""
    net, x = _inputs("added")
    x1, x2 = x[:2], x[2:4]

    def total(scale, x1):
        other = _net(_conv((3,)), inn.Relu(), _embedded("SUM", W_key_std=scale))
        gram = inn.gram(other, x1, x2)
        return jnp.sum(gram.nngp + gram.ntk)

    along, h = _normal(*x1.shape), 1e-5
    by_scale, by_inputs = jax.grad(total, (0, 1))(1.2, jnp.asarray(x1))
    difference = total(1.2 + h, x1) - total(1.2 - h, x1)
    np.testing.assert_allclose(by_scale, difference / (2 * h), rtol=1e-7)
    difference = total(1.2, x1 + h * along) - total(1.2, x1 - h * along)
    np.testing.assert_allclose(jnp.vdot(by_inputs, along), difference / (2 * h), rtol=1e-7)


@pytest.mark.parametrize(
    "net",
    [
        _net(
            _conv((3,)),
            _attention(linear_scaling=False, attention_mechanism="IDENTITY"),
        ),
        _net(_conv((3,)), inn.Relu(), _embedded("SUM", val_pos_emb=True)),
        _net(_conv((2,), None, "VALID"), inn.Relu(), _attention()),
        _net(_conv((3,)), _attention(), _attention()),
        _net(_conv((3,)), _attention(), inn.LayerNorm()),
        _net(_conv((3,)), _attention(), end=[inn.Relu()]),
        inn.Sequential([_conv((3,)), inn.Residual(_attention()), inn.GlobalAvgPool()]),
        inn.Sequential([_conv((3,)), _attention(), inn.AvgPool((5,)), inn.Flatten()]),
        inn.Sequential([_conv((3,)), inn.Relu(), _attention()]),
    ],
    ids=[
        *("square root", "values", "valid", "two", "normalised", "nonlinearity"),
        *("residual", "windows", "end"),
    ],
)
def test_other_networks(net):
    x = jnp.asarray(_normal(4, 5, 2))
    assert not isinstance(_parts(net, x).entry, PooledAttentionEntry)
    _close(inn.gram(net, x), _all_pairs(net, x))


def test_masks():
    net, x = _inputs("added")
    missing = np.arange(6) > np.arange(6)[:, None]
    inputs = inn.Inputs(x, missing=missing)
    assert isinstance(_parts(net, inputs).entry, Entry)
    _close(inn.gram(net, inputs), _all_pairs(net, inputs))


@_all
def test_single_precision(name):
    net, shape = _networks[name]
    check_single_precision(net, _normal(4, *shape))


def test_mixed_precision():
    net, x = _inputs("images")
    want = inn.gram(net, x[:3], x[1:]).ntk
    for dtypes in ((np.float32, np.float64), (np.float64, np.float32)):
        got = inn.gram(net, x[:3].astype(dtypes[0]), x[1:].astype(dtypes[1])).ntk
        assert got.dtype == jnp.float64
        np.testing.assert_allclose(got, want, rtol=1e-4)


#
# Parts and tiles
#


def test_one_distance_at_a_time():
    """With little memory for large images. It does not change the kernel."""
    net, x = _inputs("sequences")
    parts = _parts(net, jnp.asarray(x[:2]))
    assert isinstance(parts.entry, PooledAttentionEntry)
    distances = dataclasses.replace(parts.entry.distances, count=1)
    one = dataclasses.replace(parts.entry, distances=distances)
    assert len(parts.entry.parts) == 1 and len(one.parts) == 4
    pair = [jax.tree.map(lambda a, i=i: a[i], parts.x1) for i in range(2)]
    each = [jax.jit(one.part)(parts.arrays, *pair, part) for part in one.parts]
    total = jax.tree.map(lambda *k: sum(k), *each)
    _, ntk = one.finish(parts.arrays, total)
    np.testing.assert_allclose(ntk.array, inn.gram(net, x[:2]).ntk[0, 1], rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_weights_do_not_depend_on_other_inputs(dtype):
    """To the last bit: so neither do tiles."""
    net, x = _inputs("images")
    x = jnp.asarray(x, dtype)
    _, weights = _parts(net, x).x1
    for start, n in ((0, 1), (1, 3), (2, 4)):
        _, some = _parts(net, x[start : start + n]).x1
        assert np.array_equal(some, weights[start : start + n])


def test_any_memory():
    net, x = _inputs("images")
    want = inn.gram(net, x)
    # All pairs of positions of an input, and so for each of many workers.
    least = 8 * _parts(net, jnp.asarray(x)).workers * (4 * 6) ** 2 * 8
    for factor in (1, 2, 8):
        _close(inn.gram(net, x, memory=factor * least), (want.nngp, want.ntk))
        other = inn.gram(net, x[:2], x[2:4], memory=factor * least)
        _close(other, (want.nngp[:2, 2:4], want.ntk[:2, 2:4]))


def test_memory_of_tiles():
    """That of a few distances, not that of all pairs of positions."""
    net, memory = _net(_conv((3, 3)), inn.Relu(), _attention()), 2**24
    x = jnp.asarray(_normal(4, 16, 16, 3))
    parts = _parts(net, x, memory)
    used = tile_memory(parts, parts.x1, parts.x1)
    all_pairs = 4 * 4 * (16 * 16) ** 2 * x.itemsize
    assert used.temp_size_in_bytes + used.output_size_in_bytes < all_pairs / 2
