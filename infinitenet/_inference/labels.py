"""Checks of labels of classes."""

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Int

from .._checks import guard
from .._tracing import is_traced


def check_labels(name: str, labels: ArrayLike, n: int) -> Int[Array, " n"]:
    """The class of each example: integers.

    **Arguments:**

    - `name`: the argument's name, for the message.
    - `labels`: shape `(n,)`.
    - `n`: the number of examples.

    **Raises:** `ValueError` if they are of other shape or dtype (one-hot, say), or empty.
    """
    labels = jnp.asarray(labels)
    if labels.ndim == 2:
        raise ValueError(
            f"`{name}` must have shape ({n},), one integer for each example, but it has "
            f"shape {labels.shape}. If it is one-hot, or has probabilities, use "
            f"`jax.numpy.argmax({name}, axis=1)`."
        )
    if labels.shape != (n,):
        raise ValueError(
            f"`{name}` must have shape ({n},), one integer for each example, but it has "
            f"shape {labels.shape}."
        )
    if n == 0:
        raise ValueError(f"`{name}` is empty: at least one example is needed.")
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"`{name}` must be integers, the classes from 0 on, but its dtype is "
            f"{labels.dtype}. Use `{name}.astype(int)`, or for targets of two signs "
            f"`({name} > 0).astype(int)`."
        )
    return labels


def check_range(name: str, labels: Int[Array, " n"], n_classes: int) -> Int[Array, " n"]:
    """**Raises:** `ValueError` unless labels are at least zero and below `n_classes`."""
    text = f"`{name}` must be from 0 to {n_classes - 1}, for {n_classes} classes"
    remedy = "Count classes from 0."
    return guard(
        labels,
        lambda x: jnp.any((x < 0) | (x >= n_classes)),
        lambda x: f"{text}, but they are from {x.min()} to {x.max()}. {remedy}",
        f"{text}. {remedy}",
    )


def count_classes(name: str, labels: Int[Array, " n"], n_classes: int | None) -> int:
    """`n_classes`, or by default as many as labels tell.

    **Raises:** `ValueError` if that is not known, or below 2.
    """
    if n_classes is None:
        if is_traced(labels):
            raise ValueError(
                f"`n_classes` must be given under `jax.jit`, where `{name}` have no values."
            )
        n_classes = int(np.max(np.asarray(labels))) + 1
    if n_classes < 2:
        raise ValueError(
            f"`n_classes` must be at least 2, but it is {n_classes}. By default it is one "
            f"more than the largest of `{name}`."
        )
    return n_classes
