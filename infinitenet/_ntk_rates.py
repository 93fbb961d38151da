"""Networks in standard parameterization that learn as those in NTK parameterization."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from ._affine import AbstractAffine
from ._layer import AbstractLayer
from ._weights import trainable


def ntk_learning_rates(net: AbstractLayer) -> PyTree[Float[Array, ""]]:
    r"""Factors of the learning rate for each array of weights, by which a network in
    standard parameterization learns as the same one in NTK parameterization.

    In NTK parameterization a layer is $\frac{\sigma}{\sqrt N} W x + \sigma_b b$ of
    standard normal $W$ and $b$, where $N$ is the fan-in. In standard parameterization it is
    $V x + a$, so that $V = \frac{\sigma}{\sqrt N} W$ and $a = \sigma_b b$. By the chain
    rule, a step $\Delta W = -\eta\, \partial_W L$ is

    $$
    \Delta V = -\eta\, \frac{\sigma^2}{N}\, \partial_V L,
    \qquad
    \Delta a = -\eta\, \sigma_b^2\, \partial_a L.
    $$

    These factors, $\sigma^2 / N$ and $\sigma_b^2$, are what is returned; with widths
    scaled by $s$ as in [`infinitenet.StandardParameterization`][], $\sigma^2 s / N$. For
    gradient descent with or without momentum all of the path is then the same, at any
    width. For any other optimiser use [`infinitenet.ntk_parameterized`][].

    !!! example

        ```python no-run
        rates = inn.ntk_learning_rates(net)
        scale = lambda gradient, weights: jax.tree.map(jnp.multiply, rates, gradient)
        optimiser = optax.chain(optax.stateless(scale), optax.sgd(0.1, momentum=0.9))
        ```

    **Arguments:**

    - `net`: a network after `init`. Of an ensemble, one network.

    **Returns:** scalars, in a pytree like `eqx.filter(net, inn.trainable(net))`. They are 1
    for weights in NTK parameterization.

    **Raises:** `ValueError` if the network has no weights yet, or is an ensemble.

    ??? cite "Reference"
        Sohl-Dickstein, Novak, Schoenholz & Lee, On the infinite width limit of neural
        networks with a standard parameterization, 2020 (arXiv:2001.07301).
    """
    return jax.tree.map(jnp.square, _scales(net))


def ntk_parameterized(
    optimiser: optax.GradientTransformation, net: AbstractLayer
) -> optax.GradientTransformationExtraArgs:
    r"""An optimiser of a network in standard parameterization that does to it what
    another one does to the same network in NTK parameterization.

    Gradients, weights and changes are transformed to NTK parameterization and back: see
    [`infinitenet.ntk_learning_rates`][]. So this holds for any optimiser: for Adam, for
    weight decay, for searches along a line.

    !!! example

        ```python no-run
        optimiser = inn.ntk_parameterized(optax.adam(0.01), net.init(key, x[0]))
        ```

    **Arguments:**

    - `optimiser`: any of Optax.
    - `net`: a network after `init`. Of an ensemble, one network.

    **Returns:** an optimiser of Optax, for the weights of `net`, or of networks like it.

    **Raises:** `ValueError` as `ntk_learning_rates`.
    """
    scales = _scales(net)
    optimiser = optax.with_extra_args_support(optimiser)
    # Where the scale is zero, weights are zero too, and have no part in the network.
    to_ntk = lambda weights: jax.tree.map(_divide, weights, scales)
    scaled = lambda tree: jax.tree.map(jnp.multiply, tree, scales)

    def init(params: PyTree) -> PyTree:
        return optimiser.init(to_ntk(params))

    def update(
        updates: PyTree, state: PyTree, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, PyTree]:
        more = dict(extra_args)
        if "grad" in more:
            more["grad"] = scaled(more["grad"])
        if "value_fn" in more:
            more["value_fn"] = _in_ntk(more["value_fn"], scaled)
        params = None if params is None else to_ntk(params)
        change, state = optimiser.update(scaled(updates), state, params, **more)
        return scaled(change), state

    return optax.GradientTransformationExtraArgs(init, update)


def _in_ntk(fn: Callable[..., Array], scaled: Callable) -> Callable[..., Array]:
    return lambda weights, *args, **more: fn(scaled(weights), *args, **more)


def _divide(x: Array, scale: Array) -> Array:
    return jnp.where(scale == 0, 0, x / jnp.where(scale == 0, 1, scale))


def _is_affine(node: object) -> bool:
    return isinstance(node, AbstractAffine)


def _scales(net: AbstractLayer) -> PyTree[Float[Array, ""]]:
    """Standard deviations with which weights are drawn: their scales to standard normal."""
    weights = eqx.filter(net, trainable(net))
    if not isinstance(net, AbstractLayer) or not jax.tree.leaves(weights):
        raise ValueError(
            "`net` must be a network of infinitenet with weights: draw them by "
            "`net.init(key, x)` with one example `x`."
        )
    ones = jax.tree.map(lambda w: jnp.ones((), w.dtype), weights)
    of = lambda layer, one: _of_affine(layer, one) if _is_affine(layer) else one
    return jax.tree.map(of, net, ones, is_leaf=_is_affine)


def _of_affine(layer: AbstractAffine, ones: AbstractAffine) -> AbstractAffine:
    assert layer.weights is not None
    W, b = layer.weights.W, layer.weights.b
    if layer.W_std.ndim:
        raise ValueError(
            "`net` must be a single network, but it is an ensemble. Give one of it: "
            "`jax.tree.map(lambda x: x[0], ensemble)`."
        )
    fan_in = layer.fan_in(W.shape[-2])
    std = layer.parameterization.weights(layer.W_std, fan_in).init.astype(W.dtype)
    ones = eqx.tree_at(lambda layer: layer.weights.W, ones, std)
    if b is None or layer.b_std is None:
        return ones
    std = layer.parameterization.biases(layer.b_std).init.astype(b.dtype)
    return eqx.tree_at(lambda layer: layer.weights.b, ones, std)
