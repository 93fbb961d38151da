"""Kernels of networks with global pooling of attention, by distances up to there."""

import dataclasses
import functools as ft
import math
from typing import Any

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from ._compiler import apart
from ._covariance import Covariance, Pairs
from ._distances import around, at_distances, Distances, split_at
from ._entries import Entry, program_of
from ._kernel import Demand, Kernel
from ._layer import AbstractLayer, infinite
from ._layers.attention import SelfAttention
from ._layers.pooling import AbstractGlobalPool
from ._layers.sequential import Sequential
from ._sum_of_distances import AbstractSumOfDistances


@dataclasses.dataclass(frozen=True)
class PooledAttentionEntry(AbstractSumOfDistances):
    r"""One entry of the matrices, if attention with linear scaling is pooled at once.

    What is attended to, $G_i$, is of each input alone. With weights $w$ of positions

    $$
    \sum_{p, q} w_p w_q\, (G_1 k G_2^\top)(p, q) = \sum_a \sum_p u_1(p)\, u_2(p + a)\,
        k(p, p + a), \qquad u_i = G_i^\top w.
    $$

    Parts take each input together with its $u$, which is computed once for all of them.

    - `entry`: the same from all pairs of positions at once.
    - `index`: which of its layers is the attention.
    - `distances`: between the positions that are attended to.
    """

    entry: Entry
    index: int
    distances: Distances

    def inputs(self, arrays, x):
        return x, program_of(self, _weights_of_all, arrays, x)(arrays, x)

    def part(self, arrays, x1, x2, part):
        head, *_ = around(self.entry.net(arrays), self.index)
        (x1, u1), (x2, u2) = x1, (None, x1[1]) if x2 is None else x2
        start, times = part
        shifts = self.distances.shifts(start)
        kernel = at_distances(head, x1, x2, self.entry.ntk, shifts)
        total = _weighted_sum(kernel.restrict(Demand()), u1, u2, times)
        # What comes after it is told, such as dropout.
        return dataclasses.replace(total, alone=x2 is None)

    def finish(self, arrays, total):
        _, attention, rest = around(self.entry.net(arrays), self.index)
        pool, rest = _first(rest)
        positions = self.distances.out
        weights = math.prod(positions) * pool.weight_of_each(positions)
        out = attention.summed(total, weights)
        out = infinite(rest, out).restrict(self.entry.demand)
        return out.nngp, out.ntk

    def weights(
        self, arrays: PyTree, x: Float[Array, "*spatial channels"]
    ) -> Float[Array, "*out"]:
        """$u$ of one input."""
        head, attention, rest = around(self.entry.net(arrays), self.index)
        demand = head.requires(_ALL)
        kernel = infinite(head, _of_input(x, demand)).restrict(_ALL)
        weight = _first(rest)[0].weight_of_each(self.distances.out)
        return _attended(attention, kernel, weight).reshape(self.distances.out)


def _weights_of_all(
    entry: PooledAttentionEntry, arrays: PyTree, x: Float[Array, "n *spatial channels"]
) -> Float[Array, "n *out"]:
    # One by one, so that rounding does not depend on how many there are.
    return lax.map(ft.partial(entry.weights, arrays), x)


_ALL = Demand(Pairs.ALL)

_of_input = eqx.filter_jit(lambda x, demand: Kernel.of_inputs(x, None, demand, ntk=False))


@apart
def _attended(
    attention: SelfAttention, kernel: Kernel, weight: float
) -> Float[Array, " positions"]:
    G = attention.attended(kernel, kernel.nngp, kernel.positions1)
    return jnp.dot(jnp.full(len(G), weight, G.dtype), G, precision=lax.Precision.HIGHEST)


@apart
def _weighted_sum(
    kernel: Kernel,
    u1: Float[Array, "*spatial"],
    u2: Float[Array, "*spatial"],
    times: Int[Array, ""],
) -> Kernel:
    first, second = kernel.nngp.align(u1, u2)
    weights = times.astype(kernel.dtype) * first * second

    def total(k11: None, k12: Covariance, k22: None) -> Covariance:
        del k11, k22
        # By a matrix product: a sum of many terms in sequence loses digits.
        out = jnp.vdot(weights, k12.array, precision=lax.Precision.HIGHEST)
        return Covariance(out, Pairs.SAME)

    return kernel.propagate(total)


def _first(layers: Sequential) -> tuple[Any, Sequential]:
    """The first layer, and those after it."""
    first, *rest = layers.layers
    return first, Sequential(rest)


def to_pooled_attention(
    entry: Entry, net: AbstractLayer, x: jax.ShapeDtypeStruct, most: int
) -> PooledAttentionEntry | None:
    """The entries of a network with such attention. Arguments are as of `by_distances`."""
    split = split_at(net, x, SelfAttention)
    if split is None or not split.layer.is_linear or not split.rest.layers:
        return None
    pool, rest = _first(split.rest)
    # A nonlinearity after pooling would need pooled variances.
    if not isinstance(pool, AbstractGlobalPool) or rest.requires(entry.demand).marginal:
        return None
    # All pairs of positions of a single input.
    if math.prod(split.signal.spatial) ** 2 * x.dtype.itemsize > most:
        return None
    return PooledAttentionEntry(entry, split.index, Distances.of(split, most))
