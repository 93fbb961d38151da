"""Piecewise linear functions and error functions."""

import abc

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float

from .._hyperparameters import check_number, to_optional_scalar, to_scalar
from .._piecewise_linear import AbstractABRelu, Slope
from .._pointwise import AbstractPointwise
from .._special import arc_sine


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


class AbstractErf(AbstractPointwise):
    r"""$\phi(x) = a \operatorname{erf}(b x) + c$."""

    @abc.abstractmethod
    def parameters(self, dtype: np.dtype) -> tuple[Slope, Slope, Slope]:
        """`a`, `b` and `c`."""

    def __call__(self, x, *, key=None):
        del key
        a, b, c = self.parameters(x.dtype)
        return a * jax.scipy.special.erf(b * x) + c

    def dual(self, q1, k, q2):
        a, b, c = self.parameters(k.dtype)
        scaled = (2 * b**2 * q for q in (q1, k, q2))
        return a**2 * (2 / np.pi) * arc_sine(*scaled)[0] + c**2


class Erf(AbstractErf):
    r"""$\phi(x) = a \operatorname{erf}(b x) + c$.

    Its dual is $\frac{2 a^2}{\pi} \arcsin \frac{2 b^2 k}{\sqrt{(1 + 2 b^2 q_1)(1 + 2 b^2
    q_2)}} + c^2$.

    ??? cite "Reference"
        Williams, Computing with Infinite Networks, NeurIPS 1996: section 3.1.
    """

    a: Float[Array, ""] = eqx.field(default=1.0, converter=to_scalar)
    b: Float[Array, ""] = eqx.field(default=1.0, converter=to_scalar)
    c: Float[Array, ""] | None = eqx.field(default=None, converter=to_optional_scalar)

    def __check_init__(self):
        for name in "abc":
            check_number(self, name, getattr(self, name))

    @property
    def odd(self):
        return self.c is None

    def parameters(self, dtype):
        c = 0.0 if self.c is None else self.c.astype(dtype)
        return self.a.astype(dtype), self.b.astype(dtype), c


Erf.__init__.__doc__ = """**Arguments:**

- `a`: the factor of the output. Scalar, differentiable.
- `b`: the factor of the input. Scalar, differentiable.
- `c`: the offset of the output. Scalar, differentiable. `None` for none, so that the
    function is known to be odd.
"""


class SigmoidLike(AbstractErf):
    r"""$\phi(x) = \frac12 \operatorname{erf}(x / 2.4020563531719796) + \frac12$.

    It is within 0.015 of the logistic sigmoid, and has a dual in closed form: see
    [`infinitenet.Erf`][].

    ??? cite "Reference"
        Williams, Computing with Infinite Networks, NeurIPS 1996: section 3.1.
    """

    def parameters(self, dtype):
        del dtype
        return 0.5, 1 / 2.4020563531719796, 0.5
