"""The members of an ensemble: models stacked along a first axis of all their arrays."""

from typing import Any

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ._batch import batch_of_one, batch_size, first_of
from ._custom_types import Arrays
from ._empirical.model import (
    AbstractFunction,
    check_weights,
    CoupledFunction,
    Unit,
    unit_outputs,
)
from ._layer import AbstractLayer
from ._weights import trainable


@eqx.filter_jit
def evaluate_ensemble(
    ensemble: Any, x: Arrays, examples_at_once: int | None = None
) -> PyTree[Array]:
    """The outputs of all networks of an ensemble.

    **Arguments:**

    - `ensemble`: as made by [`infinitenet.draw_ensemble`][].
    - `x`: a batch of inputs, of shape `(n, *spatial, channels)`; or as the models take it.
    - `examples_at_once`: how many examples to evaluate at the same time; all by default. A
        smaller number takes less memory.

    **Returns:** shape `(members, n, *outputs)`; or a pytree of such, if the models return
    one.
    """
    fn = lambda model, x: evaluate(model, x, examples_at_once)
    return eqx.filter_vmap(fn, in_axes=(eqx.if_array(0), None))(ensemble, x)


def evaluate(model: Any, x: PyTree, at_once: int | None = None) -> PyTree[Array]:
    """The outputs of a single model on a batch, or on parts of it, one after the other."""
    if at_once is None or at_once >= batch_size(x) or isinstance(model, CoupledFunction):
        return model(x) if isinstance(model, AbstractFunction) else jax.vmap(model)(x)
    if isinstance(model, AbstractFunction):
        one = lambda x: first_of(model(batch_of_one(x)))
    else:
        one = model
    return lax.map(one, x, batch_size=at_once)


def member_outputs(ensemble: Any, x: PyTree) -> PyTree[jax.ShapeDtypeStruct]:
    """Shapes of the outputs of one of the models on a batch.

    **Raises:** `ValueError`, with the remedy, if it cannot be evaluated.
    """
    one = lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype) if eqx.is_array(x) else x
    weights, rest = eqx.partition(jax.tree.map(one, ensemble), trainable(ensemble))
    unit = Unit(weights, rest, isinstance(ensemble, CoupledFunction))
    n = batch_size(x)
    if unit.coupled:
        return unit_outputs(unit, batch_of_one(x))
    out = unit_outputs(unit, x)
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct((n, *a.shape), a.dtype), out)


def count_members(ensemble: Any) -> int:
    """**Raises:** `ValueError` for what is no ensemble of models with weights."""
    if not callable(ensemble):
        raise ValueError(f"`ensemble` must be networks, but it is {ensemble!r}.")
    weights = eqx.filter(ensemble, trainable(ensemble))
    if not jax.tree.leaves(weights):
        remedy = "draw them by `draw_ensemble(net, key, x_train[0], n)`."
        if not isinstance(ensemble, AbstractLayer):
            remedy = "`draw_ensemble(make, key, None, n)` calls `make(key)` for each."
        raise ValueError(f"`ensemble` has no weights yet: {remedy}")
    sizes = {jnp.shape(x)[:1] for x in jax.tree.leaves(eqx.filter(ensemble, eqx.is_array))}
    if len(sizes) > 1 or () in sizes:
        raise ValueError(
            "`ensemble` must be several networks, stacked along a first axis of each "
            "array: use `draw_ensemble` in place of `net.init`. For a single network, "
            "that is `draw_ensemble(net, key, x_train[0], 1)`."
        )
    check_weights(weights, "ensemble")
    return sizes.pop()[0]
