"""The training of ensembles in the course of time: watched, interrupted, continued."""

import time
from typing import Any

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree

from ._progress import Pace, Progress
from ._tracing import is_traced
from ._trained import TrainedEnsemble, TrainingDiverged
from ._training import advance, Problem, Record, record, State
from ._training_parts import joined, map_arrays, Plan
from ._training_store import Store


def train(
    problem: Problem, weights: PyTree, plan: Plan, store: Store, report: Progress
) -> TrainedEnsemble:
    """Trains all networks, some of them after others, or goes on with it.

    **Raises:** `TrainingDiverged`.
    """
    if store.path is None and _is_abstract(problem, weights, plan):
        return _train_traced(problem, weights, plan)
    return _Run(problem, weights, plan, store, report).run()


def _to_trained(
    problem: Problem, weights: PyTree, steps: np.ndarray, records: Record
) -> TrainedEnsemble:
    r = jax.tree.map(jnp.asarray, records)
    return TrainedEnsemble(
        problem.ensemble(weights),
        jnp.asarray(steps),
        r.train_loss,
        r.test_loss,
        r.train_outputs,
        r.test_outputs,
        r.ntk_drift,
    )


_REMEDY = (
    "Use a smaller learning rate: gradient descent on the mean squared error needs less "
    "than `max_learning_rate(ntk_train_train, y_train.size)`."
)


#
# Values are not known
#


def _is_abstract(problem: Problem, weights: PyTree, plan: Plan) -> bool:
    """Whether any array is, though it were hidden in the optimiser."""
    part = plan.parts()[0]
    problem = plan.problem_of(problem, part)
    # The program of training, which is compiled anyway; yet no step of it.
    state = plan.begin(problem, weights, part)
    return is_traced(advance(problem, state, jnp.zeros((), jnp.int32)))


def _train_traced(problem: Problem, weights: PyTree, plan: Plan) -> TrainedEnsemble:
    parts = [_train_part(problem, weights, plan, part) for part in plan.parts()]
    states, records = zip(*parts, strict=True)
    numbers = [state.loss for state in states]
    numbers += [x for each in records for x in each.numbers()]
    bad = ~jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in numbers]))
    trained = joined([state.weights for state in states], 0)
    out = _to_trained(problem, trained, plan.steps, joined(records, 1))
    return eqx.error_if(out, bad, f"Training diverged. {_REMEDY}")


def _train_part(
    problem: Problem, weights: PyTree, plan: Plan, part: range
) -> tuple[State, Record]:
    problem = plan.problem_of(problem, part)
    ntk_start = plan.kernels_of(problem, weights, part)

    def body(state: State, stop: Int[Array, ""]) -> tuple[State, Record]:
        state = advance(problem, state, stop)
        return state, record(problem, state, ntk_start)

    state = plan.begin(problem, weights, part)
    # Abstract or not, as the optimiser makes it.
    state = advance(problem, state, jnp.zeros((), jnp.int32))
    return lax.scan(body, state, jnp.asarray(plan.steps, jnp.int32))


#
# Values are known
#


def _is_finite(x: Any) -> bool:
    return bool(np.all(np.isfinite(np.asarray(x))))


class _Run:
    """Training so far.

    - `whole`, `problem`: what all networks are trained on, and those of a part.
    - `records`: of all networks, zero where there are none yet.
    - `finished`: weights of parts that are trained.
    - `part`, `recorded`: the part in training, and how many records there are of it.
    - `good`: the last state of it from which all losses are known to be finite; `None`
        before it begins.
    - `saved`: that which the file has.
    """

    def __init__(
        self,
        problem: Problem,
        weights: PyTree,
        plan: Plan,
        store: Store,
        report: Progress,
    ):
        self.whole, self.weights, self.plan = problem, weights, plan
        self.store, self.report = store, report
        self.parts = plan.parts()
        self.like, one = eqx.filter_eval_shape(self._first, problem, weights)
        shape = (len(plan.steps), plan.n_members)
        self.records = jax.tree.map(
            lambda x: np.zeros((*shape, *x.shape[1:]), x.dtype), one
        )
        self.finished: list[PyTree] = []
        self.part, self.recorded = 0, 0
        self.good: State | None = None
        self.saved: State | None = None
        self.pace = Pace()

    def _first(self, problem: Problem, weights: PyTree) -> tuple[State, Record]:
        problem = self.plan.problem_of(problem, self.parts[0])
        state = self.plan.begin(problem, weights, self.parts[0])
        ntk_start = self.plan.kernels_of(problem, weights, self.parts[0])
        return state, record(problem, state, ntk_start)

    def run(self) -> TrainedEnsemble:
        self._restore()
        try:
            for i in range(self.part, len(self.parts)):
                self._train_part(i)
        finally:
            # After an interruption too.
            self._save()
        weights = joined(self.finished, 0)
        return _to_trained(self.whole, weights, self.plan.steps, self.records)

    def _train_part(self, i: int) -> None:
        steps, state = self.plan.steps, self.good
        if state is None or i > self.part or self.recorded < len(steps):
            # These are the same as they were before an interruption.
            self.problem = self.plan.problem_of(self.whole, self.parts[i])
            self.ntk_start = self.plan.kernels_of(self.problem, self.weights, self.parts[i])
            if state is None or i > self.part:
                state = self.plan.begin(self.problem, self.weights, self.parts[i])
                self.good, self.part, self.recorded = state, i, 0
                # At once, as it may turn out that there can be no file.
                self._save(if_due=i > 0)
            for stop in steps[self.recorded :]:
                state = self._advance_to(int(stop), state)
                self._keep(state, self._record(state))
        self.finished.append(state.weights)

    def _advance_to(self, stop: int, state: State) -> State:
        part, last = self.parts[self.part], int(self.plan.steps[-1])
        while int(state.step) < stop:
            start = time.perf_counter()
            near = jnp.asarray(min(stop, int(state.step) + self.pace.steps), jnp.int32)
            new = jax.block_until_ready(advance(self.problem, state, near))
            self.pace.heed(time.perf_counter() - start)
            if not _is_finite(new.loss):
                raise self._diverged(int(new.step) - 1, [new.loss])
            # Now the loss of `state` is known too.
            self.good, state = state, new
            done = part.start * last + len(part) * int(state.step)
            self.report(done, self.plan.n_members * last)
            self._save(if_due=True)
        return state

    def _record(self, state: State) -> Record:
        return record(self.problem, state, self.ntk_start)

    def _keep(self, state: State, new: Record) -> None:
        if not all(map(_is_finite, new.numbers())):
            raise self._diverged(int(state.step), new.numbers())
        part = self.parts[self.part]

        def keep(all_records: np.ndarray, x: Array) -> None:
            all_records[self.recorded, part.start : part.stop] = np.asarray(x)

        jax.tree.map(keep, self.records, new)
        self.good, self.recorded = state, self.recorded + 1
        self._save(if_due=True)

    #
    # Divergence
    #

    def _diverged(self, step: int, numbers: list[Array]) -> TrainingDiverged:
        """The error about losses which are not finite after a number of steps."""
        part = self.parts[self.part]
        bad = ~np.all([np.isfinite(np.asarray(x)) for x in numbers], axis=0)
        trained = self._before(step)
        text = (
            f"Training diverged: at step {step}, the loss of {np.sum(bad)} of the "
            f"{len(part)} networks is NaN or infinite. {_REMEDY}"
        )
        if trained is not None:
            text += " Those at the last step before are `trained` of this error."
        return TrainingDiverged(text, step, trained, part, self._finished())

    def _finished(self) -> TrainedEnsemble | None:
        """The networks of parts that are trained."""
        if not self.finished:
            return None
        before = range(self.parts[self.part].start)
        problem = self.plan.problem_of(self.whole, before)
        records = jax.tree.map(lambda x: x[:, : before.stop], self.records)
        return _to_trained(problem, joined(self.finished, 0), self.plan.steps, records)

    def _before(self, step: int) -> TrainedEnsemble | None:
        """The networks in training, at the step before, and all their records."""
        part, state = self.parts[self.part], self.good
        if step == 0 or state is None:
            return None
        if int(state.step) < step - 1:
            stop = jnp.asarray(step - 1, jnp.int32)
            state = self.good = advance(self.problem, state, stop)
        n, last = self.recorded, int(state.step)
        steps = self.plan.steps[:n]
        records = jax.tree.map(lambda x: x[:n, part.start : part.stop], self.records)
        if last not in steps:
            new = self._record(state)
            if all(map(_is_finite, new.numbers())):
                append = lambda x, y: np.concatenate([x, np.asarray(y)[None]])
                records = jax.tree.map(append, records, new)
                steps = np.append(steps, last)
        return _to_trained(self.problem, state.weights, steps, records)

    #
    # Files
    #

    def _save(self, *, if_due: bool = False) -> None:
        if self.good is self.saved or (if_due and not self.store.is_due()):
            return
        assert self.good is not None
        self.store.save(self._tree(self.good))
        self.saved = self.good

    def _tree(self, state: State) -> PyTree:
        """What is saved: always of the same shapes."""
        part = self.parts[self.part]
        rest = map_arrays(lambda x: x[part.stop :], self.weights)
        parts = [*self.finished[: self.part], state.weights, rest]
        join = lambda *x: np.concatenate([np.asarray(x) for x in x])
        # The last part may be smaller.
        index = np.minimum(np.arange(self.plan.members_at_once), len(part) - 1)
        pad = lambda tree: map_arrays(lambda x: x[index], eqx.filter(tree, eqx.is_array))
        return {
            "weights": jax.tree.map(join, *parts),
            "opt_state": pad(state.opt_state),
            "loss": pad(state.loss),
            "step": state.step,
            "part": np.asarray(self.part),
            "recorded": np.asarray(self.recorded),
            "records": self.records,
        }

    def _restore(self) -> None:
        is_array = lambda x: isinstance(x, jax.ShapeDtypeStruct)
        opt_like, static = eqx.partition(self.like.opt_state, is_array)
        saved = self.store.load(
            {
                "weights": self.weights,
                "opt_state": opt_like,
                "loss": self.like.loss,
                "step": self.like.step,
                "part": np.asarray(0),
                "recorded": np.asarray(0),
                "records": self.records,
            }
        )
        if saved is None:
            return
        self.part, self.recorded = int(saved["part"]), int(saved["recorded"])
        self.records = saved["records"]
        of = lambda part: self.plan.members_of(saved["weights"], part)
        *finished, weights = map(of, self.parts[: self.part + 1])
        self.finished = finished
        cut = lambda x: x[: len(self.parts[self.part])]
        opt_state = eqx.combine(map_arrays(cut, saved["opt_state"]), static)
        state = State(weights, opt_state, cut(saved["loss"]), saved["step"])
        self.good = self.saved = self.plan.placed(state)
