"""Kernels of networks with pooling over windows, by distances up to there."""

import dataclasses
import functools as ft
import itertools as it
import math
from collections.abc import Sequence

import jax
import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ._covariance import Covariance, Pairs
from ._distances import around, at_distances, split_at
from ._entries import AbstractEntry, Entry
from ._kernel import Kernel
from ._layer import AbstractLayer, check, infinite
from ._layers.pooling import AbstractPool
from ._shifts import Shifts


# Of a single entry, for workers to share. Not as many as there are, so that the order of
# additions is the same on all machines.
_PARTS = 4


@dataclasses.dataclass(frozen=True)
class PooledWindowsEntry(AbstractEntry):
    r"""One entry of the matrices, if pooling is over windows that tile the positions.

    Layers up to there are evaluated at some distances $a$ at a time, see `Shifts`, and
    each is added to the sums over windows that it contributes to,

    $$
    k'(P, Q) = v^2 \sum_{d, d'} k(w P + d, w Q + d'),
    \qquad a = w (Q - P) + d' - d.
    $$

    So there are never arrays of all pairs of positions that are not pooled.

    - `entry`: the same from all pairs of positions at once.
    - `index`: which of its layers is the pooling.
    - `step`: how far apart inputs are of positions that are neighbours before pooling.
    - `out`: the shape of these.
    - `windows`, `weight`: the shape of windows, and $v^2$.
    - `channels`: of the pooled outputs.
    - `marginal`: whether covariances of each input with itself are needed.
    - `count`: the number of parts.
    """

    entry: Entry
    index: int
    step: tuple[int, ...]
    out: tuple[int, ...]
    windows: tuple[int, ...]
    weight: float
    channels: int
    marginal: bool
    count: int

    @property
    def parts(self):
        # Distances along all dimensions but the last one, of which all are at once.
        others = self.out[:-1]
        starts = np.array([*it.product(*map(range, others))], np.int32)
        each = math.prod(others) // self.count
        return list(starts.reshape(self.count, each, len(others)))

    def part(self, arrays, x1, x2, part):
        head, *_ = around(self.entry.net(arrays), self.index)
        of = lambda x1, x2, ntk: self._sums(head, x1, x2, ntk, part)
        total = of(x1, x2, self.entry.ntk)
        if x2 is None:
            return (total,)
        own = (of(x, None, False) if self.marginal else None for x in (x1, x2))
        return total, *own

    def finish(self, arrays, total):
        *_, rest = around(self.entry.net(arrays), self.index)
        (nngp, *ntk), *own = jax.tree.map(self._all_pairs, total)
        kernel = Kernel(
            nngp,
            ntk[0] if ntk else None,
            *([k and k[0] for k in own] or (None, None)),
            alone=not own,
            channels=self.channels,
        )
        out = infinite(rest, kernel.restrict(rest.requires(self.entry.demand)))
        out = out.restrict(self.entry.demand)
        return out.nngp, out.ntk

    @property
    def _pooled(self) -> tuple[int, ...]:
        return tuple(n // w for n, w in zip(self.out, self.windows, strict=True))

    def _sums(
        self,
        head: AbstractLayer,
        x1: Float[Array, "*spatial channels"],
        x2: Float[Array, "*spatial channels"] | None,
        ntk: bool,
        starts: Int[Array, "n others"],
    ) -> tuple[Float[Array, "*distances_and_positions"], ...]:
        """What some distances contribute to pooled NNGP and NTK, at pooled distances."""
        step = np.array(self.step, np.int32)

        def add(total: tuple[Array, ...], start: Int[Array, " others"]):
            at = jnp.concatenate([start, jnp.zeros(1, start.dtype)]) * step
            shifts = Shifts(at, self.step[-1], self.out[-1])
            kernel = at_distances(head, x1, x2, ntk, shifts)
            new = [k.array for k in (kernel.nngp, kernel.ntk) if k is not None]
            one = ft.partial(_add_windows, start=start, windows=self.windows)
            return tuple(map(one, total, new)), None

        zeros = jnp.zeros(2 * self._pooled, x1.dtype)
        return lax.scan(add, (zeros,) * (1 + ntk), starts)[0]

    def _all_pairs(self, total: Float[Array, "*distances_and_positions"]) -> Covariance:
        """From pooled distances `A` and positions `P` to pairs `(P, P + A)`."""
        shape, size = self._pooled, math.prod(self._pooled)
        p = np.stack(np.unravel_index(np.arange(size), shape))
        distances = (p[:, None, :] - p[:, :, None]) % np.reshape(shape, (-1, 1, 1))
        index = np.ravel_multi_index(tuple(distances), shape)
        k = total.reshape(size, size)[index, np.arange(size)[:, None]]
        return Covariance(self.weight * k.reshape(2 * shape), Pairs.ALL)


def _add_windows(
    total: Float[Array, "*distances_and_positions"],
    k: Float[Array, "count *spatial"],
    start: Int[Array, " others"],
    windows: Sequence[int],
) -> Float[Array, "*distances_and_positions"]:
    """Adds what belongs to the distances of `start`, and to all along the last dimension.

    Of the window's offset `d` in the first input, distances `a` belong to the pooled
    distance `(a + d) // w`.
    """
    w, *others = windows[-1], *windows[:-1]
    moved = [jnp.roll(k[..., d::w], d, 0) for d in range(w)]
    k = ft.reduce(jnp.add, moved)
    k = k.reshape(len(k) // w, w, *k.shape[1:]).sum(1)
    ndim = len(windows)
    for offsets in it.product(*map(range, others)):
        positions = [slice(d, None, w) for d, w in zip(offsets, others, strict=True)]
        new = k[:, *positions]
        each = zip(offsets, others, range(ndim - 1), strict=True)
        at = [(start[i] + d) // w % total.shape[i] for d, w, i in each]
        index = (*at, *[jnp.zeros((), start.dtype)] * (ndim + 1))
        new = new.reshape((1,) * (ndim - 1) + new.shape)
        old = lax.dynamic_slice(total, index, new.shape)
        total = lax.dynamic_update_slice(total, old + new, index)
    return total


def to_pooled_windows(
    entry: Entry, net: AbstractLayer, x: jax.ShapeDtypeStruct, most: int
) -> PooledWindowsEntry | None:
    """The entries of a network with such pooling. Arguments as those of `by_distances`."""
    split = split_at(net, x, AbstractPool)
    if split is None:
        return None
    pool, out, spatial = split.layer, split.before, split.signal.spatial
    tiling = _tiling(pool.matrices(out.spatial))
    size = math.prod(spatial) * spatial[-1] * x.dtype.itemsize
    if tiling is None or size > most:
        return None
    windows, weight = tiling
    n = math.prod(out.spatial[:-1])
    return PooledWindowsEntry(
        entry,
        split.index,
        split.step,
        out.spatial,
        windows,
        weight,
        check(pool, out).channels,
        split.rest.requires(entry.demand).marginal != Pairs.NONE,
        next(c for c in range(min(_PARTS, n), 0, -1) if n % c == 0),
    )


def _tiling(matrices: Sequence[np.ndarray]) -> tuple[tuple[int, ...], float] | None:
    """Windows and the weight of pairs, if windows are next to each other and alike."""
    windows, weight = [], 1.0
    for matrix in matrices:
        out, n = matrix.shape
        window, value = n // out, float(matrix[0, 0])
        if not np.array_equal(matrix, np.kron(np.eye(out), np.full((1, window), value))):
            return None
        windows.append(window)
        weight *= value**2
    return tuple(windows), weight
