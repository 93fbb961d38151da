"""Entries of kernel matrices as functions, and as programs."""

import abc
import dataclasses
import functools as ft
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from ._batch import over_examples
from ._compiler import apart
from ._covariance import Covariance, Pairs
from ._kernel import Demand, Kernel
from ._layer import AbstractLayer
from ._program import Program
from ._weights import without_weights


Pair: TypeAlias = tuple[Covariance, Covariance | None]


class AbstractEntry(abc.ABC):
    """One entry of the matrices, as a function that can be told from others.

    It is a sum of parts, after which something may be left to do.
    """

    @property
    @abc.abstractmethod
    def parts(self) -> Sequence[Any]:
        """What tells the parts from each other: arrays of the same shapes."""

    @property
    def parts_alone(self) -> Sequence[Any]:
        """Those of the kernel of an input with itself, if these are others."""
        return self.parts

    @property
    def is_whole(self) -> bool:
        """Whether nothing is left to do after the sum."""
        return False

    def inputs(self, arrays: PyTree, x: PyTree) -> PyTree:
        """A batch of what parts take, of which some may be computed once for all parts."""
        del arrays
        return x

    @abc.abstractmethod
    def part(self, arrays: PyTree, x1: PyTree, x2: PyTree | None, part: Any) -> PyTree:
        """One of them, of a pair of inputs, or of an input with itself."""

    @abc.abstractmethod
    def finish(self, arrays: PyTree, total: PyTree) -> Pair:
        """The entry, given the sum of all."""


@dataclasses.dataclass(frozen=True, eq=False)
class Entry(AbstractEntry):
    """An entry that is a single part.

    There is one of all that are equal: see `entry_of`.

    - `structure`, `rest`: of a network, and the variance of inputs if all have the same.
        In place of its arrays `rest` has `None`.
    """

    structure: Any
    rest: tuple[Any, ...]
    ntk: bool
    demand: Demand

    @property
    def parts(self):
        return [None]

    @property
    def is_whole(self):
        return True

    def part(self, arrays, x1, x2, part):
        del part
        return self(arrays, x1, x2)

    def finish(self, arrays, total):
        del arrays
        return total

    def net(self, arrays: PyTree) -> AbstractLayer:
        """The network."""
        return self._combine(arrays)[0]

    def __call__(self, arrays: PyTree, x1: PyTree, x2: PyTree | None) -> Pair:
        net, variance = self._combine(arrays)
        kernel = net.kernel(x1, x2, ntk=self.ntk, demand=self.demand, variance=variance)
        if not isinstance(kernel, Kernel):
            raise ValueError("`net` must end in one array: add `FanInSum` after branches.")
        return kernel.nngp, kernel.ntk

    def _combine(self, arrays: Sequence[Array]) -> tuple[AbstractLayer, Array | None]:
        each = iter(arrays)
        leaves = [next(each) if leaf is None else leaf for leaf in self.rest]
        return jax.tree.unflatten(self.structure, leaves)


def check_arguments(net: object, demand: Demand) -> None:
    """**Raises:** `ValueError` for what is no network, or a demand of nothing."""
    if not isinstance(net, AbstractLayer):
        raise ValueError(f"`net` must be a layer, but it is {net!r}.")
    if demand.cross == Pairs.NONE:
        raise ValueError("`demand.cross` must not be `Pairs.NONE`: nothing would be left.")


def entry_of(
    net: AbstractLayer, ntk: bool, demand: Demand, variance: Float[Array, ""] | None = None
) -> tuple[tuple[Array, ...], Entry]:
    """The arrays of a network, and the rest of it as an entry."""
    leaves, structure = jax.tree.flatten((without_weights(net), variance))
    rest = tuple(None if eqx.is_array(leaf) else leaf for leaf in leaves)
    arrays = tuple(filter(eqx.is_array, leaves))
    if jnp.result_type(float) != jnp.float64:
        # Some may have been made while JAX had float64 enabled.
        arrays = tuple(x.astype(float) if x.dtype == np.float64 else x for x in arrays)
    return arrays, _entry(structure, rest, ntk, demand)


# So caches of what belongs to an entry need not compare networks.
_entry = ft.lru_cache(maxsize=256)(Entry)


#
# Programs for parts of several entries
#


def one(entry: AbstractEntry, arrays: PyTree, x1: PyTree, x2: PyTree, part: Any) -> PyTree:
    return entry.part(arrays, x1, x2, part)


@apart
def pairs(
    entry: AbstractEntry, arrays: PyTree, x1: PyTree, x2: PyTree, part: Any
) -> PyTree:
    of_pair = lambda x1, x2: _traced_once(entry, one, arrays, x1, x2, part)
    row = lambda x1: over_examples(ft.partial(of_pair, x1))(x2)
    return over_examples(row)(x1)


def alone(entry: AbstractEntry, arrays: PyTree, x: PyTree, part: Any) -> PyTree:
    return over_examples(lambda x: entry.part(arrays, x, None, part))(x)


def finish_one(entry: AbstractEntry, arrays: PyTree, total: PyTree) -> Pair:
    return entry.finish(arrays, total)


def finish_pairs(entry: AbstractEntry, arrays: PyTree, total: PyTree) -> Pair:
    return total if entry.is_whole else _finish_pairs(entry, arrays, total)


@apart
def _finish_pairs(entry: AbstractEntry, arrays: PyTree, total: PyTree) -> Pair:
    return over_examples(ft.partial(finish_alone, entry, arrays))(total)


def finish_alone(entry: AbstractEntry, arrays: PyTree, total: PyTree) -> Pair:
    if entry.is_whole:
        return total
    of_one = ft.partial(_traced_once, entry, finish_one, arrays)
    return over_examples(of_one)(total)


def finish_stacks(entry: AbstractEntry, arrays: PyTree, total: PyTree) -> Pair:
    if entry.is_whole:
        return total
    finish = ft.partial(finish_pairs, entry, arrays)
    return over_examples(over_examples(finish))(total)


def finish_tile(
    entry: AbstractEntry, arrays: PyTree, total: PyTree, step: Int[Array, ""]
) -> Pair:
    """Of tiles that are one after the other, one."""
    tile = jax.tree.map(lambda k: jnp.squeeze(k[step], 0), total)
    return finish_pairs(entry, arrays, tile)


def program_of(entry: AbstractEntry, fn: Callable[..., PyTree], *args: PyTree) -> Program:
    leaves, structure = jax.tree.flatten(args)
    shapes = tuple((x.shape, x.dtype) for x in leaves)
    # What else matters to a function that is being traced.
    context = jax.sharding.get_abstract_mesh(), jnp.result_type(float)
    return cached_program(entry, fn, structure, shapes, context)


def _traced_once(entry: AbstractEntry, fn: Callable[..., PyTree], *args: PyTree) -> PyTree:
    """The same as `fn(entry, *args)`, as a part of another program.

    All programs of parts need the function of one, and tracing it takes as long as
    compiling them.
    """
    return program_of(entry, fn, *args).inline(*args)


@ft.partial(jax.jit, donate_argnums=0)
def add(total: PyTree, part: PyTree) -> PyTree:
    return jax.tree.map(jnp.add, total, part)


# Tracing takes longer than running does for small matrices.
@ft.lru_cache(maxsize=256)
def cached_program(
    entry: AbstractEntry,
    fn: Callable[..., PyTree],
    structure: Any,
    shapes: Sequence[tuple[tuple[int, ...], Any]],
    context: tuple[Any, ...],
) -> Program:
    # Only what a program is kept for.
    del context
    structs = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
    return Program(ft.partial(fn, entry), *jax.tree.unflatten(structure, structs))
