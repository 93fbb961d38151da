"""What inference returns."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from .._checks import guard
from .._tracing import is_traced
from .spectral import safe_sqrt, spectral_apply, SQRT, unit_rounding


_no_covariance = (
    "This prediction has no covariance, which samples need. Give the kernel of the test "
    "inputs with themselves, `k_test_test` of shape (n_test, n_test), to `predict`."
)
_no_variance = (
    "This prediction has a mean only. For variances give the kernel of the test inputs "
    "with themselves, `k_test_test`, to `predict`; its diagonal is enough."
)
_not_covariance = (
    "The covariance of a prediction has eigenvalues far below zero, so it is none. Are "
    "`k_train_train`, `k_test_train` and `k_test_test` of the same network, with the "
    "same hyperparameters, and on the same inputs? If so, give a larger `diag_reg`, or "
    "use float64: `jax.config.update('jax_enable_x64', True)`."
)


def _check_covariance(x: Array, tolerance: Array) -> Array:
    """Raises if some of `x`, eigenvalues or variances, are below `-tolerance`."""
    lowest = lambda x: jnp.min(x, axis=-1) + tolerance
    describe = lambda x: f"{_not_covariance} The lowest is {jnp.min(x):.1e}."
    if is_traced(tolerance):
        return eqx.error_if(x, jnp.any(lowest(x) < 0), _not_covariance)
    return guard(x, lambda x: jnp.any(lowest(x) < 0), describe, _not_covariance)


class Prediction(eqx.Module):
    """A Gaussian distribution of the outputs on test inputs.

    Outputs (classes, say) are independent of one another, and have the same covariance.

    Predictions for an array of times `t` have the axes of `t` first: `*times`.
    Otherwise there are none.

    - `mean`: shape `(*times, n_test, *outputs)`.
    - `covariance`: shape `(*times, n_test, n_test)`, or `None` if it was not asked for.
    - `tolerance`: shape `(*times,)`. Eigenvalues of the covariance, and variances, are
        exact up to this amount. If `None`, as exact as sums of `n_test` entries on the
        diagonal.
    - `diagonal`: shape `(*times, n_test)`, if only variances were asked for. `variance`
        has them in either case.
    """

    mean: Float[Array, " *times_test_outputs"]
    covariance: Float[Array, "*times n_test n_test"] | None = None
    tolerance: Float[Array, "*times"] | None = None
    diagonal: Float[Array, "*times n_test"] | None = None

    def _tolerance(self, variance: Float[Array, "*times n_test"]) -> Float[Array, "*times"]:
        """The bound on the rounding of eigenvalues of the covariance."""
        if self.tolerance is not None:
            return self.tolerance
        unit = unit_rounding(variance.shape[-1], variance.dtype)
        return unit * jnp.sum(jnp.abs(variance), axis=-1)

    def _covariance(self) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        """The covariance, and the bound on the rounding of its eigenvalues."""
        if self.covariance is None:
            raise ValueError(_no_covariance)
        diagonal = jnp.diagonal(self.covariance, axis1=-2, axis2=-1)
        return self.covariance, self._tolerance(diagonal)

    @property
    def variance(self) -> Float[Array, "*times n_test"]:
        """Variances, the same for all outputs. What rounding makes negative is zero.

        **Returns:** shape `(*times, n_test)`, in the squared units of the targets.

        **Raises:** `ValueError` if the prediction has a mean only, or if a variance is
            negative by more than rounding (`RuntimeError` under `jax.jit`).
        """
        variance = self.diagonal
        if self.covariance is not None:
            variance = jnp.diagonal(self.covariance, axis1=-2, axis2=-1)
        if variance is None:
            raise ValueError(_no_variance)
        variance = _check_covariance(variance, self._tolerance(variance))
        return jnp.maximum(variance, 0)

    @property
    def std(self) -> Float[Array, "*times n_test"]:
        """Standard deviations: the roots of `variance`.

        **Returns:** shape `(*times, n_test)`, in the units of the targets.

        **Raises:** as `variance`.
        """
        return safe_sqrt(self.variance)

    def sample(self, key: PRNGKeyArray, n: int) -> Float[Array, " n *times_test_outputs"]:
        """Functions drawn from the distribution.

        The covariance may be singular. For a given key samples are a continuous
        function of the time, from the same noise at all times. Of their distribution
        only that at each single time has a meaning.

        **Arguments:**

        - `key`: a JAX random key.
        - `n`: the number of samples.

        **Returns:** shape `(n, *times, n_test, *outputs)`.

        **Raises:** `ValueError` without covariance, or if the covariance has an
            eigenvalue that is negative by more than rounding (`RuntimeError` under
            `jax.jit`).
        """
        covariance, tolerance = self._covariance()
        n_test = covariance.shape[-1]
        axis = covariance.ndim - 2
        outputs = self.mean.shape[axis + 1 :]
        l, u = jnp.linalg.eigh(covariance)
        l = _check_covariance(l, tolerance)
        # As in `decompose`: the derivatives of the roots of rounding errors are large.
        zero = unit_rounding(1, l.dtype) * jnp.max(jnp.abs(l), axis=-1, keepdims=True)
        l = jnp.where(l <= zero, 0, l)
        noise = jr.normal(key, (n_test, n, *outputs), self.mean.dtype)
        noise = noise.reshape(n_test, -1).astype(covariance.dtype)
        # The symmetric root, as that of eigenvectors would jump with their signs.
        root = lambda k, l, u: spectral_apply(k, l, u, None, noise, fn=SQRT)
        for _ in range(axis):
            root = jax.vmap(root)
        change = root(covariance, l, u).reshape(*covariance.shape[:-1], n, *outputs)
        return self.mean[None] + jnp.moveaxis(change, axis + 1, 0).astype(self.mean.dtype)
