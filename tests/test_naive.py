"""Kernels of small networks against loops over positions, in NumPy.

Every formula here is written down for all inputs and all pairs of positions at once: no
marginals, no demands, no derivatives of duals, and nothing shared with the library.
"""

import itertools as it
import math
from typing import NamedTuple

import hypothesis as hyp
import hypothesis.strategies as st
import numpy as np
import pytest

import infinitenet as inn


_PAIRS = inn.Demand(inn.Pairs.ALL)


#
# A naive implementation
#


class _State(NamedTuple):
    """NNGP and NTK, of shape `(n, n, *spatial, *spatial)`, and the number of channels."""

    nngp: np.ndarray
    ntk: np.ndarray
    channels: int

    @property
    def spatial(self):
        return self.nngp.shape[2 : 2 + (self.nngp.ndim - 2) // 2]


def _positions(spatial):
    return list(it.product(*map(range, spatial)))


def _inputs(x):
    spatial = x.shape[1:-1]
    nngp = np.zeros((len(x), len(x), *spatial, *spatial))
    for p in _positions(spatial):
        for q in _positions(spatial):
            nngp[:, :, *p, *q] = x[:, *p] @ x[:, *q].T / x.shape[-1]
    return _State(nngp, np.zeros_like(nngp), x.shape[-1])


def _windows(spatial, size, strides, padding):
    """For each output position, what each offset looks at: `None` is outside."""
    along = []
    for n, k, s in zip(spatial, size, strides or (1,) * len(size), strict=True):
        if padding == "VALID":
            starts = range(0, n - k + 1, s)
        else:
            out = math.ceil(n / s)
            before = max((out - 1) * s + k - n, 0) // 2
            starts = [o * s - before for o in range(out)]
        seen = [[start + d for d in range(k)] for start in starts]
        if padding == "CIRCULAR":
            seen = [[i % n for i in window] for window in seen]
        along.append([[i if 0 <= i < n else None for i in w] for w in seen])
    shape = tuple(map(len, along))
    windows = {
        o: list(it.product(*(along[dim][i] for dim, i in enumerate(o))))
        for o in _positions(shape)
    }
    return shape, windows


def _looped(state, size, strides, padding, entry):
    """NNGP and NTK of which each entry is made from those of two windows."""
    spatial, n = state.spatial, len(state.nngp)
    shape, windows = _windows(spatial, size, strides, padding)
    out = []
    for k in (state.nngp, state.ntk):
        new = np.zeros((n, n, *shape, *shape))
        for p in _positions(shape):
            for q in _positions(shape):
                new[:, :, *p, *q] = entry(k, windows[p], windows[q])
        out.append(new)
    return out


def _look(k, p, q):
    if None in p or None in q:
        return 0.0
    return k[:, :, *p, *q]


def _conv_entry(k, window1, window2):
    return sum(_look(k, p, q) for p, q in zip(window1, window2, strict=True)) / len(window1)


def _pool_entry(normalize_edges):
    def entry(k, window1, window2):
        total = sum(_look(k, p, q) for p in window1 for q in window2)
        if normalize_edges:
            window1, window2 = ([p for p in w if None not in p] for w in (window1, window2))
        return total / (len(window1) * len(window2))

    return entry


def _affine(layer, nngp, ntk, fan_in):
    v = float(layer.W_std) ** 2
    b = 0.0 if layer.b_std is None else float(layer.b_std) ** 2
    if isinstance(layer.parameterization, inn.StandardParameterization):
        s_in, s_out = layer.parameterization.s
        new = fan_in / s_in * nngp + v * ntk + (layer.b_std is not None)
    else:
        s_out = 1
        new = v * nngp + b + v * ntk
    return _State(v * nngp + b, new, s_out * layer.width)


def _relu(state):
    n, spatial = len(state.nngp), state.spatial
    nngp, ntk = np.zeros_like(state.nngp), np.zeros_like(state.ntk)
    for i, j in it.product(range(n), repeat=2):
        for p, q in it.product(_positions(spatial), repeat=2):
            k = state.nngp[i, j, *p, *q]
            s = math.sqrt(state.nngp[i, i, *p, *p] * state.nngp[j, j, *q, *q])
            c = 1.0 if (i, p) == (j, q) else min(max(k / s, -1.0), 1.0)
            theta = math.acos(c)
            nngp[i, j, *p, *q] = s * (math.sin(theta) + (math.pi - theta) * c) / math.tau
            ntk[i, j, *p, *q] = (math.pi - theta) / math.tau * state.ntk[i, j, *p, *q]
    return _State(nngp, ntk, state.channels)


def _erf(layer, state):
    a, b = float(layer.a), float(layer.b)
    c = 0.0 if layer.c is None else float(layer.c)
    n, spatial = len(state.nngp), state.spatial
    nngp, ntk = np.zeros_like(state.nngp), np.zeros_like(state.ntk)
    for i, j in it.product(range(n), repeat=2):
        for p, q in it.product(_positions(spatial), repeat=2):
            k = 2 * b**2 * state.nngp[i, j, *p, *q]
            q1 = 1 + 2 * b**2 * state.nngp[i, i, *p, *p]
            q2 = 1 + 2 * b**2 * state.nngp[j, j, *q, *q]
            angle = math.asin(k / math.sqrt(q1 * q2))
            nngp[i, j, *p, *q] = a**2 * 2 / math.pi * angle + c**2
            slope = 4 * (a * b) ** 2 / math.pi / math.sqrt(q1 * q2 - k**2)
            ntk[i, j, *p, *q] = slope * state.ntk[i, j, *p, *q]
    return _State(nngp, ntk, state.channels)


def _without_positions(state, pairs, channels):
    """The mean over some pairs of positions."""
    nngp, ntk = (
        np.mean([k[:, :, *p, *q] for p, q in pairs], 0) for k in (state.nngp, state.ntk)
    )
    return _State(nngp, ntk, channels)


def _naive(layer, state):
    positions = _positions(state.spatial)
    match layer:
        case inn.Sequential():
            for each in layer.layers:
                state = _naive(each, state)
            return state
        case inn.Repeat():
            return _naive(inn.Sequential([layer.layer] * layer.times), state)
        case inn.Residual():
            return _total([_naive(each, state) for each in (layer.branch, layer.shortcut)])
        case inn.Sum():
            return _total([_naive(each, state) for each in layer.layers])
        case inn.Identity():
            return state
        case inn.Dense():
            return _affine(layer, state.nngp, state.ntk, state.channels)
        case inn.Conv():
            window = layer.filter_shape, layer.strides, layer.padding
            nngp, ntk = _looped(state, *window, _conv_entry)
            return _affine(layer, nngp, ntk, state.channels * math.prod(layer.filter_shape))
        case inn.AvgPool():
            window = layer.window_shape, layer.strides, layer.padding
            nngp, ntk = _looped(state, *window, _pool_entry(layer.normalize_edges))
            return _State(nngp, ntk, state.channels)
        case inn.GlobalAvgPool():
            pairs = list(it.product(positions, repeat=2))
            return _without_positions(state, pairs, state.channels)
        case inn.Flatten():
            pairs = list(zip(positions, positions, strict=True))
            return _without_positions(state, pairs, state.channels * len(positions))
        case inn.Relu():
            return _relu(state)
        case inn.Erf():
            return _erf(layer, state)
    raise NotImplementedError(layer)


def _total(states):
    nngp, ntk = (np.sum([getattr(s, k) for s in states], 0) for k in ("nngp", "ntk"))
    return _State(nngp, ntk, states[0].channels)


#
# Comparison
#


def _close(got, want, tolerance):
    want = np.asarray(want)
    assert got.shape == want.shape
    scale = max(np.sqrt(np.mean(want**2)), 1e-3)
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * scale)


def _of_demand(k, spatial, demand):
    if not spatial or demand.cross == inn.Pairs.ALL:
        return k
    same = [k[:, :, *p, *p] for p in _positions(spatial)]
    return np.stack(same, -1).reshape(*k.shape[:2], *spatial)


def _compare(net, shape, demands=(inn.Demand(),), *, alone=True):
    """`gram(net, x1, x2)` and perhaps `gram(net, x)`, which share a program."""
    n = 2
    x = np.random.default_rng(0).normal(size=(2 * n, *shape))
    x1, x2 = x[:n], x[n:]
    want = _naive(net, _inputs(x))
    for demand in demands:
        pairs = [(inn.gram(net, x1, x2, demand=demand), slice(n, None))]
        if alone:
            pairs.append((inn.gram(net, x1, demand=demand), slice(n)))
        for got, columns in pairs:
            for name in ("nngp", "ntk"):
                array = _of_demand(getattr(want, name), want.spatial, demand)
                _close(getattr(got, name), array[:n, columns], 1e-11)


# Each with the shape of its inputs. Together they have every layer, every padding and all
# numbers of dimensions. Widths and sizes differ, so that no two of them can be confused.
_networks = {
    "dense": (
        [
            inn.Dense(7, 1.3, 0.2),
            inn.Relu(),
            inn.Dense(5, 0.9, 0.4),
            inn.Relu(),
            inn.Dense(1),
        ],
        (3,),
    ),
    "standard": (
        [
            inn.Dense(7, 1.3, 0.2, parameterization=inn.StandardParameterization((1, 2))),
            inn.Relu(),
            inn.Dense(5, 0.9, parameterization=inn.StandardParameterization((2, 3))),
            inn.Erf(1.1, 0.6, 0.3),
            inn.Dense(1, 1.2, 0.0, parameterization=inn.StandardParameterization((3, 1))),
        ],
        (3,),
    ),
    "conv1d": (
        [
            inn.Conv(4, (3,), (2,), "SAME", 1.2, 0.3),
            inn.Relu(),
            inn.Conv(4, (2,), None, "CIRCULAR", 1.4),
            inn.Relu(),
            inn.Flatten(),
            inn.Dense(1, 0.8, 0.1),
        ],
        (8, 2),
    ),
    "conv2d_pool": (
        [
            inn.Conv(4, (3, 2), (1, 2), "SAME", 1.2, 0.3),
            inn.Erf(),
            inn.AvgPool((2, 3), (2, 1), "SAME", True),
            inn.Conv(4, (1, 2), None, "VALID", 0.7, 0.2),
            inn.Relu(),
            inn.GlobalAvgPool(),
            inn.Dense(1),
        ],
        (4, 5, 2),
    ),
    "conv3d": (
        [inn.Conv(4, (2, 1, 2), (1, 2, 1), "SAME", 1.2, 0.1), inn.Relu(), inn.Flatten()],
        (2, 3, 2, 2),
    ),
    "conv_standard": (
        [
            inn.Conv(4, (3,), None, "CIRCULAR", 1.2, 0.3, parameterization="standard"),
            inn.Relu(),
            inn.Conv(3, (2,), (2,), "SAME", 1.1, parameterization="standard"),
            inn.Relu(),
            inn.Flatten(),
            inn.Dense(1, 1.0, 0.2, parameterization="standard"),
        ],
        (5, 2),
    ),
    "residual": (
        [
            inn.Conv(4, (2,), None, "SAME", 1.2, 0.3),
            inn.Residual(
                inn.Sequential([inn.Relu(), inn.Conv(4, (3,), (2,), "SAME", 1.1, 0.1)]),
                inn.Conv(4, (1,), (2,), "SAME", 0.6),
            ),
            inn.Repeat(
                inn.Residual(inn.Sequential([inn.Relu(), inn.Conv(4, (3,), None, "SAME")])),
                2,
            ),
            inn.Relu(),
            inn.AvgPool((2,), (2,), "CIRCULAR"),
            inn.Flatten(),
            inn.Dense(1),
        ],
        (6, 2),
    ),
    "sum": (
        [
            inn.Sum([inn.Dense(6, 0.7, 0.2), inn.Dense(6, 0.4), inn.Identity()]),
            inn.Dense(6, 1.1),
            inn.Sum(
                [
                    inn.Sequential([inn.Relu(), inn.Dense(6, 1.3)]),
                    inn.Sequential([inn.Erf(1.4, 0.3, 0.1), inn.Dense(6, 0.3, 0.2)]),
                ]
            ),
        ],
        (6,),
    ),
}


@pytest.mark.parametrize("name", _networks)
def test_networks(name):
    layers, shape = _networks[name]
    _compare(inn.Sequential(layers), shape)


@pytest.mark.parametrize("padding", ["SAME", "VALID", "CIRCULAR"])
def test_positions_remain(padding):
    """Networks without readout, with equal positions and with all pairs of them."""
    layers = [
        inn.Conv(4, (3, 2), (2, 1), padding, 1.2, 0.3),
        inn.Relu(),
        inn.Dense(3, 0.8, 0.1),
    ]
    _compare(inn.Sequential(layers), (4, 5, 2), (inn.Demand(), _PAIRS))


def test_pooled_positions_remain():
    """Of equal positions, even where all pairs were needed to compute them."""
    net = inn.Sequential([inn.Dense(3, 1.1, 0.2), inn.AvgPool((2,), (2,))])
    _compare(net, (5, 2), (inn.Demand(), _PAIRS))


@st.composite
def _windowed(draw):
    """A window, two options, and a shape that it fits into."""
    ndim = draw(st.integers(1, 3))
    each = lambda low, high: tuple(draw(st.integers(low, high)) for _ in range(ndim))
    size, strides = each(1, 4 - ndim // 2), each(1, 3)
    # No window may go around its input more than once.
    extra = each(0, 3 - ndim // 2)
    spatial = tuple(a + b for a, b in zip(size, extra, strict=True))
    padding = draw(st.sampled_from(["SAME", "VALID", "CIRCULAR"]))
    window = size, strides, padding
    return window, draw(st.booleans()), draw(st.booleans()), (*spatial, 2)


@hyp.given(windowed=_windowed())
@hyp.settings(max_examples=6)
def test_windows(windowed):
    """Of any size, strides and padding, in any number of dimensions."""
    window, is_conv, option, shape = windowed
    if is_conv:
        layer = inn.Conv(3, *window, W_std=1.2, b_std=0.3 if option else None)
    else:
        layer = inn.AvgPool(*window, normalize_edges=option)
    # After a layer of weights, so that there is an NTK to be moved.
    net = inn.Sequential([inn.Dense(3, 1.1, 0.2), layer])
    _compare(net, shape, (_PAIRS,), alone=False)


@pytest.mark.parametrize("n, size, stride", [(2, 3, 1), (3, 5, 2), (4, 2, 3)])
@pytest.mark.parametrize("padding", ["SAME", "CIRCULAR"])
def test_large_windows(n, size, stride, padding):
    """Larger than their input, or with strides that jump over some of it."""
    conv = inn.Conv(3, (size,), (stride,), padding, 1.2, 0.1)
    pool = inn.AvgPool((size,), (stride,), padding, True)
    for layers in ([inn.Dense(3), conv], [inn.Dense(3), pool]):
        _compare(inn.Sequential(layers), (n, 2), (_PAIRS,), alone=False)


def test_large_filters_in_passes():
    """Filters of many positions are summed along each dimension by itself."""
    net = inn.Sequential([inn.Dense(3, 1.1, 0.2), inn.Conv(3, (4, 3), None, "SAME")])
    _compare(net, (4, 3, 2), alone=False)
