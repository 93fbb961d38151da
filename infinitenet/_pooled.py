"""Kernels of networks with global pooling, from a few distances of positions at a time."""

import dataclasses
import functools as ft
import itertools as it
import math
from collections.abc import Iterable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ._covariance import Pairs
from ._entries import AbstractEntry
from ._kernel import Demand, Kernel
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

    - `static`: the network without its arrays.
    - `index`: which of its layers is the pooling.
    - `step`: how far apart inputs are of positions that are neighbours when pooled.
    - `out`: the shape of positions that are pooled.
    - `count`: how many distances are evaluated at a time.
    """

    static: PyTree
    ntk: bool
    demand: Demand
    index: int
    step: tuple[int, ...]
    out: tuple[int, ...]
    count: int

    @property
    def parts(self):
        along = [range(n) for n in self.out[:-1]] + [range(0, self.out[-1], self.count)]
        return [np.multiply(a, self.step).astype(np.int32) for a in it.product(*along)]

    def part(self, arrays, x1, x2, part):
        layers = self._layers(arrays)
        head, pool = Sequential(layers[: self.index]), layers[self.index]
        shifts = Shifts(part, self.step[-1], self.count)
        second = x1 if x2 is None else x2
        kernel = infinite(head, _of_inputs(x1, second, _EQUAL, self.ntk, shifts))
        if x2 is None:
            # At equal positions it is exact then: see `Kernel.alone`.
            same = infinite(head, _of_inputs(x1, None, _EQUAL, self.ntk, None))
            kernel = _with_equal(kernel, same)
        return infinite(pool, kernel.restrict(Demand()))

    def finish(self, arrays, total):
        rest = Sequential(self._layers(arrays)[self.index + 1 :])
        out = infinite(rest, total).restrict(self.demand)
        return out.nngp, out.ntk

    def _layers(self, arrays: PyTree) -> list[AbstractLayer]:
        net, _ = eqx.combine(arrays, self.static)
        return list(_flat([net]))


# Bytes of arrays of several distances, of which few pairs of images still fill a cache.
_AT_ONCE = 2**18

# Variances are needed besides, which are covariances at equal positions too.
_EQUAL = Demand(Pairs.SAME, Pairs.SAME)

_of_inputs = eqx.filter_jit(
    lambda x1, x2, demand, ntk, shifts: Kernel.of_inputs(
        x1, x2, demand, ntk=ntk, shifts=shifts
    )
)


@eqx.filter_jit
def _with_equal(kernel: Kernel, same: Kernel) -> Kernel:
    """Replaces entries at equal positions, if they are there."""
    shifts = kernel.nngp.shifts
    assert shifts is not None
    is_there = jnp.all(shifts.start == 0)

    def replace(k: Float[Array, "count *spatial"], k0: Float[Array, "*spatial"]) -> Array:
        return k.at[0].set(jnp.where(is_there, k0, k[0]))

    covariances = lambda k: [c.array for c in (k.nngp, k.ntk) if c is not None]
    new = map(replace, covariances(kernel), covariances(same))
    return eqx.tree_at(covariances, kernel, list(new))


def _flat(layers: Iterable[AbstractLayer]) -> Iterator[AbstractLayer]:
    """Layers in one sequence, of sequences in a sequence."""
    for layer in layers:
        if isinstance(layer, Sequential):
            yield from _flat(layer.layers)
        else:
            yield layer


def to_pooled(
    net: AbstractLayer,
    static: PyTree,
    ntk: bool,
    demand: Demand,
    x: PyTree[jax.ShapeDtypeStruct],
    most: int,
) -> PooledEntry | None:
    """The entries of a network, if it is one with pooling of which this is true.

    **Arguments:**

    - `net`, `static`: the network, and what is not arrays of it.
    - `ntk`, `demand`: as of [`infinitenet.gram`][].
    - `x`: the shape of an example.
    - `most`: bytes that an array of some distances may take.
    """
    if not isinstance(x, jax.ShapeDtypeStruct):
        return None
    return _cached_pooled(_Uncompared(net), static, ntk, demand, x, most)


@dataclasses.dataclass(frozen=True)
class _Uncompared:
    """A network of which the static part is all that matters, and compared elsewhere."""

    net: AbstractLayer = dataclasses.field(compare=False)


# Looking at all layers takes longer than computing kernels of a few images.
@ft.lru_cache(maxsize=256)
def _cached_pooled(
    uncompared: _Uncompared,
    static: PyTree,
    ntk: bool,
    demand: Demand,
    x: jax.ShapeDtypeStruct,
    most: int,
) -> PooledEntry | None:
    net = uncompared.net
    layers = list(_flat([net]))
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
    if step is None or rest.requires(demand).marginal:
        return None
    if head.requires(Demand()).cross != Pairs.SAME:
        return None
    out = pooled.spatial
    counts = [c for c in range(1, out[-1] + 1) if out[-1] % c == 0]
    size = math.prod(signal.spatial) * x.dtype.itemsize
    at_once = min(_AT_ONCE, most) // size
    count = max((c for c in counts if c <= at_once), default=1)
    return PooledEntry(static, ntk, demand, index, step, out, count)
