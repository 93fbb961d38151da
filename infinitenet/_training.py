"""The training of many networks at once: what is compiled."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from ._batch import batch_size
from ._custom_types import Arrays
from ._drift import drift, ensemble_ntk
from ._members import evaluate, evaluate_ensemble
from ._minibatch import Batches


class Problem(eqx.Module):
    """What does not change in training. Functions are static under `eqx.filter_jit`.

    - `rest`: of the networks, all but their weights.
    - `members`: which networks of the ensemble these are.
    - `x_drift`: inputs on which kernels are compared with those before training.
    """

    rest: PyTree
    members: Int[Array, " members"]
    x_train: Arrays
    y_train: PyTree
    x_test: Arrays | None
    y_test: PyTree | None
    optimiser: optax.GradientTransformationExtraArgs
    loss: Callable[..., Array]
    batches: Batches | None
    keep_outputs: bool
    x_drift: Arrays | None
    mesh: jax.sharding.Mesh | None

    def ensemble(self, weights: PyTree) -> Any:
        return eqx.combine(weights, self.rest)

    @property
    def examples_at_once(self) -> int | None:
        """As many as take no more memory than a step of training."""
        return None if self.batches is None else self.batches.size


class State(eqx.Module):
    """What each step changes. `loss` is that of the weights before the last step."""

    weights: PyTree
    opt_state: PyTree
    loss: Float[Array, " members"]
    step: Int[Array, ""]


class Record(eqx.Module):
    """What a record holds, as in `TrainedEnsemble`."""

    train_loss: Any
    test_loss: Any
    train_outputs: PyTree
    test_outputs: PyTree
    ntk_drift: Any

    def numbers(self) -> list[Array]:
        """All numbers that tell of divergence."""
        each = (self.train_loss, self.test_loss, self.ntk_drift)
        return [x for x in each if x is not None]


class _Examples(eqx.Module):
    """The training data of each step, from the step `start` on."""

    problem: Problem
    start: Int[Array, ""]

    def no_order(self) -> Int[Array, "members n"] | None:
        """What is carried before the first step; `None` for all examples in each step."""
        if self.problem.batches is None:
            return None
        shape = (len(self.problem.members), batch_size(self.problem.x_train))
        return jnp.zeros(shape, int)

    def order(
        self, step: Int[Array, ""], before: Int[Array, "members n"] | None
    ) -> Int[Array, "members n"] | None:
        """The order of examples in an epoch, for each network, given that before."""
        batches = self.problem.batches
        if batches is None or before is None:
            return None
        n = before.shape[1]
        epoch, place = jnp.divmod(step, batches.steps_per_epoch(n))
        draw = jax.vmap(lambda member: batches.order(n, member, epoch))
        # Sorting is expensive, so it is done once in an epoch.
        return lax.cond(
            (place == 0) | (step == self.start),
            lambda: draw(self.problem.members).astype(before.dtype),
            lambda: before,
        )

    def batch(
        self, step: Int[Array, ""], order: Int[Array, " n"] | None
    ) -> tuple[Arrays, PyTree]:
        """What one network is trained on in a step."""
        data = (self.problem.x_train, self.problem.y_train)
        if self.problem.batches is None or order is None:
            return data
        size = self.problem.batches.size
        place = step % (len(order) // size) * size
        index = lax.dynamic_slice_in_dim(order, place, size)
        return jax.tree.map(lambda x: x[index], data)


@eqx.filter_jit
def advance(problem: Problem, state: State, stop: Int[Array, ""]) -> State:
    """Trains until the step `stop`, or until a loss is not finite."""
    examples = _Examples(problem, state.step)

    def update(weights, opt_state, rest, step, order):
        x, y = examples.batch(step, order)

        def value_fn(weights):
            return problem.loss(evaluate(eqx.combine(weights, rest), x), y)

        value, grad = jax.value_and_grad(value_fn)(weights)
        # Optimisers that search along a line need to know the function.
        more = {"value": value, "grad": grad, "value_fn": value_fn}
        change, opt_state = problem.optimiser.update(grad, opt_state, weights, **more)
        return eqx.apply_updates(weights, change), opt_state, value

    def body(carry: tuple[State, Array | None]) -> tuple[State, Array | None]:
        state, order = carry
        order = examples.order(state.step, order)
        each = eqx.if_array(0)
        step = eqx.filter_vmap(update, in_axes=(each, each, each, None, each))
        weights, opt_state, loss = step(
            state.weights, state.opt_state, problem.rest, state.step, order
        )
        return State(weights, opt_state, loss, state.step + 1), order

    # The number of steps is not known to the compiler: one program serves all records.
    def proceed(carry: tuple[State, Array | None]) -> Bool[Array, ""]:
        return (carry[0].step < stop) & jnp.all(jnp.isfinite(carry[0].loss))

    return lax.while_loop(proceed, body, (state, examples.no_order()))[0]


@eqx.filter_jit
def record(problem: Problem, state: State, ntk_start: PyTree[Array] | None) -> Record:
    """What is kept of a step, given kernels before training."""
    ensemble = problem.ensemble(state.weights)
    at_once = problem.examples_at_once
    f_train = evaluate_ensemble(ensemble, problem.x_train, at_once)
    train_loss = _losses(problem.loss, f_train, problem.y_train)
    f_test, test_loss, moved = None, None, None
    if problem.x_test is not None:
        f_test = evaluate_ensemble(ensemble, problem.x_test, at_once)
        if problem.y_test is not None:
            test_loss = _losses(problem.loss, f_test, problem.y_test)
    if problem.x_drift is not None:
        moved = drift(ensemble, problem.x_drift, ntk_start, problem.mesh)
    outputs = (f_train, f_test) if problem.keep_outputs else (None, None)
    return Record(train_loss, test_loss, *outputs, moved)


def _losses(loss: Callable[..., Array], f: PyTree, y: PyTree) -> Float[Array, " members"]:
    return jax.vmap(lambda f: loss(f, y))(f)


@eqx.filter_jit
def initial_state(problem: Problem, weights: PyTree) -> State:
    """Before the first step. The loss is not known then, and zero."""
    opt_state = eqx.filter_vmap(problem.optimiser.init)(weights)

    def losses(weights):
        f = evaluate_ensemble(problem.ensemble(weights), problem.x_train)
        return _losses(problem.loss, f, problem.y_train)

    like = eqx.filter_eval_shape(losses, weights)
    loss = jnp.zeros(like.shape, like.dtype)
    # Weak types would be lost in files, and then the program would be another one.
    return State(weights, jax.tree.map(_strong, opt_state), loss, jnp.zeros((), jnp.int32))


def _strong(x: Any) -> Any:
    is_number = eqx.is_array(x) and jnp.issubdtype(x.dtype, jnp.number)
    return lax.convert_element_type(x, x.dtype) if is_number else x


def start_kernels(problem: Problem, weights: PyTree) -> PyTree[Array] | None:
    """Kernels of the weights before training, to measure drift from."""
    if problem.x_drift is None:
        return None
    return ensemble_ntk(problem.ensemble(weights), problem.x_drift, problem.mesh)
