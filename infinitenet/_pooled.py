"""Kernels of networks with global pooling, from a few distances of positions at a time."""

import dataclasses

import jax

from ._distances import around, at_distances, Distances, split_at
from ._entries import Entry
from ._kernel import Demand
from ._layer import AbstractLayer, infinite
from ._layers.pooling import AbstractGlobalPool
from ._sum_of_distances import AbstractSumOfDistances


@dataclasses.dataclass(frozen=True)
class PooledEntry(AbstractSumOfDistances):
    r"""One entry of the matrices, as a sum over distances $a$ of positions:

    $$
    \sum_{p, q} w_p w_q\, k(p, q) = \sum_a \sum_p w_p w_{p + a}\, k(p, p + a).
    $$

    Layers before pooling keep distances, see `Shifts`, and strides leave out most distances
    of the layers before them.

    - `entry`: the same from all pairs of positions at once.
    - `index`: which of its layers is the pooling.
    - `distances`: between the positions that are pooled.
    """

    entry: Entry
    index: int
    distances: Distances

    def part(self, arrays, x1, x2, part):
        head, pool, _ = around(self.entry.net(arrays), self.index)
        start, weight = part
        kernel = at_distances(head, x1, x2, self.entry.ntk, self.distances.shifts(start))
        total = infinite(pool, kernel.restrict(Demand()))
        # What comes after it is told, such as dropout.
        total = dataclasses.replace(total, alone=x2 is None)
        times = lambda k: weight.astype(k.dtype) * k
        return jax.tree.map(times, total)

    def finish(self, arrays, total):
        *_, rest = around(self.entry.net(arrays), self.index)
        out = infinite(rest, total).restrict(self.entry.demand)
        return out.nngp, out.ntk


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
    return PooledEntry(entry, split.index, Distances.of(split, most))
