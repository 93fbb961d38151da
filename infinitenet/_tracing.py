"""Whether values are known."""

import jax
import jax.core
from jaxtyping import PyTree


def is_traced(tree: PyTree) -> bool:
    """Whether any array is abstract, under `jit`, `vmap` or `grad`."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))
