"""Exact Gaussian-process regression, given kernel matrices."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray

from .._checks import (
    check_cross_kernel,
    check_diag_reg,
    check_finite,
    check_floating,
    check_kernel,
    check_shape,
    check_targets,
    check_test_kernel,
    guard,
    indefinite,
)
from .._tracing import is_traced
from .solution import Prediction
from .spectral import dot, unit_rounding


def regularise(
    k: Float[Array, "n n"], diag_reg: ArrayLike, absolute: bool
) -> Float[Array, "n n"]:
    """Adds `diag_reg` to the diagonal, in units of its mean unless `absolute`."""
    diag_reg = check_diag_reg(diag_reg, k.dtype)
    scale = 1 if absolute else jnp.mean(jnp.diagonal(k))
    return k + diag_reg * scale * jnp.eye(len(k), dtype=k.dtype)


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
    return jax.lax.stop_gradient(unit_rounding(weights.shape[-1], weights.dtype) * size**2)


_singular = "it is not positive definite to working precision, so it has no inverse."
_negative_variance = (
    "A posterior variance is far below zero. Are the kernels of the same network, with "
    "the same hyperparameters, and on the same inputs? If so, give a larger `diag_reg`."
)


def _check_factor(
    factor: Float[Array, "n n"], k: Float[Array, "n n"]
) -> Float[Array, "n n"]:
    """Raises unless `factor` is a Cholesky factor of which all digits are not lost."""
    # Pivots are variances given all previous points. Those of duplicates are zero, and
    # come out as NaN or as a few ULPs of the prior variance, whatever `n` is.
    unit = unit_rounding(1, k.dtype)

    def is_bad(factor):
        pivots = jnp.square(jnp.diagonal(factor))
        # False for NaN.
        return ~jnp.all(pivots > unit * jnp.max(jnp.diagonal(k)))

    name, known = "k_train_train", None if is_traced(k) else k
    describe = lambda _: indefinite(name, known, _singular)
    return guard(factor, is_bad, describe, indefinite(name, None, _singular))


class Posterior(eqx.Module):
    """A Gaussian process, given the training targets. Made by
    [`infinitenet.condition`][].

    It keeps the Cholesky factor, so that predictions on further test sets only cost
    products with it.

    - `y_train`: shape `(n, *outputs)`.
    - `factor`: the lower Cholesky factor of the regularised kernel, shape `(n, n)`.
    - `weights`: the inverse of the regularised kernel times `y_train`.
    """

    y_train: Float[Array, "n *outputs"]
    factor: Float[Array, "n n"]
    weights: Float[Array, "n *outputs"]

    def _whiten(
        self, k_test_train: Float[Array, "n_test n"]
    ) -> tuple[Float[Array, "n n_test"], Float[Array, "n_test n"]]:
        r"""$L^{-1} K_{dt}$, and the weights $K_{td} K^{-1}$ of the posterior mean."""
        white = solve_triangular(self.factor, k_test_train.T, lower=True)
        # These only serve to bound the rounding.
        weights = solve_triangular(self.factor, white, lower=True, trans=1)
        return white, jax.lax.stop_gradient(weights.T)

    def _train_variance(self) -> Float[Array, " n"]:
        return jnp.sum(jnp.square(self.factor), axis=1)

    def predict(
        self, k_test_train: ArrayLike, k_test_test: ArrayLike | None = None
    ) -> Prediction:
        r"""The posterior on test inputs, equations (2.25) and (2.26) of Rasmussen and
        Williams (2006): $K_{td} K_r^{-1} y$ and $K_{tt} - K_{td} K_r^{-1} K_{dt}$.

        That is the distribution of the function, without the noise of observations.

        **Arguments:**

        - `k_test_train`: shape `(n_test, n)`.
        - `k_test_test`: shape `(n_test, n_test)`. Without it, there is a mean only.

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
            return Prediction(mean, None)
        k_tt = check_test_kernel("k_test_test", k_test_test, len(k_td), dtype)
        white, weights = self._whiten(k_td)
        covariance = k_tt - dot(white.T, white)
        bound = rounding_bound(weights, self._train_variance(), jnp.diagonal(k_tt))
        return Prediction(mean, covariance, jnp.sum(bound))

    def variance(
        self, k_test_train: ArrayLike, k_test_test_diagonal: ArrayLike
    ) -> Float[Array, " n_test"]:
        """The diagonal of the posterior covariance, in memory of order `n * n_test`.

        **Arguments:**

        - `k_test_train`: shape `(n_test, n)`.
        - `k_test_test_diagonal`: the kernel of each test input with itself, shape
            `(n_test,)`.

        **Returns:** shape `(n_test,)`, in the squared units of the targets.

        **Raises:** `ValueError` as `predict`, and if a variance is negative by more
            than rounding (`RuntimeError` under `jax.jit`).
        """
        n, dtype = len(self.factor), self.factor.dtype
        name = "k_test_test_diagonal"
        k_td = check_cross_kernel("k_test_train", k_test_train, n, dtype)
        k_tt = check_floating(name, k_test_test_diagonal, "Convert it with `astype`.")
        k_tt = check_shape(name, k_tt, (len(k_td),), "a variance for each test input")
        k_tt = check_finite(name, k_tt, "Look for NaN in the test inputs.")
        k_tt = k_tt.astype(dtype)
        white, weights = self._whiten(k_td)
        variance = k_tt - jnp.sum(jnp.square(white), axis=0)
        bound = rounding_bound(weights, self._train_variance(), k_tt)
        # Together, so that all of it is known, or none.
        both = guard(
            jnp.stack([variance, bound]),
            lambda both: jnp.any(both[0] < -both[1]),
            lambda both: f"{_negative_variance} The lowest is {both[0].min():.1e}.",
            _negative_variance,
        )
        return jnp.maximum(both[0], 0)

    def sample(
        self,
        key: PRNGKeyArray,
        k_test_train: ArrayLike,
        k_test_test: ArrayLike,
        n: int,
    ) -> Float[Array, "n n_test *outputs"]:
        """Functions drawn from the posterior, at the test inputs.

        **Arguments:**

        - `key`: a JAX random key.
        - `k_test_train`, `k_test_test`: as for `predict`.
        - `n`: the number of samples.

        **Returns:** shape `(n, n_test, *outputs)`.

        **Raises:** `ValueError` as `predict`, and as
            [`infinitenet.Prediction.sample`][].
        """
        return self.predict(k_test_train, k_test_test).sample(key, n)

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
    place the mean is that of a fully trained network, but the covariance is not: see
    [`infinitenet.infinite_ensemble`][].

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
    - `y_train`: the targets, shape `(n, *outputs)`. All outputs share the kernel. They
        are converted to the dtype of the kernel.
    - `diag_reg`: what to add to the kernel's diagonal, in units of its mean.
    - `absolute`: if true, `diag_reg` is in units of the kernel.

    **Returns:** A [`infinitenet.Posterior`][].

    **Raises:** `ValueError` if an argument has a wrong shape or dtype, if it has
        entries that are not finite, if the kernel is not symmetric, or if it is not
        positive definite, with a `diag_reg` that would mend it. Under `jax.jit` what
        depends on values is a `RuntimeError` at run time.
    """
    k = check_kernel("k_train_train", k_train_train)
    y = check_targets("y_train", y_train, len(k), k.dtype)
    k = regularise(k, diag_reg, absolute)
    factor = _check_factor(jnp.linalg.cholesky(k), k)
    white = solve_triangular(factor, y.reshape(len(k), -1), lower=True)
    weights = solve_triangular(factor, white, lower=True, trans=1)
    return Posterior(y, factor, weights.reshape(y.shape))
