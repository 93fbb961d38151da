"""Probabilities of classes, and their calibration."""

# A prediction without covariance has `None` there.
# pyright: reportArgumentType=false, reportCallIssue=false

import functools as ft
import inspect

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
import sklearn.calibration
import sklearn.metrics
from helpers import quick_jit

import infinitenet as inn
from infinitenet._inference.calibration import _check
from infinitenet._inference.gumbel import expected_softmax
from infinitenet._inference.softmax import _moments


def _prediction(mean, variance):
    return inn.Prediction(jnp.asarray(mean), diagonal=jnp.asarray(variance))


def _sigmoid(mean, variance):
    """The expected sigmoid of a Gaussian variable, by adaptive quadrature."""
    std = np.sqrt(variance)
    if std == 0:
        return scipy.special.expit(mean)
    f = lambda e: scipy.special.expit(mean + std * e) * scipy.stats.norm.pdf(e)
    step = np.clip((np.array([-30, -5, 0, 5, 30]) - mean) / std, -12, 12)
    options = {"epsabs": 1e-13, "epsrel": 1e-13, "limit": 500}
    return scipy.integrate.quad(f, -12, 12, points=np.unique(step), **options)[0]


#
# The expected softmax: of few shapes, as each one is compiled.
#

_stds = [0, 1e-4, 0.1, 1, 1.19, 1.21, 3, 10, 100]
_means = [0.0, 0.4, 6.0, -40.0, 300.0]


def test_two_classes():
    # The difference of both logits is Gaussian, whatever part either has of its variance.
    mean, std = (x.ravel() for x in np.meshgrid(_means, _stds, indexing="ij"))
    want = np.array([_sigmoid(*x) for x in zip(mean, std**2, strict=True)])
    for share in (1, 0.3, 0.9):
        variance = np.stack([share * std**2, (1 - share) * std**2], axis=1)
        means = np.stack([mean + 5, np.full_like(mean, 5)], axis=1)
        p, error = expected_softmax(jnp.asarray(means), jnp.asarray(variance))
        np.testing.assert_allclose(p[:, 0], want, rtol=0, atol=2e-12)
        assert jnp.all(error < 1e-11)
        assert jnp.all(jnp.abs(p[:, 0] - want) <= error[:, 0])


def test_three_classes():
    # A product of Gauss-Hermite rules, which is exact for small variances.
    e, w = np.polynomial.hermite_e.hermegauss(60)
    e, w = np.stack(np.meshgrid(e, e, e), -1), w / w.sum()
    w = w[:, None, None] * w[None, :, None] * w[None, None]
    mean = np.array([[0.3, -1.0, 2.0], [0.0, 0.0, 0.0], [9.0, 8.0, -3.0]])
    std = np.array([[0.5, 0.1, 0.0], [0.3, 0.7, 0.6], [0.8, 0.5, 0.9]])
    repeat = lambda x: jnp.repeat(jnp.asarray(x), 4, axis=0)
    p, _ = expected_softmax(repeat(mean), repeat(std**2))
    for i in range(3):
        value = scipy.special.softmax(mean[i] + std[i] * e, axis=-1)
        want = np.sum(value * w[..., None], axis=(0, 1, 2))
        np.testing.assert_allclose(p[4 * i], want, rtol=0, atol=1e-10)


def test_many_classes():
    rng = np.random.default_rng(0)
    # Of each kind, few and many of the classes.
    mean = rng.normal(size=(4, 40)) * np.array([[1.0], [5.0], [30.0], [2.0]])
    std = 10 ** rng.uniform(-2, 2, size=(4, 40)) * (rng.random((4, 40)) < 0.8)
    std[3] = 2.0
    p, error = expected_softmax(jnp.asarray(mean), jnp.asarray(std**2))
    assert jnp.all(error < 1e-6)
    for i in range(4):
        f = mean[i] + std[i] * rng.normal(size=(40_000, 40))
        values = scipy.special.softmax(f, axis=1)
        spread = values.std(axis=0) / 200
        assert np.all(np.abs(values.mean(axis=0) - p[i]) < 5 * spread + 1e-4)
    # A hard case, one class of ten thousand times the width of all others: these are as
    # one class, of the mean of log 39.
    mean, variance = np.zeros((4, 40)), np.zeros((4, 40))
    variance[:, 0] = 1e8
    p, error = expected_softmax(jnp.asarray(mean), jnp.asarray(variance))
    want = _sigmoid(-np.log(39), 1e8)
    assert 1e-12 < abs(p[0, 0] - want) < error[0, 0] < 1e-5


def test_without_variance(getkey):
    for scale in (0.1, 10.0, 1000.0):
        mean = scale * jr.normal(getkey(), (12, 3))
        p, _ = expected_softmax(mean, jnp.zeros_like(mean))
        np.testing.assert_allclose(p, jax.nn.softmax(mean), rtol=1e-11, atol=1e-300)


def test_invariances(getkey):
    mean, variance = 3 * jr.normal(getkey(), (12, 3)), 9 * jr.uniform(getkey(), (12, 3))
    p, _ = expected_softmax(mean, variance)
    np.testing.assert_allclose(jnp.sum(p, axis=1), 1, rtol=1e-14)
    order = jnp.array([2, 0, 1])
    permuted, _ = expected_softmax(mean[:, order], variance[:, order])
    np.testing.assert_allclose(permuted, p[:, order], rtol=1e-12)
    shifted, _ = expected_softmax(mean + 1e3, variance)
    np.testing.assert_allclose(shifted, p, rtol=1e-11)
    equal, _ = expected_softmax(0 * mean, 0 * variance + 4)
    np.testing.assert_allclose(equal, 1 / 3, rtol=1e-13)
    np.testing.assert_allclose(
        expected_softmax(mean.astype(jnp.float32), variance.astype(jnp.float32))[0],
        p,
        atol=2e-6,
    )


def test_blocks(getkey):
    # More points than are computed at once, of which the number is not divisible.
    mean = jr.normal(getkey(), (203, 8))
    variance = jnp.where(jnp.arange(203) < 150, 0.5, 4.0)[:, None] * jnp.ones((1, 8))
    p, error = expected_softmax(mean, variance)
    assert p.shape == error.shape == (203, 8)
    # In other blocks, of other methods.
    order = jr.permutation(getkey(), 203)
    permuted, _ = expected_softmax(mean[order], variance[order])
    np.testing.assert_allclose(permuted, p[order], atol=1e-12)


def test_derivatives():
    one = lambda m, v: expected_softmax(m[None], v[None])[0][0]

    @quick_jit
    def derivatives(mean, variance):
        (by_mean, by_variance), value = jax.jacrev(
            lambda m, v: (one(m, v),) * 2, (0, 1), has_aux=True
        )(mean, variance)
        return value, by_mean, by_variance, jax.jacfwd(jax.jacrev(one))(mean, variance)

    mean, variance = jnp.array([0.3, -0.5, 0.9]), jnp.array([0.2, 3.0, 0.0])
    _, by_mean, by_variance, hessian = derivatives(mean, variance)
    step, value = 1e-4, lambda m, v: derivatives(m, v)[0]
    for i, e in enumerate(np.eye(3)):
        change = value(mean + step * e, variance) - value(mean - step * e, variance)
        np.testing.assert_allclose(by_mean[:, i], change / (2 * step), atol=1e-8)
        # Price's theorem, at variance zero too.
        np.testing.assert_allclose(by_variance[:, i], hessian[:, i, i] / 2, atol=1e-11)
        if variance[i] > 0:
            change = value(mean, variance + step * e) - value(mean, variance - step * e)
            np.testing.assert_allclose(by_variance[:, i], change / (2 * step), atol=1e-8)
    # Without variances softmax is known.
    want = jax.hessian(jax.nn.softmax)(mean)
    _, by_mean, by_variance, hessian = derivatives(mean, 0 * mean)
    np.testing.assert_allclose(hessian, want, atol=1e-11)
    np.testing.assert_allclose(by_variance, jnp.einsum("cii->ci", want) / 2, atol=1e-11)
    extreme = derivatives(jnp.array([0.0, 400.0, -4000.0]), jnp.array([0.0, 1e4, 1e-8]))
    assert all(jnp.all(jnp.isfinite(x)) for x in extreme)


#
# From predictions
#


def test_softmax_probabilities(getkey):
    mean, variance = jr.normal(getkey(), (3, 4, 3)), jr.uniform(getkey(), (3, 4))
    p = inn.softmax_probabilities(_prediction(mean, variance))
    assert p.probabilities.shape == p.error.shape == (3, 4, 3)
    full = jnp.broadcast_to(variance[..., None], mean.shape).reshape(12, 3)
    want, _ = expected_softmax(mean.reshape(12, 3), full)
    np.testing.assert_array_equal(p.probabilities.reshape(12, 3), want)
    # Under transformations, and of a covariance.
    run = lambda m, v: inn.softmax_probabilities(inn.Prediction(m, v)).probabilities
    mapped = quick_jit(jax.vmap(run))(mean, jax.vmap(jnp.diag)(variance))
    np.testing.assert_allclose(mapped, p.probabilities, rtol=1e-12)


def test_sigmoid_probabilities(getkey):
    mean, variance = 3 * jr.normal(getkey(), (3, 5, 3)), 4 * jr.uniform(getkey(), (3, 5))
    p = inn.sigmoid_probabilities(_prediction(mean, variance))
    want = np.vectorize(_sigmoid)(mean, variance[..., None])
    np.testing.assert_allclose(p.probabilities, want, atol=1e-12)
    assert p.error.shape == mean.shape
    assert jnp.all(p.error < 1e-11)
    # Of outputs without axes, once more of 45 points.
    p = inn.sigmoid_probabilities(_prediction(mean.reshape(9, 5), jnp.ones((9, 5))))
    assert p.probabilities.shape == (9, 5)


def test_monte_carlo(getkey):
    prediction = _prediction(
        3 * jr.normal(getkey(), (3, 4, 3)), jr.uniform(getkey(), (3, 4))
    )
    exact = inn.softmax_probabilities(prediction).probabilities
    run = ft.partial(inn.monte_carlo_probabilities, prediction, key=getkey())
    p = run(jax.nn.softmax, n=4000)
    assert p.probabilities.shape == p.error.shape == (3, 4, 3)
    z = (p.probabilities - exact) / p.error
    assert 0.3 < jnp.sqrt(jnp.mean(z**2)) < 2
    assert jnp.max(jnp.abs(z)) < 5
    # The probit is known, and links may have outputs of any shape.
    probit = run(lambda f: jax.scipy.special.ndtr(f[0]), n=4000)
    mean, variance = prediction.mean[..., 0], prediction.variance
    want = jax.scipy.special.ndtr(mean / jnp.sqrt(1 + variance))
    assert probit.probabilities.shape == (3, 4)
    assert jnp.max(jnp.abs(probit.probabilities - want) / probit.error) < 5
    # All samples are the same.
    certain = _prediction(prediction.mean, 0 * variance)
    p = inn.monte_carlo_probabilities(certain, jax.nn.softmax, getkey(), 4000)
    np.testing.assert_allclose(p.probabilities, jax.nn.softmax(prediction.mean))
    np.testing.assert_allclose(p.error, 0, atol=1e-8)


_p = _prediction(np.zeros((4, 3)), np.ones(4))
_bad_predictions = {
    "outputs of shape \\(classes,\\).*\\(\\)": lambda: inn.softmax_probabilities(
        _prediction(np.zeros(4), np.ones(4))
    ),
    "`sigmoid_probabilities`": lambda: inn.softmax_probabilities(
        _prediction(np.zeros((4, 1)), np.ones(4))
    ),
    "(?s)has a mean only.*`k_test_test`": lambda: inn.softmax_probabilities(
        inn.Prediction(jnp.zeros((4, 3)))
    ),
    "`prediction.mean` has 12 entries": lambda: inn.sigmoid_probabilities(
        _prediction(np.full((4, 3), np.nan), np.ones(4))
    ),
    "`n` must be at least 2": lambda: inn.monte_carlo_probabilities(
        _p, jax.nn.softmax, jr.key(0), 1
    ),
    "at least one test input": lambda: inn.softmax_probabilities(
        _prediction(np.zeros((0, 3)), np.ones(0))
    ),
    "must be a `Prediction`.*`jax.nn.softmax`": lambda: inspect.unwrap(_moments)(_p.mean),
    "it is a Prediction.*`.probabilities`": lambda: inspect.unwrap(_check)(
        _p, np.zeros(4, int)
    ),
    "`link` must return one array": lambda: inn.monte_carlo_probabilities(
        _p, jnp.argmax, jr.key(0), 10
    ),
    "`link` must be finite": lambda: inn.monte_carlo_probabilities(
        _p, lambda f: f / 0, jr.key(0), 10
    ),
}


@pytest.mark.parametrize("message", _bad_predictions)
def test_bad_predictions(message):
    with pytest.raises(ValueError, match=message):
        _bad_predictions[message]()


#
# Labels as Dirichlet distributions
#


def _kernels(n=9, n_test=12):
    x = np.random.default_rng(0).normal(size=(n + n_test, 2))
    k = jnp.asarray(20 * np.exp(-((x[:, None] - x[None]) ** 2).sum(-1)))
    return k[:n, :n], k[n:, :n], jnp.diagonal(k)[n:]


_labels = np.array([0, 1, 2, 0, 0, 1, 2, 0, 1])


def _naive_dirichlet(labels, n_classes, alpha):
    """By loops, as the paper has it, and the prior mean as the docstring has it."""
    k, k_td, k_tt = map(np.asarray, _kernels())
    n = len(labels)
    target, noise = np.zeros((n, n_classes)), np.zeros((n, n_classes))
    for i in range(n):
        for c in range(n_classes):
            a = alpha + (labels[i] == c)
            # The log-normal of the mean and variance of the Gamma distribution.
            noise[i, c] = np.log(1 + a / a**2)
            target[i, c] = np.log(a) - noise[i, c] / 2
    share = [
        (np.sum(labels == c) + alpha) / (n + n_classes * alpha) for c in range(n_classes)
    ]
    prior = np.log(share)
    prior = prior + (target - prior).mean()
    mean, variance, log_density = [], [], 0.0
    for c in range(n_classes):
        full = k + np.diag(noise[:, c])
        y = target[:, c] - prior[c]
        mean.append(prior[c] + k_td @ np.linalg.solve(full, y))
        variance.append(k_tt - np.diag(k_td @ np.linalg.solve(full, k_td.T)))
        log_density += scipy.stats.multivariate_normal(np.zeros(n), full).logpdf(y)
    return np.stack(mean, 1), np.stack(variance, 1), log_density, prior


# The last class without examples, too.
@pytest.mark.parametrize("labels", [_labels, np.minimum(_labels, 1)])
def test_dirichlet(labels):
    k, k_td, k_tt = _kernels()
    mean, variance, log_density, prior = _naive_dirichlet(labels, 3, 0.02)
    classifier = inn.dirichlet_classifier(k, labels, 3, alpha=0.02)
    p = classifier.predict(k_td, k_tt)
    np.testing.assert_allclose(p.mean, mean, rtol=1e-10)
    np.testing.assert_allclose(p.variance, variance, rtol=1e-10)
    np.testing.assert_allclose(
        classifier.log_marginal_likelihood(), log_density, rtol=1e-10
    )
    np.testing.assert_allclose(p.probabilities, expected_softmax(p.mean, p.variance)[0])
    assert jnp.all(p.error < 1e-10)
    # Far from all data, the prior.
    far = classifier.predict(0 * k_td, 0 * k_tt)
    np.testing.assert_allclose(far.mean, jnp.tile(prior, (12, 1)), rtol=1e-12)
    counts = np.bincount(labels, minlength=3) + 0.02
    np.testing.assert_allclose(far.probabilities[0], counts / counts.sum(), rtol=1e-10)


def test_dirichlet_recovers_labels():
    k, _, _ = _kernels()
    classifier = inn.dirichlet_classifier(k, _labels, alpha=1e-3)
    assert classifier.prior_mean.shape == (3,)
    again = np.arange(12) % 9
    p = classifier.predict(k[again], jnp.diagonal(k)[again])
    assert inn.accuracy(p.probabilities, _labels[again]) == 1


def test_dirichlet_transformations():
    k, k_td, k_tt = _kernels()

    def run(scale, alpha, labels):
        classifier = inn.dirichlet_classifier(scale * k, labels, 3, alpha=alpha)
        p = classifier.predict(scale * k_td, scale * k_tt)
        return p.probabilities[0, 0], (classifier.log_marginal_likelihood(), p)

    # With points to either side, to compare derivatives.
    scale = 1 + jnp.array([0, 1e-5, -1e-5, 0, 0])
    alpha = 0.02 + jnp.array([0, 0, 0, 1e-6, -1e-6])
    labels = jnp.stack([jnp.asarray(_labels)] * 5)
    run = jax.value_and_grad(run, (0, 1), has_aux=True)
    (value, (log_density, p)), slopes = quick_jit(jax.vmap(run))(scale, alpha, labels)
    mean, variance, want, _ = _naive_dirichlet(_labels, 3, 0.02)
    np.testing.assert_allclose(log_density[0], want, rtol=1e-10)
    np.testing.assert_allclose(p.mean[0], mean, rtol=1e-10)
    np.testing.assert_allclose(p.variance[0], variance, rtol=1e-10)
    np.testing.assert_allclose(slopes[0][0], (value[1] - value[2]) / 2e-5, rtol=1e-6)
    np.testing.assert_allclose(slopes[1][0], (value[3] - value[4]) / 2e-6, rtol=1e-6)


_k, _k_td, _k_tt = _kernels()
_bad_labels = {
    "`labels`.*one-hot.*argmax": lambda: inn.dirichlet_classifier(_k, np.eye(9)),
    "`labels` must be integers.*astype": lambda: inn.dirichlet_classifier(_k, np.ones(9)),
    "`labels` must be integers.*bool": lambda: inn.dirichlet_classifier(_k, _labels > 0),
    "`labels` must have shape \\(9,": lambda: inn.dirichlet_classifier(_k, _labels[:5]),
    "`labels` must be from 0 to 1.*from 0 to 2": lambda: inn.dirichlet_classifier(
        _k, _labels, 2
    ),
    "`labels` must be from 0 to 1.*from -1 to 1": lambda: inn.dirichlet_classifier(
        _k, _labels - 1
    ),
    "`labels` is empty": lambda: inn.dirichlet_classifier(np.ones((0, 0)), _labels[:0]),
    "`n_classes` must be at least 2": lambda: inn.dirichlet_classifier(_k, 0 * _labels),
    "`n_classes` must be given under": lambda: jax.jit(inn.dirichlet_classifier)(
        _k, _labels
    ),
    "`alpha` must be above zero": lambda: inn.dirichlet_classifier(_k, _labels, alpha=0),
    "`alpha` must be a scalar": lambda: inn.dirichlet_classifier(
        _k, _labels, alpha=np.ones(3)
    ),
    "`k_train_train` must be a square": lambda: inn.dirichlet_classifier(_k_td, _labels),
    "`k_train_train`: it is not positive": lambda: inn.dirichlet_classifier(-_k, _labels),
    "`k_test_train` must have shape": lambda: inn.dirichlet_classifier(_k, _labels).predict(
        _k_td[:, :5], _k_tt
    ),
    "`k_test_test_diagonal` must have shape": lambda: inn.dirichlet_classifier(
        _k, _labels
    ).predict(_k_td, _k[:, :9]),
    "far below zero": lambda: inn.dirichlet_classifier(_k, _labels).predict(_k_td, -_k_tt),
}


@pytest.mark.parametrize("message", _bad_labels)
def test_bad_labels(message):
    with pytest.raises(ValueError, match=message):
        _bad_labels[message]()


#
# Calibration
#


def _sample(n=2000, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    p = scipy.special.softmax(2 * rng.normal(size=(n, classes)), axis=1)
    return p, rng.integers(0, classes, size=n)


def test_scores():
    p, labels = _sample()
    want = -np.mean([np.log(p[i, y]) for i, y in enumerate(labels)])
    np.testing.assert_allclose(inn.negative_log_likelihood(p, labels), want)
    log_loss = sklearn.metrics.log_loss(labels, p)
    np.testing.assert_allclose(inn.negative_log_likelihood(p, labels), log_loss)
    want = np.mean(
        [sum((p[i, c] - (c == y)) ** 2 for c in range(4)) for i, y in enumerate(labels)]
    )
    np.testing.assert_allclose(inn.brier_score(p, labels), want)
    brier = sklearn.metrics.brier_score_loss(labels, p, labels=range(4))
    np.testing.assert_allclose(inn.brier_score(p, labels), brier)
    half = sklearn.metrics.brier_score_loss(labels % 2, p[:, 0])
    both = np.stack([1 - p[:, 0], p[:, 0]], axis=1)
    np.testing.assert_allclose(inn.brier_score(both, labels % 2), 2 * half)
    right = sklearn.metrics.accuracy_score(labels, p.argmax(1))
    np.testing.assert_allclose(inn.accuracy(p, labels), right)
    certain = np.eye(4)[labels]
    assert inn.negative_log_likelihood(certain, labels) == 0
    assert inn.negative_log_likelihood(certain, (labels + 1) % 4) == np.inf
    assert inn.brier_score(certain, (labels + 1) % 4) == 2
    assert inn.expected_calibration_error(certain, labels) == 0


@pytest.mark.parametrize("n_bins", [1, 5, 15])
def test_calibration(n_bins):
    p, labels = _sample()
    # On edges too: these belong to the lower bin.
    p[:5] = [
        [0.2, 0.6, 0.2, 0.0],
        [0.8, 0, 0, 0.2],
        [1, 0, 0, 0],
        [0.4] * 2 + [0.2, 0],
        [0.25] * 4,
    ]
    curve = inn.calibration_curve(p, labels, n_bins)
    edges = np.linspace(0, 1, n_bins + 1)
    error = 0.0
    for b in range(n_bins):
        inside = [
            (p[i].max(), p[i].argmax() == labels[i])
            for i in range(len(p))
            if edges[b] < p[i].max() <= edges[b + 1]
        ]
        assert curve.count[b] == len(inside)
        confidence, right = np.mean(inside, axis=0) if inside else (0, 0)
        np.testing.assert_allclose(curve.confidence[b], confidence)
        np.testing.assert_allclose(curve.accuracy[b], right)
        error += len(inside) / len(p) * abs(confidence - right)
    np.testing.assert_allclose(curve.edges, edges)
    np.testing.assert_allclose(inn.expected_calibration_error(p, labels, n_bins), error)
    # Of no probability on an edge.
    p, labels = _sample(seed=1)
    curve = inn.calibration_curve(p, labels, n_bins)
    full = np.asarray(curve.count) > 0
    accuracy, confidence = sklearn.calibration.calibration_curve(
        p.argmax(1) == labels, p.max(1), n_bins=n_bins
    )
    np.testing.assert_allclose(curve.accuracy[full], accuracy)
    np.testing.assert_allclose(curve.confidence[full], confidence)


def test_calibrated_by_construction():
    rng = np.random.default_rng(0)
    p, _ = _sample()
    labels = (p.cumsum(1) < rng.random((2000, 1))).sum(1)
    curve = inn.calibration_curve(p, labels)
    gap = curve.accuracy - curve.confidence
    spread = np.sqrt(0.25 / np.maximum(curve.count, 1))
    assert np.all(np.abs(gap) < 4 * spread)
    assert inn.expected_calibration_error(p, labels) < 0.05


_measures = [
    inn.negative_log_likelihood,
    inn.brier_score,
    inn.expected_calibration_error,
    inn.accuracy,
]


def test_measures_under_transformations():
    p, labels = (
        np.stack(x) for x in zip(*map(_sample, [20, 20], [4, 4], [0, 1]), strict=True)
    )
    run = lambda p, labels: jnp.stack([fn(p, labels) for fn in _measures])
    want = [run(*x) for x in zip(p, labels, strict=True)]
    np.testing.assert_allclose(jax.jit(jax.vmap(run))(p, labels), want, rtol=1e-12)
    through = lambda f: run(jax.nn.softmax(f), labels[0])
    f = jnp.log(p[0])
    slopes = jax.jit(jax.jacobian(through))(f)
    one_hot = np.eye(4)[labels[0]]
    np.testing.assert_allclose(slopes[0], (p[0] - one_hot) / 20, atol=1e-12)
    assert jnp.all(jnp.isfinite(slopes))


_good = np.full((6, 2), 0.5)
_zeros = np.zeros(6, int)
_bad_measures = {
    "`probabilities`.*sum to 1.*from -3 to 4": (np.array([[-3.0, 4.0]]), _zeros[:1]),
    "`probabilities`.*sums from 2 to 2": (2 * _good, _zeros),
    "`probabilities` must have a floating": (np.ones((6, 2), int), _zeros),
    "`probabilities` has 12 entries": (_good * np.nan, _zeros),
    "`probabilities` must have shape.*stack": (_good[:, 0], _zeros),
    "`probabilities` must have shape.*vmap": (_good[None], _zeros),
    "`labels` must have shape \\(6,": (_good, _zeros[:3]),
    "`labels` must be integers": (_good, _zeros.astype(float)),
    "`labels`.*argmax": (_good, _good),
    "`labels` must be from 0 to 1": (_good, _zeros + 2),
    "`labels` is empty": (_good[:0], _zeros[:0]),
}


@pytest.mark.parametrize("message", _bad_measures)
def test_bad_measures(message):
    for fn in _measures:
        with pytest.raises(ValueError, match=message):
            fn(*_bad_measures[message])


def test_rounding_of_probabilities():
    p = jnp.array([[1 + 1e-12, -1e-12]])
    assert inn.negative_log_likelihood(p, jnp.array([1])) == jnp.inf
    assert inn.negative_log_likelihood(p, jnp.array([0])) == 0
    assert inn.calibration_curve(p, jnp.array([0]), 2).count[1] == 1


def test_errors_under_jit():
    with pytest.raises(RuntimeError, match="sum to 1"):
        jax.block_until_ready(jax.jit(inn.brier_score)(2 * _good, _zeros))
    with pytest.raises(RuntimeError, match="`labels` must be from 0 to 1"):
        jax.block_until_ready(jax.jit(inn.brier_score)(_good, _zeros - 1))
    with pytest.raises(ValueError, match="`n_bins`"):
        inn.calibration_curve(_good, _zeros, 0)
