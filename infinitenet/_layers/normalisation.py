"""Layers that divide by the size of activations."""

from collections.abc import Sequence

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .._covariance import Covariance, Pairs
from .._hyperparameters import check_scale, SAFEGUARD, to_scalar, to_sizes
from .._inputs import Inputs, Positions
from .._layer import AbstractLayer
from .._path import LayerError


class LayerNorm(AbstractLayer):
    r"""Subtracts the mean and divides by the standard deviation, $z = (x -
    \operatorname{mean} x) / \sqrt{\operatorname{var} x + \epsilon}$.

    Both are over channels, at each position or at several of them together. There is no
    scale and shift that is learned: that is what a layer of weights after it does. At
    infinite width

    $$
    k'(p, q) = \frac{k(p, q)}{\sqrt{(v_1(p) + \epsilon) (v_2(q) + \epsilon)}},
    $$

    where $v_i(p)$ is the variance $k_{ii}(p, p)$, or its mean over positions, of those
    that are not missing. The NTK is divided by the same.

    ??? cite "Reference"
        Ba, Kiros & Hinton, Layer Normalization, 2016 (arXiv:1607.06450): section 3.
    """

    axis: tuple[int, ...] = eqx.field(default=(-1,), static=True, converter=to_sizes)
    eps: Float[Array, ""] = eqx.field(
        default=1e-12, converter=to_scalar, metadata=SAFEGUARD
    )

    def __check_init__(self):
        check_scale(self, "eps", self.eps)

    def _axes(self, ndim: int) -> tuple[int, ...]:
        """Those of positions, for examples of so many axes."""
        last, axes = ndim - 1, {axis % ndim for axis in self.axis}
        out_of_range = any(not -ndim <= axis < ndim for axis in self.axis)
        if out_of_range or last not in axes or len(axes) < len(self.axis):
            raise LayerError(
                self,
                "`axis` must have the channel axis, -1, and may have others: those of "
                f"positions of one example, counted from 0. There are {last} of them, but "
                f"`axis` is {self.axis}.",
            )
        return tuple(sorted(axes - {last}))

    def check(self, signal):
        self._axes(len(signal.shape))
        if not signal.gaussian:
            raise LayerError(
                self,
                "must be given Gaussian inputs: put it after a layer of weights, such as "
                "`Dense` or `Conv`, and before the nonlinearity.",
            )
        return signal

    def __call__(self, x, *, key=None):
        return self.carry(Inputs(x), key=key).array

    def carry(self, inputs, *, key=None):
        del key
        x, missing = inputs.array, inputs.positions.missing
        mean = lambda x: _mean(jnp.mean(x, -1), missing, self._axes(x.ndim))[..., None]
        centred = x - mean(x)
        if missing is not None:
            centred = jnp.where(missing[..., None], 0, centred)
        variance = mean(centred * centred)
        return inputs.through(centred * _inverse_root(variance + self._eps(x)), self.mask)

    def _eps(self, like: Array) -> Float[Array, ""]:
        return self.eps.astype(like.dtype)

    def step(self, signal):
        return (1,) * len(signal.spatial)

    def requires(self, demand):
        return demand.at_least(demand.cross, Pairs.SAME)

    def infinite(self, kernel):
        def normalise_at(p1: Positions, p2: Positions):
            return lambda k11, k12, k22: self._normalise(k11, k12, k22, p1, p2)

        return kernel.propagate_at(normalise_at)

    def _normalise(
        self,
        k11: Covariance,
        k12: Covariance,
        k22: Covariance,
        positions1: Positions,
        positions2: Positions,
    ) -> Covariance:
        axes = self._axes(len(k12.spatial) + 1)

        def root(k: Covariance, missing: Array | None) -> Float[Array, "*spatial"]:
            v = _mean(k.diagonal(), missing, axes)
            return jnp.broadcast_to(_inverse_root(v + self._eps(v)), k.spatial)

        root1, root2 = root(k11, positions1.missing), root(k22, positions2.missing)
        root1, root2 = k12.align(root1, root2)
        # One after the other, as their product may overflow.
        return k12.with_array(k12.array * root1 * root2)


def _mean(
    v: Float[Array, "*spatial"],
    missing: Bool[Array, "*spatial"] | None,
    axes: Sequence[int],
) -> Float[Array, "*spatial_or_1"]:
    """Over positions that are not missing."""
    if not axes:
        return v
    if missing is None:
        return jnp.mean(v, axes, keepdims=True)
    total = jnp.sum(jnp.where(missing, 0, v), axes, keepdims=True)
    return total / jnp.maximum(jnp.sum(~missing, axes, keepdims=True), 1)


def _inverse_root(v: Float[Array, "..."]) -> Float[Array, "..."]:
    """Zero at zero: what has no variance remains zero."""
    positive = v > 0
    return jnp.where(positive, 1 / jnp.sqrt(jnp.where(positive, v, 1)), 0)


LayerNorm.__init__.__doc__ = """**Arguments:**

- `axis`: what to normalise over, one axis or several of one example: -1 for channels,
    which must be among them, and from 0 on those of positions.
- `eps`: what is added to variances. Scalar, not negative, differentiable.

**Raises:** `ValueError` for arguments that make no sense.
"""
