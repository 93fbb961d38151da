"""Options of the compiler."""

import functools as ft
from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
from jax.experimental.xla_metadata import set_xla_metadata


_T = TypeVar("_T")


def apart(fn: Callable[..., _T]) -> Callable[..., _T]:
    """A function under `jit` that XLA on CPU does not fuse with what is around it.

    It takes a barrier for a hint at most, and evaluates cheap functions once for each use
    of each of their values, such as all taps of a window. A call that is not inlined is a
    program of its own within another one, whether in a loop or not.
    """

    @eqx.filter_jit
    def inlining(*args):
        # The attribute is that of this call. Those within are inlined, as ever.
        with set_xla_metadata(inlineable="true"):
            return fn(*args)

    @ft.wraps(fn)
    def call(*args):
        if jax.default_backend() != "cpu":
            return inlining(*args)
        with set_xla_metadata(inlineable="false"):
            return inlining(*args)

    return call


@ft.cache
def parallel_convolutions() -> dict[str, Any]:
    """Options of a program with convolutions, for `jax.jit(compiler_options=...)`.

    On CPUs XLA gives convolutions to a library that computes those of fewer than 128
    channels on one core only: so this leaves only matrix products to it. It is an option
    of JAX 0.10, and nothing is changed where it does not exist.
    """
    if jax.default_backend() != "cpu":
        return {}
    name = "xla_cpu_experimental_ynn_fusion_type"
    options = {name: "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}
    try:
        jax.jit(lambda x: x, compiler_options=options).lower(0.0).compile()
    except Exception:
        return {}
    return options
