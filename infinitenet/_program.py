"""Functions without the Python that made them."""

import functools as ft
import itertools as it
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.extend.core as jex
from jaxtyping import PyTree


# Functions under `jit` of this name have arrays of their own of bounded size, however large
# a tile is. If they were counted, tiles would be tiny.
_BOUNDED = "bounded"

# Equations that pass on what they are given as it is, other than loops and branches.
_CALLS = ("jit", "pjit", "custom_jvp_call")


class Program:
    """A function for arguments of some shapes."""

    def __init__(self, fn: Callable[..., PyTree], *args: PyTree):
        flat, structure = jax.tree.flatten(args)
        self._first = len(jax.tree.leaves(args[0]))
        self.jaxpr, shapes = jax.make_jaxpr(
            lambda *flat: fn(*jax.tree.unflatten(structure, flat)), return_shape=True
        )(*flat)
        run, self.out = jex.jaxpr_as_fun(self.jaxpr), jax.tree.structure(shapes)
        # One that does nothing is not worth a call.
        self.run: Any = jax.jit(run) if self.jaxpr.eqns else run

    def __call__(self, *args: PyTree) -> PyTree:
        return jax.tree.unflatten(self.out, self.run(*jax.tree.leaves(args)))

    @ft.cached_property
    def largest_array(self) -> int:
        """Bytes of the largest array that is computed on the way."""
        return self._largest(first=0)

    @ft.cached_property
    def largest_of_others(self) -> int:
        """The same, of arrays that depend on other arguments than the first one.

        If these are axes of `vmap`, then only such arrays are.
        """
        return self._largest(first=self._first)

    def _largest(self, first: int) -> int:
        varies = [i >= first for i in range(len(self.jaxpr.in_avals))]
        return max(_variables_bytes(self.jaxpr.jaxpr, varies))


def _variables_bytes(jaxpr: jex.Jaxpr, varies: Sequence[bool]) -> Iterator[int]:
    """Of all variables that depend on inputs which vary."""
    varying = set(it.compress(jaxpr.invars, varies))
    for eqn in jaxpr.eqns:
        given = [isinstance(v, jex.Var) and v in varying for v in eqn.invars]
        if not any(given):
            continue
        varying.update(eqn.outvars)
        for variable in eqn.outvars:
            aval: Any = variable.aval
            if hasattr(aval, "dtype"):
                yield math.prod(aval.shape) * aval.dtype.itemsize
        if eqn.params.get("name") == _BOUNDED:
            continue
        is_call = eqn.primitive.name in _CALLS
        for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(inner):
                inner = inner.jaxpr if isinstance(inner, jex.ClosedJaxpr) else inner
                inside = given if is_call else [True] * len(inner.invars)
                yield from _variables_bytes(inner, inside)


def _is_jaxpr(value: object) -> bool:
    return isinstance(value, jex.ClosedJaxpr | jex.Jaxpr)
