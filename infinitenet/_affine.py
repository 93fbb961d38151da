"""Layers of random weights: what `Dense` and convolutions have in common."""

import abc
import math
from collections.abc import Sequence

import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
import jax.random as jr
from equinox import AbstractVar
from jaxtyping import Array, Float, PRNGKeyArray

from ._covariance import Covariance
from ._hyperparameters import check_scale, check_width
from ._kernel import Kernel
from ._layer import AbstractLayer, uninitialised
from ._parameterization import AbstractParameterization
from ._path import LayerError
from ._signal import Signal
from ._weights import AbstractWeights


class AffineWeights(AbstractWeights):
    """Weights, output channels last, and biases.

    If positions do not share them, axes of these come first in both.
    """

    W: Float[Array, "*positions_and_filter in_channels out_channels"]
    b: Float[Array, "*positions out_channels"] | None


class AbstractAffine(AbstractLayer):
    r"""Weights and biases, $z = \sigma_W / \sqrt{N}\, W * x + \sigma_b b$.

    At infinite width, $k' = \sigma_W^2 M k + \sigma_b^2$, where $M$ mixes positions.
    """

    width: AbstractVar[int]
    filter_shape: AbstractVar[tuple[int, ...]]
    W_std: AbstractVar[Float[Array, ""]]
    b_std: AbstractVar[Float[Array, ""] | None]
    parameterization: AbstractVar[AbstractParameterization]
    weights: AbstractVar[AffineWeights | None]

    @abc.abstractmethod
    def out_spatial(self, spatial: Sequence[int]) -> tuple[int, ...]:
        """The shape of positions of the outputs.

        **Raises:** `LayerError` if the inputs do not fit.
        """

    @abc.abstractmethod
    def apply(self, W: Array, x: Array) -> Array:
        """The linear map of one example."""

    @abc.abstractmethod
    def mix(self, cov: Covariance) -> Covariance:
        """The covariance of the linear map's outputs, for weights of variance 1 / N.

        If it is only given at equal positions, others are independent.
        """

    def unshared(self, out_spatial: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of positions that have weights of their own: by default none do."""
        del out_spatial
        return ()

    def __check_init__(self):
        check_width(self, "width", self.width)
        check_scale(self, "W_std", self.W_std)
        check_scale(self, "b_std", self.b_std)

    def check(self, signal: Signal) -> Signal:
        spatial = self.out_spatial(signal.spatial)
        return signal.affine((*spatial, self.parameterization.outputs(self.width)))

    def fan_in(self, channels: int) -> int:
        """The number of terms that each output is a sum of."""
        return channels * math.prod(self.filter_shape)

    def draw(self, key: PRNGKeyArray, signal: Signal) -> "AbstractAffine":
        own = self.unshared(self.out_spatial(signal.spatial))
        out_channels = self.parameterization.outputs(self.width)
        shape = (*own, *self.filter_shape, signal.channels, out_channels)
        W_key, b_key = jr.split(key)
        std = self.parameterization.weights(self.W_std, self.fan_in(signal.channels)).init
        W = std.astype(signal.dtype) * jr.normal(W_key, shape, signal.dtype)
        b = None
        if self.b_std is not None:
            std = self.parameterization.biases(self.b_std).init
            b = std.astype(signal.dtype) * jr.normal(
                b_key, (*own, out_channels), signal.dtype
            )
        new = AffineWeights(W, b)
        return eqx.tree_at(lambda s: s.weights, self, new, is_leaf=lambda x: x is None)

    def __call__(self, x, *, key=None):
        del key
        if self.weights is None:
            raise uninitialised(self)
        W, b = self.weights.W, self.weights.b
        ndim, channels = len(self.filter_shape), W.shape[-2]
        if x.ndim <= ndim or x.shape[-1] != channels:
            raise LayerError(
                self,
                f"has weights for inputs of {channels} channels, the last axis, after "
                f"at least {ndim} of positions, but its input is of shape {x.shape}. "
                "Batches are made by `jax.vmap(net)(x)`.",
            )
        scale = self.parameterization.weights(self.W_std, self.fan_in(channels)).scale
        out = scale.astype(x.dtype) * self.apply(W, x)
        if b is not None and self.b_std is not None:
            scale = self.parameterization.biases(self.b_std).scale
            # Of full rank, so that nothing relies on implicit broadcasting.
            b = jnp.reshape(b, (1,) * (out.ndim - b.ndim) + b.shape)
            out = out + scale.astype(x.dtype) * b
        return out

    def infinite(self, kernel: Kernel) -> Kernel:
        def affine(k11, k12, k22, W, b=None):
            del k11, k22
            # Scaled first: so the NTK mixes the positions of one array, not of two.
            k = self.mix(k12.with_array(W * k12.array))
            k = k if b is None else k.with_array(k.array + b)
            return k if k.pairs == k12.pairs else k.embedded()

        variances, rates = [self.W_std**2], [self._weight_rate(kernel)]
        if self.b_std is not None:
            variances.append(self.b_std**2)
            rates.append(self.parameterization.bias_rate(self.b_std))
        channels = self.parameterization.outputs(self.width)
        return kernel.propagate(affine, variances, rates, channels=channels, mask=self.mask)

    def _weight_rate(self, kernel: Kernel) -> Float[Array, ""]:
        channels = kernel.channels
        fan_in = None if channels is None else self.fan_in(channels)
        try:
            return self.parameterization.weight_rate(self.W_std, fan_in)
        except ValueError as error:
            raise LayerError(self, str(error)) from None


def convolve(
    W: Float[Array, "*filter in_channels out_channels"],
    x: Float[Array, "*spatial in_channels"],
    strides: Sequence[int],
    zeros: Sequence[tuple[int, int]] | None = None,
) -> Float[Array, "*out out_channels"]:
    """The sums over all windows, times `W`, within `x` and some zeros around it."""
    ndim = len(strides)
    positions = tuple(range(1, ndim + 1))
    image, filter_ = (0, ndim + 1, *positions), (ndim + 1, ndim, *range(ndim))
    numbers = lax.ConvDimensionNumbers(image, filter_, image)
    zeros = [(0, 0)] * ndim if zeros is None else zeros
    out = lax.conv_general_dilated(x[None], W, strides, zeros, dimension_numbers=numbers)
    return out[0]
