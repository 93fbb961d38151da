"""Layers that have no kernel in closed form: for finite networks."""

import abc
import math
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
from equinox import AbstractVar
from jaxtyping import Array, Bool, Float

from .._hyperparameters import (
    check_scale,
    check_window,
    SAFEGUARD,
    to_optional_sizes,
    to_scalar,
    to_sizes,
)
from .._inputs import Inputs
from .._layer import AbstractLayer
from .._path import LayerError
from .._signal import Signal
from .._window import to_strides, Window


class AbstractFiniteOnly(AbstractLayer):
    """A layer that works in finite networks, but has no kernel in closed form."""

    def _no_kernel(self) -> LayerError:
        return LayerError(
            self,
            "has no kernel in closed form. Networks with it can be drawn by `init` and "
            "called; estimate their kernels by Monte Carlo (`monte_carlo_gram`).",
        )

    # It is asked before anything is computed of kernels, and not of finite networks.
    def requires(self, demand):
        raise self._no_kernel()

    def infinite(self, kernel):
        raise self._no_kernel()


def _any(signal: Signal, shape: tuple[int, ...]) -> Signal:
    """Whatever follows may have it: conditions are those of kernels, and there are none."""
    return signal.affine(shape)


class MaxPool(AbstractFiniteOnly):
    r"""The maximum over windows of positions, $z(p) = \max_d x(s p + d)$.

    Missing positions do not count, and an output is missing where the centre of its window
    is. It has no kernel in closed form.
    """

    window_shape: tuple[int, ...] = eqx.field(static=True, converter=to_sizes)
    strides: tuple[int, ...] | None = eqx.field(
        default=None, static=True, converter=to_optional_sizes
    )
    padding: str = eqx.field(default="VALID", static=True)

    def __check_init__(self):
        check_window(self, "window_shape", *self.window)

    @property
    def window(self) -> Window:
        strides = to_strides(self.strides, self.window_shape)
        return Window(self.window_shape, strides, self.padding)

    def check(self, signal):
        problem = self.window.problem(signal.spatial)
        if problem is not None:
            raise LayerError(self, f"{problem}.")
        shape = (*self.window.out_shape(signal.spatial), signal.channels)
        return _any(signal, shape)

    def __call__(self, x, *, key=None):
        del key
        padded = self.window.pad(x, fill=-math.inf)
        size, strides, _ = self.window
        return lax.reduce_window(
            padded, -math.inf, lax.max, (*size, 1), (*strides, 1), "VALID"
        )

    def carry(self, inputs, *, key=None):
        x, missing = inputs.array, inputs.positions.missing
        if missing is not None:
            x = jnp.where(missing[..., None], -math.inf, x)
        return inputs.through(self(x, key=key), self.mask)

    def mask(self, missing):
        return self.window.centres(missing)


MaxPool.__init__.__doc__ = """**Arguments:**

- `window_shape`: positions to take the maximum of, along each spatial dimension.
- `strides`: steps between outputs, along each spatial dimension; 1 by default.
- `padding`: `"VALID"`, `"SAME"` (nothing outside of the input) or `"CIRCULAR"`.

**Raises:** `ValueError` for arguments that make no sense.
"""


class BatchNorm(AbstractFiniteOnly):
    r"""Subtracts the mean over a batch and divides by the standard deviation.

    Both are over all examples of a batch, and all positions of them that are not missing,
    for each channel. Nothing is learned, and nothing is kept from one batch to the next:
    it is the network as a function of the whole batch. The axis of `jax.vmap` that makes
    the batch must have the name that this layer is given. It has no kernel in closed form.

    !!! example

        ```python
        net = inn.Sequential([inn.Dense(64), inn.BatchNorm("batch"), inn.Relu()])
        net = net.init(key, x[0])
        y = jax.vmap(net, axis_name="batch")(x)
        ```

    ??? cite "Reference"
        Ioffe & Szegedy, Batch Normalization, ICML 2015: section 3.
    """

    axis_name: str = eqx.field(default="batch", static=True)
    eps: Float[Array, ""] = eqx.field(default=1e-5, converter=to_scalar, metadata=SAFEGUARD)

    def __check_init__(self):
        check_scale(self, "eps", self.eps)

    def check(self, signal):
        return _any(signal, signal.shape)

    def __call__(self, x, *, key=None):
        return self.carry(Inputs(x), key=key).array

    def carry(self, inputs, *, key=None):
        del key
        x, missing = inputs.array, inputs.positions.missing
        present = jnp.ones(x.shape[:-1], bool) if missing is None else ~missing
        present = present[..., None].astype(x.dtype)
        axes = tuple(range(x.ndim - 1))
        count = jnp.maximum(self._total(present, axes), 1)
        mean = lambda x: self._total(present * x, axes) / count
        centred = x - mean(x)
        variance = mean(centred * centred) + self.eps.astype(x.dtype)
        positive = variance > 0
        root = jnp.sqrt(jnp.where(positive, variance, 1))
        return inputs.through(jnp.where(positive, centred / root, 0), self.mask)

    def _total(self, x: Float[Array, "..."], axes: tuple[int, ...]) -> Float[Array, "..."]:
        try:
            return lax.psum(jnp.sum(x, axes, keepdims=True), self.axis_name)
        except NameError:
            raise LayerError(
                self,
                f"needs a batch, along an axis named {self.axis_name!r}: "
                f"`jax.vmap(net, axis_name={self.axis_name!r})(x)`.",
            ) from None


BatchNorm.__init__.__doc__ = """**Arguments:**

- `axis_name`: the name of the axis of the batch, in `jax.vmap(net, axis_name=...)`.
- `eps`: what is added to variances. Scalar, not negative, differentiable.

**Raises:** `ValueError` for arguments that make no sense.
"""


def _where(inputs: Inputs) -> Bool[Array, "*shape"] | None:
    """Of which activations to take the softmax."""
    missing = inputs.positions.missing
    if missing is None:
        return None
    # Where all are missing there is nothing to sum, but it must not be NaN.
    present = ~missing | jnp.all(missing)
    return jnp.broadcast_to(present[..., None], inputs.array.shape)


def _check_axes(layer: AbstractLayer, axis: Sequence[int], ndim: int) -> None:
    if any(not -ndim <= i < ndim for i in axis):
        raise LayerError(
            layer,
            f"`axis` must be among the {ndim} axes of one example, without one of a batch, "
            f"but it is {tuple(axis)}.",
        )


class AbstractSoftmax(AbstractFiniteOnly):
    """A function of all activations along some axes."""

    axis: AbstractVar[tuple[int, ...]]

    @abc.abstractmethod
    def function(
        self, x: Float[Array, "*shape"], where: Bool[Array, "*#shape"] | None
    ) -> Float[Array, "*shape"]:
        """Of the activations that are there."""

    def check(self, signal):
        _check_axes(self, self.axis, len(signal.shape))
        return _any(signal, signal.shape)

    def __call__(self, x, *, key=None):
        return self.carry(Inputs(x), key=key).array

    def carry(self, inputs, *, key=None):
        del key
        return inputs.through(self.function(inputs.array, _where(inputs)), self.mask)


class Softmax(AbstractSoftmax):
    r"""$z_i = e^{x_i} / \sum_j e^{x_j}$, of positions that are not missing.

    It has no kernel in closed form.
    """

    axis: tuple[int, ...] = eqx.field(default=(-1,), static=True, converter=to_sizes)

    def function(self, x, where):
        return jax.nn.softmax(x, self.axis, where=where)


class LogSoftmax(AbstractSoftmax):
    r"""$z_i = x_i - \log \sum_j e^{x_j}$, of positions that are not missing.

    It has no kernel in closed form.
    """

    axis: tuple[int, ...] = eqx.field(default=(-1,), static=True, converter=to_sizes)

    def function(self, x, where):
        return jax.nn.log_softmax(x, self.axis, where=where)


for _cls in (Softmax, LogSoftmax):
    _cls.__init__.__doc__ = """**Arguments:**

- `axis`: one axis or several of one example: -1 for channels, from 0 on positions.
"""
