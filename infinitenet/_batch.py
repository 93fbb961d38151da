"""Batches of inputs: arrays, or tuples of arrays for networks with several inputs."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ._checks import check_finite
from ._inputs import Inputs
from ._signal import check_numbers
from ._tracing import is_traced


_NOT_FINITE = "Remove such examples, or replace missing values."


def batch_size(x: PyTree[Array]) -> int:
    return jax.tree.leaves(x)[0].shape[0]


def batch_of_one(x: PyTree) -> PyTree:
    return jax.tree.map(lambda x: x[None], x)


def first_of(x: PyTree) -> PyTree:
    """The first example."""
    return jax.tree.map(lambda x: x[0], x)


def over_examples(fn: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """As `jax.vmap`, but a single example is not a batch of one: that would take twice as
    long to trace, and to compile."""

    def call(*x: PyTree) -> PyTree:
        if batch_size(x) > 1:
            return jax.vmap(fn)(*x)
        return batch_of_one(fn(*jax.tree.map(lambda x: jnp.squeeze(x, 0), x)))

    return call


def shape_of_one(x: PyTree) -> PyTree[jax.ShapeDtypeStruct]:
    """The shape of each example."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), x)


def to_batch(name: str, x: PyTree) -> PyTree[Array]:
    """A batch of inputs as arrays of at least float32.

    **Raises:** `ValueError`, naming the argument, for what is not a batch of inputs.
    """
    if isinstance(x, tuple):
        parts = tuple(to_batch(f"{name}[{i}]", part) for i, part in enumerate(x))
        if len({batch_size(part) for part in parts}) != 1:
            raise ValueError(
                f"`{name}` must be a tuple of batches of the same size, one for each of "
                f"the network's inputs, but these have "
                f"{[batch_size(part) for part in parts]} examples."
            )
        return parts
    if isinstance(x, Inputs):
        # Where values are missing, they are zero.
        return eqx.tree_at(lambda x: x.array, x, to_batch(name, x.array))
    if not isinstance(x, jax.Array | np.ndarray):
        raise ValueError(
            f"`{name}` must be an array, or a tuple of arrays for a network with several "
            f"inputs, but it is a {type(x).__name__}. Lists are converted by `numpy.array`."
        )
    check_numbers(name, x)
    if x.ndim < 2:
        raise ValueError(
            f"`{name}` must have a batch axis and a channel axis, of shape `(n, *spatial, "
            f"channels)`, but its shape is {x.shape}. Add an axis by `{name}[:, None]` for "
            f"scalar inputs, or by `{name}[None]` for a single example."
        )
    # Not of a dtype that JAX has not enabled: it would warn of that.
    dtype = jax.dtypes.canonicalize_dtype(jnp.promote_types(x.dtype, jnp.float32))
    x = jnp.asarray(x, dtype)
    return x if is_traced(x) else check_finite(name, x, _NOT_FINITE)


def to_batches(x1: PyTree, x2: PyTree | None) -> tuple[PyTree, PyTree | None]:
    """Both as `to_batch` has them, of one precision: `x1` and `x2`, if there is any."""
    both = to_batch("x1", x1), None if x2 is None else to_batch("x2", x2)
    return of_one_precision(both)


def of_one_precision(x: PyTree[Array]) -> PyTree[Array]:
    """All floats of that of the most precise ones."""
    floats = [leaf for leaf in jax.tree.leaves(x) if eqx.is_inexact_array(leaf)]
    if len({leaf.dtype for leaf in floats}) == 1:
        return x
    dtype = jnp.result_type(*floats)
    to = lambda leaf: leaf.astype(dtype) if eqx.is_inexact_array(leaf) else leaf
    return jax.tree.map(to, x)
