"""Kernel matrices that are finite."""

import equinox as eqx
from jaxtyping import Array

from ._checks import are_finite, check_finite
from ._entries import Pair
from ._tracing import is_traced


def finite(pair: Pair) -> Pair:
    """**Raises:** `ValueError` if the kernel has overflowed."""
    with_array = lambda k, a: k and eqx.tree_at(lambda k: k.array, k, a)
    nngp, ntk = pair
    return tuple(map(with_array, pair, finite_arrays(nngp.array, ntk and ntk.array)))


def finite_arrays(nngp: Array, ntk: Array | None) -> tuple[Array, Array | None]:
    """The same of arrays."""
    given = [k for k in (nngp, ntk) if k is not None]
    if not is_traced(given) and are_finite(given):
        return nngp, ntk
    nngp = check_finite("nngp", nngp, _REMEDY)
    return nngp, None if ntk is None else check_finite("ntk", ntk, _REMEDY)


_REMEDY = (
    "The kernel has overflowed (unless inputs or hyperparameters are not finite under "
    "`jit`): lower `W_std`, use fewer layers, scale the inputs down, or use float64 "
    '(`jax.config.update("jax_enable_x64", True)`).'
)
