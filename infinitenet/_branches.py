"""What is common to layers made of several layers side by side."""

import functools as ft
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar

from jaxtyping import PRNGKeyArray

from ._kernel import Demand, Demands
from ._layer import AbstractLayer, check, split_key
from ._path import inside
from ._signal import Signals


Branches: TypeAlias = dict[str, AbstractLayer]
T = TypeVar("T")


def each(branches: Branches, fn: Callable[..., T], *inputs: Sequence) -> tuple[T, ...]:
    """`fn(branch, *input)` of every branch, where errors name it."""
    out = []
    for (name, branch), *args in zip(branches.items(), *inputs, strict=True):
        with inside(name):
            out.append(fn(branch, *args))
    return tuple(out)


def carry_each(branches: Branches, inputs: Sequence, key: PRNGKeyArray | None) -> tuple:
    keys = split_key(key, len(branches))
    return each(branches, lambda layer, x, key: layer.carry(x, key=key), inputs, keys)


def draw_each(branches: Branches, key: PRNGKeyArray, signals: Sequence[Signals]) -> tuple:
    keys = split_key(key, len(branches))
    return each(branches, lambda layer, *args: layer.draw(*args), keys, signals)


def check_each(branches: Branches, signals: Sequence[Signals]) -> tuple[Any, ...]:
    return each(branches, check, signals)


def require_each(branches: Branches, demands: Demands) -> tuple[Demands, ...]:
    n = len(branches)
    wanted = (demands,) * n if isinstance(demands, Demand) else demands
    return each(branches, lambda layer, demand: layer.requires(demand), wanted)


def join_demands(demands: Sequence[Demands]) -> Demands:
    """What meets all of these. One for a tuple stands for a tuple of it."""
    return ft.reduce(_join, demands)


def _join(a: Demands, b: Demands) -> Demands:
    if isinstance(a, Demand) and isinstance(b, Demand):
        return a.at_least(b.cross, b.marginal)
    if isinstance(a, tuple):
        others = b if isinstance(b, tuple) else (b,) * len(a)
        return tuple(map(_join, a, others))
    return _join(b, a)
