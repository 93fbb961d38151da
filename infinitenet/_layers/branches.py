"""Layers side by side: fan-out, branches, shortcuts, and their sums."""

import abc
from collections.abc import Sequence

import equinox as eqx

from .._branches import (
    Branches,
    carry_each,
    check_each,
    draw_each,
    each,
    join_demands,
    require_each,
)
from .._hyperparameters import check_width
from .._joining import AbstractJoin, Adding, Concatenating, join_kernels, Multiplying
from .._layer import AbstractCombinator, AbstractLayer, infinite, to_layer, to_layers
from .._merging import merged
from .._path import LayerError
from .._piecewise_linear import Linear
from .._signal import Signal


class Identity(AbstractCombinator):
    """Does nothing: the shortcut of a residual block, for example.

    ??? cite "Reference"
        Novak et al., Neural Tangents: Fast and Easy Infinite Neural Networks in Python,
        ICLR 2020: Table 1.
    """

    def carry(self, inputs, *, key=None):
        del key
        return inputs

    def as_pointwise(self):
        return Linear()

    def step(self, signal):
        return (1,) * len(signal.spatial)

    def infinite(self, kernel):
        return kernel


class FanOut(AbstractCombinator):
    """Makes a tuple of copies of its input, for [`infinitenet.Parallel`][].

    ??? cite "Reference"
        Novak et al., Neural Tangents: Fast and Easy Infinite Neural Networks in Python,
        ICLR 2020: Table 1.
    """

    num: int = eqx.field(static=True)

    def __check_init__(self):
        check_width(self, "num", self.num)

    def carry(self, inputs, *, key=None):
        del key
        return (inputs,) * self.num

    def check(self, signal):
        return (signal,) * self.num

    def requires(self, demand):
        return demand if not isinstance(demand, tuple) else join_demands(demand)

    def infinite(self, kernel):
        return (kernel,) * self.num


FanOut.__init__.__doc__ = """**Arguments:**

- `num`: the number of copies.
"""


def _numbered(layers: Sequence[AbstractLayer]) -> Branches:
    return {f"layers[{i}]": layer for i, layer in enumerate(layers)}


class Parallel(AbstractCombinator):
    """Layers side by side, on a tuple of as many inputs.

    Tuples may be nested, as a layer that is given a tuple may be one of these again.

    !!! example

        ```python
        two_inputs = inn.Sequential(
            [
                inn.Parallel([inn.Dense(512), inn.Conv(512, (3,), padding="CIRCULAR")]),
                inn.Parallel([inn.Identity(), inn.Flatten()]),
                inn.Parallel([inn.Identity(), inn.Dense(512)]),
                inn.FanInSum(),
            ]
        )
        ```

    ??? cite "Reference"
        Novak et al., Neural Tangents: Fast and Easy Infinite Neural Networks in Python,
        ICLR 2020: Table 1.
    """

    layers: tuple[AbstractLayer, ...] = eqx.field(converter=to_layers)

    def check(self, signal):
        if isinstance(signal, Signal) or len(signal) != len(self.layers):
            given = "a single array" if isinstance(signal, Signal) else len(signal)
            raise LayerError(
                self,
                f"takes a tuple of {len(self.layers)} inputs, one for each of its layers, "
                f"but it is given {given}. Copies of one input are made by `FanOut`.",
            )
        return check_each(_numbered(self.layers), signal)

    def carry(self, inputs, *, key=None):
        return carry_each(_numbered(self.layers), inputs, key)

    def draw(self, key, signal):
        return Parallel(draw_each(_numbered(self.layers), key, signal))

    def requires(self, demand):
        return require_each(_numbered(self.layers), demand)

    def infinite(self, kernel):
        return each(_numbered(self.layers), infinite, kernel)


Parallel.__init__.__doc__ = """**Arguments:**

- `layers`: the first one acts on the first input, and so on.
"""


class AbstractBranches(AbstractCombinator):
    """Branches that act on the same input, and the array that is made of their outputs."""

    @abc.abstractmethod
    def branches(self) -> Branches:
        """The branches by their names."""

    @abc.abstractmethod
    def with_branches(self, branches: Sequence[AbstractLayer]) -> "AbstractBranches":
        """The same of others."""

    @abc.abstractmethod
    def join(self) -> AbstractJoin:
        """What is made of their outputs."""

    def _uncorrelated(self) -> Branches:
        """The branches as the infinite network has them."""
        return merged(self.branches(), self.join())

    def check(self, signal):
        branches = self._uncorrelated()
        signals = check_each(branches, (signal,) * len(branches))
        return self.join().check(self, signals, list(branches))

    def carry(self, inputs, *, key=None):
        branches = self.branches()
        return self.join().inputs(carry_each(branches, (inputs,) * len(branches), key))

    def draw(self, key, signal):
        branches = self.branches()
        return self.with_branches(draw_each(branches, key, (signal,) * len(branches)))

    def step(self, signal):
        steps = {branch.step(signal) for branch in self._uncorrelated().values()}
        return steps.pop() if len(steps) == 1 and self.join().keeps_distances() else None

    def requires(self, demand):
        branches = self._uncorrelated()
        return join_demands(require_each(branches, (demand,) * len(branches)))

    def as_pointwise(self):
        branches = self._uncorrelated()
        only = next(iter(branches.values()))
        return only.as_pointwise() if len(branches) == 1 else None

    def infinite(self, kernel):
        branches = self._uncorrelated()
        kernels = each(branches, infinite, (kernel,) * len(branches))
        return join_kernels(self.join(), kernels)


class Sum(AbstractBranches):
    r"""Adds the outputs of branches that act on the same input.

    At infinite width $k' = \sum_i k_i$, as branches must have zero covariance with each
    other: all of them but one must end in random weights of their own. It is `FanOut`,
    `Parallel` and `FanInSum` in one.

    ??? cite "Reference"
        Novak et al., Neural Tangents: Fast and Easy Infinite Neural Networks in Python,
        ICLR 2020: section 2.1 and Table 1.
    """

    layers: tuple[AbstractLayer, ...] = eqx.field(converter=to_layers)

    def __check_init__(self):
        _check_any(self, self.layers)

    def branches(self):
        return _numbered(self.layers)

    def with_branches(self, branches):
        return Sum(branches)

    def join(self):
        return Adding()


class Product(AbstractBranches):
    r"""Multiplies the outputs of branches that act on the same input.

    At infinite width $k' = \prod_i k_i$ and $\Theta' = \sum_i \Theta_i \prod_{j \neq i}
    k_j$, as branches must be independent of each other: all of them but one must end in
    random weights of their own. So gated units are made.

    ??? cite "Reference"
        Novak et al., Neural Tangents: Fast and Easy Infinite Neural Networks in Python,
        ICLR 2020: section 2.1 and Table 1.
    """

    layers: tuple[AbstractLayer, ...] = eqx.field(converter=to_layers)

    def __check_init__(self):
        _check_any(self, self.layers)

    def branches(self):
        return _numbered(self.layers)

    def with_branches(self, branches):
        return Product(branches)

    def join(self):
        return Multiplying()


class Concatenate(AbstractBranches):
    r"""Concatenates the outputs of branches that act on the same input.

    Along channels, $k' = \sum_i n_i k_i / \sum_i n_i$ at infinite width, where $n_i$ are
    the widths of branches, which may be correlated. Along positions there is no covariance
    between those of different branches, so that all of these but one must end in random
    weights of their own.

    ??? cite "Reference"
        Novak et al., Neural Tangents: Fast and Easy Infinite Neural Networks in Python,
        ICLR 2020: section 2.1 and Table 1.
    """

    layers: tuple[AbstractLayer, ...] = eqx.field(converter=to_layers)
    axis: int = eqx.field(default=-1, static=True)

    def __check_init__(self):
        _check_any(self, self.layers)

    def branches(self):
        return _numbered(self.layers)

    def with_branches(self, branches):
        return Concatenate(branches, self.axis)

    def join(self):
        return Concatenating(self.axis)


def _check_any(layer: eqx.Module, layers: Sequence[AbstractLayer]) -> None:
    if not layers:
        raise LayerError(layer, "`layers` must not be empty.")


for _cls in (Sum, Product):
    _cls.__init__.__doc__ = """**Arguments:**

- `layers`: the branches.
"""
Concatenate.__init__.__doc__ = """**Arguments:**

- `layers`: the branches.
- `axis`: -1 for channels, or an axis of positions of one example, counted from 0.
"""


class Residual(AbstractBranches):
    """A residual block: a branch, added to its input.

    !!! example

        ```python
        block = inn.Residual(inn.Sequential([inn.Relu(), inn.Dense(512)]))
        ```

    See [`infinitenet.Sum`][] for its infinite width.

    ??? cite "Reference"
        Novak et al., Neural Tangents: Fast and Easy Infinite Neural Networks in Python,
        ICLR 2020: Listing 1.
    """

    branch: AbstractLayer = eqx.field(converter=to_layer)
    shortcut: AbstractLayer = eqx.field(default=Identity(), converter=to_layer)

    def branches(self):
        return {"branch": self.branch, "shortcut": self.shortcut}

    def with_branches(self, branches):
        return Residual(*branches)

    def join(self):
        return Adding()


Residual.__init__.__doc__ = """**Arguments:**

- `branch`: the layer that is added.
- `shortcut`: what becomes of the input that it is added to. For example a `Conv` with
    strides, where those of the branch change the shape.
"""
