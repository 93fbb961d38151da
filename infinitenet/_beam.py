"""Kernel matrices on clusters, as pipelines of Apache Beam."""

import functools as ft
import os
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ._custom_types import Arrays
from ._kernel import Demand
from ._layer import AbstractLayer
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
        import apache_beam as beam  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            'Pipelines need Apache Beam: pip install "infinitenet[beam]".'
        ) from error
    # NumPy's, as workers would read arrays of JAX in float32.
    arrays, static = eqx.partition((net, x1, x2), eqx.is_array)
    arrays = jax.tree.map(np.asarray, arrays)
    options = {"store": os.fspath(store), "ntk": ntk, "memory": memory, "demand": demand}
    x64 = jax.dtypes.canonicalize_dtype("float64") == "float64"
    work = ft.partial(_work, arrays, static, options, x64)
    return (
        "Shares" >> beam.Create([(i, shares) for i in range(shares)])
        # Otherwise Beam would do them one after the other, where they are made.
        | "Spread" >> beam.Reshuffle()
        | "Compute" >> beam.Map(work)
    )


def _work(
    arrays: PyTree,
    static: PyTree,
    options: dict[str, Any],
    x64: bool,
    share: tuple[int, int],
) -> tuple[int, int]:
    # Workers are processes of their own, in which options of JAX are as by default.
    with jax.enable_x64(x64):
        args = eqx.combine(jax.tree.map(jnp.asarray, arrays), static)
        store_gram(*args, **options, share=share, progress=False)
    return share
