"""Polynomials."""

import math
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from .._custom_types import Scalar
from .._hyperparameters import check_degree, check_number, REAL
from .._path import LayerError
from .._pointwise import AbstractPointwise
from .._tracing import is_traced


def _moment(
    degree: int, k: Float[Array, "..."], y: Float[Array, "..."], factor: float = 1.0
) -> Float[Array, "..."]:
    r"""$\sum_i \frac{n!^2}{l!\, (2^i i!)^2} k^l y^i$ over $l + 2 i = n$, times a factor."""
    n = math.factorial(degree)
    coefficients = [
        n * n // math.factorial(degree - 2 * i) // (2**i * math.factorial(i)) ** 2
        for i in range(degree // 2 + 1)
    ]
    out, power = jnp.full_like(k, coefficients[0] * factor), jnp.ones_like(k)
    for a in coefficients[1:]:
        power = power * y
        out = out * (k * k) + (a * factor) * power
    return out * k if degree % 2 else out


class Monomial(AbstractPointwise):
    r"""$\phi(x) = x^n$.

    Its dual is $\sum_i \frac{n!^2}{l!\, (2^i i!)^2} k^l (q_1 q_2)^i$ over $l + 2 i = n$.

    ??? cite "Reference"
        Daniely, Frostig & Singer, Toward Deeper Understanding of Neural Networks, NeurIPS
        2016: section 4, from the expansion of powers in Hermite polynomials.
    """

    degree: int = eqx.field(static=True)

    def __check_init__(self):
        check_degree(self, "degree", self.degree)

    @property
    def odd(self):
        return self.degree % 2 == 1

    def __call__(self, x, *, key=None):
        del key
        return x**self.degree

    def dual(self, q1, k, q2):
        return _moment(self.degree, k, q1 * q2)


Monomial.__init__.__doc__ = """**Arguments:**

- `degree`: the power, from 0.
"""


class Hermite(AbstractPointwise):
    r"""$\phi(x) = He_n(x) / \sqrt{n!}$, a normalised Hermite polynomial.

    It is that of probabilists, such that the dual is $k^n$ for variances of one. For any
    variances it is

    $$
    \sum_i \frac{n!}{l!\, (2^i i!)^2} k^l (q_1 - 1)^i (q_2 - 1)^i
    \quad\text{over}\quad l + 2 i = n.
    $$

    ??? cite "Reference"
        Daniely, Frostig & Singer, Toward Deeper Understanding of Neural Networks, NeurIPS
        2016: section 4, for variances of one. The others follow from the expansion of
        $He_n(s x)$ in Hermite polynomials of $x$.
    """

    degree: int = eqx.field(static=True)

    def __check_init__(self):
        check_degree(self, "degree", self.degree)

    @property
    def odd(self):
        return self.degree % 2 == 1

    def __call__(self, x, *, key=None):
        del key
        out, before = jnp.ones_like(x), jnp.zeros_like(x)
        for n in range(self.degree):
            following = (x * out - math.sqrt(n) * before) / math.sqrt(n + 1)
            out, before = following, out
        return out

    def dual(self, q1, k, q2):
        y = (q1 - 1) * (q2 - 1)
        return _moment(self.degree, k, y, 1 / math.factorial(self.degree))


Hermite.__init__.__doc__ = """**Arguments:**

- `degree`: of the polynomial, from 0.
"""


def _to_coefficients(value: ArrayLike | Sequence[Scalar]) -> Float[Array, "..."]:
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jnp.floating):
        return value
    return jnp.asarray(value, float)


class Polynomial(AbstractPointwise):
    r"""$\phi(x) = \sum_n a_n x^n$.

    Its dual is $\sum_l k^l \mu_l(q_1) \mu_l(q_2) / l!$, where $\mu_l(q)$ is the mean of the
    $l$-th derivative, $\sum_i \frac{(2 i + l)!}{2^i i!} a_{2 i + l} q^i$.

    ??? cite "Reference"
        Daniely, Frostig & Singer, Toward Deeper Understanding of Neural Networks, NeurIPS
        2016: section 4.
    """

    coef: Float[Array, " n"] = eqx.field(converter=_to_coefficients, metadata=REAL)

    def __check_init__(self):
        check_number(self, "coef", self.coef)
        if isinstance(self.coef, jax.Array):
            self.coefficients(self.coef.dtype)

    @property
    def odd(self):
        known = isinstance(self.coef, jax.Array) and not is_traced(self.coef)
        return known and not np.any(np.asarray(self.coef)[..., ::2])

    def coefficients(self, dtype: np.dtype) -> list[Float[Array, ""]]:
        if self.coef.ndim != 1 or self.coef.size == 0:
            raise LayerError(
                self,
                "`coef` must be a sequence of numbers, the constant first, but its shape "
                f"is {self.coef.shape}. If this is a stack of networks, take them one by "
                "one, by `equinox.filter_vmap`.",
            )
        check_degree(self, "len(coef) - 1", self.coef.size - 1)
        return list(self.coef.astype(dtype))

    def __call__(self, x, *, key=None):
        del key
        return _horner(self.coefficients(x.dtype), jnp.asarray(x))

    def dual(self, q1, k, q2):
        coef = self.coefficients(k.dtype)
        terms = []
        for l in range(len(coef)):
            # The root of `l!` each, as moments of high degrees are huge.
            mean = [
                _weight(l, i) * coef[2 * i + l] for i in range((len(coef) - l + 1) // 2)
            ]
            terms.append(_horner(mean, q1) * _horner(mean, q2))
        return _horner(terms, k)


Polynomial.__init__.__doc__ = r"""**Arguments:**

- `coef`: $a_0, a_1, \dots$, the constant first. Of shape `(degree + 1,)`, differentiable.
"""


def _weight(l: int, i: int) -> float:
    r"""$(2 i + l)! / (2^i i! \sqrt{l!})$."""
    integer = math.factorial(2 * i + l) // (2**i * math.factorial(i))
    return integer / math.sqrt(math.factorial(l))


def _horner(
    coefficients: list[Float[Array, "..."]], x: Float[Array, "..."]
) -> Float[Array, "..."]:
    """A polynomial, of coefficients with the constant first."""
    out = jnp.zeros_like(x)
    for a in reversed(coefficients):
        out = out * x + a
    return out
