"""Kernels of whole networks against stored values: `oracle/README.md` says whose."""

import equinox as eqx
import jax
import numpy as np
import pytest
from helpers import build, is_known, load

import infinitenet as inn


_cases, _arrays = load("kernels")
_cases = {
    case["name"]: case
    for case in _cases
    if is_known(case["layers"]) and "mask_constant" not in case
}
_x64, _x32 = np.float64, np.float32

# The angle between coincident activations is known to the square root of rounding, and
# one such entry is in the diagonal of `k(x1, x1)`. Elsewhere closed forms are exact.
_tolerance = 1e-10


def _inputs(case, dtype: type = _x64):
    return [_arrays[case["inputs"][x]].astype(dtype) for x in ("x1", "x2")]


def _demand(case):
    """Networks without readout keep positions, and their values are of all pairs."""
    keeps = len(case["output_axes"]) > 2
    return inn.Demand(inn.Pairs.ALL) if keeps else inn.Demand()


def _interleaved(array):
    """Stored values have each position beside its partner: `(h, h', w, w')`."""
    ndim = (array.ndim - 2) // 2
    axes = np.arange(2, array.ndim).reshape(2, ndim).T.ravel()
    return np.transpose(np.asarray(array, float), (0, 1, *axes))


def _difference(got, want):
    return np.max(np.abs(got - want)) / np.sqrt(np.mean(want**2))


def _check(case, gram, pair, tolerance):
    for name in ("nngp", "ntk"):
        want = _arrays[case["outputs"][f"{name}_{pair}"]]
        got = _interleaved(getattr(gram, name))
        assert got.shape == want.shape
        assert _difference(got, want) < tolerance, name


@pytest.mark.parametrize("name", _cases)
def test_float64(name):
    case = _cases[name]
    x1, x2 = _inputs(case)
    net, demand = build(case["layers"]), _demand(case)
    _check(case, inn.gram(net, x1, x2, demand=demand), "12", _tolerance)
    _check(case, inn.gram(net, x1, demand=demand), "11", case["tolerance"])
    copies = inn.gram(net, x1, x1.copy(), demand=demand)
    _check(case, copies, "11", case["tolerance"])


@pytest.mark.parametrize("name", _cases)
def test_float32(name):
    case = _cases[name]
    x1, x2 = _inputs(case, _x32)
    net, demand = build(case["layers"]), _demand(case)
    for pair, second in (("12", x2), ("11", None)):
        gram = inn.gram(net, x1, second, demand=demand)
        assert gram.nngp.dtype == gram.ntk.dtype == _x32
        _check(case, gram, pair, 1e-5)


@pytest.mark.parametrize("name", _cases)
def test_jit(name):
    case = _cases[name]
    x1, x2 = _inputs(case)
    gram = eqx.filter_jit(lambda net, x1, x2: inn.gram(net, x1, x2, demand=_demand(case)))
    _check(case, gram(build(case["layers"]), x1, x2), "12", _tolerance)


@pytest.mark.parametrize("name", _cases)
def test_more_than_is_needed(name):
    """Covariances between all positions give the same as those that are needed."""
    case = _cases[name]
    x1, x2 = _inputs(case)
    net = build(case["layers"])
    everything = inn.Demand(inn.Pairs.ALL, inn.Pairs.ALL)

    def entry(x1, x2):
        return net.infinite(inn.Kernel.of_inputs(x1, x2, everything))

    kernel = jax.vmap(jax.vmap(entry, (None, 0)), (0, None))(x1, x2)
    nngp, ntk = kernel.nngp, kernel.ntk
    if len(case["output_axes"]) > 2:
        assert nngp.pairs == inn.Pairs.ALL
    _check(case, inn.Gram(nngp.array, ntk.array), "12", _tolerance)


def test_nothing_is_left_out():
    """As many cases as there are for these layers."""
    assert len(_cases) >= 45
