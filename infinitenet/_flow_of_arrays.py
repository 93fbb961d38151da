"""What the arrays of a function depend on, and how large they are."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax.extend.core as jex

from ._tracing import is_traced


# Functions under `jit` of this name have arrays of their own of bounded size, however large
# a tile is. If they were counted, tiles would be tiny.
_BOUNDED = "bounded"

# Equations that pass on what they are given as it is, other than loops and branches.
_CALLS = ("jit", "pjit", "custom_jvp_call")

# The arguments of a function that something depends on, by their numbers.
Sources: TypeAlias = frozenset[int]

_NOTHING: Sources = frozenset()


def check_closure(values: Sequence[Any]) -> None:
    """**Raises:** `ValueError` if a function closes over what is traced elsewhere."""
    if is_traced(values):
        raise ValueError(
            "`net` has a function that uses a value which `jax.jit`, `jax.grad` or "
            "`jax.vmap` is tracing, where it cannot be seen. Make the value a field of an "
            "`equinox.Module`, of which `__call__` is the function."
        )


class Flow(NamedTuple):
    """Through a function.

    - `results`: what each of them depends on.
    - `largest`: bytes of the largest array on the way, of those with the same sources.
    """

    results: list[Sources]
    largest: dict[Sources, int]


class Flows:
    """Those of a function and of all that it calls: each is looked at once for the same
    sources of its arguments."""

    def __init__(self):
        self._known: dict[tuple[jex.Jaxpr, tuple[Sources, ...]], Flow] = {}

    def of(self, jaxpr: jex.Jaxpr, given: Sequence[Sources]) -> Flow:
        key = jaxpr, tuple(given)
        if key not in self._known:
            self._known[key] = self._through(jaxpr, given)
        return self._known[key]

    def _through(self, jaxpr: jex.Jaxpr, given: Sequence[Sources]) -> Flow:
        sources: dict[Any, Sources] = dict(zip(jaxpr.invars, given, strict=True))
        largest: dict[Sources, int] = {}
        # Constants are no variables, and depend on nothing.
        of = lambda vs: [
            sources.get(v, _NOTHING) if isinstance(v, jex.Var) else _NOTHING for v in vs
        ]
        for eqn in jaxpr.eqns:
            results, within = self._of_equation(eqn, of(eqn.invars))
            sources.update(zip(eqn.outvars, results, strict=True))
            sizes = list(within.items())
            for v, s in zip(eqn.outvars, results, strict=True):
                aval: Any = v.aval
                if s and hasattr(aval, "dtype"):
                    sizes.append((s, math.prod(aval.shape) * aval.dtype.itemsize))
            _keep_largest(largest, sizes)
        return Flow(of(jaxpr.outvars), largest)

    def _of_equation(self, eqn: jex.JaxprEqn, given: list[Sources]) -> Flow:
        union = _NOTHING.union(*given)
        results, largest = [union] * len(eqn.outvars), {}
        for inner in _functions(eqn) if union else ():
            if eqn.primitive.name in _CALLS:
                results, within = self.of(inner, given)
            elif eqn.primitive.name == "scan":
                results, within = self._of_loop(eqn, inner, given)
            else:
                _, within = self.of(inner, [union] * len(inner.invars))
            _keep_largest(largest, within.items())
        return Flow(results, {} if eqn.params.get("name") == _BOUNDED else largest)

    def _of_loop(self, eqn: jex.JaxprEqn, step: jex.Jaxpr, given: list[Sources]) -> Flow:
        """Of one that passes some variables on from each step to the next one."""
        first, n = eqn.params["num_consts"], eqn.params["num_carry"]
        while True:
            flow = self.of(step, given)
            each = zip(given[first : first + n], flow.results[:n], strict=True)
            carried = [a | b for a, b in each]
            if carried == given[first : first + n]:
                return flow
            given = given[:first] + carried + given[first + n :]


def _keep_largest(
    largest: dict[Sources, int], sizes: Iterable[tuple[Sources, int]]
) -> None:
    """Notes what is larger than all before it of the same sources."""
    for sources, size in sizes:
        largest[sources] = max(largest.get(sources, 0), size)


def _functions(eqn: jex.JaxprEqn) -> Iterator[jex.Jaxpr]:
    """Those that an equation calls.

    **Raises:** `ValueError` for one whose dependence is not in its arguments alone.
    """
    for value in eqn.params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            if isinstance(one, jex.ClosedJaxpr):
                check_closure(one.consts)
                yield one.jaxpr
            elif isinstance(one, jex.Jaxpr):
                yield one
