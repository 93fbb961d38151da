"""Exponential functions."""

import functools as ft

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._hyperparameters import check_number, check_scale, NEGATIVE, POSITIVE, to_scalar
from .._path import LayerError
from .._pointwise import AbstractPointwise
from .._special import arc_sine_slope, dense, roots, sum_known
from .._tracing import is_traced


class Gaussian(AbstractPointwise):
    r"""$\phi(x) = a e^{b x^2}$ for $b \leq 0$.

    Its dual is $a^2 / \sqrt{(1 - 2 b q_1) (1 - 2 b q_2) - 4 b^2 k^2}$. For positive $b$ it
    would be infinite for variances from $1 / (4 b)$ on.

    ??? cite "Reference"
        Williams, Computing with Infinite Networks, NeurIPS 1996: section 3.2.
    """

    a: Float[Array, ""] = eqx.field(default=1.0, converter=to_scalar)
    b: Float[Array, ""] = eqx.field(default=-1.0, converter=to_scalar, metadata=NEGATIVE)

    def __check_init__(self):
        check_number(self, "a", self.a)
        check_number(self, "b", self.b)
        if isinstance(self.b, jax.Array) and not is_traced(self.b) and (self.b > 0).any():
            raise LayerError(
                self,
                f"`b` must not be positive, but it is {self.b}: the square of the output "
                "would have no finite expectation for large variances of the input.",
            )

    def __call__(self, x, *, key=None):
        del key
        return self.a.astype(x.dtype) * jnp.exp(self.b.astype(x.dtype) * x * x)

    def dual(self, q1, k, q2):
        a, b = self.a.astype(k.dtype), self.b.astype(k.dtype)
        return a * a * arc_sine_slope(*(-2 * b * q for q in (q1, k, q2)))


Gaussian.__init__.__doc__ = """**Arguments:**

- `a`: the factor of the output. Scalar, differentiable.
- `b`: the factor of the squared input. Scalar, not positive, differentiable.
"""


class Exp(AbstractPointwise):
    r"""$\phi(x) = a e^{b x}$.

    Its dual is $a^2 e^{b^2 (q_1 + 2 k + q_2) / 2}$. It soon overflows: variances grow
    exponentially, from layer to layer, unless $a$ and $b$ are small.

    ??? cite "Reference"
        Novak et al., Neural Tangents: Fast and Easy Infinite Neural Networks in Python,
        ICLR 2020: Table 1.
    """

    a: Float[Array, ""] = eqx.field(default=1.0, converter=to_scalar)
    b: Float[Array, ""] = eqx.field(default=1.0, converter=to_scalar)

    def __check_init__(self):
        check_number(self, "a", self.a)
        check_number(self, "b", self.b)

    def __call__(self, x, *, key=None):
        del key
        return self.a.astype(x.dtype) * jnp.exp(self.b.astype(x.dtype) * x)

    def dual(self, q1, k, q2):
        a, b = self.a.astype(k.dtype), self.b.astype(k.dtype)
        # Of sums, which are exact for opposite inputs.
        return a * a * jnp.exp(b * b * (((q1 + k) + (q2 + k)) / 2))


Exp.__init__.__doc__ = """**Arguments:**

- `a`: the factor of the output. Scalar, differentiable.
- `b`: the factor of the input. Scalar, differentiable.
"""


def _correlation(do_clip: bool, q1: Array, k: Array, q2: Array) -> Array:
    (_, r1), (_, r2) = roots(q1), roots(q2)
    c = k * (r1 * r2)
    # Clipping is out of sight of differentiation: else the NTK would be zero wherever
    # rounding gives `c > 1`, as on the diagonal of a kernel matrix.
    return c + jax.lax.stop_gradient(jnp.clip(c, -1, 1) - c) if do_clip else c


@ft.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _normalized(do_clip, q1, k, q2, gamma, shift):
    """The dual of `ExpNormalized`: a rule of its own, for variances of zero."""
    (s1, _), (s2, _) = roots(q1), roots(q2)
    return s1 * s2 * jnp.exp(gamma * (_correlation(do_clip, q1, k, q2) + shift))


def _normalized_jvp(do_clip, primals, tangents):
    q1, k, q2, gamma, shift = primals
    t_q1, t_k, t_q2, t_gamma, t_shift = tangents
    value = _normalized(do_clip, *primals)  # Not inlined, for derivatives of this rule.
    (_, r1), (_, r2) = roots(q1), roots(q2)
    shifted = _correlation(do_clip, q1, k, q2) + shift
    slope = gamma * jnp.exp(gamma * shifted)
    # Of log(sqrt(q1 q2)).
    t_log = sum_known((r1**2 / 2, t_q1), (r2**2 / 2, t_q2))
    tangent = sum_known(
        (slope, t_k),
        (value - k * slope, t_log),
        (value * shifted, t_gamma),
        (value * gamma, t_shift),
    )
    return value, dense(tangent, jnp.zeros_like(value))


_normalized.defjvp(_normalized_jvp, symbolic_zeros=True)


class ExpNormalized(AbstractPointwise):
    r"""A kernel without a nonlinearity: $\sqrt{q_1 q_2}\, e^{\gamma (c + \delta)}$.

    Here $c = k / \sqrt{q_1 q_2}$ is the correlation, and $\delta$ the shift. It is the dual
    of no fixed function, so that there are no finite networks. The factor of the NTK is its
    derivative $\gamma e^{\gamma (c + \delta)}$, as everywhere. Inputs of zero have no
    correlation, which counts as zero.

    ??? cite "Reference"
        Mairal, Koniusz, Harchaoui & Schmid, Convolutional Kernel Networks, NeurIPS 2014.
    """

    gamma: Float[Array, ""] = eqx.field(default=1.0, converter=to_scalar, metadata=POSITIVE)
    shift: Float[Array, ""] = eqx.field(default=-1.0, converter=to_scalar)
    do_clip: bool = eqx.field(default=False, static=True)

    def __check_init__(self):
        check_scale(self, "gamma", self.gamma)
        check_number(self, "shift", self.shift)

    def __call__(self, x, *, key=None):
        raise LayerError(
            self,
            "is a map of kernels, without finite networks. Compute kernels, by "
            "`infinitenet.gram(net, x)`, or take another nonlinearity such as `Rbf`.",
        )

    def dual(self, q1, k, q2):
        gamma, shift = self.gamma.astype(k.dtype), self.shift.astype(k.dtype)
        return _normalized(self.do_clip, q1, k, q2, gamma, shift)


ExpNormalized.__init__.__doc__ = """**Arguments:**

- `gamma`: the factor of the correlation. Scalar, not negative, differentiable.
- `shift`: what is added to the correlation. Scalar, differentiable.
- `do_clip`: whether correlations which exceed 1 by rounding count as 1.
"""
