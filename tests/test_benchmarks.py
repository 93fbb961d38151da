"""The benchmarks: that their networks can be built, and how work is counted.

What they measure is not tested.
"""

import importlib
import itertools as it
import math
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import infinitenet as inn


sys.path.append(str(pathlib.Path(__file__).resolve().parents[1] / "benchmarks"))
counts = importlib.import_module("counts")
layers = importlib.import_module("layers")
peer = importlib.import_module("peer")

_workloads = peer.WORKLOADS | peer.DEEP | layers.WORKLOADS
_patterns = {
    "adjacency": lambda spatial: jnp.zeros(2 * spatial),
    "edges": lambda spatial: jnp.zeros((1, 2), int),
}


@pytest.mark.parametrize("name", sorted(_workloads))
def test_networks(name):
    """They can be built, and that of a quick trial has a kernel without positions."""
    workload = _workloads[name]
    workload.spec.build(inn, workload.depth)
    small = workload.small()
    graph = _patterns.get(small.spec.graph, lambda spatial: None)
    x = inn.Inputs(jnp.zeros(small.shape), pattern=graph(small.shape[:-1]))
    net = small.spec.build(inn, small.depth)
    out = jax.eval_shape(lambda x: net.kernel(x, x), x)
    assert out.nngp.array.shape == out.ntk.array.shape == ()


@pytest.mark.parametrize("spatial", [(), (5,), (4, 6)])
@pytest.mark.parametrize("step", [0, 1, 2, 3])
def test_pairs(spatial, step):
    def among(p, q):
        offsets = np.subtract(p, q)
        return not np.any(offsets % step if step else offsets)

    positions = list(it.product(*map(range, spatial)))
    expected = sum(among(p, q) for p in positions for q in positions)
    assert counts.n_pairs(spatial, (step,) * len(spatial)) == expected


def _steps(net, shape):
    signal = inn.Signal(shape, np.dtype(np.float32))
    return counts.walk(net, signal, counts.Need(()))[1]


def test_needs():
    """Equal positions, all pairs, and those at the offsets that strides leave."""
    conv, relu, last = inn.Conv(1, (3,), padding="SAME"), inn.Relu(), inn.Dense(1)
    strided = inn.Conv(1, (3,), (2,), padding="SAME")
    block = inn.Residual(inn.Sequential([relu, conv]))

    def needed(*layers):
        return _steps(inn.Sequential([*layers, last]), (8, 1))[0].need

    assert needed(conv, relu, inn.Flatten()) == ((0,), (0,))
    assert needed(conv, inn.GlobalAvgPool()) == ((1,), None)
    assert needed(conv, inn.Repeat(block, 3), inn.GlobalAvgPool()) == ((1,), (0,))
    assert needed(conv, strided, relu, strided, inn.GlobalAvgPool()) == ((4,), (0,))
    pooled = (inn.AvgPool((2,), (2,)), relu, inn.Flatten())
    assert needed(strided, *pooled) == ((2,), (2,))


def test_count():
    """A small network, by hand."""
    net = inn.Sequential(
        [
            inn.Conv(1, (3, 3), padding="SAME"),
            inn.Repeat(inn.Residual(inn.Sequential([inn.Relu(), inn.Dense(1)])), 2),
            inn.GlobalAvgPool(),
            inn.Dense(1),
        ]
    )
    n1, n2, positions, channels = 3, 5, 16, 7
    pairs, alone = n1 * n2 * positions**2, (n1 + n2) * positions
    work = counts.count(net, (4, 4, channels), n1, n2, math.inf)
    # Inputs, the convolution, two blocks of three layers, the last two of which are not
    # needed of single examples the second time, pooling, and a linear layer.
    assert work.covariances == 8 * pairs + 2 * n1 * n2 + 6 * alone - alone
    assert work.products == 2 * channels * (pairs + alone)
    relu, affine, conv = sum(counts.COSTS[inn.Relu]), 4, 2 * (4 + 2)
    arithmetic = pairs * (conv + 2 * (relu + affine + 2))
    arithmetic += 2 * (pairs - n1 * n2) + 2 * n1 * n2 + affine * n1 * n2
    alone_only = 6 + (counts.COSTS[inn.Relu].nngp + 2 + 1)
    assert work.arithmetic == arithmetic + alone * alone_only
    assert work.bytes == 4 * ((n1 + n2) * positions * channels + 2 * n1 * n2)
    # Without a cache each layer reads and writes its arrays.
    moved = counts.count(net, (4, 4, channels), n1, n2, 0).bytes - work.bytes
    assert moved == 8 * (7 * 2 * pairs + (pairs + n1 * n2) + 2 * n1 * n2)


def test_costs_are_known():
    for workload in peer.WORKLOADS.values():
        net = workload.spec.build(inn, workload.depth)
        work = counts.count(net, workload.shape, workload.n, workload.n, 2**25)
        assert work.arithmetic > work.covariances > 0


def test_unknown_costs():
    net = inn.Sequential([inn.Dense(1), inn.Gelu(), inn.Dense(1)])
    with pytest.raises(NotImplementedError, match="Gelu"):
        counts.count(net, (3,), 1, 1, 0)
    net = inn.Sequential([inn.Dense(1), inn.LayerNorm(), inn.Dense(1)])
    with pytest.raises(NotImplementedError, match="LayerNorm"):
        counts.count(net, (3,), 1, 1, 0)
