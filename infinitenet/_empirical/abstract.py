"""What depends on shapes only, and need not be traced each time."""

import functools as ft
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jaxtyping import PyTree


_Out = TypeVar("_Out")


def _to_key(x: Any) -> Any:
    is_array = isinstance(x, jax.Array | np.ndarray)
    return jax.ShapeDtypeStruct(x.shape, x.dtype) if is_array else x


def _kind(x: Any) -> type:
    return jax.Array if isinstance(x, jax.Array) else type(x)


def of_shapes(fn: Callable[..., _Out]) -> Callable[..., _Out]:
    """Calls a function with shapes in place of arrays, once for all that are the same.

    Tracing takes longer than small kernels do.
    """

    @ft.lru_cache(maxsize=256)
    def cached(structure: Any, leaves: tuple[Any, ...], types: tuple[type, ...]) -> _Out:
        del types  # Which tell 1 from 1.0.
        return fn(*jax.tree.unflatten(structure, leaves))

    @ft.wraps(fn)
    def call(*args: PyTree) -> _Out:
        leaves, structure = jax.tree.flatten(args)
        try:
            hash((structure, *map(_to_key, leaves)))
        except TypeError:
            # A constant that cannot be told from others, such as a set.
            return fn(*jax.tree.unflatten(structure, map(_to_key, leaves)))
        return cached(structure, tuple(map(_to_key, leaves)), tuple(map(_kind, leaves)))

    return call
