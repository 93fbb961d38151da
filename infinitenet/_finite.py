"""Whether arrays are finite."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from ._tracing import is_traced


# Numbers that stay in the cache while they are looked at twice.
_AT_ONCE = 2**17


def not_all_finite(x: Array) -> Any:
    """Whether there is NaN or infinity: a Boolean, or an array of it if `x` is traced."""
    view = _view(x)
    return _not_all_finite(x) if view is None else not _is_finite_view(view)


def all_finite(xs: Sequence[Any]) -> bool:
    """Whether none of some known arrays has NaN or infinity."""
    views = list(map(_view, xs))
    if not all(_is_finite_view(view) for view in views if view is not None):
        return False
    others = [x for x, view in zip(xs, views, strict=True) if view is None]
    return not others or bool(_all_finite(others))


def _view(x: Any) -> np.ndarray | None:
    """A known array where it is, on a CPU: to compile a program for it takes longer."""
    if isinstance(x, np.ndarray) and x.dtype in (np.float32, np.float64):
        return x
    if not isinstance(x, jax.Array) or is_traced(x) or not x.is_fully_addressable:
        return None
    device, *others = x.devices()
    is_usual = x.dtype in (np.float32, np.float64)
    if others or device.platform != "cpu" or not is_usual:
        return None
    # Not as an array of NumPy that the array of JAX would hold on to.
    return np.asarray(memoryview(x))


def _is_finite_view(view: np.ndarray) -> bool:
    # Both are NaN if any number is. Not by a product, as threads of NumPy would go on to
    # wait for another one.
    numbers = view.reshape(-1)
    parts = (numbers[i : i + _AT_ONCE] for i in range(0, numbers.size, _AT_ONCE))
    return all(np.isfinite(part.max()) and np.isfinite(part.min()) for part in parts)


def _is_finite(x: Array) -> Bool[Array, ""]:
    """By a product with zeros, which is NaN if not: several times faster than a look at
    each number."""
    if x.ndim == 0 or not x.size or not jnp.issubdtype(x.dtype, jnp.floating):
        return jnp.isfinite(x).all()
    rows = x.reshape(x.shape[0], -1)
    return jnp.isfinite(rows @ np.zeros(rows.shape[1], x.dtype)).all()


# Compiled as one, for speed: outside of `jax.jit` each operation would be by itself.
_not_all_finite = jax.jit(lambda x: ~_is_finite(x))
_all_finite = jax.jit(lambda xs: jnp.stack([_is_finite(x) for x in xs]).all())
