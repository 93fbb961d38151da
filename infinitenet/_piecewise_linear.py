"""The base class of nonlinearities that are linear on either side of zero."""

import abc
from typing import TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._pointwise import AbstractPointwise
from ._special import arc_cosine


Slope: TypeAlias = Float[Array, ""] | float


class AbstractABRelu(AbstractPointwise):
    """Piecewise linear functions `a min(x, 0) + b max(x, 0)`."""

    @abc.abstractmethod
    def slopes(self, dtype: np.dtype) -> tuple[Slope, Slope]:
        """`a` and `b`: left and right of zero."""

    def __call__(self, x, *, key=None):
        del key
        a, b = self.slopes(x.dtype)
        return jnp.where(x > 0, b * x, a * x)

    def dual(self, q1, k, q2):
        a, b = self.slopes(k.dtype)
        return (a - b) ** 2 / 2 * arc_cosine(q1, k, q2)[0] + a * b * k


class Linear(AbstractABRelu):
    """The identity, as one of these functions."""

    @property
    def odd(self):
        return True

    def slopes(self, dtype):
        del dtype
        return 1.0, 1.0
