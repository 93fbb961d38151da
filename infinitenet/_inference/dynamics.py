r"""The equation that [`infinitenet.loss_flow`][] solves.

Training moves a network of constant tangent kernel $K$ as a linear model. In the features
$\Phi = (K / \kappa)^{1/2}$ its weights are the coordinates $z$, of which the outputs are
$f = f_0 + \Phi z$, and the gradient of the loss is $\kappa \Phi^T \partial L / \partial f$.
As $\kappa$ is the mean of the diagonal of $K$, $z$ has the units of outputs.

They are whitened: errors of $z$ reach outputs on training and test inputs at most times
$\sqrt{\lambda_{max} / \kappa}$, however ill-conditioned $K$ is. Those of training outputs
would be multiplied by its inverse on the way to test outputs. Momentum and weight decay are
those of the weights, and the Jacobian of gradient descent is symmetric.
"""

from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PyTree

from .losses import Loss
from .optimisers import AbstractOptimiser
from .spectral import dot, INVERSE_SQRT, spectral_apply, Spectrum, SQRT


# Displacement, and what the optimiser remembers, in units in which both are about as large.
State: TypeAlias = tuple[Float[Array, "rows columns"], PyTree[Float[Array, "rows columns"]]]


class FlowState(eqx.Module):
    """Where a [`infinitenet.Trajectory`][] ends, to go on from there.

    - `t`: the time, in steps.
    - `f_train_0`: the outputs before training, shape `(n, *outputs)`.
    - `z`: the displacement of the weights, whitened, in the units of the outputs.
    - `memory`: what the optimiser remembers: `None`, or momentum, in units of the gradient.
    """

    t: Float[Array, ""]
    f_train_0: Float[Array, "n *outputs"]
    z: Float[Array, "rows columns"]
    memory: PyTree[Float[Array, "rows columns"]]


class Dynamics(eqx.Module):
    """The equation; events have it as `args`.

    - `root`: $\\Phi$.
    - `scale`: $\\kappa$.
    - `unit`: of the optimiser's memory, as in `State`.
    """

    root: Float[Array, "rows rows"]
    scale: Float[Array, ""]
    f_train_0: Float[Array, "n *outputs"]
    y_train: PyTree
    loss_fn: Loss
    optimiser: AbstractOptimiser
    weight_decay: Float[Array, ""]
    unit: Float[Array, ""]

    def outputs(self, state: State) -> Float[Array, "n *outputs"]:
        """Outputs on the training inputs."""
        return self.f_train_0 + self.push(state[0])

    def loss(self, state: State) -> Float[Array, ""]:
        """The loss, without weight decay."""
        return self.loss_fn(self.outputs(state), self.y_train)

    def push(self, z: Float[Array, "rows columns"]) -> Float[Array, "n *outputs"]:
        """How training outputs move with the coordinates: linearly."""
        return dot(self.root, z).reshape(self.f_train_0.shape)

    def gradient(self, z: Float[Array, "rows columns"]) -> Float[Array, "rows columns"]:
        """By the weights, of the loss with weight decay."""
        f = self.f_train_0 + self.push(z)
        slope = jax.grad(self.loss_fn)(f, self.y_train).reshape(z.shape)
        return self.scale * dot(self.root, slope) + self.weight_decay * z

    def field(self, t: Float[Array, ""], state: State) -> State:
        """The derivative of the state by time."""
        z, memory = state
        memory = jax.tree.map(lambda x: self.unit * x, memory)
        change, d_memory = self.optimiser.flow(t, z, memory, self.gradient)
        return change, jax.tree.map(lambda x: x / self.unit, d_memory)

    def start(self, state: FlowState) -> State:
        return state.z, jax.tree.map(lambda x: x / self.unit, state.memory)

    def finish(self, t: Float[Array, ""], state: State) -> FlowState:
        z, memory = state
        memory = jax.tree.map(lambda x: self.unit * x, memory)
        return FlowState(t, self.f_train_0, z, memory)


def pull(
    spectrum: Spectrum, scale: Float[Array, ""], z: Float[Array, "rows columns"]
) -> Float[Array, "rows columns"]:
    r"""What to multiply by $K_{td}$ for the move of test outputs: $(K \kappa)^{-1/2} z$.

    Directions of eigenvalue zero are left out: nothing moves there.
    """
    k, l, u = spectrum.k, spectrum.eigenvalues, spectrum.eigenvectors
    return spectral_apply(k, l, u, None, z, fn=INVERSE_SQRT) / jnp.sqrt(scale)


#
# How fast it moves
#


# Enough for the order of magnitude of the largest eigenvalue.
_iterations = 12
# Times at which schedules are averaged.
_n_rates = 65


def _curvature(dynamics: Dynamics, f: Float[Array, "n *outputs"]) -> Float[Array, ""]:
    """About the largest curvature of the loss by the weights, at outputs `f`."""
    gradient = jax.grad(dynamics.loss_fn)

    def apply(z):
        # Twice in reverse, as losses may have a rule for that alone.
        along = lambda f: jnp.sum(gradient(f, dynamics.y_train) * dynamics.push(z))
        slope = jax.grad(along)(f).reshape(z.shape)
        return dynamics.scale * dot(dynamics.root, slope)

    def iterate(_, carry):
        z, _ = carry
        z = apply(z)
        size = jnp.linalg.norm(z)
        return z / jnp.where(size > 0, size, 1), size

    rows = len(dynamics.root)
    z = jr.normal(jr.key(0), (rows, f.size // rows), f.dtype)
    z, zero = z / jnp.linalg.norm(z), jnp.zeros((), f.dtype)
    return jax.lax.fori_loop(0, _iterations, iterate, (z, zero))[1]


def _fastest(
    dynamics: Dynamics, t0: Float[Array, ""], t1: Float[Array, ""]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The mean learning rate, and about the largest rate of change per step."""
    times = t0 + (t1 - t0) * jnp.linspace(0, 1, _n_rates, dtype=t0.dtype)
    rate = jnp.mean(jax.vmap(dynamics.optimiser.rate)(times))
    y, f_0 = dynamics.y_train, dynamics.f_train_0
    curvature = _curvature(dynamics, f_0)
    if matches(y, f_0):
        # Robust losses are flat far from the targets.
        curvature = jnp.maximum(curvature, _curvature(dynamics, y))
    curvature = curvature + jnp.abs(dynamics.weight_decay)
    return rate, dynamics.optimiser.fastest(jnp.abs(rate) * curvature)


def matches(y: Any, f: Array) -> bool:
    """Whether targets are an array like the outputs."""
    return isinstance(y, jax.Array) and y.shape == f.shape and y.dtype == f.dtype


@eqx.filter_jit
def prepare(
    spectrum: Spectrum,
    f_train_0: Float[Array, "n *outputs"],
    y_train: PyTree,
    loss: Loss,
    optimiser: AbstractOptimiser,
    weight_decay: Float[Array, ""],
    t0: Float[Array, ""],
    t1: Float[Array, ""],
) -> tuple[Dynamics, Float[Array, ""]]:
    """The equation, and about the largest rate of change per step."""
    # Results are the same for all units of length, and so are their derivatives.
    scale = jax.lax.stop_gradient(jnp.mean(jnp.diagonal(spectrum.k)))
    scale = jnp.where(scale > 0, scale, 1)
    k, l, u = spectrum.k, spectrum.eigenvalues, spectrum.eigenvectors
    identity = jnp.eye(len(k), dtype=k.dtype)
    root = spectral_apply(k, l, u, None, identity, fn=SQRT) / jnp.sqrt(scale)
    one = jnp.ones((), k.dtype)
    out = Dynamics(root, scale, f_train_0, y_train, loss, optimiser, weight_decay, one)
    constant = jax.tree.map(
        lambda x: jax.lax.stop_gradient(x) if eqx.is_inexact_array(x) else x, out
    )
    rate, fastest = _fastest(constant, jax.lax.stop_gradient(t0), jax.lax.stop_gradient(t1))
    # So that memory in these units is as large as the displacement: the displacement
    # changes by its own size at the fastest rate.
    unit = fastest / jnp.where(rate > 0, rate, 1)
    unit = jnp.where((rate > 0) & (unit > 0) & (unit < jnp.inf), unit, 1)
    return eqx.tree_at(lambda d: d.unit, out, unit), fastest
