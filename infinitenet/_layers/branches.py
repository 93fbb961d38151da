"""Layers side by side: fan-out, branches, shortcuts, and their sum."""

import abc
import dataclasses
import functools as ft
from collections.abc import Callable, Sequence
from typing import TypeAlias, TypeVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from .._covariance import Covariance
from .._hyperparameters import check_width
from .._kernel import Demand, Demands, Kernel
from .._layer import (
    AbstractCombinator,
    AbstractLayer,
    check,
    infinite,
    split_key,
    to_layer,
    to_layers,
)
from .._path import inside, LayerError
from .._signal import Signal, Signals


def _fan_out(layer: AbstractLayer, signal: Signals) -> Signal:
    """Of each copy: it is correlated with all others until it meets fresh weights."""
    if not isinstance(signal, Signal):
        raise LayerError(
            layer,
            f"copies a single array, but its input is a tuple of {len(signal)}, the parts "
            "of which may be correlated with each other as well. Put one such layer for "
            "each of them into `Parallel`, or `FanInSum` before it.",
        )
    return dataclasses.replace(signal, fresh=(*signal.fresh, False))


def _join(demands: Demands) -> Demand:
    """What meets all of these demands."""
    if isinstance(demands, Demand):
        return demands
    joined = [_join(demand) for demand in demands]
    return ft.reduce(lambda a, b: a.at_least(b.cross, b.marginal), joined)


def _fan_in(
    layer: AbstractLayer, signals: Sequence[Signals], names: Sequence[str]
) -> Signal:
    """The signal of a sum, if the covariance of the sum is the sum of covariances."""
    single = [signal for signal in signals if isinstance(signal, Signal)]
    if len(single) < len(signals):
        raise LayerError(layer, "its branches must end in one array each, not a tuple.")
    return _sum_of_signals(layer, single, names)


def _sum_of_signals(
    layer: AbstractLayer, signals: Sequence[Signal], names: Sequence[str]
) -> Signal:
    shapes = [signal.shape for signal in signals]
    if len(set(shapes)) > 1:
        listed = ", ".join(map("`{}` {}".format, names, shapes))
        raise LayerError(
            layer,
            f"its branches must have outputs of equal shapes, but these are {listed}.",
        )
    stale = [n for n, s in zip(names, signals, strict=True) if s.fresh[-1:] != (True,)]
    if len(stale) > 1:
        raise LayerError(
            layer,
            f"its branches {' and '.join(map('`{}`'.format, stale))} have no weights of "
            "their own after their last nonlinearity, so that they are correlated, and "
            "their kernels do not add up. End all of them but one in a `Dense` or `Conv`.",
        )
    outer = zip(*(signal.fresh[:-1] for signal in signals), strict=True)
    return dataclasses.replace(
        signals[0],
        gaussian=all(signal.gaussian for signal in signals),
        fresh=tuple(map(all, outer)),
    )


def _add_covariances(covs: Sequence[Covariance]) -> Covariance:
    # Branches may hold more than was asked for: keep what they have in common.
    pairs = min(cov.pairs for cov in covs)
    return Covariance(ft.reduce(jnp.add, [cov.to(pairs).array for cov in covs]), pairs)


@eqx.filter_jit
def _add(kernels: Sequence) -> Kernel:
    """The kernel of a sum of uncorrelated branches."""

    def add(covs: Sequence[Covariance | None]) -> Covariance | None:
        known = [cov for cov in covs if cov is not None]
        return _add_covariances(known) if len(known) == len(covs) else None

    return Kernel(
        _add_covariances([k.nngp for k in kernels]),
        add([k.ntk for k in kernels]),
        add([k.cov1 for k in kernels]),
        add([k.cov2 for k in kernels]),
        kernels[0].alone,
        kernels[0].channels,
    )


class Identity(AbstractLayer):
    """Does nothing: the shortcut of a residual block, for example."""

    def __call__(self, x, *, key=None):
        del key
        return x

    def infinite(self, kernel):
        return kernel


class FanOut(AbstractCombinator):
    """Makes a tuple of copies of its input, for [`infinitenet.Parallel`][]."""

    num: int = eqx.field(static=True)

    def __check_init__(self):
        check_width(self, "num", self.num)

    def __call__(self, x, *, key=None):
        del key
        return (x,) * self.num

    def check(self, signal):
        return (_fan_out(self, signal),) * self.num

    def requires(self, demand):
        return _join(demand)

    def infinite(self, kernel):
        return (kernel,) * self.num


FanOut.__init__.__doc__ = """**Arguments:**

- `num`: the number of copies.
"""


class FanInSum(AbstractCombinator):
    r"""Adds the arrays of a tuple, which branches have made.

    At infinite width $k' = \sum_i k_i$, as branches must have zero covariance with each
    other: all of them but one must end in random weights of their own.
    """

    def __call__(self, x, *, key=None):
        del key
        return ft.reduce(jnp.add, x)

    def check(self, signal):
        if not isinstance(signal, tuple) or not signal:
            raise LayerError(
                self,
                "adds the arrays of a tuple, but its input is a single array. Put a "
                "`FanOut` and a `Parallel` before it, or use `Sum`.",
            )
        return _fan_in(self, signal, [f"{i}" for i in range(len(signal))])

    def infinite(self, kernel):
        return _add(kernel)


Branches: TypeAlias = dict[str, AbstractLayer]
T = TypeVar("T")


def _each(branches: Branches, fn: Callable[..., T], *inputs: Sequence) -> tuple[T, ...]:
    """`fn(branch, *input)` of every branch, where errors name it."""
    out = []
    for (name, branch), *args in zip(branches.items(), *inputs, strict=True):
        with inside(name):
            out.append(fn(branch, *args))
    return tuple(out)


def _call(branches: Branches, xs: Sequence, key: PRNGKeyArray | None) -> tuple:
    keys = split_key(key, len(branches))
    return _each(branches, lambda layer, x, key: layer(x, key=key), xs, keys)


def _draw(branches: Branches, key: PRNGKeyArray, signals: Sequence[Signals]) -> tuple:
    keys = split_key(key, len(branches))
    return _each(branches, lambda layer, *args: layer.draw(*args), keys, signals)


def _check(branches: Branches, signals: Sequence[Signals]) -> tuple[Signals, ...]:
    return _each(branches, check, signals)


def _requires(branches: Branches, demands: Demands) -> tuple[Demands, ...]:
    n = len(branches)
    each = (demands,) * n if isinstance(demands, Demand) else demands
    return _each(branches, lambda layer, demand: layer.requires(demand), each)


class Parallel(AbstractCombinator):
    """Layers side by side, on a tuple of as many inputs.

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
    """

    layers: tuple[AbstractLayer, ...] = eqx.field(converter=to_layers)

    def _branches(self) -> Branches:
        return {f"layers[{i}]": layer for i, layer in enumerate(self.layers)}

    def check(self, signal):
        if isinstance(signal, Signal) or len(signal) != len(self.layers):
            given = "a single array" if isinstance(signal, Signal) else len(signal)
            raise LayerError(
                self,
                f"takes a tuple of {len(self.layers)} inputs, one for each of its layers, "
                f"but it is given {given}. Copies of one input are made by `FanOut`.",
            )
        return _check(self._branches(), signal)

    def __call__(self, x, *, key=None):
        return _call(self._branches(), x, key)

    def draw(self, key, signal):
        return Parallel(_draw(self._branches(), key, signal))

    def requires(self, demand):
        return _requires(self._branches(), demand)

    def infinite(self, kernel):
        return _each(self._branches(), infinite, kernel)


Parallel.__init__.__doc__ = """**Arguments:**

- `layers`: the first one acts on the first input, and so on.
"""


class AbstractSum(AbstractCombinator):
    """A sum of branches that act on the same input."""

    @abc.abstractmethod
    def branches(self) -> Branches:
        """The branches by their names."""

    @abc.abstractmethod
    def with_branches(self, branches: Sequence[AbstractLayer]) -> "AbstractSum":
        """The sum of others."""

    def check(self, signal):
        copies = (_fan_out(self, signal),) * len(self.branches())
        return _fan_in(self, _check(self.branches(), copies), list(self.branches()))

    def __call__(self, x, *, key=None):
        branches = self.branches()
        return ft.reduce(jnp.add, _call(branches, (x,) * len(branches), key))

    def draw(self, key, signal):
        copies = (_fan_out(self, signal),) * len(self.branches())
        return self.with_branches(_draw(self.branches(), key, copies))

    def requires(self, demand):
        return _join(_requires(self.branches(), demand))

    def infinite(self, kernel):
        branches = self.branches()
        return _add(_each(branches, infinite, (kernel,) * len(branches)))


class Sum(AbstractSum):
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
        if not self.layers:
            raise LayerError(self, "`layers` must not be empty.")

    def branches(self):
        return {f"layers[{i}]": layer for i, layer in enumerate(self.layers)}

    def with_branches(self, branches):
        return Sum(branches)


Sum.__init__.__doc__ = """**Arguments:**

- `layers`: the branches.
"""


class Residual(AbstractSum):
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


Residual.__init__.__doc__ = """**Arguments:**

- `branch`: the layer that is added.
- `shortcut`: what becomes of the input that it is added to. For example a `Conv` with
    strides, where those of the branch change the shape.
"""
