"""Layers one after the other."""

from collections.abc import Sequence

import equinox as eqx

from .._affine import AbstractAffine
from .._kernel import Kernels
from .._layer import (
    AbstractCombinator,
    AbstractLayer,
    check,
    infinite,
    infinite_all,
    split_key,
    to_layers,
)
from .._loop import infinite_blocks, repeats
from .._path import inside
from .._piecewise_linear import Linear
from .._weights import without_weights


class Sequential(AbstractCombinator):
    """Layers one after the other.

    !!! example

        ```python
        net = inn.Sequential([inn.Dense(512), inn.Relu(), inn.Dense(1)])
        ```

    ??? cite "Reference"
        Novak et al., Neural Tangents: Fast and Easy Infinite Neural Networks in Python,
        ICLR 2020: Table 1.
    """

    layers: tuple[AbstractLayer, ...] = eqx.field(converter=to_layers)

    def carry(self, inputs, *, key=None):
        keys = split_key(key, len(self.layers))
        for i, (layer, k) in enumerate(zip(self.layers, keys, strict=True)):
            with inside(f"layers[{i}]"):
                inputs = layer.carry(inputs, key=k)
        return inputs

    def as_pointwise(self):
        parts = [layer.as_pointwise() for layer in self.layers]
        parts = [part for part in parts if not isinstance(part, Linear)]
        if not parts:
            return Linear()
        return parts[0] if len(parts) == 1 else None

    def check(self, signal):
        for i, layer in enumerate(self.layers):
            with inside(f"layers[{i}]"):
                signal = check(layer, signal)
        return signal

    def step(self, signal):
        total = (1,) * len(signal.spatial)
        for layer in self.layers:
            step = layer.step(signal)
            if step is None:
                return None
            total = tuple(a * b for a, b in zip(total, step, strict=True))
            signal = check(layer, signal)
        return total

    def requires(self, demand):
        for i, layer in reversed(list(enumerate(self.layers))):
            with inside(f"layers[{i}]"):
                demand = layer.requires(demand)
        return demand

    def draw(self, key, signal):
        layers = []
        for i, (layer, k) in enumerate(
            zip(self.layers, split_key(key, len(self.layers)), strict=True)
        ):
            with inside(f"layers[{i}]"):
                layers.append(layer.draw(k, signal))
                signal = check(layer, signal)
        return Sequential(layers)

    def infinite(self, kernel):
        layers = without_weights(self).layers
        for start, period, times in _with_end(layers, [*repeats(layers)]):
            starts = range(start, start + period * times, period)
            if times > 1:
                blocks = [Sequential(layers[i : i + period]) for i in starts]
                kernel = infinite_blocks(blocks, kernel)
                continue
            kernel = _one_by_one(layers[start : start + period], start, kernel)
        return kernel


def _one_by_one(layers: Sequence[AbstractLayer], start: int, kernel: Kernels) -> Kernels:
    """The kernel after layers, those without windows together with the next one."""
    for group in _groups(layers):
        with inside(f"layers[{start + group[-1]}]"):
            if isinstance(layers[group[0]], AbstractCombinator):
                kernel = infinite(layers[group[0]], kernel)
            else:
                kernel = infinite_all([layers[i] for i in group], kernel)
    return kernel


def _groups(layers: Sequence[AbstractLayer]) -> list[list[int]]:
    """Indices of layers that are compiled together."""
    groups: list[list[int]] = [[]]
    for i, layer in enumerate(layers):
        if isinstance(layer, AbstractCombinator):
            groups += [[i], []]
            continue
        groups[-1].append(i)
        if not _is_light(layer):
            groups.append([])
    *groups, end = [group for group in groups if group]
    is_light = all(_is_light(layers[i]) for i in end)
    if groups and is_light and not isinstance(layers[groups[-1][0]], AbstractCombinator):
        # There are no later layers which the last ones could be together with.
        end = groups.pop() + end
    return [*groups, end]


def _with_end(
    layers: Sequence[AbstractLayer], repeats: list[tuple[int, int, int]]
) -> list[tuple[int, int, int]]:
    """If few layers before the end are repeated only once, the end is together with them:
    for two of a kind a loop saves nothing."""
    if len(repeats) < 2 or repeats[-2][2] != 2 or repeats[-1][2] != 1:
        return repeats
    start, last = repeats[-2][0], repeats[-1][0]
    is_simple = not any(isinstance(l, AbstractCombinator) for l in layers[start:last])
    if is_simple and all(map(_is_light, layers[last:])):
        return [*repeats[:-2], (start, len(layers) - start, 1)]
    return repeats


def _is_light(layer: AbstractLayer) -> bool:
    return isinstance(layer, AbstractAffine) and not layer.filter_shape


Sequential.__init__.__doc__ = """**Arguments:**

- `layers`: the first one is applied first.
"""
