"""Samples in the course of time: shown, interrupted, and continued."""

import time
from collections.abc import Sequence

import jax.numpy as jnp

from .._progress import Pace, Progress
from .experiment import advance, Experiment, FAILED, REACHED, RUNNING
from .moments import Moments
from .store import Store


def run(
    experiment: Experiment, counts: Sequence[int], store: Store, report: Progress
) -> tuple[list[Moments], bool]:
    """Moments at some numbers of samples, ascending, and whether they came to be enough.

    It goes on from what is in the store, and leaves there what it has done.

    **Raises:** `ValueError` for a sample that is not finite.
    """
    pace, out = Pace(), []
    show = lambda n: report(n, counts[-1])
    if store.path is not None:
        one = jnp.asarray(1, jnp.int32)
        first, status = advance(experiment, store.latest(0), one)
        if int(status) == FAILED:
            raise ValueError(_not_finite(0, store))
        store.begin(first)
    try:
        for count in counts:
            moments, status = _until(count, experiment, store, pace, show)
            if status == FAILED:
                raise ValueError(_not_finite(int(moments.count), store))
            store.keep(moments)
            out.append(moments)
            if status == REACHED:
                return out, True
        return out, False
    finally:
        # After an interruption too.
        store.save()


def _until(
    count: int, experiment: Experiment, store: Store, pace: Pace, show
) -> tuple[Moments, int]:
    moments = store.latest(count)
    while True:
        start = time.perf_counter()
        stop = min(count, int(moments.count) + pace.steps)
        moments, status = advance(experiment, moments, jnp.asarray(stop, jnp.int32))
        n, status = int(moments.count), int(status)
        show(n)
        if status != RUNNING or n == count:
            return moments, status
        store.pass_by(moments)
        pace.heed(time.perf_counter() - start)


def _not_finite(i: int, store: Store) -> str:
    kept = f" The {i} samples before it are in {store.path}." if store.path and i else ""
    return (
        f"Sample {i} is not finite, or so large that its square overflows: the network of "
        f"`jax.random.fold_in(key, {i})`, or its derivatives, overflow or are undefined on "
        "these inputs. Lower the scale of weights or inputs, use fewer layers, or use "
        f"float64.{kept}"
    )
