"""Functions without the Python that made them."""

import functools as ft
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.extend.core as jex
from jaxtyping import PyTree


# Functions under `jit` of this name have arrays of their own of bounded size, however large
# a tile is. If they were counted, tiles would be tiny.
_BOUNDED = "bounded"


class Program:
    """A function for arguments of some shapes."""

    def __init__(self, fn: Callable[..., PyTree], *args: PyTree):
        flat, structure = jax.tree.flatten(args)
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
        return max(_variables_bytes(self.jaxpr.jaxpr))


def _variables_bytes(jaxpr: jex.Jaxpr) -> Iterator[int]:
    for eqn in jaxpr.eqns:
        for variable in eqn.outvars:
            aval: Any = variable.aval
            if hasattr(aval, "dtype"):
                yield math.prod(aval.shape) * aval.dtype.itemsize
        if eqn.params.get("name") == _BOUNDED:
            continue
        for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=_is_jaxpr):
            if isinstance(inner, jex.ClosedJaxpr):
                yield from _variables_bytes(inner.jaxpr)
            elif isinstance(inner, jex.Jaxpr):
                yield from _variables_bytes(inner)


def _is_jaxpr(value: object) -> bool:
    return isinstance(value, jex.ClosedJaxpr | jex.Jaxpr)
