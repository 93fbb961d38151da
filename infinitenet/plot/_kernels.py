"""Kernel matrices, their spectra, and learning curves."""

import numpy as np
from jax.typing import ArrayLike

from .._inference.diagnostics import KernelDiagnostics
from ._style import (
    Axes,
    BLACK,
    BLUE,
    DASHED,
    GREY,
    ORANGE,
    tidy,
    to_array,
    to_axes,
    to_vector,
)


def kernel(
    k: ArrayLike,
    order: ArrayLike | None = None,
    *,
    label: str = "kernel",
    ax: Axes | None = None,
) -> Axes:
    """A kernel matrix as a heat map, of inputs that may be sorted.

    Inputs of one label are then neighbours, with lines between labels: a kernel that suits
    the task has bright squares on its diagonal.

    **Arguments:**

    - `k`: shape `(n, n)`.
    - `order`: what to sort inputs by, shape `(n,)`: labels of classes, for example.
        `None` for the order that they are in.
    - `label`: what the colour bar says.
    - `ax`: Matplotlib axes to draw on; `None` for a new figure.

    **Returns:** the axes.

    **Raises:** `ValueError` if `k` is no square matrix, or if `order` is not of its length.
    """
    k = to_array("k", k, 2, "(n, n)")
    if k.shape[0] != k.shape[1]:
        raise ValueError(f"`k` must have shape (n, n), but it has {k.shape}.")
    n, name = len(k), "inputs"
    if order is not None:
        order = to_vector("order", order, n)
        index = np.argsort(order, kind="stable")
        k, order, name = k[np.ix_(index, index)], order[index], "inputs, sorted by label"
    ax = to_axes(ax)
    # Colours of both signs only if there are both.
    low, high = np.nanmin(k), np.nanmax(k)
    ends = {"cmap": "viridis"}
    if low < -1e-3 * abs(high):
        ends = {"cmap": "RdBu_r", "vmin": -max(-low, high), "vmax": max(-low, high)}
    extent = (0, n, n, 0)
    image = ax.imshow(k, extent=extent, interpolation="nearest", **ends)  # pyright: ignore
    if order is not None:
        _separate(ax, order)
    ax.set(xlabel=name, ylabel=name)
    ax.figure.colorbar(image, ax=ax, label=label)
    return ax


# More labels than this, and they are taken for numbers of which each occurs once.
_MOST_CLASSES = 20


def _separate(ax: Axes, order: np.ndarray) -> None:
    """Lines between classes, and their names."""
    classes, starts = np.unique(order, return_index=True)
    if len(classes) > _MOST_CLASSES:
        return
    for start in starts[1:]:
        ax.axhline(start, color="white", lw=0.8)
        ax.axvline(start, color="white", lw=0.8)
    middle = (starts + np.append(starts[1:], len(order))) / 2
    names = [f"{c}" for c in classes]
    ax.set_xticks(middle, names)
    ax.set_yticks(middle, names)
    ax.tick_params(length=0)


def spectrum(
    diagnostics: KernelDiagnostics,
    diag_reg: float | None = None,
    *,
    absolute: bool = False,
    ax: Axes | None = None,
) -> Axes:
    """The eigenvalues of a kernel, and the targets' power in its leading eigenvectors.

    Both axes are logarithmic, so that power laws are straight lines. The share of the
    power, if there are targets, has an axis of its own to the right.

    **Arguments:**

    - `diagnostics`: of [`infinitenet.diagnose`][].
    - `diag_reg`: draws a line there: directions below it are noise to kernel regression.
        In units of the mean of the kernel's diagonal.
    - `absolute`: if true, `diag_reg` is in units of the kernel.
    - `ax`: Matplotlib axes to draw on; `None` for a new figure.

    **Returns:** the axes of the eigenvalues.

    **Raises:** `ValueError` if all eigenvalues are zero, or if there is more than one
        kernel.
    """
    l = to_vector("diagnostics.eigenvalues", diagnostics.eigenvalues)
    if not np.any(l > 0):
        raise ValueError("`diagnostics` is of a kernel of zeros: it has no spectrum.")
    ax = to_axes(ax)
    index = np.arange(1, len(l) + 1)
    positive = l > 0
    dots: dict = {"marker": "o", "ms": 3.5 if len(l) < 100 else 2, "lw": 1}
    ax.plot(index[positive], l[positive], color=BLUE, label="eigenvalues", **dots)
    ax.set(xscale="log", yscale="log", xlabel="index of eigenvalue", ylabel="eigenvalue")
    tidy(ax, "top", *(("right",) if diagnostics.y is None else ()))
    if diag_reg:
        scale = 1 if absolute else float(np.mean(np.diag(diagnostics.spectrum.k)))
        _level(ax, diag_reg * scale, "regularisation")
    if diagnostics.y is not None:
        ax.yaxis.label.set_color(BLUE)
        twin = ax.twinx()
        tidy(twin, "top")
        share = np.asarray(diagnostics.cumulative_power)
        twin.plot(index, share, color=ORANGE, lw=2, label="targets")
        twin.set(ylim=(0, 1.03))
        twin.set_ylabel("share of the targets' power, cumulative", color=ORANGE)
    return ax


def _level(ax: Axes, level: float, text: str) -> None:
    ax.axhline(level, color=GREY, lw=1.2, ls=DASHED, label=text)
    style: dict = {"xytext": (-4, 3), "textcoords": "offset points", "ha": "right"}
    place = (1, level)
    ax.annotate(text, place, xycoords=("axes fraction", "data"), color=GREY, **style)


def learning_curve(
    n: ArrayLike,
    predicted: ArrayLike,
    *,
    n_measured: ArrayLike | None = None,
    measured: ArrayLike | None = None,
    error: ArrayLike | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Test errors against the number of training examples, predicted and measured.

    **Arguments:**

    - `n`: numbers of training examples, shape `(n,)`.
    - `predicted`: of [`infinitenet.learning_curve`][], shape `(n,)`.
    - `n_measured`, `measured`: measured errors, and the numbers of training examples that
        they are at, of one shape.
    - `error`: their standard errors, drawn as bars of twice their size to both sides.
    - `ax`: Matplotlib axes to draw on; `None` for a new figure.

    **Returns:** the axes, of logarithmic scales.

    **Raises:** `ValueError` if shapes do not match.
    """
    n = to_vector("n", n)
    predicted = to_vector("predicted", predicted, len(n))
    if (measured is None) != (n_measured is None):
        raise ValueError("Give both of `n_measured` and `measured`, or neither.")
    points = None
    if measured is not None and n_measured is not None:
        n_measured = to_vector("n_measured", n_measured)
        measured = to_vector("measured", measured, len(n_measured))
        bars = None if error is None else 2 * to_vector("error", error, len(n_measured))
        points = (n_measured, measured, bars)
    ax = to_axes(ax)
    ax.plot(n, predicted, color=BLACK, lw=1.6, label="predicted")
    if points is not None:
        style: dict = {"fmt": "o", "color": ORANGE, "ms": 5, "capsize": 2}
        ax.errorbar(*points, label="measured", **style)
        ax.legend(frameon=False)
    ax.set(xscale="log", yscale="log")
    ax.set(xlabel="number of training examples", ylabel="test error (mean squared)")
    tidy(ax)
    return ax
