"""Convolutions the other way round, and without shared weights."""

import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._affine import AbstractAffine, AffineWeights, convolve
from .._covariance import Covariance, Pairs
from .._custom_types import Scalar, Sizes
from .._hyperparameters import (
    check_window,
    POSITIVE,
    to_optional_scalar,
    to_optional_sizes,
    to_scalar,
    to_sizes,
)
from .._parameterization import AbstractParameterization, to_parameterization
from .._path import LayerError
from .._window import to_strides, TransposedWindow, Window


class ConvTranspose(AbstractAffine):
    r"""A transposed convolution: $z(o) = \sigma_W / \sqrt N \sum_{i, d} W_d\, x(i) +
    \sigma_b b$.

    The sum is over inputs $i$ and offsets $d = s i + l - o$ within the filter, where $s$
    are the strides: so each input is spread over a window of outputs. The fan-in $N$ is the
    size of the filter times the number of input channels, although with strides fewer
    terms contribute. At infinite width

    $$
    k'(p, q) = \sigma_W^2 \operatorname{mean}_d k(i_d(p), i_d(q)) + \sigma_b^2,
    $$

    where $i_d$ is the input at offset $d$, and $k$ is zero if there is none. Outputs are
    missing if any input that reaches them is.

    ??? cite "Reference"
        Dumoulin & Visin, A guide to convolution arithmetic for deep learning, 2016
        (arXiv:1603.07285): section 4.
    """

    width: int = eqx.field(static=True)
    filter_shape: tuple[int, ...] = eqx.field(static=True)
    strides: tuple[int, ...] | None = eqx.field(static=True)
    padding: str = eqx.field(static=True)
    W_std: Float[Array, ""] = eqx.field(converter=to_scalar, metadata=POSITIVE)
    b_std: Float[Array, ""] | None = eqx.field(
        converter=to_optional_scalar, metadata=POSITIVE
    )
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
        - `strides`: how far apart inputs are put, along each spatial dimension; 1 by
            default.
        - `padding`: `"VALID"` for all outputs that inputs reach,
            `(n - 1) * stride + max(size, stride)` of them; `"SAME"` for `n * stride`, those
            in the middle; `"CIRCULAR"` for as many, to which the rest is added
            periodically.
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
    def window(self) -> TransposedWindow:
        strides = to_strides(self.strides, self.filter_shape)
        return TransposedWindow(self.filter_shape, strides, self.padding)

    def out_spatial(self, spatial):
        problem = self.window.problem(spatial)
        if problem is not None:
            raise LayerError(self, f"{problem}.")
        return self.window.out_shape(spatial)

    def apply(self, W, x):
        return convolve(W, self.window.pad(x), self.window.strides)

    def mix(self, cov):
        return cov.window(self.window)

    def mask(self, missing):
        return self.window.reached(missing)


class ConvLocal(AbstractAffine):
    r"""A convolution with other weights at each position: $z(p) = \sigma_W / \sqrt{N}
    \sum_d W_{p d}\, x(s p + d) + \sigma_b b_p$.

    At infinite width it is a convolution at equal positions, and different ones are
    independent:

    $$
    k'(p, q) = \delta_{p q}
        \bigl(\sigma_W^2 \operatorname{mean}_d k(s p + d, s p + d) + \sigma_b^2\bigr).
    $$

    So networks without pooling have the same kernel as with [`infinitenet.Conv`][].

    ??? cite "Reference"
        Novak et al., Bayesian Deep Convolutional Networks with Many Channels are Gaussian
        Processes, ICLR 2019: section 5.1 (locally connected networks).
    """

    width: int = eqx.field(static=True)
    filter_shape: tuple[int, ...] = eqx.field(static=True)
    strides: tuple[int, ...] | None = eqx.field(static=True)
    padding: str = eqx.field(static=True)
    W_std: Float[Array, ""] = eqx.field(converter=to_scalar, metadata=POSITIVE)
    b_std: Float[Array, ""] | None = eqx.field(
        converter=to_optional_scalar, metadata=POSITIVE
    )
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
        """**Arguments:** as for [`infinitenet.Conv`][].

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
        strides = to_strides(self.strides, self.filter_shape)
        return Window(self.filter_shape, strides, self.padding)

    def out_spatial(self, spatial):
        problem = self.window.problem(spatial)
        if problem is not None:
            raise LayerError(self, f"{problem}.")
        return self.window.out_shape(spatial)

    def unshared(self, out_spatial):
        return out_spatial

    def apply(self, W, x):
        ndim, out = len(self.filter_shape), self.out_spatial(x.shape[:-1])
        if W.shape[:ndim] != out:
            raise LayerError(
                self,
                f"has weights for outputs of positions {W.shape[:ndim]}, but for an input "
                f"of shape {x.shape} these are {out}. Draw others by `net.init` for inputs "
                "of this shape.",
            )
        patches = self._patches(x, out)
        terms = patches.reshape(*out, -1)
        return jnp.einsum("...i,...io->...o", terms, W.reshape(*terms.shape, -1))

    def _patches(
        self, x: Float[Array, "*spatial channels"], out: tuple[int, ...]
    ) -> Float[Array, "*out_and_filter channels"]:
        """What each output sums over."""
        ndim, window = len(out), self.window
        x = window.pad(x)
        # From the last one on, as each axis becomes two: of outputs, and of offsets.
        for axis in reversed(range(ndim)):
            starts = window.strides[axis] * np.arange(out[axis])
            x = jnp.take(x, starts[:, None] + np.arange(window.size[axis]), axis)
        axes = *range(0, 2 * ndim, 2), *range(1, 2 * ndim, 2), 2 * ndim
        return lax.transpose(x, axes)

    def mix(self, cov):
        same = Covariance(cov.diagonal(), Pairs.SAME)
        return same.window(self.window)

    def mask(self, missing):
        return self.window.centres(missing)
