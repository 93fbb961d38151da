"""How much work the kernel of a network takes at least: operations, and bytes of memory.

It is counted by a walk over the layers, of which only shapes matter: nothing is computed.
Each layer computes those covariances between positions that later layers need, once:

- Networks with `Flatten` need those of equal positions, pooling needs all pairs.
- With strides, not all pairs: outputs at `p, q` come from inputs at `s p + d, s q + d`,
  the offset of which is a multiple of the strides `s`. Up to the next pooling layer this
  holds for all layers before, too.
- Nonlinearities need the variances of each example, at every position: that is little,
  unless pooling comes before. Then it takes all pairs of positions of each example with
  itself, one half of them by symmetry.

`COSTS` has the operations per covariance of a layer. A tile's arrays are read and written
once by each layer, if those of a single pair of examples do not fit into the cache;
otherwise only inputs and results are.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

import infinitenet as inn


BYTES = 4  # Of a number in single precision.


#
# Pairs of positions
#

# Along each dimension, offsets of pairs are multiples of this: 1 for all pairs, 0 for
# those of equal positions.
Steps = tuple[int, ...]


class Need(NamedTuple):
    """Pairs of positions of the covariances between two inputs, and of each with itself."""

    cross: Steps
    marginal: Steps | None = None

    def map(self, fn: Callable[[Steps], Steps]) -> "Need":
        return Need(fn(self.cross), None if self.marginal is None else fn(self.marginal))


def union(a: Steps | None, b: Steps | None) -> Steps | None:
    """Returns steps that reach the pairs of both."""
    if a is None or b is None:
        return a if b is None else b
    return tuple(math.gcd(x, y) for x, y in zip(a, b, strict=True))


def n_pairs(spatial: Sequence[int], steps: Steps) -> int:
    """Returns the number of pairs of positions."""

    def along(n: int, step: int) -> int:
        if step == 0:
            return n
        return sum(len(range(start, n, step)) ** 2 for start in range(step))

    return math.prod(along(n, step) for n, step in zip(spatial, steps, strict=True))


#
# A walk over the layers
#


class Step(NamedTuple):
    """A layer, its shapes and the pairs at its input and output, so many times over."""

    layer: Any
    spatial: tuple[int, ...]
    out_spatial: tuple[int, ...]
    need: Need
    out_need: Need
    times: int = 1


class Joined(NamedTuple):
    """In place of a layer: the sum of so many branches."""

    branches: int


def walk(layer: Any, signal: Any, need: Need) -> tuple[Need, list[Step]]:
    """Returns what a layer must be given for `need`, and all simple layers within it."""
    if isinstance(layer, inn.Sequential):
        return _walk_sequence(layer.layers, signal, need)
    if isinstance(layer, inn.Repeat):
        return _walk_repeated(layer, signal, need)
    if isinstance(layer, inn.Residual):
        return _walk_branches([layer.branch, layer.shortcut], signal, need)
    if isinstance(layer, inn.Sum):
        return _walk_branches(layer.layers, signal, need)
    if isinstance(layer, inn.Identity):
        return need, []
    given = _needs(layer, signal, need)
    out = layer.check(signal).spatial
    return given, [Step(layer, signal.spatial, out, given, need)]


def _walk_sequence(
    layers: Sequence[Any], signal: Any, need: Need
) -> tuple[Need, list[Step]]:
    signals, steps = [signal], []
    for layer in layers:
        signals.append(layer.check(signals[-1]))
    for layer, before in zip(reversed(layers), reversed(signals[:-1]), strict=True):
        need, new = walk(layer, before, need)
        steps = new + steps
    return need, steps


def _walk_repeated(layer: Any, signal: Any, need: Need) -> tuple[Need, list[Step]]:
    # The last one may be given less than the others; those need the same.
    last, steps = walk(layer.layer, signal, need)
    if layer.times == 1:
        return last, steps
    first, others = walk(layer.layer, signal, last)
    assert first == last, "A layer which is repeated needs more and more."
    return first, [s._replace(times=s.times * (layer.times - 1)) for s in others] + steps


def _walk_branches(
    branches: Sequence[Any], signal: Any, need: Need
) -> tuple[Need, list[Step]]:
    needs, steps = zip(*(walk(branch, signal, need) for branch in branches), strict=True)
    given = needs[0]
    for other in needs[1:]:
        cross = union(given.cross, other.cross)
        assert cross is not None
        given = Need(cross, union(given.marginal, other.marginal))
    out = branches[0].check(signal).spatial
    joined = Step(Joined(len(branches)), out, out, need, need)
    return given, [*(step for branch in steps for step in branch), joined]


def _needs(layer: Any, signal: Any, need: Need) -> Need:
    """Returns what a simple layer must be given."""
    ndim = len(signal.spatial)
    equal, every = (0,) * ndim, (1,) * ndim
    if isinstance(layer, inn.Dense):
        return need
    if isinstance(layer, inn.Conv):
        strides = layer.strides or every
        scale = lambda steps: tuple(s * n for s, n in zip(strides, steps, strict=True))
        return need.map(scale)
    if isinstance(layer, inn.AbstractPointwise):
        marginal = union(need.marginal, equal)
        return Need(need.cross, marginal)
    if isinstance(layer, inn.Flatten):
        return need.map(lambda steps: equal)
    if isinstance(layer, POOLING):
        return need.map(lambda steps: every)
    if isinstance(layer, inn.SelfAttention):
        # What is attended to depends on the covariances of each input with itself.
        return Need(every, every)
    raise NotImplementedError(f"It is not known what {type(layer).__name__} needs.")


POOLING = (inn.AvgPool, inn.SumPool, inn.GlobalAvgPool, inn.GlobalSumPool)


#
# Costs
#


@dataclasses.dataclass(frozen=True)
class Work:
    """Covariances, operations on single numbers and within matrix products, and bytes."""

    covariances: float = 0.0
    arithmetic: float = 0.0
    products: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Work(*(a + b for a, b in pairs))

    def __mul__(self, factor: float) -> "Work":
        return Work(*(factor * a for a in dataclasses.astuple(self)))


class Cost(NamedTuple):
    """Operations for each covariance of the output: of the NNGP, and of the NTK too.

    A root or a division counts as four operations, all others as one.
    """

    nngp: float
    ntk: float


# Correlation 2, clipped 2; arc cosine 24, by a polynomial of degree 7 times a root; sine
# 6; dual 5. NTK: derivative 2, product 1.
_ANGLE = Cost(39, 3)
# Scaled correlation 2; arc sine 24; dual 1. NTK: inverse root 10, products 3.
_ARC_SINE = Cost(27, 13)
# Scaled by the variance of weights, and that of biases, or the NNGP, added.
_AFFINE = Cost(2, 2)

COSTS = {
    inn.Relu: _ANGLE,
    inn.LeakyRelu: _ANGLE,
    inn.ABRelu: _ANGLE,
    inn.Abs: _ANGLE,
    inn.Erf: _ARC_SINE,
    inn.SigmoidLike: _ARC_SINE,
    inn.Dense: _AFFINE,
}


def _per_covariance(step: Step) -> Cost:
    """Returns operations per covariance of the output, those of attention aside."""
    layer, dims = step.layer, len(step.spatial)
    if isinstance(layer, Joined):
        return Cost(layer.branches - 1, layer.branches - 1)
    if isinstance(layer, inn.Conv):
        # Sums over the window along one dimension after the other.
        additions = sum(size - 1 for size in layer.filter_shape)
        return Cost(additions + _AFFINE.nngp, additions + _AFFINE.ntk)
    if isinstance(layer, inn.Flatten):
        size = math.prod(step.spatial)
        return Cost(size, size)
    if isinstance(layer, POOLING):
        windows = getattr(layer, "window_shape", step.spatial)
        out = step.out_spatial or (1,) * dims
        return _pooling(windows, step.spatial, out)
    if isinstance(layer, inn.SelfAttention):
        return Cost(1, 2)
    if type(layer) not in COSTS:
        raise NotImplementedError(f"No cost is known of {type(layer).__name__}.")
    return COSTS[type(layer)]


def _pooling(windows: Sequence[int], spatial: Sequence[int], out: Sequence[int]) -> Cost:
    """Sums along one axis of the pairs after the other, of which fewer and fewer remain."""
    left, total = math.prod(spatial) ** 2, 0.0
    for window, n, m in 2 * list(zip(windows, spatial, out, strict=True)):
        left = left * m // n
        total += left * (window - 1)
    additions = total / math.prod(out) ** 2
    return Cost(additions + 1, additions + 1)


# Exponential and division of the softmax, per pair of positions of each example.
_SOFTMAX = 20


def _attention(step: Step, n1: int, n2: int) -> Work:
    """Products of the covariances with what is attended to, from either side."""
    size = math.prod(step.spatial)
    arrays = 2 * n1 * n2 + (n1 + n2 if step.out_need.marginal is not None else 0)
    return Work(
        arithmetic=_SOFTMAX * (n1 + n2) * size**2,
        products=arrays * 2 * 2 * size**3,
    )


def _of_marginals(spatial: Sequence[int], steps: Steps | None, n: int) -> float:
    """Returns the number of covariances of each example with itself."""
    if steps is None:
        return 0
    return n * (n_pairs(spatial, steps) + math.prod(spatial)) / 2


def work_of_step(step: Step, n1: int, n2: int, cache: float) -> Work:
    """Returns what a layer takes, for two batches of examples."""
    cost = _per_covariance(step)
    cross = n_pairs(step.out_spatial, step.out_need.cross)
    marginal = _of_marginals(step.out_spatial, step.out_need.marginal, n1 + n2)
    total = n1 * n2 * cross
    out = Work(
        covariances=total + marginal,
        arithmetic=total * (cost.nngp + cost.ntk) + marginal * cost.nngp,
    )
    # NNGP and NTK, of inputs and outputs.
    entry = 2 * BYTES * (n_pairs(step.spatial, step.need.cross) + cross)
    if entry > cache:
        out += Work(bytes=n1 * n2 * entry)
    if isinstance(step.layer, inn.SelfAttention):
        out += _attention(step, n1, n2)
    return out * step.times


def _of_inputs(shape: Sequence[int], need: Need, n1: int, n2: int) -> Iterator[Work]:
    *spatial, channels = shape
    total = n1 * n2 * n_pairs(spatial, need.cross)
    total += _of_marginals(spatial, need.marginal, n1 + n2)
    yield Work(covariances=total, products=2 * channels * total)
    yield Work(bytes=BYTES * ((n1 + n2) * math.prod(shape) + 2 * n1 * n2))


def count(net: Any, shape: Sequence[int], n1: int, n2: int, cache: float) -> Work:
    """Returns what NNGP and NTK of a network take, between two batches of examples.

    Arrays of a pair of examples stay in a cache of so many bytes.
    """
    signal = inn.Signal(tuple(shape), np.dtype(np.float32))
    need, steps = walk(net, signal, Need(()))
    works = [work_of_step(step, n1, n2, cache) for step in steps]
    return sum([*works, *_of_inputs(shape, need, n1, n2)], Work())
