"""Sums, products and concatenations of branches, and tuples of inputs."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import infinitenet as inn


def _normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


_first = inn.Dense(4, 0.9, 0.2)
_one = inn.Sequential([inn.Relu(), inn.Dense(3, 1.3, 0.1)])
_other = inn.Sequential([inn.Erf(), inn.Dense(3, 0.7)])
_gate = inn.Sequential([inn.Relu(), inn.Dense(4, 1.3, 0.1)])


def _gram(layers, x, y):
    return inn.gram(inn.Sequential(layers), x, y)


def _close(got, want):
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13)


def _both(gram):
    return np.asarray(gram.nngp), np.asarray(gram.ntk)


#
# Formulas
#


def test_product():
    x, y = _normal(0, 2, 3, 5)
    k1, t1 = _both(_gram([_first, _one], x, y))
    k2, t2 = _both(_gram([_first, _other], x, y))
    want = k1 * k2, t1 * k2 + k1 * t2
    _close(_both(_gram([_first, inn.Product([_one, _other])], x, y)), want)
    fan_in = [inn.FanOut(2), inn.Parallel([_one, _other]), inn.FanInProd()]
    _close(_both(_gram([_first, *fan_in], x, y)), want)
    # Of an input without weights after it, too.
    gated = [_first, inn.Product([inn.Identity(), _gate])]
    k0, t0 = _both(_gram([_first], x, y))
    _close(_both(_gram(gated, x, y)), (k0 * k1, t0 * k1 + k0 * t1))


def test_concatenation_of_channels():
    """Weighted by widths; branches may be correlated."""
    x, y = _normal(0, 2, 3, 5)
    wide = inn.Sequential([inn.Erf(), inn.Dense(9, 0.7)])
    k1, t1 = _both(_gram([_first, _one], x, y))
    k2, t2 = _both(_gram([_first, _other], x, y))
    want = (k1 + 3 * k2) / 4, (t1 + 3 * t2) / 4
    _close(_both(_gram([_first, inn.Concatenate([_one, wide])], x, y)), want)
    fan_in = [inn.FanOut(2), inn.Parallel([_one, wide]), inn.FanInConcat(-1)]
    _close(_both(_gram([_first, *fan_in], x, y)), want)
    copies = [_first, inn.Concatenate([inn.Relu(), inn.Erf()])]
    k1, t1 = _both(_gram([_first, inn.Relu()], x, y))
    k2, t2 = _both(_gram([_first, inn.Erf()], x, y))
    _close(_both(_gram(copies, x, y)), ((k1 + k2) / 2, (t1 + t2) / 2))
    net = inn.Sequential([*copies, inn.Dense(2)])
    assert net.init(jr.key(0), x[0])(x[0]).shape == (2,)


@pytest.mark.parametrize("axis", [0, 1])
def test_concatenation_of_positions(axis):
    """Blocks on the diagonal of covariances of all positions."""
    x, y = _normal(0, 2, 2, 3, 4, 2)
    branches = [
        inn.Conv(4, (2, 2), None, "SAME", 1.3, 0.1),
        inn.Conv(4, (1, 2), ((1, 2), (2, 1))[axis], "SAME", 0.8),
    ]
    if axis == 1:
        branches[1] = inn.Conv(4, (2, 1), (1, 2), "SAME", 0.8)
    else:
        branches[1] = inn.Conv(4, (2, 1), (2, 1), "SAME", 0.8)
    net = inn.Concatenate(branches, axis)
    everything = inn.Demand(inn.Pairs.ALL)
    got = inn.gram(net, x, y, demand=everything)
    parts = [inn.gram(b, x, y, demand=everything) for b in branches]
    n = parts[0].nngp.shape[2 + axis]
    before, after = slice(None, n), slice(n, None)

    def block(of_p, of_q):
        index = [slice(None)] * 6
        index[2 + axis], index[4 + axis] = of_p, of_q
        return tuple(index)

    for name in ("nngp", "ntk"):
        k, a, b = (np.asarray(getattr(g, name)) for g in (got, *parts))
        np.testing.assert_allclose(k[block(before, before)], a, rtol=1e-12)
        np.testing.assert_allclose(k[block(after, after)], b, rtol=1e-12)
        np.testing.assert_array_equal(k[block(before, after)], 0)
    same = inn.gram(net, x, y)
    size = got.nngp.shape[2:4]
    flat = np.asarray(got.ntk).reshape(2, 2, np.prod(size), -1)
    diagonal = np.diagonal(flat, axis1=2, axis2=3).reshape(same.ntk.shape)
    np.testing.assert_allclose(same.ntk, diagonal, rtol=1e-12)
    finite = net.init(jr.key(0), x[0])
    assert finite(x[0]).shape == (*size, 4)


def test_odd_branches_add_up():
    """Of different weights, as they have zero mean; others do not."""
    x, y = _normal(0, 2, 3, 5)
    branch = lambda phi: inn.Sequential([inn.Dense(4, 1.3, 0.2), phi])
    net = inn.Sum([branch(inn.Erf()), branch(inn.Sin(1.0, 2.0)), branch(inn.Relu())])
    parts = [_both(inn.gram(each, x, y)) for each in net.layers]
    _close(_both(inn.gram(net, x, y)), [sum(p) for p in zip(*parts, strict=True)])
    with pytest.raises(ValueError, match=r"Sum.*`layers\[0\]` and `layers\[1\]`.*mean"):
        inn.gram(inn.Sum([branch(inn.Relu()), branch(inn.Relu())]), x)


#
# Branches that are functions of the same activations
#


@pytest.mark.parametrize(
    "merged, want",
    [
        (inn.Residual(inn.Relu()), inn.ABRelu(1, 2)),
        (inn.Residual(inn.Residual(inn.LeakyRelu(0.3))), inn.ABRelu(2.3, 3)),
        (inn.Sum([inn.Relu(), inn.Abs(), inn.Identity()]), inn.ABRelu(0, 3)),
        (inn.Product([inn.Identity(), inn.Sigmoid()]), inn.Silu()),
        (
            inn.Sum([inn.Sequential([inn.Identity(), inn.Erf()]), inn.Identity()]),
            inn.Elementwise(lambda x: x + jax.scipy.special.erf(x)),
        ),
        (inn.Residual(inn.Product([inn.Sin(), inn.Sin()])), None),
    ],
)
def test_merged(merged, want):
    """They are one nonlinearity."""
    x, y = _normal(0, 2, 3, 5)
    y[0] = x[0]
    got = _both(_gram([_first, merged], x, y))
    if want is None:
        # x + sin(x)^2: the square is even, so that covariances with x vanish.
        parts = [inn.Identity(), inn.Pointwise(lambda x: x, _dual_of_square_of_sine)]
        want = [
            sum(p)
            for p in zip(*(_both(_gram([_first, p], x, y)) for p in parts), strict=True)
        ]
        np.testing.assert_allclose(got[0], want[0], rtol=1e-9)
        np.testing.assert_allclose(got[1], want[1], rtol=1e-7)
        return
    for a, b in zip(got, _both(_gram([_first, want], x, y)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9)
    finite = inn.Sequential([_first, merged]).init(jr.key(0), x[0])
    np.testing.assert_allclose(finite(x[0]), want(finite.layers[0](x[0])), rtol=1e-12)


def _dual_of_square_of_sine(q1, k, q2):
    """As `sin(x)^2 = (1 - cos(2 x)) / 2`."""
    means = jnp.exp(-2 * q1) + jnp.exp(-2 * q2)
    product = jnp.exp(-2 * (q1 + q2)) * jnp.cosh(4 * k)
    return (1 - means + product) / 4


def test_merged_and_others():
    """Together with a branch of other weights."""
    x, y = _normal(0, 2, 3, 5)
    got = _both(_gram([_first, inn.Sum([inn.Relu(), _gate, inn.Identity()])], x, y))
    parts = [_both(_gram([_first, p], x, y)) for p in (inn.ABRelu(1, 2), _gate)]
    _close(got, [sum(p) for p in zip(*parts, strict=True)])


#
# Tuples
#


def test_nested_tuples():
    """Of inputs, through layers that act on parts of them."""
    x = (_normal(0, 3, 4), (_normal(1, 3, 5, 2), _normal(2, 3, 2)))
    conv = inn.Sequential(
        [inn.Conv(4, (2,), W_std=1.2), inn.Relu(), inn.GlobalAvgPool(), inn.Dense(3, 0.9)]
    )
    inner = inn.Sequential([inn.Parallel([conv, inn.Dense(3, 1.1)]), inn.FanInSum()])
    net = inn.Sequential(
        [inn.Parallel([inn.Dense(3, 0.8, 0.1), inner]), inn.FanInSum(), inn.Relu()]
    )
    parts = [
        inn.gram(inn.Dense(3, 0.8, 0.1), x[0]),
        inn.gram(conv, x[1][0]),
        inn.gram(inn.Dense(3, 1.1), x[1][1]),
    ]
    k, t = (sum(p) for p in zip(*map(_both, parts), strict=True))
    before = inn.gram(inn.Sequential(net.layers[:2]), x)
    _close(_both(before), (k, t))
    example = jax.tree.map(lambda x: x[0], x)
    assert net.init(jr.key(0), example)(example).shape == (3,)
    got = inn.gram(net, x)
    assert got.nngp.shape == (3, 3)


def test_copies_of_tuples():
    """Fan-out, sums and repetition of tuples."""
    x = (_normal(0, 3, 4), _normal(1, 3, 4))
    pair = inn.Parallel([inn.Dense(4, 1.2, 0.1), inn.Dense(4, 0.7)])
    both = inn.Sequential([pair, inn.FanInSum()])
    k, t = _both(inn.gram(both, x))
    _close(_both(inn.gram(inn.Sum([both, both]), x)), (2 * k, 2 * t))
    net = inn.Sequential([inn.FanOut(2), inn.Parallel([both, both]), inn.FanInSum()])
    _close(_both(inn.gram(net, x)), (2 * k, 2 * t))
    relu = inn.Parallel([inn.Relu(), inn.Relu()])
    block = inn.Sequential([relu, pair])
    repeated = inn.Sequential([pair, inn.Repeat(block, 2), inn.FanInSum()])
    unrolled = inn.Sequential([pair, block, block, inn.FanInSum()])
    _close(_both(inn.gram(repeated, x)), _both(inn.gram(unrolled, x)))
    example = jax.tree.map(lambda x: x[0], x)
    assert repeated.init(jr.key(0), example)(example).shape == (4,)


#
# What does not add up
#

_vectors = _normal(0, 2, 3)
_images = _normal(0, 2, 4, 4, 3)


@pytest.mark.parametrize(
    "layers, x, words",
    [
        (
            [_first, inn.Product([inn.Relu(), inn.Sequential([inn.Erf(), inn.Relu()])])],
            _vectors,
            ["layers[1].layers[1].layers[1]"],
        ),
        (
            [inn.FanOut(2), inn.Parallel([inn.Identity(), _first]), inn.FanInConcat(0)],
            _vectors,
            ["(FanInConcat)", "`axis`", "0 axes"],
        ),
        (
            [inn.Product([inn.Sequential([_first, inn.Dense(3)]), inn.Dense(4)])],
            _vectors,
            ["(Product)", "equal shapes", "(3,)", "(4,)"],
        ),
        (
            [
                inn.Product(
                    2 * [inn.Sequential([inn.Conv(4, (2, 2)), inn.Flatten()])],
                )
            ],
            _images,
            ["(Product)", "different distributions", "Flatten"],
        ),
        (
            [inn.Concatenate([inn.Conv(4, (2, 2)), inn.Conv(4, (3, 3))], 0)],
            _images,
            ["(Concatenate)", "axis 0"],
        ),
        (
            [inn.Concatenate([inn.Identity(), inn.Identity()], 0)],
            _images,
            ["(Concatenate)", "correlated"],
        ),
        ([inn.FanInProd()], _vectors, ["(FanInProd)", "single array", "`Product`"]),
        (
            [_first, inn.FanOut(2), inn.Parallel([inn.Relu(), inn.Erf()]), inn.FanInSum()],
            _vectors,
            ["(FanInSum)", "`0` and `1`", "correlated", "`Sum`"],
        ),
    ],
)
def test_errors(layers, x, words):
    with pytest.raises(ValueError) as error:
        inn.gram(inn.Sequential(layers), x)
    for word in words:
        assert word in str(error.value)
