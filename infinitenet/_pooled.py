"""Kernels of networks with global pooling, from a few distances of positions at a time."""

import dataclasses
import itertools as it
import math

import jax
import numpy as np

from ._distances import around, at_distances, split_at
from ._entries import AbstractEntry, Entry
from ._kernel import Demand
from ._layer import AbstractLayer, infinite
from ._layers.pooling import AbstractGlobalPool
from ._shifts import Shifts


@dataclasses.dataclass(frozen=True)
class PooledEntry(AbstractEntry):
    r"""One entry of the matrices, as a sum over distances $a$ of positions:

    $$
    \sum_{p, q} w_p w_q\, k(p, q) = \sum_a \sum_p w_p w_{p + a}\, k(p, p + a).
    $$

    Layers before pooling keep distances, see `Shifts`, and strides leave out most distances
    of the layers before them.

    - `entry`: the same from all pairs of positions at once.
    - `index`: which of its layers is the pooling.
    - `step`: how far apart inputs are of positions that are neighbours when pooled.
    - `out`: the shape of positions that are pooled.
    - `count`: how many distances are evaluated at a time.
    """

    entry: Entry
    index: int
    step: tuple[int, ...]
    out: tuple[int, ...]
    count: int

    @property
    def parts(self):
        return [self._part(a, 1) for a in self._distances]

    @property
    def parts_alone(self):
        # Distances -a contribute as much as a: one of them, twice.
        def weight(a: tuple[int, ...]) -> int:
            others = a[:-1]
            opposite = tuple(-i % n for i, n in zip(others, self.out[:-1], strict=True))
            return 1 + (others < opposite) - (others > opposite)

        return [self._part(a, weight(a)) for a in self._distances if weight(a)]

    @property
    def _distances(self) -> list[tuple[int, ...]]:
        along = [range(n) for n in self.out[:-1]] + [range(0, self.out[-1], self.count)]
        return list(it.product(*along))

    def _part(self, distances: tuple[int, ...], weight: int) -> tuple[np.ndarray, np.int32]:
        return np.multiply(distances, self.step).astype(np.int32), np.int32(weight)

    def part(self, arrays, x1, x2, part):
        head, pool, _ = around(self.entry.net(arrays), self.index)
        start, weight = part
        shifts = Shifts(start, self.step[-1], self.count)
        kernel = at_distances(head, x1, x2, self.entry.ntk, shifts)
        total = infinite(pool, kernel.restrict(Demand()))
        # What comes after it is told, such as dropout.
        total = dataclasses.replace(total, alone=x2 is None)
        times = lambda k: weight.astype(k.dtype) * k
        return jax.tree.map(times, total)

    def finish(self, arrays, total):
        *_, rest = around(self.entry.net(arrays), self.index)
        out = infinite(rest, total).restrict(self.entry.demand)
        return out.nngp, out.ntk


# Bytes of arrays of several distances, of which few pairs of images still fill a cache.
_AT_ONCE = 2**18


def to_pooled(
    entry: Entry, net: AbstractLayer, x: jax.ShapeDtypeStruct, most: int
) -> PooledEntry | None:
    """The entries of a network, if it is one with global pooling of which this is true.

    Arguments are as those of `by_distances`.
    """
    split = split_at(net, x, AbstractGlobalPool)
    # A nonlinearity after pooling would need pooled variances.
    if split is None or split.rest.requires(entry.demand).marginal:
        return None
    out = split.before.spatial
    counts = [c for c in range(1, out[-1] + 1) if out[-1] % c == 0]
    size = math.prod(split.signal.spatial) * x.dtype.itemsize
    at_once = min(_AT_ONCE, most) // size
    count = max((c for c in counts if c <= at_once), default=1)
    return PooledEntry(entry, split.index, split.step, out, count)
