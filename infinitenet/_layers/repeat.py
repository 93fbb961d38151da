"""The same layer many times over."""

import equinox as eqx
import jax
import jax.lax as lax
import jax.random as jr

from .._branches import join_demands
from .._hyperparameters import check_width
from .._layer import AbstractCombinator, AbstractLayer, check, to_layer
from .._loop import infinite_blocks
from .._path import inside, LayerError
from .._weights import trainable, without_weights


class Repeat(AbstractCombinator):
    """A layer many times over, with independent weights and common hyperparameters.

    It is a loop that is compiled once, so that compile time does not grow with depth. All
    arrays of the weights have a first axis more, of size `times`.

    !!! example

        ```python
        block = inn.Sequential([inn.Relu(), inn.Dense(512, W_std=2**0.5)])
        net = inn.Sequential([inn.Dense(512), inn.Repeat(block, 20), inn.Dense(1)])
        ```

    ??? cite "Reference"
        Novak et al., Neural Tangents: Fast and Easy Infinite Neural Networks in Python,
        ICLR 2020: Table 1.
    """

    layer: AbstractLayer = eqx.field(converter=to_layer)
    times: int = eqx.field(static=True)

    def __check_init__(self):
        check_width(self, "times", self.times)

    def check(self, signal):
        with inside("layer"):
            first = check(self.layer, signal)
            if self.times == 1:
                return first
            last = check(self.layer, first)
        shapes = [
            jax.tree.map(lambda s: s.shape, s, is_leaf=lambda s: hasattr(s, "shape"))
            for s in (signal, last)
        ]
        if shapes[0] != shapes[1]:
            raise LayerError(
                self,
                f"`layer` must keep the shape of its input to be repeated, but it turns "
                f"{shapes[0]} into {shapes[1]}.",
            )
        return last

    def step(self, signal):
        step = self.layer.step(signal)
        return step if self.times == 1 or step == (1,) * len(signal.spatial) else None

    def requires(self, demand):
        # What the layer needs, its predecessor must also provide: more and more, up to
        # a fixed point, as demands only grow.
        with inside("layer"):
            needed = self.layer.requires(demand)
            while True:
                raised = join_demands([needed, demand])
                new = self.layer.requires(raised)
                if new == needed:
                    return raised
                needed = new

    def draw(self, key, signal):
        with inside("layer"):
            keys = jr.split(key, self.times)
            drawn = eqx.filter_vmap(lambda key: self.layer.draw(key, signal))(keys)
        # Hyperparameters remain common to all.
        weights, rest = eqx.partition(drawn, trainable(drawn))
        rest = jax.tree.map(lambda x: x[0] if eqx.is_array(x) else x, rest)
        return Repeat(eqx.combine(weights, rest), self.times)

    def carry(self, inputs, *, key=None):
        weights, rest = eqx.partition(self.layer, trainable(self.layer))
        keys = None if key is None else jr.split(key, self.times)

        def step(inputs, each):
            weights, key = each
            return eqx.combine(weights, rest).carry(inputs, key=key), None

        with inside("layer"):
            return lax.scan(step, inputs, (weights, keys), length=self.times)[0]

    def infinite(self, kernel):
        with inside("layer"):
            return infinite_blocks([without_weights(self.layer)] * self.times, kernel)


Repeat.__init__.__doc__ = """**Arguments:**

- `layer`: what is repeated. Its outputs are of the shape of its inputs.
- `times`: how often.
"""
