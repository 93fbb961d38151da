"""Layers one after the other."""

import equinox as eqx

from .._layer import (
    AbstractCombinator,
    AbstractLayer,
    check,
    infinite,
    split_key,
    to_layers,
)
from .._path import inside
from .._piecewise_linear import Linear


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
        for i, layer in enumerate(self.layers):
            with inside(f"layers[{i}]"):
                kernel = infinite(layer, kernel)
        return kernel


Sequential.__init__.__doc__ = """**Arguments:**

- `layers`: the first one is applied first.
"""
