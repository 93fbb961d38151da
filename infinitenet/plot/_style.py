"""Colours, axes and checks that all figures share."""

from typing import Any, TYPE_CHECKING

import equinox as eqx
import jax
import numpy as np
from jax.typing import ArrayLike

from .._tracing import is_traced


if TYPE_CHECKING:
    from matplotlib.axes import Axes as Axes
else:
    Axes = Any  # Matplotlib is imported when something is drawn, and not before.

# Told apart in all common kinds of colour blindness, and in grey (Okabe and Ito 2008).
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, "#56B4E9", "#E69F00")
BLACK, GREY = "#222222", "#8C8C8C"
DASHED = (0, (4, 3))


def _pyplot() -> Any:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            'Plots need Matplotlib: pip install "infinitenet[plot]".'
        ) from error
    return plt


def to_axes(ax: Axes | None) -> Axes:
    """The axes given, or those of a new figure."""
    plt = _pyplot()
    if ax is not None:
        return ax
    return plt.subplots(figsize=(5.2, 3.9), layout="constrained")[1]


def to_pair(axes: tuple[Axes, Axes] | None) -> tuple[Axes, Axes]:
    """The two axes given, or those of a new figure, side by side."""
    plt = _pyplot()
    if axes is not None:
        return axes
    return tuple(plt.subplots(1, 2, figsize=(9.6, 3.9), layout="constrained")[1])


def to_array(name: str, x: Any, ndim: int, shape: str) -> np.ndarray:
    """A NumPy array of so many axes.

    **Raises:** `ValueError` if it is of others, or if there is no number in it.
    """
    if isinstance(x, eqx.Module):
        arrays = [
            name
            for name, each in vars(x).items()
            if isinstance(each, jax.Array | np.ndarray)
        ]
        advice = f"Give one of its arrays: `.{'`, `.'.join(arrays)}`." if arrays else ""
        raise ValueError(
            f"`{name}` must be an array, but it is a {type(x).__name__}. {advice}".rstrip()
        )
    if is_traced(x):
        raise ValueError(f"`{name}` is not known under `jax.jit`: plot outside of it.")
    out = np.asarray(x)
    if out.ndim != ndim or not out.size:
        raise ValueError(f"`{name}` must have shape {shape}, but it has {out.shape}.")
    # Labels may be strings.
    if np.issubdtype(out.dtype, np.floating) and not np.any(np.isfinite(out)):
        raise ValueError(f"`{name}` has no finite entry: there is nothing to plot.")
    return out


def to_vector(name: str, x: ArrayLike, n: int | None = None) -> np.ndarray:
    """**Raises:** `ValueError` if `x` is no vector, of length `n`."""
    out = to_array(name, x, 1, "(n,)" if n is None else f"({n},)")
    if n is not None and len(out) != n:
        raise ValueError(f"`{name}` must have shape ({n},), but it has {out.shape}.")
    return out


def tidy(ax: Axes, *sides: str) -> None:
    """Without the lines of the frame that tell nothing."""
    ax.spines[list(sides or ("top", "right"))].set_visible(False)


def colour(i: int) -> str:
    return COLOURS[i % len(COLOURS)]


def band(ax: Axes, x: np.ndarray, mean: np.ndarray, half: np.ndarray, colour: str) -> None:
    """Filled, behind what else is drawn."""
    low, high = mean - half, mean + half
    ax.fill_between(x, low, high, color=colour, alpha=0.2, lw=0, zorder=1)
