"""How Monte Carlo kernels approach those of infinite networks."""

import numpy as np

from .._monte_carlo.convergence import MonteCarloConvergence
from ._style import Axes, DASHED, GREY, tidy, to_axes


_names = {"nngp": "NNGP kernel", "ntk": "NTK"}
_along = {"samples": "number of networks", "width": "width"}


def convergence(
    convergence: MonteCarloConvergence,
    kernel: str = "ntk",
    *,
    along: str = "samples",
    ax: Axes | None = None,
) -> Axes:
    r"""Relative errors of Monte Carlo kernels, in the number of networks or in their width.

    Both axes are logarithmic. The dashed line has slope -1/2: errors of sampling are
    parallel to it in the number of networks, and in width too, if it is the variance
    between networks that falls with their width, as of the NTK. Where lines are
    horizontal, it is the bias of finite width that is left.

    **Arguments:**

    - `convergence`: of [`infinitenet.monte_carlo_convergence`][].
    - `kernel`: `"nngp"` or `"ntk"`.
    - `along`: what the horizontal axis is: `"samples"`, with a line for each width, or
        `"width"`, with a line for each number of networks.
    - `ax`: Matplotlib axes to draw on; `None` for a new figure.

    **Returns:** the axes.

    **Raises:** `ValueError` for other names, or if there is no such kernel.
    """
    for name, value, known in (("kernel", kernel, _names), ("along", along, _along)):
        if value not in known:
            raise ValueError(f"`{name}` must be one of {list(known)}, not {value!r}.")
    errors = getattr(convergence, kernel)
    if errors is None:
        raise ValueError("`convergence` has no NTK: it was not asked for.")
    errors = np.asarray(errors)
    widths, counts = np.asarray(convergence.widths), np.asarray(convergence.n_samples)
    if along == "samples":
        x, lines, each, title = counts, errors, widths, "width"
    else:
        x, lines, each, title = widths, errors.T, counts, "networks"
    ax = to_axes(ax)
    for value, line, colour in zip(each, lines, _colours(len(each)), strict=True):
        ax.plot(x, line, "o-", color=colour, ms=3.5, lw=1.4, label=f"{value}")
    start = float(np.max(lines[:, 0]))
    style: dict = {"color": GREY, "lw": 1.2, "ls": DASHED, "zorder": 1}
    ax.plot(x, start * (x / x[0]) ** -0.5, label="slope −1/2", **style)
    ax.set(xscale="log", yscale="log", xlabel=_along[along])
    ax.set_ylabel(f"relative error of the {_names[kernel]}")
    ax.legend(title=title, frameon=False, fontsize="small", title_fontsize="small")
    tidy(ax)
    return ax


def _colours(n: int) -> list:
    """From dark to light, as what they stand for ascends."""
    import matplotlib

    return list(matplotlib.colormaps["viridis"](np.linspace(0, 0.85, n)))
