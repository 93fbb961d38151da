"""Branches that are functions of the same activations, as one nonlinearity.

They are correlated, so that their covariances do not add up. But their sum, or their
product, is a nonlinearity again, such as that of `x` and `relu(x)`.
"""

from collections.abc import Sequence

import equinox as eqx

from ._branches import Branches
from ._by_quadrature import AbstractQuadrature
from ._joining import AbstractJoin, Adding, Multiplying
from ._piecewise_linear import AbstractABRelu
from ._pointwise import AbstractPointwise


class _Slopes(AbstractABRelu):
    """A sum of functions that are linear on either side of zero."""

    parts: tuple[AbstractABRelu, ...]

    def slopes(self, dtype):
        left, right = zip(*(part.slopes(dtype) for part in self.parts), strict=True)
        return sum(left), sum(right)


class _Merged(AbstractQuadrature):
    """A sum or a product of any functions."""

    parts: tuple[AbstractPointwise, ...]
    join: AbstractJoin = eqx.field(static=True)

    def __call__(self, x, *, key=None):
        del key
        return self.join.arrays([part(x) for part in self.parts])

    @property
    def odd(self):
        return isinstance(self.join, Adding) and all(part.odd for part in self.parts)


def merge(parts: Sequence[AbstractPointwise], join: AbstractJoin) -> AbstractPointwise:
    """The sum or the product of several functions of the same activations."""
    linear = tuple(part for part in parts if isinstance(part, AbstractABRelu))
    if isinstance(join, Adding) and len(linear) == len(parts):
        return _Slopes(linear)
    return _Merged(tuple(parts), join)


def merged(branches: Branches, join: AbstractJoin) -> Branches:
    """The same with one branch for all those that are functions of each activation."""
    if not isinstance(join, Adding | Multiplying):
        return branches
    # Steps are not seen by gradient descent, unlike what they are merged with.
    parts = {name: layer.as_pointwise() for name, layer in branches.items()}
    known = {name: p for name, p in parts.items() if p is not None and not p.flat}
    if len(known) < 2:
        return branches
    others = {name: layer for name, layer in branches.items() if name not in known}
    return {" and ".join(known): merge(list(known.values()), join), **others}
