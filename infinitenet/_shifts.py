"""Pairs of positions at some distances from each other."""

import dataclasses
import functools as ft
import itertools as it
import math
from collections.abc import Iterator, Sequence

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ._compiler import apart
from ._window import Window


# Sums over fewer than these are faster than matrix products, of which most is not needed.
_FEW_CHANNELS = 8


class Shifts(eqx.Module):
    r"""Pairs of positions $(p, p + a)$, modulo the shape of positions, at distances $a$.

    Convolutions and nonlinearities keep distances, so networks of these can be evaluated at
    some distances at a time: in memory of the size of an image for each. These are `start`,
    and from there `step` apart along the last dimension, `count` of them. Arrays of them
    are of shape `(count, *spatial)`.

    As $q = p + a$ goes around, neighbours of $(p, q)$ in an array are not always so in the
    images. But those that are within both images are at the same distance, so it suffices
    to leave out the others: see `window`.
    """

    start: Int[Array, " ndim"]
    step: int = eqx.field(static=True)
    count: int = eqx.field(static=True)

    @apart
    def second(self, image: Float[Array, "*spatial"]) -> Float[Array, "count *spatial"]:
        """`image[p + a]` at all positions `p`."""
        repeated = self._second_repeated(image)
        # All of them by one copy, from rows that are `step` longer than what they repeat:
        # a slice for each takes long to compile.
        rows = self.count, repeated.size + self.step
        flat = jnp.tile(repeated.reshape(-1), self.count + 1)[: math.prod(rows)]
        each = flat.reshape(rows)[:, : repeated.size].reshape(-1, *repeated.shape)
        return each[..., : image.shape[-1]]

    @apart
    def _second_repeated(self, image: Float[Array, "*spatial"]) -> Float[Array, "*longer"]:
        """Of the first of the distances, on and on along the last dimension."""
        for axis, n in enumerate(image.shape):
            image = jnp.concatenate([image, image], axis)
            image = lax.dynamic_slice_in_dim(image, self.start[axis] % n, n, axis)
        times = 1 + -(-(self.count - 1) * self.step // image.shape[-1])
        return jnp.concatenate([image] * times, -1)

    def products(
        self,
        x1: Float[Array, "*spatial channels"],
        x2: Float[Array, "*spatial channels"],
    ) -> Float[Array, "count *spatial"]:
        """Sums over channels of `x1[p] x2[p + a]`."""
        first, second = (jnp.moveaxis(x, -1, 0) for x in (x1, x2))
        if len(first) <= _FEW_CHANNELS:
            seconds = jax.vmap(self.second)(second)
            each = [a[None] * b for a, b in zip(first, seconds, strict=True)]
            return ft.reduce(jnp.add, each)
        # All pairs along the last dimension, as a matrix product, of which a part is taken.
        rolled = jax.vmap(dataclasses.replace(self, count=1).second)(second)
        x2 = jnp.moveaxis(rolled[:, 0], 0, -1)
        k = jnp.einsum("...pc,...qc->...pq", x1, x2, precision=lax.Precision.HIGHEST)
        p, i = jnp.arange(k.shape[-1])[:, None], jnp.arange(self.count)[None]
        return jnp.moveaxis(k[..., p, (p + self.step * i) % k.shape[-1]], -1, 0)

    def through(self, strides: Sequence[int]) -> "Shifts":
        """The distances of outputs of a window."""
        start = self.start // jnp.asarray(strides, self.start.dtype)
        return Shifts(start, self.step // strides[-1], self.count)

    def window(
        self, k: Float[Array, "count *spatial"], window: Window
    ) -> Float[Array, "count *out"]:
        """Sums over the positions of a window, of pairs that are within both images."""
        shifts = self
        for each in window.passes():
            k, shifts = shifts._window(k, each), shifts.through(each.strides)
        return k

    def _window(
        self, k: Float[Array, "count *spatial"], window: Window
    ) -> Float[Array, "count *out"]:
        out_shape = window.out_shape(k.shape[1:])
        flat = window.padding == "SAME" and all(s == 1 for s in window.strides)
        k = lax.optimization_barrier(k)
        terms = _flat_taps(k, window) if flat else _image_taps(k, window)
        if window.padding != "CIRCULAR":
            masks = it.product(*self._masks(window, k.shape[1:], k.dtype))
            each = zip(terms, masks, strict=True)
            terms = (tap * _product(mask, tap.shape, out_shape) for tap, mask in each)
        return ft.reduce(jnp.add, terms).reshape(self.count, *out_shape)

    @apart
    def _masks(
        self, window: Window, spatial: Sequence[int], dtype: jnp.dtype
    ) -> list[list[Float[Array, "any out"]]]:
        """For each dimension and each tap, 1 where it is within both images, and else 0."""
        out_shape, shifts = window.out_shape(spatial), self.through(window.strides)
        masks = []
        for dim, (n, out) in enumerate(zip(spatial, out_shape, strict=True)):
            last = dim == len(spatial) - 1
            further = jnp.arange(self.count if last else 1) * (shifts.step * last)
            p = jnp.arange(out)[None]
            q = (p + shifts.start[dim] + further[:, None]) % out
            before, _ = window.extents(spatial)[dim]
            stride = window.strides[dim]

            def within(p: Array, d: int, n: int = n) -> Bool[Array, "..."]:
                return (p + d >= 0) & (p + d < n)

            offsets = [d - before for d in range(window.size[dim])]
            both = [within(stride * p, d) & within(stride * q, d) for d in offsets]
            masks.append([mask.astype(dtype) for mask in both])
        return masks


def _image_taps(k: Float[Array, "count *spatial"], window: Window) -> Iterator[Array]:
    out = window.out_shape(k.shape[1:])
    k = lax.optimization_barrier(_extended(k, window))
    for offsets in it.product(*map(range, window.size)):
        each = zip(offsets, out, window.strides, strict=True)
        ends = [d + (n - 1) * stride + 1 for d, n, stride in each]
        yield lax.slice(k, (0, *offsets), (len(k), *ends), (1, *window.strides))


def _extended(
    k: Float[Array, "count *spatial"], window: Window
) -> Float[Array, "count *extended"]:
    return jnp.moveaxis(window.pad(jnp.moveaxis(k, 0, -1)), -1, 0)


def _flat_taps(k: Float[Array, "count *spatial"], window: Window) -> Iterator[Array]:
    """All positions are moved by the same number in memory: without loops over rows.

    What comes from other rows is not within both images.
    """
    spatial = k.shape[1:]
    rows = [math.prod(spatial[dim + 1 :]) for dim in range(len(spatial))]
    befores = [before for before, _ in window.extents(spatial)]
    moves = [
        sum((d - b) * row for d, b, row in zip(offsets, befores, rows, strict=True))
        for offsets in it.product(*map(range, window.size))
    ]
    n, lo, hi = math.prod(spatial), max(-min(moves), 0), max(*moves, 0)
    k = lax.optimization_barrier(_between_zeros(k.reshape(len(k), n), lo, hi))
    for move in moves:
        yield lax.slice_in_dim(k, lo + move, lo + move + n, axis=1)


def _between_zeros(
    k: Float[Array, "count n"], lo: int, hi: int
) -> Float[Array, "count extended"]:
    # Faster than `jnp.pad`, of which XLA on CPU makes a loop over single numbers.
    zeros = lambda m: jnp.zeros((len(k), m), k.dtype)
    return jnp.concatenate([zeros(lo), k, zeros(hi)], 1)


def _product(masks: Sequence[Array], shape: Sequence[int], out: Sequence[int]) -> Array:
    """The product of masks of each dimension, as an array of some shape."""
    along = []
    for dim, mask in enumerate(masks):
        axes = [1] * len(out)
        axes[dim] = mask.shape[1]
        along.append(mask.reshape(mask.shape[0], *axes))
    full = ft.reduce(jnp.multiply, along)
    return jnp.broadcast_to(full, (shape[0], *out)).reshape(shape)
