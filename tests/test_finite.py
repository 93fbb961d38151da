"""Finite networks: calls against NumPy, and averages over them against infinite ones."""

import itertools as it
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import quick_jit

import infinitenet as inn


_standard = inn.StandardParameterization


#
# A naive forward pass
#


def _windows(x, size, strides, padding):
    """Windows of `x`, `(*out, *size, channels)`, and how much of each is inside."""
    spatial = x.shape[:-1]
    starts = []
    for n, k, s in zip(spatial, size, strides or (1,) * len(size), strict=True):
        if padding == "VALID":
            starts.append(list(range(0, n - k + 1, s)))
        else:
            out = math.ceil(n / s)
            before = max((out - 1) * s + k - n, 0) // 2
            starts.append([o * s - before for o in range(out)])
    out = tuple(map(len, starts))
    windows, inside = np.zeros((*out, *size, x.shape[-1])), np.zeros(out)
    for o in it.product(*map(range, out)):
        for d in it.product(*map(range, size)):
            p = [s[i] + j for s, i, j in zip(starts, o, d, strict=True)]
            if padding == "CIRCULAR":
                p = [i % n for i, n in zip(p, spatial, strict=True)]
            if all(0 <= i < n for i, n in zip(p, spatial, strict=True)):
                windows[*o, *d] = x[*p]
                inside[o] += 1
    return windows, inside


def _affine(layer, x):
    """The linear map of `x`, which sums over its last axes, with its scale and biases."""
    assert layer.weights is not None
    W_std, W, b = float(layer.W_std), np.asarray(layer.weights.W), layer.weights.b
    z, fan_in = np.tensordot(x, W, W.ndim - 1), math.prod(W.shape[:-1])
    if isinstance(layer.parameterization, _standard):
        scale, b_scale = layer.parameterization.s[0] ** -0.5, 1.0
    else:
        scale = W_std / math.sqrt(fan_in)
        b_scale = 0.0 if layer.b_std is None else float(layer.b_std)
    return scale * z + (0 if b is None else b_scale * np.asarray(b))


def _forward(layer, x):
    match layer:
        case inn.Sequential():
            for each in layer.layers:
                x = _forward(each, x)
            return x
        case inn.Residual():
            return _forward(layer.branch, x) + _forward(layer.shortcut, x)
        case inn.Identity():
            return x
        case inn.Repeat():
            for i in range(layer.times):
                filter_ = inn.trainable(layer.layer)
                weights, rest = eqx.partition(layer.layer, filter_)
                weights = jax.tree.map(lambda w, i=i: w[i], weights)
                x = _forward(eqx.combine(weights, rest), x)
            return x
        case inn.Dense():
            return _affine(layer, x)
        case inn.Conv():
            windows, _ = _windows(x, layer.filter_shape, layer.strides, layer.padding)
            return _affine(layer, windows)
        case inn.AvgPool():
            size = layer.window_shape
            windows, inside = _windows(x, size, layer.strides, layer.padding)
            total = windows.sum(tuple(range(len(size), 2 * len(size))))
            n = inside[..., None] if layer.normalize_edges else math.prod(size)
            return total / n
        case inn.GlobalAvgPool():
            return x.reshape(-1, x.shape[-1]).mean(0)
        case inn.Flatten():
            return x.reshape(-1)
        case inn.Relu():
            return np.maximum(x, 0)
        case inn.ABRelu():
            return np.where(x > 0, float(layer.b) * x, float(layer.a) * x)
    raise NotImplementedError(layer)


# With the shapes of their inputs and of their outputs.
_networks = {
    "dense": ([inn.Dense(4, 1.3, 0.2), inn.Relu(), inn.Dense(5, 0.7)], (3,), (5,)),
    "standard": (
        [
            inn.Dense(4, 1.3, 0.2, parameterization=_standard((1, 2))),
            inn.ABRelu(-0.2, 0.8),
            inn.Dense(3, 0.7, 0.4, parameterization=_standard((2, 3))),
        ],
        (5, 3),
        (5, 9),
    ),
    "conv1d": (
        [
            inn.Conv(4, (3,), (2,), "SAME", 1.3, 0.2),
            inn.Residual(
                inn.Sequential([inn.Relu(), inn.Conv(4, (2,), None, "CIRCULAR", 0.7)])
            ),
            inn.AvgPool((2,), None, "SAME", True),
            inn.Flatten(),
        ],
        (8, 2),
        (16,),
    ),
    "conv2d": (
        [
            inn.Conv(
                4, (3, 2), (2, 1), "CIRCULAR", 1.3, parameterization=_standard((1, 2))
            ),
            inn.Relu(),
            inn.Conv(
                3, (2, 2), (1, 3), "SAME", 0.9, 0.4, parameterization=_standard((2, 1))
            ),
            inn.AvgPool((2, 2), (1, 2), "SAME"),
        ],
        (7, 8, 2),
        (4, 2, 3),
    ),
    "conv3d": (
        [
            inn.Conv(4, (2, 3, 1), (1, 2, 2), "VALID", 1.3, 0.2),
            inn.AvgPool((2, 1, 2), None, "CIRCULAR"),
            inn.GlobalAvgPool(),
        ],
        (3, 5, 4, 2),
        (4,),
    ),
    "repeat": (
        [
            inn.Dense(4),
            inn.Repeat(inn.Sequential([inn.Relu(), inn.Dense(4, 1.2, 0.3)]), 3),
        ],
        (3,),
        (4,),
    ),
}


def _init_struct(name, dtype=jnp.float64):
    """A network as it is after `init`, without numbers for its weights."""
    layers, shape, _ = _networks[name]
    x = jax.ShapeDtypeStruct(shape, dtype)
    return eqx.filter_eval_shape(lambda key: inn.Sequential(layers).init(key, x), jr.key(0))


@pytest.mark.parametrize("name", _networks)
def test_call(name):
    layers, shape, out_shape = _networks[name]
    rng = np.random.default_rng(0)
    struct = _init_struct(name)
    weights = jax.tree.map(
        lambda w: jnp.asarray(rng.normal(size=w.shape)),
        eqx.filter(struct, inn.trainable(struct)),
    )
    # Hyperparameters come from a network without weights, which has none in their places.
    net = eqx.combine(weights, _with_hyperparameters(inn.Sequential(layers), struct))
    x = rng.normal(size=shape)
    got = eqx.filter_jit(lambda net, x: net(x))(net, jnp.asarray(x))
    assert got.shape == out_shape
    np.testing.assert_allclose(got, _forward(net, x), rtol=1e-12, atol=1e-13)


def _with_hyperparameters(net, struct):
    """`struct` with the hyperparameters of `net`, and nothing for its weights."""
    rest = eqx.filter(struct, inn.trainable(struct), inverse=True)
    return jax.tree.unflatten(jax.tree.structure(rest), jax.tree.leaves(net))


@pytest.mark.parametrize("name", _networks)
@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
def test_check(name, dtype):
    """What is known in advance of a call."""
    layers, shape, out_shape = _networks[name]
    signal = inn.Sequential(layers).check(inn.Signal(shape, np.dtype(dtype)))
    x, net = jax.ShapeDtypeStruct(shape, dtype), _init_struct(name, dtype)
    out = eqx.filter_eval_shape(lambda net, x: net(x), net, x)
    assert signal.shape == out.shape == out_shape
    assert signal.dtype == out.dtype == dtype


#
# Weights
#


@pytest.mark.parametrize("name", _networks)
def test_trainable(name):
    """Exactly the arrays `W` and `b` are, whichever the network."""
    net = _init_struct(name)
    leaves, _ = jax.tree.flatten_with_path(inn.trainable(net))
    for path, is_trainable in leaves:
        last_two = [getattr(key, "name", None) for key in path[-2:]]
        assert is_trainable == (last_two in (["weights", "W"], ["weights", "b"]))
    affine = lambda x: isinstance(x, inn.AbstractAffine)
    expected = sum(
        1 + (layer.b_std is not None)
        for layer in jax.tree.leaves(net, is_leaf=affine)
        if affine(layer)
    )
    assert sum(is_trainable for _, is_trainable in leaves) == expected > 0
    assert not any(jax.tree.leaves(inn.trainable(inn.Sequential(_networks[name][0]))))


def test_weights_are_drawn_with_their_variance(getkey):
    """Standard normal, or `W_std**2 s / N` and `b_std**2`: within five standard errors."""
    conv = lambda parameterization: inn.Conv(
        2000, (3,), None, "SAME", 1.7, 0.4, parameterization=parameterization
    )
    x = jax.ShapeDtypeStruct((5, 4), jnp.float64)
    for parameterization, W_std, b_std in (
        (inn.NTKParameterization(), 1.0, 1.0),
        (_standard(), 1.7 / math.sqrt(12), 0.4),
        (_standard((3, 1)), 1.7 * math.sqrt(3 / 12), 0.4),
    ):
        weights = conv(parameterization).init(getkey(), x).weights
        assert weights.W.shape == (3, 4, 2000)
        for array, std in ((weights.W, W_std), (weights.b, b_std)):
            n = array.size
            assert abs(np.mean(array)) < 5 * std / math.sqrt(n)
            assert abs(np.mean(array**2) / std**2 - 1) < 5 * math.sqrt(2 / n)
    assert inn.Dense(3).init(getkey(), x).weights.b is None
    assert inn.Dense(3, b_std=0.0).init(getkey(), x).weights.b is not None


def test_weights_are_independent(getkey):
    """Of layers, branches and repetitions, and for different keys."""
    block = inn.Residual(inn.Dense(30), inn.Sequential([inn.Dense(30), inn.Dense(30)]))
    net = inn.Sequential([inn.Repeat(block, 3), inn.Dense(30), inn.Dense(30)])
    x = jax.ShapeDtypeStruct((30,), jnp.float64)
    drawn = [net.init(getkey(), x) for _ in range(2)]
    weights = eqx.filter(drawn, inn.trainable(drawn))
    flat = np.concatenate([w.reshape(-1, 900) for w in jax.tree.leaves(weights)])
    assert len(flat) == 2 * (3 * 3 + 2)
    correlations = np.corrcoef(flat) - np.eye(len(flat))
    assert np.max(np.abs(correlations)) < 5 / math.sqrt(900)


def test_repeat_has_common_hyperparameters(getkey):
    net = inn.Repeat(inn.Sequential([inn.LeakyRelu(0.1), inn.Dense(3, 1.2, 0.3)]), 4)
    # Alone it cannot be called on inputs which are not Gaussian, hence `Dense` before.
    net = inn.Sequential([inn.Dense(3), net]).init(getkey(), jnp.ones(3))
    repeat = net.layers[1]
    assert isinstance(repeat, inn.Repeat) and isinstance(repeat.layer, inn.Sequential)
    relu, dense = repeat.layer.layers
    assert isinstance(relu, inn.LeakyRelu) and isinstance(dense, inn.Dense)
    assert relu.alpha.shape == dense.W_std.shape == ()
    assert dense.weights is not None
    assert dense.weights.W.shape == (4, 3, 3)


@pytest.mark.parametrize(
    "net",
    [
        inn.Dense(3),
        inn.Sequential([inn.Conv(3, (1,)), inn.Relu()]),
        inn.Repeat(inn.Dense(2), 2),
        inn.Residual(inn.Dense(2)),
    ],
)
def test_uninitialised(net):
    with pytest.raises(inn.LayerError, match="has no weights yet: draw them by"):
        net(jnp.ones((4, 2)))


#
# Averages over random networks
#


def _empirical(net, x1, x2, key, n):
    """NNGP and NTK of `n` random networks, each the mean over its output channels.

    Of shape `(n, 2)`. The NTK is that of the first channel: the sum over all weights of
    the products of its derivatives.
    """

    def of_one(key):
        drawn = net.init(key, x1)
        weights, rest = eqx.partition(drawn, inn.trainable(drawn))

        def channel(weights, x):
            out = eqx.combine(weights, rest)(x)
            return out[0], out

        gradient = jax.grad(channel, has_aux=True)
        t, f = jax.vmap(gradient, (None, 0))(weights, jnp.stack([x1, x2]))
        products = [jnp.sum(t[0] * t[1]) for t in jax.tree.leaves(t)]
        return jnp.stack([jnp.mean(f[0] * f[1]), sum(products)])

    return np.asarray(quick_jit(jax.vmap(of_one))(jr.split(key, n)))


def _infinite(net, x1, x2):
    kernel = inn.gram(net, x1[None], x2[None])
    return np.asarray([kernel.nngp[0, 0], kernel.ntk[0, 0]])


# With one hidden layer, averages are those of infinite width whatever the width is.
_shallow = {
    "dense": ([inn.Dense(32, 1.3, 0.3), inn.Relu(), inn.Dense(4, 1.1, 0.2)], (3,)),
    "flatten": (
        [
            inn.Conv(16, (3,), (2,), "SAME", 1.3, 0.3),
            inn.LeakyRelu(0.2),
            inn.Flatten(),
            inn.Dense(4, 1.1, 0.2),
        ],
        (5, 2),
    ),
    "pool": (
        [
            inn.Conv(16, (2, 2), None, "CIRCULAR", 1.3, 0.3),
            inn.Relu(),
            inn.GlobalAvgPool(),
            inn.Dense(4, 1.1),
        ],
        (3, 3, 2),
    ),
    "standard": (
        [
            inn.Dense(24, 1.3, 0.3, parameterization="standard"),
            inn.Relu(),
            inn.Dense(4, 1.1, 0.2, parameterization="standard"),
        ],
        (3,),
    ),
    "standard_s": (
        [
            inn.Conv(8, (3,), None, "SAME", 1.3, 0.0, parameterization=_standard((1, 2))),
            inn.Abs(),
            inn.Flatten(),
            inn.Dense(4, 1.1, parameterization=_standard((2, 1))),
        ],
        (4, 2),
    ),
    "residual": (
        [
            inn.Dense(32, 1.3, 0.3),
            inn.Residual(inn.Sequential([inn.Erf(1.2, 0.7, 0.3), inn.Dense(32, 0.8)])),
            inn.Dense(4, 1.1, 0.2),
        ],
        (3,),
    ),
}


@pytest.mark.parametrize("name", _shallow)
def test_average(name, getkey):
    layers, shape = _shallow[name]
    net, n = inn.Sequential(layers), 2000
    x1, x2 = jr.normal(getkey(), (2, *shape))
    x2 = x2 + x1  # Correlated, so that kernels are large against their errors.
    sample = _empirical(net, x1, x2, getkey(), n)
    error = np.mean(sample, 0) - _infinite(net, x1, x2)
    standard_error = np.std(sample, 0, ddof=1) / math.sqrt(n)
    assert np.all(np.abs(error) < 4 * standard_error)
    # The test is worth something: it tells apart what differs by some percent.
    assert np.all(standard_error < 0.04 * np.abs(_infinite(net, x1, x2)))


def _deep(width):
    branch = inn.Sequential([inn.Relu(), inn.Dense(width, 0.9, 0.1)])
    block = inn.Sequential([inn.Residual(branch), inn.Relu(), inn.Dense(width, 1.2)])
    return inn.Sequential([inn.Dense(width, 1.3), inn.Repeat(block, 2)])


def test_rate_of_convergence(getkey):
    """Kernels of deep networks differ from their limits by one over the root of width."""
    x1, x2 = jr.normal(getkey(), (2, 3))
    x2 = x2 + x1
    n, widths, errors, means = 400, (12, 64), [], []
    for width in widths:
        net = _deep(width)
        sample = _empirical(net, x1, x2, getkey(), n) / _infinite(net, x1, x2) - 1
        # Medians, as a few networks are far from the others.
        errors.append(np.median(np.abs(sample), 0))
        means.append(np.mean(sample, 0))
    slope = np.log(errors[1] / errors[0]) / math.log(widths[1] / widths[0])
    np.testing.assert_allclose(slope, -0.5, atol=0.15)
    # Averages are closer: they differ by one over width, and by sampling.
    assert np.all(np.abs(means[1]) < 0.25 * errors[1])
