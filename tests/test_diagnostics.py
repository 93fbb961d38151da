"""Diagnostics of kernel matrices, and predicted learning curves."""

# pyright: reportOptionalSubscript=false

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from infinitenet import diagnose, learning_curve, learning_curve_of_spectrum


_rng = np.random.default_rng(0)


def _kernel(n=30, d=3, noise=0.0, seed=0):
    x = np.random.default_rng(seed).normal(size=(n, d))
    k = np.exp(-((x[:, None] - x[None]) ** 2).sum(-1) / 4) + noise * np.eye(n)
    return jnp.asarray(k), jnp.asarray(np.stack([np.sin(x[:, 0]), x[:, 1] + 0.5], axis=1))


#
# Diagnostics
#


def test_eigenvalues():
    k, y = _kernel(noise=1e-3)
    d = diagnose(k, y)
    l, u = np.linalg.eigh(k)
    l, u = l[::-1], u[:, ::-1]
    np.testing.assert_allclose(d.eigenvalues, l, rtol=1e-10)
    assert d.rank == 30
    np.testing.assert_allclose(d.condition_number(), l[0] / l[-1], rtol=1e-9)
    mean = np.trace(k) / 30
    r = np.array([1e-3, 0.5])
    want = (l / (l + mean * r[:, None])).sum(-1)
    np.testing.assert_allclose(d.effective_dimension(r), want, rtol=1e-10)
    absolute = d.effective_dimension(0.3, absolute=True)
    inverse = np.linalg.inv(k + 0.3 * np.eye(30))
    np.testing.assert_allclose(absolute, np.trace(k @ inverse), rtol=1e-10)
    whole = np.linalg.cond(k + 0.5 * mean * np.eye(30))
    np.testing.assert_allclose(d.condition_number(r)[1], whole, rtol=1e-9)
    # With two outputs there are 60 targets.
    np.testing.assert_allclose(d.time_scales, 60 / l, rtol=1e-9)
    np.testing.assert_allclose(diagnose(k).time_scales, 30 / l, rtol=1e-9)
    power = np.square(u.T @ np.asarray(y)).sum(-1)
    np.testing.assert_allclose(d.power, power, rtol=1e-8, atol=1e-14)
    share = np.cumsum(power) / np.square(y).sum()
    np.testing.assert_allclose(d.cumulative_power, share, rtol=1e-10)


def test_singular():
    x = _rng.normal(size=(12, 2))
    d = diagnose(jnp.asarray(x @ x.T), jnp.asarray(x[:, 0]))
    assert d.rank == 2 and d.condition_number() == jnp.inf
    assert jnp.all(d.eigenvalues[2:] == 0) and jnp.all(jnp.isinf(d.time_scales[2:]))
    # The targets are in the span of the kernel.
    np.testing.assert_allclose(d.cumulative_power[1], 1, rtol=1e-12)
    np.testing.assert_array_equal(d.effective_dimension(np.array([0.0, np.inf])), [2, 0])
    zero = diagnose(jnp.zeros((3, 3)), jnp.ones(3))
    assert zero.rank == 0 and zero.effective_dimension(0.1) == 0
    assert zero.effective_dimension(jnp.inf) == 0
    assert jnp.isinf(zero.condition_number()) and jnp.all(jnp.isinf(zero.time_scales))
    assert "rank 0" in repr(zero)


def test_alignment():
    k, y = _kernel()
    d, y = diagnose(k, y), np.asarray(y)
    inner = lambda a, b: np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b)
    np.testing.assert_allclose(d.alignment, inner(k, y @ y.T), rtol=1e-12)
    h = np.eye(30) - 1 / 30
    want = inner(h @ k @ h, h @ y @ y.T @ h)
    np.testing.assert_allclose(d.centred_alignment, want, rtol=1e-11)
    # A kernel of the targets is aligned, and constants do not matter to the other.
    y = y[:, 0]
    own = diagnose(jnp.asarray(np.outer(y, y)), jnp.asarray(y))
    np.testing.assert_allclose([own.alignment, own.centred_alignment], 1, rtol=1e-12)
    shifted = diagnose(k + 5.0, jnp.asarray(y) - 2)
    want = diagnose(k, jnp.asarray(y)).centred_alignment
    np.testing.assert_allclose(shifted.centred_alignment, want, rtol=1e-10)


def test_diagnostics_under_transformations():
    ks, ys = zip(*[_kernel(n=6, noise=0.1, seed=seed) for seed in range(2)], strict=True)
    k, y = jnp.stack(ks), jnp.stack(ys)

    @jax.jit
    @jax.vmap
    def run(k, y):
        d = diagnose(k, y)
        aligned = jnp.stack([d.alignment, d.centred_alignment, d.condition_number()])
        return aligned, d.effective_dimension(0.1), d.cumulative_power

    d = diagnose(ks[1], ys[1])
    np.testing.assert_allclose(run(k, y)[0][1, 0], d.alignment, rtol=1e-12)
    np.testing.assert_allclose(run(k, y)[2][1], d.cumulative_power, rtol=1e-12)
    assert "f64[2,6,2]" in repr(eqx.filter_vmap(diagnose)(k, y))


def _check_gradients(fn, args, directions):
    """Of `fn`, a batch of scalars, along directions: by one compiled program."""
    run = jax.jit(jax.vmap(jax.value_and_grad(fn, argnums=tuple(range(len(args))))))
    move = lambda step: [x + step * t for x, t in zip(args, directions, strict=True)]
    value, grads = run(*args)
    terms = [g * t for g, t in zip(grads, directions, strict=True)]
    slope = sum(np.sum(t, axis=tuple(range(1, t.ndim))) for t in terms)
    change = (run(*move(1e-6))[0] - run(*move(-1e-6))[0]) / 2e-6
    np.testing.assert_allclose(slope, change, rtol=1e-6, atol=1e-8)
    return value


def _direction(x):
    return jnp.asarray(_rng.normal(size=x.shape))


def test_diagnostics_gradients():
    # Also where all eigenvalues are the same.
    def run(k, y, r):
        d = diagnose((k + k.T) / 2, y)
        return d.alignment + 2 * d.centred_alignment + 3 * d.effective_dimension(r)

    k = jnp.stack([jnp.eye(4), _kernel(n=4, noise=0.1)[0]])
    args = (k, jnp.asarray(_rng.normal(size=(2, 4))), jnp.asarray([0.3, 0.1]))
    _check_gradients(run, args, [_direction(x) for x in args])


def test_repr():
    k, y = _kernel()
    text = repr(diagnose(k, y))
    for part in ("30 examples", "rank 30", "alignment 0.", "half of the targets' power"):
        assert part in text
    assert "alignment" not in repr(diagnose(k))


def test_extreme_scales():
    # Whatever squares of entries are too large or too small.
    k, y = _kernel()
    want = diagnose(k, y)
    for dtype, scales, rtol in (
        (jnp.float32, (1e-20, 1e20), 1e-4),
        (float, (1e200,), 1e-9),
    ):
        single_k, single_y = k.astype(dtype), y.astype(dtype)
        cases = [(c * single_k, single_y) for c in scales if dtype is jnp.float32]
        for out in [
            diagnose(*case) for case in cases + [(single_k, c * single_y) for c in scales]
        ]:
            for name in ("alignment", "centred_alignment"):
                np.testing.assert_allclose(
                    getattr(out, name), getattr(want, name), rtol=rtol
                )
            np.testing.assert_allclose(
                out.cumulative_power, want.cumulative_power, atol=1e-3
            )
            assert "alignment" in repr(out)


def test_diagnostics_errors():
    k, y = _kernel(n=5)
    with pytest.raises(ValueError, match="`k` must be a square"):
        diagnose(k[:3])
    with pytest.raises(ValueError, match="negative"):
        diagnose(-k)
    with pytest.raises(ValueError, match="no examples"):
        diagnose(k[:0, :0])
    with pytest.raises(ValueError, match=r"`y` must have shape \(5, "):
        diagnose(k, y[:3])
    d = diagnose(k)
    for name in ("alignment", "centred_alignment", "power", "cumulative_power"):
        with pytest.raises(ValueError, match="give `y`"):
            getattr(d, name)
    for name in ("alignment", "cumulative_power"):
        with pytest.raises(ValueError, match="all zero"):
            getattr(diagnose(k, jnp.zeros(5)), name)
    with pytest.raises(ValueError, match="`y` is the same for all"):
        _ = diagnose(k, jnp.full(5, 0.1)).centred_alignment
    with pytest.raises(ValueError, match="`k` is the same for all"):
        _ = diagnose(jnp.full((5, 5), 0.1), y).centred_alignment
    with pytest.raises(ValueError, match="must not be negative"):
        d.effective_dimension(-1.0)
    with pytest.raises(ValueError, match="NaN or infinite"):
        d.condition_number(jnp.inf)
    with pytest.raises(Exception, match="all zero"):
        jax.jit(lambda y: diagnose(k, y).alignment)(jnp.zeros(5))


#
# Learning curves
#


_index = np.arange(1, 401.0)
_spectra = {
    "power law": _index**-1.5,
    "steep": _index[:40] ** -5.0,
    "exponential": np.exp(-_index[:60]),
    # Spherical harmonics in three dimensions: 2 l + 1 of each degree.
    "sphere": np.repeat(np.exp(-1.2 * np.arange(9.0)), 2 * np.arange(9) + 1),
    "two scales": np.concatenate([np.ones(10), np.full(100, 1e-6)]),
}


def _kappa(l, n, ridge):
    """By bisection in many steps."""
    low, high = -300.0, 50.0
    for _ in range(100):
        x = (low + high) / 2
        excess = np.sum(l / (l + np.exp(x))) + ridge * np.exp(-x) - n
        low, high = (x, high) if excess > 0 else (low, x)
    return np.exp(low)


def _naive(l, power, n, ridge, noise):
    kappa = _kappa(l, n, ridge)
    learnt = l / (l + kappa)
    return n / (n - np.sum(learnt**2)) * (np.sum((1 - learnt) ** 2 * power) + noise**2)


@pytest.mark.parametrize("name", _spectra)
def test_against_formula(name):
    l = _spectra[name]
    power = 1 / np.arange(1.0, len(l) + 1) ** 2
    n = np.array([1e-3, 0.5, 1.0, 9.5, 10.0, 30.0])
    for ridge, noise in ((0.0, 0.0), (1e-9, 0.3), (0.1, 0.3), (100.0, 0.0)):
        out = learning_curve_of_spectrum(l, power, n, ridge=ridge, noise_std=noise)
        want = [_naive(l, power, each, ridge, noise) for each in n]
        # Differences cancel in `_naive`.
        np.testing.assert_allclose(out, want, rtol=1e-7)


def test_limits():
    l, power = _spectra["power law"], 1 / _index**2
    total, run = power.sum(), learning_curve_of_spectrum
    np.testing.assert_allclose(run(l, power, 1e-9, ridge=0.1), total, rtol=1e-7)
    np.testing.assert_allclose(run(l, power, 50, ridge=1e9), total, rtol=1e-6)
    # Endless data leave the noise alone.
    noisy = run(l, power, 1e9, ridge=0.1, noise_std=0.5)
    np.testing.assert_allclose(noisy, 0.25, rtol=1e-4)
    # Least squares of 20 parameters: the variance of noise times n / (n - 20).
    l, power = np.linspace(1, 2, 20), np.ones(20)
    out = run(l, power, np.array([10, 20, 30, 60]), noise_std=0.5)
    np.testing.assert_allclose(out[2:], [0.75, 0.375], rtol=1e-12)
    assert out[0] > 10 and jnp.isinf(out[1])
    # Without noise all is learnt.
    np.testing.assert_array_equal(run(l, power, np.array([20, 30])), 0)
    # A kernel of zeros learns nothing, with a ridge or without.
    for ridge in (0.0, 0.1):
        np.testing.assert_allclose(run(np.zeros(3), np.ones(3), 2.0, ridge=ridge), 3)


def test_scales():
    # Neither the units of the kernel nor those of the targets matter.
    l, power = _spectra["sphere"], np.ones(81)
    want = learning_curve_of_spectrum(l, power, 20, ridge=0.01, noise_std=0.2)
    for scale in (1e-60, 1e60):
        out = learning_curve_of_spectrum(
            scale * l, 4 * power, 20, ridge=scale * 0.01, noise_std=0.4
        )
        np.testing.assert_allclose(out, 4 * want, rtol=1e-10)
    single = learning_curve_of_spectrum(
        jnp.asarray(l, jnp.float32), power, 20, ridge=0.01, noise_std=0.2
    )
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, want, rtol=1e-5)


def test_ridges_below_all_numbers():
    # Then all is learnt but the noise. Where they are not, small squares do no harm.
    l, power = jnp.array([1.0, 0.5, 1e-25], jnp.float32), jnp.ones(3)
    ridges, n = (1e-30, 1e-25, 0.0), np.array([3.0, 4.0, 1e9])
    for ridge in ridges:
        curve = lambda l, ridge=ridge: learning_curve_of_spectrum(
            l, power, n, ridge=ridge, noise_std=0.1
        )
        out, want = curve(l), curve(np.asarray(l, float))
        np.testing.assert_allclose(out, want, rtol=1e-4)
        np.testing.assert_allclose(out[-1], 0.01, rtol=1e-4)


@pytest.mark.parametrize("name", ["power law", "sphere"])
def test_gaussian_features(name):
    # Regression on features of which the spectrum is known, averaged over draws.
    l, ridge, noise = _spectra[name], 0.02, 0.2
    v = 1 / np.arange(1.0, len(l) + 1)
    rng, n = np.random.default_rng(1), 40
    out = []
    for _ in range(150):
        phi = rng.normal(size=(n, len(l)))
        scaled = phi * l
        y = phi @ v + noise * rng.normal(size=n)
        w = scaled.T @ np.linalg.solve(scaled @ phi.T + ridge * np.eye(n), y)
        # Over all test inputs.
        out.append(np.sum((w - v) ** 2) + noise**2)
    want = np.mean(out)
    error = np.std(out) / len(out) ** 0.5
    assert error < 0.03 * want
    got = learning_curve_of_spectrum(l, v**2, n, ridge=ridge, noise_std=noise)
    assert abs(got - want) < 0.03 * want + 2 * error


def _measured(k, y, n, reg, noise, draws=30):
    """Trained on random subsets, and tested on what is left."""
    rng, out = np.random.default_rng(2), []
    k, y = np.asarray(k), np.asarray(y)
    reg = reg * np.mean(np.diag(k))
    for _ in range(draws):
        order = rng.permutation(len(k))
        a, b = order[:n], order[n:]
        noisy = y[a] + noise * rng.normal(size=y[a].shape)
        f = k[np.ix_(b, a)] @ np.linalg.solve(k[np.ix_(a, a)] + reg * np.eye(n), noisy)
        out.append(np.mean((f - y[b]) ** 2) + noise**2)
    return np.mean(out)


@pytest.mark.parametrize("reg, noise", [(0.1, 0.0), (0.1, 0.3), (0.01, 0.0)])
def test_random_subsets(reg, noise):
    k, y = _kernel(n=160, d=2, seed=3)
    y = y + 0.3 * jr.normal(jr.key(0), y.shape)
    n = np.array([20, 60, 130])
    out = learning_curve(k, y, n, diag_reg=reg, noise_std=noise)
    assert out.shape == (3,)
    want = [_measured(k, y, each, reg, noise) for each in n]
    np.testing.assert_allclose(out, want, rtol=0.2)
    mean = np.mean(np.diag(k))
    absolute = learning_curve(k, y, n, diag_reg=reg * mean, noise_std=noise, absolute=True)
    np.testing.assert_allclose(absolute, out, rtol=1e-12)


def test_cross_validation():
    # Without regularisation the end of the curve is generalised cross-validation.
    k, y = _kernel(noise=0.01)
    inverse = np.linalg.inv(k)
    want = np.mean((inverse @ np.asarray(y)) ** 2) / np.mean(np.diag(inverse)) ** 2
    out = learning_curve(k, y, 30 * (1 - 1e-7))
    np.testing.assert_allclose(out, want, rtol=1e-5)


def test_learning_curve_of_span():
    # Of two outputs the mean, and of one of them the same; of rank 3.
    x = _rng.normal(size=(20, 3))
    k, y = jnp.asarray(x @ x.T), jnp.asarray(_rng.normal(size=(20, 2)))
    n = jnp.asarray([[2.0, 3.0], [4.0, 10.0]])
    out = learning_curve(k, y, n)
    assert out.shape == (2, 2) and jnp.isinf(out[0, 1])
    assert jnp.all(jnp.isfinite(jnp.delete(out.ravel(), 1)))
    each = jnp.mean(jnp.stack([learning_curve(k, y[:, i], n) for i in (0, 1)]), axis=0)
    np.testing.assert_allclose(out, each, rtol=1e-12)


def test_learning_curve_gradients():
    # Also where all eigenvalues are the same, and without a ridge.
    def run(k, y, n, reg, noise):
        k = (k + k.T) / 2
        return jnp.sum(learning_curve(k, y, n, diag_reg=reg, noise_std=noise))

    k = jnp.stack([jnp.eye(5), _kernel(n=5, noise=0.1)[0]])[jnp.asarray([0, 0, 1, 1])]
    y, n = jnp.asarray(_rng.normal(size=(4, 5))), jnp.full((4, 2), jnp.asarray([1.5, 3.0]))
    reg, noise = jnp.asarray([0.0, 0.2, 0.0, 0.2]), jnp.full(4, 0.1)
    args = (k, y, n, reg, noise)
    # Regularisation cannot be less than none.
    directions = [_direction(x) for x in args]
    directions[3] = directions[3] * (reg > 0)
    value = _check_gradients(run, args, directions)
    np.testing.assert_allclose(value[3], run(k[3], y[3], n[3], 0.2, 0.1), rtol=1e-10)


def test_learning_curve_errors():
    k, y = _kernel(n=5)
    for n in (0, -1.0, np.array([2, np.nan])):
        with pytest.raises(ValueError, match="`n` must be positive"):
            learning_curve(k, y, n)
    with pytest.raises(ValueError, match="must be below 5, the number of examples"):
        learning_curve(k, y, np.array([2, 5]))
    with pytest.raises(ValueError, match="`diag_reg` must be a scalar"):
        learning_curve(k, y, 2, diag_reg=jnp.ones(5))
    with pytest.raises(ValueError, match="`noise_std` must not be negative"):
        learning_curve(k, y, 2, noise_std=-1.0)
    with pytest.raises(ValueError, match="NaN or infinite"):
        learning_curve_of_spectrum(jnp.ones(2), jnp.ones(2), jnp.inf)
    with pytest.raises(ValueError, match="shape"):
        learning_curve_of_spectrum(jnp.ones((2, 2)), jnp.ones(2), 1)
    with pytest.raises(ValueError, match="`power` must have shape"):
        learning_curve_of_spectrum(jnp.ones(3), jnp.ones(2), 1)
    with pytest.raises(ValueError, match="`eigenvalues` must not be negative"):
        learning_curve_of_spectrum(-jnp.ones(2), jnp.ones(2), 1)
    with pytest.raises(Exception, match="must be below 5"):
        jax.jit(lambda n: learning_curve(k, y, n))(jnp.asarray(7.0))
