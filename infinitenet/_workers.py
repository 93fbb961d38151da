"""Threads that run programs side by side."""

import collections
import functools as ft
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import numpy as np


_T = TypeVar("_T")

# Options of JAX that belong to a thread, and how to set them there.
_OPTIONS = {
    "jax_enable_x64": jax.enable_x64,
    "jax_default_matmul_precision": jax.default_matmul_precision,
    "jax_numpy_dtype_promotion": jax.numpy_dtype_promotion,
    "jax_numpy_rank_promotion": jax.numpy_rank_promotion,
    "jax_default_device": jax.default_device,
    "jax_debug_nans": jax.debug_nans,
}


def n_workers() -> int:
    """How many programs to run at once.

    On a CPU most of a kernel's programs use one core, and those of one thread wait for each
    other. Other devices, and CPUs that are made to look like several, keep themselves busy.
    """
    if jax.default_backend() != "cpu" or jax.local_device_count() > 1:
        return 1
    return (
        len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else (os.cpu_count() or 1)
    )


@ft.cache
def keep_memory() -> None:
    """Makes the C library keep what it is given back, for the next tile.

    By default that of glibc returns blocks to the system, which clears them before they are
    used again: that may take as long as all computations. It keeps blocks as large as the
    largest one, of up to 32 MiB, that was ever given back; this is one, never written to.
    """
    if jax.default_backend() == "cpu":
        np.empty(2**25 - 2**16, np.uint8)


def run_all(calls: Iterable[Callable[[], _T]], workers: int) -> Iterator[_T]:
    """The results of calls, in order, of which so many run at a time.

    Calls are taken when their turn comes, so that few results are in memory. After an error
    or an interruption no more are begun.
    """
    if workers <= 1:
        for call in calls:
            yield jax.block_until_ready(call())
        return
    options = {name: getattr(jax.config, name) for name in _OPTIONS}
    pool = ThreadPoolExecutor(workers, initializer=_set, initargs=(options,))
    try:
        running: collections.deque[Future[_T]] = collections.deque()
        for call in calls:
            # One more than there are workers, so that none waits for the result's reader.
            if len(running) > workers:
                yield running.popleft().result()
            running.append(pool.submit(lambda call=call: jax.block_until_ready(call())))
        while running:
            yield running.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _set(options: dict[str, Any]) -> None:
    """Options of a thread, for as long as it lives."""
    for name, value in options.items():
        _OPTIONS[name](value).__enter__()
