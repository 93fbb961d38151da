"""Networks as text: as they would be written."""

import dataclasses
import textwrap

import equinox as eqx
import jax
import numpy as np

from ._tracing import is_traced


def show(node: object) -> str:
    """A module as the call that makes it, without arguments left at their defaults."""
    if isinstance(node, eqx.Module):
        shown = [_field(node, f) for f in dataclasses.fields(node) if f.repr]
        return f"{type(node).__name__}({', '.join(filter(None, shown))})"
    if isinstance(node, tuple | list) and any(isinstance(n, eqx.Module) for n in node):
        lines = "".join(f"{show(each)},\n" for each in node)
        return f"[\n{textwrap.indent(lines, '    ')}]"
    if isinstance(node, jax.Array | np.ndarray):
        return _array(node)
    return repr(node)


def _field(module: eqx.Module, field: dataclasses.Field) -> str | None:
    value = getattr(module, field.name)
    optional = field.default is not dataclasses.MISSING
    if optional and _equal(value, field.default):
        return None
    return f"{field.name}={show(value)}" if optional else show(value)


def _equal(value: object, default: object) -> bool:
    if is_traced(value):
        return False
    if isinstance(value, jax.Array | np.ndarray):
        if value.ndim > 0 or not isinstance(default, float | int):
            return False
        return bool(value == np.asarray(default, value.dtype))
    if isinstance(default, str) and isinstance(value, eqx.Module):
        return show(value) == default
    return type(value) is type(default) and value == default


def _array(array: jax.Array | np.ndarray) -> str:
    if array.ndim == 0 and not is_traced(array):
        return f"{float(array):.6g}"
    return eqx.tree_pformat(array)
