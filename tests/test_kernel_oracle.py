"""Kernels of whole networks against stored values: `oracle/README.md` says whose."""

import jax
import numpy as np
import pytest
from helpers import build, case_demand, case_inputs, load, novel, run_once

import infinitenet as inn


_cases, _arrays = load("kernels")
_cases = {case["name"]: case for case in _cases}
_all = pytest.mark.parametrize("name", _cases)
_x32 = np.float32


def _but_slow(slow):
    """All cases, some of which only `pytest -m slow` runs."""
    marks = lambda name: [pytest.mark.slow] if name in slow else []
    each = [pytest.param(name, marks=marks(name), id=name) for name in _cases]
    return pytest.mark.parametrize("name", each)


# Of other sizes, degrees and depths than cases before them. In float64 all run.
_others = set(_cases) - set(novel(_cases))
_without_positions = {
    name for name, case in _cases.items() if _arrays[case["inputs"]["x1"]].ndim == 2
}

# The angle between coincident activations is known to the square root of rounding, and
# one such entry is in the diagonal of `k(x1, x1)`. Elsewhere closed forms are exact, and
# quadrature is as exact as it says.
_tolerance = 1e-10


def _interleaved(array):
    """Stored values have each position beside its partner: `(h, h', w, w')`."""
    ndim = (array.ndim - 2) // 2
    axes = np.arange(2, array.ndim).reshape(2, ndim).T.ravel()
    return np.transpose(np.asarray(array, float), (0, 1, *axes))


def _difference(got, want):
    return np.max(np.abs(got - want)) / max(np.sqrt(np.mean(want**2)), 1e-30)


def _check(case, gram, n1, tolerances):
    """The blocks of a matrix of all inputs."""
    blocks = {"12": np.s_[:n1, n1:], "11": np.s_[:n1, :n1]}
    for pair, tolerance in tolerances.items():
        if pair not in case.get("pairs", tolerances):
            continue
        for name in ("nngp", "ntk"):
            want = _arrays[case["outputs"][f"{name}_{pair}"]]
            got = _interleaved(getattr(gram, name)[blocks[pair]])
            assert got.shape == want.shape
            assert _difference(got, want) < tolerance, f"{name}_{pair}"


def _tolerances(case):
    quadrature = _has(case, "ElementwiseNumerical")
    # Stored values are by quadrature themselves, of a fixed degree.
    return {"12": 1e-7 if quadrature else _tolerance, "11": case["tolerance"]}


def _has(case, layer):
    return any(spec["layer"] == layer for spec in case["layers"])


@_all
def test_float64(name):
    case = _cases[name]
    x, n1 = case_inputs(case, _arrays)
    net, demand, tolerances = build(case["layers"]), case_demand(case), _tolerances(case)
    # Those of attention are also exact where inputs coincide, as `gram(net, x)` is.
    exact = {"11": _tolerance} if _has(case, "GlobalSelfAttention") else {}
    _check(case, inn.gram(net, x, demand=demand), n1, tolerances | exact)
    if _has(case, "Dropout"):
        del tolerances["11"]  # Copies are dropped independently.
    _check(case, inn.gram(net, x, x, demand=demand), n1, tolerances)


@_but_slow(_others)
def test_float32(name):
    case = _cases[name]
    x, n1 = case_inputs(case, _arrays, _x32)
    gram = run_once(
        lambda x: inn.gram(build(case["layers"]), x, demand=case_demand(case)), x
    )
    assert gram.nngp.dtype == gram.ntk.dtype == _x32
    _check(case, gram, n1, {"12": 1e-5, "11": max(1e-5, case["tolerance"])})


@_but_slow(_others | _without_positions)
def test_everything_at_once(name):
    """Compiled as one program, in which all pairs of positions are carried along."""
    case = _cases[name]
    x, n1 = case_inputs(case, _arrays)
    net = build(case["layers"])
    everything = inn.Demand(inn.Pairs.ALL, inn.Pairs.ALL)

    def entry(x1, x2):
        return net.infinite(inn.Kernel.of_inputs(x1, x2, everything))

    def matrix(x1, x2):
        return jax.vmap(jax.vmap(entry, (None, 0)), (0, None))(x1, x2)

    first, second = jax.tree.map(lambda x: x[:n1], x), jax.tree.map(lambda x: x[n1:], x)
    kernel = run_once(matrix, first, second)
    if len(case["output_axes"]) > 2:
        assert kernel.nngp.pairs == inn.Pairs.ALL
    gram = inn.Gram(kernel.nngp.array, kernel.ntk.array)
    # The second inputs are all of its columns.
    for part in ("nngp", "ntk"):
        want = _arrays[case["outputs"][f"{part}_12"]]
        got = _interleaved(getattr(gram, part))
        assert got.shape == want.shape
        assert _difference(got, want) < _tolerances(case)["12"], part
