"""Whether values are known."""

import contextlib
from collections.abc import Iterator

import jax
import jax.core
from jax.sharding import AxisType
from jaxtyping import PyTree


def is_traced(tree: PyTree) -> bool:
    """Whether any array is abstract, under `jit`, `vmap` or `grad`."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


@contextlib.contextmanager
def of_known_arrays() -> Iterator[None]:
    """Where programs of known arrays run at once, while something else is traced too.

    `jax.ensure_compile_time_eval` would also run each operation of what is traced within.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.core.eval_context())
        # Known arrays are not parts of what devices do each by themselves.
        if AxisType.Manual in jax.sharding.get_abstract_mesh().axis_types:
            nowhere = jax.sharding.AbstractMesh((), ())
            stack.enter_context(jax.sharding.use_abstract_mesh(nowhere))
        yield
