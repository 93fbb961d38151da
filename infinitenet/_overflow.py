"""Kernel matrices that are finite."""

from typing import Any

import jax

from ._checks import are_finite, check_finite
from ._tracing import is_traced


def finite(pair: Any) -> Any:
    """NNGP and NTK, or `None`: covariances, or their arrays.

    **Raises:** `ValueError` if the kernel has overflowed.
    """
    if not is_traced(pair) and are_finite(jax.tree.leaves(pair)):
        return pair
    check = lambda name, k: jax.tree.map(lambda a: check_finite(name, a, _REMEDY), k)
    return tuple(map(check, ("nngp", "ntk"), pair))


_REMEDY = (
    "The kernel has overflowed (unless inputs or hyperparameters are not finite under "
    "`jit`): lower `W_std`, use fewer layers, scale the inputs down, or use float64 "
    '(`jax.config.update("jax_enable_x64", True)`).'
)
