"""Shows how modules are constructed, for mkdocstrings.

It reads the source, where a module has fields but no `__init__`: that is written by
`dataclasses`, and its docstring is assigned after the class.
"""

import importlib
import inspect
import pathlib
import re
import sys
from typing import Any

import equinox as eqx
import griffe


# For `mkdocs build` where the package is not installed.
sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))


def _text(annotation: Any) -> str | None:
    """`Float[Array, '']` of `jaxtyping.Float[Array, '']`."""
    if annotation is inspect.Parameter.empty:
        return None
    text = inspect.formatannotation(annotation)
    return re.sub(r"\b(?:[A-Za-z_]\w*\.)+(?=[A-Za-z_])", "", text)


def _parameter(parameter: inspect.Parameter) -> griffe.Parameter:
    default = parameter.default
    return griffe.Parameter(
        parameter.name,
        annotation=_text(parameter.annotation),
        kind=griffe.ParameterKind(parameter.kind.description),
        default=None if default is inspect.Parameter.empty else repr(default),
    )


class Constructors(griffe.Extension):
    """Gives each final module the `__init__` that it has at run time."""

    def on_class(self, *, cls: griffe.Class, **kwargs: Any) -> None:
        del kwargs
        if "__init__" in cls.members or cls.name.startswith("Abstract"):
            return
        module = importlib.import_module(cls.module.path)
        value = getattr(module, cls.name, None)
        if not (inspect.isclass(value) and issubclass(value, eqx.Module)):
            return
        parameters = inspect.signature(value).parameters.values()
        init = griffe.Function(
            "__init__",
            parameters=griffe.Parameters(*map(_parameter, parameters)),
            parent=cls,
            lineno=cls.lineno,
            endlineno=cls.endlineno,
        )
        doc = value.__init__.__doc__
        if doc is not None and doc != object.__init__.__doc__:
            init.docstring = griffe.Docstring(inspect.cleandoc(doc), parent=init)
        cls.set_member("__init__", init)
