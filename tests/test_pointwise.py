"""Duals of nonlinearities, against quadrature of the expectations that they stand for."""

import functools as ft

import equinox as eqx
import jax
import jax.numpy as jnp
import nonlinearities
import numpy as np
import pytest

import infinitenet as inn


_closed_forms = nonlinearities.closed_forms
_all = pytest.mark.parametrize("name", _closed_forms)
_abrupt = ("sign", "step")
# Those with a kink or a jump at zero.
_kinked = (*_abrupt, "relu", "leaky_relu", "leaky_relu_down", "abs", "ab_relu")
_kinked += ("rectified_1",)
_homogeneous = _kinked[2:]

#
# Quadrature
#

# At eleven standard deviations the density is 1e-27, which powers and exponentials do not
# make up for. With so many panels and points, analytic functions are integrated to ten
# digits and more.
_end, _panels, _points = 11.0, 12, 20


def _nodes(*breaks):
    """Nodes and weights of composite Gauss-Legendre quadrature, along a last axis.

    Functions need not be smooth at the breaks.
    """
    x, w = np.polynomial.legendre.leggauss(_points)
    breaks = np.stack(np.broadcast_arrays(*breaks), -1)
    starts, ends = breaks[..., :-1, None], breaks[..., 1:, None]
    panels = -(-_panels * 2 // (breaks.shape[-1] - 1))
    edges = starts + (ends - starts) * np.linspace(0, 1, panels + 1)
    middle, half = (edges[..., 1:] + edges[..., :-1]) / 2, np.diff(edges) / 2
    x, w = middle[..., None] + half[..., None] * x, half[..., None] * w
    return x.reshape(*x.shape[:-3], -1), w.reshape(*w.shape[:-3], -1)


def _density(x):
    return np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)


def _mean(f, q):
    x, w = _nodes(-_end, 0, _end)
    return np.sum(w * _density(x) * f(np.sqrt(q) * x))


def _expectation(f, q1, k, q2):
    """`E[f(u) f(v)]` of Gaussian `u, v` of variances `q1, q2` and covariance `k`."""
    slope, rest = k / np.sqrt(q1), np.sqrt(max(q2 - k**2 / q1, 0))
    if rest < 1e-8:  # `v` is a multiple of `u`.
        x, w = _nodes(-_end, 0, _end)
        return np.sum(w * _density(x) * f(np.sqrt(q1) * x) * f(slope * x))
    # Given `u`, zero is a kink of `v`, unless it is too many standard deviations away.
    seen = _end * rest / abs(slope) if slope else _end
    near = (-seen, 0, seen) if seen < _end / 2 else (0,)
    x, w = _nodes(-_end, *near, _end)
    u, w = np.sqrt(q1) * x, w * _density(x)
    y, w_y = _nodes(-_end, np.clip(-slope * x / rest, -_end, _end), _end)
    v = slope * x[:, None] + rest * y
    return np.sum(w * f(u) * np.sum(w_y * _density(y) * f(v), -1))


#
# All that is computed, at once for all covariances, as compiling takes most of the time
#

_correlations = (-1.0, -1 + 1e-12, -0.9, -0.4, 0.0, 0.5, 0.8, 1 - 1e-12, 1.0)
_variances = ((1.0, 1.0), (0.2, 2.3))
_pairs = np.asarray(
    [(q, c * np.sqrt(q * p), p) for q, p in _variances for c in _correlations]
).T
_inner = np.abs(np.tile(_correlations, len(_variances))) < 0.95


def _moved(step):
    """The inner ones, where each of the three moves up or down."""
    shifts = step * np.concatenate([np.eye(3), -np.eye(3)])
    return (_pairs[:, _inner][:, None] + shifts.T[:, :, None]).reshape(3, -1)


_equal = np.asarray([1e-6, 1e-3, 0.3, 1.0, 3.0])
_roundings = np.asarray([-3, -1, 1, 3, 30]) / 2


def _rounded(eps):
    """Of equal and of opposite inputs, where rounding made correlations exceed 1."""
    q = np.repeat(_equal, _roundings.size)
    k = q * (1 + np.tile(_roundings, _equal.size) * eps)
    return np.concatenate([[q, k, q], [q, -k, q]], 1)


_parts = {
    "pairs": _pairs,
    "swapped": _pairs[::-1],
    "moved": _moved(1e-5),
    "equal": np.stack(3 * [_equal]),
    "opposite": np.stack([_equal, -_equal, _equal]),
    "rounded": _rounded(np.finfo(float).eps),
    "zero": np.asarray([[0.0, 0, 0], [0, 0, 2], [2, 0, 0]]).T,
    "tiny": np.asarray([[1e-14, 0, 1e-14], [1e-14, 0, 2], [2, 0, 1e-14]]).T,
}


@eqx.filter_jit
def _outputs(layer, q1, k, q2):
    """The dual and its derivative along `k`, and the gradients of these two."""

    def both(q1, k, q2):
        return jax.jvp(lambda k: layer.dual(q1, k, q2), (k,), (jnp.ones_like(k),))

    values, pullback = jax.vjp(both, q1, k, q2)
    one, zero = jnp.ones_like(k), jnp.zeros_like(k)
    return *values, jnp.stack(pullback((one, zero))), jnp.stack(pullback((zero, one)))


@ft.cache
def _computed(name):
    layer, *_ = _closed_forms[name]
    outs = _outputs(layer, *np.concatenate(list(_parts.values()), 1))
    ends = np.cumsum([part.shape[1] for part in _parts.values()])[:-1]
    split = [np.split(np.asarray(out), ends, -1) for out in outs]
    return dict(zip(_parts, zip(*split, strict=True), strict=True))


@eqx.filter_jit
def _dual(layer, q1, k, q2):
    """The dual, and its derivative along the covariance: the factor of the NTK."""
    return jax.jvp(lambda k: layer.dual(q1, k, q2), (k,), (jnp.ones_like(k),))


#
# Values
#


@_all
def test_call(name):
    layer, f, _ = _closed_forms[name]
    x = np.asarray([[-40.0, -2.0, -0.3, -1e-9], [0.0, 1e-9, 0.7, 40.0]])
    np.testing.assert_allclose(layer(x), f(x), rtol=2e-14, atol=1e-15)
    assert layer(x.astype(np.float32)).dtype == np.float32


@_all
def test_dual(name):
    _, f, derivative = _closed_forms[name]
    value, ntk, *_ = _computed(name)["pairs"]
    want = np.asarray([_expectation(f, *pair) for pair in _pairs.T])
    scale = np.sqrt(np.mean(want**2))
    # The angle between nearly equal inputs is known to the root of rounding.
    tol = 1e-8 if name in _abrupt else 3e-11
    np.testing.assert_allclose(value, want, rtol=tol, atol=tol * scale)
    if name in _abrupt:  # Of which the derivative has no expectation.
        return
    want = np.asarray([_expectation(derivative, *pair) for pair in _pairs.T])
    scale = np.sqrt(np.mean(want**2))
    tol = 1e-8 if name in (*_kinked, "erf_steep") else 3e-11
    np.testing.assert_allclose(ntk, want, rtol=tol, atol=tol * scale)


@_all
def test_derivatives(name):
    """Of the dual, and of the NTK's factor, by finite differences."""
    both, moved = _computed(name)["pairs"][2:], _computed(name)["moved"][:2]
    for got, at in zip(both, moved, strict=True):
        up, down = at.reshape(2, 3, -1)
        want = (up - down) / 2e-5
        scale = 1 + np.max(np.abs(want))
        np.testing.assert_allclose(got[:, _inner], want, atol=2e-8 * scale)


@_all
def test_symmetric(name):
    pairs, swapped = _computed(name)["pairs"], _computed(name)["swapped"]
    for i, (one, other) in enumerate(zip(pairs, swapped, strict=True)):
        other = other if i < 2 else other[::-1]
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12 * np.abs(one).max())


@_all
@pytest.mark.parametrize("sign", [1, -1])
def test_equal_and_opposite(name, sign):
    """`E[f(u)^2]` and `E[f'(u)^2]`, which the diagonal of kernel matrices is made of.

    To rounding, as all further layers depend on these.
    """
    _, f, derivative = _closed_forms[name]
    tol = 1e-10 if name == "erf_steep" else 1e-13  # That is what quadrature knows.
    value, ntk, *_ = _computed(name)["equal" if sign > 0 else "opposite"]
    want = [_expectation(f, q, sign * q, q) for q in _equal]
    power = np.asarray([_expectation(f, q, q, q) for q in _equal])
    assert np.all(np.abs(value - want) <= tol * power + 1e-16)
    if name not in _abrupt:
        want = [_expectation(derivative, q, sign * q, q) for q in _equal]
        power = np.asarray([_expectation(derivative, q, q, q) for q in _equal])
        assert np.all(np.abs(ntk - want) <= tol * power + 1e-16)


@_all
def test_rounding(name):
    """Correlations of 1, up to some units of rounding."""
    computed = _computed(name)
    for i, out in enumerate(computed["rounded"]):
        assert np.all(np.isfinite(out))
        if i < 2:
            got = out.reshape(2, _equal.size, -1)
            want = np.stack([computed["equal"][i], computed["opposite"][i]])
            scale = np.abs(computed["equal"][i])[:, None]
            # For 15 units. Those of the angle of jumps: to the square root.
            tol = 1e-7 if name in _kinked else 3e-13
            assert np.all(np.abs(got - want[..., None]) <= tol * (scale + tol))


def _at_zero(f):
    """Kinks and jumps count as the mean of both sides."""
    return (f(np.asarray(1e-30)) + f(np.asarray(-1e-30))) / 2


@_all
def test_zero_variance(name):
    _, f, derivative = _closed_forms[name]
    computed = _computed(name)
    value, ntk, *gradients = computed["zero"]
    at_zero = f(np.zeros(()))
    want = at_zero * np.asarray([at_zero, *2 * [_mean(f, 2.0)]])
    np.testing.assert_allclose(value, want, rtol=1e-12, atol=1e-14)
    if name not in _abrupt:
        at_zero = _at_zero(derivative)
        want = at_zero * np.asarray([at_zero, *2 * [_mean(derivative, 2.0)]])
        np.testing.assert_allclose(ntk, want, rtol=1e-12, atol=1e-14)
    for at_zero, nearby in zip(gradients, computed["tiny"][2:], strict=True):
        assert np.all(np.isfinite(at_zero))
        # Where there is a limit.
        if name not in _kinked and name != "rectified_2":
            np.testing.assert_allclose(at_zero, nearby, rtol=1e-6, atol=1e-6)
    if name == "rectified_2":
        np.testing.assert_allclose(gradients[0], computed["tiny"][2], rtol=1e-6, atol=1e-6)


@_all
def test_float32(name):
    layer, *_ = _closed_forms[name]
    large = isinstance(layer, inn.Exp | inn.Polynomial | inn.Monomial | inn.Hermite)
    large = large or name.startswith(("rectified", "pointwise"))
    scales = [1.0] if large else [1.0, 1e4, 1e-4]
    rounded = _rounded(np.finfo(np.float32).eps)
    args = np.concatenate([*(s * _pairs for s in scales), rounded, _parts["zero"]], 1)
    args = args.astype(np.float32)
    # Of nearly equal inputs, angles are known to the square root of rounding: for those
    # that are equal they are zero.
    away = np.abs(args[1].astype(float)) < 0.99 * np.sqrt(args[0].astype(float) * args[2])
    away |= args[1] == 0
    # For large variances that are not equal, so does what seems smooth otherwise.
    exact = (args[0] == args[2]) | (args[0] < 10)
    ratio = (np.sqrt(args[0] * args[2]) if name in _homogeneous else 1.0) + 0 * args[0]
    outs = zip(_dual(layer, *args), _dual(layer, *args.astype(float)), strict=True)
    for i, (out, want) in enumerate(outs):
        assert out.dtype == np.float32
        assert np.all(np.isfinite(out))
        # Relative to values of equal inputs.
        scale = np.max(np.abs(want)) * (ratio / ratio.max()) ** (i == 0)
        smooth = name not in _abrupt and (i == 0 or name not in _kinked)
        known = away | (smooth & exact)
        assert np.all(np.abs(out - want)[known] <= 2e-6 * scale[known])


#
# Arguments that are special to some
#


@pytest.mark.parametrize(
    "layer",
    [
        inn.LeakyRelu(0.3),
        inn.ABRelu(-0.5, 0.9),
        inn.ABRelu(1.3, 1.3),
        inn.Erf(1.2, 0.7, -0.4),
        inn.ExpNormalized(1.3, -0.7),
        inn.Polynomial([0.5, -1.0, 0.3, 0.2]),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_derivatives_along_hyperparameters(layer):
    """Of the dual and of the NTK's factor, by finite differences of both.

    (The others have their derivatives tested as parts of networks.)
    """
    leaves, structure = jax.tree.flatten(layer)
    fn = eqx.filter_jit(
        lambda leaves: jnp.stack(_dual(jax.tree.unflatten(structure, leaves), *_pairs))
    )
    got = jax.jit(jax.jacfwd(fn))(leaves)
    step = 1e-6
    for i, leaf in enumerate(leaves):
        for index in np.ndindex(leaf.shape):
            at = lambda h: fn([*leaves[:i], leaf.at[index].add(h), *leaves[i + 1 :]])  # noqa: B023
            want = (at(step) - at(-step)) / (2 * step)
            np.testing.assert_allclose(got[i][(..., *index)], want, atol=1e-8)


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


@pytest.mark.parametrize(
    "layer", [inn.Gelu(), inn.Gaussian(), inn.Gabor(), inn.Sin(), inn.Rbf()]
)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_huge_variances(layer, dtype):
    """Nothing overflows before the result does."""
    q1, q2 = np.asarray(
        [[1e10, 1e30, 1e30, 1e30, 1e30], [1e10, 1e30, 1e20, 1.0, 1e-10]], dtype
    )
    k = np.sqrt(q1) * np.sqrt(q2)
    for c in (-1.0, -0.5, 0.0, 0.5, 1.0):
        for out in _dual(layer, q1, dtype(c) * k, q2):
            assert np.all(np.isfinite(out))


@pytest.mark.parametrize("do_clip", [False, True])
def test_exp_normalized(do_clip):
    layer = inn.ExpNormalized(1.3, -0.7, do_clip)
    q1, k, q2 = _pairs
    cosine = k / np.sqrt(q1 * q2)
    want = np.exp(1.3 * (cosine - 0.7))
    value, ntk, along, along_ntk = _outputs(layer, q1, k, q2)
    np.testing.assert_allclose(value, np.sqrt(q1 * q2) * want, rtol=1e-14)
    np.testing.assert_allclose(ntk, 1.3 * want, rtol=1e-14)
    np.testing.assert_allclose(along[1], ntk, rtol=1e-14)
    np.testing.assert_allclose(
        along[0], (value - k * ntk) / (2 * q1), rtol=1e-12, atol=1e-14
    )
    np.testing.assert_allclose(
        along[2], (value - k * ntk) / (2 * q2), rtol=1e-12, atol=1e-14
    )
    np.testing.assert_allclose(along_ntk[1], 1.3 * ntk / np.sqrt(q1 * q2), rtol=1e-12)
    for dtype in (np.float64, np.float32):
        args = np.concatenate([_rounded(np.finfo(dtype).eps), _parts["zero"]], 1)
        outs = _outputs(layer, *args.astype(dtype))
        assert all(np.all(np.isfinite(out)) for out in outs)
        sign = np.repeat([1, -1, 0], [*2 * [_equal.size * _roundings.size], 3])
        want = np.exp(1.3 * (sign - 0.7))
        np.testing.assert_allclose(
            outs[1], 1.3 * want, rtol=60 * float(np.finfo(dtype).eps)
        )
        np.testing.assert_allclose(outs[0][-3:], 0)
    with pytest.raises(inn.LayerError, match="without finite networks. Compute kernels"):
        layer(jnp.ones(3))


def test_gradients_of_large_negative_numbers():
    """Of finite networks: where powers that are not taken overflow."""
    x = jnp.asarray([-1e30, -1.0, 0.0, 2.0], np.float32)
    fn = inn.RectifiedMonomial(2)
    np.testing.assert_array_equal(jax.grad(lambda x: jnp.sum(fn(x)))(x), [0, 0, 0, 4])


def test_approximate_gelu():
    x = jnp.linspace(-5, 5, 101)
    error = np.abs(inn.Gelu(approximate=True)(x) - inn.Gelu()(x))
    assert 1e-5 < np.max(error) < 5e-4
    args = map(jnp.asarray, (1.0, 0.3, 2.0))
    assert inn.Gelu(approximate=True).dual(*args) == inn.Gelu().dual(
        *map(jnp.asarray, (1.0, 0.3, 2.0))
    )


@_all
def test_properties(name):
    layer, f, derivative = _closed_forms[name]
    x = np.linspace(0.1, 3, 20)
    # It does not say so of functions that it does not know.
    is_odd = np.allclose(f(-x), -f(x)) and name != "pointwise_sin"
    is_line = name == "ab_relu_line"
    assert layer.odd == (is_odd and not is_line)
    assert layer.flat == (name in _abrupt)


@pytest.mark.parametrize("layer", [inn.Sign(), inn.RectifiedMonomial(0)])
def test_ntk_after_jumps(layer):
    """It is zero, while derivatives of the NNGP are not."""
    net = inn.Sequential([inn.Dense(4, 1.1, 0.2), layer])
    x1, x2 = jnp.asarray([[0.3, 1.0], [-0.2, 0.8]])
    assert net.kernel(x1, x2).ntk.array == 0
    along_x = jax.grad(lambda x: net.kernel(x, x2).nngp.array)(x1)
    assert np.all(np.abs(along_x) > 0.01)


@pytest.mark.parametrize(
    "make, match",
    [
        (lambda: inn.Monomial(-1), "`degree` must be an integer from 0"),
        (lambda: inn.Hermite(10**4), "`degree` must be an integer from 0"),
        (lambda: inn.RectifiedMonomial(True), "`degree` must be an integer"),
        (lambda: inn.Gaussian(1.0, 0.1), "`b` must not be positive"),
        (lambda: inn.Rbf(-1.0), "`gamma` must be finite and not negative"),
        (lambda: inn.ExpNormalized(-1.0), "`gamma` must be finite and not negative"),
        (lambda: inn.Sin(float("nan")), "`a` must be finite"),
        (lambda: inn.Cos(c=float("inf")), "`c` must be finite"),
        (lambda: inn.Exp(b=float("inf")), "`b` must be finite"),
        (lambda: inn.Polynomial([]), "`coef` must be a sequence of numbers"),
        (lambda: inn.Polynomial(1.0), "`coef` must be a sequence of numbers"),
        (lambda: inn.Polynomial([0.0, float("nan")]), "`coef` must be finite"),
        (lambda: inn.Pointwise(jnp.sin), "`dual` must be a function"),
    ],
)
def test_wrong_arguments(make, match):
    with pytest.raises(inn.LayerError, match=match):
        make()


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
    exported -= {inn.ExpNormalized}  # Of which there is no function.
    # Others are tested in tests/test_quadrature.py.
    tables = _closed_forms | getattr(nonlinearities, "quadrature", {})
    assert exported == {type(layer) for layer, *_ in tables.values()}
