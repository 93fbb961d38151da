"""Layers of random weights which all positions share."""

import equinox as eqx
from jaxtyping import Array, Float

from .._affine import AbstractAffine, AffineWeights, convolve
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
from .._window import to_strides, Window


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
    W_std: Float[Array, ""] = eqx.field(converter=to_scalar, metadata=POSITIVE)
    b_std: Float[Array, ""] | None = eqx.field(
        converter=to_optional_scalar, metadata=POSITIVE
    )
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

    @property
    def filter_shape(self):
        return ()

    def out_spatial(self, spatial):
        return tuple(spatial)

    def step(self, signal):
        return (1,) * len(signal.spatial)

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
        strides = to_strides(self.strides, self.filter_shape)
        return Window(self.filter_shape, strides, self.padding)

    def out_spatial(self, spatial):
        problem = self.window.problem(spatial)
        if problem is not None:
            raise LayerError(self, f"{problem}.")
        return self.window.out_shape(spatial)

    def step(self, signal):
        return self.window.step(signal.spatial)

    def apply(self, W, x):
        x, zeros = self.window.around(x)
        return convolve(W, x, self.window.strides, zeros)

    def mix(self, cov):
        return cov.window(self.window)

    def mask(self, missing):
        return self.window.centres(missing)
