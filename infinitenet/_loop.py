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
    keeps = len(blocks) > 1 and _keeps(blocks[0], kernel)
    # A loop over two blocks would save nothing.
    if len(blocks) > 2 and not keeps:
        kernel = _with_channels_of_outputs(blocks[0], kernel)
        keeps = _keeps(blocks[0], kernel)
    # The first ones may still be given more than they pass on.
    while len(blocks) > 1 and not keeps:
        kernel = infinite(blocks.pop(0), kernel)
        keeps = len(blocks) > 1 and _keeps(blocks[0], kernel)
    if len(blocks) == 1:
        return infinite(blocks[0], kernel)
    arrays, static = zip(*(eqx.partition(b, eqx.is_array) for b in blocks), strict=True)
    # What is the same in all is not an array of the loop, so that nothing is done with it
    # in each step.
    columns = zip(*(jax.tree.leaves(a) for a in arrays), strict=True)
    same = [all(a is column[0] for a in column) for column in columns]
    common = jax.tree.unflatten(jax.tree.structure(arrays[0]), same)
    arrays = [eqx.partition(a, common) for a in arrays]
    steps = jax.tree.map(lambda *a: jnp.stack(a), *(own for _, own in arrays))
    return _loop(steps, (arrays[0][0], static[0]), len(blocks), kernel)


@eqx.filter_jit
def _loop(steps: PyTree, common: PyTree, times: int, kernel: Kernels) -> Kernels:
    step = lambda kernel, own: (infinite(eqx.combine(own, *common), kernel), None)
    return lax.scan(step, kernel, steps, length=times)[0]


def _with_channels_of_outputs(block: AbstractLayer, kernel: Kernels) -> Kernels:
    """The same kernel to a block for which it does not matter how many channels there are.

    So the first block, which is given another number of them than the others, is in the
    loop too.
    """
    if not isinstance(kernel, Kernel):
        return kernel
    unknown = dataclasses.replace(kernel, channels=None)
    try:
        out = eqx.filter_eval_shape(infinite, block, unknown)
    except Exception:
        # By a layer that must know it.
        return kernel
    if not isinstance(out, Kernel):
        return kernel
    return dataclasses.replace(kernel, channels=out.channels)


def _keeps(block: AbstractLayer, kernel: Kernels) -> bool:
    """Whether the kernel is of the same kind after a block."""
    out = eqx.filter_eval_shape(infinite, block, kernel)
    if jax.tree.structure(out) != jax.tree.structure(kernel):
        return False
    each = zip(jax.tree.leaves(out), jax.tree.leaves(kernel), strict=True)
    return all((a.shape, a.dtype) == (b.shape, b.dtype) for a, b in each)


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
