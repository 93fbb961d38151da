"""Layers that are alike, one after the other, as a loop."""

import dataclasses
from collections.abc import Hashable, Iterator, Sequence

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import PyTree

from ._kernel import Kernel, Kernels
from ._layer import AbstractLayer, infinite


# Layers that a step of a loop may consist of.
_MAX_PERIOD = 8


def infinite_blocks(blocks: Sequence[AbstractLayer], kernel: Kernels) -> Kernels:
    """The kernel after blocks of layers that are alike, but for values of their arrays.

    As a loop, which is compiled once for all of them.
    """
    blocks = list(blocks)
    kept = None
    # The first ones may still be given more than they pass on.
    while len(blocks) > 1 and (kept := _kept(blocks[0], kernel)) is None:
        kernel = infinite(blocks.pop(0), kernel)
    if kept is None:
        return infinite(blocks[0], kernel)
    kernel, channels = kept
    arrays, static = zip(*(eqx.partition(b, eqx.is_array) for b in blocks), strict=True)
    # What is the same in all is not an array of the loop, so that nothing is done with it
    # in each step.
    columns = zip(*(jax.tree.leaves(a) for a in arrays), strict=True)
    same = [all(a is column[0] for a in column) for column in columns]
    common = jax.tree.unflatten(jax.tree.structure(arrays[0]), same)
    arrays = [eqx.partition(a, common) for a in arrays]
    steps = jax.tree.map(lambda *a: jnp.stack(a), *(own for _, own in arrays))
    out = _loop(steps, (arrays[0][0], static[0]), len(blocks), kernel)
    return _with_channels(out, channels)


@eqx.filter_jit
def _loop(steps: PyTree, common: PyTree, times: int, kernel: Kernels) -> Kernels:
    def step(kernel: Kernels, own: PyTree) -> tuple[Kernels, None]:
        out = infinite(eqx.combine(own, *common), kernel)
        return _with_channels(out, getattr(kernel, "channels", None)), None

    return lax.scan(step, kernel, steps, length=times)[0]


def _kept(block: AbstractLayer, kernel: Kernels) -> tuple[Kernels, int | None] | None:
    """What a loop over such blocks is given, if a kernel is of the same kind after a block.

    And the number of channels after it. If it does not matter to the block how many it is
    given, it is not told: so the first block, which is given another number than the
    others, is in the loop too.
    """
    if not isinstance(kernel, Kernel):
        return (kernel, None) if _is_like(_after(block, kernel), kernel) else None
    unknown = _with_channels(kernel, None)
    try:
        out = _after(block, unknown)
    except Exception:
        # By a layer that must know it.
        out = None
    if isinstance(out, Kernel) and out.channels is not None:
        same = _is_like(_with_channels(out, None), unknown)
        return (unknown, out.channels) if same else None
    same = _is_like(_after(block, kernel), kernel)
    return (kernel, kernel.channels) if same else None


def _after(block: AbstractLayer, kernel: Kernels) -> Kernels:
    """Of the shapes of arrays."""
    return eqx.filter_eval_shape(infinite, block, kernel)


def _is_like(a: Kernels, b: Kernels) -> bool:
    if jax.tree.structure(a) != jax.tree.structure(b):
        return False
    each = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all((a.shape, a.dtype) == (b.shape, b.dtype) for a, b in each)


def _with_channels(kernel: Kernels, channels: int | None) -> Kernels:
    """Of a single kernel: branches stay as they are."""
    if not isinstance(kernel, Kernel):
        return kernel
    return dataclasses.replace(kernel, channels=channels)


def repeats(layers: Sequence[AbstractLayer]) -> Iterator[tuple[int, int, int]]:
    """Groups of layers: where each starts, its period, and how often it is repeated."""
    kinds = [_kind(layer) for layer in layers]
    start = single = 0
    while start < len(layers):
        best = (1, 1)
        for period in range(1, min(_MAX_PERIOD, (len(layers) - start) // 2) + 1):
            times = _times(kinds[start:], period)
            if times > 1 and period * times > best[0] * best[1]:
                best = (period, times)
        end = start + best[0] * best[1]
        if best[1] > 1:
            if single < start:
                yield single, start - single, 1
            yield start, best[0], best[1]
            single = end
        start = end
    if single < start:
        yield single, start - single, 1


def _kind(layer: AbstractLayer) -> object:
    """What layers have in common that differ in values of their arrays only."""
    arrays, static = eqx.partition(layer, eqx.is_array)
    leaves, structure = jax.tree.flatten(arrays)
    # What cannot be hashed, such as arrays of NumPy, may not be told to be equal either.
    rest = [v if isinstance(v, Hashable) else id(v) for v in jax.tree.leaves(static)]
    return structure, jax.tree.structure(static), [(a.shape, a.dtype) for a in leaves], rest


def _times(kinds: Sequence[object], period: int) -> int:
    times = 1
    while kinds[times * period : (times + 1) * period] == kinds[:period]:
        times += 1
    return times
