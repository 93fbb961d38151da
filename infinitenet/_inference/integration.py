"""How the flow of a loss is integrated: the solver, its tolerances, progress, events."""

import itertools
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, PyTree

from .._checks import check_not_negative
from .._progress import Progress
from .._tracing import is_traced
from .dynamics import Dynamics, matches, State


# Of explicit steps, above which the flow counts as stiff. Below, implicit steps, each with
# a factorised Jacobian, are not much fewer.
_many_steps = 1e4
# The rate of change times the step of which `Tsit5` is stable, on the real axis.
_stability = 3.0
# Of the state: implicit solvers factorise its Jacobian, a dense matrix of 128 MiB here.
_moderate = 4000


def choose_solver(
    size: int, fastest: Float[Array, ""], duration: Float[Array, ""]
) -> diffrax.AbstractSolver:
    """Implicit where the flow is stiff, or may be as far as is known.

    **Arguments:**

    - `size`: of the state.
    - `fastest`: the largest rate of change per step.
    - `duration`: in steps.
    """
    if size > _moderate:
        return diffrax.Tsit5()
    steps = fastest * duration / _stability
    if is_traced(steps) or not steps < _many_steps:
        return diffrax.Kvaerno5()
    return diffrax.Tsit5()


class _Settled(eqx.Module):
    """The largest increment of Newton's method, or zero if it is that of rounding.

    Diffrax takes an iteration for divergent if increments do not shrink. Near a steady
    state they are all rounding, and steps would be rejected for ever.
    """

    threshold: float

    def __call__(self, x: Any) -> Float[Array, ""]:
        size = optimistix.max_norm(x)
        return jnp.where(size < self.threshold, 0, size)


def tolerance(dtype: Any) -> float:
    """Relative errors that are asked for by default."""
    return 1e-8 if dtype == jnp.float64 else 1e-5


def settle(solver: diffrax.AbstractSolver, dtype: Any) -> diffrax.AbstractSolver:
    """Implicit solvers that tell rounding from divergence, unless they have a norm."""
    if not isinstance(solver, diffrax.AbstractImplicitSolver):
        return solver
    if callable(solver.root_finder.norm):
        return solver
    # In units of the tolerances, which it should be well below.
    threshold = max(1e-4, 10 * float(jnp.finfo(dtype).eps) / tolerance(dtype))
    norm = lambda s: s.root_finder.norm
    return eqx.tree_at(norm, solver, _Settled(threshold))


def default_controller(
    dynamics: Dynamics, t: Float[Array, " times"]
) -> diffrax.AbstractStepSizeController:
    """Errors of 1e-8 of the outputs (in single precision 1e-5), and a step that ends at
    each time, as interpolation between steps is less exact.
    """
    f, y = jax.lax.stop_gradient(dynamics.f_train_0), dynamics.y_train
    square = jnp.mean(jnp.square(f))
    if matches(y, f):
        square = jnp.maximum(square, jnp.mean(jnp.square(jax.lax.stop_gradient(y))))
    rtol = tolerance(f.dtype)
    atol = rtol * jnp.where(square > 0, jnp.sqrt(square), 1)
    controller = diffrax.PIDController(rtol=rtol, atol=atol)
    return diffrax.ClipStepSizeController(controller, step_ts=t)


class Raw(eqx.Module):
    """What the solver found.

    - `states`: at all times. Those it did not reach hold the last one that it did.
    - `reached`: which those are.
    - `last`: the last time that was reached.
    """

    states: PyTree[Float[Array, "times rows columns"]]
    reached: Bool[Array, " times"]
    last: Float[Array, ""]
    steps: Int[Array, ""]
    result: diffrax.RESULTS
    interpolation: diffrax.DenseInterpolation | None


def _field(t: Any, state: State, dynamics: Dynamics) -> State:
    return dynamics.field(t, state)


def _along(x: Array, state: Array) -> Array:
    """A number for each time, with the axes of the states at these."""
    return x.reshape(-1, *(1,) * (state.ndim - 1))


def _shift(dynamics: Dynamics, t: Array, states: Any, by: Array) -> Any:
    """States at times `t + by`, to first order: for the derivatives, as `by` is zero."""
    rates = jax.vmap(dynamics.field)(t, states)
    return jax.tree.map(lambda x, rate: x + _along(by, x) * rate, states, rates)


@eqx.filter_jit
def integrate(
    dynamics: Dynamics,
    state: State,
    t0: Float[Array, ""],
    t: Float[Array, " times"],
    *,
    controller: diffrax.AbstractStepSizeController | None,
    dense: bool,
    **options: Any,
) -> Raw:
    """From `state` at time `t0` to all of `t`, with further `options` for Diffrax."""
    # The derivative by these times is that of the equation: see `_shift`. That of the
    # solver's steps would be as exact only as they are.
    already = _holds_already(options["event"], t0, state, dynamics)
    constant = jnp.where(already, t0, jax.lax.stop_gradient(t))
    if controller is None:
        controller = default_controller(dynamics, constant)
    times, end = diffrax.SubSaveAt(ts=constant), diffrax.SubSaveAt(t1=True)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(_field),
        t0=t0,
        t1=constant[-1],
        y0=state,
        args=dynamics,
        saveat=diffrax.SaveAt(subs=[times, end], dense=dense),
        stepsize_controller=controller,
        throw=False,
        **options,
    )
    times, last = solution.ts  # pyright: ignore
    states, final = solution.ys  # pyright: ignore
    reached = jnp.isfinite(times) & (~already | (t <= t0))
    fill = lambda x, final: jnp.where(_along(reached, x), x, final)
    states = jax.tree.map(fill, states, final)
    states = _shift(dynamics, constant, states, jnp.where(reached, t - constant, 0))
    last = jnp.where(reached[-1], t[-1], last[0])
    done = diffrax.RESULTS.event_occurred
    result = diffrax.RESULTS.where(already, done, solution.result)
    steps = jnp.asarray(solution.stats["num_steps"])
    return Raw(states, reached, last, steps, result, solution.interpolation)


#
# Progress
#


_reporters: dict[int, Progress] = {}
_numbers = itertools.count()
# Of the solver, between reports.
_steps_between = 20


class Meter(diffrax.AbstractProgressMeter):
    """Reports per cent of the times, and of those between them, to a function in
    `_reporters`.

    By its number, which is an array: a function would compile the solver anew.
    """

    number: Int[Array, ""]
    t0: Float[Array, ""]
    t: Float[Array, " times"]

    def init(self) -> Int[Array, ""]:
        return jnp.zeros((), int)

    def step(self, state: Int[Array, ""], progress: Any) -> Int[Array, ""]:
        def tell(number, done):
            report = _reporters.get(int(number))
            if report is not None:
                report(int(100 * float(done)), 100)

        stops = jnp.concatenate([self.t0[None], self.t])
        time = self.t0 + progress * (self.t[-1] - self.t0)
        done = jnp.interp(time, stops, jnp.linspace(0, 1, len(stops)))
        due = (state % _steps_between == 0) | (progress >= 1)
        send = lambda: jax.debug.callback(tell, self.number, done)
        jax.lax.cond(due, send, lambda: None)
        return state + 1

    def close(self, state: Int[Array, ""]) -> None:
        del state


def with_meter(report: Progress, *args: Any, **options: Any) -> Raw:
    """`integrate`, with a meter that reports."""
    number = next(_numbers)
    _reporters[number] = report
    try:
        meter = Meter(jnp.asarray(number), *args[2:])
        out = integrate(*args, progress_meter=meter, **options)
        jax.block_until_ready(out.last)
        jax.effects_barrier()
    finally:
        del _reporters[number]
    return out


#
# Events
#


class _Excess(eqx.Module):
    """How far the loss is above a target, relative to that."""

    target: Array

    def __call__(self, t: Array, y: State, args: Dynamics, **kwargs: Any) -> Array:
        del t, kwargs
        size = jnp.abs(self.target)
        excess = (args.loss(y) - self.target) / jnp.where(size > 0, size, 1)
        # Diffrax has other numbers of the default dtype in its place.
        return excess.astype(self.target.dtype)


def _holds_already(
    event: diffrax.Event | None, t0: Array, state: State, dynamics: Dynamics
) -> Bool[Array, ""]:
    """Whether the loss is low enough at the start: Diffrax looks for changes of sign."""
    if event is None or not isinstance(event.cond_fn, _Excess):
        return jnp.zeros((), bool)
    return jax.lax.stop_gradient(event.cond_fn(t0, state, dynamics) <= 0)


# Of the time of an event, relative: single precision has not much more.
_event_rtol = 1e-6


def loss_below(target: ArrayLike) -> diffrax.Event:
    """Ends a flow once the loss on the training examples is as low as `target`.

    **Arguments:**

    - `target`: a scalar. Not the loss with weight decay.

    **Returns:** an event for [`infinitenet.LossFlow.solve`][]. The time, which is
        `Trajectory.end.t`, is found to 1e-6 of itself.

    **Raises:** `ValueError` if `target` is not a scalar, or NaN.
    """
    target = jnp.asarray(target, float)
    if target.shape:
        raise ValueError(f"`target` must be a scalar, but its shape is {target.shape}.")
    # NaN is all this finds: losses may be negative.
    check_not_negative("target", jnp.abs(target), target.dtype, "It is a loss.")
    finder = optimistix.Bisection(rtol=_event_rtol, atol=_event_rtol)
    return diffrax.Event(_Excess(target), finder, direction=False)


def steady_state(rtol: float | None = None, atol: float | None = None) -> diffrax.Event:
    """Ends a flow once the weights do not move any more: `|dz/dt| < atol + rtol |z|`.

    Time is counted in steps, so this depends on the learning rate.

    **Arguments:**

    - `rtol`, `atol`: relative and absolute tolerances of changes per step, the latter in
        the units of outputs. Those of the solver by default.

    **Returns:** an event for [`infinitenet.LossFlow.solve`][].
    """
    return diffrax.Event(diffrax.steady_state_event(rtol, atol))
