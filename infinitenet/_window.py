"""Sliding windows over positions: of filters and of pooling."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float


# Windows of up to this many positions are summed in one pass over memory. Of larger ones,
# each dimension is a pass of its own, which takes fewer additions.
_MAX_TAPS = 9


def passes(size: Sequence[int]) -> list[tuple[int, ...]]:
    """Groups the dimensions of a window by the pass over memory that sums them."""
    groups: list[tuple[int, ...]] = []
    for dim in range(len(size)):
        merged = (*groups[-1], dim) if groups else (dim,)
        if groups and math.prod(size[d] for d in merged) <= _MAX_TAPS:
            groups[-1] = merged
        else:
            groups.append((dim,))
    return groups


def to_strides(strides: tuple[int, ...] | None, size: tuple[int, ...]) -> tuple[int, ...]:
    """Of 1 by default."""
    return (1,) * len(size) if strides is None else strides


class Window(NamedTuple):
    """A window of some size, moved by strides over an input with padding.

    `"VALID"` windows stay within the input. With `"SAME"` and `"CIRCULAR"` padding the
    outputs are `ceil(n / stride)`: the input is extended by zeros, or periodically; where
    the number of extra positions is odd, the larger half comes after the input.
    """

    size: tuple[int, ...]
    strides: tuple[int, ...]
    padding: str

    def extents(self, spatial: Sequence[int]) -> list[tuple[int, int]]:
        """How many positions are added before and after each dimension."""
        if self.padding == "VALID":
            return [(0, 0)] * len(self.size)
        out = []
        for n, size, stride in zip(spatial, self.size, self.strides, strict=True):
            total = max((-(-n // stride) - 1) * stride + size - n, 0)
            out.append((total // 2, total - total // 2))
        return out

    def out_shape(self, spatial: Sequence[int]) -> tuple[int, ...]:
        """The number of windows along each dimension."""
        extents = self.extents(spatial)
        lengths = [n + lo + hi for n, (lo, hi) in zip(spatial, extents, strict=True)]
        each = zip(lengths, self.size, self.strides, strict=True)
        return tuple((n - size) // stride + 1 for n, size, stride in each)

    def passes(self) -> list["Window"]:
        """Windows, one after the other, which look at the same positions in fewer steps."""
        ones, out = (1,) * len(self.size), []
        for dims in passes(self.size):
            pick = lambda a, b, dims=dims: tuple(
                a[i] if i in dims else b[i] for i in range(len(ones))
            )
            out.append(
                Window(pick(self.size, ones), pick(self.strides, ones), self.padding)
            )
        return out

    def step(self, spatial: Sequence[int]) -> tuple[int, ...] | None:
        """How far apart inputs are whose outputs are neighbours, along each dimension.

        `None` if that is another number around the edges than elsewhere.
        """
        each = zip(self.out_shape(spatial), self.strides, strict=True)
        even = [n * stride for n, stride in each] == list(spatial)
        return self.strides if even else None

    def problem(self, spatial: Sequence[int]) -> str | None:
        """What stands in the way of sliding this window over these positions."""
        problem = _dimensions(self.size, spatial)
        if problem is not None:
            return problem
        if min(self.out_shape(spatial), default=1) < 1:
            return (
                f"its window {self.size} does not fit into positions {tuple(spatial)} "
                f'with padding "{self.padding}": use a smaller window, or padding "SAME"'
            )
        if self.padding == "CIRCULAR":
            for n, (_, hi) in zip(spatial, self.extents(spatial), strict=True):
                if hi > n:
                    return (
                        f"its window {self.size} goes around positions {tuple(spatial)} "
                        "more than once: use a smaller window"
                    )
        return None

    def pad(
        self,
        x: Float[Array, "*positions_and_rest"],
        copies: int = 1,
        fill: float = 0.0,
    ) -> Float[Array, "*padded_and_rest"]:
        """Adds the positions outside of the input that windows look at.

        `x` begins with `copies` times the axes of positions. With `"SAME"` padding the
        values outside are `fill`.
        """
        spatial = x.shape[: len(self.size)]
        widths = copies * self.extents(spatial)
        widths = widths + [(0, 0)] * (x.ndim - len(widths))
        if not any(map(any, widths)):
            return x
        if self.padding == "CIRCULAR":
            return jnp.pad(x, widths, mode="wrap")
        return jnp.pad(x, widths, constant_values=fill)

    def around(
        self, x: Float[Array, "*positions channels"]
    ) -> tuple[Float[Array, "*extended channels"], list[tuple[int, int]]]:
        """Like `pad`, but zeros are left to the convolution, and only told.

        Its derivative then takes no time for them.
        """
        if self.padding == "CIRCULAR":
            return self.pad(x), [(0, 0)] * len(self.size)
        return x, self.extents(x.shape[: len(self.size)])

    def centres(self, missing: Bool[Array, "*spatial"]) -> Bool[Array, "*out"]:
        """Whether the position at the centre of each window is missing."""
        # The centre is always within the input, however it is padded.
        spatial = missing.shape
        each = zip(self.extents(spatial), self.out_shape(spatial), strict=True)
        for axis, ((before, _), n) in enumerate(each):
            size, stride = self.size[axis], self.strides[axis]
            start = (size - 1) // 2 - before
            end = start + (n - 1) * stride + 1
            missing = lax.slice_in_dim(missing, start, end, stride, axis)
        return missing

    def matrices(self, spatial: Sequence[int]) -> list[Float[np.ndarray, "out n"]]:
        """For each dimension, the matrix which sums the positions of each window."""
        out = []
        for dim, (n, widths) in enumerate(zip(spatial, self.extents(spatial), strict=True)):
            if self.padding == "CIRCULAR":
                position = np.pad(np.arange(n), widths, mode="wrap")
            else:
                position = np.pad(np.arange(n), widths, constant_values=-1)
            starts = np.arange(self.out_shape(spatial)[dim]) * self.strides[dim]
            seen = position[starts[:, None] + np.arange(self.size[dim])]
            out.append((seen[:, :, None] == np.arange(n)).sum(1).astype(float))
        return out


class TransposedWindow(NamedTuple):
    """The windows of the transpose of a convolution.

    Each input is spread over a window of outputs, `dilation` apart. In other words, a
    window slides over inputs with zeros between them, and over some around them.

    `"VALID"` outputs are all positions that inputs reach. With `"SAME"` and `"CIRCULAR"`
    padding they are `n * dilation`: what is outside of these is cut off, or, periodically,
    added to those within.
    """

    size: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: str

    @property
    def strides(self) -> tuple[int, ...]:
        """Of the window, over inputs with zeros between them."""
        return (1,) * len(self.size)

    def out_shape(self, spatial: Sequence[int]) -> tuple[int, ...]:
        """The number of outputs along each dimension."""
        each = zip(spatial, self.size, self.dilation, strict=True)
        if self.padding == "VALID":
            return tuple((n - 1) * step + max(size, step) for n, size, step in each)
        return tuple(n * step for n, _, step in each)

    def problem(self, spatial: Sequence[int]) -> str | None:
        """What stands in the way of applying this to these positions."""
        return _dimensions(self.size, spatial)

    def _before(self) -> list[int]:
        """How many positions are added before each dimension."""
        out = []
        for size, step in zip(self.size, self.dilation, strict=True):
            overlap = max(size - step, 0)
            if self.padding == "SAME" and overlap:
                out.append((size + step - 1) // 2)
            elif self.padding == "CIRCULAR":
                out.append(size - 1 - overlap // 2)
            else:
                out.append(size - 1)
        return out

    def pad(
        self, x: Float[Array, "*positions_and_rest"], copies: int = 1
    ) -> Float[Array, "*padded_and_rest"]:
        """Adds zeros between the positions, and positions around them."""
        spatial = x.shape[: len(self.size)]
        zeros, around = [], []
        out_shape, before = self.out_shape(spatial), self._before()
        each = zip(spatial, out_shape, self.size, self.dilation, before, strict=True)
        for n, out, size, step, before in each:
            after = out + size - 1 - before - n * step
            around.append((before, after))
            inner = (0, 0) if self.padding == "CIRCULAR" else (before, after)
            zeros.append((inner[0], inner[1] + step - 1, step - 1))
        rest = x.ndim - copies * len(spatial)
        x = lax.pad(x, jnp.zeros((), x.dtype), copies * zeros + [(0, 0, 0)] * rest)
        if self.padding == "CIRCULAR":
            x = jnp.pad(x, copies * around + [(0, 0)] * rest, mode="wrap")
        return x

    def reached(self, missing: Bool[Array, "*spatial"]) -> Bool[Array, "*out"]:
        """Whether any of these positions contributes to an output."""
        ones = [1] * missing.ndim
        padded = self.pad(missing.astype(float))
        return lax.reduce_window(padded, 0.0, lax.max, self.size, ones, "VALID") > 0


def _dimensions(size: Sequence[int], spatial: Sequence[int]) -> str | None:
    if len(spatial) == len(size):
        return None
    return (
        f"its window {tuple(size)} is for inputs of shape `(*spatial, channels)` "
        f"with {len(size)} spatial dimensions, but these have "
        f"{len(spatial)}: {tuple(spatial)}"
    )
