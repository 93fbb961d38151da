"""Outputs and their gradients along weights, of which kernels are products."""

import functools as ft
from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.extend.core as jex
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .axes import Axes, in_single
from .factors import AbstractFactor, HIGHEST, Outer, product, Whole
from .model import Unit
from .sites import Evaluation, Site


class Features(eqx.Module):
    """All that the kernels of `n` units follow from, of one array of outputs."""

    outputs: Float[Array, "n full diagonal trace"]
    factors: list[AbstractFactor]

    def nngp(self, other: "Features") -> Float[Array, "n1 n2 full1 full2 diagonal"]:
        return _products_of_outputs(self.outputs, other.outputs)

    def ntk(self, other: "Features") -> Float[Array, "n1 n2 full1 full2 diagonal"]:
        # Programs one after the other, so that memory is for one weight at a time.
        pairs = zip(self.factors, other.factors, strict=True)
        return _mean([product(a, b) for a, b in pairs], self.outputs.shape[-1])


@jax.jit
def _products_of_outputs(
    f1: Float[Array, "n1 full1 diagonal trace"], f2: Float[Array, "n2 full2 diagonal trace"]
) -> Float[Array, "n1 n2 full1 full2 diagonal"]:
    return jnp.einsum("nfdt,kgdt->nkfgd", f1, f2, precision=HIGHEST) / f1.shape[-1]


@jax.jit
def _mean(kernels: list[Array], trace: int | Array) -> Array:
    return ft.reduce(jnp.add, kernels) / trace


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
    plan: Plan, leaves: Sequence[Array], x: PyTree, axes: tuple[Axes, ...]
) -> list[Features]:
    """Features of one unit, with a first axis of size one, for each array of outputs.

    **Arguments:**

    - `plan`: of the model.
    - `leaves`: its weights.
    - `x`: the inputs of the unit.
    - `axes`: of the outputs.
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
        _of_output(plan, outs, i, pull, activations, each) for i, each in enumerate(axes)
    ]


def _of_output(
    plan: Plan,
    outs: list[Array],
    i: int,
    pull: Any,
    activations: dict[int, Array],
    axes: Axes,
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
        d = split(jnp.concatenate(d, axis=2))
        outer = Outer(a[None], jnp.moveaxis(d, (-3, -2), (1, 2)))
        factors.append(outer.smaller())
    return Features(split(out.reshape(-1)), factors)
