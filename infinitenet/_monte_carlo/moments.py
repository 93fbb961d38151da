"""Running means and squared deviations."""

from typing import TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree

from .._matrices import Gram, GramDiagonal


# Of all pairs of examples, or of each with one other.
Kernels: TypeAlias = Gram | GramDiagonal


class Moments(eqx.Module):
    """What is kept of samples: their number, mean, and sum of squared deviations from it.

    Samples are added one by one, so that the result does not depend on how many are
    computed at once. Deviations from the running mean lose no digits where the square
    of the mean is much larger than the variance.

    ??? cite "Reference"
        Welford, Note on a method for calculating corrected sums of squares and products,
        Technometrics 4(3), 1962.
    """

    count: Int[Array, ""]
    mean: Kernels
    squares: Kernels

    def add(self, sample: Kernels) -> "Moments":
        count = self.count + 1
        mean = jax.tree.map(
            lambda mean, x: mean + (x - mean) / count.astype(x.dtype), self.mean, sample
        )
        squares = jax.tree.map(
            lambda squares, x, old, new: squares + (x - old) * (x - new),
            self.squares,
            sample,
            self.mean,
            mean,
        )
        return Moments(count, mean, squares)

    def variance_of_mean(self) -> Kernels:
        """Of each entry, for at least two samples."""
        n = jnp.maximum(self.count, 2)
        pairs = lambda x: n.astype(x.dtype) * (n - 1).astype(x.dtype)
        return jax.tree.map(lambda x: x / pairs(x), self.squares)

    def is_finite(self) -> Bool[Array, ""]:
        """Whether all of it is finite, sums of squares included."""
        leaves = jax.tree.leaves((self.mean, self.squares))
        return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in leaves]))


def no_samples(struct: PyTree[jax.ShapeDtypeStruct]) -> Moments:
    """Moments to start from, for samples of some shapes."""
    zeros = lambda: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), struct)
    return Moments(jnp.asarray(0, jnp.int32), zeros(), zeros())
