"""Duals of nonlinearities, against quadrature of the expectations that they stand for."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

import infinitenet as inn


def _slopes(a, b):
    """A piecewise linear function, and its derivative."""
    return lambda x: np.where(x > 0, b * x, a * x), lambda x: np.where(x > 0, b, a)


def _erf(a, b, c):
    derivative = lambda x: a * b * 2 / np.sqrt(np.pi) * np.exp(-((b * x) ** 2))
    return lambda x: a * scipy.special.erf(b * x) + c, derivative


# Each layer with its function and the derivative of that, in NumPy. All nonlinearities of
# the library are in here: see the last test.
_pointwise = {
    "relu": (inn.Relu(), *_slopes(0.0, 1.0)),
    "leaky_relu": (inn.LeakyRelu(0.3), *_slopes(0.3, 1.0)),
    "leaky_relu_down": (inn.LeakyRelu(-0.4), *_slopes(-0.4, 1.0)),
    "abs": (inn.Abs(), *_slopes(-1.0, 1.0)),
    "ab_relu": (inn.ABRelu(-0.5, 0.9), *_slopes(-0.5, 0.9)),
    "ab_relu_line": (inn.ABRelu(1.3, 1.3), *_slopes(1.3, 1.3)),
    "erf": (inn.Erf(), *_erf(1.0, 1.0, 0.0)),
    "erf_abc": (inn.Erf(1.2, 0.7, -0.4), *_erf(1.2, 0.7, -0.4)),
    "erf_steep": (inn.Erf(-0.8, 2.5, 0.3), *_erf(-0.8, 2.5, 0.3)),
}
_all = pytest.mark.parametrize("name", _pointwise)

#
# Quadrature
#

# At nine standard deviations the density is 1e-18. With so many panels and points,
# analytic functions are integrated to ten digits and more.
_end, _panels, _points = 9.0, 16, 16


def _nodes(start, end):
    """Nodes and weights of composite Gauss-Legendre quadrature, along a last axis."""
    x, w = np.polynomial.legendre.leggauss(_points)
    edges = np.linspace(start, end, _panels + 1, axis=-1)
    middle, half = (edges[..., 1:] + edges[..., :-1]) / 2, np.diff(edges) / 2
    x, w = middle[..., None] + half[..., None] * x, half[..., None] * w
    return x.reshape(*x.shape[:-2], -1), w.reshape(*w.shape[:-2], -1)


def _nodes_around(kink):
    """Likewise over the whole line, split where functions are not smooth."""
    kink = np.clip(kink, -_end, _end)
    left, right = _nodes(0 * kink - _end, kink), _nodes(kink, 0 * kink + _end)
    return (np.concatenate(pair, -1) for pair in zip(left, right, strict=True))


def _density(x):
    return np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)


def _expectation(f, q1, k, q2):
    """`E[f(u) f(v)]` of Gaussian `u, v` of variances `q1, q2` and covariance `k`."""
    x, w = _nodes_around(np.zeros(()))
    u, w = np.sqrt(q1) * x, w * _density(x)
    slope, rest = k / np.sqrt(q1), np.sqrt(max(q2 - k**2 / q1, 0))
    if rest < 1e-6:  # `v` is a multiple of `u`.
        return np.sum(w * f(u) * f(slope * x))
    y, w_y = _nodes_around(-slope * x / rest)
    v = slope * x[:, None] + rest * y
    return np.sum(w * f(u) * np.sum(w_y * _density(y) * f(v), -1))


def _covariances(c=(-1.0, -0.97, -0.5, 0.0, 0.3, 0.8, 0.97, 1.0)):
    variances = [(1.0, 1.0), (0.2, 3.0), (2.5, 0.6)]
    return np.asarray([(q, r * np.sqrt(q * p), p) for q, p in variances for r in c]).T


@eqx.filter_jit
def _dual(layer, q1, k, q2):
    """The dual, and its derivative along the covariance: the factor of the NTK."""
    return jax.jvp(lambda k: layer.dual(q1, k, q2), (k,), (jnp.ones_like(k),))


#
# Values
#


@_all
def test_call(name):
    layer, f, _ = _pointwise[name]
    x = np.asarray([[-1e3, -2.0, -0.3, -1e-9], [0.0, 1e-9, 0.7, 1e3]])
    np.testing.assert_allclose(layer(x), f(x), rtol=1e-15, atol=1e-15)
    assert layer(x.astype(np.float32)).dtype == np.float32


@_all
def test_dual(name):
    layer, f, derivative = _pointwise[name]
    args = _covariances()
    value, ntk = _dual(layer, *args)
    want = [_expectation(f, *pair) for pair in args.T]
    np.testing.assert_allclose(value, want, rtol=1e-10, atol=1e-10)
    want = [_expectation(derivative, *pair) for pair in args.T]
    np.testing.assert_allclose(ntk, want, rtol=1e-7, atol=1e-7)


@_all
def test_dual_float32(name):
    layer, *_ = _pointwise[name]
    args = _covariances()
    value, ntk = _dual(layer, *args)
    value32, ntk32 = _dual(layer, *args.astype(np.float32))
    assert value32.dtype == ntk32.dtype == np.float32
    np.testing.assert_allclose(value32, value, rtol=2e-6, atol=2e-6)
    # Where both are collinear, angles are known to the square root of rounding.
    apart = np.abs(args[1]) < 0.99 * np.sqrt(args[0] * args[2])
    np.testing.assert_allclose(ntk32[apart], ntk[apart], rtol=5e-6, atol=2e-6)
    np.testing.assert_allclose(ntk32, ntk, atol=3e-3)


@_all
def test_second_derivative(name):
    """Of the dual: that of the NTK's factor, on which gradients of the NTK depend."""
    layer, *_ = _pointwise[name]
    q1, k, q2 = args = _covariances((-0.97, -0.5, 0.0, 0.3, 0.8, 0.97))
    along_k = lambda k: jax.jvp(lambda k: _dual(layer, q1, k, q2), (k,), (1 + 0 * k,))
    got = jax.jit(along_k)(k)
    if isinstance(layer, inn.Erf):
        a, b = float(layer.a), float(layer.b)
        second = lambda x: -4 * a * b**3 / np.sqrt(np.pi) * x * np.exp(-((b * x) ** 2))
        want = [_expectation(second, *pair) for pair in args.T]
    else:
        # The slope jumps at zero: that squared, times the density there.
        jump = float(layer.slopes(np.dtype(float))[1] - layer.slopes(np.dtype(float))[0])
        want = jump**2 / (2 * np.pi * np.sqrt(q1 * q2 - k**2))
    np.testing.assert_allclose(got[1][1], want, rtol=1e-10, atol=1e-10)


@_all
def test_derivatives_along_variances(name):
    """Of the dual, by Price's theorem half of `E[f''(u) f(v)]`: by finite differences."""
    layer, *_ = _pointwise[name]
    args = _covariances((-0.9, -0.5, 0.0, 0.3, 0.8))
    total = lambda args: jnp.sum(_dual(layer, *args)[0])
    got = jax.jit(jax.grad(total))(args)
    step = 1e-5
    for i in range(3):
        shift = step * (np.arange(3) == i)[:, None]
        up, down = (np.asarray(_dual(layer, *(args + h))[0]) for h in (shift, -shift))
        np.testing.assert_allclose(got[i], (up - down) / (2 * step), atol=1e-7)


@pytest.mark.parametrize("name", ["leaky_relu", "ab_relu", "ab_relu_line", "erf_abc"])
def test_derivatives_along_hyperparameters(name):
    """Of the dual and of the NTK's factor, by finite differences of both."""
    layer, *_ = _pointwise[name]
    args = _covariances()
    leaves, structure = jax.tree.flatten(layer)
    fn = eqx.filter_jit(lambda leaves: _dual(jax.tree.unflatten(structure, leaves), *args))
    got = jax.jit(jax.jacfwd(fn))(leaves)
    step = 1e-6
    for i, leaf in enumerate(leaves):
        value, ntk = (
            (np.asarray(up) - np.asarray(down)) / (2 * step)
            for up, down in zip(
                *(fn([*leaves[:i], leaf + h, *leaves[i + 1 :]]) for h in (step, -step)),
                strict=True,
            )
        )
        np.testing.assert_allclose(got[0][i], value, atol=1e-8)
        np.testing.assert_allclose(got[1][i], ntk, atol=1e-8)


#
# Special arguments
#


@_all
def test_symmetric(name):
    layer, *_ = _pointwise[name]
    q1, k, q2 = _covariances()
    for one, other in zip(_dual(layer, q1, k, q2), _dual(layer, q2, k, q1), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-13, atol=1e-14)


@_all
def test_identical(name):
    """`E[f(u)^2]` and `E[f'(u)^2]`, which the diagonal of kernel matrices is made of."""
    layer, f, derivative = _pointwise[name]
    q = np.asarray([1e-3, 0.3, 1.0, 4.0])
    value, ntk = _dual(layer, q, q, q)
    want = [_expectation(f, x, x, x) for x in q]
    np.testing.assert_allclose(value, want, rtol=1e-10)
    want = [_expectation(derivative, x, x, x) for x in q]
    np.testing.assert_allclose(ntk, want, rtol=1e-10)


@_all
def test_uncorrelated(name):
    """The product of means."""
    layer, f, derivative = _pointwise[name]
    q1, q2 = np.asarray([[0.3, 1.0, 4.0], [2.0, 1.0, 0.1]])
    x, w = _nodes_around(np.zeros(()))
    mean = lambda f, q: np.sum(w * _density(x) * f(np.sqrt(q)[:, None] * x), -1)
    value, ntk = _dual(layer, q1, 0 * q1, q2)
    np.testing.assert_allclose(value, mean(f, q1) * mean(f, q2), atol=1e-13)
    want = mean(derivative, q1) * mean(derivative, q2)
    np.testing.assert_allclose(ntk, want, atol=1e-13)


@_all
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_zero_variance(name, dtype):
    layer, f, _ = _pointwise[name]
    q1, q2 = np.asarray([[0.0, 0.0, 2.0], [0.0, 2.0, 0.0]], dtype)
    value, ntk = _dual(layer, q1, 0 * q1, q2)
    tolerance = 10 * np.finfo(dtype).eps
    np.testing.assert_allclose(value[0], f(np.zeros(())) ** 2, atol=tolerance)
    if isinstance(layer, inn.Erf):
        # `f'(0)` times the mean of `f'`.
        a, b = float(layer.a), float(layer.b)
        want = 4 / np.pi * (a * b) ** 2 / np.sqrt(1 + 2 * b**2 * (q1 + q2))
    else:
        # A kink counts as the mean of its slopes.
        a, b = map(float, layer.slopes(np.dtype(float)))
        want = np.full(3, (a + b) ** 2 / 4)
    np.testing.assert_allclose(ntk, want, rtol=tolerance)
    reverse = jax.jit(jax.grad(lambda *args: jnp.sum(layer.dual(*args)), (0, 1, 2)))
    for derivative in reverse(q1, 0 * q1, q2):
        assert np.all(np.isfinite(derivative))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("sign", [1, -1])
def test_erf_of_large_variances(sign, dtype):
    """Where inputs are collinear, up to rounding: so copies of an input are."""
    eps = np.finfo(dtype).eps
    q = np.asarray([1e4, 1e7, 1e10, 1e18, 1e30], dtype)
    exact = q.astype(float)
    # As `(1 + 2 q)^2 - (2 q)^2 = 1 + 4 q`.
    want = 2 / np.pi * np.arctan2(2 * exact, np.sqrt(1 + 4 * exact))
    want_ntk = 4 / np.pi / np.sqrt(1 + 4 * exact)
    for rounding in (0, 2):
        k = sign * q * (1 + dtype(rounding) * eps)
        value, ntk = _dual(inn.Erf(), q, k, q)
        np.testing.assert_allclose(value, sign * want, rtol=10 * eps)
        np.testing.assert_allclose(ntk, want_ntk, rtol=1e-3)


#
# Completeness
#


def test_nothing_is_left_out():
    exported = {
        cls
        for name, cls in vars(inn).items()
        if isinstance(cls, type)
        and issubclass(cls, inn.AbstractPointwise)
        and not name.startswith("Abstract")
    }
    assert exported == {type(layer) for layer, *_ in _pointwise.values()}
