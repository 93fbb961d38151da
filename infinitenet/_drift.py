"""How far the empirical NTK has moved in training."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ._empirical.kernels import Options, unchecked_kernels


@eqx.filter_jit
def ensemble_ntk(
    ensemble: Any, x: PyTree, mesh: jax.sharding.Mesh | None
) -> PyTree[Float[Array, "members n n"]]:
    """The empirical NTK of each network: one after the other, or one on each device."""
    arrays, static = eqx.partition(ensemble, eqx.is_array)
    each = lambda arrays, x: _ntk(eqx.combine(arrays, static), x)
    return _over_members(each, mesh)(arrays, x)


@eqx.filter_jit
def drift(
    ensemble: Any,
    x: PyTree,
    start: PyTree[Float[Array, "members n n"]],
    mesh: jax.sharding.Mesh | None,
) -> Float[Array, " members"]:
    r"""$\|\Theta_t - \Theta_0\|_F / \|\Theta_0\|_F$ of each network."""
    arrays, static = eqx.partition(ensemble, eqx.is_array)

    def each(arrays, x):
        arrays, start = arrays
        now = _ntk(eqx.combine(arrays, static), x)
        return _norm(jax.tree.map(jnp.subtract, now, start)) / _norm(start)

    return _over_members(each, mesh)((arrays, start), x)


def _ntk(model: Any, x: PyTree) -> list[Array]:
    options = Options(None, (), None, None, None, False)
    ntk = unchecked_kernels(model, x, None, options, ntk=True).ntk
    assert ntk is not None
    return ntk


def _norm(kernels: list[Array]) -> Float[Array, ""]:
    return jnp.sqrt(sum(jnp.sum(jnp.square(k)) for k in kernels))  # pyright: ignore


def _over_members(fn: Callable, mesh: jax.sharding.Mesh | None) -> Callable:
    """Of each network: Jacobians of all at once could need too much memory."""
    run = lambda arrays, x: lax.map(lambda arrays: fn(arrays, x), arrays)
    if mesh is None:
        return run
    members, same = jax.sharding.PartitionSpec(mesh.axis_names[0]), jax.P()
    return jax.shard_map(
        run, mesh=mesh, in_specs=(members, same), out_specs=members, check_vma=False
    )
