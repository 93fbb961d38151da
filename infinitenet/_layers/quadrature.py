"""Nonlinearities without duals in closed form."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._by_quadrature import AbstractQuadrature, bounded
from .._hyperparameters import check_number, to_scalar
from .._piecewise import clip_moments, clip_moments_at
from .._pointwise import AbstractPointwise


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
    r"""$\phi(x) = \tanh(x)$.

    ??? cite "Reference"
        Poole, Lahiri, Raghu, Sohl-Dickstein & Ganguli, Exponential expressivity in deep
        neural networks through transient chaos, NeurIPS 2016.
    """

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
    r"""$\phi(x) = 1 / (1 + e^{-x})$.

    ??? cite "Reference"
        Daniely, Frostig & Singer, Toward Deeper Understanding of Neural Networks, NeurIPS
        2016: section 4 (duals).
    """

    @property
    def kinked(self):
        return False

    def __call__(self, x, *, key=None):
        del key
        return jax.nn.sigmoid(x)


class Softplus(AbstractQuadrature):
    r"""$\phi(x) = \log(1 + e^x)$.

    ??? cite "Reference"
        Dugas, Bengio, Belisle, Nadeau & Garcia, Incorporating second-order functional
        knowledge for better option pricing, NeurIPS 2000.
    """

    @property
    def kinked(self):
        return False

    def __call__(self, x, *, key=None):
        del key
        return jax.nn.softplus(x)


class Silu(AbstractQuadrature):
    r"""$\phi(x) = x / (1 + e^{-x})$, also called swish.

    ??? cite "Reference"
        Elfwing, Uchibe & Doya, Sigmoid-weighted linear units for neural network function
        approximation in reinforcement learning, Neural Networks 2018.
    """

    @property
    def kinked(self):
        return False

    def __call__(self, x, *, key=None):
        del key
        return x * jax.nn.sigmoid(x)


Swish = Silu


class Mish(AbstractQuadrature):
    r"""$\phi(x) = x \tanh(\log(1 + e^x))$.

    ??? cite "Reference"
        Misra, Mish: A Self Regularized Non-Monotonic Activation Function, BMVC 2020.
    """

    @property
    def kinked(self):
        return False

    def __call__(self, x, *, key=None):
        del key
        return x * jnp.tanh(jax.nn.softplus(x))


class Elu(AbstractQuadrature):
    r"""$\phi(x) = x$ for $x > 0$, and $\alpha (e^x - 1)$ otherwise.

    ??? cite "Reference"
        Clevert, Unterthiner & Hochreiter, Fast and Accurate Deep Network Learning by
        Exponential Linear Units, ICLR 2016.
    """

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

    ??? cite "Reference"
        Klambauer, Unterthiner, Mayr & Hochreiter, Self-Normalizing Neural Networks, NeurIPS
        2017.
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

    ??? cite "Reference"
        Price, A useful theorem for nonlinear devices having Gaussian inputs, IRE
        Transactions on Information Theory 1958.
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
