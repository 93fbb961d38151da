"""Training to go on from: a file, and how it is told which run it is of."""

import os
import pathlib
import time
from typing import Any

import equinox as eqx
import jax
from jaxtyping import PyTree

from . import _checkpoint as checkpoint
from ._batch import shape_of_one
from ._members import evaluate
from ._tracing import is_traced
from ._training import Problem
from ._training_parts import Plan


class Store:
    """A file, or none. It is written as often as `save_every` seconds."""

    def __init__(
        self, path: pathlib.Path | None, save_every: float, fingerprint: dict[str, Any]
    ):
        self.path = path
        self.save_every = save_every
        self.fingerprint = fingerprint
        self.saved_at = time.monotonic()

    def load(self, like: PyTree) -> PyTree | None:
        """What is in the file, or `None` without one."""
        if self.path is None or not self.path.exists():
            return None
        return checkpoint.load(self.path, like, self.fingerprint)

    def is_due(self) -> bool:
        waited = time.monotonic() - self.saved_at
        return self.path is not None and waited >= self.save_every

    def save(self, tree: PyTree) -> None:
        if self.path is not None:
            checkpoint.save(self.path, tree, self.fingerprint)
            self.saved_at = time.monotonic()


def open_store(
    path: str | os.PathLike | None,
    save_every: float,
    problem: Problem,
    weights: PyTree,
    plan: Plan,
) -> Store:
    """The file of a training, if there is to be one.

    **Raises:** `ValueError` if what it depends on is not known.
    """
    if path is None:
        return Store(None, save_every, {})
    try:
        if not is_traced((problem, weights)):
            fingerprint = _fingerprint(problem, weights, plan)
            return Store(pathlib.Path(path), save_every, fingerprint)
    except jax.errors.TracerArrayConversionError:
        pass  # Hidden in a function, such as the optimiser.
    raise ValueError(
        "`checkpoint` needs arrays of known values: call `train_ensemble` outside of "
        "`jax.jit` and `jax.vmap`."
    )


def _fingerprint(problem: Problem, weights: PyTree, plan: Plan) -> dict[str, Any]:
    """All that the numbers depend on. What is named first is compared first."""
    batches = problem.batches
    hash_of = lambda tree: None if tree is None else checkpoint.fingerprint_of(tree)
    return {
        "kind": "training of an ensemble",
        "JAX version": jax.__version__,
        "number of networks": plan.n_members,
        "members_at_once": plan.members_at_once,
        "recorded steps": plan.steps.tolist(),
        "keep_outputs": problem.keep_outputs,
        "batch size": None if batches is None else batches.size,
        "key of batches": None if batches is None else hash_of(batches.key),
        "x_train": hash_of(problem.x_train),
        "y_train": hash_of(problem.y_train),
        "x_test": hash_of(problem.x_test),
        "y_test": hash_of(problem.y_test),
        "ntk_drift": hash_of(problem.x_drift),
        **_programs(problem, weights),
        "initial weights": hash_of(weights),
        "hyperparameters": hash_of(problem.rest),
    }


def _programs(problem: Problem, weights: PyTree) -> dict[str, str]:
    """What functions do, of which nothing else can be told."""
    arrays, static = eqx.partition(problem.rest, eqx.is_array)
    struct = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)
    member = shape_of_one((weights, arrays))
    data = jax.tree.map(struct, (problem.x_train, problem.y_train))

    def outputs(member, data):
        weights, arrays = member
        return evaluate(eqx.combine(weights, arrays, static), data[0])

    def loss(member, data):
        return problem.loss(outputs(member, data), data[1])

    def step(member, data):
        weights, arrays = member
        value_fn = lambda weights: loss((weights, arrays), data)
        value, grad = jax.value_and_grad(value_fn)(weights)
        state = problem.optimiser.init(weights)
        more = {"value": value, "grad": grad, "value_fn": value_fn}
        out = problem.optimiser.update(grad, state, weights, **more)
        return eqx.filter((state, out), eqx.is_array)

    named = {"network": outputs, "loss": loss, "optimiser": step}
    program = checkpoint.fingerprint_of_program
    return {name: program(fn, member, data) for name, fn in named.items()}
