"""Phases of fully-connected networks, and the lines between them."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ._fixed_points import flow_limit
from ._layer import AbstractLayer, to_layer
from ._layers.affine import Dense
from ._layers.sequential import Sequential
from ._propagation import growth, limit_of, log_variances, SignalPropagation, to_start
from ._vector_maps import chi_1, to_variances, variance_after, width_of_block
from ._weights import without_weights


def _block(nonlinearity: AbstractLayer, W_std: Array, b_std: Array) -> Sequential:
    return Sequential([nonlinearity, Dense(1, W_std, b_std)])


@eqx.filter_jit
def _limits(nonlinearity, width, W_stds, b_stds, q):
    at = lambda W_std, b_std: limit_of(_block(nonlinearity, W_std, b_std), width, q)
    return jax.vmap(lambda W_std: jax.vmap(lambda b_std: at(W_std, b_std))(b_stds))(W_stds)


def _to_stds(name: str, stds: ArrayLike, ndim: int | None = None) -> Float[Array, "..."]:
    stds = to_variances(name, stds, "It is a standard deviation of weights or biases.")
    if ndim is not None and stds.ndim != ndim:
        raise ValueError(
            f"`{name}` must be a list of numbers, but its shape is {stds.shape}."
        )
    return stds


def phase_diagram(
    nonlinearity: AbstractLayer,
    W_stds: ArrayLike,
    b_stds: ArrayLike,
    *,
    q: ArrayLike = 1.0,
) -> SignalPropagation:
    r"""Limits of deep fully-connected networks, on a grid of $\sigma_W$ and $\sigma_b$.

    It is [`infinitenet.signal_propagation`][] of `Sequential([nonlinearity, Dense(width,
    W_std, b_std)])`, all of them compiled at once.

    !!! example

        ```python
        limits = inn.phase_diagram(
            inn.Erf(), jnp.linspace(0.5, 3, 60), jnp.linspace(0, 1, 40)
        )
        plt.contour(limits.chi_1, levels=[1])
        ```

    ??? cite "Reference"
        Poole, Lahiri, Raghu, Sohl-Dickstein & Ganguli, Exponential expressivity in deep
        neural networks through transient chaos, NeurIPS 2016: Figure 1.
        Schoenholz, Gilmer, Ganguli & Sohl-Dickstein, Deep Information Propagation, ICLR
        2017: Figure 1.

    **Arguments:**

    - `nonlinearity`: a layer such as `Erf()`, or one made of several layers.
    - `W_stds`, `b_stds`: standard deviations of weights and biases, of shapes `(n1,)` and
        `(n2,)`.
    - `q`: the variance to start from: a positive scalar.

    **Returns:** a [`infinitenet.SignalPropagation`][] of arrays of shape `(n1, n2)`.

    **Raises:** `ValueError` for arguments that make no sense.
    """
    nonlinearity = without_weights(to_layer(nonlinearity, "nonlinearity"))
    W_stds, b_stds = _to_stds("W_stds", W_stds, 1), _to_stds("b_stds", b_stds, 1)
    q = to_start(q)
    one = jnp.ones((), q.dtype)
    width = width_of_block(_block(nonlinearity, one, one), q.dtype)
    return _limits(nonlinearity, width, W_stds, b_stds, q)


#
# The critical line
#


class EdgeOfChaos(eqx.Module):
    r"""Fully-connected networks with $\chi_1 = 1$. Made by
    [`infinitenet.edge_of_chaos`][].

    - `W_std`, `b_std`: standard deviations of weights and biases, NaN where there are none.
    - `q`: the variance $q^*$ in these networks.
    """

    W_std: Float[Array, "..."]
    b_std: Float[Array, "..."]
    q: Float[Array, "..."]


def _critical_weights(nonlinearity, width, q):
    r"""$\sigma_W^2$ on the critical line, and $\sigma_W^2 E[\phi^2]$."""
    W = 1 / chi_1(nonlinearity, width, q)
    return W, W * variance_after(nonlinearity, width, q)


def _exists(W: Array) -> Array:
    """Not for nonlinearities that are constant, or that jump."""
    return jnp.isfinite(W) & (W > 0)


def _safe_root(x: Array) -> Array:
    """NaN for negative numbers, of derivative zero at zero."""
    positive = x > 0
    root = jnp.sqrt(jnp.where(positive, x, 1))
    return jnp.where(positive, root, jnp.where(x == 0, 0, jnp.nan))


@eqx.filter_jit
def _edge_at_variance(nonlinearity, width, q):
    def at(q):
        # Zero is a limit.
        least = jnp.exp(jnp.asarray(log_variances(q)[0], q.dtype))
        W, after = _critical_weights(nonlinearity, width, jnp.maximum(q, least))
        # Rounding, where there are no biases on the critical line.
        none = jnp.abs(q - after) <= 64 * jnp.finfo(q.dtype).eps * q
        b = jnp.where(none | (q < least), 0, q - after)
        W, b = (jnp.where(_exists(W) & (b >= 0), each, -1) for each in (W, b))
        return EdgeOfChaos(_safe_root(W), _safe_root(b), q)

    return jnp.vectorize(lambda q: _leaves(at(q)))(q)


@eqx.filter_jit
def _edge_at_biases(nonlinearity, width, b_std):
    def at(b_std):
        def growth_at(log_q):
            _, after = _critical_weights(nonlinearity, width, jnp.exp(log_q))
            return growth(after + b_std**2, log_q)

        low, high = log_variances(b_std)
        # Variances are larger than those of biases.
        start = jnp.log(jnp.maximum(b_std**2, jnp.exp(jnp.asarray(low, b_std.dtype))))
        log_q, leaves = flow_limit(growth_at, start, low, high)
        q = jnp.exp(log_q)
        W, _ = _critical_weights(nonlinearity, width, q)
        exists = (leaves <= 0) & _exists(W)
        # Without biases the smallest variance is zero, as a limit.
        q = jnp.where(exists, jnp.where(b_std == 0, 0, q), jnp.nan)
        return EdgeOfChaos(_safe_root(jnp.where(exists, W, -1)), b_std, q)

    return jnp.vectorize(lambda b_std: _leaves(at(b_std)))(b_std)


def _leaves(edge: EdgeOfChaos) -> tuple[Array, Array, Array]:
    return edge.W_std, edge.b_std, edge.q


def edge_of_chaos(
    nonlinearity: AbstractLayer,
    *,
    q: ArrayLike | None = None,
    b_std: ArrayLike | None = None,
) -> EdgeOfChaos:
    r"""Networks between order and chaos: the critical line of the phase diagram.

    For each variance $q^* = q$ there is one,

    $$
    \sigma_W^2 = \frac1{E[\phi'(u)^2]}, \quad \sigma_b^2 = q - \sigma_W^2 E[\phi(u)^2],
    \quad u \sim \mathcal{N}(0, q),
    $$

    unless $\sigma_b^2$ is negative. Deep networks there keep gradients at their size, and
    forget their inputs most slowly.

    !!! example

        ```python
        edge = inn.edge_of_chaos(inn.Erf(), b_std=0.1)
        block = inn.Sequential([inn.Erf(), inn.Dense(512, edge.W_std, edge.b_std)])
        ```

    ??? cite "Reference"
        Schoenholz, Gilmer, Ganguli & Sohl-Dickstein, Deep Information Propagation, ICLR
        2017: section 3.
        Hayou, Doucet & Rousseau, On the Impact of the Activation Function on Deep Neural
        Networks Training, ICML 2019: section 3.

    **Arguments:** give one of these two, of any shape.

    - `nonlinearity`: as for [`infinitenet.phase_diagram`][].
    - `q`: the variance in the network.
    - `b_std`: the standard deviation of biases. If there are several such networks, the
        one of the smallest variance is found.

    **Returns:** an [`infinitenet.EdgeOfChaos`][] of arrays of that shape, NaN where there
    is no such network: no ReLU network with biases is critical, for example.
    Differentiable along these arguments.

    **Raises:** `ValueError` for arguments that make no sense.
    """
    nonlinearity = without_weights(to_layer(nonlinearity, "nonlinearity"))
    if q is not None and b_std is None:
        given, find = to_variances("q", q), _edge_at_variance
    elif b_std is not None and q is None:
        given, find = _to_stds("b_std", b_std), _edge_at_biases
    else:
        raise ValueError("Give either `q` or `b_std`, and not both.")
    one = jnp.ones((), given.dtype)
    width = width_of_block(_block(nonlinearity, one, one), given.dtype)
    return EdgeOfChaos(*find(nonlinearity, width, given))
