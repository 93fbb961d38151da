"""Networks that are well known, made of layers.

Layers are immutable, so that they may be default values of arguments.
"""

import functools as ft
from collections.abc import Sequence
from typing import Any

import numpy as np

from ._custom_types import Scalar
from ._layer import AbstractLayer
from ._layers.affine import Conv, Dense
from ._layers.attention import SelfAttention
from ._layers.branches import Residual
from ._layers.flatten import Flatten
from ._layers.normalisation import LayerNorm
from ._layers.pointwise import Relu
from ._layers.pooling import AvgPool, GlobalAvgPool
from ._layers.repeat import Repeat
from ._layers.sequential import Sequential
from ._parameterization import AbstractParameterization


def _check_sizes(function: str, **sizes: int) -> None:
    for name, value in sizes.items():
        if not isinstance(value, int | np.integer) or value is True or value < 1:
            raise ValueError(
                f"`{name}` of `{function}` must be a positive integer, but it is {value!r}."
            )


def _repeated(layers: Sequence[AbstractLayer], times: int) -> list[AbstractLayer]:
    """A loop, of which the time to compile is that of one of its steps."""
    block = layers[0] if len(layers) == 1 else Sequential(layers)
    return [Repeat(block, times)] if times > 1 else [block] * times


def FullyConnected(
    depth: int,
    width: int,
    out: int,
    nonlinearity: AbstractLayer = Relu(),  # noqa: B008
    *,
    W_std: Scalar = 2**0.5,
    b_std: Scalar | None = None,
    parameterization: AbstractParameterization | str = "ntk",
) -> Sequential:
    """Hidden layers of equal width, each followed by a nonlinearity, and a linear one.

    For inputs of any shape, `(*spatial, channels)`, the positions of which become channels.
    Outputs are of shape `(out,)`.

    !!! example

        ```python
        net = inn.FullyConnected(3, 512, 1, inn.Erf(), W_std=1.5, b_std=0.1)
        ```

    **Arguments:**

    - `depth`: number of hidden layers.
    - `width`: number of channels of each. It does not matter to the infinite network,
        except in standard parameterization.
    - `out`: number of outputs.
    - `nonlinearity`: after each hidden layer.
    - `W_std`, `b_std`, `parameterization`: of all layers, as for [`infinitenet.Dense`][].
        By default variances neither grow nor shrink with depth, for `Relu`.

    **Returns:** an [`infinitenet.Sequential`][].

    **Raises:** `ValueError` for arguments that make no sense.

    ??? cite "Reference"
        Novak et al., Neural Tangents: Fast and Easy Infinite Neural Networks in Python,
        ICLR 2020: "FC", Listings 2 and 3.
    """
    _check_sizes("FullyConnected", depth=depth, width=width, out=out)
    options: dict[str, Any] = {
        "W_std": W_std,
        "b_std": b_std,
        "parameterization": parameterization,
    }
    hidden = [Dense(width, **options), nonlinearity]
    # The first layer is not in the loop, as its weights are of another shape.
    rest = _repeated(hidden, depth - 1)
    return Sequential([Flatten(), *hidden, *rest, Dense(out, **options)])


def ConvOnly(
    depth: int,
    width: int,
    out: int,
    nonlinearity: AbstractLayer = Relu(),  # noqa: B008
    *,
    filter_shape: Sequence[int] = (3, 3),
    padding: str = "SAME",
    head: AbstractLayer = Flatten(),  # noqa: B008
    W_std: Scalar = 2**0.5,
    b_std: Scalar | None = None,
    parameterization: AbstractParameterization | str = "ntk",
) -> Sequential:
    """Convolutions of equal width, each followed by a nonlinearity, and a linear layer.

    For inputs of shape `(*spatial, channels)`, with as many spatial dimensions as the
    filter. Outputs are of shape `(out,)`.

    **Arguments:**

    - `depth`: number of convolutions.
    - `width`: number of channels of each. It does not matter to the infinite network,
        except in standard parameterization.
    - `out`: number of outputs.
    - `nonlinearity`: after each convolution.
    - `filter_shape`, `padding`: of all convolutions. With padding `"VALID"` positions
        become fewer, which makes each layer a program of its own: it takes longer to
        compile.
    - `head`: what leaves no positions, [`infinitenet.Flatten`][] or
        [`infinitenet.GlobalAvgPool`][]. The latter takes much longer, as then all pairs
        of positions matter.
    - `W_std`, `b_std`, `parameterization`: of all layers, as for [`infinitenet.Dense`][].
        By default variances neither grow nor shrink with depth, for `Relu` and away from
        the edges.

    **Returns:** an [`infinitenet.Sequential`][].

    **Raises:** `ValueError` for arguments that make no sense.

    ??? cite "Reference"
        Novak et al., Neural Tangents: Fast and Easy Infinite Neural Networks in Python,
        ICLR 2020: "ConvOnly", Listings 2 and 3.
    """
    _check_sizes("ConvOnly", depth=depth, width=width, out=out)
    options: dict[str, Any] = {
        "W_std": W_std,
        "b_std": b_std,
        "parameterization": parameterization,
    }
    hidden = [Conv(width, filter_shape, None, padding, **options), nonlinearity]
    keeps = padding != "VALID"
    rest = _repeated(hidden, depth - 1) if keeps else (depth - 1) * hidden
    return Sequential([*hidden, *rest, head, Dense(out, **options)])


def WideResNet(
    depth: int = 28,
    k: int = 10,
    num_classes: int = 10,
    *,
    W_std: Scalar = 1.0,
    b_std: Scalar | None = None,
    parameterization: AbstractParameterization | str = "ntk",
) -> Sequential:
    """A wide residual network, without batch normalisation.

    A convolution of 16 channels comes first. Then come three groups of residual blocks, of
    16 k, 32 k and 64 k channels, the second and third of which halve height and width at
    their beginning. The average over positions is the input of a linear layer of standard
    deviation 1, without biases.

    For inputs of shape `(height, width, channels)`. Outputs are of shape `(num_classes,)`.

    **Arguments:**

    - `depth`: number of convolutions, those of three shortcuts included: 4 more than a
        multiple of 6, such as 10, 16, 22, 28 and 40.
    - `k`: what the numbers of channels are multiplied by. It does not matter to the
        infinite network, except in standard parameterization.
    - `num_classes`: number of outputs.
    - `W_std`, `b_std`: of the convolutions, as for [`infinitenet.Conv`][].
    - `parameterization`: of all layers.

    **Returns:** an [`infinitenet.Sequential`][].

    **Raises:** `ValueError` for arguments that make no sense.

    ??? cite "Reference"
        Zagoruyko & Komodakis, Wide Residual Networks, BMVC 2016: Table 1.
        Novak et al., Neural Tangents: Fast and Easy Infinite Neural Networks in Python,
        ICLR 2020: Listing 1.
    """
    _check_sizes("WideResNet", depth=depth, k=k, num_classes=num_classes)
    n, rest = divmod(depth - 4, 6)
    if n < 1 or rest != 0:
        raise ValueError(
            "`depth` of `WideResNet` must be 4 more than a multiple of 6, such as 10, 16, "
            f"22 or 28, as there are two convolutions to each block of three groups, but "
            f"it is {depth}."
        )

    options: dict[str, Any] = {
        "W_std": W_std,
        "b_std": b_std,
        "parameterization": parameterization,
    }
    conv = ft.partial(Conv, filter_shape=(3, 3), padding="SAME", **options)

    def group(channels: int, strides: Sequence[int] | None) -> list[AbstractLayer]:
        layers = [Relu(), conv(channels)]
        first = Sequential([Relu(), conv(channels, strides=strides), *layers])
        # A loop in a loop: the same layers twice would be compiled twice.
        other = Residual(Repeat(Sequential(layers), 2))
        shortcut = conv(channels, strides=strides)
        return [Residual(first, shortcut), *_repeated([other], n - 1)]

    groups = [*group(16 * k, None), *group(32 * k, (2, 2)), *group(64 * k, (2, 2))]
    last = Dense(num_classes, parameterization=parameterization)
    return Sequential([conv(16), *groups, GlobalAvgPool(), last])


# Convolutions before the first pooling, before the second one, and after it.
_MYRTLE = {5: (2, 1, 1), 7: (2, 2, 2), 10: (3, 3, 3)}


def Myrtle(
    depth: int,
    width: int = 64,
    num_classes: int = 10,
    *,
    W_std: Scalar = 2**0.5,
    b_std: Scalar | None = None,
    parameterization: AbstractParameterization | str = "ntk",
) -> Sequential:
    """3x3 convolutions with `Relu`, with average pooling between three groups of them.

    Its infinite network is the Myrtle kernel, but for the parts of that which are not a
    network's. For inputs of shape `(height, width, channels)`, of at least 4x4. Outputs are
    of shape `(num_classes,)`. After the last convolution the average over all positions is
    taken, which for 32x32 images is that of three poolings by two.

    **Arguments:**

    - `depth`: 5, 7 or 10, the number of convolutions and of the linear layer at the end.
    - `width`: number of channels of each convolution. It does not matter to the infinite
        network, except in standard parameterization.
    - `num_classes`: number of outputs.
    - `W_std`, `b_std`, `parameterization`: of all layers, as for [`infinitenet.Conv`][].

    **Returns:** an [`infinitenet.Sequential`][].

    **Raises:** `ValueError` for arguments that make no sense.

    ??? cite "Reference"
        Shankar et al., Neural Kernels Without Tangents, ICML 2020: section 3 and Figure 1.
    """
    _check_sizes("Myrtle", width=width, num_classes=num_classes)
    if depth not in _MYRTLE:
        raise ValueError(f"`depth` of `Myrtle` must be 5, 7 or 10, but it is {depth!r}.")
    options: dict[str, Any] = {
        "W_std": W_std,
        "b_std": b_std,
        "parameterization": parameterization,
    }
    hidden = [Conv(width, (3, 3), padding="SAME", **options), Relu()]
    first, second, third = (n * hidden for n in _MYRTLE[depth])
    pool = AvgPool((2, 2), (2, 2))
    last = [GlobalAvgPool(), Dense(num_classes, **options)]
    return Sequential([*first, pool, *second, pool, *third, *last])


def LeNet(
    num_classes: int = 10,
    k: int = 1,
    nonlinearity: AbstractLayer = Relu(),  # noqa: B008
    *,
    W_std: Scalar = 2**0.5,
    b_std: Scalar | None = None,
    parameterization: AbstractParameterization | str = "ntk",
) -> Sequential:
    """Two 5x5 convolutions, each followed by average pooling by two, and dense layers.

    Of 6 k and 16 k channels, then 120 k and 84 k. For inputs of shape `(height, width,
    channels)`, of at least 12x12 and commonly 28x28. Outputs are of shape `(num_classes,)`.

    **Arguments:**

    - `num_classes`: number of outputs.
    - `k`: what the numbers of channels are multiplied by. It does not matter to the
        infinite network, except in standard parameterization.
    - `nonlinearity`: after each layer but the last, and before pooling.
    - `W_std`, `b_std`, `parameterization`: of all layers, as for [`infinitenet.Conv`][].

    **Returns:** an [`infinitenet.Sequential`][].

    **Raises:** `ValueError` for arguments that make no sense.

    ??? cite "Reference"
        LeCun, Bottou, Bengio & Haffner, Gradient-based learning applied to document
        recognition, Proc. IEEE 1998: section II.B, LeNet-5. There, pooling has weights and
        a nonlinearity of its own, and outputs are distances from fixed patterns.
    """
    _check_sizes("LeNet", num_classes=num_classes, k=k)
    options: dict[str, Any] = {
        "W_std": W_std,
        "b_std": b_std,
        "parameterization": parameterization,
    }
    pool = AvgPool((2, 2), (2, 2))
    return Sequential(
        [
            Conv(6 * k, (5, 5), padding="SAME", **options),
            *(nonlinearity, pool),
            Conv(16 * k, (5, 5), **options),
            *(nonlinearity, pool),
            Flatten(),
            *(Dense(120 * k, **options), nonlinearity),
            *(Dense(84 * k, **options), nonlinearity),
            Dense(num_classes, **options),
        ]
    )


def TransformerEncoderBlock(
    width: int,
    n_heads: int,
    mlp_width: int | None = None,
    nonlinearity: AbstractLayer = Relu(),  # noqa: B008
    *,
    W_std: Scalar = 2**0.5,
    b_std: Scalar | None = None,
    eps: Scalar = 1e-12,
    **attention: Any,
) -> Sequential:
    """Attention and a network of one hidden layer, each within a residual branch.

    Either branch begins with [`infinitenet.LayerNorm`][]. Inputs and outputs are of shape
    `(*spatial, width)`, so that blocks may follow each other, or be repeated. Inputs must
    be Gaussian, so the first block comes after a `Dense` or a `Conv`, which embeds tokens.

    !!! example

        ```python
        block = inn.TransformerEncoderBlock(64, 8)
        net = inn.Sequential(
            [inn.Dense(64), inn.Repeat(block, 6), inn.GlobalAvgPool(), inn.Dense(10)]
        )
        ```

    **Arguments:**

    - `width`: number of channels of the input, and of the output.
    - `n_heads`: number of heads. Keys and values of each are of size `width / n_heads`,
        rounded up, unless told otherwise.
    - `mlp_width`: number of hidden channels, 4 times `width` by default.
    - `nonlinearity`: after the hidden layer.
    - `W_std`, `b_std`: of both dense layers, as for [`infinitenet.Dense`][].
    - `eps`: added to the variance by [`infinitenet.LayerNorm`][].
    - `attention`: further arguments of [`infinitenet.SelfAttention`][], such as `W_key_std`
        and `pos_emb_type`.

    **Returns:** an [`infinitenet.Sequential`][].

    **Raises:** `ValueError` for arguments that make no sense.

    ??? cite "Reference"
        Vaswani et al., Attention is All You Need, NeurIPS 2017: section 3.1.
        Xiong et al., On Layer Normalization in the Transformer Architecture, ICML 2020:
        section 3.1, normalisation within the branch.
        Hron et al., Infinite attention, ICML 2020: the infinite width.
    """
    mlp_width = 4 * width if mlp_width is None else mlp_width
    sizes = {"width": width, "n_heads": n_heads, "mlp_width": mlp_width}
    _check_sizes("TransformerEncoderBlock", **sizes)
    size = -(-width // n_heads)
    attention = {"n_chan_key": size, "n_chan_val": size, **attention}
    attend = SelfAttention(width, n_heads=n_heads, **attention)
    mlp = [Dense(mlp_width, W_std, b_std), nonlinearity, Dense(width, W_std, b_std)]
    branches = [Sequential([LayerNorm(eps=eps), *layers]) for layers in ([attend], mlp)]
    return Sequential([Residual(branch) for branch in branches])
