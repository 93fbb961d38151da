"""The base class of nonlinearities without duals in closed form."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from . import _quadrature as quadrature
from ._expectations import Function
from ._pointwise import AbstractPointwise


@eqx.filter_jit
def bounded(fn: Callable[..., Any], *args: Any) -> Any:
    """`fn(*args)`, compiled once.

    The sizes of tiles do not depend on what is in here: `_tiles` knows it by its name.
    """
    return fn(*args)


def _of_layer(fn, layer, *args):
    return fn(*layer.function(args[-1].dtype), *args)


class AbstractQuadrature(AbstractPointwise):
    r"""A nonlinearity $\phi$, of which `__call__` is enough: its dual is by quadrature.

    Accurate to ten digits for variances up to 100, if $\phi$ is continuous, smooth other
    than at zero, and does not oscillate fast. It is much faster on inputs of equal norm,
    and if many inputs are given at once. Arrays among the fields of such a layer are
    parameters, along which kernels may be differentiated.
    """

    @property
    def kinked(self) -> bool:
        r"""Whether derivatives of $\phi$ may jump at zero.

        If not, then less is to be done for gradients of the NTK.
        """
        return True

    def dual(self, q1, k, q2):
        return bounded(_of_layer, quadrature.dual, self, q1, k, q2)

    def dual_at(self, q, k):
        if q.size != 1:
            return self.dual(q, k, q)
        return bounded(_of_layer, quadrature.dual_at, self, q.reshape(()), k)

    def error(
        self, q1: Float[Array, "..."], k: Float[Array, "..."], q2: Float[Array, "..."]
    ) -> Float[Array, "..."]:
        """An estimate of the error of the dual.

        It is the difference from a coarser rule, of two thirds of the nodes along each
        dimension, so that errors for smooth functions are far smaller than this. It is
        large if a function varies faster than the rule resolves, or has kinks elsewhere
        than at zero.

        **Arguments:**

        - `q1`, `q2`: variances of the inputs.
        - `k`: their covariance.
        """
        q1, k, q2 = map(jnp.asarray, (q1, k, q2))
        return bounded(_of_layer, quadrature.error, self, q1, k, q2)

    def function(self, dtype: jnp.dtype) -> tuple[Function, Float[Array, " n"]]:
        """This function, and its parameters as a vector."""
        parameters, static = eqx.partition(self, eqx.is_inexact_array)
        p, unravel = ravel_pytree(parameters)

        def fn(x, p):
            return eqx.combine(unravel(p), static)(x).astype(x.dtype)

        p = p if p.size else jnp.zeros((0,), dtype)
        return Function(fn, self.odd, self.kinked), p
