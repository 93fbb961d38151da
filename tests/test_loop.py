"""Layers that are alike, one after the other, as a loop."""

import equinox as eqx
import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
import pytest

import infinitenet as inn
from infinitenet._layer import infinite
from infinitenet._loop import repeats


_x1, _x2 = np.random.default_rng(0).normal(size=(2, 4, 2))


def _values(net, kernel):
    """Both kernels after a network."""
    out = infinite(net, kernel)
    return jnp.stack([jnp.sum(k.array) for k in (out.nngp, out.ntk)])


def _start():
    demand = inn.Demand(inn.Pairs.ALL, inn.Pairs.ALL)
    return inn.Sequential([inn.Dense(4, 1.1, 0.1)]).kernel(_x1, _x2, demand=demand)


def _one_by_one(layers, kernel):
    for layer in layers:
        kernel = infinite(layer, kernel)
    return jnp.stack([jnp.sum(k.array) for k in (kernel.nngp, kernel.ntk)])


def _conv(W_std, b_std=0.2):
    return inn.Conv(4, (3,), padding="SAME", W_std=W_std, b_std=b_std)


@pytest.mark.parametrize("period", [1, 2])
def test_unequal_hyperparameters(period):
    """Values and gradients are those of one layer after the other."""
    stds = (1.1, 1.3, 1.5, 0.9)
    if period == 1:
        layers = [_conv(s) for s in stds]
    else:
        layers = [layer for s in stds for layer in (inn.LeakyRelu(s / 5), _conv(s))]
    assert list(repeats(layers)) == [(0, period, 4)]
    kernel = _start()
    arrays, static = eqx.partition(tuple(layers), eqx.is_inexact_array)

    def values_and_gradients(fn):
        run = lambda arrays: fn(eqx.combine(arrays, static), kernel)
        return jax.jit(lambda arrays: (run(arrays), jax.jacrev(run)(arrays)))(arrays)

    loop = lambda layers, kernel: _values(inn.Sequential(layers), kernel)
    got, want = map(values_and_gradients, (loop, _one_by_one))
    assert jax.tree.structure(got) == jax.tree.structure(want)
    leaves = jax.tree.leaves(got)
    for a, b in zip(leaves, jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12)
    assert all(np.any(a != 0) for a in leaves)


def _equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        is_jaxpr = lambda value: isinstance(value, jex.ClosedJaxpr | jex.Jaxpr)
        for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=is_jaxpr):
            if is_jaxpr(inner):
                yield from _equations(getattr(inner, "jaxpr", inner))


def _loops(depth):
    """The primitives of a network of so many layers, and lengths of its loops."""
    blocks = [layer for i in range(depth) for layer in (_conv(1 + i / 100), inn.Relu())]
    net = inn.Sequential([inn.Dense(4), *blocks, inn.Flatten(), inn.Dense(1)])
    kernel = lambda x1, x2: jax.tree.leaves(net.kernel(x1, x2))
    found = list(_equations(jax.make_jaxpr(kernel)(_x1, _x2).jaxpr))
    lengths = [eqn.params["length"] for eqn in found if eqn.primitive.name == "scan"]
    return [eqn.primitive.name for eqn in found], lengths


def test_program_does_not_grow():
    (short, few), (long, many) = _loops(5), _loops(10)
    # Stacking hyperparameters takes an operation for each of them.
    bodies = lambda names: [n for n in names if n in ("scan", "jit", "sqrt", "atan2")]
    assert max(few) >= 4 and max(many) - max(few) == 5
    assert bodies(short) == bodies(long)
    assert short.count("add") == long.count("add") > 0


def test_repeats():
    """As many layers as possible are in loops."""
    dense, relu, erf = inn.Dense(4, 1.5), inn.Relu(), inn.Erf()
    layers = [inn.Dense(3), relu, dense, relu, dense, relu, dense, erf, inn.Dense(1)]
    assert list(repeats(layers)) == [(0, 1, 1), (1, 2, 3), (7, 2, 1)]
    assert list(repeats([dense])) == [(0, 1, 1)]
    assert list(repeats([])) == []
    # Another width, and another parameterization, is another layer.
    other = inn.Dense(4, parameterization="standard")
    assert all(times == 1 for _, _, times in repeats([inn.Dense(4), inn.Dense(5), other]))


def test_change_of_channels():
    """The first of equal layers may be given another number of them."""
    x1, x2 = _x1[0], _x2[0]
    layers = [inn.Dense(7, parameterization="standard"), inn.Relu()] * 3
    net = inn.Sequential([*layers, inn.Dense(1)])
    demand = inn.Demand(inn.Pairs.SAME, inn.Pairs.SAME)
    want = inn.Identity().kernel(x1, x2, demand=demand)
    for layer in net.layers:
        want = infinite(layer, want)
    got = net.kernel(x1, x2)
    np.testing.assert_allclose(got.ntk.array, want.ntk.array, rtol=1e-12)


@pytest.mark.parametrize("head", [(), (inn.Flatten(),)])
def test_channels_are_known(head):
    """Also after blocks that only pass on how many there are."""
    blocks = [*head, inn.Relu()] * 3
    net = inn.Sequential([*blocks, inn.Dense(1, parameterization="standard")])
    kernel = inn.Sequential([]).kernel(_x1, _x2, demand=net.requires(inn.Demand()))
    want = kernel
    for layer in net.layers:
        want = infinite(layer, want)
    got = infinite(net, kernel)
    assert got.channels == want.channels == 1
    np.testing.assert_allclose(got.ntk.array, want.ntk.array, rtol=1e-12)


def test_functions_that_differ():
    """Layers of which only a function differs are not alike."""
    a, b = inn.Elementwise(jnp.tanh), inn.Elementwise(jnp.arctan)
    net = lambda *fns: inn.Sequential(
        [layer for fn in fns for layer in (inn.Dense(4), fn)] + [inn.Dense(1)]
    )
    first, second = _x1[0], _x2[0]
    kernels = [
        net(*fns).kernel(first, second).ntk.array for fns in ((a, a), (a, b), (b, b))
    ]
    assert len({float(k) for k in kernels}) == 3


def test_errors_name_the_layer():
    """Also within what would be a loop."""
    block = [_conv(1.2), inn.Relu()]
    for wrong, words in (
        ([*block * 3, inn.Erf(), *block * 3], "layers[6] (Erf)"),
        ([*block * 3, inn.Conv(4, (3, 3)), *block * 3], "layers[6] (Conv)"),
        (
            [*block * 2, inn.Residual(inn.Sequential([_conv(1.1), inn.Conv(4, (2,))]))],
            "layers[4] (Residual)",
        ),
        ([*block, *[inn.Conv(4, (3,)), inn.Relu()] * 4], "layers[4] (Conv)"),
    ):
        with pytest.raises(ValueError) as error:
            inn.Sequential(wrong).kernel(_x1, _x2)
        assert words in str(error.value)
