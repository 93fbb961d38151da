"""What a stored kernel matrix is of, as JSON."""

import importlib.metadata
import json
import os
import re
from collections.abc import Mapping
from typing import Any

import jax
from jaxtyping import PyTree

from ._batch import batch_size, shape_of_one
from ._checkpoint import fingerprint_of, fingerprint_of_program
from ._entries import entry_of
from ._kernel import Demand
from ._layer import AbstractLayer
from ._weights import without_weights


FORMAT = 1

# Where a function is in memory, which differs between processes.
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def manifest_of(
    net: AbstractLayer, x1: PyTree, x2: PyTree | None, ntk: bool, demand: Demand
) -> dict[str, Any]:
    """All that the numbers depend on. What is named first is told first.

    Arguments are as those of [`infinitenet.gram`][], as batches.
    """
    net = without_weights(net)
    arrays, entry = entry_of(net, ntk, demand)
    second = x1 if x2 is None else x2
    args = arrays, shape_of_one(x1), shape_of_one(second)
    nngp, _ = jax.eval_shape(entry, *args)
    return {
        "format": FORMAT,
        "infinitenet version": _version(),
        "JAX version": jax.__version__,
        "jax_enable_x64": jax.dtypes.canonicalize_dtype("float64") == "float64",
        "network": " ".join(_ADDRESS.sub("", repr(net)).split()),
        "hyperparameters": fingerprint_of(net),
        "dtype": str(nngp.array.dtype),
        "ntk": ntk,
        "demand": {"cross": demand.cross.name, "marginal": demand.marginal.name},
        "symmetric": x2 is None,
        "shape": [batch_size(x1), batch_size(second), *nngp.array.shape],
        "x1": fingerprint_of(x1),
        "x2": None if x2 is None else fingerprint_of(x2),
        # Of functions in the network nothing else can be told.
        "program": fingerprint_of_program(entry, *args),
    }


def check_manifest(
    path: str | os.PathLike, found: Mapping[str, Any], expected: Mapping[str, Any]
) -> None:
    """**Raises:** `ValueError` with all that differs."""
    other = [name for name in expected if found.get(name) != expected[name]]
    # Of another network, another dtype or other inputs it always is another one.
    if len(other) > 1 and "program" in other:
        other.remove("program")
    if other:
        text = "; ".join(_difference(n, found.get(n), expected[n]) for n in other)
        raise ValueError(
            f"The store {path} is of other kernels: {text}. Repeat the arguments and the "
            "versions that it was begun with to go on, or give another path as `store`."
        )


def _difference(name: str, found: Any, expected: Any) -> str:
    theirs, ours = (json.dumps(x, sort_keys=True) for x in (found, expected))
    # Long texts from shortly before where they begin to differ.
    at = max(len(os.path.commonprefix([theirs, ours])) - 20, 0)
    theirs, ours = _excerpt(theirs, at), _excerpt(ours, at)
    return f"its {name} is {theirs}, but here it is {ours}"


def _excerpt(text: str, at: int, most: int = 80) -> str:
    if len(text) <= most:
        return text
    end = "..." if at + most < len(text) else ""
    return f"{'...' if at else ''}{text[at : at + most]}{end}"


def _version() -> str:
    try:
        return importlib.metadata.version("infinitenet")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
