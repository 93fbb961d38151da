"""Networks as text: as they would be written."""

import inspect
import textwrap

import equinox as eqx
import jax
import numpy as np

from ._tracing import is_traced


# Vectors of up to this many numbers are written out.
_LARGE = 16


def show(layer: eqx.Module) -> str:
    """A layer as the call that makes it, without arguments left at their defaults."""
    shown = []
    arguments = inspect.signature(type(layer)).parameters
    for name, argument in arguments.items():
        # Some are kept within others, such as `s` in the parameterization.
        value = _show(getattr(layer, name, argument.default))
        if argument.default is inspect.Parameter.empty:
            shown.append(value)
        elif value != _show(argument.default):
            shown.append(f"{name}={value}")
    if "weights" not in arguments and getattr(layer, "weights", None) is not None:
        shown.append(f"weights={_show(layer.weights)}")  # pyright: ignore
    return f"{type(layer).__name__}({', '.join(shown)})"


def _show(value: object) -> str:
    if isinstance(value, tuple | list) and any(isinstance(v, eqx.Module) for v in value):
        lines = "".join(f"{_show(each)},\n" for each in value)
        return f"[\n{textwrap.indent(lines, '    ')}]"
    if isinstance(value, jax.Array | np.ndarray):
        if is_traced(value) or value.size > _LARGE or value.ndim > 1:
            return eqx.tree_pformat(value)
        numbers = [f"{float(x):.6g}" for x in np.ravel(value)]
        return numbers[0] if value.ndim == 0 else f"[{', '.join(numbers)}]"
    if isinstance(value, float):
        return f"{value:.6g}"
    # Functions by their names, and not by where they are in memory.
    is_function = callable(value) and not isinstance(value, type | eqx.Module)
    return getattr(value, "__name__", repr(value)) if is_function else repr(value)
