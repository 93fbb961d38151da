"""The kernel of a pair of inputs between positions at some distances."""

import dataclasses
import itertools as it
import math
from collections.abc import Iterable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ._covariance import Pairs
from ._kernel import Demand, Kernel
from ._layer import AbstractLayer, check, infinite
from ._layers.sequential import Sequential
from ._shifts import Shifts
from ._signal import Signal, signal_of


# Variances are needed besides, which are covariances at equal positions too.
_EQUAL = Demand(Pairs.SAME, Pairs.SAME)

_of_inputs = eqx.filter_jit(
    lambda x1, x2, demand, ntk, shifts: Kernel.of_inputs(
        x1, x2, demand, ntk=ntk, shifts=shifts
    )
)


@eqx.filter_jit
def _with_equal(kernel: Kernel, same: Kernel | None) -> Kernel:
    """Replaces entries at equal positions, if they are there.

    Without `same`, by those of the first input, which are the same of NNGP.
    """
    shifts = kernel.nngp.shifts
    assert shifts is not None
    is_there = jnp.all(shifts.start == 0)

    def replace(k: Float[Array, "count *spatial"], k0: Float[Array, "*spatial"]) -> Array:
        return k.at[0].set(jnp.where(is_there, k0, k[0]))

    arrays = lambda *covariances: [c.array for c in covariances if c is not None]
    of_pair = lambda kernel: arrays(kernel.nngp, kernel.ntk)
    equal = arrays(kernel.cov1) if same is None else of_pair(same)
    return eqx.tree_at(of_pair, kernel, list(map(replace, of_pair(kernel), equal)))


def at_distances(
    net: AbstractLayer,
    x1: Float[Array, "*spatial channels"],
    x2: Float[Array, "*spatial channels"] | None,
    ntk: bool,
    shifts: Shifts,
) -> Kernel:
    """After layers that keep distances, of two inputs, or of one with itself."""
    second = x1 if x2 is None else x2
    kernel = infinite(net, _of_inputs(x1, second, _EQUAL, ntk, shifts))
    if x2 is not None:
        return kernel
    # At equal positions it is exact then: see `Kernel.alone`.
    alone = infinite(net, _of_inputs(x1, None, _EQUAL, ntk, None)) if ntk else None
    return _with_equal(kernel, alone)


def around(net: AbstractLayer, index: int) -> tuple[Sequential, Any, Sequential]:
    """The layers before one of them, that one, and those after it.

    Layers of sequences in a sequence are counted as if they were in one.
    """
    layers = list(_flat([net]))
    return Sequential(layers[:index]), layers[index], Sequential(layers[index + 1 :])


def _flat(layers: Iterable[AbstractLayer]) -> Iterator[AbstractLayer]:
    for layer in layers:
        if isinstance(layer, Sequential):
            yield from _flat(layer.layers)
        else:
            yield layer


@dataclasses.dataclass(frozen=True)
class Split:
    """A network around one of its layers, up to which distances are kept.

    - `index`: which one `layer` is, before the layers `rest`.
    - `step`: how far apart inputs are of positions that are neighbours before it.
    - `signal`, `before`: of the inputs, and of what that layer is given.
    """

    index: int
    layer: Any
    rest: Sequential
    step: tuple[int, ...]
    signal: Signal
    before: Signal


def split_at(
    net: AbstractLayer, x: jax.ShapeDtypeStruct, kind: type[AbstractLayer]
) -> Split | None:
    """Around the first layer of a kind, if those before it keep distances."""
    kinds = [isinstance(layer, kind) for layer in _flat([net])]
    if True not in kinds:
        return None
    index = kinds.index(True)
    head, layer, rest = around(net, index)
    signal: Any = signal_of(x)
    check(net, signal)
    before, step = head.check(signal), head.step(signal)
    if not isinstance(before, Signal) or not before.spatial or step is None:
        return None
    if head.requires(Demand()).cross != Pairs.SAME:
        return None
    return Split(index, layer, rest, step, signal, before)


#
# Sums over all distances
#


# Bytes of arrays of several distances, of which few pairs of images still fill a cache.
_AT_ONCE = 2**18


@dataclasses.dataclass(frozen=True)
class Distances:
    """All distances between positions, some at a time.

    - `step`: how far apart inputs are of positions that are neighbours.
    - `out`: the shape of positions.
    - `count`: how many distances there are at a time.
    """

    step: tuple[int, ...]
    out: tuple[int, ...]
    count: int

    @staticmethod
    def of(split: Split, most: int) -> "Distances":
        """Of positions before a layer, at as many distances as arrays of `most` bytes."""
        last, signal = split.before.spatial[-1], split.signal
        counts = [c for c in range(1, last + 1) if last % c == 0]
        size = math.prod(signal.spatial) * signal.dtype.itemsize
        at_once = min(_AT_ONCE, most) // size
        count = max((c for c in counts if c <= at_once), default=1)
        return Distances(split.step, split.before.spatial, count)

    @property
    def parts(self) -> list[tuple[np.ndarray, np.int32]]:
        """Where some distances start, and how often they are to be counted."""
        return [self._part(a, 1) for a in self._starts]

    @property
    def parts_alone(self) -> list[tuple[np.ndarray, np.int32]]:
        """The same for sums of which distances -a contribute as much as a."""

        # One of them, twice.
        def weight(a: tuple[int, ...]) -> int:
            others = a[:-1]
            opposite = tuple(-i % n for i, n in zip(others, self.out[:-1], strict=True))
            return 1 + (others < opposite) - (others > opposite)

        return [self._part(a, weight(a)) for a in self._starts if weight(a)]

    def shifts(self, start: Int[Array, " ndim"]) -> Shifts:
        """Those of a part."""
        return Shifts(start, self.step[-1], self.count)

    @property
    def _starts(self) -> list[tuple[int, ...]]:
        along = [range(n) for n in self.out[:-1]] + [range(0, self.out[-1], self.count)]
        return list(it.product(*along))

    def _part(self, start: tuple[int, ...], weight: int) -> tuple[np.ndarray, np.int32]:
        return np.multiply(start, self.step).astype(np.int32), np.int32(weight)
