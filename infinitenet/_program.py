"""Programs that are run piece by piece, without the Python that made them."""

import functools as ft
import itertools as it
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
from jaxtyping import PyTree

from ._compiler import APART


# Functions under `jit` of this name have arrays of their own of bounded size, however large
# a tile is. If they were counted, tiles would be tiny.
_BOUNDED = "bounded"


class Piece(NamedTuple):
    """A part of a program, as a program of its own.

    Variables have numbers: those it reads, those it writes, and those which nothing reads
    any more after it.
    """

    jaxpr: jex.ClosedJaxpr
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    last: frozenset[int] = frozenset()


class Program:
    """A function for arguments of some shapes, without its Python.

    Functions in it that are `apart` are compiled by themselves, whereas `jit` of all of it
    would make one program of them. Equal ones are compiled once.
    """

    def __init__(self, fn: Callable[..., PyTree], *args: PyTree):
        flat, structure = jax.tree.flatten(args)
        closed, shapes = jax.make_jaxpr(
            lambda *flat: fn(*jax.tree.unflatten(structure, flat)), return_shape=True
        )(*flat)
        self.jaxpr, self.out = closed, jax.tree.structure(shapes)
        self.pieces, self.constants, self.returns = _pieces(closed)

    def __call__(self, *args: PyTree) -> PyTree:
        variables = dict(enumerate(jax.tree.leaves(args))) | self.constants
        for piece in self.pieces:
            run = _compiled(piece.jaxpr)
            out = run(*[variables[i] for i in piece.reads])
            variables.update(zip(piece.writes, out, strict=True))
            for i in piece.last:
                del variables[i]
        return jax.tree.unflatten(self.out, [variables[i] for i in self.returns])

    @ft.cached_property
    def largest_array(self) -> int:
        """Bytes of the largest array that is computed on the way."""
        return max(_variables_bytes(self.jaxpr.jaxpr))


# Of all programs, as layers of different networks are often the same.
@ft.lru_cache(maxsize=4096)
def _compiled(jaxpr: jex.ClosedJaxpr) -> Callable[..., Any]:
    return jax.jit(jex.jaxpr_as_fun(jaxpr))


class _Numbers:
    """Variables of a jaxpr by numbers: arguments first, then constants, then others."""

    def __init__(self, closed: jex.ClosedJaxpr):
        self.of: dict[Any, int] = {}
        self.constants: dict[int, Any] = {}
        for variable in closed.jaxpr.invars:
            self.of[variable] = len(self.of)
        for variable, value in zip(closed.jaxpr.constvars, closed.consts, strict=True):
            self.constants[self(variable)] = value

    def __call__(self, atom: Any) -> int:
        if isinstance(atom, jex.Literal):
            # Each is a constant of its own: they have no identity.
            number = len(self.of)
            self.of[object()] = number
            self.constants[number] = atom.val
            return number
        return self.of.setdefault(atom, len(self.of))

    def all(self, atoms: Sequence[Any]) -> tuple[int, ...]:
        return tuple(self(atom) for atom in atoms)


def _pieces(
    closed: jex.ClosedJaxpr,
) -> tuple[list[Piece], dict[int, Any], tuple[int, ...]]:
    """A program's pieces, its constants, and the variables that it returns."""
    number, pieces = _Numbers(closed), []
    arguments = set(range(len(closed.jaxpr.invars)))
    for eqns in _runs(closed.jaxpr.eqns):
        inner, inputs, outputs = _as_program(eqns, closed.jaxpr)
        reads = number.all(inputs)
        pieces.append(Piece(inner, reads, number.all(outputs)))
    returns = number.all(closed.jaxpr.outvars)
    kept = arguments | set(number.constants) | set(returns)
    return _with_last(pieces, kept), number.constants, returns


def _runs(eqns: Sequence[jex.JaxprEqn]) -> list[list[jex.JaxprEqn]]:
    """Equations that stand for functions `apart`, and all between two of them."""
    is_piece = lambda eqn: eqn.params.get("name") == APART
    groups = it.groupby(enumerate(eqns), lambda e: (is_piece(e[1]), is_piece(e[1]) * e[0]))
    return [[eqn for _, eqn in group] for _, group in groups]


def _as_program(
    eqns: Sequence[jex.JaxprEqn], whole: jex.Jaxpr
) -> tuple[jex.ClosedJaxpr, list[Any], list[Any]]:
    """Equations as a function, with the variables that it reads and writes."""
    if eqns[0].params.get("name") == APART:
        return eqns[0].params["jaxpr"], eqns[0].invars, eqns[0].outvars
    written = [v for eqn in eqns for v in eqn.outvars]
    known = set(written)
    atoms = [v for eqn in eqns for v in eqn.invars if not isinstance(v, jex.Literal)]
    read = [v for v in dict.fromkeys(atoms) if v not in known]
    effects = frozenset().union(*(eqn.effects for eqn in eqns))
    written = [v for v in written if not isinstance(v, jex.DropVar)]
    names = whole.debug_info.with_unknown_names()
    jaxpr = jex.Jaxpr((), read, written, eqns, effects, names)
    return jex.ClosedJaxpr(jaxpr, ()), read, written


def _with_last(pieces: Sequence[Piece], kept: set[int]) -> list[Piece]:
    """Tells which variables each piece is the last one to know."""
    out = []
    for piece in reversed(pieces):
        last = frozenset(piece.reads + piece.writes) - kept
        kept = kept | last
        out.append(piece._replace(last=last))
    return out[::-1]


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
