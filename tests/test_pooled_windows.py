"""Kernels of networks with pooling over windows, by distances of positions up to there."""

import dataclasses
import functools as ft
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import check_single_precision, tile_memory

import infinitenet as inn
from infinitenet._covariance import Pairs
from infinitenet._entries import add, Entry, finish_pairs, pairs, program_of
from infinitenet._parts import Parts
from infinitenet._pooled_windows import PooledWindowsEntry


_rng = np.random.default_rng(0)


def _normal(*shape):
    return _rng.normal(size=shape)


def _conv(size, strides=None, padding="SAME"):
    return inn.Conv(4, size, strides, padding, W_std=1.3, b_std=0.2)


def _net(*layers):
    return inn.Sequential(layers)


_last = inn.Dense(1, 1.1, 0.1)

_networks = {
    "images": (
        _net(
            _conv((3, 3)),
            _net(inn.LayerNorm(), inn.Relu(), _conv((2, 3))),
            inn.AvgPool((2, 2), (2, 2)),
            _conv((3, 3)),
            inn.Relu(),
            inn.GlobalAvgPool(),
            _last,
        ),
        (4, 6, 3),
    ),
    # No nonlinearity after pooling: covariances of inputs with themselves are not needed.
    "linear": (
        _net(
            _conv((3, 2), (2, 1)),
            inn.Erf(),
            inn.SumPool((1, 3), (1, 3), "SAME"),
            _conv((2, 2)),
            inn.GlobalSumPool(),
        ),
        (4, 6, 2),
    ),
    "flattened": (
        _net(_conv((3,)), inn.Relu(), inn.AvgPool((2,), (2,)), inn.Flatten(), _last),
        (8, 2),
    ),
    "positions": (
        _net(_conv((2,), None, "CIRCULAR"), inn.Erf(), inn.AvgPool((3,), (3,)), _last),
        (6, 2),
    ),
    "volumes": (
        _net(
            _conv((2, 3, 2)),
            inn.Relu(),
            inn.AvgPool((2, 2, 2), (2, 2, 2)),
            inn.Dense(4, 1.2, 0.3),
            inn.Relu(),
            inn.GlobalAvgPool(),
        ),
        (2, 4, 2, 1),
    ),
    # It is the same for both only if an input is with itself.
    "dropout": (
        _net(
            _conv((3,)),
            inn.Erf(),
            inn.AvgPool((2,), (2,)),
            inn.Dropout(0.7),
            _conv((3,)),
            inn.Flatten(),
            _last,
        ),
        (8, 2),
    ),
    "of inputs": (
        _net(inn.AvgPool((4,), (4,)), inn.Dense(3, 1.2), inn.Relu(), inn.Flatten(), _last),
        (4, 9),
    ),
}


def _parts(net, x, **options):
    given: dict[str, Any] = {"ntk": True, "demand": inn.Demand(), "memory": None}
    return Parts(net, x, x, **given | options)


def _close(got, want, rtol=1e-11):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol, 1e-13)


def _of_pairs(net, x1, x2, **options):
    """From all pairs of positions."""
    row = lambda a: [net.kernel(a, b, **options) for b in x2]
    each = [[(k.nngp.array, k.ntk.array) for k in row(a)] for a in x1]
    stack = lambda *k: jnp.stack(k)
    return jax.tree.map(stack, *[jax.tree.map(stack, *row) for row in each])


@pytest.mark.parametrize("name", _networks)
def test_networks(name):
    net, shape = _networks[name]
    x = _normal(3, *shape)
    assert isinstance(_parts(net, x).entry, PooledWindowsEntry)
    gram = inn.gram(net, x[:2], x[1:])
    want = _of_pairs(net, x[:2], x[1:])
    _close((gram.nngp, gram.ntk), want)
    # An input with itself, which is exact at equal positions.
    alone = inn.gram(net, x)
    _close((alone.nngp[0, 1:], alone.ntk[0, 1:]), jax.tree.map(lambda k: k[0], want))
    one = net.kernel(x[1]).ntk.array
    np.testing.assert_allclose(alone.ntk[1, 1], one, rtol=1e-11, atol=1e-13)
    nngp = inn.gram(net, x[:2], x[1:], ntk=False)
    assert nngp.ntk is None
    np.testing.assert_allclose(nngp.nngp, gram.nngp, rtol=1e-12, atol=1e-14)


def test_all_pairs_of_outputs():
    net, shape = _networks["positions"]
    x = _normal(3, *shape)
    demand = inn.Demand(Pairs.ALL)
    gram = inn.gram(net, x[:2], x[1:], demand=demand)
    assert gram.ntk.shape == (2, 2, 2, 2)
    _close((gram.nngp, gram.ntk), _of_pairs(net, x[:2], x[1:], demand=demand))


def test_number_of_parts():
    net, shape = _networks["images"]
    x = jnp.asarray(_normal(2, *shape))
    parts = _parts(net, x)
    whole: Any = parts.entry
    assert isinstance(whole, PooledWindowsEntry)

    def of(count):
        entry = dataclasses.replace(whole, count=count)
        assert len(entry.parts) == count
        args = parts.arrays, x, x
        each = [program_of(entry, pairs, *args, p)(*args, p) for p in entry.parts]
        total = ft.reduce(add, each)
        return program_of(entry, finish_pairs, parts.arrays, total)(parts.arrays, total)

    _close(of(1), of(2))
    _close(of(1), of(4))


@pytest.mark.parametrize(
    "layers",
    [
        (_conv((3,)), inn.Relu(), inn.AvgPool((2,))),
        (_conv((3,)), inn.Relu(), inn.AvgPool((2,), (2,), "SAME")),
        (_conv((2,), None, "VALID"), inn.Relu(), inn.AvgPool((2,), (2,))),
        (_conv((3,)), inn.SelfAttention(4, 4, 4, 1), inn.AvgPool((5,))),
    ],
    ids=["overlap", "edges", "valid", "attention"],
)
def test_other_networks(layers):
    net = _net(*layers, inn.Dense(4), inn.Relu(), inn.Flatten(), _last)
    x = _normal(3, 5, 2)
    assert isinstance(_parts(net, x).entry, Entry)
    gram = inn.gram(net, x[:2], x[1:])
    _close((gram.nngp, gram.ntk), _of_pairs(net, x[:2], x[1:]))


def test_single_precision():
    net, shape = _networks["images"]
    x = _normal(3, *shape)
    check_single_precision(net, x)


def test_mixed_precision():
    net, shape = _networks["flattened"]
    x = _normal(3, *shape)
    want = inn.gram(net, x[:2], x[1:]).ntk
    for dtypes in ((np.float32, np.float64), (np.float64, np.float32)):
        got = inn.gram(net, x[:2].astype(dtypes[0]), x[1:].astype(dtypes[1])).ntk
        assert got.dtype == jnp.float64
        np.testing.assert_allclose(got, want, rtol=1e-5)


def test_memory():
    """There are no arrays of all pairs of positions that are not pooled."""
    net = _net(
        _conv((3, 3)),
        inn.Relu(),
        inn.AvgPool((4, 4), (4, 4)),
        _conv((3, 3)),
        inn.Relu(),
        inn.GlobalAvgPool(),
    )
    x = jnp.asarray(_normal(1, 32, 32, 1))
    used = tile_memory(_parts(net, x), x, x)
    assert used.temp_size_in_bytes < (32 * 32) ** 2 * x.itemsize / 2
    assert inn.gram(net, x, memory=2**22).ntk.shape == (1, 1)
