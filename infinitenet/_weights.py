"""Trainable weights are told from hyperparameters by their type."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree


class AbstractWeights(eqx.Module):
    """The weights of one layer: all arrays in here are trained, and no others are."""


class AbstractModel(eqx.Module):
    """A module which keeps what is trained in `AbstractWeights`: no other array is."""


class FreeWeights(AbstractWeights):
    """Weights of any structure, such as those of another library."""

    tree: PyTree


def _is_weights(node: object) -> bool:
    return isinstance(node, AbstractWeights)


def _is_floating(leaf: Any) -> bool:
    """Whether it is an array, or stands for one, that has derivatives."""
    return jnp.issubdtype(getattr(leaf, "dtype", bool), jnp.inexact)


def trainable(model: PyTree) -> PyTree[bool]:
    """A filter of weights, for `eqx.partition` and `eqx.filter`.

    !!! example

        ```python
        weights, rest = eqx.partition(net, inn.trainable(net))
        opt_state = optax.adam(1e-3).init(weights)
        net = eqx.combine(weights, rest)
        ```

    **Arguments:**

    - `model`: a layer, any other Equinox module, or any pytree of these.

    **Returns:**

    A pytree of the same structure: `True` for weights, `False` for all else. Weights of
    the layers of infinitenet are what `init` draws, and never `W_std` or `b_std`; of all
    else, each array of floating-point (or complex) numbers.
    """

    def mark(node):
        if isinstance(node, AbstractModel):
            return jax.tree.map(mark_own, node, is_leaf=_is_weights)
        # As in Equinox, arrays of NumPy are constants.
        is_array = isinstance(node, jax.Array | jax.ShapeDtypeStruct)
        return mark_own(node) if _is_weights(node) else is_array and _is_floating(node)

    def mark_own(node):
        if isinstance(node, FreeWeights):
            return FreeWeights(trainable(node.tree))
        return jax.tree.map(lambda x: _is_weights(node) and _is_floating(x), node)

    is_leaf = lambda node: isinstance(node, AbstractModel | AbstractWeights)
    return jax.tree.map(mark, model, is_leaf=is_leaf)


def without_weights(net: PyTree) -> PyTree:
    """The network as it was before `init`."""
    without = lambda node: None if _is_weights(node) else node
    return jax.tree.map(without, net, is_leaf=_is_weights)
