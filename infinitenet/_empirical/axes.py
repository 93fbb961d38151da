"""Which axes of the outputs a kernel keeps, once or twice, and which it averages over."""

import math
import operator
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array


class Axes(NamedTuple):
    """What becomes of the axes of outputs, the first of which is that of examples.

    - `full`: kept for both outputs.
    - `diagonal`: only pairs of equal indices are kept.
    - `trace`: averaged over pairs of equal indices.
    """

    full: tuple[int, ...]
    diagonal: tuple[int, ...]
    trace: tuple[int, ...]

    @property
    def paired(self) -> bool:
        """Whether each example is paired with one other only."""
        return 0 not in self.full

    def of_unit(self, coupled: bool) -> "Axes":
        """Axes of the outputs of one unit, numbered from zero."""
        if coupled:
            return self
        inner = [tuple(i - 1 for i in axes if i > 0) for axes in self]
        return Axes(*inner)

    def split(self, x: Array, shape: tuple[int, ...]) -> Array:
        """From `(n, outputs, ...)` to `(n, full, diagonal, trace, ...)`."""
        rest, ndim = x.shape[2:], len(shape)
        x = x.reshape(x.shape[0], *shape, *rest)
        order = [1 + i for axes in self for i in axes]
        x = x.transpose(0, *order, *range(1 + ndim, x.ndim))
        sizes = [math.prod(shape[i] for i in axes) for axes in self]
        return x.reshape(x.shape[0], *sizes, *rest)

    def join(self, k: Array, shape1: tuple[int, ...], shape2: tuple[int, ...]) -> Array:
        """From `(..., full, full, diagonal)` to both indices of each axis side by side."""
        batch = k.shape[:-3]
        sizes = [
            [shape1[i] for i in self.full],
            [shape2[i] for i in self.full],
            [shape1[i] for i in self.diagonal],
        ]
        k = k.reshape(*batch, *sizes[0], *sizes[1], *sizes[2])
        n, first = len(self.full), len(batch)
        place = {axis: (first + i, first + n + i) for i, axis in enumerate(self.full)}
        place |= {axis: (first + 2 * n + i,) for i, axis in enumerate(self.diagonal)}
        order = [i for axis in sorted(place) for i in place[axis]]
        return k.transpose(*range(first), *order)


def to_axes(
    shape: tuple[int, ...],
    trace_axes: Sequence[int] | None,
    diagonal_axes: Sequence[int],
) -> Axes:
    """Axes of outputs of shape `(n, *outputs)`, as numbered by the user.

    **Raises:** `ValueError`, naming the axis, if one does not exist or is named twice.
    """
    ndim = len(shape)
    if trace_axes is None:
        # The channels, if there are any.
        trace = () if ndim == 1 else (ndim - 1,)
        diagonal = _numbered("diagonal_axes", diagonal_axes, shape)
        trace = tuple(i for i in trace if i not in diagonal)
    else:
        trace = _numbered("trace_axes", trace_axes, shape)
        diagonal = _numbered("diagonal_axes", diagonal_axes, shape)
    for axis in trace:
        if axis in diagonal:
            raise ValueError(
                f"Axis {axis} is in both `trace_axes` and `diagonal_axes`: a trace is the "
                "mean of the diagonal, so leave it out of one of them."
            )
    full = tuple(i for i in range(ndim) if i not in trace + diagonal)
    return Axes(full, diagonal, trace)


def _numbered(name: str, axes: Sequence[int], shape: tuple[int, ...]) -> tuple[int, ...]:
    try:
        axes = [operator.index(axis) for axis in axes]
    except TypeError:
        raise ValueError(
            f"`{name}` must be a sequence of whole numbers, not {axes!r}."
        ) from None
    ndim = len(shape)
    for axis in axes:
        if not -ndim <= axis < ndim:
            raise ValueError(
                f"`{name}` has axis {axis}, but outputs have shape {shape}: axes are from "
                f"{-ndim} to {ndim - 1}, of which 0 is that of examples."
            )
    out = tuple(sorted(axis % ndim for axis in axes))
    if len(set(out)) < len(out):
        raise ValueError(
            f"`{name}` has an axis twice: {tuple(axes)}, of outputs of shape {shape}."
        )
    return out


def check_same(axes: Axes, n1: int, n2: int) -> None:
    """**Raises:** `ValueError` if examples are to be paired, but not as many."""
    if axes.paired and n1 != n2:
        which = "trace_axes" if 0 in axes.trace else "diagonal_axes"
        raise ValueError(
            f"`{which}` has axis 0, that of examples, which pairs each of `x1` with one of "
            f"`x2`: there must be as many, but there are {n1} and {n2}."
        )


def in_single(x: Array) -> Array:
    """At least in single precision."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
