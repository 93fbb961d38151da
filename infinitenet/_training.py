"""The training of many networks at once."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree

from ._custom_types import Arrays
from ._layer import AbstractLayer
from ._progress import Progress
from ._tracing import is_traced


@eqx.filter_jit
def evaluate_ensemble(
    ensemble: AbstractLayer, x: Arrays
) -> Float[Array, "members n *outputs"]:
    """The outputs of all networks of an ensemble.

    **Arguments:**

    - `ensemble`: as made by [`infinitenet.draw_ensemble`][].
    - `x`: a batch of inputs, of shape `(n, *spatial, channels)`.

    **Returns:** shape `(members, n, *outputs)`.
    """
    return eqx.filter_vmap(_outputs, in_axes=(eqx.if_array(0), None))(ensemble, x)


def _outputs(net: AbstractLayer, x: Arrays) -> Array:
    return jax.vmap(net)(x)


class Problem(eqx.Module):
    """What does not change in training. Functions are static under `eqx.filter_jit`."""

    rest: PyTree  # Of the networks, all but their weights.
    x_train: Arrays
    y_train: PyTree
    x_test: Arrays | None
    y_test: PyTree | None
    optimiser: optax.GradientTransformationExtraArgs
    loss: Callable[..., Array]
    keep_outputs: bool


class _State(eqx.Module):
    """What each step changes. `loss` is that of the weights before the last step."""

    weights: PyTree
    opt_state: PyTree
    loss: Float[Array, " members"]
    step: Int[Array, ""]


class Record(eqx.Module):
    """What a record holds, as in `TrainedEnsemble`."""

    train_loss: Float[Array, "*records members"]
    test_loss: Float[Array, "*records members"] | None
    train_outputs: Float[Array, "..."] | None
    test_outputs: Float[Array, "..."] | None


@eqx.filter_jit
def _advance(problem: Problem, state: _State, stop: Int[Array, ""]) -> _State:
    """Trains until the step `stop`, or until a loss is not finite."""

    def update(weights, opt_state, rest):
        def value_fn(weights):
            f = _outputs(eqx.combine(weights, rest), problem.x_train)
            return problem.loss(f, problem.y_train)

        value, grad = jax.value_and_grad(value_fn)(weights)
        # Optimisers that search along a line need to know the function.
        more = {"value": value, "grad": grad, "value_fn": value_fn}
        change, opt_state = problem.optimiser.update(grad, opt_state, weights, **more)
        return eqx.apply_updates(weights, change), opt_state, value

    def body(state: _State) -> _State:
        step = eqx.filter_vmap(update)
        weights, opt_state, loss = step(state.weights, state.opt_state, problem.rest)
        return _State(weights, opt_state, loss, state.step + 1)

    # The number of steps is not known to the compiler: one program serves all records.
    proceed = lambda state: (state.step < stop) & jnp.all(jnp.isfinite(state.loss))
    return lax.while_loop(proceed, body, state)


@eqx.filter_jit
def _record(problem: Problem, state: _State) -> Record:
    ensemble = eqx.combine(state.weights, problem.rest)
    f_train, f_test, test_loss = evaluate_ensemble(ensemble, problem.x_train), None, None
    train_loss = _losses(problem.loss, f_train, problem.y_train)
    if problem.x_test is not None:
        f_test = evaluate_ensemble(ensemble, problem.x_test)
        if problem.y_test is not None:
            test_loss = _losses(problem.loss, f_test, problem.y_test)
    outputs = (f_train, f_test) if problem.keep_outputs else (None, None)
    return Record(train_loss, test_loss, *outputs)


def _losses(loss: Callable[..., Array], f: Array, y: PyTree) -> Float[Array, " members"]:
    return jax.vmap(lambda f: loss(f, y))(f)


_remedy = (
    "Use a smaller learning rate: gradient descent on the mean squared error needs less "
    "than `max_learning_rate(ntk_train_train, y_train.size)`."
)


def _check_converging(step: Array, *losses: Array | None) -> None:
    for loss in losses:
        if loss is not None and not jnp.all(jnp.isfinite(loss)):
            bad = int(jnp.sum(~jnp.isfinite(loss)))
            raise ValueError(
                f"Training diverged: at step {step}, the loss of {bad} of the {loss.size} "
                f"networks is NaN or infinite. {_remedy}"
            )


# Between records, progress is reported and divergence is looked for about as often.
_n_reports = 100


def _train_members(
    problem: Problem, weights: PyTree, steps: np.ndarray, report: Callable[[int], None]
) -> tuple[PyTree, Record]:
    """The trained weights, and the records stacked."""
    opt_state = eqx.filter_vmap(problem.optimiser.init)(weights)
    f = evaluate_ensemble(eqx.combine(weights, problem.rest), problem.x_train)
    loss = _losses(problem.loss, f, problem.y_train)
    zero = jnp.zeros((), int)
    # No step; yet abstract if anything is, though it were hidden in the optimiser.
    state = _advance(problem, _State(weights, opt_state, loss, zero), zero)
    if is_traced(state):
        return _train_traced(problem, state, steps)
    records = []
    between = np.linspace(0, steps[-1], _n_reports + 1).astype(int)
    for stop in np.union1d(between, steps):
        state = _advance(problem, state, jnp.asarray(stop))
        _check_converging(state.step - 1, state.loss)
        if stop in steps:
            new = _record(problem, state)
            _check_converging(state.step, new.train_loss, new.test_loss)
            records.append(new)
        report(int(stop))
    return state.weights, jax.tree.map(lambda *each: jnp.stack(each), *records)


def _train_traced(
    problem: Problem, state: _State, steps: np.ndarray
) -> tuple[PyTree, Record]:
    def body(state, stop):
        state = _advance(problem, state, stop)
        return state, _record(problem, state)

    state, records = lax.scan(body, state, jnp.asarray(steps))
    losses = [state.loss[None], records.train_loss]
    losses += [] if records.test_loss is None else [records.test_loss]
    bad = ~jnp.all(jnp.isfinite(jnp.concatenate(losses)))
    out = (state.weights, records)
    return eqx.error_if(out, bad, f"Training diverged. {_remedy}")


def train_in_parts(
    problem: Problem,
    weights: PyTree,
    steps: np.ndarray,
    n_members: int,
    members_at_once: int,
    report: Progress,
) -> tuple[PyTree, Record]:
    """Trains some of the members, then others."""
    parts = []
    for start in range(0, n_members, members_at_once):
        stop = min(start + members_at_once, n_members)

        def cut(x, start=start, stop=stop):
            return x[start:stop] if eqx.is_array(x) else x

        def tell(step, start=start, stop=stop):
            last = int(steps[-1])
            report(start * last + (stop - start) * step, n_members * last)

        part = eqx.tree_at(lambda p: p.rest, problem, jax.tree.map(cut, problem.rest))
        parts.append(_train_members(part, jax.tree.map(cut, weights), steps, tell))
    weights, records = zip(*parts, strict=True)
    join = lambda axis: lambda *x: jnp.concatenate(x, axis)
    return jax.tree.map(join(0), *weights), jax.tree.map(join(1), *records)
