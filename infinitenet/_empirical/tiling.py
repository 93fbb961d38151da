"""Empirical kernels tile by tile, or over the devices of a mesh."""

import functools as ft
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.extend.core as jex
import jax.lax as lax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, PyTree

from .._batch import batch_of_one, batch_size, first_of, shape_of_one
from .._compiler import parallel_convolutions
from .._mesh import auto_mesh
from .._progress import Progress
from .._tiles import cut, empty, starts, to_memory, write_tile
from .abstract import of_shapes
from .axes import Axes, in_single
from .factors import AbstractFactor
from .features import Features
from .methods import AbstractNTKMethod, forward
from .model import Unit


# Of the NNGP and of the NTK, if asked for: for each array of outputs, a kernel of shape
# `(n1, n2, full, full, diagonal)`.
Kernels = tuple[list[Array] | None, list[Array] | None]


class Task(eqx.Module):
    """What is to be computed of pairs of units."""

    unit: Unit
    axes: tuple[Axes, ...] = eqx.field(static=True)
    nngp: bool = eqx.field(static=True)
    method: AbstractNTKMethod | None
    # Shapes of a unit of either side, if these differ.
    shapes: tuple[PyTree, ...] = ()

    def half(self, x: PyTree) -> tuple[list[Features] | None, PyTree]:
        """What can be computed of units by themselves."""
        if self.method is None:
            return self._outputs(x), None
        half = self.method.half(self.unit, x, self.axes, self.shapes)
        if not self.nngp:
            return None, half
        known = _leaves(half, Features)
        # Outputs of the forward pass that derivatives start from.
        return [Features(f.outputs, []) for f in known] or self._outputs(x), half

    def _outputs(self, x: PyTree) -> list[Features]:
        outs = jax.vmap(lambda x: self.unit(self.unit.weights, x))(x)
        leaves = [in_single(out) for out in jax.tree.leaves(outs)]
        zipped = zip(leaves, self.axes, strict=True)
        return [
            Features(axes.split(f.reshape(len(f), -1), f.shape[1:]), [])
            for f, axes in zipped
        ]

    def pairs(self, half1: PyTree, half2: PyTree) -> Kernels:
        """The kernels of all pairs."""
        nngp = ntk = None
        if self.nngp:
            nngp = [a.nngp(b) for a, b in zip(half1[0], half2[0], strict=True)]
        if self.method is not None:
            ntk = self.method.pairs(self.unit, half1[1], half2[1], self.axes)
        return nngp, ntk


#
# Sizes of tiles
#


class Sizes(NamedTuple):
    """How many units have their halves computed at once, and how many make a tile."""

    at_once: int
    side: int


def choose_sizes(task: Task, xs: list[PyTree], memory: Any) -> Sizes:
    """Sizes for units such as the first ones of `xs`, for some bytes of memory.

    **Raises:** `ValueError` if that does not suffice for one pair of units.
    """
    memory = to_memory(memory)
    each = [_bytes(task, shape_of_one(x)) for x in xs]
    needed = _Bytes(*map(max, zip(*each, strict=True)))
    quarter = memory / 4
    side = min(quarter / needed.half, math.sqrt(quarter / needed.pair))
    if side < 1 or quarter < needed.pass_:
        least = 4 * max(needed.half, needed.pair, needed.pass_)
        raise ValueError(
            f"`memory` must be at least {least} bytes for this model and these inputs, but "
            f"it is {int(memory)}. Use `trace_axes` or `diagonal_axes`, or the method "
            "`NTKVectorProducts()`, which takes the least."
        )
    return Sizes(max(int(quarter / needed.pass_), 1), int(side))


class _Bytes(NamedTuple):
    half: int
    pair: int
    pass_: int


@of_shapes
def _bytes(task: Task, one: PyTree) -> _Bytes:
    """Bytes for the half of a unit, for a pair of units, and for the passes of a unit."""

    def pair(task: Task, x: PyTree) -> PyTree:
        half = task.half(batch_of_one(x))
        return half, task.pairs(half, half)

    halves, kernels = eqx.filter_eval_shape(pair, task, one)
    between = sum(_between(f) for f in _leaves(halves, AbstractFactor))
    jaxpr, n_outputs = forward(task.unit, one)
    # Products of outputs take no backward passes.
    passes = 1 if task.method is None else n_outputs
    return _Bytes(
        max(_nbytes(halves), 1),
        max(_nbytes(kernels) + between, 1),
        max(passes * _intermediates(jaxpr), 1),
    )


def _leaves(tree: PyTree, kind: type) -> list[Any]:
    is_kind = lambda node: isinstance(node, kind)
    return [leaf for leaf in jax.tree.leaves(tree, is_leaf=is_kind) if is_kind(leaf)]


def _nbytes(tree: PyTree) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _between(factor: AbstractFactor) -> int:
    """Bytes of what is in between when two factors are multiplied."""
    return factor.scratch() * jax.tree.leaves(factor)[0].dtype.itemsize


def _intermediates(jaxpr: jex.Jaxpr) -> int:
    """Bytes of all arrays on the way, which derivatives may need."""
    total = 0
    for eqn in jaxpr.eqns:
        for v in eqn.outvars:
            aval: Any = v.aval
            if hasattr(aval, "dtype"):
                total += math.prod(aval.shape) * aval.dtype.itemsize
    return total


#
# Outside of transformations: tile after tile
#


@ft.cache
def _half() -> Callable[[Any, PyTree, PyTree], PyTree]:
    """A task's half, as a program; the task itself is taken apart."""

    def half(static: Any, arrays: PyTree, x: PyTree) -> PyTree:
        leaves, structure = static
        return eqx.combine(jax.tree.unflatten(structure, leaves), arrays).half(x)

    return jax.jit(half, static_argnums=0, compiler_options=parallel_convolutions())


def _halves(task: Task, x: PyTree, at_once: int) -> PyTree:
    """One part after the other: on CPUs, convolutions in compiled loops are slow."""
    n = batch_size(x)
    size = -(-n // -(-n // at_once))
    # `eqx.filter_jit` would wait for each: so both sides of a tile are computed together.
    arrays, static = eqx.partition(task, eqx.is_array)
    leaves, structure = jax.tree.flatten(static)
    half = ft.partial(_half(), (tuple(leaves), structure), arrays)
    parts = [half(cut(x, i, min(size, n - i))) for i in range(0, n, size)]
    if len(parts) == 1:
        return parts[0]
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *parts)


def by_tiles(
    task: Task, x1: PyTree, x2: PyTree | None, sizes: Sizes, report: Progress
) -> Kernels:
    """The halves of some rows are kept, while those of all columns are computed."""
    columns = x1 if x2 is None else x2
    n1, n2 = batch_size(x1), batch_size(columns)
    rows, width = (-(-m // -(-m // min(m, sizes.side))) for m in (n1, n2))
    if x2 is None:
        width = rows
    make = lambda x, start, size: _halves(task, cut(x, start, size), sizes.at_once)
    out = None
    for row in starts(n1, rows):
        half1 = make(x1, row, rows)
        for column in starts(n2, width):
            if x2 is None and column < row:
                continue
            report(row * n2 + column * rows, n1 * n2)
            same = x2 is None and column == row
            half2 = half1 if same else make(columns, column, width)
            tile = task.pairs(half1, half2)
            out = empty(tile, n1, n2) if out is None else out
            if same:
                tile = _symmetric(tile)
            out = write_tile(out, tile, row, column)
            if x2 is None and not same:
                out = write_tile(out, _mirrored(tile), column, row)
            # What is computed must not queue up in memory.
            jax.block_until_ready(out)
    assert out is not None
    report(n1 * n2, n1 * n2)
    return out


@jax.jit
def _mirrored(kernels: Kernels) -> Kernels:
    return jax.tree.map(_mirror, kernels)


def _mirror(k: Array) -> Array:
    return k.transpose(1, 0, 3, 2, 4)


@jax.jit
def _symmetric(kernels: Kernels) -> Kernels:
    return jax.tree.map(lambda k: (k + _mirror(k)) / 2, kernels)


#
# Under transformations: one computation
#


def _half_in_parts(task: Task, x: PyTree, at_once: int) -> PyTree:
    if batch_size(x) <= at_once:
        return task.half(x)
    one = lambda x: first_of(task.half(batch_of_one(x)))
    return lax.map(one, x, batch_size=at_once)


def by_rows(task: Task, x1: PyTree, x2: PyTree | None, sizes: Sizes) -> Kernels:
    """One computation, of which parts are done one after the other."""
    columns = x1 if x2 is None else x2
    n1, n2 = batch_size(x1), batch_size(columns)
    if max(n1, n2) <= sizes.side:
        half1 = _half_in_parts(task, x1, sizes.at_once)
        same = x2 is None
        half2 = half1 if same else _half_in_parts(task, columns, sizes.at_once)
        out = task.pairs(half1, half2)
    else:
        side = min(sizes.side, sizes.at_once)

        def row(x1: PyTree) -> Kernels:
            half1 = task.half(batch_of_one(x1))
            half2 = lambda x2: task.half(batch_of_one(x2))
            one = lambda x2: first_of(first_of(task.pairs(half1, half2(x2))))
            return lax.map(one, columns, batch_size=min(side, n2))

        out = lax.map(row, x1, batch_size=max(min(side // n2, n1), 1))
    return _symmetric(out) if x2 is None else out


@eqx.filter_jit
def by_pairs(task: Task, x1: PyTree, x2: PyTree | None, sizes: Sizes) -> Kernels:
    """The kernels of each unit with one other: arrays of a first axis only."""

    def one(pair: tuple[PyTree, PyTree]) -> Kernels:
        half1 = task.half(batch_of_one(pair[0]))
        half2 = half1 if x2 is None else task.half(batch_of_one(pair[1]))
        return first_of(first_of(task.pairs(half1, half2)))

    at_once = max(1, min(sizes.side, sizes.at_once, batch_size(x1)))
    return lax.map(one, (x1, x1 if x2 is None else x2), batch_size=at_once)


#
# Over devices
#


def by_devices(
    task: Task,
    x1: PyTree,
    x2: PyTree | None,
    sizes: Sizes,
    mesh: jax.sharding.Mesh,
    paired: bool,
) -> Kernels:
    """Rows over the first axis of a mesh, columns over the second, if there is one."""
    columns = x1 if x2 is None else x2
    n1, n2 = batch_size(x1), batch_size(columns)
    names = mesh.axis_names
    row, column = names[0], names[1] if len(names) > 1 and not paired else None
    mesh = auto_mesh(mesh)
    # Pairs are spread like rows.
    specs = PartitionSpec(row), PartitionSpec(row if paired else column)
    arrays, static = eqx.partition(task, eqx.is_array)

    def shard(arrays: PyTree, x1: PyTree, x2: PyTree) -> Kernels:
        task = eqx.combine(arrays, static)
        return (by_pairs if paired else by_rows)(task, x1, x2, sizes)

    program = jax.shard_map(
        shard,
        mesh=mesh,
        in_specs=(PartitionSpec(), *specs),
        out_specs=specs[0] if paired else PartitionSpec(row, column),
        check_vma=False,
    )
    place = lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec))
    x1, columns = (
        place(_padded(x, 1 if spec[0] is None else mesh.shape[spec[0]]), spec)
        for x, spec in zip((x1, columns), specs, strict=True)
    )
    out = jax.jit(program)(place(arrays, PartitionSpec()), x1, columns)
    size = (slice(n1),) if paired else (slice(n1), slice(n2))
    return jax.tree.map(lambda k: k[size], out)


def _padded(x: PyTree, devices: int) -> PyTree:
    """The last example repeated, up to a multiple of the number of devices."""
    more = -batch_size(x) % devices
    pad = lambda x: jnp.concatenate([x, jnp.repeat(x[-1:], more, axis=0)])
    return jax.tree.map(pad, x) if more else x


def joined(
    kernels: list[Float[Array, "..."]],
    shapes: list[tuple[tuple[int, ...], tuple[int, ...]]],
    axes: tuple[Axes, ...],
) -> list[Array]:
    """Kernels with both indices of each axis of outputs side by side."""
    zipped = zip(kernels, shapes, axes, strict=True)
    return [each.join(k, *shape) for k, shape, each in zipped]
