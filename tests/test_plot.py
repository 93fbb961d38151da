"""Figures: what is drawn, and what is said about it."""

# Predictions and comparisons have optional parts; Matplotlib's types are wide.
# pyright: reportOptionalSubscript=false, reportOptionalMemberAccess=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np
import pytest

import infinitenet as inn
from infinitenet.plot._style import to_array


plot = inn.plot
_rng = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _closed():
    """Each test draws one figure, on the axes which it then looks at, and closes it."""
    assert not plt.get_fignums()
    yield
    plt.close("all")


@pytest.fixture
def ax():
    return plt.subplots()[1]


def _line(ax, label):
    (line,) = [each for each in ax.get_lines() if each.get_label() == label]
    return line


def _legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def _drawn(ax):
    """That all is where it can be drawn, without warnings."""
    ax.figure.canvas.draw()
    return ax


def _prediction(t=5, n=4, outputs=(2,)):
    mean = jnp.asarray(_rng.normal(size=(t, n, *outputs)))
    root = _rng.normal(size=(t, n, n))
    return inn.Prediction(mean, jnp.asarray(root @ root.transpose(0, 2, 1)))


def _at(prediction, i):
    return inn.Prediction(prediction.mean[i], prediction.covariance[i])


def test_import_without_matplotlib():
    # In a process of its own, where Matplotlib cannot be found.
    package = pathlib.Path(inn.__file__).resolve().parents[1]
    script = """
import sys
import infinitenet
assert "matplotlib" not in sys.modules
sys.modules["matplotlib"] = None
try:
    infinitenet.plot.trace([1.0, 2.0])
except ImportError as error:
    assert 'pip install "infinitenet[plot]"' in str(error), error
else:
    raise AssertionError
"""
    env = os.environ | {"PYTHONPATH": str(package)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", script],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_new_figure():
    # Without axes there is a new figure, and one only.
    first, second = plot.trace(np.arange(3.0)), plot.trace(np.arange(3.0))
    assert first is not second and len(plt.get_fignums()) == 2


def test_given_axes(ax):
    assert plot.trace(np.arange(3.0), ax=ax) is ax
    assert len(plt.get_fignums()) == 1


#
# Kernels
#


def test_kernel(ax):
    k = jnp.asarray([[1.0, 0.1, 0.6], [0.1, 2.0, 0.2], [0.6, 0.2, 3.0]])
    assert plot.kernel(k, np.array(["b", "a", "b"]), label="NTK", ax=ax) is ax
    (image,) = ax.get_images()
    order = [1, 0, 2]
    np.testing.assert_array_equal(image.get_array(), np.asarray(k)[np.ix_(order, order)])
    assert [label.get_text() for label in ax.get_xticklabels()] == ["a", "b"]
    np.testing.assert_array_equal(ax.get_yticks(), [0.5, 2])
    assert ax.get_xlabel() == "inputs, sorted by label"
    assert ax.figure.axes[1].get_ylabel() == "NTK"
    _drawn(ax)


def test_kernel_of_both_signs(ax):
    # Zero has the colour in the middle. Sorted by numbers, without names of classes.
    k = _rng.normal(size=(30, 30))
    plot.kernel(k, np.arange(30)[::-1], ax=ax)
    (image,) = ax.get_images()
    np.testing.assert_array_equal(image.get_array(), k[::-1, ::-1])
    low, high = image.get_clim()
    assert low == -high and not list(ax.get_lines())


def _diagnostics(y=True):
    x = _rng.normal(size=(20, 3))
    k = jnp.asarray(x @ x.T)
    return inn.diagnose(k, jnp.asarray(x[:, :2] + 0.1) if y else None)


def test_spectrum(ax):
    d = _diagnostics()
    assert plot.spectrum(d, 0.1, ax=ax) is ax
    line = _line(ax, "eigenvalues")
    # Those of zero cannot be shown.
    np.testing.assert_allclose(line.get_xdata(), [1, 2, 3])
    np.testing.assert_allclose(line.get_ydata(), d.eigenvalues[:3])
    level = 0.1 * np.trace(d.spectrum.k) / 20
    np.testing.assert_allclose(_line(ax, "regularisation").get_ydata(), level)
    assert ax.get_xscale() == ax.get_yscale() == "log"
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("index of eigenvalue", "eigenvalue")
    twin = ax.figure.axes[1]
    np.testing.assert_allclose(twin.get_lines()[0].get_ydata(), d.cumulative_power)
    assert "power" in twin.get_ylabel()
    _drawn(ax)


def test_spectrum_alone(ax):
    plot.spectrum(_diagnostics(y=False), 0.3, absolute=True, ax=ax)
    np.testing.assert_allclose(_line(ax, "regularisation").get_ydata(), 0.3)
    assert ax.figure.axes == [ax]


def test_learning_curve(ax):
    n, predicted = np.array([1, 10, 100]), np.array([1.0, 0.3, 0.1])
    measured = {"n_measured": n[:2], "measured": predicted[:2], "error": 0.1 * n[:2]}
    plot.learning_curve(n, predicted, **measured, ax=ax)
    np.testing.assert_array_equal(_line(ax, "predicted").get_ydata(), predicted)
    assert _legend(ax) == ["predicted", "measured"]
    assert ax.get_xlabel() == "number of training examples"


#
# Training
#


def test_training(ax):
    p, t = _prediction(), np.array([0.0, 0.1, 1.0, 10.0, 100.0])
    targets = np.arange(8.0).reshape(4, 2)
    assert plot.training(t, p, np.array([3, 6]), targets, ax=ax) is ax
    line = _line(ax, "output 3")
    np.testing.assert_allclose(line.get_xdata(), t)
    np.testing.assert_allclose(line.get_ydata(), p.mean[:, 1, 1])
    # Both outputs of an input have its standard deviation.
    (vertices,) = [path.vertices for path in ax.collections[1].get_paths()]
    want = p.mean[2, 3, 0] + 2 * p.std[2, 3]
    assert np.any(np.all(np.isclose(vertices, [1.0, want]), axis=1))
    assert _legend(ax) == ["output 3", "output 6", "targets"]
    assert ax.get_xscale() == "symlog" and "time" in ax.get_xlabel()
    assert "2 standard deviations" in ax.get_ylabel()
    _drawn(ax)


def test_training_of_means(ax):
    p = inn.Prediction(_prediction(outputs=()).mean, None)
    plot.training(jnp.linspace(1, 2, 5), p, ax=ax)
    assert len(ax.get_lines()) == 4 and not ax.collections
    assert ax.get_xscale() == "linear" and ax.get_ylabel() == "output"


def _comparison(y=True):
    p = _prediction()
    draws = jr.normal(jr.key(0), (5, 6, 4, 2)) + p.mean[:, None]
    return draws, inn.compare(draws, p, jnp.ones((4, 2)) if y else None)


def test_losses(ax):
    _, c = _comparison()
    t, members = np.array([0.0, 1.0, 2.0, 3.0, 50.0]), _rng.uniform(1, 2, size=(5, 20))
    plot.losses(t, members, c, name="train", ax=ax)
    # Twice in the same axes, with one legend.
    assert plot.losses(t[:3], members[:3], name="test", colour="red", ax=ax) is ax
    dashed = [line for line in ax.get_lines() if line.get_linestyle() == "--"]
    np.testing.assert_allclose(dashed[0].get_ydata(), c.loss[1:])
    means = [line for line in ax.get_lines() if line.get_linewidth() == 2.2]
    np.testing.assert_allclose(means[0].get_xdata(), t[1:])
    np.testing.assert_allclose(means[0].get_ydata(), members.mean(axis=1)[1:])
    assert _legend(ax) == ["single finite networks", "their mean", "infinite, expected"]
    assert [text.get_text() for text in ax.texts] == ["train", "test"]
    assert ax.get_xlim() == (1, 50) and ax.get_yscale() == "log"
    # The band of two standard errors.
    (path,) = ax.collections[0].get_paths()
    high = c.loss[-1] + 2 * c.loss_std[-1] / 6**0.5
    assert np.any(np.all(np.isclose(path.vertices, [50, high]), axis=1))
    _drawn(ax)


def test_losses_of_comparison(ax):
    _, c = _comparison()
    plot.losses(np.arange(5.0), comparison=c, ax=ax)
    np.testing.assert_allclose(ax.get_lines()[0].get_ydata(), c.ensemble_loss[1:])
    assert _legend(ax) == ["mean of finite networks", "infinite, expected"]


def _trained_comparison():
    draws, c = _comparison()
    drift = jnp.ones((5, 6))
    trained = inn.TrainedEnsemble(
        None, jnp.arange(5), drift, drift, draws, draws + 0.1, drift
    )
    p, y = inn.Prediction(c.mean, c.covariance), jnp.ones((4, 2))
    return inn.compare(trained, p, y, train_prediction=p, y_train=y)


def test_finite_vs_infinite():
    c, t = _trained_comparison(), np.array([0.0, 1.0, 2.0, 3.0, 50.0])
    left, right = plot.finite_vs_infinite(t, c, [1, 6], jnp.zeros((4, 2)))
    assert left.figure is right.figure and len(plt.get_fignums()) == 1
    finite, infinite, low, high = left.get_lines()[4:8]
    np.testing.assert_allclose(finite.get_ydata(), c.ensemble_mean[:, 3, 0])
    np.testing.assert_allclose(infinite.get_ydata(), c.mean[:, 3, 0])
    for line, sign in ((low, -2), (high, 2)):
        expected = c.mean[:, 3, 0] + sign * c.std[:, 3, 0]
        np.testing.assert_allclose(line.get_ydata(), expected)
    (path,) = left.collections[1].get_paths()
    high = c.ensemble_mean[-1, 3, 0] + 2 * c.ensemble_std[-1, 3, 0]
    assert np.any(np.all(np.isclose(path.vertices, [50, high]), axis=1))
    assert _legend(left) == ["6 finite networks", "infinite networks", "targets"]
    assert [text.get_text() for text in right.texts] == ["train", "test"]
    means = [line for line in right.get_lines() if line.get_linewidth() == 2.2]
    np.testing.assert_allclose(means[0].get_ydata(), c.train.ensemble_loss[1:])
    _drawn(left)
    # One set of data, on given axes, logarithmic from zero.
    both = plt.subplots(1, 2)[1]
    t = np.array([0.0, 0.037, 0.1, 2.0, 50.0])
    left, right = plot.finite_vs_infinite(t, _comparison()[1], axes=tuple(both))
    assert left is both[0] and right is both[1]
    assert len(left.collections) == 4
    np.testing.assert_allclose(left.get_xticks(), [0, 0.1, 1, 10])
    _drawn(left)


def test_comparison(ax):
    _, c = _comparison(y=False)
    assert plot.comparison(c, ax=ax) is ax
    mean, std = _line(ax, "mean"), _line(ax, "standard deviation")
    np.testing.assert_allclose(mean.get_xdata(), np.ravel(c.mean))
    np.testing.assert_allclose(mean.get_ydata(), np.ravel(c.ensemble_mean))
    np.testing.assert_allclose(std.get_xdata(), np.ravel(c.std))
    np.testing.assert_allclose(std.get_ydata(), np.ravel(c.ensemble_std))
    assert ax.get_xlim() == ax.get_ylim()
    assert ax.get_ylabel() == "6 finite networks"
    _drawn(ax)


def test_trace(ax):
    values = np.array([3.0, 1.0, np.nan, 2.0, 0.5])
    assert plot.trace(values, name="loss (nats)", log=True, ax=ax) is ax
    np.testing.assert_array_equal(_line(ax, "each step").get_ydata(), values)
    best = _line(ax, "lowest so far").get_ydata()
    np.testing.assert_array_equal(best, [3, 1, 1, 1, 0.5])
    np.testing.assert_array_equal(_line(ax, "not finite").get_xdata(), [2])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("step", "loss (nats)")
    assert ax.get_yscale() == "log"
    _drawn(ax)


def test_trace_of_fit(ax):
    # Its objective is to rise.
    values = np.array([1.0, 3.0, 2.0])
    fit = inn.Fit(inn.Identity(), jnp.ones(()), values, {}, 1, inn.FitStatus.STOPPED)
    plot.trace(fit, ax=ax)
    np.testing.assert_array_equal(_line(ax, "highest so far").get_ydata(), [1, 3, 3])
    assert ax.get_ylabel() == "objective"


#
# Predictions
#


def test_predictive(ax):
    p, x = _at(_prediction(), 0), np.array([3.0, 1.0, 2.0, 0.0])
    train = np.array([[1.5]]), np.array([[0.1, 0.2]])
    samples = p.sample(jr.key(0), 3)
    assert plot.predictive(x, p, *train, samples=samples, output=1, ax=ax) is ax
    line = _line(ax, "mean ± 2 standard deviations")
    order = np.array([3, 1, 2, 0])
    np.testing.assert_array_equal(line.get_xdata(), [0, 1, 2, 3])
    np.testing.assert_array_equal(line.get_ydata(), np.asarray(p.mean)[order, 1])
    (path,) = ax.collections[0].get_paths()
    low = p.mean[2, 1] - 2 * p.std[2]
    assert np.any(np.all(np.isclose(path.vertices, [2, low]), axis=1))
    dots = _line(ax, "training data")
    assert (dots.get_xdata(), dots.get_ydata()) == (1.5, 0.2)
    drawn = [line for line in ax.get_lines() if line.get_linewidth() == 0.7][:3]
    want = np.asarray(samples)[:, order, 1]
    np.testing.assert_array_equal([line.get_ydata() for line in drawn], want)
    assert ax.get_xlim() == (0, 3)
    _drawn(ax)


def test_predictive_of_mean(ax):
    p = inn.Prediction(jnp.arange(4.0), None)
    plot.predictive(jnp.arange(4.0)[:, None], p, ax=ax)
    assert _legend(ax) == ["mean"] and not ax.collections


def test_bands_of_variances(ax):
    # That of the whole covariance, if only its diagonal is known.
    p, t, x = _prediction(), np.arange(5.0), np.arange(4.0)
    variances = inn.Prediction(p.mean, None, None, p.variance)
    bands = []
    for each in (p, variances):
        plot.training(t, each, ax=ax)
        bands.append(ax.collections[0].get_paths()[0].vertices)
        ax.clear()
        one = jax.tree.map(lambda x: x[0], each)
        plot.predictive(x, one, ax=ax)
        bands.append(ax.collections[0].get_paths()[0].vertices)
        ax.clear()
    np.testing.assert_array_equal(bands[0], bands[2])
    np.testing.assert_array_equal(bands[1], bands[3])


def test_calibration_curve(ax):
    p = jnp.array([[0.9, 0.1], [0.7, 0.3], [0.4, 0.6]])
    labels = jnp.array([0, 1, 1])
    plot.calibration(inn.calibration_curve(p, labels, 10), ax=ax)
    error = inn.expected_calibration_error(p, labels, 10)
    assert f"expected calibration error {error:.3f}" in _legend(ax)


def test_calibration(ax):
    confidence = np.array([0.2, np.nan, 0.6, 1.0])
    accuracy, count = np.array([0.4, np.nan, 0.5, 1.0]), np.array([10, 0, 30, 60])
    assert plot.calibration(confidence, accuracy, count, ax=ax) is ax
    dots = [each for each in ax.collections if "error" in str(each.get_label())]
    want = [[0.2, 0.4], [0.6, 0.5], [1, 1]]
    np.testing.assert_allclose(dots[0].get_offsets(), want)
    # 0.1 * 0.2 + 0.3 * 0.1.
    assert "expected calibration error 0.050" in _legend(ax)
    assert ax.get_xlabel() == "confidence" and ax.get_ylim() == (0, 1)
    _drawn(ax)


#
# Phases
#


def test_phases(ax):
    W_stds, b_stds = jnp.linspace(0.5, 3, 6), jnp.linspace(0, 1, 4)
    limits = inn.phase_diagram(inn.Erf(), W_stds, b_stds)
    assert plot.phases(W_stds, b_stds, limits, ax=ax) is ax
    np.testing.assert_allclose(
        np.ravel(ax.collections[0].get_array()), np.ravel(limits.c.T)
    )
    assert "weights" in ax.get_xlabel() and "biases" in ax.get_ylabel()
    assert "correlation" in ax.figure.axes[1].get_ylabel()
    # The edge of chaos, over a white margin, without biases: between two of these.
    edge = ax.collections[-1].get_paths()[0].vertices
    at_zero = edge[np.argmin(edge[:, 1])]
    assert at_zero[1] == 0 and 0.5 < at_zero[0] < 1
    # No warnings where there is no edge.
    ordered = jax.tree.map(lambda x: x[:2], limits)
    plot.phases(W_stds[:2] / 4, b_stds, ordered, "q", ax=ax)
    _drawn(ax)


#
# Errors
#


def _bad_arguments():
    k, v, p = np.eye(3), np.arange(1.0, 4), _prediction()
    _, c = _comparison(y=False)
    members, zeros = np.ones((3, 2)), inn.diagnose(np.zeros((2, 2)))
    limits = inn.phase_diagram(inn.Erf(), np.array([1.0, 2.0]), np.array([0.1, 0.2]))
    one, w = _at(p, 0), jnp.asarray(v)
    gram = inn.Gram(jnp.eye(3), jnp.eye(3))
    curve = inn.CalibrationCurve(w, w, jnp.arange(3), w)
    return [
        ("`k` must have shape", lambda: plot.kernel(k[:2])),
        ("`k` must have shape", lambda: plot.kernel(v)),
        (
            "is a Gram.*`.nngp`, `.ntk`",
            lambda: to_array("k", gram, 2, "(n, n)"),
        ),
        ("`order` must have shape", lambda: plot.kernel(k, v[:2])),
        ("kernel of zeros", lambda: plot.spectrum(zeros)),
        ("`predicted` must have", lambda: plot.learning_curve(v, v[:2])),
        ("both of `n_measured`", lambda: plot.learning_curve(v, v, measured=v)),
        ("at the 3 times", lambda: plot.training(v, p)),
        ("`t` must be finite", lambda: plot.training(np.array([0.0, np.inf]), p)),
        ("from 0 to 7", lambda: plot.training(np.arange(5.0), p, np.array([8]))),
        ("whole numbers", lambda: plot.training(np.arange(5.0), p, np.ones(2))),
        ("`targets` must", lambda: plot.training(np.arange(5.0), p, None, v)),
        ("no losses", lambda: plot.losses(v)),
        ("`members` must have", lambda: plot.losses(v, members[:2])),
        ("give `y`", lambda: plot.losses(np.arange(5.0), comparison=c)),
        ("give `y`", lambda: plot.finite_vs_infinite(np.arange(5.0), c)),
        ("at the 3 times", lambda: plot.finite_vs_infinite(v, c)),
        ("above zero", lambda: plot.losses(0 * v, members)),
        ("`values` must have", lambda: plot.trace(k)),
        ("no finite entry", lambda: plot.trace(np.full(2, np.nan))),
        ("must be positive", lambda: plot.trace(-v, log=True)),
        ("choose one", lambda: plot.predictive(v, p)),
        ("`x` must have shape", lambda: plot.predictive(k, one)),
        ("from 0 to 1", lambda: plot.predictive(np.arange(4.0), one, output=2)),
        ("`y_train` must", lambda: plot.predictive(np.arange(4.0), one, v, v[:2])),
        ("`samples` must", lambda: plot.predictive(np.arange(4.0), one, samples=k)),
        ("both of `x_train`", lambda: plot.predictive(np.arange(4.0), one, v)),
        ("`accuracy` must have", lambda: plot.calibration(v / 4, v[:2], v)),
        ("from 0 to 1", lambda: plot.calibration(v, v / 4, v)),
        ("as a `CalibrationCurve`", lambda: plot.calibration(v / 4)),
        ("its own", lambda: plot.calibration(curve, v / 4)),
        ("all bins are empty", lambda: plot.calibration(v / 4, v / 4, 0 * v)),
        ("`quantity` must be", lambda: plot.phases(v, v, limits, "q_star")),
        ("`limits` must be", lambda: plot.phases(v, v, limits)),
    ]


def test_errors():
    for match, call in _bad_arguments():
        with pytest.raises(ValueError, match=match):
            call()
    # Nor is a figure begun which is then not finished.
    assert not plt.get_fignums()
    with pytest.raises(ValueError, match="is not known under"):
        jax.jit(lambda x: plot.trace(x) and x)(jnp.arange(3.0))
