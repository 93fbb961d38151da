"""Kernel matrices as one computation, which can be transformed."""

import jax
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import PyTree

from ._batch import batch_size, shape_of_one
from ._entries import Entry, entry_of, one, Pair, program_of
from ._kernel import Demand
from ._layer import AbstractLayer
from ._mesh import on_all_devices
from ._tiles import choose_area, to_memory


def traced_gram(
    net: AbstractLayer,
    x1: PyTree,
    x2: PyTree | None,
    ntk: bool,
    demand: Demand,
    memory: int | None,
) -> Pair:
    """Entries between inputs, or of some with themselves if `x2` is `None`."""
    x1, x2 = on_all_devices((x1, x2))
    arrays, entry = entry_of(net, ntk, demand)
    area = _area(entry, arrays, x1, x1 if x2 is None else x2, memory)
    return _by_rows(entry, arrays, x1, x2, area)


def traced_diagonal(
    net: AbstractLayer, x: PyTree, ntk: bool, demand: Demand, memory: int | None
) -> Pair:
    """The kernel of each input with itself."""
    x = on_all_devices(x)
    arrays, entry = entry_of(net, ntk, demand)
    return _diagonal_by_rows(entry, arrays, x, _area(entry, arrays, x, x, memory))


def _area(entry: Entry, arrays: PyTree, x1: PyTree, x2: PyTree, memory: int | None) -> int:
    program = program_of(entry, one, arrays, shape_of_one(x1), shape_of_one(x2), None)
    return choose_area(program.largest_of_pairs, to_memory(memory))


def _by_rows(
    entry: Entry, arrays: PyTree, x1: PyTree, x2: PyTree | None, area: int
) -> Pair:
    """One differentiable computation, the memory of which is that of `area` entries."""
    columns = x1 if x2 is None else x2
    n1, n2 = batch_size(x1), batch_size(columns)

    def row(x1: PyTree) -> Pair:
        one = jax.checkpoint(lambda x2: entry(arrays, x1, x2))
        if n2 <= area:
            return jax.vmap(one)(columns)
        return lax.map(one, columns, batch_size=area)

    out = lax.map(row, x1, batch_size=min(max(area // n2, 1), n1))
    if x2 is not None:
        return out
    index = jnp.arange(n1)
    diagonal = _diagonal_by_rows(entry, arrays, x1, area)
    return jax.tree.map(lambda k, k0: k.at[index, index].set(k0), out, diagonal)


def _diagonal_by_rows(entry: Entry, arrays: PyTree, x: PyTree, area: int) -> Pair:
    one = jax.checkpoint(lambda x: entry(arrays, x, None))
    return lax.map(one, x, batch_size=min(area, batch_size(x)))
