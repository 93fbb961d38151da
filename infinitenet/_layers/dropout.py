"""Random noise."""

import dataclasses
import math
from typing import Literal

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from .._covariance import Covariance, Pairs
from .._hyperparameters import PROBABILITY, to_scalar
from .._layer import AbstractLayer
from .._path import LayerError
from .._tracing import is_traced


class Dropout(AbstractLayer):
    r"""Keeps each activation with probability $\rho$, divided by it; others become zero.

    At infinite width this adds to variances, $k'(p, p) = k(p, p) / \rho$ of an input with
    itself, and likewise for the NTK. Covariances of different inputs, and between
    different positions, are not changed, as these are dropped independently. So an input
    and a copy of it are different inputs: `gram(net, x)` has other values than `gram(net,
    x, x)`, on its diagonal.

    ??? cite "Reference"
        Schoenholz, Gilmer, Ganguli & Sohl-Dickstein, Deep Information Propagation, ICLR
        2017: section 4 (dropout).
    """

    keep_rate: Float[Array, ""] = eqx.field(converter=to_scalar, metadata=PROBABILITY)
    mode: Literal["train", "test"] = eqx.field(default="train", static=True)

    def __check_init__(self):
        rate = self.keep_rate
        if self.mode not in ("train", "test"):
            raise LayerError(
                self, f'`mode` must be "train" or "test", but it is {self.mode!r}.'
            )
        if not is_traced(rate) and not (jnp.all(rate > 0) and jnp.all(rate <= 1)):
            raise LayerError(
                self,
                "`keep_rate` must be the probability to keep an activation, above 0 and at "
                f"most 1, but it is {rate}.",
            )

    def check(self, signal):
        if self.mode == "test":
            return signal
        # Means of zero remain, as they do after odd nonlinearities.
        return signal.nonlinear(odd=True)

    def __call__(self, x, *, key=None):
        if self.mode == "test":
            return x
        if key is None:
            raise LayerError(
                self,
                "needs a random key: `net(x, key=key)`, and for a batch `jax.vmap(lambda "
                "x, key: net(x, key=key))(x, jax.random.split(key, len(x)))`. Networks "
                'with `Dropout(keep_rate, "test")` need none.',
            )
        rate = self.keep_rate.astype(x.dtype)
        return jnp.where(jr.bernoulli(key, rate, x.shape), x / rate, 0)

    def step(self, signal):
        return (1,) * len(signal.spatial)

    def infinite(self, kernel):
        if self.mode == "test":
            return kernel
        scale = 1 / self.keep_rate.astype(kernel.dtype)
        with_itself = lambda k: None if k is None else _scale_diagonal(k, scale)
        kernel = dataclasses.replace(
            kernel, cov1=with_itself(kernel.cov1), cov2=with_itself(kernel.cov2)
        )
        if not kernel.alone:
            return kernel
        return dataclasses.replace(
            kernel, nngp=with_itself(kernel.nngp), ntk=with_itself(kernel.ntk)
        )


def _scale_diagonal(k: Covariance, scale: Float[Array, ""]) -> Covariance:
    """Scales entries at equal positions."""
    if not k.spatial or k.pairs == Pairs.SAME:
        return Covariance(scale * k.array, k.pairs)
    same = jnp.eye(math.prod(k.spatial), dtype=bool).reshape(2 * k.spatial)
    return Covariance(jnp.where(same, scale * k.array, k.array), k.pairs)


Dropout.__init__.__doc__ = """**Arguments:**

- `keep_rate`: the probability to keep an activation, above 0 and at most 1. Scalar,
    differentiable.
- `mode`: `"train"`, or `"test"` to do nothing. Finite networks need a key to train.

**Raises:** `ValueError` for arguments that make no sense.
"""
