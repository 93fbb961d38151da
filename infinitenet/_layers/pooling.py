"""Averages over positions."""

import dataclasses
from collections.abc import Sequence

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float

from .._covariance import apply_matrix, Covariance, Pairs
from .._hyperparameters import check_window, to_optional_sizes, to_sizes
from .._kernel import Demand
from .._layer import AbstractLayer
from .._path import LayerError
from .._window import Window


def _pool(x: Float[Array, "*spatial channels"], matrices: Sequence[np.ndarray]):
    for axis, matrix in enumerate(matrices):
        x = apply_matrix(matrix, x, axis)
    return x


def _all_pairs(demand: Demand) -> Demand:
    """Every pair of positions contributes to a pooled covariance."""
    return Demand(Pairs.ALL, Pairs.ALL if demand.marginal else Pairs.NONE)


class AvgPool(AbstractLayer):
    r"""Averages over windows of positions, $z(p) = \operatorname{mean}_d x(s p + d)$.

    At infinite width $k'(p, q) = \operatorname{mean}_{d, d'} k(s p + d, s q + d')$: unlike
    a convolution it needs covariances between all positions.

    ??? cite "Reference"
        Novak et al., Bayesian Deep Convolutional Networks with Many Channels are Gaussian
        Processes, ICLR 2019: section 3.2 (projection and pooling).
    """

    window_shape: tuple[int, ...] = eqx.field(static=True, converter=to_sizes)
    strides: tuple[int, ...] | None = eqx.field(
        default=None, static=True, converter=to_optional_sizes
    )
    padding: str = eqx.field(default="VALID", static=True)
    normalize_edges: bool = eqx.field(default=False, static=True)

    def __check_init__(self):
        check_window(self, "window_shape", *self.window)

    @property
    def window(self) -> Window:
        ones = (1,) * len(self.window_shape)
        strides = ones if self.strides is None else self.strides
        return Window(self.window_shape, strides, self.padding)

    def _matrices(self, spatial: Sequence[int]) -> list[np.ndarray]:
        counts = self.window.matrices(spatial)
        if self.normalize_edges:
            return [m / m.sum(1, keepdims=True) for m in counts]
        return [m / n for m, n in zip(counts, self.window_shape, strict=True)]

    def check(self, signal):
        problem = self.window.problem(signal.spatial)
        if problem is not None:
            raise LayerError(self, f"{problem}.")
        spatial = self.window.out_shape(signal.spatial)
        return dataclasses.replace(signal, shape=(*spatial, signal.channels))

    def __call__(self, x, *, key=None):
        del key
        return _pool(x, self._matrices(x.shape[:-1]))

    def requires(self, demand):
        return _all_pairs(demand)

    def infinite(self, kernel):
        def pool(k11, k12, k22):
            del k11, k22
            return k12.map(self._matrices(k12.spatial))

        return kernel.propagate(pool, needs=Pairs.ALL)


AvgPool.__init__.__doc__ = """**Arguments:**

- `window_shape`: positions to average over, along each spatial dimension.
- `strides`: steps between outputs, along each spatial dimension; 1 by default.
- `padding`: `"VALID"`, `"SAME"` (zeros outside of the input) or `"CIRCULAR"`.
- `normalize_edges`: whether to divide by the number of positions within the input, where
    a window reaches outside. By default it is always the size of the window.

**Raises:** `ValueError` for arguments that make no sense.
"""


class GlobalAvgPool(AbstractLayer):
    r"""Averages over all positions, of which none are left.

    At infinite width $k' = \operatorname{mean}_{p, q} k(p, q)$.

    ??? cite "Reference"
        Novak et al., Bayesian Deep Convolutional Networks with Many Channels are Gaussian
        Processes, ICLR 2019: section 3.2.1 (global average pooling).
    """

    def check(self, signal):
        return dataclasses.replace(signal, shape=signal.shape[-1:])

    def __call__(self, x, *, key=None):
        del key
        return _pool(x, _averages(x.shape[:-1])).reshape(x.shape[-1])

    def requires(self, demand):
        return _all_pairs(demand)

    def infinite(self, kernel):
        if not kernel.nngp.spatial:
            return kernel

        def pool(k11, k12, k22):
            del k11, k22
            # By matrix products: a sum of a million terms in sequence loses digits.
            mean = k12.map(_averages(k12.spatial)).array.reshape(())
            return Covariance(mean, Pairs.SAME)

        return kernel.propagate(pool, needs=Pairs.ALL)


def _averages(spatial: Sequence[int]) -> list[np.ndarray]:
    return [np.full((1, n), 1 / n) for n in spatial]
