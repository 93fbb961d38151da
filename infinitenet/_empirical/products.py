"""Products of activations with weights, as sums over positions of outer products.

With activations `a` of shape `(groups, positions, inputs)` and gradients `d` along the
outputs, of shape `(groups, positions, outputs)`, the gradient along the weight is
`sum_p a[g, p, i] d[g, p, j]`.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class Layout(NamedTuple):
    """How a product is such a sum.

    - `key`: which axes of the weight are groups, inputs and outputs.
    - `activations`: makes `a`.
    - `gradients`: makes `d` of a gradient along the outputs.
    """

    key: tuple[Any, ...]
    activations: Callable[[], Float[Array, "groups positions inputs"]]
    gradients: Callable[[Array], Float[Array, "groups positions outputs"]]


def _size(shape: tuple[int, ...], axes: Any) -> int:
    return math.prod(shape[i] for i in axes)


def match_dot(params: dict[str, Any], a: Array, weight: Array, place: int) -> Layout:
    """`lax.dot_general`, of which the weight is the operand number `place`."""
    contracting, batch = params["dimension_numbers"]
    a_batch, w_batch = (tuple(batch[i]) for i in (1 - place, place))
    # In the order of the weight, so that its entries are in one order for all sites.
    pairs = sorted(zip(contracting[place], contracting[1 - place], strict=True))
    w_in, a_in = tuple(w for w, _ in pairs), tuple(i for _, i in pairs)
    a_free = tuple(i for i in range(a.ndim) if i not in a_batch + a_in)
    w_free = tuple(i for i in range(weight.ndim) if i not in w_batch + w_in)
    groups, positions = _size(a.shape, a_batch), _size(a.shape, a_free)
    outputs = _size(weight.shape, w_free)

    def activations():
        moved = jnp.transpose(a, a_batch + a_free + a_in)
        return moved.reshape(groups, positions, _size(a.shape, a_in))

    def gradients(d):
        if place == 1:
            return d.reshape(groups, positions, outputs)
        return d.reshape(groups, outputs, positions).swapaxes(1, 2)

    return Layout(("dot", w_batch, w_in), activations, gradients)


# Filters of more taps are rare, and each tap is an operation.
_MOST_TAPS = 256


def match_conv(
    params: dict[str, Any], image: Array, filter_: Array, out: Array
) -> Layout | None:
    """`lax.conv_general_dilated`, of which the filter is the weight."""
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    taps = [filter_.shape[i] for i in numbers.rhs_spec[2:]]
    if params["batch_group_count"] != 1 or math.prod(taps) > _MOST_TAPS:
        return None
    n, *out_spatial = (out.shape[i] for i in (numbers.out_spec[0], *numbers.out_spec[2:]))
    positions = n * math.prod(out_spatial)

    def activations():
        x = _patches(params, image, taps, out_spatial)
        x = x.reshape(positions, math.prod(taps), groups, -1)
        return x.transpose(2, 0, 1, 3).reshape(groups, positions, -1)

    def gradients(d):
        batch, channels, *spatial = numbers.out_spec
        d = d.transpose(batch, *spatial, channels).reshape(positions, groups, -1)
        return d.swapaxes(0, 1)

    return Layout(("conv", tuple(numbers.rhs_spec), groups), activations, gradients)


def _patches(
    params: dict[str, Any], image: Array, taps: list[int], out_spatial: list[int]
) -> Float[Array, "n *out taps channels"]:
    """What each tap of the filter sees."""
    batch, channels, *spatial = params["dimension_numbers"].lhs_spec
    x = image.transpose(batch, *spatial, channels)
    edges = zip(params["padding"], params["lhs_dilation"], strict=True)
    config = [(0, 0, 0), *((lo, hi, d - 1) for (lo, hi), d in edges), (0, 0, 0)]
    x = lax.pad(x, jnp.zeros((), x.dtype), config)
    strides, dilation = params["window_strides"], params["rhs_dilation"]
    seen = []
    for tap in np.ndindex(*taps):
        start = [t * d for t, d in zip(tap, dilation, strict=True)]
        stop = [
            i + (n - 1) * s + 1 for i, n, s in zip(start, out_spatial, strides, strict=True)
        ]
        cut = lax.slice(
            x, (0, *start, 0), (x.shape[0], *stop, x.shape[-1]), (1, *strides, 1)
        )
        seen.append(cut)
    return jnp.stack(seen, axis=-2)
