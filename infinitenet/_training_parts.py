"""Ensembles that are trained in parts, and spread over devices."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ._members import count_members
from ._mesh import auto_mesh
from ._tracing import is_traced
from ._training import initial_state, Problem, start_kernels, State


class Plan(NamedTuple):
    """How training goes on.

    - `steps`: those to record, of which the last one is the number of steps.
    - `members_at_once`: how many networks are trained together.
    - `mesh`: the devices over which they are spread, along its first axis.
    - `returned_on`: the same devices, as the user has them.
    """

    steps: np.ndarray
    n_members: int
    members_at_once: int
    mesh: jax.sharding.Mesh | None
    returned_on: jax.sharding.Mesh | None

    def parts(self) -> list[range]:
        n, size = self.n_members, self.members_at_once
        return [range(i, min(i + size, n)) for i in range(0, n, size)]

    def members_of(self, tree: PyTree, part: range) -> PyTree:
        """Those of a part, on their devices."""
        cut = lambda x: x[part.start : part.stop]
        return put(map_arrays(cut, tree), self.mesh, split=True)

    def problem_of(self, problem: Problem, part: range) -> Problem:
        """That of the networks of a part. Data are on all devices."""
        own = lambda p: (p.rest, p.members)
        is_none = lambda x: x is None
        mine = self.members_of(own(problem), part)
        data = eqx.tree_at(own, problem, (None, None), is_leaf=is_none)
        data = put(data, self.mesh, split=False)
        return eqx.tree_at(own, data, mine, is_leaf=is_none)

    def kernels_of(
        self, problem: Problem, weights: PyTree, part: range
    ) -> PyTree[Array] | None:
        """Kernels before training, given the weights of all networks before it."""
        return start_kernels(problem, self.members_of(weights, part))

    def begin(self, problem: Problem, weights: PyTree, part: range) -> State:
        """Before the first step of a part."""
        return self.placed(initial_state(problem, self.members_of(weights, part)))

    def placed(self, state: State) -> State:
        """On its devices."""
        own = lambda s: (s.weights, s.opt_state, s.loss)
        state = eqx.tree_at(own, state, put(own(state), self.mesh, split=True))
        return eqx.tree_at(lambda s: s.step, state, put(state.step, self.mesh, split=False))


def put(tree: PyTree, mesh: jax.sharding.Mesh | None, *, split: bool) -> PyTree:
    """Members over the first axis of the mesh; or everything on each device."""
    if mesh is None:
        return tree
    spec = jax.P(mesh.axis_names[0]) if split else jax.P()
    sharding = jax.sharding.NamedSharding(mesh, spec)
    return map_arrays(lambda x: jax.device_put(x, sharding), tree)


def map_arrays(fn: Callable, *trees: PyTree) -> PyTree:
    """`jax.tree.map` which keeps what is no array."""
    return jax.tree.map(lambda *x: fn(*x) if eqx.is_array(x[0]) else x[0], *trees)


def joined(trees: Sequence[PyTree], axis: int) -> PyTree:
    """Parts side by side."""
    if len(trees) == 1:
        return trees[0]
    return map_arrays(lambda *x: jnp.concatenate(x, axis), *trees)


def to_plan(
    steps: np.ndarray,
    ensemble: Any,
    members_at_once: int | None,
    mesh: jax.sharding.Mesh | None,
) -> Plan:
    """**Raises:** `ValueError` if `ensemble` is none, or cannot be divided like this."""
    n = count_members(ensemble)
    if members_at_once is not None and members_at_once < 1:
        raise ValueError(f"`members_at_once` must be at least 1, not {members_at_once}.")
    at_once = n if members_at_once is None else min(members_at_once, n)
    mesh = _mesh_of(ensemble) if mesh is None else mesh
    return Plan(steps, n, at_once, _check_mesh(mesh, n, at_once), mesh)


def _mesh_of(ensemble: PyTree) -> jax.sharding.Mesh | None:
    """The mesh over the first axis of which networks are spread, if they are."""
    for x in jax.tree.leaves(ensemble):
        is_known = isinstance(x, jax.Array) and not is_traced(x)
        sharding = x.sharding if is_known else None
        if isinstance(sharding, jax.sharding.NamedSharding):
            mesh = sharding.mesh
            if sharding.spec[:1] == mesh.axis_names[:1]:
                return mesh if isinstance(mesh, jax.sharding.Mesh) else None
    return None


def _check_mesh(
    mesh: jax.sharding.Mesh | None, n_members: int, members_at_once: int
) -> jax.sharding.Mesh | None:
    """The same devices, for a compiler which decides what is where.

    **Raises:** `ValueError` if networks cannot be spread evenly.
    """
    if mesh is None:
        return None
    n = mesh.devices.shape[0]
    for name, value in (
        ("the number of networks", n_members),
        ("`members_at_once`", members_at_once),
    ):
        if value % n:
            raise ValueError(
                f"`mesh` has {n} devices along its first axis, {mesh.axis_names[0]!r}, of "
                f"which {name}, {value}, must be a multiple. Take {value // n * n or n} or "
                f"{(value // n + 1) * n}."
            )
    return auto_mesh(mesh)
