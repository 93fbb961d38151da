"""Gradients of outputs along weights, multiplied in the form that is faster."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Float


# Products of kernels in full precision, on accelerators too.
HIGHEST = "highest"


class AbstractFactor(eqx.Module):
    """Gradients of all outputs of `n` units along one weight (or several)."""

    @abc.abstractmethod
    def kernel(self, other: Any) -> Float[Array, "n1 n2 full1 full2 diagonal"]:
        """Their inner products with those of other units."""

    @abc.abstractmethod
    def multiplications(self, n1: int, n2: int) -> int:
        """How many `kernel` takes for `n1` times `n2` such units."""

    @abc.abstractmethod
    def scratch(self) -> int:
        """Entries of what is in between, for each of many pairs of units."""

    @abc.abstractmethod
    def whole(self) -> "Whole":
        """The gradients themselves."""


@jax.jit
def product(f1: AbstractFactor, f2: AbstractFactor) -> Array:
    """`f1.kernel(f2)`, as a program: many weights are alike, and share it."""
    return f1.kernel(f2)


class Whole(AbstractFactor):
    """The gradients themselves."""

    gradients: Float[Array, "n inputs full diagonal trace outputs"]

    def multiplications(self, n1, n2):
        _, inputs, full, diagonal, trace, outputs = self.gradients.shape
        return n1 * n2 * inputs * full**2 * diagonal * trace * outputs

    def scratch(self):
        return 0

    def kernel(self, other):
        return _contract(self.gradients, other.whole().gradients)

    def whole(self):
        return self


class Outer(AbstractFactor):
    """Sums over positions of outer products of activations with gradients."""

    activations: Float[Array, "n groups positions inputs"]
    gradients: Float[Array, "n groups positions full diagonal trace outputs"]

    def multiplications(self, n1, n2):
        return min(self._cost_by_positions(n1, n2), self._cost_by_weights(n1, n2))

    def _cost_by_positions(self, n1: int, n2: int) -> int:
        _, groups, positions, full, diagonal, trace, outputs = self.gradients.shape
        pairs = full**2 * diagonal
        each = self.activations.shape[-1] + pairs * (trace * outputs + 1)
        return n1 * n2 * groups * positions**2 * each

    def _cost_by_weights(self, n1: int, n2: int) -> int:
        _, groups, positions, full, diagonal, trace, outputs = self.gradients.shape
        weights = groups * self.activations.shape[-1] * diagonal * trace * outputs
        return weights * ((n1 + n2) * positions * full + n1 * n2 * full**2)

    def _has_few_positions(self, n1: int, n2: int) -> bool:
        return self._cost_by_positions(n1, n2) <= _SLOWER * self._cost_by_weights(n1, n2)

    def scratch(self):
        _, groups, positions, full, diagonal, _, _ = self.gradients.shape
        # Where there are few pairs, so is there little in between.
        entries = groups * positions**2 * (full**2 * diagonal + 1)
        return entries if self._has_few_positions(32, 32) else 0

    def smaller(self) -> AbstractFactor:
        """This, or the gradients themselves where they take less memory."""
        inputs = self.activations.shape[-1]
        whole = self.gradients.size // self.gradients.shape[2] * inputs
        if whole > self.activations.size + self.gradients.size:
            return self
        return self.whole()

    def whole(self):
        return Whole(_along(self, 0, self.activations.shape[-1]))

    def kernel(self, other):
        if isinstance(other, Whole):
            return self.whole().kernel(other)
        few = self._has_few_positions(len(self.gradients), len(other.gradients))
        return (_by_positions if few else _by_weights)(self, other)


# Products by weights take that much longer, as their sums over positions are short.
_SLOWER = 2


def _by_positions(f1: Outer, f2: Outer) -> Float[Array, "n1 n2 full1 full2 diagonal"]:
    """Products of activations times products of gradients, of all pairs of positions."""
    a = jnp.einsum("nhpi,khqi->nkhpq", f1.activations, f2.activations, precision=HIGHEST)
    d1, d2 = f1.gradients, f2.gradients
    if a.shape[2:] == (1, 1, 1):
        return a.reshape(*a.shape[:2], 1, 1, 1) * _contract(d1[:, 0], d2[:, 0])
    d = jnp.einsum("nhpfdtj,khqgdtj->nkfgdhpq", d1, d2, precision=HIGHEST)
    return jnp.einsum("nkfgdhpq,nkhpq->nkfgd", d, a, precision=HIGHEST)


# Entries of gradients along weights that are formed at once: few enough for a cache.
_AT_ONCE = 2**21


def _by_weights(f1: Outer, f2: Outer) -> Float[Array, "n1 n2 full1 full2 diagonal"]:
    """Gradients along weights of some inputs after the other, so that they stay small."""
    inputs = f1.activations.shape[-1]
    each = max(f.gradients.size // f.gradients.shape[2] for f in (f1, f2))
    size = min(inputs, max(1, _AT_ONCE // each))
    whole = inputs // size

    def some(start: Array | int, size: int) -> Array:
        w1, w2 = (_along(f, start, size) for f in (f1, f2))
        return _contract(w1, w2)

    k = some(0, size)
    k = lax.fori_loop(1, whole, lambda i, k: k + some(i * size, size), k)
    return k + some(whole * size, inputs % size) if inputs % size else k


def _along(
    factor: Outer, start: Array | int, size: int
) -> Float[Array, "n weights full diagonal trace outputs"]:
    """Gradients along the weights of some inputs."""
    a = lax.dynamic_slice_in_dim(factor.activations, start, size, axis=-1)
    d = factor.gradients
    flat = d.reshape(*d.shape[:3], -1)
    w = jnp.einsum("nhpi,nhpr->nhir", a, flat, precision=HIGHEST)
    return w.reshape(w.shape[0], -1, *d.shape[3:])


# Very long rows are multiplied part by part, so that these stay in the cache.
_LONG, _PART = 2**18, 2**12


def _contract(
    w1: Float[Array, "n1 inputs full1 diagonal trace outputs"],
    w2: Float[Array, "n2 inputs full2 diagonal trace outputs"],
) -> Float[Array, "n1 n2 full1 full2 diagonal"]:
    """Sums over weights, of which there are many more than there are units."""
    if w1.shape[2:4] != (1, 1) or w2.shape[2] != 1:
        return jnp.einsum("nifdtj,kigdtj->nkfgd", w1, w2, precision=HIGHEST)
    w1, w2 = (w.reshape(len(w), -1) for w in (w1, w2))
    multiply = lambda w1, w2: jnp.matmul(w1, w2.T, precision=HIGHEST)
    if w1.shape[1] <= _LONG:
        return multiply(w1, w2)[:, :, None, None, None]
    whole = w1.shape[1] - w1.shape[1] % _PART
    k = multiply(w1[:, whole:], w2[:, whole:])

    def add(i: Array, k: Array) -> Array:
        cut = lambda w: lax.dynamic_slice_in_dim(w, i * _PART, _PART, axis=1)
        return k + multiply(cut(w1), cut(w2))

    k = lax.fori_loop(0, whole // _PART, add, k)
    return k[:, :, None, None, None]
