"""How the scale of weights is split between initialisation and forward pass."""

import abc
import math
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float


class Split(NamedTuple):
    """Standard deviation of the weights when drawn, and their factor in the layer."""

    init: Float[Array, ""]
    scale: Float[Array, ""]


class AbstractParameterization(eqx.Module):
    r"""Weights of variance $\sigma^2 / N$, $N$ the fan-in, in two factors.

    All have the same NNGP kernel. The NTK differs, as training moves the weights drawn:
    a group of them feeds it at the rate `scale**2 * fan_in`.
    """

    @abc.abstractmethod
    def outputs(self, width: int) -> int:
        """The number of outputs of a layer which is told to have `width` of them."""

    @abc.abstractmethod
    def weights(self, std: Float[Array, ""], fan_in: int) -> Split:
        """For weights that sum over `fan_in` inputs."""

    @abc.abstractmethod
    def biases(self, std: Float[Array, ""]) -> Split:
        """For biases."""

    @abc.abstractmethod
    def weight_rate(self, std: Float[Array, ""], fan_in: int | None) -> Array:
        """The rate at which weights feed the NTK; `fan_in` is `None` if not known.

        **Raises:** `ValueError` if it is not known but matters.
        """

    @abc.abstractmethod
    def bias_rate(self, std: Float[Array, ""]) -> Array:
        """The rate at which biases feed the NTK."""


class NTKParameterization(AbstractParameterization):
    r"""Standard normal weights, scaled in the forward pass: $\sigma / \sqrt{N}\, W x$.

    The NTK does not depend on widths.

    ??? cite "Reference"
        Jacot, Gabriel & Hongler, Neural Tangent Kernel, NeurIPS 2018: section 2.
    """

    def __repr__(self):
        return repr("ntk")

    def outputs(self, width):
        return width

    def weights(self, std, fan_in):
        return Split(jnp.ones_like(std), std / math.sqrt(fan_in))

    def biases(self, std):
        return Split(jnp.ones_like(std), std)

    def weight_rate(self, std, fan_in):
        del fan_in
        return std**2

    def bias_rate(self, std):
        return std**2


class StandardParameterization(AbstractParameterization):
    r"""Weights as in most libraries, drawn with variance $\sigma^2 s_0 / N$.

    A layer is $W x / \sqrt{s_0} + b$ and has $s_1$ times as many outputs as it is told. The
    NTK at infinite width is the limit of $s \to \infty$ at fixed learning rates, in which
    each layer's contribution is proportional to the width that was given to it.

    ??? cite "Reference"
        Sohl-Dickstein, Novak, Schoenholz & Lee, On the infinite width limit of neural
        networks with a standard parameterization, 2020 (arXiv:2001.07301).
    """

    s: tuple[int, int] = eqx.field(default=(1, 1), static=True)

    def __check_init__(self):
        if len(self.s) != 2 or min(self.s) < 1:
            raise ValueError(f"`s` must be two positive integers, but it is {self.s}.")

    def __repr__(self):
        return repr("standard") if self.s == (1, 1) else f"{type(self).__name__}({self.s})"

    def outputs(self, width):
        return self.s[1] * width

    def weights(self, std, fan_in):
        s = self.s[0]
        return Split(std * math.sqrt(s / fan_in), jnp.asarray(1 / math.sqrt(s)))

    def biases(self, std):
        return Split(std, jnp.ones_like(std))

    def weight_rate(self, std, fan_in):
        if fan_in is None:
            raise ValueError(
                "the standard parameterization needs the fan-in, but the number of "
                "channels of the inputs is not known: give `channels` to the kernel, or "
                'use `parameterization="ntk"`'
            )
        return jnp.full_like(std, fan_in / self.s[0])

    def bias_rate(self, std):
        return jnp.ones_like(std)


def to_parameterization(
    value: AbstractParameterization | str, s: tuple[int, int] = (1, 1)
) -> AbstractParameterization:
    """By its name, `"ntk"` or `"standard"`; the latter with factors `s` of widths."""
    if value == "standard":
        return StandardParameterization(s)
    if s != (1, 1):
        raise ValueError(f'`s` is for `parameterization="standard"`, but it is {s}.')
    if value == "ntk":
        return NTKParameterization()
    if isinstance(value, AbstractParameterization):
        return value
    raise ValueError(
        f'`parameterization` must be "ntk" or "standard", but it is {value!r}.'
    )
