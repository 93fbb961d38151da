"""Kernels of pooled networks, from pairs of positions at a few distances at a time."""

import dataclasses
import itertools as it

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import check_single_precision, tile_memory

import infinitenet as inn
from infinitenet._entries import Entry
from infinitenet._parts import Parts
from infinitenet._pooled import PooledEntry
from infinitenet._shifts import Shifts
from infinitenet._tiles import choose_tiles, cut
from infinitenet._window import Window


_rng = np.random.default_rng(0)


def _normal(*shape):
    return _rng.normal(size=shape)


#
# One by one
#


def _shifts(start, step, count):
    return Shifts(jnp.asarray(start, jnp.int32), step, count)


def _each(shifts, spatial):
    """Index of each pair of positions: in arrays of shifts, and of both images."""
    start = np.asarray(shifts.start)
    for i, p in it.product(range(shifts.count), it.product(*map(range, spatial))):
        q = np.add(p, start)
        q[-1] += i * shifts.step
        yield (i, *p), p, tuple(q % spatial)


def _at(k, shifts, spatial):
    """What shifts hold of all pairs."""
    out = np.zeros((shifts.count, *spatial))
    for index, p, q in _each(shifts, spatial):
        out[index] = k[(*p, *q)]
    return out


@pytest.mark.parametrize(
    "spatial, start, step, count",
    [
        ((5,), (3,), 2, 4),
        ((2, 5), (1, 3), 2, 4),
        ((3, 4), (2, 1), 1, 4),
        ((2, 3, 4), (1, 2, 2), 2, 2),
    ],
)
@pytest.mark.parametrize("channels", [2, 11])
def test_of_images(spatial, start, step, count, channels):
    shifts = _shifts(start, step, count)
    x1, x2 = map(jnp.asarray, _normal(2, *spatial, channels))
    second, products = np.zeros((2, count, *spatial))
    for index, p, q in _each(shifts, spatial):
        second[index] = x2[(*q, 0)]
        products[index] = x1[p] @ x2[q]
    assert np.array_equal(shifts.second(x2[..., 0]), second)
    np.testing.assert_allclose(shifts.products(x1, x2), products, rtol=1e-12, atol=1e-13)


def _sum_of_window(k, window, spatial):
    """All pairs of outputs: the sum of those that are within both images."""
    out = window.out_shape(spatial)
    before = [lo for lo, _ in window.extents(spatial)]
    sums = np.zeros(2 * out)
    for p, q in it.product(it.product(*map(range, out)), repeat=2):
        for d in it.product(*map(range, window.size)):
            both = [np.multiply(a, window.strides) + d - before for a in (p, q)]
            if window.padding == "CIRCULAR":
                both = [np.mod(a, spatial) for a in both]
            if all(np.all(a >= 0) and np.all(a < spatial) for a in both):
                sums[(*p, *q)] += k[(*both[0], *both[1])]
    return sums


@pytest.mark.parametrize(
    "spatial, size, strides, start, count",
    [
        ((5,), (3,), (1,), (4,), 5),
        ((6,), (4,), (2,), (4,), 3),
        ((6,), (5,), (3,), (3,), 2),
        ((4, 4), (3, 3), (1, 1), (3, 2), 3),
        ((4, 4), (2, 3), (2, 1), (2, 1), 2),
        # Of more than nine positions, one dimension after the other.
        ((4, 6), (4, 3), (1, 2), (3, 2), 3),
        ((3, 4, 2), (3, 2, 2), (1, 2, 1), (2, 2, 0), 2),
    ],
)
@pytest.mark.parametrize("padding", ["SAME", "CIRCULAR"])
def test_window(spatial, size, strides, start, count, padding):
    window = Window(size, strides, padding)
    assert window.step(spatial) == strides
    shifts, k = _shifts(start, strides[-1], count), _normal(*spatial, *spatial)
    through, out = shifts.through(strides), window.out_shape(spatial)
    got = shifts.window(jnp.asarray(_at(k, shifts, spatial)), window)
    want = _at(_sum_of_window(k, window, spatial), through, out)
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-13)


#
# Networks
#


def _conv(size, strides=None, padding="SAME"):
    return inn.Conv(4, size, strides, padding, W_std=1.3, b_std=0.2)


def _sequential(*layers):
    return inn.Sequential(layers)


def _pooled(*layers):
    return _sequential(*layers, inn.GlobalAvgPool(), inn.Dense(1, 1.2, 0.1))


_networks = {
    "images": (
        _pooled(
            _conv((3, 3)),
            inn.LayerNorm(),
            inn.Relu(),
            inn.Dropout(0.7),
            _conv((2, 2), (2, 1)),
            inn.Residual(_sequential(inn.Erf(), _conv((3, 2)))),
        ),
        (4, 4, 2),
    ),
    "sequences": (
        _sequential(
            _sequential(
                _conv((3,)), _sequential(inn.Relu(), _conv((2,), (2,), "CIRCULAR"))
            ),
            inn.Repeat(_sequential(inn.Relu(), _conv((3,))), 3),
            inn.Concatenate([_conv((3,)), inn.Dense(4)]),
            inn.GlobalSumPool(),
        ),
        (8, 9),
    ),
    "dropout": (
        _sequential(
            _conv((3,)), inn.Relu(), inn.GlobalAvgPool(), inn.Dropout(0.5), inn.Dense(1)
        ),
        (6, 2),
    ),
    "volumes": (_pooled(_conv((2, 3, 2)), inn.Relu(), inn.Dense(4)), (2, 3, 2, 1)),
}


def _options(**options):
    return {"ntk": True, "demand": inn.Demand(), "memory": None} | options


def _entry(net, x):
    return Parts(net, x, x, **_options()).entry


def _check(net, x):
    """Of one of the pairs, without `shifts`."""
    gram, pair = inn.gram(net, x[:2], x[2:]), net.kernel(x[1], x[3])
    for got, want in ((gram.nngp, pair.nngp), (gram.ntk, pair.ntk)):
        np.testing.assert_allclose(got[1, 1], want.array, rtol=1e-11)
    return gram


@pytest.mark.parametrize("name", _networks)
def test_networks(name):
    net, shape = _networks[name]
    x = _normal(5, *shape)
    assert isinstance(_entry(net, x), PooledEntry)
    gram = _check(net, x)
    # An input with itself, which is computed without shifts where positions are equal.
    alone = inn.gram(net, x)
    for got, want in ((alone.nngp, gram.nngp), (alone.ntk, gram.ntk)):
        np.testing.assert_allclose(got[:2, 2:], want, rtol=1e-11)
    one = net.kernel(x[1])
    for got, want in ((alone.nngp, one.nngp), (alone.ntk, one.ntk)):
        np.testing.assert_allclose(got[1, 1], want.array, rtol=1e-11)
    np.testing.assert_allclose(alone.ntk[1, 1], net.kernel(x[1]).ntk.array, rtol=1e-11)


def test_one_distance_at_a_time():
    """With little memory for large images. It does not change the kernel."""
    net, shape = _networks["sequences"]
    x = _normal(2, *shape)
    parts = Parts(net, x, x, **_options())
    assert isinstance(parts.entry, PooledEntry)
    distances = dataclasses.replace(parts.entry.distances, count=1)
    one = dataclasses.replace(parts.entry, distances=distances)
    assert len(parts.entry.parts) == 1 and len(one.parts) == 4
    each = [jax.jit(one.part)(parts.arrays, *parts.x1, part) for part in one.parts]
    total = jax.tree.map(lambda *k: sum(k), *each)
    _, ntk = one.finish(parts.arrays, total)
    np.testing.assert_allclose(ntk.array, inn.gram(net, x).ntk[0, 1], rtol=1e-12)


@pytest.mark.parametrize(
    "net",
    [
        _pooled(_conv((2,), None, "VALID"), inn.Relu(), inn.Dense(4)),
        _pooled(_conv((3,), (2,)), inn.Relu(), inn.Dense(4)),
        _pooled(_conv((3,)), inn.Relu(), inn.AvgPool((2,)), inn.Dense(4)),
        _sequential(
            _pooled(_conv((3,)), inn.Relu(), inn.Dense(4)), inn.Relu(), inn.Dense(1)
        ),
    ],
    ids=["valid", "uneven", "pooling", "nonlinearity"],
)
def test_other_networks(net):
    x = _normal(4, 5, 2)
    assert isinstance(_entry(net, x), Entry)
    _check(net, x)


def test_masks():
    net = _pooled(_conv((3,)), inn.Relu(), inn.Dense(4))
    x = _normal(4, 5, 2)
    inputs = inn.Inputs(x, missing=np.arange(5) > np.array([[4], [2], [3], [1]]))
    assert isinstance(_entry(net, x), PooledEntry)
    assert isinstance(_entry(net, inputs), Entry)
    pair = [jax.tree.map(lambda a, i=i: a[i : i + 1], inputs) for i in (1, 3)]
    first, second = (jax.tree.map(lambda a: a[0], each) for each in pair)
    want = net.kernel(first, second).ntk.array
    np.testing.assert_allclose(inn.gram(net, *pair).ntk[0, 0], want, rtol=1e-11)


def test_single_precision():
    net, shape = _networks["images"]
    x = _normal(3, *shape)
    check_single_precision(net, x)


#
# Memory
#


def test_memory_of_tiles():
    """That of images, not that of all pairs of positions."""
    net, memory = _pooled(_conv((3, 3)), inn.Relu(), _conv((3, 3)), inn.Relu()), 2**22
    x = jnp.asarray(_normal(4, 32, 32, 3))
    parts = Parts(net, x, x, **_options(memory=memory))
    tiling = choose_tiles(4, 4, parts.area, symmetric=False)
    x1, x2 = cut(parts.x1, 0, tiling.rows), cut(parts.x2, 0, tiling.columns)
    used = tile_memory(parts, x1, x2)
    assert used.temp_size_in_bytes + used.output_size_in_bytes < memory
    assert (32 * 32) ** 2 * x.itemsize > memory


def test_large_images():
    """All pairs of positions would take 128 MiB an array."""
    net = _pooled(_conv((3, 3)), inn.Relu(), _conv((3, 3), (2, 2)))
    x = _normal(2, 64, 64, 1).astype(np.float32)
    gram = inn.gram(net, x[:1], x[1:], memory=2**22)
    assert gram.ntk.shape == (1, 1) and 0 < gram.nngp[0, 0] < gram.ntk[0, 0]
