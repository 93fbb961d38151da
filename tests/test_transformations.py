"""jit, vmap and grad of kernels, for every layer, where inputs coincide or vanish too."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import quick_jit

import infinitenet as inn


def _attention(**options):
    return inn.SelfAttention(4, 4, 4, 2, b_std=0.3, **options)


# Each with something before it that makes its inputs what it needs. All layers of the
# library are in here: see the last test.
_networks = {
    "dense": [inn.Dense(4, 1.1, 0.2), inn.Dense(2, 0.8, 0.1)],
    "standard": [
        inn.Dense(4, 1.1, 0.2, parameterization="standard"),
        inn.Relu(),
        inn.Dense(2, 0.8, 0.1, parameterization="standard"),
    ],
    "conv": [inn.Conv(4, (3,), padding="SAME", W_std=1.1, b_std=0.2), inn.Relu()],
    "flatten": [inn.Conv(4, (2,), 2, W_std=1.1), inn.Relu(), inn.Flatten(), inn.Dense(2)],
    "relu": [inn.Dense(4, 1.1, 0.2), inn.Relu()],
    "leaky_relu": [inn.Dense(4, 1.1, 0.2), inn.LeakyRelu(0.3)],
    "abs": [inn.Dense(4, 1.1, 0.2), inn.Abs()],
    "ab_relu": [inn.Dense(4, 1.1, 0.2), inn.ABRelu(-0.5, 0.9)],
    "erf": [inn.Dense(4, 1.1, 0.2), inn.Erf(1.2, 0.7, 0.4)],
    "smooth": [
        inn.Dense(4, 1.1, 0.2),
        inn.Gelu(),
        inn.Dense(4, 1.3, 0.1),
        inn.Sin(1.2, 0.8, 0.3),
        inn.Dense(4, 1.1, 0.2),
        inn.Gaussian(1.1, -0.4),
        inn.Dense(4, 1.2),
        inn.SigmoidLike(),
        inn.Dense(4, 1.2),
        inn.Rbf(0.7),
        inn.Dense(4, 0.9),
        inn.Pointwise(jnp.square, lambda q1, k, q2: 2 * k**2 + q1 * q2),
    ],
    "waves": [
        inn.Dense(4, 1.1, 0.2),
        inn.Cos(0.9, 1.1, -0.4),
        inn.Dense(4, 1.1, 0.2),
        inn.Exp(0.7, 0.4),
        inn.Dense(4, 0.8),
        inn.Gabor(),
        inn.Dense(4, 1.7, 0.2),
        inn.ExpNormalized(0.8, -0.6),
    ],
    "powers": [
        inn.Dense(4, 0.7, 0.2),
        inn.RectifiedMonomial(3),
        inn.Dense(4, 0.4, 0.3),
        inn.Polynomial([0.3, 0.7, -0.2]),
        inn.Dense(4, 0.6, 0.1),
        inn.Hermite(3),
        inn.Dense(4, 0.4, 0.2),
        inn.Monomial(2),
    ],
    "quadrature": [
        inn.Dense(4, 1.1, 0.2),
        inn.HardTanh(),
        inn.Dense(4, 1.3, 0.1),
        inn.Elu(1.3),
    ],
    "sign": [inn.Dense(4, 1.1, 0.2), inn.Sign(), inn.Dense(4, 1.2)],
    "avg_pool": [
        inn.Conv(4, (3,), padding="CIRCULAR", W_std=1.1, b_std=0.2),
        inn.AvgPool((2,), (2,)),
        inn.Relu(),
    ],
    "global_avg_pool": [inn.Conv(4, (2,), W_std=1.1), inn.Relu(), inn.GlobalAvgPool()],
    "residual": [
        inn.Dense(4, 1.1, 0.2),
        inn.Residual(inn.Sequential([inn.Relu(), inn.Dense(4, 0.9)])),
        inn.Relu(),
    ],
    "sum": [inn.Sum([inn.Dense(3), inn.Dense(3, 0.7), inn.Identity()])],
    "parallel": [
        inn.FanOut(2),
        inn.Parallel([inn.Dense(4), inn.Sequential([inn.Dense(4, 0.5, 0.1), inn.Erf()])]),
        inn.FanInSum(),
    ],
    "joined": [
        inn.Dense(4, 1.1, 0.2),
        inn.Product([inn.Dense(3), inn.Sequential([inn.Erf(), inn.Dense(3, 0.7)])]),
        inn.Concatenate([inn.Dense(3), inn.Dense(2, 0.7)]),
        inn.FanOut(2),
        inn.Parallel([inn.Dense(2), inn.Dense(2, 0.8)]),
        inn.FanInProd(),
        inn.FanOut(2),
        inn.Parallel([inn.Dense(2), inn.Dense(2, 0.8)]),
        inn.FanInConcat(),
    ],
    "repeat": [
        inn.Dense(4, 1.1, 0.2),
        inn.Repeat(inn.Sequential([inn.Relu(), inn.Dense(4, 1.2, 0.1)]), 3),
    ],
    "attention": [inn.Dense(4, 1.1, 0.2), _attention(), inn.Relu()],
    "linear": [
        inn.ConvTranspose(4, (2,), (2,), "VALID", 1.1, 0.2),
        inn.LayerNorm((0, -1), 0.3),
        inn.Relu(),
        inn.Dropout(0.8),
        inn.DotGeneral(rhs=0.7),
        inn.ImageResize(5, "linear"),
        inn.Index(inn.Slice[1:]),
        inn.ConvLocal(4, (2,), W_std=1.2, b_std=0.3),
        inn.Relu(),
        inn.SumPool(2),
        inn.GlobalSumPool(),
    ],
    "sqrt_attention": [
        inn.Dense(4, 1.1, 0.2),
        _attention(linear_scaling=False, attention_mechanism="IDENTITY"),
        inn.Relu(),
    ],
}


def _slow(name):
    return pytest.param(name, marks=pytest.mark.slow)


# Of kinds that others have too, and long to compile.
_alike = {"linear", "waves", "powers", "joined"}
_some = pytest.mark.parametrize(
    "name", [_slow(name) if name in _alike else name for name in _networks]
)


def _net(name):
    return inn.Sequential(_networks[name])


def _inputs():
    x1, x2 = np.asarray(jr.normal(jr.key(1), (2, 4, 3)))
    return {
        "different": (x1, x2),
        "equal": (x1, x1.copy()),
        "near": (x1, x1 + 1e-9 * x2),
        "collinear": (x1, -2 * x1),
        "zero": (x1, 0 * x2),
        "zeros": (0 * x1, 0 * x2),
    }


def _of_pair(net, x1, x2):
    kernel = net.kernel(x1, x2)
    return jnp.stack([jnp.sum(kernel.nngp.array), jnp.sum(kernel.ntk.array)])


def _of_one(net, x):
    kernel = net.kernel(x)
    return jnp.stack([jnp.sum(kernel.nngp.array), jnp.sum(kernel.ntk.array)])


def _finite_differences(fn, hyperparameters, step=1e-6):
    """Central differences in each entry of each leaf, of each array that `fn` returns."""
    leaves, structure = jax.tree.flatten(hyperparameters)
    leaves = [np.asarray(leaf) for leaf in leaves]

    def at(i, index, h):
        moved = leaves[i].copy()
        moved[index] += h
        # The hyperparameters are arrays of JAX, as in the network.
        moved = list(map(jnp.asarray, [*leaves[:i], moved, *leaves[i + 1 :]]))
        return map(np.asarray, fn(structure.unflatten(moved)))

    def along(i, index):
        each = zip(at(i, index, step), at(i, index, -step), strict=True)
        return [(up - down) / (2 * step) for up, down in each]

    columns = []
    for i, leaf in enumerate(leaves):
        entries = zip(*(along(i, index) for index in np.ndindex(leaf.shape)), strict=True)
        stacked = [np.stack(each, -1) for each in entries]
        columns.append([each.reshape(each.shape[:-1] + leaf.shape) for each in stacked])
    return list(zip(*columns, strict=True))


def _derivatives(net):
    """Values of a pair and of one input alone, and derivatives of all kinds.

    Compiled once for all of them, and all cases.
    """
    hyperparameters, static = eqx.partition(net, eqx.is_array)
    of_pair = lambda h, *x: _of_pair(eqx.combine(h, static), *x)
    of_one = lambda h, x: _of_one(eqx.combine(h, static), x)

    @quick_jit
    def values(h, x1, x2):
        return of_pair(h, x1, x2), of_one(h, x1)

    @quick_jit
    def derivatives(h, x1, x2):
        along_h, *backward = jax.jacrev(of_pair, (0, 1, 2))(h, x1, x2)
        forward = jax.jacfwd(of_pair, (1, 2))(h, x1, x2)
        return along_h, jax.jacrev(of_one)(h, x1), backward, forward

    return hyperparameters, values, derivatives


@_some
def test_derivatives(name):
    """Of the NNGP and of the NTK, along every hyperparameter; along inputs, finite."""
    hyperparameters, values, derivatives = _derivatives(_net(name))
    for case, (x1, x2) in _inputs().items():
        *got, backward, forward = derivatives(hyperparameters, x1, x2)
        wants = _finite_differences(lambda h: values(h, x1, x2), hyperparameters)  # noqa: B023
        for each, want in zip(got, wants, strict=True):
            for g, w in zip(jax.tree.leaves(each), want, strict=True):
                assert np.all(np.isfinite(g)), case
                # At coincident inputs angles are known to the square root of rounding,
                # which finite differences divide by their step.
                tol = 1e-6 if case in ("different", "zeros") else 1e-4
                np.testing.assert_allclose(g, w, rtol=tol, atol=tol, err_msg=case)
        for b, f in zip(backward, forward, strict=True):
            assert np.all(np.isfinite(b)) and np.all(np.isfinite(f)), case
            np.testing.assert_allclose(b, f, rtol=1e-8, atol=1e-8)


@_some
def test_jit_and_vmap(name):
    """jit changes nothing, and vmap over inputs or over `W_std` is a loop."""
    net = _net(name)
    hyperparameters, static = eqx.partition(net, eqx.is_array)
    x = np.asarray(jr.normal(jr.key(2), (3, 4, 3)))
    y = np.asarray(jr.normal(jr.key(3), (2, 4, 3)))
    scales = np.array([0.5, 1.0, 1.5])
    leaves, structure = jax.tree.flatten(hyperparameters)
    scaled = lambda h, scale: scale * np.asarray(h)
    swept = structure.unflatten([np.stack([scaled(h, s) for s in scales]) for h in leaves])

    @jax.jit
    def vectorised(h, swept):
        of_pair = lambda h, x, y: _of_pair(eqx.combine(h, static), x, y)
        pairs = jax.vmap(jax.vmap(of_pair, (None, None, 0)), (None, 0, None))
        return pairs(h, x, y), jax.vmap(of_pair, (0, None, None))(swept, x[0], y[0])

    pairs, sweep = vectorised(hyperparameters, swept)
    want = np.stack([[_of_pair(net, a, b) for b in y] for a in x])
    np.testing.assert_allclose(pairs, want, rtol=1e-10)
    for scale, got in zip(scales, sweep, strict=True):
        h = structure.unflatten([jnp.asarray(scaled(h, scale)) for h in leaves])
        want = _of_pair(eqx.combine(h, static), x[0], y[0])
        np.testing.assert_allclose(got, want, rtol=1e-10)


@pytest.mark.parametrize("name", ["relu", "repeat", _slow("flatten")])
def test_gram_of_transformations(name):
    """`gram` itself under jit, vmap and grad."""
    hyperparameters, static = eqx.partition(_net(name), eqx.is_array)
    x = np.asarray(jr.normal(jr.key(2), (5, 4, 3)))

    def fn(h, x2):
        k = inn.gram(eqx.combine(h, static), x, x2)
        return jnp.sum(jnp.sin(k.nngp)) + jnp.sum(jnp.cos(k.ntk))

    @jax.jit
    def transformed(h, swept, x2):
        return *jax.value_and_grad(fn)(h, x2), jax.vmap(fn, (0, None))(swept, x2)

    swept = jax.tree.map(lambda h: np.stack([h, 2 * np.asarray(h)]), hyperparameters)
    for x2 in (None, x[:2] + 1):
        value, gradient, values = transformed(hyperparameters, swept, x2)
        want = fn(hyperparameters, x2)
        np.testing.assert_allclose(value, want, rtol=1e-9)
        np.testing.assert_allclose(values[0], want, rtol=1e-9)
        (wants,) = _finite_differences(lambda h: [fn(h, x2)], hyperparameters)  # noqa: B023
        for g, w in zip(jax.tree.leaves(gradient), wants, strict=True):
            np.testing.assert_allclose(g, w, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("nonlinearity", [inn.Relu(), inn.Erf(), inn.RectifiedMonomial(2)])
def test_second_derivatives_in_loops(nonlinearity):
    """Forward over reverse mode through `Repeat`, where JAX forgets custom rules."""
    x1, x2 = np.asarray(jr.normal(jr.key(1), (2, 3)))

    def value(W_std, repeat, y):
        block = inn.Sequential([nonlinearity, inn.Dense(4, W_std)])
        blocks = [inn.Repeat(block, 2)] if repeat else [block, block]
        return inn.Sequential([inn.Dense(4, W_std), *blocks]).kernel(x1, y).nngp.array

    hessian = jax.hessian(value)
    both = jax.jit(lambda y: [hessian(1.4, repeat, y) for repeat in (True, False)])
    for y in (x2, x1):
        np.testing.assert_allclose(*both(y), rtol=1e-9)


def test_memory_under_transformations():
    """Does not grow with the number of inputs beyond that of the result."""
    net = _net("global_avg_pool")

    def temporary(n, **options):
        x = np.asarray(jr.normal(jr.key(2), (n, 12, 3)))
        fn = jax.jit(jax.grad(lambda s: jnp.sum(inn.gram(scaled(s), x, **options).ntk)))
        analysis = fn.lower(1.0).compile().memory_analysis()
        assert analysis is not None
        return analysis.temp_size_in_bytes

    scaled = lambda s: eqx.tree_at(lambda net: net.layers[0].W_std, net, jnp.asarray(s))
    few, many = (temporary(n, memory=10**5) for n in (8, 32))
    assert many < few + 20 * 8 * 32**2


def test_changing_hyperparameters_compiles_nothing():
    x = np.asarray(jr.normal(jr.key(2), (5, 3)))
    traces = []

    @eqx.filter_jit
    def fn(net):
        traces.append(None)
        return inn.gram(net, x).ntk

    for W_std in (0.5, 1.0):
        fn(inn.Sequential([inn.Dense(4, W_std), inn.Relu(), inn.Dense(2, W_std)]))
    assert len(traces) == 1


def test_marginals_are_those_of_single_inputs():
    """Of `n1` and `n2` inputs, not of all their pairs: those would be most of the work."""
    net = _net("residual")
    x, y = jnp.ones((5, 3)), jnp.ones((7, 3))
    pairs = jax.vmap(jax.vmap(net.kernel, (None, 0)), (0, None))
    jaxpr = str(jax.make_jaxpr(lambda x, y: pairs(x, y).nngp.array)(x, y))
    # Of every nonlinearity: `k12`, and variances of either side.
    assert "f64[5,7]" in jaxpr and "f64[5]" in jaxpr and "f64[7]" in jaxpr
    only = jax.make_jaxpr(lambda x: jax.vmap(net.kernel)(x).ntk.array)(x)
    assert "f64[5,5]" not in str(only)


def test_no_layer_is_left_out():
    def layers(node):
        found = {type(node).__name__} if isinstance(node, inn.AbstractLayer) else set()
        for child in vars(node).values() if found else ():
            for each in child if isinstance(child, tuple) else (child,):
                found |= layers(each)
        return found

    tested = set().union(*(layers(_net(name)) for name in _networks))
    exported = {
        value.__name__  # Some have several.
        for name, value in vars(inn).items()
        if isinstance(value, type)
        and issubclass(value, inn.AbstractLayer)
        and not name.startswith("Abstract")
    }
    # Without kernels; and those which need a graph: tests/test_linear_layers.py.
    exported -= {"BatchNorm", "LogSoftmax", "MaxPool", "Softmax"}
    exported -= {"Aggregate", "SparseAggregate"}
    # Like `Elu`, but for the function: tests/test_quadrature.py.
    exported -= {"Elementwise", "Mish", "Selu", "Sigmoid", "Silu", "Softplus", "Tanh"}
    assert exported == tested
