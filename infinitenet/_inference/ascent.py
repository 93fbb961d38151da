"""Objectives of hyperparameters, and steps of optimisers on them."""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix as optx
from jaxtyping import Array, Bool, Float, PyTree

from .._custom_types import Arrays
from .._kernel import Demand
from .._layer import AbstractLayer
from .._matrices import Gram
from .._traced_gram import traced_gram
from .cholesky import factorise
from .gp import is_lost, max_variance, Posterior, solve
from .hyperparameters import Learnt
from .infinite_ensemble import AbstractTrained, LastLayer
from .spectral import unit_rounding


def unchecked_kernel(
    net: AbstractLayer, x: Arrays, trained: AbstractTrained, memory: int | None
) -> Float[Array, "n n *positions"]:
    """As by `gram`, but a kernel that overflows is infinite, and no error.

    Searches along a line pass by such places, and come back.
    """
    is_nngp = isinstance(trained, LastLayer)
    nngp, ntk = traced_gram(net, x, None, not is_nngp, Demand(), memory)
    gram = Gram(nngp.array, None if ntk is None else ntk.array)
    return trained.tangent_kernel("k", gram)[1]  # pyright: ignore[reportReturnType]


class Record(NamedTuple):
    """What is known of a vector of parameters.

    - `z`: the parameters.
    - `value`: of the objective; minus infinity where there is no posterior, and NaN where
        nothing was evaluated.
    - `diag_reg`: as for `condition`.
    """

    z: Float[Array, " parameters"]
    value: Float[Array, ""]
    diag_reg: Float[Array, "..."]


class Problem(eqx.Module):
    """An objective, as a function of a vector of real numbers.

    The last of them is the logarithm of `diag_reg`, less a small floor, if it is learnt.
    Below the floor rounding would decide on the objective, and even on whether there is a
    Cholesky factor.
    """

    learnt: Learnt
    x: Arrays
    y: Float[Array, "n *outputs"]
    fixed_diag_reg: Float[Array, "..."] | None
    objective: Callable[[Posterior], Array]
    trained: AbstractTrained
    absolute: bool = eqx.field(static=True)
    memory: int | None = eqx.field(static=True)

    @staticmethod
    def floor_of(n: int, dtype: np.dtype) -> float:
        """In units of the mean of the kernel's diagonal."""
        # Rounding moves eigenvalues by about `sqrt(n)` times that of an entry. With a
        # hundred times as much noise it is a hundredth of the smallest of them.
        return 8 * unit_rounding(1, dtype) * n**0.5

    @property
    def _floor(self) -> float:
        return Problem.floor_of(len(self.y), self.y.dtype)

    def start(self, diag_reg: Float[Array, "..."]) -> Float[Array, " parameters"]:
        """The parameters of the network as it is, and of `diag_reg` if it is learnt."""
        z = self.learnt.to_vector(self.y.dtype)
        if self.fixed_diag_reg is not None:
            return z
        # In units of the kernel, the floor is too small to be seen.
        floor = 0.0 if self.absolute else self._floor
        return jnp.concatenate([z, jnp.log(diag_reg - floor)[None]])

    def _diag_reg(
        self, z: Float[Array, " parameters"], mean: Float[Array, ""]
    ) -> Float[Array, "..."]:
        if self.fixed_diag_reg is not None:
            return self.fixed_diag_reg
        return jnp.exp(z[-1]) + self._floor * (mean if self.absolute else 1)

    def evaluate(
        self, z: Float[Array, " parameters"]
    ) -> tuple[Float[Array, ""], Float[Array, "..."]]:
        """The objective, and `diag_reg`."""
        net = self.learnt.from_vector(z)
        k = unchecked_kernel(net, self.x, self.trained, self.memory)
        mean = jnp.mean(jnp.diagonal(k))
        diag_reg = self._diag_reg(z, mean)
        noise = diag_reg if self.absolute else diag_reg * mean
        factor = factorise(k, noise)
        # As for `condition`, which raises otherwise.
        ok = ~is_lost(factor, max_variance(k, noise))
        factor = jnp.where(ok, factor, jnp.eye(len(k), dtype=k.dtype))
        posterior = Posterior(self.y, factor, solve(factor, self.y), noise)
        value = self.objective(posterior)
        if jnp.shape(value):
            raise ValueError(
                "`objective` must return a scalar, but it returned an array of shape "
                f"{jnp.shape(value)}. Take the sum, or the mean, of all outputs."
            )
        return jnp.where(ok, value, -jnp.inf), diag_reg

    def loss(self, z: Float[Array, " parameters"]) -> tuple[Array, tuple[Array, Array]]:
        value, diag_reg = self.evaluate(z)
        # Per target, so that steps and tolerances are of the same size for all data.
        return -value / self.y.size, (value, diag_reg)


@eqx.filter_custom_vjp
def loss(
    z: Float[Array, " parameters"], problem: Problem
) -> tuple[Float[Array, ""], tuple[Float[Array, ""], Float[Array, "..."]]]:
    """Minus the objective per target; and the objective, and `diag_reg`.

    Where one of it or of its derivatives is not finite, it is infinite, and its derivatives
    are zero: searches along a line turn back there.
    """
    return problem.loss(z)


@loss.def_fwd
def _loss_fwd(perturbed, z, problem):
    del perturbed
    (value, aux), grad = jax.value_and_grad(problem.loss, has_aux=True)(z)
    objective, diag_reg = aux
    ok = jnp.isfinite(value) & jnp.all(jnp.isfinite(grad))
    objective = jnp.where(ok, objective, -jnp.inf)
    out = jnp.where(ok, value, jnp.inf), (objective, diag_reg)
    return out, jnp.where(ok, grad, 0)


@loss.def_bwd
def _loss_bwd(grad, grad_out, perturbed, z, problem):
    del perturbed, z, problem
    return grad_out[0] * grad


@eqx.filter_jit
def evaluate(problem: Problem, z: Float[Array, " parameters"]) -> Record:
    """The record of these parameters."""
    return Record(z, *loss(z, problem)[1])


class AbstractAscent(eqx.Module):
    """An optimiser."""

    @abc.abstractmethod
    def init(self, problem: Problem, z: Float[Array, " parameters"]) -> PyTree:
        """Its state."""

    @abc.abstractmethod
    def advance(
        self, problem: Problem, z: Float[Array, " parameters"], state: PyTree
    ) -> tuple[Float[Array, " parameters"], PyTree, Record, Bool[Array, ""]]:
        """The next parameters and state, a record, and whether the optimiser is done.

        The record is about the last parameters of which the objective is known; if there
        are none yet, its value is NaN.
        """


class OptaxAscent(AbstractAscent):
    """A step is one of Optax. Records are about the parameters before it."""

    optimiser: optax.GradientTransformationExtraArgs

    def init(self, problem, z):
        del problem
        return self.optimiser.init(z)

    def advance(self, problem, z, state):
        fn = lambda z: loss(z, problem)
        (value, aux), grad = jax.value_and_grad(fn, has_aux=True)(z)
        # Optimisers that search along a line need to know the function.
        change, state = self.optimiser.update(
            grad, state, z, value=value, grad=grad, value_fn=lambda z: fn(z)[0]
        )
        new: Any = optax.apply_updates(z, change)
        return new, state, Record(z, *aux), jnp.all(grad == 0)


class OptimistixAscent(AbstractAscent):
    """A step is one of Optimistix, which evaluates the objective once."""

    minimiser: optx.AbstractMinimiser

    def init(self, problem, z):
        f, aux = eqx.filter_eval_shape(_loss, z, problem)
        return self.minimiser.init(_loss, z, problem, {}, f, aux, frozenset())

    def advance(self, problem, z, state):
        rest = (problem, {})
        z, state, aux = self.minimiser.step(_loss, z, *rest, state, frozenset())
        done, _ = self.minimiser.terminate(_loss, z, *rest, state, frozenset())
        z_of_aux, value, diag_reg, is_known = aux
        # Zeros, where the step evaluated nothing: that of Nelder and Mead begins so.
        value = jnp.where(is_known > 0, value, jnp.nan)
        return z, state, Record(z_of_aux, value, diag_reg), done


def _loss(z: Array, problem: Problem) -> tuple[Array, tuple[Array, ...]]:
    """With the parameters, as what Optimistix returns may be about those before them, and
    with a one, as it may be about none."""
    value, aux = loss(z, problem)
    return value, (z, *aux, jnp.ones_like(value))


Optimiser: TypeAlias = optax.GradientTransformation | optx.AbstractMinimiser


def to_ascent(optimiser: Optimiser) -> AbstractAscent:
    """**Raises:** `ValueError` for what is no optimiser."""
    if isinstance(optimiser, optx.AbstractMinimiser):
        return OptimistixAscent(optimiser)
    if isinstance(optimiser, optax.GradientTransformation):
        return OptaxAscent(optax.with_extra_args_support(optimiser))
    raise ValueError(
        "`optimiser` must be one of Optax, or a minimiser of Optimistix, but it is "
        f"{optimiser!r}."
    )
