"""What the flow of a loss returns."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, PyTree

from .._checks import check_finite, check_not_negative, check_shape, check_targets, guard
from .._tracing import is_traced
from .dynamics import Dynamics, FlowState, pull
from .joint_kernel import flatten_cross_kernel
from .spectral import dot, Spectrum


class Source(eqx.Module):
    """What trajectories at any times are made from."""

    spectrum: Spectrum
    dynamics: Dynamics
    joint: tuple[int, ...] | None = eqx.field(static=True)
    t0: Float[Array, ""]
    end: FlowState
    result: diffrax.RESULTS
    steps: Int[Array, ""]
    solver: str = eqx.field(static=True)
    interpolation: diffrax.DenseInterpolation | None


class Trajectory(eqx.Module):
    """The training of a network by the flow of a loss, at some times. Returned by
    [`infinitenet.LossFlow.solve`][].

    Times that the solver did not reach hold the last state that it did: see `reached`.

    - `t`: the times, in steps, shape `(*times,)`.
    - `train`: outputs on the training inputs, shape `(*times, n, *outputs)`.
    - `train_velocity`: their derivatives by time, per step, likewise.
    - `loss`: on the training examples, without weight decay, shape `(*times,)`.
    - `reached`: whether the solver got to each time, shape `(*times,)`. Not if an event
        came first, or if it failed.
    """

    t: Float[Array, "*times"]
    train: Float[Array, " *times_n_outputs"]
    train_velocity: Float[Array, " *times_n_outputs"]
    loss: Float[Array, "*times"]
    reached: Bool[Array, "*times"]
    # Displacements of the weights, for test outputs.
    _z: Float[Array, "times rows columns"]
    _z_velocity: Float[Array, "times rows columns"]
    _source: Source

    @property
    def end(self) -> FlowState:
        """The last state, for `solve(t, start=end)` to go on from. `end.t` is its time."""
        return self._source.end

    @property
    def result(self) -> diffrax.RESULTS:
        """How the solver ended."""
        return self._source.result

    @property
    def steps(self) -> Int[Array, ""]:
        """How many steps the solver took, rejected ones included."""
        return self._source.steps

    def _on_test(
        self, z: Float[Array, "times rows columns"], k_test_train: ArrayLike
    ) -> Float[Array, "..."]:
        """How far test outputs are moved by displacements, shape `(*times, n_test,
        *outputs)`.
        """
        source = self._source
        n, *outputs = self.end.f_train_0.shape
        k_td = flatten_cross_kernel("k_test_train", k_test_train, n, source.joint, z.dtype)
        flat = jnp.moveaxis(z, 0, 1).reshape(z.shape[1], -1)
        moved = dot(k_td, pull(source.spectrum, source.dynamics.scale, flat))
        moved = jnp.moveaxis(moved.reshape(len(k_td), len(z), -1), 1, 0)
        return moved.reshape(*self.t.shape, -1, *outputs)

    def test(
        self, k_test_train: ArrayLike, f_test_0: ArrayLike | None = None
    ) -> Float[Array, "..."]:
        r"""Outputs on test inputs, of which the flow is
        $\dot f^* = -K_{td} \, \partial L / \partial f$.

        **Arguments:**

        - `k_test_train`: the kernel, shape `(n_test, n)`; or `(n_test, n, *outputs,
            *outputs)`, if that of the training inputs was one over outputs too.
        - `f_test_0`: outputs on the test inputs before training, shape
            `(n_test, *outputs)`. `None` for zero.

        **Returns:** shape `(*times, n_test, *outputs)`.

        **Raises:** `ValueError` if an argument has a wrong shape or dtype, or entries that
            are not finite.
        """
        moved = self._on_test(self._z, k_test_train)
        if f_test_0 is None:
            return moved
        shape = moved.shape[self.t.ndim :]
        f_0 = check_targets("f_test_0", f_test_0, shape[0], moved.dtype)
        f_0 = check_shape("f_test_0", f_0, shape, "with the outputs on training inputs")
        return f_0.reshape((1,) * self.t.ndim + f_0.shape) + moved

    def test_velocity(self, k_test_train: ArrayLike) -> Float[Array, "..."]:
        """Derivatives by time of the outputs on test inputs, per step.

        **Arguments:**

        - `k_test_train`: as for `test`.

        **Returns:** shape `(*times, n_test, *outputs)`.

        **Raises:** `ValueError` as `test`.
        """
        return self._on_test(self._z_velocity, k_test_train)

    def evaluate(self, t: ArrayLike) -> "Trajectory":
        """The same training at other times, by interpolation between the solver's steps.

        That is less exact than the times that were asked for.

        **Arguments:**

        - `t`: times of any order, a scalar or of shape `(times,)`, from where the solver
            started to where it ended, `end.t`.

        **Returns:** a trajectory of these times, with the same `end`.

        **Raises:** `ValueError` if the steps were not kept, or if the solver did not reach
            some of these times (`RuntimeError` under `jax.jit`).
        """
        interpolation = self._source.interpolation
        if interpolation is None:
            raise ValueError(
                "The solver's steps were not kept. Give "
                "`saveat=diffrax.SaveAt(dense=True)` to `solve`."
            )
        t = check_not_negative("t", t, self.t.dtype, "It is counted in steps.")
        t = check_finite("t", t, "Nothing is known of infinite times.")
        if t.ndim > 1:
            raise ValueError(f"`t` must be a scalar or a vector, not of shape {t.shape}.")
        flat = _check_within(jnp.ravel(t), self._source.t0, self.end.t)
        states = jax.vmap(interpolation.evaluate)(flat)
        return make_trajectory(self._source, t, states, jnp.ones(t.shape, bool))

    def __repr__(self) -> str:
        solver, steps = self._source.solver, self.steps
        if is_traced((self.t, steps)) or steps.ndim:
            return f"<Trajectory of shape {self.t.shape}, by {solver}>"
        results, n = diffrax.RESULTS, self.reached.size
        if self.result == results.successful:
            ended = "successful"
        elif self.result == results.event_occurred:
            ended = "ended by an event"
        else:
            ended = str(results[self.result])
        out = f"<Trajectory of {n} times up to t = {float(self.end.t):.6g}"
        missing = n - int(jnp.sum(self.reached))
        if missing:
            out += f", {missing} of them not reached, which hold the state at that time"
        losses = jnp.ravel(self.loss)
        return (
            f"{out}: loss {float(losses[0]):.3g} to {float(losses[-1]):.3g}; {ended}, by "
            f"{solver} in {int(steps)} steps>"
        )


def _check_within(
    t: Float[Array, " times"], first: Float[Array, ""], last: Float[Array, ""]
) -> Float[Array, " times"]:
    text = "`t` is not within the times that the solver reached"
    # Together, so that all of it is known, or none.
    both = guard(
        jnp.concatenate([jnp.stack([first, last]), t]),
        lambda x: jnp.any((x[2:] < x[0]) | (x[2:] > x[1])),
        lambda x: (
            f"{text}, from {x[0]:.6g} to {x[1]:.6g}: it has {jnp.min(x[2:]):.6g} and "
            f"{jnp.max(x[2:]):.6g}. Solve for longer times."
        ),
        f"{text}.",
    )
    return both[2:]


@eqx.filter_jit
def make_trajectory(
    source: Source,
    t: Float[Array, "*times"],
    states: PyTree[Float[Array, "..."]],
    reached: Bool[Array, "*times"],
) -> Trajectory:
    """Of the states at all times, `ravel`ed."""
    dynamics = source.dynamics

    def observe(t, state):
        velocity = dynamics.field(t, state)[0]
        outputs, moves = dynamics.outputs(state), dynamics.push(velocity)
        return outputs, moves, dynamics.loss(state), velocity

    f, f_velocity, loss, z_velocity = jax.vmap(observe)(jnp.ravel(t), states)
    f, f_velocity, loss = (x.reshape(*t.shape, *x.shape[1:]) for x in (f, f_velocity, loss))
    return Trajectory(t, f, f_velocity, loss, reached, states[0], z_velocity, source)
