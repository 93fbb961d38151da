"""Scalar parameters of losses and optimisers."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array

from .._tracing import is_traced


def to_scalar(name: str, x: ArrayLike, ok: Callable, remedy: str) -> Array | np.ndarray:
    """A number of which `ok` is true.

    NumPy's unless it is JAX's already, as defaults must not start JAX when the package is
    imported.

    **Raises:** `ValueError`, with the name and `remedy`.
    """
    x = x if isinstance(x, jax.Array) else np.asarray(x, float)
    if jnp.shape(x):
        raise ValueError(f"`{name}` must be a scalar, but its shape is {jnp.shape(x)}.")
    text = f"`{name}` {remedy}"
    if is_traced(x):
        return eqx.error_if(x, ~ok(x), f"{text}.")
    if not ok(x):
        raise ValueError(f"{text}, but it is {x}.")
    return x
