"""Kernel matrices on clusters, as pipelines of Apache Beam."""

import functools as ft
import os
from collections.abc import Callable
from typing import Any

import jax

from ._custom_types import Arrays
from ._kernel import Demand
from ._layer import AbstractLayer
from ._store import StoredGram
from ._storing import store_gram


def beam_gram(
    net: AbstractLayer,
    x1: Arrays,
    x2: Arrays | None = None,
    *,
    store: str | os.PathLike,
    shares: int = 100,
    ntk: bool = True,
    memory: int | None = None,
    demand: Demand = Demand(),
) -> Any:
    """A step of a pipeline of Apache Beam that computes kernel matrices into a store.

    !!! example

        ```python
        with beam.Pipeline(options=options) as pipeline:
            pipeline | inn.beam_gram(net, x_train, store="/shared/kernels.zarr")
        gram = inn.open_gram("/shared/kernels.zarr").load()
        ```

    **Arguments:**

    - `net`, `x1`, `x2`, `ntk`, `memory`, `demand`: as for [`infinitenet.store_gram`][].
        Beam sends the network and the inputs to its workers.
    - `store`: a folder that all workers can write to.
    - `shares`: into how many parts to divide the work. A worker takes one after the other.

    **Returns:**

    A `beam.PTransform`, of which the result is a collection of the shares that are done,
    `(i, shares)`.

    **Raises:** `ValueError` if `shares` is less than one. `ImportError` without Beam:
    `pip install "infinitenet[beam]"`. The pipeline fails as `store_gram` does.
    """
    if shares < 1:
        raise ValueError(f"`shares` must be at least 1, but it is {shares}.")
    try:
        import apache_beam as beam
    except ImportError as error:
        raise ImportError(
            'Pipelines need Apache Beam: pip install "infinitenet[beam]".'
        ) from error
    options = {"ntk": ntk, "memory": memory, "demand": demand, "progress": False}
    run = ft.partial(store_gram, net, x1, x2, store=os.fspath(store), **options)
    work = ft.partial(_work, run, bool(jax.config.jax_enable_x64))
    return (
        "Shares" >> beam.Create([(i, shares) for i in range(shares)])
        # Otherwise Beam would do them one after the other, where they are made.
        | "Spread" >> beam.Reshuffle()
        | "Compute" >> beam.Map(work)
    )


def _work(
    run: Callable[..., StoredGram], x64: bool, share: tuple[int, int]
) -> tuple[int, int]:
    # Workers are processes of their own, in which options of JAX are as by default.
    with jax.enable_x64(x64):
        run(share=share)
    return share
