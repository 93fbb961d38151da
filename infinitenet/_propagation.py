"""Limits of infinite depth: variances and correlations, and how fast they get there."""

import math
from enum import IntEnum

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from ._checks import guard
from ._fixed_points import flow_limit
from ._layer import AbstractLayer, to_layer
from ._vector_maps import (
    chi_1,
    correlation_after,
    to_variances,
    variance_after,
    width_of_block,
)
from ._weights import without_weights


class Phase(IntEnum):
    r"""Phases of deep networks: $\chi_1$ less than one, one, or more.

    - `ORDERED`: inputs become alike with depth.
    - `CRITICAL`: the edge of chaos, at which correlations change most slowly with depth.
    - `CHAOTIC`: similar inputs become dissimilar.
    """

    ORDERED = -1
    CRITICAL = 0
    CHAOTIC = 1


class SignalPropagation(eqx.Module):
    r"""The limit of a block that is repeated many times, and the way to it. Made by
    [`infinitenet.signal_propagation`][], and by [`infinitenet.phase_diagram`][] as arrays.

    - `q`: the variance $q^* = V(q^*)$. It is infinity if it diverges with depth. Then what
        follows is of the largest numbers, and zero is taken as a limit too.
    - `c`: the correlation $c^*$ of different inputs.
    - `chi_1`: $\chi_1$, the derivative of the covariance after the block along that before
        it, of inputs that are nearly equal. It is $\sigma_W^2 E[\phi'(u)^2]$, by which the
        mean square of gradients grows in each layer too. Infinity for discontinuous $\phi$.
    - `chi_q`: $V'(q^*)$, by which deviations from $q^*$ shrink in each layer.
    - `chi_c`: the derivative of the correlation map at $c^*$, by which deviations from it
        shrink: $\sigma_W^2 E[\phi'(u) \phi'(v)]$ if $q^*$ is neither zero nor infinite.
    """

    q: Float[Array, "*grid"]
    c: Float[Array, "*grid"]
    chi_1: Float[Array, "*grid"]
    chi_q: Float[Array, "*grid"]
    chi_c: Float[Array, "*grid"]

    @property
    def depth_variance(self) -> Float[Array, "*grid"]:
        r"""$\xi_q = -1 / \log |\chi_q|$: variances approach $q^*$ as $e^{-l / \xi_q}$.

        Infinity if they do not do so exponentially.
        """
        return _depth(self.chi_q)

    @property
    def depth_correlation(self) -> Float[Array, "*grid"]:
        r"""$\xi_c = -1 / \log \chi_c$: correlations approach $c^*$ as $e^{-l / \xi_c}$.

        Infinity if they do not do so exponentially. Networks of several times this depth
        cannot tell inputs from one another, as all pairs of them are equally correlated.
        """
        return _depth(self.chi_c)

    @property
    def phase(self) -> Int[Array, "*grid"]:
        r"""By $\chi_1$: see [`infinitenet.Phase`][]. One is what differs from it by less
        than half of the digits.
        """
        tolerance = half_of_digits(self.chi_1)
        critical = jnp.abs(self.chi_1 - 1) <= tolerance
        return jnp.where(critical, 0, jnp.where(self.chi_1 > 1, 1, -1))


def half_of_digits(x: Array) -> float:
    return float(jnp.finfo(x.dtype).eps) ** 0.5


def _depth(chi: Float[Array, "..."]) -> Float[Array, "..."]:
    size = jnp.abs(chi)
    # Ones which are off by rounding are infinite depths, not depths of 1e15.
    stays = size >= 1 - 64 * jnp.finfo(chi.dtype).eps
    between = (size > 0) & ~stays
    depth = -1 / jnp.log(jnp.where(between, size, 0.5))
    return jnp.where(between, depth, jnp.where(stays, jnp.inf, size))


def signal_propagation(block: AbstractLayer, q: ArrayLike = 1.0) -> SignalPropagation:
    r"""The limit of infinite depth, of networks that repeat a block.

    Variances are maps of variances, $q \mapsto V(q)$, and at the fixed point of these so
    are correlations: see [`infinitenet.variance_map`][], [`infinitenet.correlation_map`][].
    The NNGP kernel tends to $q^*$ for equal inputs, and to $c^* q^*$ for different ones. At
    $c = 1$ the slope of the correlation map is

    $$
    \chi_1 = \sigma_W^2 E[\phi'(u)^2], \quad u \sim \mathcal{N}(0, q^*).
    $$

    If $\chi_1 < 1$ then $c^* = 1$. Otherwise it is less than that: a limit in which inputs
    of any correlation are equally far from one another. It is less in any case if the block
    is noisy, as with `Dropout`.

    If $V$ has several fixed points, the one found is that to which `q` leads: the next
    larger one if $V(q) > q$, the next smaller one if $V(q) < q$. If all variances are fixed
    points, as those of ReLU with $\sigma_W^2 = 2$ and $\sigma_b = 0$ are, it is `q` itself.
    Correlations are those to which uncorrelated inputs lead. As correlation maps are
    convex, that is all there are but $c = 1$.

    !!! example

        ```python
        block = inn.Sequential([inn.Erf(), inn.Dense(1, W_std=1.5, b_std=0.1)])
        limit = inn.signal_propagation(block)
        assert limit.phase == inn.Phase.CHAOTIC and limit.c < 1
        print(limit.depth_correlation)  # in blocks
        ```

    ??? cite "Reference"
        Poole, Lahiri, Raghu, Sohl-Dickstein & Ganguli, Exponential expressivity in deep
        neural networks through transient chaos, NeurIPS 2016: section 2.
        Schoenholz, Gilmer, Ganguli & Sohl-Dickstein, Deep Information Propagation, ICLR
        2017: sections 3 and 4 (depth scales and gradients).
        Novak et al., Bayesian Deep Convolutional Networks with Many Channels are Gaussian
        Processes, ICLR 2019: Table 3 (limits of the kernel).

    **Arguments:**

    - `block`: what is repeated, from vectors to vectors that it can take again. Most often
        a nonlinearity and then a layer of weights, or a residual block of these.
    - `q`: the variance to start from: a positive scalar.

    **Returns:** an [`infinitenet.SignalPropagation`][], differentiable along the
    hyperparameters of `block` (by the implicit function theorem).

    **Raises:** `ValueError` if the block cannot be repeated, or if `q` is not positive.
    """
    block = without_weights(to_layer(block, "block"))
    q = to_start(q)
    return _limit(block, width_of_block(block, q.dtype), q)


def to_start(q: ArrayLike) -> Float[Array, ""]:
    """A variance to start from."""
    q = to_variances("q", q)
    if q.shape:
        raise ValueError(
            f"`q` must be a scalar, but its shape is {q.shape}. Use `equinox.filter_vmap`."
        )
    message = "`q` must be positive: at zero there are no correlations. Start from 1."
    return guard(q, lambda q: q <= 0, lambda q: message, message)


def log_variances(q: Float[Array, ""]) -> tuple[float, float]:
    """Logarithms of what is taken to be zero and infinity."""
    end = 2 * math.log(jnp.finfo(q.dtype).eps)
    return end, -end


def growth(after: Float[Array, ""], log_q: Float[Array, ""]) -> Float[Array, ""]:
    """`log(after / q)`, where zero is taken to be a very small number."""
    return jnp.log(jnp.maximum(after, jnp.finfo(after.dtype).tiny)) - log_q


def limit_of(block: AbstractLayer, width: int, q: Float[Array, ""]) -> SignalPropagation:
    """`signal_propagation`, unchecked."""
    variance = lambda q: variance_after(block, width, q)
    growth_at = lambda log_q: growth(variance(jnp.exp(log_q)), log_q)
    log_q, leaves = flow_limit(growth_at, jnp.log(q), *log_variances(q))
    # Where the limit is zero or infinity, the others are limits too.
    q = jnp.exp(log_q)
    _, chi_q = jax.jvp(variance, (q,), (jnp.ones_like(q),))
    slope = chi_1(block, width, q)
    correlation = lambda c: correlation_after(block, width, c, q, q)
    c = _limit_of_correlation(correlation, slope * q / variance(q))
    _, chi_c = jax.jvp(correlation, (c,), (jnp.ones_like(c),))
    limit = jnp.where(leaves < 0, 0, jnp.where(leaves > 0, jnp.inf, q))
    return SignalPropagation(limit, c, slope, chi_q, chi_c)


_limit = eqx.filter_jit(limit_of)


def _limit_of_correlation(correlation, slope):
    """The smallest fixed point from 0 to 1, given the slope at 1."""
    one = jnp.ones_like(slope)
    c, _ = flow_limit(lambda c: correlation(c) - c, jnp.zeros_like(slope), 0.0, 1.0)
    # As the map is convex. Noise, such as that of dropout, makes copies of inputs differ.
    tolerance = half_of_digits(slope)
    is_fixed = jnp.abs(correlation(one) - 1) <= tolerance
    return jnp.where(is_fixed & (slope <= 1 + tolerance), one, c)
