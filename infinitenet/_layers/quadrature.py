"""Nonlinearities without duals in closed form."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from .. import _quadrature as quadrature
from .._expectations import Function
from .._hyperparameters import check_number, to_scalar
from .._piecewise import clip_moments, clip_moments_at
from .._pointwise import AbstractPointwise


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


class Elementwise(AbstractQuadrature):
    r"""Any function, applied to each activation.

    Its dual is computed by quadrature, to ten digits if the function is smooth, or has
    kinks or jumps at zero only, and does not oscillate fast. Otherwise look at
    [`error`][infinitenet.Elementwise.error].

    !!! example

        ```python
        net = inn.Sequential([inn.Dense(512), inn.Elementwise(jnp.arctan), inn.Dense(1)])
        ```

    ??? cite "Reference"
        Daniely, Frostig & Singer, Toward Deeper Understanding of Neural Networks, NeurIPS
        2016: section 4 (duals).
    """

    fn: Callable[[Array], Any]

    def __call__(self, x, *, key=None):
        del key
        return self.fn(x)


Elementwise.__init__.__doc__ = """**Arguments:**

- `fn`: the function, of arrays of any shape, which acts on each number by itself. It must
    be differentiable by JAX. If it is an `equinox.Module`, arrays in it are parameters,
    along which kernels may be differentiated.
"""


class Tanh(AbstractQuadrature):
    r"""$\phi(x) = \tanh(x)$."""

    @property
    def odd(self):
        return True

    @property
    def kinked(self):
        return False

    def __call__(self, x, *, key=None):
        del key
        return jnp.tanh(x)


class Sigmoid(AbstractQuadrature):
    r"""$\phi(x) = 1 / (1 + e^{-x})$."""

    @property
    def kinked(self):
        return False

    def __call__(self, x, *, key=None):
        del key
        return jax.nn.sigmoid(x)


class Softplus(AbstractQuadrature):
    r"""$\phi(x) = \log(1 + e^x)$."""

    @property
    def kinked(self):
        return False

    def __call__(self, x, *, key=None):
        del key
        return jax.nn.softplus(x)


class Silu(AbstractQuadrature):
    r"""$\phi(x) = x / (1 + e^{-x})$, also called swish."""

    @property
    def kinked(self):
        return False

    def __call__(self, x, *, key=None):
        del key
        return x * jax.nn.sigmoid(x)


Swish = Silu


class Mish(AbstractQuadrature):
    r"""$\phi(x) = x \tanh(\log(1 + e^x))$."""

    @property
    def kinked(self):
        return False

    def __call__(self, x, *, key=None):
        del key
        return x * jnp.tanh(jax.nn.softplus(x))


class Elu(AbstractQuadrature):
    r"""$\phi(x) = x$ for $x > 0$, and $\alpha (e^x - 1)$ otherwise."""

    alpha: Float[Array, ""] = eqx.field(default=1.0, converter=to_scalar)

    def __check_init__(self):
        check_number(self, "alpha", self.alpha)

    def __call__(self, x, *, key=None):
        del key
        return _elu(x, self.alpha.astype(x.dtype))


Elu.__init__.__doc__ = """**Arguments:**

- `alpha`: minus the limit at large negative inputs. Scalar, differentiable.
"""


# Such that mean 0 and variance 1 are a fixed point.
_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772, 1.0507009873554805


class Selu(AbstractQuadrature):
    r"""$\phi(x) = \lambda x$ for $x > 0$, and $\lambda \alpha (e^x - 1)$ otherwise.

    With $\lambda = 1.0507$ and $\alpha = 1.6733$.
    """

    def __call__(self, x, *, key=None):
        del key
        return _SELU_SCALE * _elu(x, _SELU_ALPHA)


def _elu(x, alpha):
    positive = x > 0
    return jnp.where(positive, x, alpha * jnp.expm1(jnp.where(positive, 0, x)))


class HardTanh(AbstractPointwise):
    r"""$\phi(x) = \max(-1, \min(x, 1))$.

    By quadrature in one dimension, as its kinks are not at zero.
    """

    @property
    def odd(self):
        return True

    def __call__(self, x, *, key=None):
        del key
        return jnp.clip(x, -1, 1)

    def dual(self, q1, k, q2):
        return clip_moments(q1, k, q2)[0]

    def dual_at(self, q, k):
        if q.size != 1:
            return self.dual(q, k, q)
        return bounded(clip_moments_at, q.reshape(()), k)[0]
