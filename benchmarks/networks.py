"""The networks of the benchmarks, each defined once for both libraries.

A network is built from a library of layers which has the names and the arguments of
`infinitenet`: that itself, or `Stax`, which speaks for `neural_tangents`. So the two
networks cannot drift apart. As `peer.py`, this file runs under either interpreter.

Standard deviations are always passed, as the libraries need not have the same defaults.
"""

import functools as ft
import importlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


STDS = {"W_std": 2**0.5, "b_std": 0.1}

# What has another name in `neural_tangents.stax`.
_NAMES = {"SelfAttention": "GlobalSelfAttention", "SigmoidLike": "Sigmoid_like"}

# Points of the quadrature of `neural_tangents`, along each of two dimensions: what its
# documentation recommends for smooth functions.
_POINTS = 25


class Stax:
    """The layers of `neural_tangents.stax`, called as those of `infinitenet` are.

    Only what is called differently is defined here. Batches are axes of its arrays, so
    that axes of one example are counted from 1.
    """

    def __init__(self, stax: Any):
        self.stax = stax

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stax, _NAMES.get(name, name))

    def Sequential(self, layers: Sequence[Any]) -> Any:
        return self.stax.serial(*layers)

    def Parallel(self, layers: Sequence[Any]) -> Any:
        return self.stax.parallel(*layers)

    def Residual(self, branch: Any, shortcut: Any = None) -> Any:
        shortcut = self.stax.Identity() if shortcut is None else shortcut
        branches = self.Parallel([branch, shortcut])
        return self.Sequential([self.stax.FanOut(2), branches, self.stax.FanInSum()])

    def Elementwise(self, fn: Callable[[Any], Any]) -> Any:
        return self.stax.ElementwiseNumerical(fn, _POINTS)

    def Tanh(self) -> Any:
        return self.Elementwise(importlib.import_module("jax.numpy").tanh)

    def Softplus(self) -> Any:
        return self.Elementwise(importlib.import_module("jax").nn.softplus)

    def Pointwise(self, fn: Callable[[Any], Any], dual: Callable[..., Any]) -> Any:
        return self.stax.Elementwise(fn, lambda k, q1, q2: dual(q1, k, q2))

    def DotGeneral(self, *, rhs: Any, dimension_numbers: Any) -> Any:
        (contracted, constants), (batch, _) = dimension_numbers
        if batch:
            raise NotImplementedError("Batch axes would move those of positions.")
        axes = tuple(axis + 1 for axis in contracted)
        numbers = ((axes, constants), ((), ()))
        return self.stax.DotGeneral(rhs=rhs, dimension_numbers=numbers)

    def SparseAggregate(self) -> Any:
        return self.stax.Aggregate(implementation="SPARSE")

    def ImageResize(self, shape: Sequence[int], method: str) -> Any:
        return self.stax.ImageResize((-1, *shape, -1), method)

    def Index(self, idx: tuple[Any, ...]) -> Any:
        return self.stax.Index((slice(None), *idx))

    def WideResNet(self, depth: int, k: int, num_classes: int) -> Any:
        conv = ft.partial(self.stax.Conv, filter_shape=(3, 3), padding="SAME")
        relu = self.stax.Relu()

        def branch(width: int, first: Any) -> Any:
            return self.Sequential([relu, first, relu, conv(width)])

        layers = [conv(16)]
        for width, strides in ((16 * k, (1, 1)), (32 * k, (2, 2)), (64 * k, (2, 2))):
            first = conv(width, strides=strides)
            other = self.Residual(branch(width, conv(width)))
            layers.append(self.Residual(branch(width, first), first))
            layers += [other] * ((depth - 4) // 6 - 1)
        return self.Sequential([*layers, self.GlobalAvgPool(), self.Dense(num_classes)])

    def Myrtle(self, depth: int, **options: Any) -> Any:
        # Convolutions of each group.
        groups = {5: (2, 1, 1), 7: (2, 2, 2), 10: (3, 3, 3)}[depth]
        hidden = [conv(self, **options), self.stax.Relu()]
        first, second, third = (n * hidden for n in groups)
        pool = self.stax.AvgPool((2, 2), (2, 2))
        last = [self.GlobalAvgPool(), self.Dense(10, **options)]
        return self.Sequential([*first, pool, *second, pool, *third, *last])


def conv(library: Any, **options: Any) -> Any:
    """Returns a convolution which keeps the size of images."""
    return library.Conv(64, (3, 3), padding="SAME", **options)


def dense(nonlinearity: str, library: Any, depth: int) -> Any:
    """Returns a dense network of `depth` hidden layers."""
    hidden = [library.Dense(1024, **STDS), getattr(library, nonlinearity)()]
    return library.Sequential([*hidden * depth, library.Dense(1, **STDS)])


def convolutional(head: str, library: Any, depth: int) -> Any:
    """Returns a network of `depth` convolutions with ReLUs."""
    hidden = [conv(library, **STDS), library.Relu()]
    last = [getattr(library, head)(), library.Dense(10, **STDS)]
    return library.Sequential([*hidden * depth, *last])


def attention(library: Any, depth: int) -> Any:
    """Returns convolutions, then attention between all positions."""
    hidden = [conv(library, **STDS), library.Relu()]
    attend = library.SelfAttention(64, 64, 64, 4, linear_scaling=True)
    last = [library.GlobalAvgPool(), library.Dense(10, **STDS)]
    return library.Sequential([*hidden * depth, attend, *last])


def wide_resnet(library: Any, depth: int) -> Any:
    """Returns a wide residual network of `depth` convolutions."""
    return library.WideResNet(depth, 10, 10)


def myrtle(library: Any, depth: int) -> Any:
    """Returns convolutions with average pooling between groups of them."""
    return library.Myrtle(depth, **STDS)


class Network(NamedTuple):
    """`build(library, depth)`, and the depth for a quick trial.

    `graph` is how the graph of its positions is given, that each of its inputs comes with:
    by an `adjacency` matrix, by its `edges`, or not at all.
    """

    build: Callable[[Any, int], Any]
    least: int
    graph: str | None = None


NETWORKS = {
    "dense-relu": Network(ft.partial(dense, "Relu"), 2),
    "dense-erf": Network(ft.partial(dense, "Erf"), 2),
    "conv-flatten": Network(ft.partial(convolutional, "Flatten"), 3),
    "conv-gap": Network(ft.partial(convolutional, "GlobalAvgPool"), 3),
    "attention": Network(attention, 2),
    "wide-resnet": Network(wide_resnet, 10),
    "myrtle": Network(myrtle, 5),
}
