"""Inputs that come with a mask or a graph."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PyTree

from ._checks import guard


class Positions(eqx.Module):
    """What is known of the positions of one input, besides the values at them.

    - `missing`: whether there is no value at a position, of shape `spatial`. `None` if
        there is one everywhere.
    - `pattern`: the graph which [`infinitenet.Aggregate`][] sums over.
    """

    missing: Bool[Array, "*spatial"] | None = None
    pattern: Array | None = None

    def through(self, mask: Callable[[Array], Array] | None) -> "Positions":
        """After a layer, of which `mask` tells the outputs that are missing."""
        if self.missing is None or mask is None:
            return self
        return Positions(mask(self.missing), self.pattern)


class Inputs(eqx.Module):
    """Inputs, some of whose positions are missing, or which are on a graph.

    It may stand wherever inputs may: in `gram`, `net.kernel`, and calls of finite networks.
    Sequences and images of various sizes are padded to a common size, and what was added
    is declared as missing. Such positions are zero in all layers, and layers that average
    over positions, or attend to them, leave them out.

    !!! example

        ```python
        missing = jnp.arange(x.shape[1]) >= lengths[:, None]  # of shape (n, time)
        k = inn.gram(net, inn.Inputs(x, missing=missing))
        finite = net.init(key, x[0])
        y = jax.vmap(finite)(inn.Inputs(x, missing=missing))
        ```

    ??? cite "Reference"
        Novak et al., Neural Tangents: Fast and Easy Infinite Neural Networks in Python,
        ICLR 2020.
    """

    array: Any
    positions: Positions

    def __init__(
        self,
        array: Any,
        *,
        missing: Any = None,
        mask_constant: float | None = None,
        pattern: Any = None,
    ):
        """**Arguments:**

        - `array`: of shape `(*spatial, channels)`, or of a batch of these.
        - `missing`: Booleans of the same shape without `channels`: whether there is no
            value. What `array` has there does not matter, it may even be NaN.
        - `mask_constant`: instead of `missing`, a number (or NaN) that all channels of a
            missing position are equal to.
        - `pattern`: the graph that [`infinitenet.Aggregate`][] sums over.

        **Raises:** `ValueError` for masks that do not fit; and if only some channels of a
            position are equal to `mask_constant`.
        """
        if mask_constant is not None:
            if missing is not None:
                raise ValueError("Give `missing` or `mask_constant`, but not both.")
            missing = _equal(array, mask_constant)
        if missing is not None:
            missing = _mask(array, missing)
            array = jnp.where(missing[..., None], 0, array)
        self.array = jnp.asarray(array) if isinstance(array, np.ndarray) else array
        pattern = None if pattern is None else jnp.asarray(pattern)
        self.positions = Positions(missing, pattern)

    def through(
        self, array: Array, mask: Callable[[Array], Array] | None = None
    ) -> "Inputs":
        """The outputs of a layer: `array`, and zeros where they are missing."""
        positions = self.positions.through(mask)
        return Inputs(array, missing=positions.missing, pattern=positions.pattern)


def _mask(array: Any, missing: Any) -> Bool[Array, "..."]:
    missing = jnp.asarray(missing)
    if missing.dtype != bool:
        raise ValueError(
            f"`missing` must be Booleans, but its dtype is {missing.dtype}. It is `True` "
            "where there is no value."
        )
    if missing.shape != np.shape(array)[:-1]:
        raise ValueError(
            "`missing` must be of the shape of the inputs without channels, "
            f"{np.shape(array)[:-1]}, but it is of shape {missing.shape}."
        )
    return missing


def _equal(array: Any, constant: float) -> Bool[Array, "..."]:
    array = jnp.asarray(array)
    equal = jnp.isnan(array) if np.isnan(constant) else array == constant
    message = (
        f"`mask_constant` {constant} must be in all channels of a position or in none, "
        "but it is in some. Choose a number that does not occur, or give `missing`."
    )
    mixed = lambda equal: jnp.any(jnp.any(equal, -1) & ~jnp.all(equal, -1))
    return jnp.all(guard(equal, mixed, lambda _: message, message), -1)


def is_inputs(node: object) -> bool:
    return isinstance(node, Inputs)


def wrap(x: PyTree) -> PyTree[Inputs]:
    """Arrays, or tuples of arrays, as `Inputs`, of which some may be such already."""
    if isinstance(x, tuple):
        return tuple(map(wrap, x))
    return x if isinstance(x, Inputs) else Inputs(x)


def unwrap(x: PyTree[Inputs]) -> Any:
    """Arrays, with zeros where they are missing."""
    return jax.tree.map(lambda node: node.array, x, is_leaf=is_inputs)


def alike(x1: PyTree[Inputs], x2: PyTree[Inputs]) -> tuple[PyTree, PyTree]:
    """Both with masks where one of them has."""

    def with_mask(x: Inputs, other: Inputs) -> Inputs:
        if x.positions.missing is not None or other.positions.missing is None:
            return x
        nowhere = jnp.zeros(x.array.shape[:-1], bool)
        return Inputs(x.array, missing=nowhere, pattern=x.positions.pattern)

    first = jax.tree.map(with_mask, x1, x2, is_leaf=is_inputs)
    return first, jax.tree.map(with_mask, x2, x1, is_leaf=is_inputs)
