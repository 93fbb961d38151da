"""Threads that run programs side by side."""

import collections
import contextlib
import functools as ft
import os
import threading
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
    # Within one of the threads others would wait for it, and it for them.
    if workers <= 1 or getattr(_thread, "is_worker", False):
        for call in calls:
            yield jax.block_until_ready(call())
        return
    options = {name: getattr(jax.config, name) for name in _OPTIONS}
    pool = _pool(workers, os.getpid())
    running: collections.deque[Future[_T]] = collections.deque()
    try:
        for call in calls:
            # One more than there are workers, so that none waits for the result's reader.
            if len(running) > workers:
                yield running.popleft().result()
            running.append(pool.submit(_run, call, options))
        while running:
            yield running.popleft().result()
    finally:
        for future in running:
            future.cancel()


@ft.cache
def _pool(workers: int, process: int) -> ThreadPoolExecutor:
    """Threads that wait for work: to start them takes as long as a small matrix.

    A process that was forked has none of those of its parent.
    """
    del process
    return ThreadPoolExecutor(workers, "infinitenet")


# What belongs to each thread.
_thread = threading.local()


def _run(call: Callable[[], _T], options: dict[str, Any]) -> _T:
    _thread.is_worker = True
    with contextlib.ExitStack() as stack:
        for name, value in options.items():
            if getattr(jax.config, name) != value:
                stack.enter_context(_OPTIONS[name](value))
        return jax.block_until_ready(call())
