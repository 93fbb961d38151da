"""What happens in training: outputs, losses, and finite against infinite networks."""

from collections.abc import Sequence

import numpy as np
from jax.typing import ArrayLike

from .._comparison import Comparison
from .._inference.solution import Prediction
from ._style import (
    Axes,
    band,
    BLACK,
    BLUE,
    colour,
    DASHED,
    GREY,
    ORANGE,
    tidy,
    to_array,
    to_axes,
    to_pair,
    to_vector,
)


_time = "training time (learning rate × steps)"


def _scale_time(ax: Axes, t: np.ndarray) -> None:
    """Logarithmic if times differ by much, and linear from zero to the first of them."""
    positive = t[t > 0]
    if len(positive) and positive.max() > 30 * positive.min():
        if np.any(t <= 0):
            low, high = positive.min(), positive.max()
            ax.set_xscale("symlog", linthresh=low, linscale=0.3)
            # Powers of ten below that would be written over zero.
            powers = np.arange(np.ceil(np.log10(low)), np.floor(np.log10(high)) + 1)
            ax.set_xticks([0, *10.0**powers])
        else:
            ax.set_xscale("log")
    ax.set(xlabel=_time, xlim=(t.min(), t.max()))


def _to_times(t: ArrayLike, like: str) -> np.ndarray:
    t = to_vector("t", t)
    if not np.all(np.isfinite(t)):
        raise ValueError(f"`t` must be finite, as {like} is drawn against it.")
    return t


def training(
    t: ArrayLike,
    prediction: Prediction,
    outputs: Sequence[int] | np.ndarray | None = None,
    targets: ArrayLike | None = None,
    *,
    ax: Axes | None = None,
) -> Axes:
    """Outputs of infinitely wide networks in the course of training.

    For each of some outputs, the mean over initialisations, and a band of two standard
    deviations around it. Of a prediction that has a mean only, that alone.

    **Arguments:**

    - `t`: the times, shape `(times,)`.
    - `prediction`: at these times, so that its mean has shape `(times, n, *outputs)`.
    - `outputs`: which to draw, as indices into `n * outputs`, all outputs of the first
        input first. `None` for the first six at most.
    - `targets`: what they should be, drawn as lines: shape `(n, *outputs)`.
    - `ax`: Matplotlib axes to draw on; `None` for a new figure.

    **Returns:** the axes.

    **Raises:** `ValueError` if shapes do not match, or an index is out of bounds.
    """
    t = _to_times(t, "the prediction")
    mean = np.asarray(prediction.mean)
    if mean.ndim < 2 or len(mean) != len(t):
        raise ValueError(
            f"`prediction` must be at the {len(t)} times of `t`, but its mean has shape "
            f"{mean.shape}."
        )
    shape, mean = mean.shape[1:], mean.reshape(len(t), -1)
    chosen = _choose(outputs, mean.shape[1])
    if targets is not None and np.shape(targets) != shape:
        raise ValueError(
            f"`targets` must have shape {shape}, but it has {np.shape(targets)}."
        )
    ax = to_axes(ax)
    std = None
    if prediction.covariance is not None or prediction.diagonal is not None:
        std = np.repeat(np.asarray(prediction.std), mean.shape[1] // shape[0], axis=1)
    for i, j in enumerate(chosen):
        ax.plot(t, mean[:, j], color=colour(i), lw=1.8, label=f"output {j}")
        if std is not None:
            band(ax, t, mean[:, j], 2 * std[:, j], colour(i))
    if targets is not None:
        _targets(ax, np.ravel(targets)[chosen])
    _scale_time(ax, t)
    ax.set_ylabel("output" if std is None else "output, ± 2 standard deviations")
    if len(chosen) > 1 or targets is not None:
        ax.legend(frameon=False, fontsize="small")
    tidy(ax)
    return ax


def _choose(outputs: Sequence[int] | np.ndarray | None, n: int) -> np.ndarray:
    if outputs is None:
        return np.arange(n)[:6]
    chosen = np.asarray(outputs)
    if chosen.ndim != 1 or not np.issubdtype(chosen.dtype, np.integer):
        raise ValueError("`outputs` must be a list of whole numbers.")
    if np.any((chosen < 0) | (chosen >= n)):
        raise ValueError(f"`outputs` must be from 0 to {n - 1}, not {outputs}.")
    return chosen


def _targets(ax: Axes, y: np.ndarray) -> None:
    for i, each in enumerate(y):
        ax.axhline(float(each), color=colour(i), lw=1, ls=":", zorder=0)
    ax.plot([], [], color=GREY, lw=1, ls=":", label="targets")


def losses(
    t: ArrayLike,
    members: ArrayLike | None = None,
    comparison: Comparison | None = None,
    *,
    name: str = "",
    colour: str = BLUE,
    ax: Axes | None = None,
) -> Axes:
    """Loss curves of finite networks, and of the infinite one.

    Each network is a thin line, and their mean a thick one; dashed is what infinitely
    wide networks have on average, with a band of two standard errors of a mean over as
    many networks. Call it twice for losses on training and test data, with the same `ax`.

    **Arguments:**

    - `t`: the times, shape `(times,)`. Those of zero are left out, as scales are
        logarithmic.
    - `members`: losses of finite networks, shape `(times, members)`: of
        [`infinitenet.TrainedEnsemble`][].
    - `comparison`: of [`infinitenet.compare`][], with `y`, at the same times.
    - `name`: written at the end of the curve: "train", "test".
    - `colour`: of the finite networks.
    - `ax`: Matplotlib axes to draw on; `None` for a new figure.

    **Returns:** the axes.

    **Raises:** `ValueError` if shapes do not match, or if there is nothing to draw.
    """
    t = _to_times(t, "the loss")
    if members is None and comparison is None:
        raise ValueError("Give `members`, `comparison`, or both: there are no losses.")
    later = t > 0
    if not np.any(later):
        raise ValueError("`t` must have times above zero, as its scale is logarithmic.")
    if members is not None:
        members = _to_members(members, len(t))
    if comparison is not None:
        _check_losses(comparison, len(t))
    ax = to_axes(ax)
    first = not ax.get_lines()
    ends = []
    if members is not None:
        ends.append(_members(ax, t, members, later, colour))
    if comparison is not None:
        ends.append(_expected(ax, t, comparison, later, members is None, colour))
    style: dict = {"xytext": (5, 0), "textcoords": "offset points", "va": "center"}
    ax.annotate(name, (t[-1], ends[-1]), color=colour, annotation_clip=False, **style)
    if first:
        _key(ax, members, comparison)
    low, high = t[later].min(), t.max()
    if not first:
        low, high = min(low, ax.get_xlim()[0]), max(high, ax.get_xlim()[1])
    ax.set(xscale="log", yscale="log", xlabel=_time, xlim=(low, high))
    ax.set(ylabel="loss (half the mean squared error)" if comparison else "loss")
    tidy(ax)
    return ax


# More thin lines than this only make a blot.
_MOST_MEMBERS = 16


def _to_members(members: ArrayLike, n: int) -> np.ndarray:
    members = to_array("members", members, 2, f"({n}, members)")
    if len(members) != n:
        raise ValueError(
            f"`members` must have shape ({n}, members), but it has {members.shape}."
        )
    return members


def _check_losses(comparison: Comparison, n: int) -> None:
    if comparison.loss is None:
        raise ValueError("`comparison` has no losses: give `y` to `infinitenet.compare`.")
    to_vector("comparison.loss", comparison.loss, n)


def _members(
    ax: Axes, t: np.ndarray, members: np.ndarray, later: np.ndarray, colour: str
) -> float:
    shown = members[later][:, :_MOST_MEMBERS]
    ax.plot(t[later], shown, color=colour, alpha=0.25, lw=0.8)
    mean = members.mean(axis=1)
    ax.plot(t[later], mean[later], color=colour, lw=2.2)
    return mean[-1]


def _expected(
    ax: Axes,
    t: np.ndarray,
    comparison: Comparison,
    later: np.ndarray,
    with_mean: bool,
    colour: str,
) -> float:
    loss = np.asarray(comparison.loss)
    if with_mean:
        mean = np.asarray(comparison.ensemble_loss)
        ax.plot(t[later], mean[later], color=colour, lw=2.2)
    half = 2 * np.asarray(comparison.loss_std) / comparison.n_members**0.5
    # A logarithm has no negative numbers.
    low = np.maximum(loss - half, loss / 100)
    style = {"color": GREY, "alpha": 0.3, "lw": 0}
    ax.fill_between(t[later], low[later], (loss + half)[later], **style)
    ax.plot(t[later], loss[later], color=BLACK, lw=1.4, ls=DASHED)
    return loss[-1]


def _key(ax: Axes, members: np.ndarray | None, comparison: Comparison | None) -> None:
    """A legend that serves curves of all colours."""
    if members is not None:
        ax.plot([], [], color=GREY, alpha=0.6, lw=0.8, label="single finite networks")
    ax.plot(
        [],
        [],
        color=GREY,
        lw=2.2,
        label="their mean" if members is not None else "mean of finite networks",
    )
    if comparison is not None:
        ax.plot([], [], color=BLACK, lw=1.4, ls=DASHED, label="infinite, expected")
    ax.legend(frameon=False)


def comparison(comparison: Comparison, *, ax: Axes | None = None) -> Axes:
    """Means and standard deviations of finite networks against those of infinite ones.

    If the networks are wide and many enough, all points are on the diagonal. The grey
    bars there are two standard errors of the means, of that many networks.

    **Arguments:**

    - `comparison`: of [`infinitenet.compare`][].
    - `ax`: Matplotlib axes to draw on; `None` for a new figure.

    **Returns:** the axes.
    """
    ax = to_axes(ax)
    c = comparison
    mean, std = np.ravel(c.mean), np.ravel(c.std)
    finite, spread = np.ravel(c.ensemble_mean), np.ravel(c.ensemble_std)
    everything = np.concatenate([mean, std, finite, spread])
    ends = np.array([everything.min(), everything.max()])
    ends += 0.05 * np.array([-1, 1]) * max(ends[1] - ends[0], 1e-6)
    ax.plot(ends, ends, color=BLACK, lw=1, ls=DASHED)
    half = 2 * std / c.n_members**0.5
    style: dict = {"fmt": "none", "ecolor": GREY, "alpha": 0.3, "lw": 0.8, "zorder": 1}
    ax.errorbar(mean, mean, half, label="chance (± 2 standard errors)", **style)
    # Fainter if there are many.
    dots: dict = {
        "ls": "",
        "ms": 4,
        "mew": 0,
        "alpha": float(np.clip(40 / len(mean), 0.15, 0.8)),
    }
    ax.plot(mean, finite, "o", color=BLUE, label="mean", **dots)
    ax.plot(std, spread, "s", color=ORANGE, label="standard deviation", **dots)
    ax.set(xlim=ends, ylim=ends, aspect="equal", xlabel="infinite networks")
    ax.set_ylabel(f"{c.n_members} finite networks")
    for handle in ax.legend(frameon=False, fontsize="small").legend_handles:
        if handle is not None:
            handle.set_alpha(0.8)
    tidy(ax)
    return ax


def finite_vs_infinite(
    t: ArrayLike,
    comparison: Comparison,
    outputs: Sequence[int] | np.ndarray | None = None,
    targets: ArrayLike | None = None,
    *,
    axes: tuple[Axes, Axes] | None = None,
) -> tuple[Axes, Axes]:
    """Finite networks beside infinite ones, in the course of training.

    To the left are outputs: of the finite networks the mean, in a band of two standard
    deviations; dashed, the same of infinite ones. To the right are losses, as by
    [`infinitenet.plot.losses`][], on training data too if the comparison has these.

    ??? cite "Reference"
        Novak et al., Neural Tangents: Fast and Easy Infinite Neural Networks in Python,
        ICLR 2020: figure 1.

    **Arguments:**

    - `t`: the times, shape `(times,)`.
    - `comparison`: of [`infinitenet.compare`][] at these times, with `y`.
    - `outputs`: which to draw, as indices into `n * outputs`, all outputs of the first
        input first. `None` for the first four at most.
    - `targets`: what these should be, drawn as lines: shape `(n, *outputs)`.
    - `axes`: two Matplotlib axes to draw on; `None` for a new figure.

    **Returns:** both axes.

    **Raises:** `ValueError` if shapes do not match, if an index is out of bounds, or if
        there are no losses.
    """
    t = _to_times(t, "the comparison")
    c = comparison
    if c.mean.ndim < 3 or len(c.mean) != len(t):
        raise ValueError(
            f"`comparison` must be at the {len(t)} times of `t`, but its means have shape "
            f"{c.mean.shape}."
        )
    _check_losses(c, len(t))
    n = int(np.prod(c.mean.shape[1:]))
    chosen = _choose(np.arange(n)[:4] if outputs is None else outputs, n)
    if targets is not None and np.shape(targets) != c.mean.shape[1:]:
        raise ValueError(
            f"`targets` must have shape {c.mean.shape[1:]}, but it has {np.shape(targets)}."
        )
    left, right = to_pair(axes)
    _both_outputs(left, t, c, chosen)
    if targets is not None:
        _targets(left, np.ravel(targets)[chosen])
    # In front of bands.
    left.legend(fontsize="small", framealpha=0.8, edgecolor="none")
    _scale_time(left, t)
    left.set_ylabel("output, ± 2 standard deviations")
    tidy(left)
    if c.train is not None and c.train.member_loss is not None:
        losses(t, c.train.member_loss, c.train, name="train", ax=right)
        losses(t, c.member_loss, c, name="test", colour=ORANGE, ax=right)
    else:
        losses(t, c.member_loss, c, ax=right)
    return left, right


def _both_outputs(ax: Axes, t: np.ndarray, c: Comparison, chosen: np.ndarray) -> None:
    flat = lambda x: np.asarray(x).reshape(len(t), -1)[:, chosen].T
    finite, spread = flat(c.ensemble_mean), flat(c.ensemble_std)
    mean, std = flat(c.mean), flat(c.std)
    dashed: dict = {"color": BLACK, "ls": DASHED}
    for i in range(len(chosen)):
        ax.plot(t, finite[i], color=colour(i), lw=2.2)
        band(ax, t, finite[i], 2 * spread[i], colour(i))
        ax.plot(t, mean[i], lw=1.4, **dashed)
        for sign in (-2, 2):
            ax.plot(t, mean[i] + sign * std[i], lw=0.8, **dashed)
    ax.plot([], [], color=GREY, lw=2.2, label=f"{c.n_members} finite networks")
    ax.plot([], [], lw=1.4, label="infinite networks", **dashed)
