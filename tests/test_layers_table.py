"""The table of all layers in the documentation."""

import importlib.util
import pathlib

import pytest


_path = pathlib.Path(__file__).resolve().parents[1] / "docs" / "_layers_table.py"
_spec = importlib.util.spec_from_file_location("_layers_table", _path)
assert _spec is not None and _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)

_finite_only = {"BatchNorm", "LogSoftmax", "MaxPool", "Softmax"}
_infinite_only = {"ExpNormalized"}
_unmasked = {"BatchNorm"}


@pytest.mark.parametrize("cls", _module.exported(), ids=lambda cls: cls.__name__)
def test_every_layer(cls):
    """Is tried, and what it cannot do is known."""
    row = _module.row(cls)
    assert (row.finite == "yes") == (row.name not in _infinite_only)
    assert (row.infinite != "–") == (row.name not in _finite_only)
    assert (row.masks == "yes") == (row.name not in _unmasked)
    assert row.reference or row.name in _finite_only, "Its docstring cites no paper."


def test_table():
    lines = _module.on_page_markdown("a\n<!-- table of layers -->\nb").splitlines()
    assert len(lines) == len(_module.exported()) + 4
    assert len({line.count("|") for line in lines[1:-1]}) == 1
