"""Where the weights of a model are multiplied with what depends on its inputs.

A dense layer $y = a W$ has the derivative $a_i \\delta_{jk}$ along $W_{ij}$: it need not be
formed, as it follows from $a$ and the gradient of the outputs along $y$ (Novak et al.,
2022). Here such products are found in the `jaxpr` of any function: its equations are
evaluated one by one, while weights are followed through whatever only rearranges or scales
them.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import jax.numpy as jnp
from jaxtyping import Array

from .products import Layout, match_conv, match_dot


class Reference(NamedTuple):
    """A value that is a weight, up to its arrangement and a scale.

    Or that is a part of a weight, at some indices of its first axes.
    """

    leaf: int
    part: tuple[int, ...]
    chain: tuple[Any, ...]
    scale: Array | float


@dataclasses.dataclass(frozen=True)
class Value:
    """An array, and what is known of it.

    - `weights`: those that it is computed from, if it does not depend on the inputs.
    """

    array: Any
    on_inputs: bool
    weights: frozenset[int] = frozenset()
    reference: Reference | None = None


class Site(NamedTuple):
    """A product of a weight, or a part of one, with what depends on the inputs.

    `key` tells which entry of the weight meets which of the activations: sites of one
    weight with the same key are as positions of one.
    """

    leaf: int
    part: tuple[int, ...]
    key: tuple[Any, ...]
    scale: Array | float
    layout: Layout
    out: jax.ShapeDtypeStruct


class Evaluation:
    """Evaluates a function, and finds the sites of its weights on the way.

    `tap(site, out)` may replace what a site returns. `others` are the weights that are
    used in other ways.
    """

    def __init__(self, tap: Callable[[Site, Array], Array]):
        self.tap = tap
        self.others: set[int] = set()

    def __call__(
        self, closed: jex.ClosedJaxpr, weights: Sequence[Array], x: Sequence[Array]
    ) -> list[Array]:
        values = [
            Value(w, False, frozenset({i}), Reference(i, (), (), 1.0))
            for i, w in enumerate(weights)
        ]
        values += [Value(a, True) for a in x]
        outs = self._run(closed.jaxpr, closed.consts, values)
        self._use(outs)
        return [out.array for out in outs]

    def _use(self, values: Sequence[Value]) -> None:
        for value in values:
            self.others |= value.weights

    def _run(
        self, jaxpr: jex.Jaxpr, consts: Sequence[Any], args: Sequence[Value]
    ) -> list[Value]:
        env = dict(zip(jaxpr.invars, args, strict=True))
        env |= {v: Value(c, False) for v, c in zip(jaxpr.constvars, consts, strict=True)}

        def read(atom: Any) -> Value:
            return Value(atom.val, False) if isinstance(atom, jex.Literal) else env[atom]

        for eqn in jaxpr.eqns:
            inputs = [read(atom) for atom in eqn.invars]
            env |= zip(eqn.outvars, self._equation(jaxpr, eqn, inputs), strict=True)
        return [read(atom) for atom in jaxpr.outvars]

    def _equation(self, jaxpr: jex.Jaxpr, eqn: Any, inputs: list[Value]) -> list[Value]:
        weights = frozenset().union(*(value.weights for value in inputs))
        inner = _inner(eqn) if weights else None
        if inner is not None:
            return self._run(inner.jaxpr, inner.consts, inputs)
        if weights and eqn.primitive.name == "scan" and _is_short(eqn):
            return self._scan(eqn, inputs)
        outs = _bind(jaxpr, eqn, [value.array for value in inputs])
        if not any(value.on_inputs for value in inputs):
            reference = _follow(eqn, inputs, outs)
            return [Value(out, False, weights, reference) for out in outs]
        if weights:
            site = _match(eqn, inputs, outs)
            if site is None:
                self._use(inputs)
            else:
                outs = [self.tap(site, outs[0])]
        return [Value(out, True) for out in outs]

    def _scan(self, eqn: Any, inputs: list[Value]) -> list[Value]:
        """Step by step, as each is a site."""
        params = eqn.params
        n_consts, n_carry, length = (
            params[name] for name in ("num_consts", "num_carry", "length")
        )
        consts, xs = inputs[:n_consts], inputs[n_consts + n_carry :]
        carry, ys = inputs[n_consts : n_consts + n_carry], []
        order = range(length)
        for i in reversed(order) if params["reverse"] else order:
            each = [_part(x, i) for x in xs]
            body = params["jaxpr"]
            outs = self._run(body.jaxpr, body.consts, [*consts, *carry, *each])
            carry = outs[:n_carry]
            ys.append(outs[n_carry:])
        if params["reverse"]:
            ys.reverse()
        return carry + [self._stack(y) for y in zip(*ys, strict=True)]

    def _stack(self, values: Sequence[Value]) -> Value:
        out = jnp.stack([value.array for value in values])
        if any(value.on_inputs for value in values):
            self._use(values)
            return Value(out, True)
        return Value(out, False, frozenset().union(*(v.weights for v in values)))


def _part(x: Value, i: int) -> Value:
    reference = x.reference
    if reference is not None:
        # Parts of what was rearranged before would have to be followed back.
        whole = not reference.chain
        reference = reference._replace(part=(*reference.part, i)) if whole else None
    return Value(x.array[i], x.on_inputs, x.weights, reference)


# Longer loops would take too long to compile, if each step were by itself.
_MOST_STEPS = 64


def _is_short(eqn: Any) -> bool:
    return 0 < eqn.params["length"] <= _MOST_STEPS


def _bind(jaxpr: jex.Jaxpr, eqn: Any, args: list[Any]) -> list[Any]:
    """Evaluates an equation of `jaxpr` by itself."""
    named = [
        (atom, arg)
        for atom, arg in zip(eqn.invars, args, strict=True)
        if not isinstance(atom, jex.Literal)
    ]
    alone = jaxpr.replace(
        constvars=[],
        invars=[atom for atom, _ in named],
        outvars=[v for v in eqn.outvars if not isinstance(v, jex.DropVar)],
        eqns=[eqn],
        effects=eqn.effects,
    )
    outs = iter(jex.jaxpr_as_fun(jex.ClosedJaxpr(alone, ()))(*[arg for _, arg in named]))
    return [None if isinstance(v, jex.DropVar) else next(outs) for v in eqn.outvars]


# Functions that are called as they are.
_CALLS = {"jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2"}


def _inner(eqn: Any) -> jex.ClosedJaxpr | None:
    if eqn.primitive.name not in _CALLS:
        return None
    inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
    return jex.ClosedJaxpr(inner, ()) if isinstance(inner, jex.Jaxpr) else inner


# What arranges or copies entries of an array, each once.
_MOVES = {"reshape", "transpose", "squeeze", "expand_dims", "copy", "copy_p"}


def _follow(eqn: Any, inputs: list[Value], outs: list[Any]) -> Reference | None:
    """The result as a reference to a weight, if it is one."""
    of_weights = [i for i, value in enumerate(inputs) if value.weights]
    if len(of_weights) != 1 or len(outs) != 1:
        return None
    place = of_weights[0]
    reference, before, after = inputs[place].reference, inputs[place].array, outs[0]
    if reference is None or before.size != after.size:
        return None
    name = eqn.primitive.name
    if name in _MOVES or name == "broadcast_in_dim":
        # The order of entries is a matter of these only.
        step = () if name.startswith("copy") else (name, after.shape, _order(eqn))
        return reference._replace(chain=reference.chain + (step if step else ()))
    if name == "convert_element_type":
        floating = jnp.issubdtype(after.dtype, jnp.floating)
        return reference if floating else None
    if name == "neg":
        return reference._replace(scale=-reference.scale)
    if name in ("mul", "div") and not (name == "div" and place == 1):
        other = jnp.asarray(inputs[1 - place].array)
        if other.size == 1:
            other = other.reshape(())
            scale = reference.scale
            return reference._replace(
                scale=scale * other if name == "mul" else scale / other
            )
    return None


def _order(eqn: Any) -> Any:
    return tuple(eqn.params["permutation"]) if "permutation" in eqn.params else None


def _match(eqn: Any, inputs: list[Value], outs: list[Any]) -> Site | None:
    places = [i for i, value in enumerate(inputs) if value.weights]
    if len(places) != 1 or len(inputs) != 2:
        return None
    place = places[0]
    reference, weight = inputs[place].reference, inputs[place].array
    real = all(jnp.issubdtype(value.array.dtype, jnp.floating) for value in inputs)
    # Of complex activations, only the real part of the product would count.
    if reference is None or not real:
        return None
    match eqn.primitive.name:
        case "dot_general":
            layout = match_dot(eqn.params, inputs[1 - place].array, weight, place)
        case "conv_general_dilated" if place == 1:
            layout = match_conv(eqn.params, inputs[0].array, weight, outs[0])
        case _:
            layout = None
    if layout is None:
        return None
    out = jax.ShapeDtypeStruct(outs[0].shape, outs[0].dtype)
    key = (*reference.chain, weight.shape, layout.key)
    return Site(reference.leaf, reference.part, key, reference.scale, layout, out)
