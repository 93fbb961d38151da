"""Sines and cosines."""

import abc

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._hyperparameters import (
    check_number,
    check_scale,
    POSITIVE,
    to_optional_scalar,
    to_scalar,
)
from .._pointwise import AbstractPointwise
from .._special import arc_sine_slope, dense, fast_expm1, sum_known


def _damped(
    excess: Float[Array, "..."], x: Float[Array, "..."]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    r"""$e^{-h} \sinh x$ and $e^{-h} \cosh x$, given $h - |x|$.

    Exact for small `x`, and nothing overflows. In terms of $y = |x|$, both are analytic in
    $y$, such that derivatives are right at zero too, other than those of `jnp.abs`.
    """
    y = jnp.where(x < 0, -x, x)
    scale, m = jnp.exp(-excess) / 2, fast_expm1(-2 * y)
    return scale * jnp.where(x < 0, m, -m), scale * (2 + m)


def _not_negative(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Where rounding made it so, out of sight of differentiation.

    Or else the exponential of large variances would be beyond all bounds.
    """
    return x + lax.stop_gradient(jnp.maximum(x, 0) - x)


def _magnitude(k: Float[Array, "..."]) -> Float[Array, "..."]:
    """As in `_damped`, such that derivatives cancel."""
    return jnp.where(k < 0, -k, k)


@jax.custom_jvp
def _waves(
    q1: Float[Array, "..."], k: Float[Array, "..."], q2: Float[Array, "..."]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    r"""$e^{-(q_1 + q_2) / 2} \sinh k$ and the same of $\cosh k$."""
    y = jnp.abs(k)
    # From differences, which are exact for similar inputs. If rounding made them negative,
    # the exponential of large variances would be beyond all bounds.
    return _damped(jnp.maximum(((q1 - y) + (q2 - y)) / 2, 0), k)


def _waves_jvp(primals, tangents):
    sines, cosines = _waves(*primals)  # Not inlined, for derivatives of this rule.
    t_q1, t_k, t_q2 = tangents
    s, c = -sines / 2, -cosines / 2
    t_sines = sum_known((cosines, t_k), (s, t_q1), (s, t_q2))
    t_cosines = sum_known((sines, t_k), (c, t_q1), (c, t_q2))
    zero = jnp.zeros_like(sines)
    return (sines, cosines), (dense(t_sines, zero), dense(t_cosines, zero))


_waves.defjvp(_waves_jvp, symbolic_zeros=True)


class AbstractWave(AbstractPointwise):
    r"""$\phi(x) = a \sin(b x + c)$, for some phase $c$."""

    @abc.abstractmethod
    def wave(
        self, dtype: np.dtype
    ) -> tuple[
        Float[Array, ""], Float[Array, ""], Float[Array, ""], Float[Array, ""] | None
    ]:
        r"""$a, b, \cos c, \sin c$. The last one is `None` if there is no phase."""

    def dual(self, q1, k, q2):
        a, b, cos, sin = self.wave(k.dtype)
        sines, cosines = _waves(*(b * b * q for q in (q1, k, q2)))
        wave = sines if sin is None else cos * cos * sines + sin * sin * cosines
        return a * a * wave


class Sin(AbstractWave):
    r"""$\phi(x) = a \sin(b x + c)$.

    Its dual is $a^2 e^{-b^2 (q_1 + q_2) / 2} (\cos^2 c \sinh b^2 k + \sin^2 c \cosh b^2
    k)$.

    ??? cite "Reference"
        Pearce, Tsuchida, Zaki, Brintrup & Neely, Expressive Priors in Bayesian Neural
        Networks, UAI 2019.
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

    def __call__(self, x, *, key=None):
        del key
        a, b = self.a.astype(x.dtype), self.b.astype(x.dtype)
        return a * jnp.sin(b * x if self.c is None else b * x + self.c.astype(x.dtype))

    def wave(self, dtype):
        a, b = self.a.astype(dtype), self.b.astype(dtype)
        if self.c is None:
            return a, b, jnp.ones((), dtype), None
        c = self.c.astype(dtype)
        return a, b, jnp.cos(c), jnp.sin(c)


Sin.__init__.__doc__ = """**Arguments:**

- `a`: the factor of the output. Scalar, differentiable.
- `b`: the factor of the input. Scalar, differentiable.
- `c`: the phase. Scalar, differentiable. `None` for none, so that the function is known
    to be odd.
"""


class Cos(AbstractWave):
    r"""$\phi(x) = a \cos(b x + c)$.

    Its dual is $a^2 e^{-b^2 (q_1 + q_2) / 2} (\cos^2 c \cosh b^2 k + \sin^2 c \sinh b^2
    k)$.

    ??? cite "Reference"
        Pearce, Tsuchida, Zaki, Brintrup & Neely, Expressive Priors in Bayesian Neural
        Networks, UAI 2019.
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
        return a * jnp.cos(b * x + c)

    def wave(self, dtype):
        a, b, c = (p.astype(dtype) for p in (self.a, self.b, self.c))
        return a, b, -jnp.sin(c), jnp.cos(c)


Cos.__init__.__doc__ = """**Arguments:**

- `a`: the factor of the output. Scalar, differentiable.
- `b`: the factor of the input. Scalar, differentiable.
- `c`: the phase. Scalar, differentiable.
"""


class Rbf(AbstractPointwise):
    r"""$\phi(x) = \sqrt2 \sin(\sqrt{2 \gamma} x + \pi / 4)$.

    Its dual is $e^{-\gamma (q_1 - 2 k + q_2)}$: after a layer of weights it is a Gaussian
    kernel, a function of the squared distance between inputs.

    ??? cite "Reference"
        Rahimi & Recht, Random Features for Large-Scale Kernel Machines, NeurIPS 2007:
        section 3.
    """

    gamma: Float[Array, ""] = eqx.field(default=1.0, converter=to_scalar, metadata=POSITIVE)

    def __check_init__(self):
        check_scale(self, "gamma", self.gamma)

    def __call__(self, x, *, key=None):
        del key
        gamma = self.gamma.astype(x.dtype)
        return np.sqrt(2).item() * jnp.sin(jnp.sqrt(2 * gamma) * x + np.pi / 4)

    def dual(self, q1, k, q2):
        # From differences, which are exact for similar inputs.
        distance = _not_negative((q1 - k) + (q2 - k))
        return jnp.exp(-self.gamma.astype(k.dtype) * distance)


Rbf.__init__.__doc__ = """**Arguments:**

- `gamma`: the inverse of the squared length scale. Scalar, not negative, differentiable.
"""


class Gabor(AbstractPointwise):
    r"""$\phi(x) = e^{-x^2} \sin x$.

    With $n = (1 + 2 q_1) (1 + 2 q_2) - 4 k^2$ its dual is
    $\frac1{\sqrt n} \exp\bigl(\frac{1 + q_1 + q_2}{2 n} - \frac12\bigr) \sinh \frac kn$.

    ??? cite "Reference"
        Novak et al., Neural Tangents: Fast and Easy Infinite Neural Networks in Python,
        ICLR 2020: Table 1.
    """

    @property
    def odd(self):
        return True

    def __call__(self, x, *, key=None):
        del key
        return jnp.exp(-x * x) * jnp.sin(x)

    def dual(self, q1, k, q2):
        root = arc_sine_slope(2 * q1, 2 * k, 2 * q2)
        # One factor after the other, as the square may vanish where variances are huge.
        x = k * root * root
        shrunk = 0.5 - (1 + q1 + q2) * root * root / 2
        return root * _damped(shrunk - _magnitude(x), x)[0]
