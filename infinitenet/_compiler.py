"""Options of the compiler."""

import functools as ft

import jax


@ft.cache
def parallel_convolutions() -> dict[str, str]:
    """Options of a program with convolutions, for `jax.jit(compiler_options=...)`.

    On CPUs XLA gives convolutions to a library that computes those of fewer than 128
    channels on one core only: so this leaves only matrix products to it. It is an option
    of JAX 0.10, and nothing is changed where it does not exist.
    """
    if jax.default_backend() != "cpu":
        return {}
    options = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}
    try:
        jax.jit(lambda x: x, compiler_options=options).lower(0.0).compile()
    except Exception:
        return {}
    return options
