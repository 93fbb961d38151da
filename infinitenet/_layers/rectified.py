"""Nonlinearities of which the duals depend on the angle between inputs."""

import equinox as eqx
import jax
import jax.numpy as jnp

from .._hyperparameters import check_degree
from .._moments import gelu_moments, rectified_moment
from .._pointwise import AbstractPointwise
from .._special import arc_cosine


class Gelu(AbstractPointwise):
    r"""$\phi(x) = x \Phi(x)$, where $\Phi$ is the normal distribution function.

    With $D = (1 + q_1) (1 + q_2) - k^2$ its dual is

    $$
    \frac k4 + \frac1{2\pi} \Bigl(k \arctan \frac k{\sqrt D}
        + \frac{k^2 + q_1 q_2 D}{(1 + q_1) (1 + q_2) \sqrt D}\Bigr).
    $$

    ??? cite "Reference"
        Tsuchida, Pearce, van der Heide, Roosta & Gallagher, Avoiding Kernel Fixed Points,
        AAAI 2021.
    """

    approximate: bool = eqx.field(default=False, static=True)

    def __call__(self, x, *, key=None):
        del key
        return jax.nn.gelu(x, approximate=self.approximate)

    def dual(self, q1, k, q2):
        return gelu_moments(q1, k, q2)[0]


Gelu.__init__.__doc__ = r"""**Arguments:**

- `approximate`: whether finite networks use
    $\frac x2 (1 + \tanh(\sqrt{2 / \pi} (x + 0.044715 x^3)))$, which is faster and differs
    by less than 0.0005. Infinite ones are exact.
"""


class Sign(AbstractPointwise):
    r"""$\phi(x) = \operatorname{sign} x$, which is zero at zero.

    Its dual is $1 - 2 \theta / \pi$ with $\cos\theta = k / \sqrt{q_1 q_2}$. The NTK is zero
    after it, as its derivative is.

    ??? cite "Reference"
        Cho & Saul, Kernel Methods for Deep Learning, NeurIPS 2009: section 2, for the step
        $(1 + \operatorname{sign} x) / 2$.
    """

    @property
    def odd(self):
        return True

    @property
    def flat(self):
        return True

    def __call__(self, x, *, key=None):
        del key
        return jnp.sign(x)

    def dual(self, q1, k, q2):
        return 2 * arc_cosine(q1, k, q2)[1] - 1


class RectifiedMonomial(AbstractPointwise):
    r"""$\phi(x) = x^n$ for $x \geq 0$, and zero for $x < 0$.

    Its dual $K_n$ is $(\pi - \theta) / (2 \pi)$ and $\sqrt{q_1 q_2} (\sin\theta + (\pi -
    \theta) \cos\theta) / (2 \pi)$ for degrees 0 and 1, with $\cos\theta = k / \sqrt{q_1
    q_2}$. Then $K_n = (2 n - 1) k K_{n - 1} + (n - 1)^2 (q_1 q_2 - k^2) K_{n - 2}$. The
    factor of the NTK is $n^2 K_{n - 1}$: it is zero after steps, of degree 0.

    ??? cite "Reference"
        Cho & Saul, Kernel Methods for Deep Learning, NeurIPS 2009: section 2.
    """

    degree: int = eqx.field(static=True)

    def __check_init__(self):
        check_degree(self, "degree", self.degree)

    @property
    def flat(self):
        return self.degree == 0

    def __call__(self, x, *, key=None):
        del key
        if self.degree == 0:
            return jnp.where(x >= 0, jnp.ones_like(x), 0)
        # Not the power of a negative number, which might overflow.
        return jnp.where(x > 0, x, 0) ** self.degree

    def dual(self, q1, k, q2):
        out = rectified_moment(self.degree, q1, k, q2)
        if self.degree > 0:
            return out
        # A step is one at zero, and one half on average elsewhere.
        mean = lambda q: jnp.where(q > 0, 0.5, jnp.ones_like(q))
        return jnp.where((q1 > 0) & (q2 > 0), out, mean(q1) * mean(q2))


RectifiedMonomial.__init__.__doc__ = """**Arguments:**

- `degree`: the power, from 0.
"""
