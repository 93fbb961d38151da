"""Features without positions."""

import dataclasses
import math

import jax.numpy as jnp

from .._covariance import Pairs
from .._kernel import Demand
from .._layer import AbstractLayer


class Flatten(AbstractLayer):
    r"""Makes one long vector of channels at all positions.

    At infinite width $k' = \operatorname{mean}_p k(p, p)$: only equal positions matter,
    which makes convolutional networks with it much cheaper than those with pooling.

    ??? cite "Reference"
        Novak et al., Bayesian Deep Convolutional Networks with Many Channels are Gaussian
        Processes, ICLR 2019: section 3.1 (vectorization).
    """

    def __call__(self, x, *, key=None):
        del key
        return jnp.ravel(x)

    def check(self, signal):
        if not signal.spatial:
            return signal
        # Features of several positions have several variances.
        gaussian = signal.gaussian and math.prod(signal.spatial) == 1
        shape = (math.prod(signal.shape),)
        homogeneous = signal.homogeneous and math.prod(signal.spatial) == 1
        return dataclasses.replace(
            signal, shape=shape, gaussian=gaussian, homogeneous=homogeneous
        )

    def requires(self, demand):
        return Demand(Pairs.SAME, min(demand.marginal, Pairs.SAME))

    def infinite(self, kernel):
        if not kernel.nngp.spatial:
            return kernel
        channels = kernel.channels
        if channels is not None:
            channels = channels * math.prod(kernel.nngp.spatial)
        return kernel.propagate(
            lambda k11, k12, k22: k12.mean_of_diagonal(),
            channels=channels,
            mask=self.mask,
        )

    def mask(self, missing):
        return jnp.all(missing)
