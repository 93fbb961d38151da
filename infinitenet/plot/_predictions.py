"""Predictions and how far to trust them."""

import numpy as np
from jax.typing import ArrayLike

from .._inference.calibration import CalibrationCurve
from .._inference.solution import Prediction
from ._style import (
    Axes,
    band,
    BLACK,
    BLUE,
    DASHED,
    GREY,
    tidy,
    to_axes,
    to_vector,
)


def predictive(
    x: ArrayLike,
    prediction: Prediction,
    x_train: ArrayLike | None = None,
    y_train: ArrayLike | None = None,
    *,
    samples: ArrayLike | None = None,
    output: int = 0,
    label: str | None = None,
    colour: str = BLUE,
    ax: Axes | None = None,
) -> Axes:
    """A prediction for inputs that are numbers: its mean, and two standard deviations.

    **Arguments:**

    - `x`: test inputs, shape `(n_test,)` or `(n_test, 1)`, in any order.
    - `prediction`: at these, at a single time. If it has a mean only, there is no band.
    - `x_train`, `y_train`: the training data, shapes `(n,)` or `(n, 1)`, and
        `(n, *outputs)`.
    - `samples`: functions to draw too: of [`infinitenet.Prediction.sample`][], of shape
        `(samples, n_test, *outputs)`.
    - `output`: which output to draw, if there are several.
    - `label`: what the legend says; `None` for what is drawn.
    - `colour`: of the prediction.
    - `ax`: Matplotlib axes to draw on; `None` for a new figure.

    **Returns:** the axes.

    **Raises:** `ValueError` if shapes do not match, or if inputs are no numbers.
    """
    x = _to_inputs("x", x)
    order = np.argsort(x)
    x, mean = x[order], _column("prediction.mean", prediction.mean, len(x), output)[order]
    std = None
    if prediction.covariance is not None or prediction.diagonal is not None:
        std = to_vector("prediction.std", prediction.std, len(x))
    if (x_train is None) != (y_train is None):
        raise ValueError("Give both of `x_train` and `y_train`, or neither.")
    if x_train is not None and y_train is not None:
        x_train = _to_inputs("x_train", x_train)
        y_train = _column("y_train", y_train, len(x_train), output)
    functions = () if samples is None else np.asarray(samples)
    functions = [_column("samples", f, len(x), output)[order] for f in functions]
    ax = to_axes(ax)
    _samples(ax, x, functions, colour)
    drawn = "mean"
    if std is not None:
        band(ax, x, mean, 2 * std[order], colour)
        drawn = "mean ± 2 standard deviations"
    ax.plot(x, mean, color=colour, lw=2, label=drawn if label is None else label)
    if x_train is not None and y_train is not None:
        ax.plot(x_train, y_train, "o", color=BLACK, ms=5, zorder=3, label="training data")
    ax.set(xlabel="input $x$", ylabel="output", xlim=(x[0], x[-1]))
    ax.legend(frameon=False)
    tidy(ax)
    return ax


def _samples(ax: Axes, x: np.ndarray, functions: list[np.ndarray], colour: str) -> None:
    for i, f in enumerate(functions):
        # One entry of the legend for all.
        name = "_" if i else "samples"
        ax.plot(x, f, color=colour, alpha=0.35, lw=0.7, zorder=1.5, label=name)


def _to_inputs(name: str, x: ArrayLike) -> np.ndarray:
    x = np.asarray(x)
    if x.ndim == 2 and x.shape[1] == 1:
        x = x[:, 0]
    return to_vector(name, x)


def _column(name: str, f: ArrayLike, n: int, output: int) -> np.ndarray:
    """One output, at all inputs."""
    f = np.asarray(f)
    if f.ndim < 1 or len(f) != n or not f.size:
        raise ValueError(
            f"`{name}` must have shape ({n}, *outputs), but it has {f.shape}. Of several "
            "times, choose one."
        )
    f = f.reshape(n, -1)
    if not 0 <= output < f.shape[1]:
        raise ValueError(f"`output` must be from 0 to {f.shape[1] - 1}, not {output}.")
    return f[:, output]


def calibration(
    confidence: ArrayLike | CalibrationCurve,
    accuracy: ArrayLike | None = None,
    count: ArrayLike | None = None,
    *,
    ax: Axes | None = None,
) -> Axes:
    """A reliability diagram: how often predictions of some confidence are right.

    Of a calibrated classifier the points are on the diagonal; below it, it is too sure
    of itself. Bars are two standard errors, and bins of more examples are larger points.
    Bins of none are left out.

    ??? cite "Reference"
        Guo, Pleiss, Sun & Weinberger, On Calibration of Modern Neural Networks, ICML
        2017: Figure 1.

    **Arguments:**

    - `confidence`: a [`infinitenet.CalibrationCurve`][], and nothing else; or the mean
        confidence in each bin, from 0 to 1, shape `(bins,)`.
    - `accuracy`: the share of right predictions, likewise.
    - `count`: the number of predictions in each bin.
    - `ax`: Matplotlib axes to draw on; `None` for a new figure.

    **Returns:** the axes. The legend has the expected calibration error, the mean distance
        from the diagonal over all predictions.

    **Raises:** `ValueError` if shapes differ, if there are no predictions, if a share
        is not from 0 to 1, or if some arguments are missing.
    """
    if isinstance(confidence, CalibrationCurve):
        if accuracy is not None or count is not None:
            raise ValueError("A `CalibrationCurve` has its own `accuracy` and `count`.")
        curve = confidence
        confidence, accuracy, count = curve.confidence, curve.accuracy, curve.count
    if accuracy is None or count is None:
        raise ValueError(
            "Give `confidence`, `accuracy` and `count`, or all of them as a "
            "`CalibrationCurve`."
        )
    bins = _to_bins(confidence, accuracy, count)
    ax = to_axes(ax)
    _reliability(*bins, ax)
    return ax


def _to_bins(
    confidence: ArrayLike, accuracy: ArrayLike, count: ArrayLike
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of bins which are not empty."""
    confidence = to_vector("confidence", confidence)
    accuracy = to_vector("accuracy", accuracy, len(confidence))
    count = to_vector("count", count, len(confidence))
    if not np.any(count > 0):
        raise ValueError("`count` must be positive somewhere: all bins are empty.")
    full = count > 0
    confidence, accuracy, count = confidence[full], accuracy[full], count[full]
    for name, share in (("confidence", confidence), ("accuracy", accuracy)):
        if not np.all((share >= 0) & (share <= 1)):
            raise ValueError(
                f"`{name}` must be from 0 to 1 in all bins that are not empty."
            )
    return confidence, accuracy, count


def _reliability(
    confidence: np.ndarray, accuracy: np.ndarray, count: np.ndarray, ax: Axes
) -> None:
    ax.plot([0, 1], [0, 1], color=GREY, lw=1.2, ls=DASHED, label="calibrated")
    gap = np.sum(count * np.abs(accuracy - confidence)) / np.sum(count)
    # With a prior observation of each kind, as a bin of one has no spread of its own.
    smooth = (accuracy * count + 1) / (count + 2)
    half = 2 * np.sqrt(smooth * (1 - smooth) / count)
    bars = [np.minimum(half, accuracy), np.minimum(half, 1 - accuracy)]
    ax.errorbar(confidence, accuracy, bars, color=BLUE, lw=1, capsize=2, zorder=2)
    size = 20 + 80 * count / count.max()
    label = f"expected calibration error {gap:.3f}"
    ax.scatter(
        confidence, accuracy, size, color=BLUE, lw=0, zorder=3, clip_on=False, label=label
    )
    ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    ax.set(xlabel="confidence", ylabel="accuracy (share that is right)")
    ax.legend(frameon=False, loc="upper left", fontsize="small")
    tidy(ax)
