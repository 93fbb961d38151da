"""Exact Gaussian-process regression, given kernel matrices."""

import functools as ft
import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from .._checks import (
    check_cross_kernel,
    check_diag_reg,
    check_kernel,
    check_shape,
    check_targets,
    check_test_diagonal,
    check_test_kernel,
    guard,
    indefinite,
)
from .._tracing import is_traced
from .cholesky import add_noise, factorise, solve_lower, solve_upper
from .solution import Prediction
from .spectral import dot, unit_rounding


def to_noise(
    k: Float[Array, "n n"], diag_reg: ArrayLike, absolute: bool
) -> Float[Array, "..."]:
    """What is to be added to the diagonal, in units of the kernel: a scalar, or `(n,)`."""
    diag_reg = check_diag_reg(diag_reg, len(k), k.dtype)
    return diag_reg if absolute else diag_reg * _mean_variance(k)


@jax.jit
def _mean_variance(k: Float[Array, "n n"]) -> Float[Array, ""]:
    return jnp.mean(jnp.diagonal(k))


def regularise(
    k: Float[Array, "n n"], diag_reg: ArrayLike, absolute: bool
) -> Float[Array, "n n"]:
    """Adds `diag_reg` to the diagonal, in units of its mean unless `absolute`."""
    return add_noise(k, to_noise(k, diag_reg, absolute))


def rounding_bound(
    weights: Float[Array, "n_test n"],
    train_variance: Float[Array, " n"],
    test_variance: Float[Array, " n_test"],
) -> Float[Array, " n_test"]:
    r"""Bound on the rounding of the variances of $f_t - \sum_i w_{ti} f_i$.

    Those are sums over entries of the joint kernel, which are at most
    $\sqrt{k_{ii} k_{jj}}$. Summed over the test points, it bounds the rounding of
    eigenvalues of their covariance.
    """
    size = dot(jnp.abs(weights), jnp.sqrt(train_variance))
    size = size + jnp.sqrt(jnp.abs(test_variance))
    return lax.stop_gradient(unit_rounding(weights.shape[-1], weights.dtype) * size**2)


def solve(factor: Float[Array, "n n"], y: Float[Array, "n *outputs"]) -> Array:
    """The inverse of the factorised kernel, times `y`."""
    white = solve_lower(factor, y.reshape(len(y), -1))
    return solve_upper(factor, white).reshape(y.shape)


_singular = "it is not positive definite to working precision, so it has no inverse."


def _check_factor(
    factor: Float[Array, "n n"],
    known: Callable[[], Array] | None,
    variance: Float[Array, ""],
    name: str,
) -> Float[Array, "n n"]:
    """Raises unless `factor` is a Cholesky factor of which all digits are not lost.

    `known` makes the factorised matrix, if its values are known.
    """
    # Not within `guard`, where constants as large as the matrix would be evaluated.
    lost = is_lost(factor, variance)
    describe = lambda _: indefinite(name, None if known is None else known(), _singular)
    return guard(factor, lambda _: lost, describe, indefinite(name, None, _singular))


@jax.jit
def is_lost(factor: Float[Array, "n n"], variance: Array) -> Bool[Array, ""]:
    # Pivots are variances given all previous points. Those of duplicates are zero, and
    # come out as NaN or as a few ULPs of the prior variance, whatever `n` is.
    pivots = jnp.square(jnp.diagonal(factor))
    # False for NaN.
    return ~jnp.all(pivots > unit_rounding(1, factor.dtype) * variance)


@jax.jit
def max_variance(k: Float[Array, "n n"], noise: Float[Array, "..."]) -> Float[Array, ""]:
    return jnp.max(jnp.diagonal(k) + noise)


class Posterior(eqx.Module):
    """A Gaussian process, given the training targets. Made by
    [`infinitenet.condition`][].

    It keeps the Cholesky factor, so that predictions on further test sets only cost
    products with it, and so that further training examples extend it.

    - `y_train`: shape `(n, *outputs)`.
    - `factor`: the lower Cholesky factor of the regularised kernel, shape `(n, n)`.
    - `weights`: the inverse of the regularised kernel times `y_train`.
    - `noise`: what was added to the diagonal, in units of the kernel. A scalar, or of
        shape `(n,)`.
    """

    y_train: Float[Array, "n *outputs"]
    factor: Float[Array, "n n"]
    weights: Float[Array, "n *outputs"]
    noise: Float[Array, "..."]

    def predict(
        self, k_test_train: ArrayLike, k_test_test: ArrayLike | None = None
    ) -> Prediction:
        r"""The posterior on test inputs, equations (2.25) and (2.26) of Rasmussen and
        Williams (2006): $K_{td} K_r^{-1} y$ and $K_{tt} - K_{td} K_r^{-1} K_{dt}$.

        That is the distribution of the function, without the noise of observations.

        **Arguments:**

        - `k_test_train`: shape `(n_test, n)`.
        - `k_test_test`: shape `(n_test, n_test)` for the covariance. Its diagonal, of
            shape `(n_test,)`, for variances only, in memory of order `n * n_test`. `None`
            for a mean only.

        **Returns:** A [`infinitenet.Prediction`][], whose mean has shape
            `(n_test, *outputs)`.

        **Raises:** `ValueError` if a kernel has a wrong shape or dtype, has entries
            that are not finite, or should be symmetric and is not.
        """
        n, dtype = len(self.factor), self.factor.dtype
        k_td = check_cross_kernel("k_test_train", k_test_train, n, dtype)
        mean = dot(k_td, self.weights.reshape(n, -1))
        mean = mean.reshape(len(k_td), *self.weights.shape[1:])
        if k_test_test is None:
            return Prediction(mean)
        only_variances = jnp.ndim(k_test_test) == 1
        check = check_test_diagonal if only_variances else check_test_kernel
        k_tt = check("k_test_test", k_test_test, len(k_td), dtype)
        white = solve_lower(self.factor, k_td.T)
        # These only serve to bound the rounding.
        weights = solve_upper(self.factor, white)
        spread, bound = _spread(self.factor, white, weights, k_tt)
        if only_variances:
            return Prediction(mean, None, jnp.max(bound), spread)
        return Prediction(mean, spread, jnp.sum(bound))

    def extend(
        self,
        k_new_train: ArrayLike,
        k_new_new: ArrayLike,
        y_new: ArrayLike,
        *,
        noise: ArrayLike | None = None,
    ) -> "Posterior":
        r"""The posterior given further training examples too.

        The factor is extended by $L_{nd} = K_{nd} L^{-T}$ and by the factor of
        $K_{nn} + R - L_{nd} L_{nd}^T$, which costs $O(n^2 m)$ for $m$ new examples, in
        place of $O((n + m)^3)$. The new examples come last.

        **Arguments:**

        - `k_new_train`: the kernel between new and previous examples, shape `(m, n)`.
        - `k_new_new`: that of the new examples, shape `(m, m)`.
        - `y_new`: their targets, shape `(m, *outputs)`.
        - `noise`: what to add to the diagonal of `k_new_new`, in units of the kernel, a
            scalar or of shape `(m,)`. By default as much as was added for the previous
            examples, `noise` of the posterior, if that is the same for all.

        **Returns:** A [`infinitenet.Posterior`][].

        **Raises:** `ValueError` as [`infinitenet.condition`][], and if `noise` is to be
            given.
        """
        n, dtype = len(self.factor), self.factor.dtype
        k_nd = check_cross_kernel("k_new_train", k_new_train, n, dtype)
        k_nn = check_kernel("k_new_new", k_new_new)
        k_nn = check_shape("k_new_new", k_nn, 2 * k_nd.shape[:1], _new_rows).astype(dtype)
        y = check_targets("y_new", y_new, len(k_nd), dtype)
        shape = (len(k_nd), *self.y_train.shape[1:])
        y = check_shape("y_new", y, shape, "with the outputs of `y_train`")
        return _extend(self, k_nd, k_nn, y, self._noise_of_new(len(k_nd), noise))

    def _noise_of_new(self, m: int, noise: ArrayLike | None) -> Float[Array, "..."]:
        if noise is not None:
            return check_diag_reg(noise, m, self.factor.dtype, "noise")
        if self.noise.ndim:
            raise ValueError(
                "`noise` differs between the examples so far, so that of the new ones must "
                "be given too: a scalar, or one number for each."
            )
        return self.noise

    def log_marginal_likelihood(self) -> Float[Array, ""]:
        r"""The logarithm of the probability density of the training targets.

        $\sum_o -\frac12 y_o^T K_r^{-1} y_o - \frac12 \log\det K_r
        - \frac n2 \log 2\pi$ over the outputs $o$: equation (2.30) of Rasmussen and
        Williams (2006).

        **Returns:** a scalar, in nats.
        """
        n_outputs = math.prod(self.y_train.shape[1:])
        fit = jnp.sum(self.y_train * self.weights)
        half_log_det = jnp.sum(jnp.log(jnp.diagonal(self.factor)))
        constant = self.y_train.size * math.log(2 * math.pi)
        return -0.5 * fit - n_outputs * half_log_det - 0.5 * constant


@jax.jit
def _spread(
    factor: Float[Array, "n n"],
    white: Float[Array, "n n_test"],
    weights: Float[Array, "n n_test"],
    k_tt: Float[Array, "..."],
) -> tuple[Float[Array, "..."], Float[Array, " n_test"]]:
    """The posterior covariance, or variances, and the bound on their rounding."""
    train_variance = jnp.sum(jnp.square(factor), axis=1)
    if k_tt.ndim == 1:
        spread, variance = k_tt - jnp.sum(jnp.square(white), axis=0), k_tt
    else:
        spread, variance = k_tt - dot(white.T, white), jnp.diagonal(k_tt)
    return spread, rounding_bound(lax.stop_gradient(weights.T), train_variance, variance)


_new_rows = "one row and column for each row of `k_new_train`"


def _extend(
    posterior: Posterior,
    k_nd: Float[Array, "m n"],
    k_nn: Float[Array, "m m"],
    y_new: Float[Array, "m *outputs"],
    noise: Float[Array, "..."],
) -> Posterior:
    factor, (m, n) = posterior.factor, k_nd.shape
    across = solve_lower(factor, k_nd.T).T
    new = factorise(k_nn - dot(across, across.T), noise)
    traced = is_traced((across, k_nn, noise))
    known = None if traced else ft.partial(add_noise, k_nn, noise)
    new = _check_factor(new, known, max_variance(k_nn, noise), "k_new_new")
    top = jnp.concatenate([factor, jnp.zeros((n, m), factor.dtype)], axis=1)
    factor = jnp.concatenate([top, jnp.concatenate([across, new], axis=1)])
    y = jnp.concatenate([posterior.y_train, y_new])
    if noise.shape or posterior.noise.shape or noise is not posterior.noise:
        each = jnp.broadcast_to(posterior.noise, (n,)), jnp.broadcast_to(noise, (m,))
        noise = jnp.concatenate(each)
    return Posterior(y, factor, solve(factor, y), noise)


def condition(
    k_train_train: ArrayLike,
    y_train: ArrayLike,
    *,
    diag_reg: ArrayLike = 0.0,
    absolute: bool = False,
) -> Posterior:
    """Gaussian-process regression: the posterior of a process of mean zero.

    With the NNGP kernel that is the Bayesian posterior of an infinitely wide network,
    and `diag_reg` the variance of Gaussian noise on the targets. With the NTK in its
    place (NTK-GP) the mean is that of a fully trained network, but the covariance is not:
    see [`infinitenet.infinite_ensemble`][].

    The posterior takes as much memory as the kernel, and its making little more.

    ??? cite "Reference"
        ```bibtex
        @book{rasmussen2006gaussian,
            title={Gaussian Processes for Machine Learning},
            author={Carl Edward Rasmussen and Christopher K. I. Williams},
            publisher={MIT Press},
            year={2006},
        }
        ```

    **Arguments:**

    - `k_train_train`: the kernel of the training inputs, shape `(n, n)`.
    - `y_train`: the targets, shape `(n, *outputs)`. All outputs share the kernel, and its
        factor. They are converted to the dtype of the kernel.
    - `diag_reg`: what to add to the kernel's diagonal, in units of its mean. A scalar, or
        of shape `(n,)` for noise that differs between examples.
    - `absolute`: if true, `diag_reg` is in units of the kernel.

    **Returns:** A [`infinitenet.Posterior`][].

    **Raises:** `ValueError` if an argument has a wrong shape or dtype, if it has
        entries that are not finite, if the kernel is not symmetric, or if it is not
        positive definite, with a `diag_reg` that would mend it. Under `jax.jit` what
        depends on values is a `RuntimeError` at run time.
    """
    k = check_kernel("k_train_train", k_train_train)
    y = check_targets("y_train", y_train, len(k), k.dtype)
    noise = to_noise(k, diag_reg, absolute)
    factor = factorise(k, noise)
    variance = max_variance(k, noise)
    # With the noise only where something is to be told about it.
    known = None if is_traced((k, noise)) else ft.partial(add_noise, k, noise)
    factor = _check_factor(factor, known, variance, "k_train_train")
    return Posterior(y, factor, solve(factor, y), noise)
