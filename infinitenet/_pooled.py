"""Kernels of networks with global pooling, from a few distances of positions at a time."""

import dataclasses
import functools as ft
import itertools as it
import math
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from ._covariance import Pairs
from ._distances import at_distances, flat_layers, Uncompared
from ._entries import AbstractEntry, Entry
from ._kernel import Demand
from ._layer import AbstractLayer, check, infinite
from ._layers.pooling import AbstractGlobalPool
from ._layers.sequential import Sequential
from ._shifts import Shifts
from ._signal import Signal, signal_of


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
        layers = self._layers(arrays)
        head, pool = Sequential(layers[: self.index]), layers[self.index]
        start, weight = part
        shifts = Shifts(start, self.step[-1], self.count)
        kernel = at_distances(head, x1, x2, self.entry.ntk, shifts)
        total = infinite(pool, kernel.restrict(Demand()))
        times = lambda k: weight.astype(k.dtype) * k
        return jax.tree.map(times, total)

    def finish(self, arrays, total):
        rest = Sequential(self._layers(arrays)[self.index + 1 :])
        out = infinite(rest, total).restrict(self.entry.demand)
        return out.nngp, out.ntk

    def _layers(self, arrays: PyTree) -> list[AbstractLayer]:
        return flat_layers(self.entry.net(arrays))


# Bytes of arrays of several distances, of which few pairs of images still fill a cache.
_AT_ONCE = 2**18


def to_pooled(
    entry: Entry, arrays: PyTree, x: PyTree[jax.ShapeDtypeStruct], most: int
) -> PooledEntry | None:
    """The entries of a network, if it is one with pooling of which this is true.

    **Arguments:**

    - `entry`, `arrays`: the entries from all pairs of positions, and its arrays.
    - `x`: the shape of an example.
    - `most`: bytes that an array of some distances may take.
    """
    if not isinstance(x, jax.ShapeDtypeStruct):
        return None
    return _cached(entry, Uncompared(arrays), x, most)


# Looking at all layers takes longer than computing kernels of a few images.
@ft.lru_cache(maxsize=256)
def _cached(
    entry: Entry, uncompared: Uncompared, x: jax.ShapeDtypeStruct, most: int
) -> PooledEntry | None:
    net = entry.net(uncompared.arrays)
    layers = flat_layers(net)
    kinds = [isinstance(layer, AbstractGlobalPool) for layer in layers]
    if True not in kinds:
        return None
    index = kinds.index(True)
    signal: Any = signal_of(x)
    check(net, signal)
    head, rest = Sequential(layers[:index]), Sequential(layers[index + 1 :])
    pooled = head.check(signal)
    if not isinstance(pooled, Signal) or not pooled.spatial:
        return None
    step = head.step(signal)
    # A nonlinearity after pooling would need pooled variances.
    if step is None or rest.requires(entry.demand).marginal:
        return None
    if head.requires(Demand()).cross != Pairs.SAME:
        return None
    out = pooled.spatial
    counts = [c for c in range(1, out[-1] + 1) if out[-1] % c == 0]
    size = math.prod(signal.spatial) * x.dtype.itemsize
    at_once = min(_AT_ONCE, most) // size
    count = max((c for c in counts if c <= at_once), default=1)
    return PooledEntry(entry, index, step, out, count)
