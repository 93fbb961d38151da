"""Whether values are known."""

import contextlib

import jax
import jax.core
from jaxtyping import PyTree


def is_traced(tree: PyTree) -> bool:
    """Whether any array is abstract, under `jit`, `vmap` or `grad`."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def of_known_arrays() -> contextlib.AbstractContextManager:
    """Where programs of known arrays run at once, while something else is traced too.

    `jax.ensure_compile_time_eval` would also run each operation of what is traced within.
    """
    return jax.core.eval_context()
