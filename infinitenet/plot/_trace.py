"""Objectives in the course of optimisation."""

import numpy as np
from jax.typing import ArrayLike

from .._inference.fit import Fit
from ._style import Axes, BLACK, BLUE, DASHED, ORANGE, tidy, to_axes, to_vector


def trace(
    values: ArrayLike | Fit,
    *,
    name: str = "objective",
    log: bool = False,
    ax: Axes | None = None,
) -> Axes:
    """An objective against the steps of its optimisation, with its best value so far.

    That is the highest of a [`infinitenet.Fit`][], whose objective is to rise, and the
    lowest of an array, such as losses.

    **Arguments:**

    - `values`: what [`infinitenet.fit`][] returned; or what is to fall, shape `(steps,)`.
        Values which are not finite are marked at the lower edge.
    - `name`: of the objective, with its units.
    - `log`: a logarithmic scale, for positive values.
    - `ax`: Matplotlib axes to draw on; `None` for a new figure.

    **Returns:** the axes.

    **Raises:** `ValueError` if `values` is no vector, or if `log` and some are not
        positive.
    """
    is_fit = isinstance(values, Fit)
    values = to_vector("values", values.objective if is_fit else values)
    finite = np.isfinite(values)
    if log and np.any(values[finite] <= 0):
        raise ValueError(
            "`values` must be positive for a logarithmic scale: use `log=False`."
        )
    ax = to_axes(ax)
    steps = np.arange(len(values))
    best = np.maximum.accumulate if is_fit else np.minimum.accumulate
    best = best(np.where(finite, values, -np.inf if is_fit else np.inf))
    ax.plot(steps, np.where(finite, values, np.nan), color=BLUE, lw=1.6, label="each step")
    ax.plot(
        steps,
        np.where(np.isfinite(best), best, np.nan),
        color=ORANGE,
        lw=1.2,
        ls=DASHED,
        label="highest so far" if is_fit else "lowest so far",
    )
    if not np.all(finite):
        _mark(ax, steps[~finite], "not finite")
    ax.set(xlabel="step", ylabel=name, yscale="log" if log else "linear")
    ax.locator_params(axis="x", integer=True)
    ax.legend(frameon=False)
    tidy(ax)
    return ax


def _mark(ax: Axes, x: np.ndarray, label: str) -> None:
    """Crosses on the lower edge."""
    style: dict = {"clip_on": False, "transform": ax.get_xaxis_transform()}
    ax.plot(x, np.zeros(len(x)), "x", color=BLACK, label=label, **style)
