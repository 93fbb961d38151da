"""Small networks around each layer that both libraries have, for `layers.py`.

They are tables of calls, which are made later, of either library: with the names and the
arguments of `infinitenet`, as those of `networks.py`.
"""

import importlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from networks import Network, STDS


#
# Calls of layers
#


class Call(NamedTuple):
    """A layer by its name and arguments, some of which may be layers too."""

    name: str
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    def make(self, library: Any) -> Any:
        """Makes the layer, of either library."""
        options = {key: _make(value, library) for key, value in self.options.items()}
        arguments = (_make(value, library) for value in self.arguments)
        return getattr(library, self.name)(*arguments, **options)


def _make(value: Any, library: Any) -> Any:
    if isinstance(value, Call):
        return value.make(library)
    if isinstance(value, list):
        return [_make(one, library) for one in value]
    return value


class _Layers:
    """`_Layers().Relu()` is the call of `Relu`."""

    def __getattr__(self, name: str) -> Callable[..., Call]:
        return lambda *arguments, **options: Call(name, arguments, options)


L = _Layers()


def _net(
    block: Sequence[Call],
    head: Sequence[Call] = (),
    first: Sequence[Call] = (),
    graph: str | None = None,
) -> Network:
    """Layers which are repeated, with others before and after them, and a linear one."""

    def build(library: Any, depth: int) -> Any:
        layers = [*first, *depth * [*block], *head, L.Dense(10, **STDS)]
        return L.Sequential(layers).make(library)

    return Network(build, 2, graph)


#
# Nonlinearities, in dense networks
#


def _sine(x: Any) -> Any:
    return importlib.import_module("jax.numpy").sin(x)


def _dual_of_sine(q1: Any, k: Any, q2: Any) -> Any:
    jnp = importlib.import_module("jax.numpy")
    return jnp.exp(-(q1 + q2) / 2) * jnp.sinh(k)


def _silu(x: Any) -> Any:
    return importlib.import_module("jax").nn.silu(x)


# With such biases all entries of a kernel are of one magnitude. Else those of high powers
# would range over several, while errors are told in units of their root mean square.
_DENSE = L.Dense(512, W_std=1.0, b_std=1.0)
# Variances near one, where few points suffice for the quadrature of `neural_tangents`.
_SMALL = L.Dense(512, W_std=1.0, b_std=0.1)


def _after(dense: Call, nonlinearities: dict[str, Call]) -> dict[str, Network]:
    return {name: _net([dense, layer]) for name, layer in nonlinearities.items()}


_CLOSED_FORMS = {
    "ABRelu": L.ABRelu(0.5, 1.5),
    "Abs": L.Abs(),
    "Cos": L.Cos(),
    "Erf": L.Erf(),
    # With factors which keep variances finite.
    "Exp": L.Exp(0.5, 0.5),
    "ExpNormalized": L.ExpNormalized(),
    "Gabor": L.Gabor(),
    "Gaussian": L.Gaussian(),
    "Gelu": L.Gelu(),
    # `neural_tangents` has it for variances of one only.
    "Hermite": L.Sequential([L.LayerNorm(), L.Hermite(3)]),
    "LeakyRelu": L.LeakyRelu(0.1),
    "Monomial": L.Monomial(3),
    "Pointwise": L.Pointwise(_sine, _dual_of_sine),
    "Polynomial": L.Polynomial((0.1, 0.5, 0.2, 0.1)),
    "Rbf": L.Rbf(),
    "Relu": L.Relu(),
    "SigmoidLike": L.SigmoidLike(),
    "Sign": L.Sign(),
    "Sin": L.Sin(),
}
# Once, after another one: `neural_tangents` gives NaN where anything follows but `Dense`.
_ONCE = {
    "RectifiedMonomial": _net([], [_DENSE, L.Relu(), _DENSE, L.RectifiedMonomial(2)]),
}
_QUADRATURE = {
    "Elementwise": L.Elementwise(_silu),
    "Softplus": L.Softplus(),
    "Tanh": L.Tanh(),
}


#
# All other layers
#

_RELU = L.Relu()
_CONV = L.Conv(64, (3, 3), padding="SAME", **STDS)
_FLATTEN, _GAP = [L.Flatten()], [L.GlobalAvgPool()]


def _joined(affine: Call, how: Call) -> list[Call]:
    branches = L.Parallel([L.Sequential([_RELU, affine]), affine])
    return [affine, L.FanOut(2), branches, how]


def _residual(affine: Call) -> list[Call]:
    return [L.Residual(L.Sequential([_RELU, affine]))]


def _conv(padding: str, strides: tuple[int, int] | None = None) -> Call:
    return L.Conv(64, (3, 3), strides, padding, **STDS)


_LOCAL = L.ConvLocal(64, (3, 3), padding="SAME", **STDS)
_TRANSPOSE = L.ConvTranspose(64, (3, 3), (2, 2), "SAME", **STDS)
_INDEX = L.Index((slice(2, 6), slice(2, 6)))
_MEAN_OF_ROWS = L.DotGeneral(
    rhs=np.full(8, 1 / 8, np.float32), dimension_numbers=(((0,), (0,)), ((), ()))
)

_ON_VECTORS = {
    "Dropout": _net([_DENSE, _RELU, L.Dropout(0.9)]),
    "FanInConcat": _net(_joined(_DENSE, L.FanInConcat())),
    "FanInProd": _net(_joined(_DENSE, L.FanInProd())),
    "FanInSum": _net(_joined(_DENSE, L.FanInSum())),
    "LayerNorm": _net([_DENSE, L.LayerNorm(), _RELU]),
    "Residual": _net(_residual(_DENSE), first=[_DENSE]),
}

# Their kernels are of equal positions only.
_FLATTENED = {
    "Conv-strides-flatten": _net([_conv("SAME", (2, 2)), _RELU], _FLATTEN),
    "Conv-valid-flatten": _net([_conv("VALID"), _RELU], _FLATTEN),
    "ConvLocal-flatten": _net([_LOCAL, _RELU], _FLATTEN),
    "Dropout-flatten": _net([_CONV, _RELU, L.Dropout(0.9)], _FLATTEN),
    "Index-flatten": _net([_CONV, _RELU], [_INDEX, *_FLATTEN]),
    "LayerNorm-flatten": _net([_CONV, L.LayerNorm(), _RELU], _FLATTEN),
    "Residual-flatten": _net(_residual(_CONV), _FLATTEN, [_CONV]),
}

# Their kernels are of all pairs of positions, or `neural_tangents` computes all.
_POOLED = {
    "AvgPool": _net([_CONV, _RELU, L.AvgPool((2, 2), (2, 2))], _FLATTEN),
    "AvgPool-overlapping": _net(
        [_CONV, _RELU, L.AvgPool((3, 3), (1, 1), "SAME")], _FLATTEN
    ),
    "Conv-circular": _net([_conv("CIRCULAR"), _RELU], _GAP),
    "Conv-strides": _net([_conv("SAME", (2, 2)), _RELU], _GAP),
    "Conv-valid": _net([_conv("VALID"), _RELU], _GAP),
    "ConvLocal": _net([_LOCAL, _RELU], _GAP),
    "Dense-pooled": _net([_DENSE, _RELU], _GAP),
    "DotGeneral": _net([_CONV, _RELU], [_MEAN_OF_ROWS, *_GAP]),
    "Dropout-pooled": _net([_CONV, _RELU, L.Dropout(0.9)], _GAP),
    "FanInConcat-pooled": _net(_joined(_CONV, L.FanInConcat()), _GAP),
    "FanInProd-pooled": _net(_joined(_CONV, L.FanInProd()), _GAP),
    "FanInSum-pooled": _net(_joined(_CONV, L.FanInSum()), _GAP),
    "GlobalSumPool": _net([_CONV, _RELU], [L.GlobalSumPool()]),
    "ImageResize-linear": _net(
        [_CONV, _RELU], [L.ImageResize((4, 4), "linear"), *_FLATTEN]
    ),
    "ImageResize-nearest": _net(
        [_CONV, _RELU], [L.ImageResize((4, 4), "nearest"), *_FLATTEN]
    ),
    "Index": _net([_CONV, _RELU], [_INDEX, *_GAP]),
    "LayerNorm-pooled": _net([_CONV, L.LayerNorm(), _RELU], _GAP),
    "Residual-pooled": _net(_residual(_CONV), _GAP, [_CONV]),
    "SelfAttention": _net([_CONV, L.SelfAttention(64, 64, 64, 4)], _GAP),
    "SelfAttention-identity": _net(
        [_CONV],
        [L.SelfAttention(64, 64, 64, 4, False, attention_mechanism="IDENTITY"), *_GAP],
    ),
    "SelfAttention-positions": _net(
        [_CONV, L.SelfAttention(64, 64, 64, 4, pos_emb_type="CONCAT")], _GAP
    ),
    "SumPool": _net([_CONV, _RELU, L.SumPool((2, 2), (2, 2))], _FLATTEN),
}
_UPSAMPLED = {"ConvTranspose": _net([_TRANSPOSE, _RELU], _GAP)}
_ON_GRAPHS = {
    "Aggregate": _net([_DENSE, L.Aggregate(), _RELU], _GAP, graph="adjacency"),
    "SparseAggregate": _net([_DENSE, L.SparseAggregate(), _RELU], _GAP, graph="edges"),
}


#
# Sizes
#


class Group(NamedTuple):
    """Networks with the same inputs: `n` of `shape` on either side of the kernel."""

    networks: dict[str, Network]
    n: int
    shape: tuple[int, ...]


# Such that kernels take longer than calls, and most of them less than a second.
GROUPS = (
    Group(_after(_DENSE, _CLOSED_FORMS) | _ONCE, 2000, (100,)),
    Group(_after(_SMALL, _QUADRATURE), 300, (100,)),
    Group(_ON_VECTORS, 2000, (100,)),
    Group(_FLATTENED, 150, (8, 8, 3)),
    Group(_POOLED, 20, (8, 8, 3)),
    Group(_UPSAMPLED, 6, (4, 4, 3)),
    Group(_ON_GRAPHS, 50, (16, 8)),
)

LAYERS = {name: net for group in GROUPS for name, net in group.networks.items()}
