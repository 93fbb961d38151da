"""Sliding windows over positions: of filters and of pooling."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float


_MODES = {"SAME": "constant", "VALID": "constant", "CIRCULAR": "wrap"}


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

    def problem(self, spatial: Sequence[int]) -> str | None:
        """What stands in the way of sliding this window over these positions."""
        if len(spatial) != len(self.size):
            return (
                f"its window {self.size} is for inputs of shape `(*spatial, channels)` "
                f"with {len(self.size)} spatial dimensions, but these have "
                f"{len(spatial)}: {tuple(spatial)}"
            )
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
        self, x: Float[Array, "*positions_and_rest"], copies: int = 1
    ) -> Float[Array, "*padded_and_rest"]:
        """Adds the positions outside of the input that windows look at.

        `x` begins with `copies` times the axes of positions.
        """
        spatial = x.shape[: len(self.size)]
        widths = copies * self.extents(spatial)
        widths = widths + [(0, 0)] * (x.ndim - len(widths))
        if not any(map(any, widths)):
            return x
        return jnp.pad(x, widths, mode=_MODES[self.padding])

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
