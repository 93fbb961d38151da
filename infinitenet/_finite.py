"""Whether arrays are finite."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from ._tracing import is_traced


def not_all_finite(x: Array) -> bool | Bool[Array, ""]:
    """Whether there is NaN or infinity."""
    view = _view(x)
    return _not_all_finite(x) if view is None else not _is_finite(view)


def all_finite(xs: Sequence[Any]) -> bool:
    """Whether none of some known arrays has NaN or infinity."""
    views = list(map(_view, xs))
    known = [bool(_is_finite(view)) for view in views if view is not None]
    others = [x for x, view in zip(xs, views, strict=True) if view is None]
    return all(known) and (not others or bool(_all_finite(others)))


def _view(x: Any) -> np.ndarray | None:
    """A known array where it is, on a CPU: to compile a program for it takes longer."""
    if not isinstance(x, jax.Array) or is_traced(x) or not x.is_fully_addressable:
        return None
    device, *others = x.devices()
    is_usual = x.dtype in (np.float32, np.float64)
    if others or device.platform != "cpu" or not is_usual:
        return None
    # Not as an array of NumPy that the array of JAX would hold on to.
    return np.asarray(memoryview(x))


def _is_finite(x: Any) -> Any:
    """By a product with zeros, which is NaN if not: several times faster than a look at
    each number."""
    library = np if isinstance(x, np.ndarray) else jnp
    if x.ndim == 0 or not x.size or not jnp.issubdtype(x.dtype, jnp.floating):
        return library.isfinite(x).all()
    rows = x.reshape(x.shape[0], -1)
    with np.errstate(invalid="ignore"):
        return library.isfinite(rows @ np.zeros(rows.shape[1], x.dtype)).all()


# Compiled as one, for speed: outside of `jax.jit` each operation would be by itself.
_not_all_finite = jax.jit(lambda x: ~_is_finite(x))
_all_finite = jax.jit(lambda xs: jnp.stack([_is_finite(x) for x in xs]).all())
