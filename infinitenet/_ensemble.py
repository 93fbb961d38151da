"""Ensembles of finite networks: drawn, trained, and compared with the infinite one.

The members of an ensemble are stacked: each array has a first axis over them, as
`eqx.filter_vmap` makes it.
"""

import functools as ft
from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import jax.random as jr
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree
import numpy as np
import optax

from ._batch import is_traced, to_batch
from ._checks import check_finite, check_floating, check_shape
from ._custom_types import Arrays
from ._layer import AbstractLayer
from ._progress import Progress, reporting
from ._signal import Examples
from ._solution import Prediction
from ._weights import trainable


def half_mse(
    f: Float[Array, "*outputs"], y: Float[Array, "*outputs"]
) -> Float[Array, ""]:
    """Half of the mean squared error, over all examples and outputs.

    By this loss, gradient descent of learning rate `r` in NTK parameterization is after
    `s` steps where gradient flow is at time `t = r * s`, for small `r`.

    **Arguments:**

    - `f`, `y`: outputs and targets, of the same shape.

    **Returns:** a scalar.
    """
    return jnp.mean(jnp.square(f - y)) / 2


def draw_ensemble(
    net: AbstractLayer, key: PRNGKeyArray, x: Examples, n: int
) -> AbstractLayer:
    """Draws independent finite networks: `net.init`, over as many keys.

    **Arguments:**

    - `net`: a network.
    - `key`: a random key.
    - `x`: an example (not a batch), as for [`infinitenet.AbstractLayer.init`][].
    - `n`: the number of networks.

    **Returns:** the networks as one, each array with a first axis of size `n`.

    **Raises:** `ValueError` if `n` is below 1, and as `net.init`.
    """
    if n < 1:
        raise ValueError(f"`n` must be at least 1 network, but it is {n}.")
    return eqx.filter_vmap(lambda key: net.init(key, x))(jr.split(key, n))


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


class TrainedEnsemble(eqx.Module):
    """What [`infinitenet.train_ensemble`][] returns: networks, and how they came about.

    - `ensemble`: the trained networks.
    - `steps`: the steps that were recorded, ascending. Step 0 is before training.
    - `train_loss`: at these steps, shape `(records, members)`.
    - `test_loss`: likewise, or `None` without `y_test`.
    - `train_outputs`: shape `(records, members, n, *outputs)`, or `None` if they were not
        to be kept.
    - `test_outputs`: likewise, or `None` without `x_test`.
    """

    ensemble: AbstractLayer
    steps: Int[Array, " records"]
    train_loss: Float[Array, "records members"]
    test_loss: Float[Array, "records members"] | None
    train_outputs: Float[Array, "records members n *outputs"] | None
    test_outputs: Float[Array, "records members n_test *outputs"] | None

    def times(
        self, learning_rate: float | optax.Schedule | Float[Array, ""]
    ) -> Float[Array, " records"]:
        """The times of gradient flow that the recorded steps stand for.

        **Arguments:**

        - `learning_rate`: a number, or a schedule as for Optax. For momentum `m`, give
            the learning rate divided by `1 - m`.

        **Returns:** the sum of the learning rates of all steps before each record.
        """
        if not callable(learning_rate):
            return learning_rate * self.steps.astype(self.train_loss.dtype)
        rates = jax.vmap(learning_rate)(jnp.arange(int(self.steps[-1])))
        start = jnp.zeros(1, self.train_loss.dtype)
        return jnp.concatenate([start, jnp.cumsum(rates.astype(start))])[self.steps]

    def __repr__(self) -> str:
        if is_traced(self.train_loss):
            return eqx.tree_pformat(self)
        out = f"{self.train_loss.shape[1]} networks after {self.steps[-1]} steps:"
        for name, loss in (("train", self.train_loss), ("test", self.test_loss)):
            if loss is not None:
                low, mean, high = (fn(loss[-1]) for fn in (jnp.min, jnp.mean, jnp.max))
                out += f" {name} loss {mean:.3g} (from {low:.3g} to {high:.3g}),"
        return f"<TrainedEnsemble of {out[:-1]}>"


#
# Training
#


class _Problem(eqx.Module):
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


class _Record(eqx.Module):
    """What a record holds, as in `TrainedEnsemble`."""

    train_loss: Float[Array, "*records members"]
    test_loss: Float[Array, "*records members"] | None
    train_outputs: Float[Array, "*records members n *outputs"] | None
    test_outputs: Float[Array, "*records members n_test *outputs"] | None


@eqx.filter_jit
def _train_loss(problem: _Problem, weights: PyTree) -> Float[Array, " members"]:
    f = evaluate_ensemble(eqx.combine(weights, problem.rest), problem.x_train)
    return jax.vmap(lambda f: problem.loss(f, problem.y_train))(f)


@eqx.filter_jit
def _advance(problem: _Problem, state: _State, stop: Int[Array, ""]) -> _State:
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
        new = eqx.filter_vmap(update)(state.weights, state.opt_state, problem.rest)
        return _State(*new, state.step + 1)

    # The number of steps is not known to the compiler: one program serves all records.
    proceed = lambda state: (state.step < stop) & jnp.all(jnp.isfinite(state.loss))
    return lax.while_loop(proceed, body, state)


@eqx.filter_jit
def _record(problem: _Problem, state: _State) -> _Record:
    ensemble = eqx.combine(state.weights, problem.rest)

    def look(x, y):
        if x is None:
            return None, None
        f = evaluate_ensemble(ensemble, x)
        loss = None if y is None else jax.vmap(lambda f: problem.loss(f, y))(f)
        return loss, (f if problem.keep_outputs else None)

    train_loss, train_outputs = look(problem.x_train, problem.y_train)
    test_loss, test_outputs = look(problem.x_test, problem.y_test)
    return _Record(train_loss, test_loss, train_outputs, test_outputs)


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
    problem: _Problem, weights: PyTree, steps: np.ndarray, report: Callable[[int], None]
) -> tuple[PyTree, _Record]:
    """The trained weights, and the records stacked."""
    opt_state = eqx.filter_vmap(problem.optimiser.init)(weights)
    loss = _train_loss(problem, weights)
    state = _State(weights, opt_state, loss, jnp.zeros((), int))
    if is_traced((problem, weights)):
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
    problem: _Problem, state: _State, steps: np.ndarray
) -> tuple[PyTree, _Record]:
    def body(state, stop):
        state = _advance(problem, state, stop)
        return state, _record(problem, state)

    state, records = lax.scan(body, state, jnp.asarray(steps))
    losses = [x for x in (records.train_loss, records.test_loss) if x is not None]
    bad = ~jnp.all(jnp.isfinite(jnp.stack([state.loss[None], *losses])))
    out = (state.weights, records)
    return eqx.error_if(out, bad, f"Training diverged. {_remedy}")


def train_ensemble(
    ensemble: AbstractLayer,
    x_train: Arrays,
    y_train: ArrayLike,
    optimiser: optax.GradientTransformation,
    steps: int | Sequence[int] | np.ndarray,
    *,
    loss: Callable[..., Array] = half_mse,
    x_test: Arrays | None = None,
    y_test: ArrayLike | None = None,
    keep_outputs: bool = True,
    members_at_once: int | None = None,
    progress: Progress | bool = True,
) -> TrainedEnsemble:
    """Trains all networks of an ensemble, each on the full batch in every step.

    Only weights are trained: those that [`infinitenet.trainable`][] tells, so never
    `W_std` or `b_std`.

    !!! example

        ```python
        ensemble = inn.draw_ensemble(net, key, x_train[0], 100)
        trained = inn.train_ensemble(ensemble, x_train, y_train, optax.sgd(0.1), 1000)
        trained.train_loss  # of shape (records, 100), at `trained.steps`
        ```

    **Arguments:**

    - `ensemble`: as made by [`infinitenet.draw_ensemble`][].
    - `x_train`: a batch of inputs, of shape `(n, *spatial, channels)`.
    - `y_train`: the targets, of the shape `(n, *outputs)` of the networks' outputs. For
        another loss, what that takes.
    - `optimiser`: any of Optax. Each network has its own state of it.
    - `steps`: the number of steps; by default about 50 of them are recorded, at equal
        distances on a logarithmic scale, the first and the last included. Or the steps to
        record, ascending, of which the last is the number of steps; 0 is before training.
    - `loss`: a function of outputs and targets of one network that returns a scalar.
    - `x_test`, `y_test`: likewise, to be evaluated at the recorded steps. Without
        `y_test`, only outputs are.
    - `keep_outputs`: whether to record outputs, not only losses. They take memory of
        `records * members * n * outputs` numbers.
    - `members_at_once`: how many networks to train at the same time; all by default. A
        smaller number takes less memory; best a divisor of the number of networks, for
        otherwise a second program is compiled for the rest.
    - `progress`: as for [`infinitenet.gram`][].

    **Returns:** A [`infinitenet.TrainedEnsemble`][].

    **Raises:** `ValueError` if an argument has a wrong shape or dtype, or is not finite;
        if the networks have no weights yet; and if training diverges, with the step. Under
        `jax.jit` divergence is a `RuntimeError` at run time.

    It can be compiled and vectorised, but not be differentiated in reverse.
    """
    stops = _to_steps(steps)
    n_members = _count_members(ensemble)
    x_train, y_train = _check_data("train", ensemble, x_train, y_train, loss)
    x_test, y_test = _check_data("test", ensemble, x_test, y_test, loss)
    if members_at_once is not None and members_at_once < 1:
        raise ValueError(f"`members_at_once` must be at least 1, not {members_at_once}.")
    size = min(members_at_once or n_members, n_members)
    weights, rest = eqx.partition(ensemble, trainable(ensemble))
    arrays, static = eqx.partition(rest, eqx.is_array)
    data = (x_train, y_train, x_test, y_test)
    how = (optax.with_extra_args_support(optimiser), loss, keep_outputs)
    total, parts = n_members * int(stops[-1]), []
    with reporting(progress, "training") as report:
        for start in range(0, n_members, size):
            cut = lambda x, start=start: x[start : start + size]
            members = jax.tree.map(cut, (weights, arrays))
            n = min(size, n_members - start)
            done = lambda step, n=n, start=start: start * int(stops[-1]) + n * step
            problem = _Problem(eqx.combine(members[1], static), *data, *how)
            tell = lambda step, done=done: report(done(step), total)
            parts.append(_train_members(problem, members[0], stops, tell))
    weights = jax.tree.map(lambda *x: jnp.concatenate(x), *[part[0] for part in parts])
    records = jax.tree.map(
        lambda *x: jnp.concatenate(x, axis=1), *[part[1] for part in parts]
    )
    return TrainedEnsemble(
        eqx.combine(weights, rest),
        jnp.asarray(stops),
        *(records.train_loss, records.test_loss),
        *(records.train_outputs, records.test_outputs),
    )
