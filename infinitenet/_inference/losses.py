"""Losses: functions of outputs and targets that return one number for all of them."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from .._checks import check_finite, guard
from .scalars import to_scalar


Loss = Callable[..., Array]


def half_mse(f: Float[Array, "*outputs"], y: Float[Array, "*outputs"]) -> Float[Array, ""]:
    """Half of the mean squared error, over all examples and outputs.

    By this loss, gradient descent of learning rate `r` in NTK parameterization is after
    `s` steps where gradient flow is at time `t = r * s`, for small `r`.

    **Arguments:**

    - `f`, `y`: outputs and targets, of the same shape.

    **Returns:** a scalar.
    """
    return jnp.mean(jnp.square(f - y)) / 2


def softmax_cross_entropy(f: ArrayLike, y: ArrayLike) -> Float[Array, ""]:
    r"""$-\sum_c y_c \log \operatorname{softmax}(f)_c$, averaged over examples.

    The mean is over all axes but the last, which is that of the classes.

    **Arguments:**

    - `f`: outputs, shape `(n, *positions, classes)`: logarithms of probabilities, up to
        a constant for each example.
    - `y`: probabilities of the classes, of the same shape: `jax.nn.one_hot(labels,
        classes)`. Not less their mean, as one would take them for `half_mse`.

    **Returns:** a scalar, in nats.

    **Raises:** `ValueError` if shapes differ, if `y` is not floating, or if there are
        fewer than two classes.
    """
    f, y = _of_same_shape(f, y)
    if f.ndim < 2 or f.shape[-1] < 2:
        raise ValueError(
            "Outputs for `softmax_cross_entropy` must have shape (n, classes) with at "
            f"least two classes, but it is {f.shape}. For two classes by one output use "
            "`sigmoid_cross_entropy`."
        )
    return jnp.mean(optax.softmax_cross_entropy(f, y))


def sigmoid_cross_entropy(f: ArrayLike, y: ArrayLike) -> Float[Array, ""]:
    r"""$-y \log \sigma(f) - (1 - y) \log(1 - \sigma(f))$, averaged over examples and
    outputs.

    Each output is a decision of its own between two classes.

    **Arguments:**

    - `f`: outputs, of any shape: logarithms of odds.
    - `y`: probabilities, of the same shape: zeros and ones as floats.

    **Returns:** a scalar, in nats.

    **Raises:** `ValueError` if shapes differ, or if `y` is not floating.
    """
    return jnp.mean(optax.sigmoid_binary_cross_entropy(*_of_same_shape(f, y)))


class _Huber(eqx.Module):
    """What `huber` returns."""

    delta: Array | np.ndarray

    def __call__(self, f: ArrayLike, y: ArrayLike) -> Float[Array, ""]:
        f, y = _of_same_shape(f, y)
        delta = jnp.asarray(self.delta, f.dtype)
        return jnp.mean(optax.huber_loss(f, y, delta=delta))  # pyright: ignore


def huber(delta: ArrayLike = 1.0) -> Loss:
    r"""The loss of Huber (1964): $(f - y)^2 / 2$ up to errors of `delta`, and linear
    from there on, averaged over examples and outputs.

    ??? cite "Reference"
        ```bibtex
        @article{huber1964robust,
            title={Robust Estimation of a Location Parameter},
            author={Peter J. Huber},
            journal={The Annals of Mathematical Statistics},
            year={1964},
        }
        ```

    **Arguments:**

    - `delta`: a positive scalar, in the units of the targets.

    **Returns:** a function of outputs and targets, both of the same shape.

    **Raises:** `ValueError` if `delta` is not positive. The function raises it if shapes
        differ, or if the targets are not floating.
    """
    remedy = "must be positive, as the size from which errors are outliers"
    return _Huber(to_scalar("delta", delta, lambda x: x > 0, remedy))


#
# Checks of targets
#


def _of_same_shape(f: ArrayLike, y: ArrayLike) -> tuple[Array, Array]:
    f, y = jnp.asarray(f), jnp.asarray(y)
    if not jnp.issubdtype(y.dtype, jnp.floating):
        raise ValueError(
            f"Targets must be floating, but they are {y.dtype}. If they are labels of "
            "classes, use `jax.nn.one_hot(y, n_classes)`, or a loss that takes labels, "
            "such as `optax.losses.softmax_cross_entropy_with_integer_labels`, averaged."
        )
    if f.shape != y.shape:
        raise ValueError(
            f"Targets must have the shape {f.shape} of the outputs, but they have shape "
            f"{y.shape}: reshape them."
        )
    return f, y


def _check_probabilities(y: Array, loss: str, *, top: float) -> Array:
    text = f"`y_train` must be probabilities for `{loss}`, but some are "
    low = guard(
        y,
        lambda y: jnp.min(y) < 0,
        lambda y: (
            f"{text}negative: down to {jnp.min(y):.3g}. Use `jax.nn.one_hot` as it is, "
            "not less its mean."
        ),
        f"{text}negative. Use `jax.nn.one_hot` as it is, not less its mean.",
    )
    return guard(
        low,
        lambda y: jnp.max(y) > top,
        lambda y: f"{text}above 1: up to {jnp.max(y):.3g}.",
        f"{text}above 1.",
    )


def _ours(loss: Loss) -> bool:
    functions = (half_mse, softmax_cross_entropy, sigmoid_cross_entropy)
    return isinstance(loss, _Huber) or any(loss is fn for fn in functions)


def check_loss_targets(loss: Loss, y: PyTree, n: int, dtype: np.dtype) -> PyTree:
    """Targets as arrays, for a flow on `n` examples.

    Of losses by users, only they know what targets are right.

    **Raises:** `ValueError` if `loss` is one of this file, and `y` is no array of `n`
        rows of floating and finite numbers; or if it has negative entries, for
        cross-entropies.
    """
    y = jax.tree.map(jnp.asarray, y)
    if not _ours(loss):
        return y
    if not isinstance(y, jax.Array):
        raise ValueError(f"`y_train` must be a single array, but it is {type(y)}.")
    _of_same_shape(y, y)  # The dtype.
    if y.ndim == 0 or len(y) != n or y.size == 0:
        raise ValueError(
            f"`y_train` must have shape ({n}, *outputs), one row for each row of the "
            f"kernel, but it has shape {y.shape}."
        )
    y = check_finite("y_train", y, "Leave these examples out of the targets and kernels.")
    if loss is softmax_cross_entropy:
        y = _check_probabilities(y, "softmax_cross_entropy", top=np.inf)
    if loss is sigmoid_cross_entropy:
        y = _check_probabilities(y, "sigmoid_cross_entropy", top=1.0)
    return y.astype(dtype)


def check_loss(loss: Loss, f: jax.ShapeDtypeStruct, y: PyTree) -> None:
    """**Raises:** `ValueError` unless `loss(f, y)` is a scalar, and shapes fit."""
    if loss is half_mse:
        # It has no checks of its own: others would broadcast.
        _of_same_shape(jnp.zeros(f.shape), y)
    value = eqx.filter_eval_shape(loss, f, y)
    if not isinstance(value, jax.ShapeDtypeStruct) or value.shape != ():
        raise ValueError(
            f"`loss` must return a scalar for all outputs together, not {value}. Take the "
            "mean over examples."
        )
