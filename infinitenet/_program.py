"""Functions without the Python that made them."""

import functools as ft
from collections.abc import Callable
from typing import Any

import jax
import jax.extend.core as jex
from jaxtyping import PyTree

from ._flow_of_arrays import Flow, Flows, Sources


# The arguments of a function of two inputs that are these.
_PAIR = frozenset({1, 2})


class Program:
    """A function for arguments of some shapes, which returns arrays such as `out`."""

    def __init__(self, fn: Callable[..., PyTree], *args: PyTree):
        flat, structure = jax.tree.flatten(args)
        self._sizes = [len(jax.tree.leaves(arg)) for arg in args]
        self.jaxpr, self.out = jax.make_jaxpr(
            lambda *flat: fn(*jax.tree.unflatten(structure, flat)), return_shape=True
        )(*flat)
        self._function: Any = jex.jaxpr_as_fun(self.jaxpr)
        # One that does nothing is not worth a call.
        self.run: Any = jax.jit(self._function) if self.jaxpr.eqns else self._function
        self._structure = jax.tree.structure(self.out)

    def __call__(self, *args: PyTree) -> PyTree:
        return jax.tree.unflatten(self._structure, self.run(*jax.tree.leaves(args)))

    def inline(self, *args: PyTree) -> PyTree:
        """The same, as a part of what is being traced."""
        return jax.tree.unflatten(self._structure, self._function(*jax.tree.leaves(args)))

    @property
    def largest_array(self) -> int:
        """Bytes of the largest array that is computed on the way."""
        return self._largest(bool)

    @property
    def largest_of_pairs(self) -> int:
        """The same, of arrays that depend both on the second and on the third argument.

        In a matrix of such pairs, there are fewer of all others.
        """
        return self._largest(lambda sources: len(sources & _PAIR) == 2)

    @property
    def largest_of_one(self) -> int:
        """The same, of those that depend on one of these two only."""
        return self._largest(lambda sources: len(sources & _PAIR) == 1)

    def _largest(self, is_meant: Callable[[Sources], bool]) -> int:
        sizes = (size for sources, size in self._flow.largest.items() if is_meant(sources))
        return max(sizes, default=1)

    @ft.cached_property
    def _flow(self) -> Flow:
        given = [frozenset({i}) for i, n in enumerate(self._sizes) for _ in range(n)]
        return Flows().of(self.jaxpr.jaxpr, given)
