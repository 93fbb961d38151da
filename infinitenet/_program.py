"""Functions without the Python that made them."""

import functools as ft
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.extend.core as jex
from jaxtyping import PyTree


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
        self._function: Any = jex.jaxpr_as_fun(self.jaxpr)
        # One that does nothing is not worth a call.
        self.run: Any = jax.jit(self._function) if self.jaxpr.eqns else self._function
        self._structure = jax.tree.structure(self.out)

    def __call__(self, *args: PyTree) -> PyTree:
        return jax.tree.unflatten(self._structure, self.run(*jax.tree.leaves(args)))

    def inline(self, *args: PyTree) -> PyTree:
        """The same, as a part of what is being traced."""
        return jax.tree.unflatten(self._structure, self._function(*jax.tree.leaves(args)))

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
        _, arrays = _flow(self.jaxpr.jaxpr, inputs)
        return max((size for s, size in arrays if is_meant(s)), default=1)


# What variables depend on, and bytes of arrays beside that.
_Flow: TypeAlias = tuple[list[set[int]], list[tuple[set[int], int]]]


def _flow(jaxpr: jex.Jaxpr, inputs: Sequence[set[int]]) -> _Flow:
    """Of results, given that of inputs, and of all arrays on the way."""
    sources: dict[Any, set[int]] = dict(zip(jaxpr.invars, inputs, strict=True))
    of = lambda v: sources.get(v, set()) if _is_variable(v) else set()
    arrays: list[tuple[set[int], int]] = []
    for eqn in jaxpr.eqns:
        outs, within = _flow_of(eqn, list(map(of, eqn.invars)))
        sources.update(zip(eqn.outvars, outs, strict=True))
        arrays += within
        for out, s in zip(eqn.outvars, outs, strict=True):
            aval: Any = out.aval
            if s and hasattr(aval, "dtype"):
                arrays.append((s, math.prod(aval.shape) * aval.dtype.itemsize))
    return list(map(of, jaxpr.outvars)), arrays


def _flow_of(eqn: jex.JaxprEqn, given: list[set[int]]) -> _Flow:
    union = set().union(*given)
    outs, arrays = [union] * len(eqn.outvars), []
    if not union:
        return outs, []
    for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=_is_jaxpr):
        if not _is_jaxpr(inner):
            continue
        inner = inner.jaxpr if isinstance(inner, jex.ClosedJaxpr) else inner
        if eqn.primitive.name in _CALLS:
            outs, within = _flow(inner, given)
        elif eqn.primitive.name == "scan":
            outs, within = _flow_of_loop(eqn, inner, given)
        else:
            _, within = _flow(inner, [union] * len(inner.invars))
        arrays += within
    return outs, [] if eqn.params.get("name") == _BOUNDED else arrays


def _flow_of_loop(eqn: jex.JaxprEqn, step: jex.Jaxpr, given: list[set[int]]) -> _Flow:
    """Of a loop that passes some variables on from each step to the next one."""
    first, n = eqn.params["num_consts"], eqn.params["num_carry"]
    while True:
        outs, arrays = _flow(step, given)
        carried = [a | b for a, b in zip(given[first : first + n], outs[:n], strict=True)]
        if carried == given[first : first + n]:
            return outs, arrays
        given = given[:first] + carried + given[first + n :]


def _is_variable(value: object) -> bool:
    return isinstance(value, jex.Var)


def _is_jaxpr(value: object) -> bool:
    return isinstance(value, jex.ClosedJaxpr | jex.Jaxpr)
