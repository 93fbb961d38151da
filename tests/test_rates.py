"""Finite networks approach their limits at the rate of one over the root of the width.

So for every layer, in networks of some of them each: a kernel that is wrong would leave a
difference that does not shrink.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import run_once
from nets import architectures

import infinitenet as inn


def _chain(w, p, *nonlinearities):
    """A fully connected network."""
    layers = []
    for phi in nonlinearities:
        layers += [inn.Dense(w, 1.2, 0.2, parameterization=p), phi]
    return inn.Sequential([*layers, inn.Dense(w, 1.1, 0.3, parameterization=p)])


def _conv(w, p, *args, **kwargs):
    return inn.Conv(w, *args, W_std=1.2, b_std=0.2, parameterization=p, **kwargs)


def _piecewise(w, p):
    return _chain(
        w,
        p,
        inn.Relu(),
        inn.LeakyRelu(0.2),
        inn.Abs(),
        inn.ABRelu(-0.4, 1.1),
        inn.Identity(),
    )


def _sigmoids(w, p):
    return _chain(w, p, inn.Erf(), inn.SigmoidLike(), inn.Gelu(), inn.Sign(), inn.Erf(1.3))


def _waves(w, p):
    return _chain(
        w, p, inn.Sin(1.0, 0.8, 0.3), inn.Cos(), inn.Rbf(0.4), inn.Gabor(), inn.Gaussian()
    )


def _powers(w, p):
    # Of low degree, as products of many Gaussian variables are far from their means.
    scale = inn.Dense(w, 0.5, parameterization=p)
    pointwise = inn.Pointwise(jnp.sin, lambda q1, k, q2: inn.Sin().dual(q1, k, q2))
    return inn.Sequential(
        [
            _chain(
                w, p, inn.RectifiedMonomial(1), pointwise, inn.Polynomial([0.1, 0.8, 0.1])
            ),
            scale,
            inn.Exp(0.7, 0.4),
            _chain(w, p, inn.Hermite(1)),
            scale,
            inn.Monomial(2),
            inn.Dense(w, 1.0, parameterization=p),
        ]
    )


def _quadrature(w, p):
    return _chain(
        w, p, inn.Tanh(), inn.Softplus(), inn.Elu(), inn.Mish(), inn.Elementwise(jnp.arctan)
    )


def _more_quadrature(w, p):
    return _chain(w, p, inn.Sigmoid(), inn.Silu(), inn.Selu(), inn.HardTanh())


def _positions(w, p):
    return inn.Sequential(
        [
            inn.ConvTranspose(w, (3,), (2,), "SAME", 1.2, 0.2, parameterization=p),
            inn.Relu(),
            inn.AvgPool((2,), (2,)),
            inn.ConvLocal(w, (2,), None, "SAME", 1.2, 0.2, parameterization=p),
            inn.Erf(),
            inn.SumPool((2,), None, "VALID"),
            inn.Dense(w, 1.2, 0.2, parameterization=p),
            inn.Relu(),
            inn.GlobalAvgPool(),
            inn.Dense(w, parameterization=p),
        ]
    )


def _structure(w, p):
    matrix = np.asarray([[0.5, 0.1, 0.2, 0.4], [0.3, -0.2, 0.6, 0.1], [0.1, 0.9, 0.2, 0.3]])
    return inn.Sequential(
        [
            _conv(w, p, (2,), padding="SAME"),
            inn.LayerNorm(),
            inn.Relu(),
            inn.Dropout(0.8),
            inn.DotGeneral(lhs=matrix, dimension_numbers=(((1,), (0,)), ((), ()))),
            inn.ImageResize((5,), "linear"),
            inn.Index(inn.Slice[1:]),
            _conv(w, p, (2,), padding="CIRCULAR"),
            inn.Relu(),
            inn.GlobalSumPool(),
            inn.Dense(w, 0.3, parameterization=p),
        ]
    )


def _graph(w, p):
    return inn.Sequential(
        [
            inn.Dense(w, 1.2, 0.2, parameterization=p),
            inn.Relu(),
            inn.Aggregate(),
            inn.Dense(w, 0.8, 0.2, parameterization=p),
            inn.Relu(),
            inn.Flatten(),
            inn.Dense(w, parameterization=p),
        ]
    )


def _attention(w, p):
    attention = inn.SelfAttention(w, w, w, max(w // 4, 1), b_std=0.2, pos_emb_type="SUM")
    return inn.Sequential(
        [_conv(w, p, (1,)), attention, inn.Relu(), inn.GlobalAvgPool(), inn.Dense(w)]
    )


def _branches(w, p):
    dense = lambda n=w: inn.Dense(n, 1.2, 0.2, parameterization=p)
    relu = inn.Sequential([inn.Relu(), dense()])
    erf = inn.Sequential([inn.Erf(), dense()])
    half = inn.Sequential([inn.Relu(), dense(w // 2)])
    two = lambda fan_in: [inn.FanOut(2), inn.Parallel([erf, relu]), fan_in, dense()]
    return inn.Sequential(
        [
            dense(),
            inn.Repeat(inn.Residual(relu), 2),
            inn.Product([erf, inn.Identity()]),
            dense(),
            inn.Concatenate([half, erf]),
            dense(),
            inn.Sum([inn.Erf(), relu]),
            dense(),
            *two(inn.FanInSum()),
            *two(inn.FanInProd()),
            *two(inn.FanInConcat()),
        ]
    )


def _merged(w, p):
    """Branches of the same inputs are one nonlinearity."""
    dense = inn.Dense(w, 1.1, 0.2, parameterization=p)
    return inn.Sequential(
        [
            dense,
            inn.Residual(inn.Relu()),
            dense,
            inn.Sum([inn.Identity(), inn.Erf(), dense]),
            dense,
            inn.Product([inn.Identity(), inn.Erf()]),
            dense,
        ]
    )


_dense_widths, _conv_widths = (16, 48, 144), (8, 24, 72)
_vector, _sequence = np.zeros(3), np.zeros((4, 2))
# Networks by width and parameterization, an example, and the widths.
_networks = {
    "piecewise": (_piecewise, _vector, _dense_widths),
    "sigmoids": (_sigmoids, _vector, _dense_widths),
    "waves": (_waves, _vector, _dense_widths),
    "powers": (_powers, _vector, _dense_widths),
    "quadrature": (_quadrature, _vector, _dense_widths),
    "more_quadrature": (_more_quadrature, _vector, _dense_widths),
    "positions": (_positions, _sequence, _conv_widths),
    "structure": (_structure, _sequence, _conv_widths),
    "graph": (_graph, _sequence, _conv_widths),
    "attention": (_attention, _sequence, _conv_widths),
    "branches": (_branches, _vector, _dense_widths),
    "merged": (_merged, _vector, _dense_widths),
}
_n = 60


def _inputs(example):
    """Two of them, neither parallel nor orthogonal."""
    x = np.random.default_rng(0).normal(size=(2, *example.shape))
    x[1] += x[0]
    return jnp.asarray(x)


def _with_graph(x):
    pattern = np.random.default_rng(1).uniform(size=(2, 4, 4)) / 2
    return inn.Inputs(x, pattern=jnp.asarray(pattern))


def _sample(net, x, keys):
    """NNGP and NTK of random networks, in the order 11, 12, 22: of shape `(n, 2, 3)`."""

    def of_one(key):
        init_key, *call_keys = jr.split(key, 3)
        drawn = net.init(init_key, jax.tree.map(lambda x: x[0], x))
        weights, rest = eqx.partition(drawn, inn.trainable(drawn))

        def channel(weights, x, key):
            out = eqx.combine(weights, rest)(x, key=key)
            return out[0], out

        gradient = jax.grad(channel, has_aux=True)
        t, f = jax.vmap(gradient, (None, 0, 0))(weights, x, jnp.stack(call_keys))
        t = jnp.concatenate([t.reshape(2, -1) for t in jax.tree.leaves(t)], 1)
        upper = np.triu_indices(2)
        return jnp.stack([(f @ f.T / f.shape[-1])[upper], (t @ t.T)[upper]])

    # One by one, as convolutions with many filters at once are slow on the CPU.
    return jax.lax.map(of_one, keys)


def _errors(net, x):
    """How far each of some networks is from the limit, of shape `(n, 2)`."""
    gram = run_once(inn.gram, net, x)
    limit = np.stack([np.asarray(k)[np.triu_indices(2)] for k in (gram.nngp, gram.ntk)])
    sample = np.asarray(run_once(_sample, net, x, jr.split(jr.key(2), _n)))
    scale = np.sqrt(limit[:, :1] * limit[:, 2:])
    return np.mean(np.abs(sample - limit) / scale, -1)


def _slopes(widths, errors):
    """Of the logarithms of medians, as some networks are far from the others."""
    x = np.log(widths) - np.mean(np.log(widths))
    y = np.log(np.median(errors, 1))
    return x @ y / (x @ x)


def _check_rate(make, example, widths, parameterization):
    x = _inputs(example)
    x = _with_graph(x) if make is _graph else x
    errors = np.stack([_errors(make(w, parameterization), x) for w in widths])
    slopes = _slopes(widths, errors)
    rng = np.random.default_rng(3)
    resampled = [_slopes(widths, errors[:, rng.integers(_n, size=_n)]) for _ in range(200)]
    deviation = np.std(resampled, 0)
    for name, slope, error in zip(("NNGP", "NTK"), slopes, deviation, strict=True):
        print(f"{name}: slope {slope:.3f} +- {error:.3f}")
        assert error < 0.25, name
        assert slope < -0.5 + 3 * error, name
    assert np.all(np.median(errors[-1], 0) < 4 / math.sqrt(widths[-1]))


# Those that other tests know least about. The others take long: `pytest -m slow`.
_quick = [("attention", "ntk"), ("graph", "ntk"), ("structure", "ntk")]


@pytest.mark.parametrize("name, parameterization", _quick)
def test_rate_of_layers(name, parameterization):
    make, example, widths = _networks[name]
    _check_rate(make, example, widths[::2], parameterization)


@pytest.mark.slow
@pytest.mark.parametrize("parameterization", ["ntk", "standard"])
@pytest.mark.parametrize("name", _networks)
def test_rate_at_three_widths(name, parameterization):
    make, example, widths = _networks[name]
    _check_rate(make, example, widths, parameterization)


_widths_of_architectures = {
    "fully_connected": (16, 144),
    "lenet": (12, 48),
    "transformer": (8, 40),
    "wide_resnet": (16, 48),
}


def _check_architecture(name, parameterization, widths):
    make, shape = architectures[name]

    def with_wide_outputs(width, parameterization):
        del parameterization
        return inn.Sequential([*make(width).layers[:-1], inn.Dense(width)])

    _check_rate(with_wide_outputs, np.zeros(shape), widths, parameterization)


@pytest.mark.parametrize("name", ["fully_connected"])
def test_rate_of_architectures(name):
    _check_architecture(name, "ntk", _widths_of_architectures[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", architectures)
def test_rate_of_all_architectures(name):
    _check_architecture(name, "ntk", _widths_of_architectures.get(name, (8, 40)))


# Their kernels have no closed form, or they have no finite network.
_one_sided = {"BatchNorm", "ExpNormalized", "LogSoftmax", "MaxPool", "Softmax"}


def test_no_layer_is_left_out():
    def layers(node):
        found = {type(node).__name__} if isinstance(node, inn.AbstractLayer) else set()
        for child in vars(node).values() if found else ():
            for each in child if isinstance(child, tuple) else (child,):
                found |= layers(each)
        return found

    nets = [make(8, "ntk") for make, *_ in _networks.values()]
    classes = [value for value in vars(inn).values() if isinstance(value, type)]
    exported = {cls.__name__ for cls in classes if issubclass(cls, inn.AbstractLayer)}
    exported = {name for name in exported if not name.startswith("Abstract")}
    # Sparse graphs are dense ones, which another test shows.
    assert exported - _one_sided - {"SparseAggregate"} == set().union(*map(layers, nets))
