"""The user's own nonlinearity."""

from collections.abc import Callable

import equinox as eqx
from jaxtyping import Array, Float

from .._path import LayerError
from .._pointwise import AbstractPointwise


class Pointwise(AbstractPointwise):
    r"""Any function, given with its dual in closed form.

    The factor of the NTK is the derivative of the dual along $k$, taken automatically.

    !!! example

        ```python
        def dual(q1, k, q2):
            return jnp.exp(-(q1 + q2) / 2) * jnp.sinh(k)

        sine = inn.Pointwise(jnp.sin, dual)
        ```

    ??? cite "Reference"
        Daniely, Frostig & Singer, Toward Deeper Understanding of Neural Networks, NeurIPS
        2016: section 4 (duals).
    """

    fn: Callable[[Float[Array, "..."]], Float[Array, "..."]] = eqx.field(static=True)
    # It has a default so that it overrides the abstract method.
    dual: Callable[..., Float[Array, "..."]] = eqx.field(static=True, default=None)

    def __check_init__(self):
        for name in ("fn", "dual"):
            if not callable(getattr(self, name)):
                raise LayerError(
                    self,
                    f"`{name}` must be a function, but it is {getattr(self, name)!r}. "
                    "Both are needed: `fn(x)`, and its dual `dual(q1, k, q2)`.",
                )

    def __call__(self, x, *, key=None):
        del key
        return self.fn(x)


Pointwise.__init__.__doc__ = """**Arguments:**

- `fn`: `fn(x)` for arrays of any shape, in JAX. To be compiled once, define it once:
    functions are compared by identity.
- `dual`: `dual(q1, k, q2)` is `E[fn(u) fn(v)]` for Gaussian `u, v` of variances `q1, q2`
    and covariance `k`, for arrays of entries. It must be differentiable, with finite
    derivatives also for `q1 == k == q2` and for variances of zero.
"""
