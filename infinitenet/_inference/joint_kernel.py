"""Joint kernels over examples and outputs, such as the NTK of a finite network."""

import math

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from .._checks import check_cross_kernel, check_floating, check_kernel
from .gp import regularise
from .spectral import decompose, Spectrum


_dtype_remedy = "Compute it from floating-point inputs, or convert it with `astype`."


def flatten_kernel(
    name: str, k: ArrayLike
) -> tuple[Float[Array, "rows rows"], tuple[int, ...] | None]:
    """A kernel as a matrix: rows are examples, or examples and then outputs.

    **Arguments:**

    - `name`: the argument's name, for the message.
    - `k`: shape `(n, n)`, or `(n, n, *outputs, *outputs)`.

    **Returns:** its symmetric part, and `outputs` if it has these axes.

    **Raises:** `ValueError` as `check_kernel`, or if it is of other shape.
    """
    k = check_floating(name, k, _dtype_remedy)
    if k.ndim <= 2:
        return check_kernel(name, k), None
    half, odd = divmod(k.ndim, 2)
    outputs = k.shape[2 : half + 1]
    if odd or k.shape[0] != k.shape[1] or k.shape[half + 1 :] != outputs:
        raise ValueError(
            f"`{name}` must have shape (n, n), or (n, n, *outputs, *outputs) if it is one "
            f"over examples and outputs together, but it has shape {k.shape}."
        )
    return check_kernel(name, _flatten(k, outputs)), outputs


def decompose_kernel(
    name: str, k: ArrayLike, diag_reg: ArrayLike, absolute: bool
) -> tuple[Spectrum, tuple[int, ...] | None]:
    """As `flatten_kernel`, regularised and decomposed.

    `diag_reg` may be given for each example, and is then that of all of its outputs.
    """
    n = jnp.shape(k)[:1]
    k, outputs = flatten_kernel(name, k)
    if outputs is not None and jnp.shape(diag_reg) == n:
        diag_reg = jnp.repeat(jnp.asarray(diag_reg), math.prod(outputs))
    return decompose(name, regularise(k, diag_reg, absolute)), outputs


def flatten_cross_kernel(
    name: str,
    k: ArrayLike,
    n: int,
    outputs: tuple[int, ...] | None,
    dtype: np.dtype,
) -> Float[Array, "test_rows rows"]:
    """As `flatten_kernel`, between test examples (rows) and the `n` of training.

    **Raises:** `ValueError` if it is of other shape than that of the training inputs, not
        floating, or not finite.
    """
    if outputs is None:
        return check_cross_kernel(name, k, n, dtype)
    k = check_floating(name, k, _dtype_remedy)
    if k.shape[1:] != (n, *outputs, *outputs):
        expected = ", ".join(map(str, ("n_test", n, *outputs, *outputs)))
        raise ValueError(
            f"`{name}` must have shape ({expected}), with the outputs of the kernel of the "
            f"training inputs, but it has shape {k.shape}."
        )
    return check_cross_kernel(name, _flatten(k, outputs), n * math.prod(outputs), dtype)


def _flatten(k: Array, outputs: tuple[int, ...]) -> Array:
    size = math.prod(outputs)
    k = k.reshape(k.shape[0], k.shape[1], size, size)
    n1, n2 = k.shape[:2]
    return jnp.moveaxis(k, 1, 2).reshape(n1 * size, n2 * size)
