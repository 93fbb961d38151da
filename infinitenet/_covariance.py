"""Covariances between the positions of two inputs, and the maps that act on them."""

import functools as ft
import itertools as it
import math
from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum

import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ._shifts import Shifts
from ._window import passes, TransposedWindow, Window


class Pairs(IntEnum):
    """Pairs of positions $(p, q)$ that a covariance holds.

    - `NONE`: nothing.
    - `SAME`: only $p = q$, as an array of shape `spatial`.
    - `ALL`: every pair, as an array of shape `spatial + spatial`: first $p$ in the first
        input, then $q$ in the second.
    """

    NONE = 0
    SAME = 1
    ALL = 2


class Covariance(eqx.Module):
    """The covariance of one channel of a layer's activations on two inputs.

    It is about one pair of inputs. A batch of them is something that `jax.vmap` makes.

    With `shifts`, and `SAME` pairs, it is of pairs of positions at some distances, instead
    of equal positions, as an array of shape `(count, *spatial)`.
    """

    array: Float[Array, "*pairs"]
    pairs: Pairs = eqx.field(static=True)
    shifts: Shifts | None = None

    @staticmethod
    def of_inputs(
        x1: Float[Array, "*spatial channels"],
        x2: Float[Array, "*spatial channels"],
        pairs: Pairs,
        shifts: Shifts | None = None,
    ) -> "Covariance | None":
        """Sums over channels of the products of two inputs."""
        if pairs == Pairs.NONE:
            return None
        if shifts is not None:
            return Covariance(shifts.products(x1, x2), pairs, shifts)
        # A matrix product, as `sum(x1 * x2)` would be several times slower under `vmap`.
        # Nothing less than full precision will do: angles are sensitive to it.
        if pairs == Pairs.ALL:
            # Of matrices, as then axes of batches are where all layers have them. If they
            # were elsewhere at first, some layers would be compiled once more for that.
            a, b = (x.reshape(-1, x.shape[-1]) for x in (x1, x2))
            k = jnp.tensordot(a, b, (-1, -1), precision=lax.Precision.HIGHEST)
            k = k.reshape(x1.shape[:-1] + x2.shape[:-1])
        else:
            k = jnp.vecdot(x1, x2, precision=lax.Precision.HIGHEST)
        return Covariance(k, pairs)

    @property
    def spatial(self) -> tuple[int, ...]:
        """The shape of positions: empty if there are none."""
        if self.shifts is not None:
            return self.array.shape[1:]
        return self.array.shape[: self.array.ndim // self.pairs]

    def with_array(self, array: Float[Array, "*pairs"]) -> "Covariance":
        """Other covariances of the same pairs."""
        return Covariance(array, self.pairs, self.shifts)

    def align(
        self, first: Float[Array, "*spatial"], second: Float[Array, "*spatial"]
    ) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        """What belongs to positions of each input, along the axes of `array`."""
        if self.shifts is not None:
            return first[None], self.shifts.second(second)
        ones = (1,) * (self.array.ndim - first.ndim)
        return first.reshape(first.shape + ones), second.reshape(ones + second.shape)

    def diagonal(self) -> Float[Array, "*spatial"]:
        """Entries at equal positions."""
        if self.pairs == Pairs.SAME:
            return self.array
        size = math.prod(self.spatial)
        return jnp.diagonal(self.array.reshape(size, size)).reshape(self.spatial)

    def to(self, pairs: Pairs) -> "Covariance":
        """The same, or only its diagonal."""
        if not self.spatial:
            return Covariance(self.array, pairs)
        if pairs > self.pairs:
            raise ValueError(f"A covariance of {self.pairs!r} pairs lacks {pairs!r} ones.")
        return self if pairs == self.pairs else Covariance(self.diagonal(), pairs)

    def without(
        self, missing1: Bool[Array, "*spatial"], missing2: Bool[Array, "*spatial"]
    ) -> "Covariance":
        """Zero at positions that are missing in either input."""
        if self.pairs == Pairs.ALL:
            ndim = len(self.spatial)
            missing1 = missing1.reshape(missing1.shape + (1,) * ndim)
            missing2 = missing2.reshape((1,) * ndim + missing2.shape)
        return Covariance(jnp.where(missing1 | missing2, 0, self.array), self.pairs)

    def window(self, window: Window | TransposedWindow) -> "Covariance":
        """Mean over offsets `d` within a window, of the entries at `(p + d, q + d)`.

        Zero outside of the input, over which the mean extends too.
        """
        if self.shifts is not None and isinstance(window, Window):
            k = self.shifts.window(self.array, window) / math.prod(window.size)
            return Covariance(k, self.pairs, self.shifts.through(window.strides))
        copies = int(self.pairs) if self.spatial else 0
        # Barriers keep XLA from computing whatever came before once for each tap.
        k = lax.optimization_barrier(window.pad(self.array, copies))
        ndim = len(window.size)
        for dims in passes(window.size):
            k = ft.reduce(jnp.add, _taps(k, window, dims, ndim))
            k = lax.optimization_barrier(k)
        return Covariance(k / math.prod(window.size), self.pairs)

    def map(self, matrices: Sequence[np.ndarray]) -> "Covariance":
        """The covariance of activations multiplied, along each dimension, by a matrix.

        Needs `ALL` pairs. The matrices are of shape `(outputs, inputs)`.
        """
        k, ndim = self.array, len(self.spatial)
        for axis in range(k.ndim):
            k = apply_matrix(matrices[axis % ndim], k, axis)
        return Covariance(k, self.pairs)

    def transform(
        self,
        left: Callable[[Float[Array, "..."]], Float[Array, "..."]],
        right: Callable[[Float[Array, "..."]], Float[Array, "..."]],
    ) -> "Covariance":
        """The covariance of activations after linear maps of positions, one of each input.

        Needs `ALL` pairs. The maps are from shape `(*spatial, n)` to `(*out, n)`.
        """
        k, spatial = self.array, self.spatial
        # Along each copy of the positions, where the other one takes the place of channels.
        k = left(k.reshape(*spatial, math.prod(spatial)))
        out = k.shape[:-1]
        k = jnp.moveaxis(k, -1, 0).reshape(*spatial, math.prod(out))
        k = jnp.moveaxis(right(k), -1, 0)
        return Covariance(k.reshape(*out, *k.shape[1:]), Pairs.ALL)

    def embedded(self) -> "Covariance":
        """All pairs, for activations at equal positions that are otherwise independent."""
        matrix = jnp.diag(self.diagonal().reshape(-1))
        return Covariance(matrix.reshape(2 * self.spatial), Pairs.ALL)

    def mean_of_diagonal(self) -> "Covariance":
        """The covariance of channels that are positions as well: one without positions.

        A product with a vector, as sums of many terms in sequence lose digits.
        """
        k = self.diagonal().reshape(-1)
        mean = jnp.dot(k, jnp.full_like(k, 1 / k.size), precision=lax.Precision.HIGHEST)
        return Covariance(mean, Pairs.SAME)


def apply_matrix(
    matrix: np.ndarray, array: Float[Array, "..."], axis: int
) -> Float[Array, "..."]:
    """Multiplies an array, along an axis, by a matrix of shape `(outputs, inputs)`."""
    m = jnp.asarray(matrix, array.dtype)
    out = jnp.tensordot(array, m, (axis, 1), precision=lax.Precision.HIGHEST)
    return jnp.moveaxis(out, -1, axis)


def _taps(
    k: Float[Array, "..."],
    window: Window | TransposedWindow,
    dims: Sequence[int],
    ndim: int,
) -> Iterator[Float[Array, "..."]]:
    """For each offset along `dims`, the entries that it moves into place."""
    for offsets in it.product(*(range(window.size[dim]) for dim in dims)):
        tap = k
        for dim, d in zip(dims, offsets, strict=True):
            for axis in range(dim, k.ndim, ndim):  # Of `p`, and of `q` if it is there.
                end = d + k.shape[axis] - window.size[dim] + 1
                tap = lax.slice_in_dim(tap, d, end, window.strides[dim], axis)
        yield tap
