"""Functions of angles, against extended precision, where angles are tiny and huge too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from infinitenet._special import angle, arc_cosine, determinant, fast_expm1


_ones = lambda x: jnp.ones_like(x)
_dtypes = pytest.mark.parametrize("dtype", [np.float64, np.float32])


def _exact(q1, k, q2):
    """`arc_cosine` and all its derivatives, in extended precision."""
    q1, k, q2 = (np.asarray(q, np.longdouble) for q in (q1, k, q2))
    pi = np.longdouble("3.14159265358979323846264338327950288")
    s = np.sqrt(q1) * np.sqrt(q2)
    # `s - |k|` without the rounding of a quotient, which angles near zero are sensitive to.
    t = (s - np.abs(k)) / s
    sin, acute = np.sqrt(t * (2 - t)), 2 * np.arctan2(np.sqrt(t), np.sqrt(2 - t))
    theta, c = np.where(k < 0, pi - acute, acute), k / s
    kappa0 = 1 - theta / pi
    values = s * (sin + (pi - theta) * c) / pi, kappa0
    with np.errstate(divide="ignore", invalid="ignore"):
        along_k = kappa0, 1 / (pi * s * sin)
        along_q1 = s * sin / (2 * pi * q1), -c / (2 * pi * q1 * sin)
        along_q2 = s * sin / (2 * pi * q2), -c / (2 * pi * q2 * sin)
    return [np.stack(f).astype(float) for f in (values, along_k, along_q1, along_q2)]


@jax.jit
def _computed(q1, k, q2):
    """Likewise, by `arc_cosine`."""
    values = arc_cosine(q1, k, q2)
    along_k = jax.jvp(lambda k: arc_cosine(q1, k, q2), (k,), (_ones(k),))[1]
    along_q1 = jax.jvp(lambda q: arc_cosine(q, k, q2), (q1,), (_ones(q1),))[1]
    along_q2 = jax.jvp(lambda q: arc_cosine(q1, k, q), (q2,), (_ones(q2),))[1]
    return [jnp.stack(f) for f in (values, along_k, along_q1, along_q2)]


@jax.jit
def _along_k_twice(q1, k, q2):
    """Along `k`, the second derivative of what the NNGP is made of."""
    first = lambda k: jax.jvp(lambda k: arc_cosine(q1, k, q2)[0], (k,), (_ones(k),))[1]
    return jax.jvp(first, (k,), (_ones(k),))[1]


@jax.jit
def _all_derivatives(q1, k, q2):
    """Forward, reverse, and both: elementwise, so that sums give each element's own."""
    args = q1, k, q2
    total = lambda *args: sum(jnp.sum(out) for out in arc_cosine(*args))
    reverse = jax.grad(total, (0, 1, 2))
    vectorised = jax.vmap(jax.grad(lambda *args: arc_cosine(*args)[0], (0, 1, 2)))
    forward = jax.jvp(arc_cosine, args, tuple(map(_ones, args)))
    twice = jax.grad(lambda *args: sum(map(jnp.sum, reverse(*args))), (0, 1, 2))
    return forward, reverse(*args), vectorised(*args), twice(*args)


def _grid(c, variances=(0.3, 1.0, 7.0)):
    q1, q2, c = (x.ravel() for x in np.meshgrid(variances, variances, c))
    return q1, c * np.sqrt(q1 * q2), q2


#
# `arc_cosine`
#


def test_arc_cosine():
    args = _grid([-0.99, -0.7, -0.1, 0.0, 0.2, 0.5, 0.9, 0.99])
    got, want = _computed(*args), _exact(*args)
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-13, atol=1e-13)
    # The derivative of the NTK's factor.
    np.testing.assert_allclose(_along_k_twice(*args), want[1][1], rtol=1e-13)


def test_arc_cosine_float32():
    args = _grid(np.linspace(-0.98, 0.98, 41))
    args = [np.asarray(x, np.float32) for x in args]
    for g, w in zip(_computed(*args), _exact(*args), strict=True):
        assert g.dtype == np.float32
        np.testing.assert_allclose(g[0], w[0], rtol=1e-6, atol=1e-6)
    # Those of the angle have a pole at 1, near which they are sensitive to rounding.
    middle = np.abs(args[1]) < 0.9 * np.sqrt(args[0] * args[2])
    for g, w in zip(_computed(*args), _exact(*args), strict=True):
        np.testing.assert_allclose(g[1][middle], w[1][middle], rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("c", [-0.9, -0.3, 0.0, 0.6, 0.95])
def test_arc_cosine_is_an_expectation(c):
    """Of positive parts, and of their derivatives: given one of them, in closed form."""
    normal, s = scipy.stats.norm, np.sqrt(1 - c**2)
    ramp = lambda u: c * u * normal.cdf(c * u / s) + s * normal.pdf(c * u / s)
    order1 = lambda u: 2 * normal.pdf(u) * u * ramp(u)
    order0 = lambda u: 2 * normal.pdf(u) * normal.cdf(c * u / s)
    want = [scipy.integrate.quad(f, 0, 12, epsabs=1e-13)[0] for f in (order1, order0)]
    got = arc_cosine(*map(jnp.asarray, (1.0, c, 1.0)))
    np.testing.assert_allclose(got, want, atol=1e-12)


@pytest.mark.parametrize("sign", [1, -1])
def test_arc_cosine_of_near_duplicates(sign):
    distance = 10.0 ** -np.arange(1, 15)
    q, k = np.ones_like(distance), sign * (1 - distance)
    (value, ntk), got_along_k = _computed(q, k, q)[:2]
    (want, want_ntk), want_along_k = _exact(q, k, q)[:2]
    np.testing.assert_allclose(value, want, atol=1e-15)
    np.testing.assert_allclose(ntk, want_ntk, atol=1e-15)
    # The correlation is exact here, hence its distance from 1 is, and the derivative.
    np.testing.assert_allclose(got_along_k[1], want_along_k[1], rtol=1e-13)


def test_arc_cosine_of_near_duplicates_with_rounding():
    """A correlation is known to rounding, and an angle to the square root of that."""
    distance = 10.0 ** -np.arange(1, 17)
    q1, q2 = 0.7 + 0 * distance, 3.1 + 0 * distance
    k = np.sqrt(q1 * q2) * (1 - distance)
    (value, ntk), _ = _computed(q1, k, q2)[:2]
    (want, want_ntk), _ = _exact(q1, k, q2)[:2]
    np.testing.assert_allclose(value, want, rtol=1e-15, atol=1e-14)
    np.testing.assert_allclose(ntk, want_ntk, atol=np.sqrt(8e-16))


@_dtypes
@pytest.mark.parametrize("rounding", [-3, -1, 0, 1, 3, 30])
def test_arc_cosine_of_duplicates(dtype, rounding):
    """A correlation of 1, up to some units of rounding, is one; so is one above 1."""
    q = np.asarray([0.3, 1.0, 7.1, 1e-12, 1e12], dtype)
    # Half a unit or one from each product of the roots, besides those of `k`.
    k = q * (1 + dtype(rounding) * np.finfo(dtype).eps / 2)
    (value, ntk), (along_k, ntk_along_k) = _computed(q, k, q)[:2]
    np.testing.assert_allclose(value, q, rtol=20 * np.finfo(dtype).eps)
    np.testing.assert_array_equal(ntk, 1)
    np.testing.assert_array_equal(along_k, 1)
    np.testing.assert_array_equal(ntk_along_k, 0)
    (value, ntk), (along_k, _) = _computed(q, -k, q)[:2]
    np.testing.assert_allclose(value, 0 * q, atol=20 * np.finfo(dtype).eps * q.max())
    np.testing.assert_array_equal(ntk, 0)
    np.testing.assert_array_equal(along_k, 0)
    # Along the variances too: as on the diagonal the three of them move together.
    _, k_part, q1_part, q2_part = _computed(q, k, q)
    np.testing.assert_allclose(
        k_part[0] + q1_part[0] + q2_part[0], 1 + 0 * q, rtol=20 * np.finfo(dtype).eps
    )


@_dtypes
def test_arc_cosine_of_zero_variance(dtype):
    q1, q2 = np.asarray([[0, 0, 2.0], [0, 2.0, 0]], dtype)
    values, along_k, along_q1, along_q2 = _computed(q1, 0 * q1, q2)
    np.testing.assert_array_equal(values, [3 * [0], 3 * [0.5]])
    # Half of all slopes: `max(u, 0)` has the slope 1/2 at zero.
    np.testing.assert_array_equal(along_k, [3 * [0.5], 3 * [0]])
    for derivative in (along_q1, along_q2):
        assert np.all(np.isfinite(derivative))


@_dtypes
def test_arc_cosine_is_finite(dtype):
    """Values and first derivatives, with equal, zero, huge and tiny variances."""
    variances = [0, 1e-30, 1e-8, 1.0, 1e8, 1e30]
    c = [-1 - 1e-7, -1, -1 + 1e-7, -0.5, 0, 0.5, 1 - 1e-7, 1, 1 + 1e-7]
    args = [np.asarray(x, dtype) for x in _grid(c, variances)]
    forward, reverse, vectorised, twice = _all_derivatives(*args)
    for x in jax.tree.leaves((forward, reverse, vectorised)):
        assert x.dtype == dtype
        assert np.all(np.isfinite(x))
    # Second derivatives of variances of 1e-30 overflow in float32, as they are 1e60.
    moderate = (args[0] != dtype(1e-30)) & (args[2] != dtype(1e-30))
    for x in jax.tree.leaves(twice):
        assert np.all(np.isfinite(x[moderate | (dtype == np.float64)]))


def test_arc_cosine_of_huge_and_tiny_variances():
    args = _grid([-0.9, 0.1, 0.8], [1e-30, 1e-8, 1.0, 1e30])
    got, want = _computed(*args), _exact(*args)
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-13)


def test_arc_cosine_derivatives_agree():
    """Forward and reverse mode, at all orders that are used."""
    args = _grid([-0.8, -0.1, 0.3, 0.9])
    forward, reverse, vectorised, twice = _all_derivatives(*args)
    _, along_k, along_q1, along_q2 = _exact(*args)
    parts = along_q1, along_k, along_q2
    np.testing.assert_allclose(jnp.stack(forward[1]), sum(parts), rtol=1e-12, atol=1e-13)
    for got, got_of_value, want in zip(reverse, vectorised, parts, strict=True):
        np.testing.assert_allclose(got, want[0] + want[1], rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(got_of_value, want[0], rtol=1e-12, atol=1e-13)
    step = 1e-5
    for i, got in enumerate(twice):
        gradients = []
        for h in (step, -step):
            moved = [x + (j == i) * h for j, x in enumerate(args)]
            gradients.append(sum(np.sum(d, 0) for d in _exact(*moved)[1:]))
        up, down = gradients
        # Fourth derivatives of the angle are large, hence the tolerance.
        np.testing.assert_allclose(got, (up - down) / (2 * step), rtol=1e-5, atol=1e-6)


#
# `angle`
#


def _angles(dtype):
    tiny = 10.0 ** np.arange(-12, 0)
    magnitudes = np.concatenate([tiny, np.linspace(0.1, 1.5, 30), np.pi / 2 - tiny])
    angles = np.concatenate([-magnitudes, [0.0], magnitudes])
    root = np.sqrt(0.5)  # Where both are equal.
    sine = np.concatenate([np.sin(angles), [root, -root]])
    return sine.astype(dtype), np.append(np.cos(angles), [root, root]).astype(dtype)


@_dtypes
def test_angle(dtype):
    sine, cosine = _angles(dtype)
    exact = np.arctan2(np.asarray(sine, np.longdouble), np.asarray(cosine, np.longdouble))
    got = jax.jit(angle)(jnp.asarray(sine), jnp.asarray(cosine))
    assert got.dtype == dtype
    tolerance = 2e-7 if dtype == np.float32 else 1e-15
    np.testing.assert_allclose(got, exact, rtol=tolerance)


@_dtypes
def test_derivative_of_angle(dtype):
    """Along the circle it is one, without any rule."""
    sine, cosine = map(jnp.asarray, _angles(dtype))
    _, got = jax.jvp(angle, (sine, cosine), (cosine, -sine))
    np.testing.assert_allclose(got, 1, rtol=1e-5 if dtype == np.float32 else 1e-14)


#
# `determinant`
#


@_dtypes
def test_determinant(dtype):
    """Relative to what rounding of its arguments makes of it."""
    eps = float(np.finfo(dtype).eps)
    variances = [1e-6, 0.3, 0.3 * (1 + 1e-5), 1.0, 1.0 + 1e-6, 1e6]
    c = [-1, -1 + 1e-6, -0.6, 0.0, 0.4, 0.9, 1 - 1e-6, 1]
    q1, k, q2 = (np.asarray(x, dtype) for x in _grid(c, variances))
    args = [jnp.asarray(x) for x in (q1, k, q2)]
    got = np.asarray(determinant(*args), np.longdouble)
    q1, k, q2 = (x.astype(np.longdouble) for x in (q1, k, q2))
    want = np.maximum(q1 * q2 - k * k, 0)
    assert np.all(np.abs(got - want) <= 4 * eps * q1 * q2)
    # No worse than a few units, where differences are exact or nothing cancels.
    easy = (np.abs(k) < 0.7 * np.sqrt(q1 * q2)) | (q1 == q2)
    rounding = np.finfo(np.longdouble).eps * q1 * q2
    assert np.all(np.abs(got - want)[easy] <= (4 * eps * want + rounding)[easy])
    # Nothing overflows.
    args = [jnp.asarray(x, np.float32) for x in (1e30, 5e29, 2e30)]
    np.testing.assert_allclose(determinant(*args, scale=1e-30), 1.75, rtol=1e-6)


@_dtypes
def test_fast_expm1(dtype):
    x = jnp.asarray(-np.append(np.logspace(-30, 2, 2001), 0), dtype)
    want = np.expm1(np.asarray(x, np.longdouble))
    eps = float(np.finfo(dtype).eps)
    np.testing.assert_allclose(fast_expm1(x), want.astype(dtype), rtol=4 * eps)
    slopes = jax.vmap(jax.grad(fast_expm1))(x)
    np.testing.assert_allclose(slopes, np.exp(x), rtol=4 * eps, atol=2 * eps)
