"""Predictions, and functions of symmetric matrices."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.linalg

from infinitenet._inference.solution import Prediction
from infinitenet._inference.spectral import (
    decompose,
    INTEGRAL,
    MOVED,
    REMAINING,
    spectral_apply,
)


def _psd(key, n, rank):
    x = jr.normal(key, (n, rank))
    return x @ x.T


#
# Functions of symmetric matrices
#

# As `expm` finds them. The integral: the corner of the exponential of a larger matrix.


def _moved(k, s):
    return np.eye(len(k)) - scipy.linalg.expm(-k * s)


def _integral(k, s):
    n = len(k)
    big = np.block([[-k, np.eye(n)], [np.zeros((n, 2 * n))]])
    return scipy.linalg.expm(big * s)[:n, n:]


_functions = {
    "moved": (MOVED, _moved),
    "remaining": (REMAINING, lambda k, s: scipy.linalg.expm(-k * s)),
    "integral": (INTEGRAL, _integral),
}


def _apply(fn, k, s, v):
    spectrum = decompose("k", k)
    return spectrum.apply(fn, s, v)


@pytest.mark.parametrize("name", _functions)
@pytest.mark.parametrize("s", [0.0, 1e-9, 1e-3, 0.3, 1.0, 10.0])
def test_against_expm(name, s, getkey):
    fn, expected = _functions[name]
    k = _psd(getkey(), 5, 5)
    out = _apply(fn, k, jnp.array(s), jnp.eye(5))
    want = expected(np.asarray(k), s)
    np.testing.assert_allclose(out, want, rtol=1e-10, atol=1e-13 * (s + 1))


# Repeated eigenvalues, zero ones among them, are where JAX's own derivative is NaN.
_spectra = {
    "distinct": [0.1, 0.5, 1.0, 3.0],
    "repeated": [0.5, 1.0, 1.0, 1.0],
    "nearly repeated": [0.5, 1.0, 1.0 + 1e-13, 1.0 + 1e-7],
    "small": [1e-9, 2e-9, 1e-5, 1.0],
    "identity": [2.0, 2.0, 2.0, 2.0],
}


@pytest.mark.parametrize("spectrum", _spectra)
@pytest.mark.parametrize("name", _functions)
@pytest.mark.parametrize("s", [0.02, 1.7, 30.0])
def test_derivatives_against_expm(spectrum, name, s, getkey):
    # Of f(K + h D), from the corner of f of [[K, D], [0, K]] (Najfeld and Havel 1995).
    fn, expected = _functions[name]
    q, _ = np.linalg.qr(jr.normal(getkey(), (4, 4)))
    k = q @ np.diag(_spectra[spectrum]) @ q.T
    k = (k + k.T) / 2
    direction = np.asarray(_psd(getkey(), 4, 4))
    block = np.block([[k, direction], [np.zeros((4, 4)), k]])
    want = expected(block, s)[:4, 4:]
    run = lambda k, s: _apply(fn, k, s, jnp.eye(4))
    args = (jnp.asarray(k), jnp.array(s))
    _, out = jax.jvp(run, args, (jnp.asarray(direction), jnp.array(0.0)))
    scale = np.abs(want).max()
    np.testing.assert_allclose(out, want, rtol=1e-9, atol=1e-12 * scale)
    # Transposed, by the symmetry of both.
    cotangent = jr.normal(getkey(), (4, 4))
    _, pull = jax.vjp(run, *args)
    np.testing.assert_allclose(
        jnp.sum(pull(cotangent)[0] * direction), jnp.sum(cotangent * want), rtol=1e-8
    )


def test_second_derivatives(getkey):
    k, d, v = _psd(getkey(), 3, 3), _psd(getkey(), 3, 3), jr.normal(getkey(), (3, 2))
    run = lambda h: jnp.sum(_apply(INTEGRAL, k + h * d, 0.7 + h, v) ** 2)
    grad = jax.jit(jax.grad(run))
    _, out = jax.jvp(grad, (jnp.array(0.0),), (jnp.array(1.0),))
    want = (grad(1e-5) - grad(-1e-5)) / 2e-5
    np.testing.assert_allclose(out, want, rtol=1e-7)


@pytest.mark.parametrize("name", _functions)
def test_derivatives_at_infinity(name, getkey):
    # Of projectors and of the pseudo-inverse, along matrices of the same range.
    fn, _ = _functions[name]
    x, d = jr.normal(getkey(), (5, 3)), jr.normal(getkey(), (5, 3))
    s = jnp.array(jnp.inf)
    run = lambda h: _apply(fn, (x + h * d) @ (x + h * d).T, s, jnp.eye(5))
    _, out = jax.jvp(run, (0.0,), (1.0,))
    h = 1e-6
    want = (run(h) - run(-h)) / (2 * h)
    np.testing.assert_allclose(out, want, rtol=1e-6, atol=1e-6 * np.abs(want).max())
    t_s = jax.jvp(lambda s: _apply(fn, x @ x.T, s, jnp.eye(5)), (s,), (1.0,))[1]
    np.testing.assert_array_equal(t_s, 0)


def test_negative_eigenvalues_are_an_error():
    k = jnp.diag(jnp.array([1.0, -1e-3]))
    with pytest.raises(ValueError, match="`k`: .* eigenvalues are from -1.0e-03"):
        decompose("k", k)
    with pytest.raises(RuntimeError, match="too negative to be zero up to rounding"):
        jax.block_until_ready(eqx.filter_jit(decompose)("k", k).eigenvalues)
    # Rounding.
    l = decompose("k", jnp.diag(jnp.array([1.0, -1e-16]))).eigenvalues
    np.testing.assert_array_equal(l, [0.0, 1.0])


#
# Predictions
#


@pytest.mark.parametrize("times", [(), (2,)])
@pytest.mark.parametrize("outputs", [(), (2,)])
def test_samples(times, outputs, getkey):
    n_test, n = 3, 20_000
    mean = jr.normal(getkey(), (*times, n_test, *outputs))
    # Singular: rank 2.
    covariance = jnp.stack([_psd(getkey(), n_test, 2) for _ in range(2)])
    covariance = covariance if times else covariance[0]
    p = Prediction(mean, covariance)
    assert p.std.shape == (*times, n_test)
    variances = jnp.diagonal(covariance, axis1=-2, axis2=-1)
    np.testing.assert_allclose(p.std**2, variances, rtol=1e-12)
    x = p.sample(getkey(), n)
    assert x.shape == (n, *mean.shape)
    x = np.asarray((x - mean[None]).reshape(n, *(times or (1,)), n_test, -1))
    got = np.einsum("ntio,ntjp->tijop", x, x) / n
    want = covariance.reshape(-1, n_test, n_test)
    want = np.einsum("tij,op->tijop", want, np.eye(x.shape[-1]))
    # Five standard errors: the variance of a product is at most twice the variances'.
    bound = 5 * np.sqrt(2 / n) * float(variances.max())
    assert np.abs(got - want).max() < bound
    assert np.abs(x.mean(0)).max() < 5 * np.sqrt(float(variances.max()) / n)


def test_sample_of_zero_covariance(getkey):
    p = Prediction(jnp.ones((3, 2)), jnp.zeros((3, 3)))
    np.testing.assert_array_equal(p.sample(getkey(), 4), 1)
    np.testing.assert_array_equal(p.std, 0)
    grad = jax.grad(lambda c: jnp.sum(Prediction(p.mean, c).std))(p.covariance)
    np.testing.assert_array_equal(grad, 0)


def test_samples_are_smooth_in_covariance(getkey):
    key = getkey()
    x, d = jr.normal(getkey(), (4, 2)), jr.normal(getkey(), (4, 2))
    cov = lambda h: (x + h * d) @ (x + h * d).T
    run = lambda h: Prediction(jnp.zeros(4), cov(h)).sample(key, 3)
    # The third and fourth eigenvalues are both zero.
    _, out = jax.jvp(run, (0.0,), (1.0,))
    np.testing.assert_allclose(out, (run(1e-5) - run(-1e-5)) / 2e-5, atol=1e-8)


def test_without_covariance(getkey):
    p = Prediction(jnp.ones(3), None)
    for call in (lambda: p.std, lambda: p.sample(getkey(), 1)):
        with pytest.raises(ValueError, match="`k_test_test`.* to `predict`"):
            call()


def test_negative_covariance(getkey):
    key = getkey()
    p = Prediction(jnp.ones(2), jnp.diag(jnp.array([1.0, -0.1])))
    for call in (lambda p: p.std, lambda p: p.sample(key, 1)):
        with pytest.raises(ValueError, match="far below zero.*The lowest is -1.0e-01"):
            call(p)
        with pytest.raises(RuntimeError, match="far below zero"):
            jax.block_until_ready(eqx.filter_jit(call)(p))
    # Of the order of rounding, by default and as told.
    p = Prediction(jnp.ones(2), jnp.diag(jnp.array([1.0, -1e-16])))
    np.testing.assert_array_equal(p.std, [1, 0])
    p = Prediction(jnp.ones(2), -0.1 * jnp.eye(2), jnp.array(0.2))
    np.testing.assert_array_equal(p.sample(key, 1), 1)


def test_many_predictions(getkey):
    # A batch of predictions from `vmap` is as one over times.
    key, mean = getkey(), jr.normal(getkey(), (4, 3))
    covariance = jnp.stack([_psd(getkey(), 3, 3) for _ in range(4)])
    many = eqx.filter_vmap(Prediction)(mean, covariance)
    one = eqx.filter_vmap(lambda p: p.sample(key, 2), out_axes=1)(many)
    np.testing.assert_allclose(many.sample(key, 2), one, rtol=1e-12, atol=1e-12)


def test_spectral_apply_ignores_what_is_constant(getkey):
    # Derivatives by time alone do not form the slopes, of size (n, n).
    spectrum, v = decompose("k", _psd(getkey(), 4, 4)), jnp.ones((4, 1))
    k, l, u = spectrum.k, spectrum.eigenvalues, spectrum.eigenvectors
    run = lambda s: spectral_apply(k, l, u, s, v, fn=MOVED)
    jaxpr = jax.make_jaxpr(lambda s: jax.jvp(run, (s,), (1.0,))[1])(1.0)
    square = [e for e in jaxpr.jaxpr.eqns if "exp" in e.primitive.name]
    assert all(e.outvars[0].aval.shape != (4, 4) for e in square)
