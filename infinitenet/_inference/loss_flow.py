"""Training by any loss and optimiser, in the limit of small learning rates."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from .._checks import check_finite, check_not_negative, check_shape, check_targets, guard
from .._progress import Progress, reporting
from .._tracing import is_traced
from .dynamics import Dynamics, FlowState, prepare, State
from .flow import check_weight_decay
from .integration import choose_solver, integrate, Raw, settle, with_meter
from .joint_kernel import decompose_kernel
from .losses import check_loss, check_loss_targets, Loss
from .optimisers import AbstractOptimiser, GradientDescent
from .spectral import Spectrum
from .trajectory import make_trajectory, Source, Trajectory


class LossFlow(eqx.Module):
    """Training of a network of given kernel by any loss, made by
    [`infinitenet.loss_flow`][].

    - `spectrum`: the regularised kernel as a matrix, and its eigendecomposition.
    - `y_train`: the targets, which the loss takes.
    - `loss`: a function of all outputs and targets, which returns a scalar.
    - `optimiser`: how the weights move.
    - `weight_decay`: a scalar.
    - `n`: the number of examples.
    - `joint`: the shape of the outputs, if the kernel is one over these too.
    """

    spectrum: Spectrum
    y_train: PyTree
    loss: Loss
    optimiser: AbstractOptimiser
    weight_decay: Float[Array, ""]
    n: int = eqx.field(static=True)
    joint: tuple[int, ...] | None = eqx.field(static=True)

    def solve(
        self,
        t: ArrayLike,
        f_train_0: ArrayLike | None = None,
        *,
        start: FlowState | None = None,
        solver: diffrax.AbstractSolver | None = None,
        stepsize_controller: diffrax.AbstractStepSizeController | None = None,
        dt0: ArrayLike | None = None,
        saveat: diffrax.SaveAt | None = None,
        event: diffrax.Event | None = None,
        max_steps: int = 16384,
        adjoint: diffrax.AbstractAdjoint | None = None,
        progress: Progress | bool = True,
        throw: bool = True,
    ) -> Trajectory:
        """Solves the equation, by Diffrax.

        **Arguments:**

        - `t`: times in steps: a scalar, or increasing ones of shape `(times,)`.
        - `f_train_0`: outputs before training, shape `(n, *outputs)`. `None` for zero, in
            the shape of `y_train`; or that of `start`.
        - `start`: the `end` of another trajectory, to go on from there: at its time, with
            its displacement and momentum. Gradient descent has no use for momentum, which
            is then left out, and without it momentum starts from zero.
        - `solver`: of Diffrax. By default `Kvaerno5`, which is implicit, if the flow is
            stiff or if its values are not known (under `jax.jit`); and `Tsit5` if about
            10 000 explicit steps are enough, or if there are more than 4000 outputs, for
            which implicit solvers would factorise a large Jacobian.
        - `stepsize_controller`: of Diffrax. By default errors are controlled to 1e-8 of
            each output and of the root mean square of outputs and targets (in single
            precision 1e-5), with steps that end at each time.
        - `dt0`: the first step. `None` to estimate it.
        - `saveat`: `diffrax.SaveAt(dense=True)` to keep all steps, for
            [`infinitenet.Trajectory.evaluate`][]. They take memory of `max_steps`, by as
            many numbers as there are outputs, times the stages of the solver.
        - `event`: when to stop early: [`infinitenet.loss_below`][],
            [`infinitenet.steady_state`][], or any of Diffrax. Its function gets the state
            as `y` and the equation as `args`: `args.outputs(y)` are training outputs, and
            `args.loss(y)` is the loss.
        - `max_steps`: at most how many steps to take.
        - `adjoint`: how to differentiate, of Diffrax. By default in reverse; for forward
            mode give `diffrax.ForwardMode()`.
        - `progress`: as for [`infinitenet.gram`][], in per cent of the time. Nothing is
            reported under `jax.jit`.
        - `throw`: whether it is an error if the solver does not reach all times, other than
            by an event.

        **Returns:** A [`infinitenet.Trajectory`][].

        **Raises:** `ValueError` if an argument has a wrong shape or dtype or is not finite;
            if times are negative or do not increase; if the loss is no finite number at the
            start; and if the solver fails (`RuntimeError` under `jax.jit`).
        """
        t0 = jnp.zeros((), self.spectrum.k.dtype) if start is None else start.t
        t = _check_schedule(self.optimiser, _check_times(t, t0), t0)
        dynamics, state, default = self._prepare(f_train_0, start, t0, jnp.ravel(t)[-1])
        solver = settle(default if solver is None else solver, t.dtype)
        adjoint = diffrax.RecursiveCheckpointAdjoint() if adjoint is None else adjoint
        options = {
            "solver": solver,
            "controller": stepsize_controller,
            "dt0": _check_first_step(dt0, stepsize_controller, t.dtype),
            "dense": _check_saveat(saveat),
            "event": event,
            "max_steps": max_steps,
            "adjoint": adjoint,
        }
        raw = _run((dynamics, state, t0, jnp.ravel(t)), options, progress)
        raw = _check_result(raw, max_steps) if throw else raw
        end = dynamics.finish(raw.last, jax.tree.map(lambda x: x[-1], raw.states))
        how = (raw.result, raw.steps, type(solver).__name__, raw.interpolation)
        source = Source(self.spectrum, dynamics, self.joint, t0, end, *how)
        return make_trajectory(source, t, raw.states, raw.reached.reshape(t.shape))

    def _prepare(
        self, f_0: ArrayLike | None, start: FlowState | None, t0: Array, t1: Array
    ) -> tuple[Dynamics, State, diffrax.AbstractSolver]:
        """The equation, the state to start from, and a solver."""
        f_0 = self._initial(f_0, start)
        dynamics, fastest = prepare(
            self.spectrum,
            f_0,
            self.y_train,
            self.loss,
            self.optimiser,
            self.weight_decay,
            t0,
            t1,
        )
        state = self._first(f_0, start, dynamics)
        dynamics = _check_start(dynamics, state)
        return dynamics, state, choose_solver(f_0.size, fastest, t1 - t0)

    def _initial(
        self, f_0: ArrayLike | None, start: FlowState | None
    ) -> Float[Array, "n *outputs"]:
        dtype = self.spectrum.k.dtype
        if start is not None:
            if f_0 is not None:
                raise ValueError("`f_train_0` is part of `start`: give only one of them.")
            f_0 = start.f_train_0
        if f_0 is None and self.joint is not None:
            f_0 = jnp.zeros((self.n, *self.joint), dtype)
        if f_0 is None:
            f_0 = _zeros_like(self.y_train, self.n, dtype)
        f_0 = check_targets("f_train_0", f_0, self.n, dtype)
        if self.joint is not None:
            shape = (self.n, *self.joint)
            f_0 = check_shape("f_train_0", f_0, shape, "as the kernel's outputs")
        check_loss(self.loss, jax.ShapeDtypeStruct(f_0.shape, f_0.dtype), self.y_train)
        return f_0

    def _first(self, f_0: Array, start: FlowState | None, dynamics: Dynamics) -> State:
        """The state to start from."""
        rows = len(self.spectrum.k)
        z = jnp.zeros((rows, f_0.size // rows), f_0.dtype)
        memory = self.optimiser.init(z)
        if start is None:
            return dynamics.start(FlowState(jnp.zeros(()), f_0, z, memory))
        if start.z.shape != z.shape or start.z.dtype != z.dtype:
            raise ValueError(
                f"`start` must be of a flow on the same kernel, with weights of shape "
                f"{z.shape} and {z.dtype}, but they are {start.z.shape}, {start.z.dtype}."
            )
        same = jax.tree.structure(memory) == jax.tree.structure(start.memory)
        memory = start.memory if same else memory
        return dynamics.start(FlowState(start.t, f_0, start.z, memory))


_gradient_descent = GradientDescent()


def loss_flow(
    k_train_train: ArrayLike,
    y_train: PyTree,
    loss: Loss,
    *,
    optimiser: AbstractOptimiser = _gradient_descent,
    weight_decay: ArrayLike = 0.0,
    diag_reg: ArrayLike = 0.0,
    absolute: bool = False,
) -> LossFlow:
    r"""Gradient flow on any loss, $\dot f = -\eta K \, \partial L / \partial f$, or the
    limit of other optimisers.

    With the NTK that is the training of an infinitely wide network from given initial
    outputs, equations (4) to (6) of Lee et al. (2019); and with the empirical NTK of a
    finite network, the training of its linearisation by weights. Kernels may be singular:
    in directions of eigenvalue zero nothing moves.

    For the mean squared error without momentum, [`infinitenet.gradient_flow`][] has it in
    closed form.

    !!! example

        ```python
        y_train = jax.nn.one_hot(labels, 10)
        flow = inn.loss_flow(k_train_train.ntk, y_train, inn.softmax_cross_entropy)
        trajectory = flow.solve(jnp.array([1.0, 10.0, 100.0]))
        trajectory.loss  # of shape (3,)
        logits = trajectory.test(k_test_train.ntk)
        ```

    ??? cite "Reference"
        ```bibtex
        @inproceedings{lee2019wide,
            title={Wide Neural Networks of Any Depth Evolve as Linear Models},
            author={Jaehoon Lee and Lechao Xiao and Samuel S. Schoenholz and Yasaman Bahri
                    and Roman Novak and Jascha Sohl-Dickstein and Jeffrey Pennington},
            booktitle={Advances in Neural Information Processing Systems},
            year={2019},
        }
        ```

    **Arguments:**

    - `k_train_train`: the kernel of the training inputs, shape `(n, n)`, which all outputs
        share; or one over examples and outputs, such as the NTK of a finite network, shape
        `(n, n, *outputs, *outputs)`.
    - `y_train`: the targets, of the shape `(n, *outputs)` of the outputs; for losses of
        other arguments, what these take.
    - `loss`: a function of all outputs and targets that returns a scalar, as for
        [`infinitenet.train_ensemble`][].
    - `optimiser`: [`infinitenet.GradientDescent`][], [`infinitenet.HeavyBall`][] or
        [`infinitenet.Nesterov`][]. Time is counted in their steps.
    - `weight_decay`: $\lambda$: the loss is taken with $\frac\lambda2 |\theta -
        \theta_0|^2$, where weights $\theta$ decay to their initial values. The flow
        is then $\dot f = -\eta (K \, \partial L / \partial f + \lambda (f - f_0))$.
    - `diag_reg`: what to add to the kernel's diagonal, in units of its mean.
    - `absolute`: if true, `diag_reg` is in units of the kernel.

    **Returns:** A [`infinitenet.LossFlow`][].

    **Raises:** `ValueError` if an argument has a wrong shape or dtype, or entries that are
        not finite; if the kernel is not symmetric, or has negative eigenvalues, with a
        `diag_reg` that would mend it; and if targets are none for the loss. Under `jax.jit`
        what depends on values is a `RuntimeError` at run time.
    """
    if not callable(loss):
        raise ValueError(f"`loss` must be a function of outputs and targets, not {loss!r}.")
    if not isinstance(optimiser, AbstractOptimiser):
        raise ValueError(
            f"`optimiser` must be one of infinitenet, such as `GradientDescent`, but it is "
            f"{optimiser!r}. Those of Optax are for `train_ensemble`."
        )
    name = "k_train_train"
    spectrum, joint = decompose_kernel(name, k_train_train, diag_reg, absolute)
    n, dtype = jnp.shape(k_train_train)[0], spectrum.k.dtype
    y = check_loss_targets(loss, y_train, n, dtype)
    decay = check_weight_decay(weight_decay, dtype)
    return LossFlow(spectrum, y, loss, optimiser, decay, n, joint)


#
# Checks
#


def _zeros_like(y: PyTree, n: int, dtype: Any) -> Array:
    is_array = isinstance(y, jax.Array) and y.ndim > 0 and len(y) == n
    if not is_array or not jnp.issubdtype(y.dtype, jnp.floating):
        raise ValueError(
            "`f_train_0` is needed, as `y_train` does not tell the shape of the outputs: "
            "for zero, give `jax.numpy.zeros((n, *outputs))`."
        )
    return jnp.zeros(y.shape, dtype)


def _check_times(t: ArrayLike, t0: Float[Array, ""]) -> Float[Array, "*times"]:
    remedy = "It is counted in steps."
    t = check_not_negative("t", t, t0.dtype, remedy)
    if t.ndim > 1 or t.size == 0:
        raise ValueError(
            f"`t` must be a scalar or a vector of times, but its shape is {t.shape}."
        )
    remedy = "For convergence give a long time, with `event=steady_state()`."
    t = check_finite("t", t, remedy)
    t = guard(
        t,
        lambda t: jnp.any(jnp.diff(jnp.ravel(t)) <= 0),
        lambda _: "`t` must increase, without repetition: use `jax.numpy.unique(t)`.",
        "`t` must increase, without repetition: use `jax.numpy.unique(t)`.",
    )
    text = "`t` must not be before `start.t`, from where the flow goes on"
    both = guard(
        jnp.concatenate([t0[None], jnp.ravel(t)]),
        lambda x: x[1] < x[0],
        lambda x: f"{text}, which is {x[0]}, but it begins at {x[1]}.",
        f"{text}.",
    )
    return both[1:].reshape(t.shape)


def _check_schedule(
    optimiser: AbstractOptimiser, t: Float[Array, "*times"], t0: Float[Array, ""]
) -> Float[Array, "*times"]:
    """The times, unless learning rates there or between are negative or not finite."""
    if not callable(getattr(optimiser, "learning_rate", None)):
        return t  # It was checked.
    between = t0 + (jnp.ravel(t)[-1] - t0) * jnp.linspace(0, 1, 65, dtype=t.dtype)
    rates = jax.vmap(optimiser.rate)(jnp.concatenate([between, jnp.ravel(t)]))
    is_bad = ~jnp.all((rates >= 0) & (rates < jnp.inf))
    text = "`learning_rate` must be at least 0 and finite at all times"
    if is_traced(is_bad):
        return eqx.error_if(t, is_bad, f"{text}.")
    if is_bad:
        raise ValueError(f"{text}, but is from {rates.min():.3g} to {rates.max():.3g}.")
    return t


def _check_first_step(
    dt0: ArrayLike | None,
    controller: diffrax.AbstractStepSizeController | None,
    dtype: Any,
) -> Float[Array, ""] | None:
    if dt0 is None and isinstance(controller, diffrax.ConstantStepSize):
        raise ValueError("`ConstantStepSize` needs the step: give `dt0`.")
    if dt0 is None:
        return None
    dt0 = check_not_negative("dt0", dt0, dtype, "It is a step of time.")
    return check_finite("dt0", dt0, "It is a step of time.")


def _check_saveat(saveat: diffrax.SaveAt | None) -> bool:
    """Whether to keep all steps."""
    if saveat is None:
        return False
    if jax.tree.leaves(saveat.subs) or not saveat.dense or saveat.subs is not None:
        raise ValueError(
            "`saveat` can only be `diffrax.SaveAt(dense=True)`: when to save is given by "
            f"`t`. It is {saveat}."
        )
    return True


@eqx.filter_jit
def _probe(dynamics: Dynamics, state: Any) -> Array:
    return jnp.stack([dynamics.loss(state), jnp.sum(dynamics.gradient(state[0]))])


def _check_start(dynamics: Dynamics, state: Any) -> Dynamics:
    text = (
        "The loss, or its gradient, is NaN or infinite at the start. Is `loss` right for "
        "`y_train`, and differentiable at `f_train_0`?"
    )
    probe = _probe(dynamics, state)
    if is_traced(probe):
        return eqx.error_if(dynamics, ~jnp.all(jnp.isfinite(probe)), text)
    guard(probe, lambda x: ~jnp.all(jnp.isfinite(x)), lambda x: f"{text} Loss: {x[0]}.", "")
    return dynamics


_remedy = (
    "Stiff flows need an implicit solver, `solver=diffrax.Kvaerno5()`; others a larger "
    "`max_steps`. `throw=False` returns what was reached."
)


def _check_result(raw: Raw, max_steps: int) -> Raw:
    results = diffrax.RESULTS
    bad = (raw.result != results.successful) & (raw.result != results.event_occurred)
    if is_traced(bad):
        return eqx.error_if(raw, bad, f"The flow was not solved up to `t`. {_remedy}")
    if bad:
        why = f"within `max_steps={max_steps}`"
        if raw.result != results.max_steps_reached:
            why = f"({results[raw.result]})"
        raise ValueError(
            f"The flow was not solved up to `t` {why}, but to {raw.last:.6g} only. "
            + _remedy
        )
    return raw


def _run(args: tuple, options: dict[str, Any], progress: Progress | bool) -> Raw:
    if progress is False or is_traced((args, options)):
        quiet = diffrax.NoProgressMeter()
        return integrate(*args, progress_meter=quiet, **options)
    with reporting(progress, "gradient flow", "%") as report:
        return with_meter(report, *args, **options)
