"""Nonlinearities that act on each activation by itself, and their duals."""

import abc
from typing import TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._covariance import Covariance, Pairs
from .._hyperparameters import check_number, to_scalar
from .._kernel import Demand, Kernel
from .._layer import AbstractLayer
from .._path import LayerError
from .._signal import Signal
from .._special import arc_cosine, arc_sine


class AbstractPointwise(AbstractLayer):
    r"""A nonlinearity $\phi$, applied to each activation.

    At infinite width $k' = E[\phi(u) \phi(v)]$ for Gaussian $u, v$ of variances $q_1, q_2$
    and covariance $k$: the dual of $\phi$. The NTK's factor $E[\phi'(u) \phi'(v)]$ is its
    derivative along $k$ (Price's theorem), so that nothing else need be given.

    ??? cite "Reference"
        Daniely, Frostig & Singer, Toward Deeper Understanding of Neural Networks, NeurIPS
        2016: section 4 (duals).
    """

    @abc.abstractmethod
    def dual(
        self, q1: Float[Array, "..."], k: Float[Array, "..."], q2: Float[Array, "..."]
    ) -> Float[Array, "..."]:
        """`E[f(u) f(v)]`, for Gaussian `u, v` of variances `q1, q2`, covariance `k`.

        It acts on each entry, and must be differentiable, with finite values and
        derivatives also for `q1 == k == q2`, and for variances of zero.
        """

    def check(self, signal: Signal) -> Signal:
        if not signal.gaussian:
            raise LayerError(
                self,
                "must come after a layer of weights such as `Dense` or `Conv` (with "
                "nothing in between that mixes features with positions or applies "
                "another nonlinearity), as its inputs must be Gaussian at infinite width. "
                "Insert one before it.",
            )
        return signal.nonlinear()

    def requires(self, demand: Demand) -> Demand:
        return demand.at_least(Pairs.SAME, Pairs.SAME)

    def infinite(self, kernel: Kernel) -> Kernel:
        def pointwise(k11, k12, k22):
            # Aligned with the axes of `k12`, of positions `p` and perhaps of `q`.
            q1, q2 = k11.diagonal(), k22.diagonal()
            ones = (1,) * (k12.array.ndim - q1.ndim)
            q1, q2 = q1.reshape(q1.shape + ones), q2.reshape(ones + q2.shape)
            return Covariance(self.dual(q1, k12.array, q2), k12.pairs)

        return kernel.propagate(pointwise)


Slope: TypeAlias = Float[Array, ""] | float


class AbstractABRelu(AbstractPointwise):
    """Piecewise linear functions `a min(x, 0) + b max(x, 0)`."""

    @abc.abstractmethod
    def slopes(self, dtype: np.dtype) -> tuple[Slope, Slope]:
        """`a` and `b`: left and right of zero."""

    def __call__(self, x, *, key=None):
        del key
        a, b = self.slopes(x.dtype)
        return jnp.where(x > 0, b * x, a * x)

    def dual(self, q1, k, q2):
        a, b = self.slopes(k.dtype)
        return (a - b) ** 2 / 2 * arc_cosine(q1, k, q2)[0] + a * b * k


class ABRelu(AbstractABRelu):
    r"""$\phi(x) = a \min(x, 0) + b \max(x, 0)$.

    Its dual is $(a - b)^2 \sqrt{q_1 q_2} (\sin\theta + (\pi - \theta) \cos\theta) / (2\pi)
    + a b k$ with $\cos\theta = k / \sqrt{q_1 q_2}$.

    ??? cite "Reference"
        Cho & Saul, Kernel Methods for Deep Learning, NeurIPS 2009: section 2, for
        $a = 0, b = 1$; the others follow as $\phi(x) = b \max(x, 0) - a \max(-x, 0)$.
    """

    a: Float[Array, ""] = eqx.field(converter=to_scalar)
    b: Float[Array, ""] = eqx.field(converter=to_scalar)

    def __check_init__(self):
        check_number(self, "a", self.a)
        check_number(self, "b", self.b)

    def slopes(self, dtype):
        return self.a.astype(dtype), self.b.astype(dtype)


ABRelu.__init__.__doc__ = """**Arguments:**

- `a`: the slope for negative inputs. Scalar, differentiable.
- `b`: the slope for positive inputs. Scalar, differentiable.
"""


class LeakyRelu(AbstractABRelu):
    r"""$\phi(x) = \alpha \min(x, 0) + \max(x, 0)$: see [`infinitenet.ABRelu`][].

    ??? cite "Reference"
        Cho & Saul, Kernel Methods for Deep Learning, NeurIPS 2009: section 2.
    """

    alpha: Float[Array, ""] = eqx.field(converter=to_scalar)

    def __check_init__(self):
        check_number(self, "alpha", self.alpha)

    def slopes(self, dtype):
        return self.alpha.astype(dtype), 1.0


LeakyRelu.__init__.__doc__ = """**Arguments:**

- `alpha`: the slope for negative inputs. Scalar, differentiable.
"""


class Relu(AbstractABRelu):
    r"""$\phi(x) = \max(x, 0)$: see [`infinitenet.ABRelu`][].

    ??? cite "Reference"
        Cho & Saul, Kernel Methods for Deep Learning, NeurIPS 2009: section 2.
    """

    def slopes(self, dtype):
        del dtype
        return 0.0, 1.0


class Abs(AbstractABRelu):
    r"""$\phi(x) = |x|$: see [`infinitenet.ABRelu`][].

    ??? cite "Reference"
        Cho & Saul, Kernel Methods for Deep Learning, NeurIPS 2009: section 2.
    """

    def slopes(self, dtype):
        del dtype
        return -1.0, 1.0


class Erf(AbstractPointwise):
    r"""$\phi(x) = a \operatorname{erf}(b x) + c$.

    Its dual is $\frac{2 a^2}{\pi} \arcsin \frac{2 b^2 k}{\sqrt{(1 + 2 b^2 q_1)(1 + 2 b^2
    q_2)}} + c^2$.

    ??? cite "Reference"
        Williams, Computing with Infinite Networks, NeurIPS 1996: section 3.1.
    """

    a: Float[Array, ""] = eqx.field(default=1.0, converter=to_scalar)
    b: Float[Array, ""] = eqx.field(default=1.0, converter=to_scalar)
    c: Float[Array, ""] = eqx.field(default=0.0, converter=to_scalar)

    def __check_init__(self):
        for name in "abc":
            check_number(self, name, getattr(self, name))

    def __call__(self, x, *, key=None):
        del key
        a, b, c = (p.astype(x.dtype) for p in (self.a, self.b, self.c))
        return a * jax.scipy.special.erf(b * x) + c

    def dual(self, q1, k, q2):
        a, b, c = (p.astype(k.dtype) for p in (self.a, self.b, self.c))
        scaled = (2 * b**2 * q for q in (q1, k, q2))
        return a**2 * (2 / jnp.pi) * arc_sine(*scaled)[0] + c**2


Erf.__init__.__doc__ = """**Arguments:**

- `a`: the factor of the output. Scalar, differentiable.
- `b`: the factor of the input. Scalar, differentiable.
- `c`: the offset of the output. Scalar, differentiable.
"""
