"""Networks as text: as they would be written."""

import inspect
import textwrap

import equinox as eqx
import jax
import numpy as np

from ._tracing import is_traced


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
        known = value.ndim == 0 and not is_traced(value)
        return f"{float(value):.6g}" if known else eqx.tree_pformat(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    return repr(value)
