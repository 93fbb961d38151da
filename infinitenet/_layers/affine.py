"""Layers of random weights."""

import abc
import math

import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
import jax.random as jr
from equinox import AbstractVar
from jaxtyping import Array, Float, PRNGKeyArray

from .._covariance import Covariance
from .._custom_types import Scalar, Sizes
from .._hyperparameters import (
    check_scale,
    check_width,
    check_window,
    to_optional_scalar,
    to_optional_sizes,
    to_scalar,
    to_sizes,
)
from .._kernel import Kernel
from .._layer import AbstractLayer, uninitialised
from .._parameterization import (
    AbstractParameterization,
    to_parameterization,
)
from .._path import LayerError
from .._signal import Signal
from .._weights import AbstractWeights
from .._window import Window


class AffineWeights(AbstractWeights):
    """Weights, output channels last, and biases."""

    W: Float[Array, "*filter in_channels out_channels"]
    b: Float[Array, " out_channels"] | None


class AbstractAffine(AbstractLayer):
    r"""Weights and biases, $z = \sigma_W / \sqrt{N}\, W * x + \sigma_b b$.

    At infinite width, $k' = \sigma_W^2 M k + \sigma_b^2$, where $M$ mixes positions.
    """

    width: AbstractVar[int]
    W_std: AbstractVar[Float[Array, ""]]
    b_std: AbstractVar[Float[Array, ""] | None]
    parameterization: AbstractVar[AbstractParameterization]
    weights: AbstractVar[AffineWeights | None]

    @abc.abstractmethod
    def filter_for(self, signal: Signal) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The filter's shape, and the output's shape of positions."""

    @abc.abstractmethod
    def apply(self, W: Array, x: Array) -> Array:
        """The linear map of one example."""

    @abc.abstractmethod
    def mix(self, cov: Covariance) -> Covariance:
        """The covariance of the linear map's outputs, for weights of variance 1 / N."""

    @abc.abstractmethod
    def filter_size(self) -> int:
        """The number of positions that each output sums over."""

    def __check_init__(self):
        check_width(self, "width", self.width)
        check_scale(self, "W_std", self.W_std)
        check_scale(self, "b_std", self.b_std)

    def check(self, signal: Signal) -> Signal:
        _, spatial = self.filter_for(signal)
        return signal.affine((*spatial, self.parameterization.outputs(self.width)))

    def draw(self, key: PRNGKeyArray, signal: Signal) -> "AbstractAffine":
        filter_shape, _ = self.filter_for(signal)
        out_channels = self.parameterization.outputs(self.width)
        shape = (*filter_shape, signal.channels, out_channels)
        W_key, b_key = jr.split(key)
        std = self.parameterization.weights(self.W_std, math.prod(shape[:-1])).init
        W = std.astype(signal.dtype) * jr.normal(W_key, shape, signal.dtype)
        b = None
        if self.b_std is not None:
            std = self.parameterization.biases(self.b_std).init
            b = std.astype(signal.dtype) * jr.normal(b_key, shape[-1:], signal.dtype)
        new = AffineWeights(W, b)
        return eqx.tree_at(lambda s: s.weights, self, new, is_leaf=lambda x: x is None)

    def __call__(self, x, *, key=None):
        del key
        if self.weights is None:
            raise uninitialised(self)
        W, b = self.weights.W, self.weights.b
        if x.ndim < W.ndim - 1 or x.shape[-1] != W.shape[-2]:
            raise LayerError(
                self,
                f"has weights for inputs of {W.shape[-2]} channels, the last axis, after "
                f"at least {W.ndim - 2} of positions, but its input is of shape {x.shape}. "
                "Batches are made by `jax.vmap(net)(x)`.",
            )
        scale = self.parameterization.weights(self.W_std, math.prod(W.shape[:-1])).scale
        out = scale.astype(x.dtype) * self.apply(W, x)
        if b is not None and self.b_std is not None:
            scale = self.parameterization.biases(self.b_std).scale
            # Of full rank, so that nothing relies on implicit broadcasting.
            b = jnp.reshape(b, (1,) * (out.ndim - 1) + b.shape)
            out = out + scale.astype(x.dtype) * b
        return out

    def infinite(self, kernel: Kernel) -> Kernel:
        def affine(k11, k12, k22, W, b=None):
            del k11, k22
            # Scaled first: so the NTK mixes the positions of one array, not of two.
            k = self.mix(Covariance(W * k12.array, k12.pairs))
            return k if b is None else Covariance(k.array + b, k.pairs)

        variances, rates = [self.W_std**2], [self._weight_rate(kernel)]
        if self.b_std is not None:
            variances.append(self.b_std**2)
            rates.append(self.parameterization.bias_rate(self.b_std))
        channels = self.parameterization.outputs(self.width)
        return kernel.propagate(affine, variances, rates, channels=channels, mask=self.mask)

    def _weight_rate(self, kernel: Kernel) -> Float[Array, ""]:
        channels = kernel.channels
        fan_in = None if channels is None else channels * self.filter_size()
        try:
            return self.parameterization.weight_rate(self.W_std, fan_in)
        except ValueError as error:
            raise LayerError(self, str(error)) from None


class Dense(AbstractAffine):
    r"""A fully-connected layer, $z = \sigma_W / \sqrt{N}\, W x + \sigma_b b$.

    It acts on channels, at each position separately. At infinite width
    $k' = \sigma_W^2 k + \sigma_b^2$ and, in NTK parameterization,
    $\Theta' = k' + \sigma_W^2 \Theta$.

    ??? cite "Reference"
        Lee et al., Deep Neural Networks as Gaussian Processes, ICLR 2018: section 2.3.
        Jacot, Gabriel & Hongler, Neural Tangent Kernel, NeurIPS 2018: theorem 1.
    """

    width: int = eqx.field(static=True)
    W_std: Float[Array, ""] = eqx.field(converter=to_scalar)
    b_std: Float[Array, ""] | None = eqx.field(converter=to_optional_scalar)
    parameterization: AbstractParameterization = eqx.field(converter=to_parameterization)
    weights: AffineWeights | None

    def __init__(
        self,
        width: int,
        W_std: Scalar = 1.0,
        b_std: Scalar | None = None,
        *,
        parameterization: AbstractParameterization | str = "ntk",
        s: tuple[int, int] = (1, 1),
    ):
        """**Arguments:**

        - `width`: number of output channels. It does not matter to the infinite network,
            except in standard parameterization.
        - `W_std`: standard deviation of the weights, times the square root of the fan-in.
            Scalar, differentiable.
        - `b_std`: standard deviation of the biases, in units of the output. Scalar,
            differentiable. `None` for no biases. (In standard parameterization biases that
            start at zero, `b_std=0.0`, differ from none: they are trained.)
        - `parameterization`: `"ntk"`, `"standard"`, or an
            [`infinitenet.AbstractParameterization`][].
        - `s`: factors of the widths of inputs and of outputs, in standard parameterization:
            see [`infinitenet.StandardParameterization`][].

        **Raises:** `ValueError` for arguments that make no sense.
        """
        self.width = width
        self.W_std = to_scalar(W_std)
        self.b_std = to_optional_scalar(b_std)
        self.parameterization = to_parameterization(parameterization, s)
        self.weights = None

    def filter_for(self, signal):
        return (), signal.spatial

    def filter_size(self):
        return 1

    def apply(self, W, x):
        return x @ W

    def mix(self, cov):
        return cov


class Conv(AbstractAffine):
    r"""A convolution, $z(p) = \sigma_W / \sqrt{N} \sum_d W_d\, x(s p + d) + \sigma_b b$.

    Here $d$ runs over the filter, $s$ are the strides, and the fan-in $N$ is the size of
    the filter times the number of input channels. At infinite width

    $$
    k'(p, q) = \sigma_W^2 \operatorname{mean}_d k(s p + d, s q + d) + \sigma_b^2.
    $$

    ??? cite "Reference"
        Novak et al., Bayesian Deep Convolutional Networks with Many Channels are Gaussian
        Processes, ICLR 2019: section 2.2.
    """

    width: int = eqx.field(static=True)
    filter_shape: tuple[int, ...] = eqx.field(static=True)
    strides: tuple[int, ...] | None = eqx.field(static=True)
    padding: str = eqx.field(static=True)
    W_std: Float[Array, ""] = eqx.field(converter=to_scalar)
    b_std: Float[Array, ""] | None = eqx.field(converter=to_optional_scalar)
    parameterization: AbstractParameterization = eqx.field(converter=to_parameterization)
    weights: AffineWeights | None

    def __init__(
        self,
        width: int,
        filter_shape: Sizes | int,
        strides: Sizes | int | None = None,
        padding: str = "VALID",
        W_std: Scalar = 1.0,
        b_std: Scalar | None = None,
        *,
        parameterization: AbstractParameterization | str = "ntk",
        s: tuple[int, int] = (1, 1),
    ):
        """**Arguments:**

        - `width`: number of output channels. It does not matter to the infinite network,
            except in standard parameterization.
        - `filter_shape`: positions that the filter spans, along each spatial dimension.
            Inputs are of shape `(*spatial, channels)`, with as many spatial dimensions.
        - `strides`: steps between outputs, along each spatial dimension; 1 by default.
        - `padding`: `"VALID"`, `"SAME"` (zeros outside of the input) or `"CIRCULAR"`.
        - `W_std`, `b_std`, `parameterization`, `s`: as for [`infinitenet.Dense`][].

        **Raises:** `ValueError` for arguments that make no sense.
        """
        self.width = width
        self.filter_shape = to_sizes(filter_shape)
        self.strides = to_optional_sizes(strides)
        self.padding = padding
        self.W_std = to_scalar(W_std)
        self.b_std = to_optional_scalar(b_std)
        self.parameterization = to_parameterization(parameterization, s)
        self.weights = None

    def __check_init__(self):
        check_window(self, "filter_shape", *self.window)

    @property
    def window(self) -> Window:
        ones = (1,) * len(self.filter_shape)
        strides = ones if self.strides is None else self.strides
        return Window(self.filter_shape, strides, self.padding)

    def filter_for(self, signal):
        problem = self.window.problem(signal.spatial)
        if problem is not None:
            raise LayerError(self, f"{problem}.")
        return self.filter_shape, self.window.out_shape(signal.spatial)

    def filter_size(self):
        return math.prod(self.filter_shape)

    def apply(self, W, x):
        ndim = len(self.filter_shape)
        positions = tuple(range(1, ndim + 1))
        image, filter_ = (0, ndim + 1, *positions), (ndim + 1, ndim, *range(ndim))
        out = lax.conv_general_dilated(
            self.window.pad(x)[None],
            W,
            self.window.strides,
            "VALID",
            dimension_numbers=lax.ConvDimensionNumbers(image, filter_, image),
        )
        return out[0]

    def mix(self, cov):
        return cov.window(self.window)

    def mask(self, missing):
        return self.window.centres(missing)
