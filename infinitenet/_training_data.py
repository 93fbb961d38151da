"""Checks of what ensembles are trained on, and for how long."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ._batch import batch_size
from ._checks import check_finite, check_floating, check_shape
from ._empirical.model import to_examples
from ._inference.losses import half_mse
from ._layer import AbstractLayer
from ._members import member_outputs
from ._minibatch import Batches


# How many steps are recorded by default.
_N_RECORDS = 50


def to_steps(steps: int | Sequence[int] | np.ndarray) -> np.ndarray:
    """The steps to record.

    **Raises:** `ValueError` if they do not ascend, or are no whole numbers.
    """
    out = np.asarray(steps)
    if not np.issubdtype(out.dtype, np.integer) or out.ndim > 1 or out.size == 0:
        raise ValueError(
            "`steps` must be a whole number, or a sequence of the steps to record, but it "
            f"is {steps!r}."
        )
    if out.ndim == 0:
        if out < 1:
            raise ValueError(f"`steps` must be at least 1, but it is {steps}.")
        spaced = np.geomspace(1, int(out), _N_RECORDS).round().astype(int)
        return np.union1d(0, spaced)
    if out[0] < 0 or out[-1] < 1 or np.any(np.diff(out) <= 0):
        raise ValueError(
            "`steps` to record must ascend, from 0 or above to 1 or above, but they are "
            f"{steps!r}. Use `sorted(set(steps))`."
        )
    if out[-1] > np.iinfo(np.int32).max:
        raise ValueError(f"`steps` must be below 2**31, but they are up to {out[-1]}.")
    return out


def check_data(
    name: str, ensemble: Any, x: PyTree, y: PyTree, loss: Callable[..., Array]
) -> tuple[PyTree, PyTree]:
    """Inputs as arrays, and the targets in the dtype of the outputs.

    **Raises:** `ValueError` if they do not fit each other, or the networks.
    """
    x_name, y_name = f"x_{name}", f"y_{name}"
    if x is None:
        if y is not None:
            raise ValueError(f"`{y_name}` was given without `{x_name}`: give both.")
        return None, None
    x = to_examples(x_name, x, ensemble)
    f = member_outputs(ensemble, x)
    if loss is half_mse and not isinstance(f, jax.ShapeDtypeStruct):
        remedy = "give a `loss` of such outputs and of `y_train`."
        if isinstance(ensemble, AbstractLayer):
            remedy = "add `FanInSum` after branches."
        raise ValueError(f"`ensemble` must end in one array: {remedy}")
    if y is None:
        return x, None
    if loss is half_mse:
        return x, _check_targets(y_name, y, f)
    value = eqx.filter_eval_shape(loss, f, y)
    if not isinstance(value, jax.ShapeDtypeStruct) or value.shape != ():
        raise ValueError(f"`loss` must return a scalar for all of a batch, not {value}.")
    return x, jax.tree.map(jnp.asarray, y)


def _check_targets(name: str, y: Any, f: Any) -> Array:
    remedy = "For classes, use `jax.nn.one_hot`, less `1 / n_classes` for zero mean."
    y = check_floating(name, y, remedy)
    reason = "that of the outputs: reshape it, or change the width of the last layer"
    y = check_shape(name, y, f.shape, reason).astype(f.dtype)
    return check_finite(name, y, "Leave these examples out.")


def check_batches(batches: Batches | None, x: PyTree, y: PyTree) -> None:
    """**Raises:** `ValueError` if there are no such batches of the training data."""
    if batches is None:
        return
    n = batch_size(x)
    batches.steps_per_epoch(n)
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(y)]
    if any(shape[:1] != (n,) for shape in shapes):
        raise ValueError(
            f"`y_train` must have a first axis of the {n} examples for `batches`, but it "
            f"has {'shape' if len(shapes) == 1 else 'shapes'} "
            f"{', '.join(map(str, shapes))}."
        )
