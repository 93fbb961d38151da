"""Averages and sums over positions."""

import abc
import dataclasses
import math
from collections.abc import Sequence

import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from equinox import AbstractVar
from jaxtyping import Array, Bool, Float

from .._covariance import apply_matrix, Covariance, Pairs
from .._hyperparameters import check_window, to_optional_sizes, to_sizes
from .._inputs import Positions
from .._layer import AbstractLayer
from .._path import LayerError
from .._window import to_strides, Window


def _pool(x: Float[Array, "*spatial channels"], matrices: Sequence[np.ndarray]):
    for axis, matrix in enumerate(matrices):
        x = apply_matrix(matrix, x, axis)
    return x


#
# Windows
#


class AbstractPool(AbstractLayer):
    """Sums over windows of positions, times a weight of each."""

    window_shape: AbstractVar[tuple[int, ...]]
    strides: AbstractVar[tuple[int, ...] | None]
    padding: AbstractVar[str]

    @abc.abstractmethod
    def matrices(self, spatial: Sequence[int]) -> list[np.ndarray]:
        """The map of positions along each dimension."""

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
        spatial = self.window.out_shape(signal.spatial)
        return dataclasses.replace(signal, shape=(*spatial, signal.channels))

    def __call__(self, x, *, key=None):
        del key
        return _pool(x, self.matrices(x.shape[:-1]))

    def mask(self, missing):
        return self.window.centres(missing)

    def requires(self, demand):
        return demand.of_all_pairs()

    def infinite(self, kernel):
        def pool(k11, k12, k22):
            del k11, k22
            return k12.map(self.matrices(k12.spatial))

        return kernel.propagate(pool, needs=Pairs.ALL, mask=self.mask)


class AvgPool(AbstractPool):
    r"""Averages over windows of positions, $z(p) = \operatorname{mean}_d x(s p + d)$.

    At infinite width $k'(p, q) = \operatorname{mean}_{d, d'} k(s p + d, s q + d')$: unlike
    a convolution it needs covariances between all positions. Missing positions count as
    zeros, and an output is missing where the centre of its window is.

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

    def matrices(self, spatial):
        counts = self.window.matrices(spatial)
        if self.normalize_edges:
            return [m / m.sum(1, keepdims=True) for m in counts]
        return [m / n for m, n in zip(counts, self.window_shape, strict=True)]


class SumPool(AbstractPool):
    r"""Sums over windows of positions, $z(p) = \sum_d x(s p + d)$.

    At infinite width $k'(p, q) = \sum_{d, d'} k(s p + d, s q + d')$: see
    [`infinitenet.AvgPool`][].

    ??? cite "Reference"
        Novak et al., Bayesian Deep Convolutional Networks with Many Channels are Gaussian
        Processes, ICLR 2019: section 3.2 (projection and pooling).
    """

    window_shape: tuple[int, ...] = eqx.field(static=True, converter=to_sizes)
    strides: tuple[int, ...] | None = eqx.field(
        default=None, static=True, converter=to_optional_sizes
    )
    padding: str = eqx.field(default="VALID", static=True)

    def matrices(self, spatial):
        return self.window.matrices(spatial)


_window_arguments = """**Arguments:**

- `window_shape`: positions to {} over, along each spatial dimension.
- `strides`: steps between outputs, along each spatial dimension; 1 by default.
- `padding`: `"VALID"`, `"SAME"` (zeros outside of the input) or `"CIRCULAR"`.
{}
**Raises:** `ValueError` for arguments that make no sense.
"""
_edges = """- `normalize_edges`: whether to divide by the number of positions within the
    input, where a window reaches outside. By default it is always the size of the window.
"""
AvgPool.__init__.__doc__ = _window_arguments.format("average", _edges)
SumPool.__init__.__doc__ = _window_arguments.format("sum", "")


#
# All positions
#


class AbstractGlobalPool(AbstractLayer):
    """A weighted sum over all positions, of which none are left."""

    @abc.abstractmethod
    def weight(self, size: int) -> float:
        """Of each of the positions along a dimension of this size."""

    @abc.abstractmethod
    def weigh(self, missing: Bool[Array, "*spatial"]) -> Float[Array, "*spatial"]:
        """Of each position if some are missing."""

    def _matrices(self, spatial: Sequence[int]) -> list[np.ndarray]:
        return [np.full((1, n), self.weight(n)) for n in spatial]

    def check(self, signal):
        return dataclasses.replace(signal, shape=signal.shape[-1:])

    def __call__(self, x, *, key=None):
        del key
        return _pool(x, self._matrices(x.shape[:-1])).reshape(x.shape[-1])

    def carry(self, inputs, *, key=None):
        missing, x = inputs.positions.missing, inputs.array
        if missing is None:
            return inputs.through(self(x, key=key))
        out = jnp.tensordot(self.weigh(missing).astype(x.dtype), x, missing.ndim)
        return inputs.through(out, self.mask)

    def mask(self, missing):
        return jnp.all(missing)

    def requires(self, demand):
        return demand.of_all_pairs()

    def infinite(self, kernel):
        if not kernel.nngp.spatial:
            return kernel

        def pool_at(p1: Positions, p2: Positions):
            return lambda k11, k12, k22: self._pool(k12, p1.missing, p2.missing)

        return kernel.propagate_at(pool_at, needs=Pairs.ALL, mask=self.mask)

    def weight_of_each(self, spatial: Sequence[int]) -> float:
        """The weight of each position."""
        return math.prod(map(self.weight, spatial))

    def _pool(self, k: Covariance, missing1: Array | None, missing2: Array | None):
        # By matrix products: a sum of a million terms in sequence loses digits.
        if k.shifts is not None:
            ones = jnp.full(
                k.array.size, self.weight_of_each(k.spatial) ** 2, k.array.dtype
            )
            out = jnp.dot(k.array.reshape(-1), ones, precision=lax.Precision.HIGHEST)
            return Covariance(out, Pairs.SAME)
        if missing1 is None or missing2 is None:
            out = k.map(self._matrices(k.spatial)).array.reshape(())
            return Covariance(out, Pairs.SAME)
        w1, w2 = (self.weigh(m).reshape(-1) for m in (missing1, missing2))
        size = math.prod(k.spatial)
        dot = lambda a, b: jnp.dot(a, b, precision=lax.Precision.HIGHEST)
        matrix = k.array.reshape(size, size)
        out = dot(w1.astype(matrix.dtype), dot(matrix, w2.astype(matrix.dtype)))
        return Covariance(out, Pairs.SAME)


class GlobalAvgPool(AbstractGlobalPool):
    r"""Averages over all positions, of which none are left.

    At infinite width $k' = \operatorname{mean}_{p, q} k(p, q)$. Averages are over the
    positions that are not missing.

    ??? cite "Reference"
        Novak et al., Bayesian Deep Convolutional Networks with Many Channels are Gaussian
        Processes, ICLR 2019: section 3.2.1 (global average pooling).
    """

    def weight(self, size):
        return 1 / size

    def weigh(self, missing):
        present = ~missing
        return present / jnp.maximum(jnp.sum(present), 1)


class GlobalSumPool(AbstractGlobalPool):
    r"""Sums over all positions, of which none are left.

    At infinite width $k' = \sum_{p, q} k(p, q)$.

    ??? cite "Reference"
        Novak et al., Bayesian Deep Convolutional Networks with Many Channels are Gaussian
        Processes, ICLR 2019: section 3.2.1 (global average pooling).
    """

    def weight(self, size):
        del size
        return 1.0

    def weigh(self, missing):
        return (~missing).astype(float)
