r"""Optimisers as differential equations, in the limit of small learning rates.

They act on displacements $z$ of the weights from their initial values. Time is counted in
steps, so that with the learning rate `1.0` it is learning rate times number of steps.
"""

import abc
from collections.abc import Callable
from typing import TypeAlias

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from .scalars import to_scalar


# A function of the time, such as those of Optax, which take the number of the step.
Schedule: TypeAlias = Callable[[Array], ArrayLike]


def _to_rate(x: ArrayLike | Schedule) -> Array | np.ndarray | Schedule:
    if callable(x):
        return x
    ok = lambda x: (x > 0) & (x < np.inf)
    return to_scalar("learning_rate", x, ok, "must be positive and finite")


def _to_momentum(x: ArrayLike) -> Array | np.ndarray:
    ok = lambda x: (x >= 0) & (x < 1)
    return to_scalar("momentum", x, ok, "must be at least 0 and below 1")


def _to_optional_momentum(x: ArrayLike | None) -> Array | np.ndarray | None:
    return None if x is None else _to_momentum(x)


class AbstractOptimiser(eqx.Module):
    """What gradient descent with small steps tends to. Subclass it for others."""

    @abc.abstractmethod
    def init(self, z: Float[Array, "..."]) -> PyTree[Float[Array, "..."]]:
        """What the optimiser remembers, in units of the gradient; at rest.

        **Arguments:**

        - `z`: the displacement.

        **Returns:** arrays shaped as `z`, or `None` if it remembers nothing.
        """

    @abc.abstractmethod
    def flow(
        self,
        t: Float[Array, ""],
        z: Float[Array, "..."],
        memory: PyTree[Float[Array, "..."]],
        gradient: Callable[[Array], Array],
    ) -> tuple[Float[Array, "..."], PyTree[Float[Array, "..."]]]:
        """How fast the displacement and the memory change, per step.

        **Arguments:**

        - `t`: time, in steps.
        - `z`, `memory`: at that time.
        - `gradient`: of the loss, as a function of the displacement.

        **Returns:** the derivatives of `z` and of `memory`.
        """

    @abc.abstractmethod
    def fastest(self, rate: Float[Array, ""]) -> Float[Array, ""]:
        """A bound on the rates of change per step of solutions near a minimum.

        **Arguments:**

        - `rate`: learning rate times the largest curvature of the loss.
        """

    @abc.abstractmethod
    def rate(self, t: Float[Array, ""]) -> Float[Array, ""]:
        """The learning rate at time `t`, in steps."""


def _rate_at(rate: Array | np.ndarray | Schedule, t: Float[Array, ""]) -> Float[Array, ""]:
    return jnp.asarray(rate(t) if callable(rate) else rate, t.dtype)


class GradientDescent(AbstractOptimiser):
    r"""$\dot z = -\eta(t) \nabla L(z)$: gradient flow.

    Of gradient descent the error is of order $\eta$.

    **Arguments:**

    - `learning_rate`: $\eta$, or a function of the time in steps.
    """

    learning_rate: Array | np.ndarray | Schedule = eqx.field(
        default=1.0, converter=_to_rate
    )

    def init(self, z):
        del z

    def flow(self, t, z, memory, gradient):
        del memory
        return -self.rate(t) * gradient(z), None

    def rate(self, t):
        return _rate_at(self.learning_rate, t)

    def fastest(self, rate):
        return rate


class HeavyBall(AbstractOptimiser):
    r"""$\ddot z = -(1 - m) \dot z - \eta \nabla L(z)$: the momentum of Polyak (1964).

    For schedules it is, as the rate multiplies the momentum in Optax:
    $\dot z = -\eta(t) p$ and $\dot p = \nabla L(z) - (1 - m) p$.

    Of `optax.sgd(learning_rate, momentum)` the error is of order $\sqrt\eta$, if $m$
    approaches 1 with friction $(1 - m) / \sqrt\eta$ held fixed.

    ??? cite "Reference"
        ```bibtex
        @article{polyak1964some,
            title={Some methods of speeding up the convergence of iteration methods},
            author={Boris T. Polyak},
            journal={USSR Computational Mathematics and Mathematical Physics},
            year={1964},
        }
        ```

    **Arguments:**

    - `learning_rate`: $\eta$, or a function of the time in steps.
    - `momentum`: $m$, the share of the last step in the next one.
    """

    learning_rate: Array | np.ndarray | Schedule = eqx.field(converter=_to_rate)
    momentum: Array | np.ndarray = eqx.field(converter=_to_momentum)

    def init(self, z):
        return jnp.zeros_like(z)

    def flow(self, t, z, memory, gradient):
        friction = 1 - jnp.asarray(self.momentum, z.dtype)
        return -self.rate(t) * memory, gradient(z) - friction * memory

    def rate(self, t):
        return _rate_at(self.learning_rate, t)

    def fastest(self, rate):
        # The larger root of x^2 - (1 - m) x = rate.
        return 1 - jnp.asarray(self.momentum, rate.dtype) + jnp.sqrt(rate)


class Nesterov(AbstractOptimiser):
    r"""Nesterov's momentum: the gradient is that at $z + m \dot z$, further ahead.

    With a constant $m$: $\ddot z = -(1 - m) \dot z - \eta \nabla L(z + m \dot z)$. To
    leading order that is `optax.sgd(learning_rate, momentum, nesterov=True)`; the error
    is of order $\sqrt\eta$, if friction $(1 - m) / \sqrt\eta$ is held fixed.

    Without, $m = (k - 1) / (k + 2)$ in the $k$-th step, as Nesterov proposed for convex
    losses. The limit is $\ddot z + \frac 3 t \dot z + \eta \nabla L(z) = 0$: equation (3)
    of Su et al. (2016). It starts at rest, by $\ddot z = -\eta \nabla L / 4$.

    Schedules act as in [`infinitenet.HeavyBall`][].

    ??? cite "Reference"
        ```bibtex
        @article{su2016differential,
            title={A Differential Equation for Modeling Nesterov's Accelerated Gradient
                   Method: Theory and Insights},
            author={Weijie Su and Stephen Boyd and Emmanuel J. Cand{\`e}s},
            journal={Journal of Machine Learning Research},
            year={2016},
        }
        ```

    **Arguments:**

    - `learning_rate`: $\eta$, or a function of the time in steps.
    - `momentum`: $m$; or `None` for one that increases with time.
    """

    learning_rate: Array | np.ndarray | Schedule = eqx.field(converter=_to_rate)
    momentum: Array | np.ndarray | None = eqx.field(
        default=None, converter=_to_optional_momentum
    )

    def init(self, z):
        return jnp.zeros_like(z)

    def flow(self, t, z, memory, gradient):
        velocity = -self.rate(t) * memory
        if self.momentum is None:
            # At the start, `3 memory / t` tends to three times the change of `memory`.
            started = t > 0
            friction = jnp.where(started, 3 / jnp.where(started, t, 1), 0)
            share = jnp.where(started, 1, 0.25)
            return velocity, share * gradient(z) - friction * memory
        m = jnp.asarray(self.momentum, z.dtype)
        return velocity, gradient(z + m * velocity) - (1 - m) * memory

    def rate(self, t):
        return _rate_at(self.learning_rate, t)

    def fastest(self, rate):
        if self.momentum is None:
            return jnp.sqrt(rate)
        m = jnp.asarray(self.momentum, rate.dtype)
        return 1 - m + m * rate + jnp.sqrt(rate)
