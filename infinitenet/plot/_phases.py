"""Phase diagrams of deep networks."""

import numpy as np
from jax.typing import ArrayLike

from .._propagation import SignalPropagation
from ._style import Axes, BLACK, GREY, to_axes, to_vector


# Label of the colour bar, colours, and the ends of the scale, logarithmic if positive.
_quantities = {
    "q": ("variance $q^*$", "viridis", (1e-2, 1e2)),
    "c": ("correlation $c^*$", "cividis", (0, 1)),
    "depth_correlation": ("depth scale $\\xi_c$ (layers)", "magma", (1, 1e2)),
}


def phases(
    W_stds: ArrayLike,
    b_stds: ArrayLike,
    limits: SignalPropagation,
    quantity: str = "c",
    *,
    ax: Axes | None = None,
) -> Axes:
    r"""A phase diagram: a limit of infinite depth, and the edge of chaos.

    The thick black line is the edge of chaos, $\chi_1 = 1$: to its left networks are
    ordered, and to its right chaotic. Thin lines are of other $\chi_1$, by which gradients
    grow in each layer.

    **Arguments:**

    - `W_stds`, `b_stds`: standard deviations of weights and biases, shapes `(n1,)` and
        `(n2,)`, at least two each, ascending.
    - `limits`: of [`infinitenet.phase_diagram`][], on this grid.
    - `quantity`: what colours show. `"q"`, the variance of activations; `"c"`, the
        correlation of different inputs; or `"depth_correlation"`, the number of layers in
        which the distance from the latter shrinks by a factor of $e$. What is beyond the
        scale has the colour of its end.
    - `ax`: Matplotlib axes to draw on; `None` for a new figure.

    **Returns:** the axes.

    **Raises:** `ValueError` if shapes do not match, or if the quantity is unknown.
    """
    if quantity not in _quantities:
        raise ValueError(
            f"`quantity` must be one of {list(_quantities)}, not {quantity!r}."
        )
    W_stds, b_stds = to_vector("W_stds", W_stds), to_vector("b_stds", b_stds)
    label, colours, ends = _quantities[quantity]
    grid = f"({len(W_stds)}, {len(b_stds)})"
    values = np.asarray(getattr(limits, quantity))
    if values.shape != (len(W_stds), len(b_stds)) or 1 in values.shape:
        raise ValueError(
            "`limits` must be those of `phase_diagram` at `W_stds` and `b_stds`, at least "
            f"two of each, so of shape {grid}, but they have shape {values.shape}."
        )
    ax = to_axes(ax)
    from matplotlib.colors import LogNorm, Normalize

    norm = (LogNorm if ends[0] > 0 else Normalize)(*ends)
    # Infinity is drawn as the end of the scale.
    values = np.clip(values.T, *ends)
    mesh = ax.pcolormesh(W_stds, b_stds, values, cmap=colours, norm=norm, shading="gouraud")
    ax.figure.colorbar(mesh, ax=ax, label=label)
    _edge(ax, W_stds, b_stds, np.asarray(limits.chi_1).T)
    ax.set_xlabel("standard deviation of weights, $\\sigma_W$")
    ax.set_ylabel("standard deviation of biases, $\\sigma_b$")
    return ax


def _edge(ax: Axes, W_stds: np.ndarray, b_stds: np.ndarray, chi_1: np.ndarray) -> None:
    """Contours of `chi_1`, of which the one at 1 is the edge of chaos."""
    inside = lambda level: np.nanmin(chi_1) < level < np.nanmax(chi_1)
    levels = [level for level in (0.5, 1.5, 2) if inside(level)]
    # Matplotlib warns of contours that are nowhere.
    if levels:
        style: dict = {"colors": GREY, "linewidths": 0.8}
        lines = ax.contour(W_stds, b_stds, chi_1, levels=levels, **style)
        ax.clabel(lines, fmt=lambda chi: f"{chi:g}", fontsize=7)
    if inside(1):
        for colour, width in (("white", 3.5), (BLACK, 1.8)):
            ax.contour(W_stds, b_stds, chi_1, levels=[1], colors=colour, linewidths=width)
