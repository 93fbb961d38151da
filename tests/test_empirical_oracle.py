"""Empirical kernels of networks with given weights, against stored values."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import build, load

import infinitenet as inn


_cases, _arrays = load("empirical")


def _network(case, x):
    """Of weights as they are named in the case."""
    # Nonlinearities are of no options here.
    specs = case["layers"]
    layers = [build([s]) if len(s) > 1 else getattr(inn, s["layer"])() for s in specs]
    layers = [s.layers[0] if isinstance(s, inn.Sequential) else s for s in layers]
    net = inn.Sequential(layers).init(jr.key(0), x[0])
    layers, i = list(net.layers), 0
    for j, layer in enumerate(layers):
        if getattr(layer, "weights", None) is None:
            continue
        for name in "Wb":
            if f"{name}{i}" in case["params"]:
                value = jnp.asarray(_arrays[case["params"][f"{name}{i}"]])
                where = lambda layer, name=name: getattr(layer.weights, name)
                layer = eqx.tree_at(where, layer, value)
        layers[j], i = layer, i + 1
    return eqx.tree_at(lambda net: net.layers, net, tuple(layers))


@pytest.mark.parametrize("case", _cases, ids=lambda case: case["name"])
def test_stored_values(case):
    x1, x2 = (jnp.asarray(_arrays[case["inputs"][name]]) for name in ("x1", "x2"))
    net = _network(case, x1)
    f = jax.vmap(net)(x1)
    np.testing.assert_allclose(f, _arrays[case["outputs"]["f_x1"]], atol=1e-14)
    for name, options in case["kernels"].items():
        for pair, second in (("12", x2), ("11", None)):
            got = inn.empirical_kernel(net, x1, second, progress=False, **options)
            for kind in ("nngp", "ntk"):
                want = _arrays[case["outputs"][f"{name}_{kind}_{pair}"]]
                error = np.abs(getattr(got, kind) - want).max()
                assert got.ntk.shape == want.shape
                assert error < 1e-12 * np.sqrt(np.mean(want**2))
