"""Gradients of outputs along weights, each kept in the form that is cheaper to multiply."""

import abc
import functools as ft
from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.extend.core as jex
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .axes import Axes, in_single
from .model import Unit
from .sites import Evaluation, Site


# Products of kernels in full precision, on accelerators too.
_HIGHEST = "highest"


class AbstractFactor(eqx.Module):
    """Gradients of all outputs of `n` units along one weight (or several)."""

    @abc.abstractmethod
    def kernel(self, other: Any) -> Float[Array, "n1 n2 full1 full2 diagonal"]:
        """Their inner products with those of other units."""

    @abc.abstractmethod
    def multiplications(self) -> int:
        """How many a pair of units takes."""

    @abc.abstractmethod
    def whole(self) -> Any:
        """The gradients themselves."""


class Whole(AbstractFactor):
    """The gradients themselves. Axes of the weight are before and after those of outputs,
    as they come from matrix products: to bring them together takes as long as these.
    """

    gradients: Float[Array, "n inputs full diagonal trace outputs"]

    def multiplications(self):
        _, inputs, full, diagonal, trace, outputs = self.gradients.shape
        return full**2 * diagonal * trace * inputs * outputs

    def whole(self):
        return self

    def kernel(self, other):
        other = other.whole()
        return jnp.einsum(
            "nifdtj,kigdtj->nkfgd", self.gradients, other.gradients, precision=_HIGHEST
        )


class Outer(AbstractFactor):
    """Sums over positions of outer products of activations with gradients."""

    activations: Float[Array, "n groups positions inputs"]
    gradients: Float[Array, "n full diagonal trace groups positions outputs"]

    def kernel(self, other):
        if isinstance(other, Whole):
            return self.whole().kernel(other)
        a1, a2 = self.activations, other.activations
        d1, d2 = self.gradients, other.gradients
        a = jnp.einsum("nhpi,khqi->nkhpq", a1, a2, precision=_HIGHEST)
        if a.shape[2:] == (1, 1, 1):
            # Matrix products, without axes in between.
            d1, d2 = d1[..., 0, 0, :], d2[..., 0, 0, :]
            d = jnp.einsum("nfdtj,kgdtj->nkfgd", d1, d2, precision=_HIGHEST)
            return a.reshape(*a.shape[:2], 1, 1, 1) * d
        d = jnp.einsum("nfdthpj,kgdthqj->nkfgdhpq", d1, d2, precision=_HIGHEST)
        return jnp.einsum("nkfgdhpq,nkhpq->nkfgd", d, a, precision=_HIGHEST)

    def multiplications(self):
        _, full, diagonal, trace, groups, positions, outputs = self.gradients.shape
        pairs = full**2 * diagonal
        each = self.activations.shape[-1] + pairs * (trace * outputs + 1)
        return groups * positions**2 * each

    def whole(self):
        d = jnp.einsum(
            "nhpi,nfdthpj->nhifdtj",
            self.activations,
            self.gradients,
            precision=_HIGHEST,
        )
        return Whole(d.reshape(d.shape[0], -1, *d.shape[3:]))


class Features(eqx.Module):
    """All that the kernels of `n` units follow from, of one array of outputs."""

    outputs: Float[Array, "n full diagonal trace"]
    factors: list[AbstractFactor]

    def nngp(self, other: "Features") -> Float[Array, "n1 n2 full1 full2 diagonal"]:
        k = jnp.einsum("nfdt,kgdt->nkfgd", self.outputs, other.outputs, precision=_HIGHEST)
        return k / self.outputs.shape[-1]

    def ntk(self, other: "Features") -> Float[Array, "n1 n2 full1 full2 diagonal"]:
        pairs = zip(self.factors, other.factors, strict=True)
        k = ft.reduce(jnp.add, [a.kernel(b) for a, b in pairs])
        return k / self.outputs.shape[-1]


def _cheaper(outer: Outer, n: float) -> AbstractFactor:
    """The form of fewer multiplications, if each of `n` units is paired with as many."""
    whole = jax.eval_shape(outer.whole)
    # The gradients are made once for each unit, and then serve for all pairs.
    made = outer.gradients.shape[-2] * whole.gradients.size / n
    if outer.multiplications() <= whole.multiplications() + made:
        return outer
    return outer.whole()


class Plan(NamedTuple):
    """A model as equations, and which of its weights are followed to their sites."""

    closed: jex.ClosedJaxpr
    sites: list[Site]
    groups: list[list[int]]
    explicit: list[int]


def make_plan(unit: Unit, x: PyTree, others: Sequence[PyTree] = ()) -> Plan:
    """Looks for the sites of all weights, in one unit of inputs `x`.

    For units of other shapes `others` a model may be another one. Weights that these use
    in another way are explicit, so that all their plans fit together.
    """
    plan = _plan(unit, x)
    ways = _ways(plan)
    differ = {
        leaf
        for other in others
        for leaf, way in _ways(_plan(unit, other)).items()
        if way != ways[leaf]
    }
    if not differ:
        return plan
    groups = [group for group in plan.groups if plan.sites[group[0]].leaf not in differ]
    return plan._replace(groups=groups, explicit=sorted({*plan.explicit, *differ}))


def _ways(plan: Plan) -> dict[int, Any]:
    """How each weight is used: at sites, or otherwise."""
    ways: dict[int, Any] = dict.fromkeys(plan.explicit)
    for group in plan.groups:
        site = plan.sites[group[0]]
        ways.setdefault(site.leaf, []).append((site.part, site.key))
    return ways


def explicit_plan(unit: Unit, x: PyTree) -> Plan:
    """A plan of all derivatives, whatever their structure."""
    leaves, _, closed = _trace(unit, x)
    return Plan(closed, [], [], list(range(len(leaves))))


def _trace(unit: Unit, x: PyTree) -> tuple[list[Any], list[Any], jex.ClosedJaxpr]:
    """Weights, inputs (or shapes of these), and the model as equations."""
    leaves, structure = jax.tree.flatten(unit.weights)
    arrays, inputs = jax.tree.flatten(x)

    def fn(leaves: list[Array], arrays: list[Array]) -> PyTree:
        weights = jax.tree.unflatten(structure, leaves)
        return unit(weights, jax.tree.unflatten(inputs, arrays))

    return leaves, arrays, jax.make_jaxpr(fn)(leaves, arrays)


def _plan(unit: Unit, x: PyTree) -> Plan:
    leaves, arrays, closed = _trace(unit, x)
    sites: list[Site] = []
    evaluation = Evaluation(lambda site, out: (sites.append(site), out)[1])
    jax.eval_shape(lambda w, x: evaluation(closed, w, x), leaves, arrays)
    by_part: dict[tuple, list[int]] = {}
    for i, site in enumerate(sites):
        by_part.setdefault((site.leaf, site.part), []).append(i)
    groups, explicit = [], []
    for leaf in range(len(leaves)):
        parts = {part: each for (i, part), each in by_part.items() if i == leaf}
        if leaf in evaluation.others or not _is_regular(parts, sites):
            explicit.append(leaf)
        else:
            groups += [parts[part] for part in sorted(parts)]
    return Plan(closed, sites, groups, explicit)


def _is_regular(parts: dict[tuple, list[int]], sites: list[Site]) -> bool:
    """Whether all sites of a weight see the same parts of it, arranged alike."""
    keys = [{sites[i].key for i in each} for each in parts.values()]
    depths = {len(part) for part in parts}
    return len(depths) <= 1 and all(len(each) == 1 for each in keys)


def unit_features(
    plan: Plan, leaves: Sequence[Array], x: PyTree, axes: tuple[Axes, ...], n: float
) -> list[Features]:
    """Features of one unit, with a first axis of size one, for each array of outputs.

    **Arguments:**

    - `plan`: of the model.
    - `leaves`: its weights.
    - `x`: the inputs of the unit.
    - `axes`: of the outputs.
    - `n`: with how many units it will be paired.
    """
    arrays = jax.tree.leaves(x)
    tapped = [i for group in plan.groups for i in group]

    def fn(added: dict[int, Array], explicit: list[Array]) -> tuple[list[Array], Any]:
        seen: list[Site] = []

        def tap(site: Site, out: Array) -> Array:
            seen.append(site)
            i = len(seen) - 1
            return out + added[i] if i in added else out

        weights = list(leaves)
        for i, leaf in zip(plan.explicit, explicit, strict=True):
            weights[i] = leaf
        outs = Evaluation(tap)(plan.closed, weights, arrays)
        scaled = {
            i: in_single(seen[i].layout.activations()) * seen[i].scale for i in tapped
        }
        return outs, scaled

    zeros = {i: jnp.zeros(plan.sites[i].out.shape, plan.sites[i].out.dtype) for i in tapped}
    explicit = [leaves[i] for i in plan.explicit]
    outs, pull, activations = jax.vjp(fn, zeros, explicit, has_aux=True)
    return [
        _of_output(plan, outs, i, pull, activations, each, n) for i, each in enumerate(axes)
    ]


def _of_output(
    plan: Plan,
    outs: list[Array],
    i: int,
    pull: Any,
    activations: dict[int, Array],
    axes: Axes,
    n: float,
) -> Features:
    out = outs[i]
    basis = jnp.eye(out.size, dtype=out.dtype).reshape(out.size, *out.shape)
    zeros = [jnp.zeros_like(other) for other in outs]
    along = lambda d: pull([*zeros[:i], d, *zeros[i + 1 :]])
    added, explicit = jax.vmap(along)(basis)
    split = lambda x: axes.split(in_single(x)[None], out.shape)
    factors: list[AbstractFactor] = [
        Whole(split(d.reshape(out.size, -1))[:, None]) for d in explicit
    ]
    for group in plan.groups:
        a = jnp.concatenate([activations[i] for i in group], axis=1)
        d = [jax.vmap(plan.sites[i].layout.gradients)(added[i]) for i in group]
        outer = Outer(a[None], split(jnp.concatenate(d, axis=2)))
        factors.append(_cheaper(outer, n))
    return Features(split(out.reshape(-1)), factors)
