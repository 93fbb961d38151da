"""Trainable weights are told from hyperparameters by their type."""

import equinox as eqx
import jax
from jaxtyping import PyTree


class AbstractWeights(eqx.Module):
    """The weights of one layer: all arrays in here are trained, and no others are."""


def _is_weights(node: object) -> bool:
    return isinstance(node, AbstractWeights)


def trainable(net: PyTree) -> PyTree[bool]:
    """A filter of weights, for `eqx.partition` and `eqx.filter`.

    !!! example

        ```python
        weights, rest = eqx.partition(net, inn.trainable(net))
        opt_state = optax.adam(1e-3).init(weights)
        net = eqx.combine(weights, rest)
        ```

    **Arguments:**

    - `net`: a layer or any pytree of layers.

    **Returns:**

    A pytree of the same structure: `True` for arrays of weights, `False` for all else,
    such as `W_std` and `b_std`.
    """

    def mark(node):
        return jax.tree.map(lambda _: _is_weights(node), node)

    return jax.tree.map(mark, net, is_leaf=_is_weights)


def without_weights(net: PyTree) -> PyTree:
    """The network as it was before `init`."""
    weights, rest = eqx.partition(net, trainable(net))
    del weights
    return jax.tree.map(
        lambda node: None if _is_weights(node) else node, rest, is_leaf=_is_weights
    )
