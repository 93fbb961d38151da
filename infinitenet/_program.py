"""Functions without the Python that made them."""

import functools as ft
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.extend.core as jex
from jaxtyping import PyTree

from ._compiler import wide_vectors


# Functions under `jit` of this name have arrays of their own of bounded size, however large
# a tile is. If they were counted, tiles would be tiny.
_BOUNDED = "bounded"

# Equations that pass on what they are given as it is, other than loops and branches.
_CALLS = ("jit", "pjit", "custom_jvp_call")


class Program:
    """A function for arguments of some shapes, which returns arrays such as `out`."""

    def __init__(self, fn: Callable[..., PyTree], *args: PyTree):
        flat, structure = jax.tree.flatten(args)
        self._sizes = [len(jax.tree.leaves(arg)) for arg in args]
        self.jaxpr, self.out = jax.make_jaxpr(
            lambda *flat: fn(*jax.tree.unflatten(structure, flat)), return_shape=True
        )(*flat)
        self.run: Any = jex.jaxpr_as_fun(self.jaxpr)
        self._structure = jax.tree.structure(self.out)
        # One that does nothing is not worth a call.
        if self.jaxpr.eqns:
            self.run = jax.jit(self.run, compiler_options=wide_vectors())

    def __call__(self, *args: PyTree) -> PyTree:
        return jax.tree.unflatten(self._structure, self.run(*jax.tree.leaves(args)))

    @ft.cached_property
    def largest_array(self) -> int:
        """Bytes of the largest array that is computed on the way."""
        return self._largest([{0}] * len(self._sizes), bool)

    @ft.cached_property
    def largest_of_pairs(self) -> int:
        """The same, of arrays that depend both on the second and on the third argument.

        In a matrix of such pairs, there are fewer of all others.
        """
        return self._largest(self._second_and_third, lambda sources: len(sources) == 2)

    @ft.cached_property
    def largest_of_one(self) -> int:
        """The same, of those that depend on one of these two only."""
        return self._largest(self._second_and_third, lambda sources: len(sources) == 1)

    @property
    def _second_and_third(self) -> list[set[int]]:
        return [set(), {1}, {2}, *[set()] * (len(self._sizes) - 3)]

    def _largest(
        self, sources: Sequence[set[int]], is_meant: Callable[[set[int]], bool]
    ) -> int:
        inputs = [s for s, n in zip(sources, self._sizes, strict=True) for _ in range(n)]
        return max(_variables_bytes(self.jaxpr.jaxpr, inputs, is_meant), default=1)


def _variables_bytes(
    jaxpr: jex.Jaxpr,
    inputs: Sequence[set[int]],
    is_meant: Callable[[set[int]], bool],
) -> Iterator[int]:
    """Of those variables that depend on the sources which are meant, as inputs do."""
    sources: dict[Any, set[int]] = dict(zip(jaxpr.invars, inputs, strict=True))
    for eqn in jaxpr.eqns:
        given = [sources.get(v, set()) if _is_variable(v) else set() for v in eqn.invars]
        union = set().union(*given)
        sources.update(dict.fromkeys(eqn.outvars, union))
        if not union:
            continue
        for variable in eqn.outvars:
            aval: Any = variable.aval
            if is_meant(union) and hasattr(aval, "dtype"):
                yield math.prod(aval.shape) * aval.dtype.itemsize
        if eqn.params.get("name") == _BOUNDED:
            continue
        for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(inner):
                inner = inner.jaxpr if isinstance(inner, jex.ClosedJaxpr) else inner
                is_call = eqn.primitive.name in _CALLS
                within = given if is_call else [union] * len(inner.invars)
                yield from _variables_bytes(inner, within, is_meant)


def _is_variable(value: object) -> bool:
    return isinstance(value, jex.Var)


def _is_jaxpr(value: object) -> bool:
    return isinstance(value, jex.ClosedJaxpr | jex.Jaxpr)
