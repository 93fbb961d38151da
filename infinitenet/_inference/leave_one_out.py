"""Each training example as predicted from all others."""

import math

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._tracing import is_traced
from .cholesky import blocks, SMALL, solve_lower
from .gp import Posterior


class LeaveOneOut(eqx.Module):
    """Predictions of each training example from all others. Made by
    [`infinitenet.leave_one_out`][].

    - `mean`: shape `(n, *outputs)`.
    - `variance`: of the targets, noise included. Shape `(n,)`, the same for all outputs.
    - `function_variance`: without noise, so that of the network. Shape `(n,)`.
    - `log_density`: the logarithm of the probability density of all targets, each
        predicted from the other examples: a sum over examples and outputs, in nats.
    """

    mean: Float[Array, "n *outputs"]
    variance: Float[Array, " n"]
    function_variance: Float[Array, " n"]
    log_density: Float[Array, ""]


def _inverse_diagonal(factor: Float[Array, "n n"]) -> Float[Array, " n"]:
    r"""That of $(L L^T)^{-1}$, by blocks of columns of $L^{-1}$ to save memory."""
    n = len(factor)
    at_once = n <= SMALL or is_traced(factor)
    out = []
    for block in [slice(0, n)] if at_once else blocks(n):
        width = block.stop - block.start
        columns = jnp.eye(n, width, -block.start, dtype=factor.dtype)
        out.append(jnp.sum(jnp.square(solve_lower(factor, columns)), axis=0))
    return jnp.concatenate(out)


def leave_one_out(posterior: Posterior) -> LeaveOneOut:
    r"""Leave-one-out cross-validation in closed form, without fitting anything again.

    With $K_r = K + \text{noise}$, equations (5.10) to (5.12) of Rasmussen and Williams
    (2006):

    $$
    \mu_i = y_i - \frac{[K_r^{-1} y]_i}{[K_r^{-1}]_{ii}}, \qquad
    \sigma_i^2 = \frac{1}{[K_r^{-1}]_{ii}}, \qquad
    \sum_i \log N(y_i; \mu_i, \sigma_i^2).
    $$

    $\sigma_i^2$ is the variance of a target. That of the function is less, by the noise.
    All outputs share the kernel, and so the variances.

    ??? cite "Reference"
        ```bibtex
        @book{rasmussen2006gaussian,
            title={Gaussian Processes for Machine Learning},
            author={Carl Edward Rasmussen and Christopher K. I. Williams},
            publisher={MIT Press},
            year={2006},
        }
        ```

    !!! example

        ```python
        posterior = inn.condition(inn.gram(net, x, ntk=False).nngp, y, diag_reg=0.1)
        rmse = jnp.sqrt(jnp.mean((inn.leave_one_out(posterior).mean - y) ** 2))
        ```

    **Arguments:**

    - `posterior`: as made by [`infinitenet.condition`][].

    **Returns:** A [`infinitenet.LeaveOneOut`][].

    It can be differentiated. Then, and under `jax.jit`, it takes memory of some matrices
    of the size of the kernel; otherwise, of about a third of one.
    """
    y, n = posterior.y_train, len(posterior.factor)
    variance = 1 / _inverse_diagonal(posterior.factor)
    error = posterior.weights.reshape(n, -1) * variance[:, None]
    density = -0.5 * (
        jnp.square(error) / variance[:, None] + jnp.log(2 * math.pi * variance)[:, None]
    )
    # Without noise the difference is of the size of rounding, of either sign.
    function_variance = jnp.maximum(variance - posterior.noise, 0)
    return LeaveOneOut(
        y - error.reshape(y.shape), variance, function_variance, jnp.sum(density)
    )


def leave_one_out_log_density(posterior: Posterior) -> Float[Array, ""]:
    """`leave_one_out(posterior).log_density`: an objective for [`infinitenet.fit`][].

    It asks how well targets are predicted, where the marginal likelihood asks how probable
    they were before there was any data. So it is less misled by a prior that is wrong.

    **Arguments:**

    - `posterior`: as made by [`infinitenet.condition`][].

    **Returns:** a scalar, in nats.
    """
    return leave_one_out(posterior).log_density
