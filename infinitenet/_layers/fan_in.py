"""One array of the several that branches have made."""

import abc

import equinox as eqx

from .._joining import AbstractJoin, Adding, Concatenating, join_kernels, Multiplying
from .._layer import AbstractCombinator
from .._path import LayerError


class AbstractFanIn(AbstractCombinator):
    """Makes one array of a tuple of them."""

    @abc.abstractmethod
    def join(self) -> AbstractJoin:
        """How."""

    def carry(self, inputs, *, key=None):
        del key
        return self.join().inputs(inputs)

    def check(self, signal):
        if not isinstance(signal, tuple) or not signal:
            raise LayerError(
                self,
                "joins the arrays of a tuple, but its input is a single array. Put a "
                "`FanOut` and a `Parallel` before it, or use `Sum`, `Product` or "
                "`Concatenate`.",
            )
        return self.join().check(self, signal, [f"{i}" for i in range(len(signal))])

    def infinite(self, kernel):
        return join_kernels(self.join(), kernel)


class FanInSum(AbstractFanIn):
    r"""Adds the arrays of a tuple, which branches have made.

    See [`infinitenet.Sum`][] for its infinite width, and what branches must be.

    ??? cite "Reference"
        Novak et al., Neural Tangents: Fast and Easy Infinite Neural Networks in Python,
        ICLR 2020: section 2.1 and Table 1.
    """

    def join(self):
        return Adding()


class FanInProd(AbstractFanIn):
    r"""Multiplies the arrays of a tuple, which branches have made.

    See [`infinitenet.Product`][] for its infinite width, and what branches must be.

    ??? cite "Reference"
        Novak et al., Neural Tangents: Fast and Easy Infinite Neural Networks in Python,
        ICLR 2020: section 2.1 and Table 1.
    """

    def join(self):
        return Multiplying()


class FanInConcat(AbstractFanIn):
    r"""Concatenates the arrays of a tuple, which branches have made.

    See [`infinitenet.Concatenate`][] for its infinite width, and what branches must be.

    ??? cite "Reference"
        Novak et al., Neural Tangents: Fast and Easy Infinite Neural Networks in Python,
        ICLR 2020: section 2.1 and Table 1.
    """

    axis: int = eqx.field(default=-1, static=True)

    def join(self):
        return Concatenating(self.axis)


FanInConcat.__init__.__doc__ = """**Arguments:**

- `axis`: -1 for channels, or an axis of positions of one example, counted from 0.
"""
