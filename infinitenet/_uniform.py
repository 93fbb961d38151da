"""Inputs that all have the same norm, for which some nonlinearities are faster."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ._layer import AbstractLayer
from ._pointwise import AbstractPointwise
from ._tracing import is_traced


# Rounding of the sum of squares of normalised inputs, in units of it.
_ROUNDING = 16


def common_variance(
    net: AbstractLayer, x1: PyTree, x2: PyTree | None
) -> Float[Array, ""] | None:
    """`x . x / channels` if all inputs have the same, and if that makes a difference."""
    batches = [x for x in (x1, x2) if x is not None]
    plain = all(isinstance(x, jax.Array) and x.ndim == 2 for x in batches)
    if not plain or is_traced((net, batches)) or not _gains(net):
        return None
    q = jnp.concatenate([jnp.mean(jnp.square(x), -1) for x in batches])
    mean = jnp.mean(q)
    close = jnp.max(jnp.abs(q - mean)) <= _ROUNDING * jnp.finfo(q.dtype).eps * mean
    return mean if close else None


def _gains(net: AbstractLayer) -> bool:
    """Whether any nonlinearity has a faster way."""
    is_pointwise = lambda node: isinstance(node, AbstractPointwise)
    nodes = jax.tree.leaves(net, is_leaf=is_pointwise)
    default = AbstractPointwise.dual_at
    return any(type(n).dual_at is not default for n in nodes if is_pointwise(n))
