"""Whether values are known."""

import contextlib

import jax
import jax.core
import jax.numpy as jnp
from jaxtyping import PyTree


def is_traced(tree: PyTree) -> bool:
    """Whether any array is abstract, under `jit`, `vmap` or `grad`."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def of_known_arrays() -> contextlib.AbstractContextManager:
    """Where programs of known arrays run at once, while something else is traced too.

    Otherwise nothing changes, as it would run each operation of what is traced within.
    """
    if is_traced(jnp.zeros(())):
        return jax.ensure_compile_time_eval()
    return contextlib.nullcontext()
