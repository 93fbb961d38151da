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

    Both axes are logarithmic. Thin dotted lines are the root mean square of what sampling
    alone makes: a measured line that stays above its dotted one shows the bias of finite
    width. The dashed line has slope -1/2. So have errors of sampling in the number of
    networks, and in width too where the variance between networks falls with it.

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
    if getattr(convergence, kernel) is None:
        raise ValueError("`convergence` has no NTK: it was not asked for.")
    names = (kernel, f"{kernel}_sampling")
    errors, parts = (np.asarray(getattr(convergence, name)) for name in names)
    widths, counts = np.asarray(convergence.widths), np.asarray(convergence.n_samples)
    if along == "samples":
        x, each, title = counts, widths, "width"
    else:
        x, each, title = widths, counts, "networks"
        errors, parts = errors.T, parts.T
    ax = to_axes(ax)
    for i, colour in enumerate(_colours(len(each))):
        ax.plot(x, errors[i], "o-", color=colour, ms=3.5, lw=1.4, label=f"{each[i]}")
        ax.plot(x, parts[i], color=colour, lw=0.9, ls=":", zorder=1)
    start = float(max(np.max(errors[:, 0]), np.max(parts[:, 0])))
    style: dict = {"color": GREY, "lw": 1.2, "ls": DASHED, "zorder": 1}
    ax.plot(x, start * (x / x[0]) ** -0.5, label="slope −1/2", **style)
    ax.set(xscale="log", yscale="log", xlabel=_along[along])
    ax.set_ylabel(f"relative error of the {_names[kernel]}")
    if along == "width":
        ax.set_xticks(x, [f"{width}" for width in x])
        ax.minorticks_off()
    # Beside it, as lines go everywhere.
    place: dict = {"loc": "center left", "bbox_to_anchor": (1, 0.5), "frameon": False}
    ax.legend(title=title, fontsize="small", title_fontsize="small", **place)
    tidy(ax)
    return ax


def _colours(n: int) -> list:
    """From dark to light, as what they stand for ascends."""
    import matplotlib

    return list(matplotlib.colormaps["viridis"](np.linspace(0, 0.85, n)))
