"""Some of the positions."""

import dataclasses
import operator
from types import EllipsisType
from typing import Any, NamedTuple, TypeAlias

import equinox as eqx
import jax
from jaxtyping import Array

from .._covariance import Covariance
from .._layer import AbstractLayer
from .._path import LayerError


class _Range(NamedTuple):
    """A `slice`, which cannot be hashed in all versions of Python."""

    start: int | None
    stop: int | None
    step: int | None

    def __repr__(self):
        return f"slice({self.start}, {self.stop}, {self.step})"


_Index: TypeAlias = tuple[int | _Range | EllipsisType, ...]
_everything = _Range(None, None, None)


def _to_index(value: Any) -> _Index:
    several = type(value) is tuple
    return tuple(map(_to_one, value if several else (value,)))


def _to_one(value: Any) -> int | _Range | EllipsisType:
    if value is Ellipsis or isinstance(value, _Range):
        return value
    try:
        if isinstance(value, slice):
            ends = (value.start, value.stop, value.step)
            return _Range(*(None if n is None else operator.index(n) for n in ends))
        if not isinstance(value, bool):
            return operator.index(value)
    except TypeError:
        pass
    raise ValueError(
        "`idx` must be made of integers, slices and `...`, such as `Slice[::2, 0]`, but "
        f"one is {value!r}."
    )


class Index(AbstractLayer):
    r"""Takes some of the positions, $z = x[i]$, by integers and slices.

    At infinite width $k' = k[i, i]$, or $k[i]$ if that is of equal positions.

    !!! example

        ```python
        first = inn.Index(0)  # of a sequence
        cropped = inn.Index(inn.Slice[2:-2, 2:-2])  # of an image
        ```

    ??? cite "Reference"
        Novak et al., Bayesian Deep Convolutional Networks with Many Channels are Gaussian
        Processes, ICLR 2019: section 3.2 (projection on single positions).
    """

    idx: _Index = eqx.field(static=True, converter=_to_index)

    def __check_init__(self):
        if self.idx.count(Ellipsis) > 1:
            raise LayerError(self, f"`idx` may have `...` once, but it is {self.idx}.")

    def _full(self, ndim: int) -> _Index:
        """One for each axis of examples that have so many, with that of channels."""
        idx = self.idx if Ellipsis in self.idx else (*self.idx, Ellipsis)
        at, more = idx.index(Ellipsis), ndim - len(idx) + 1
        # `...` may stand for no axis, and it is left out where there are too many.
        return (*idx[:at], *[_everything] * more, *idx[at + 1 :])

    def _take(self, x: Array, ndim: int, copies: int = 1) -> Array:
        """Of an array that begins with copies of `ndim` axes of positions."""
        one = self._full(ndim + 1)[:-1]
        return x[copies * tuple(slice(*i) if isinstance(i, _Range) else i for i in one)]

    def check(self, signal):
        *idx, channels = self._full(len(signal.shape))
        if len(idx) != len(signal.spatial):
            raise LayerError(
                self,
                f"`idx` {self.idx} is of more axes than an example has: its shape is "
                f"{signal.shape}, without an axis of a batch.",
            )
        if channels != _everything:
            raise LayerError(
                self,
                "must leave channels alone, as there are infinitely many: `idx` may only "
                f"have `:` or `...` for the last axis of examples of shape {signal.shape}, "
                f"but it is {self.idx}. (Examples have no axis of a batch.)",
            )
        missing = jax.ShapeDtypeStruct(signal.spatial, bool)
        for axis, (i, n) in enumerate(zip(idx, signal.spatial, strict=True)):
            if isinstance(i, int) and not -n <= i < n:
                raise LayerError(
                    self,
                    f"`idx` has {i} for axis {axis}, of which the size is {n}: the "
                    f"inputs are of shape {signal.shape}.",
                )
        spatial = jax.eval_shape(self.mask, missing).shape
        if 0 in spatial:
            raise LayerError(
                self, f"`idx` {self.idx} takes nothing of inputs of shape {signal.shape}."
            )
        return dataclasses.replace(signal, shape=(*spatial, signal.channels))

    def __call__(self, x, *, key=None):
        del key
        return self._take(x, x.ndim - 1)

    def mask(self, missing):
        return self._take(missing, missing.ndim)

    def infinite(self, kernel):
        def take(k11, k12, k22):
            del k11, k22
            k = self._take(k12.array, len(k12.spatial), int(k12.pairs))
            return Covariance(k, k12.pairs)

        return kernel.propagate(take, mask=self.mask)


Index.__init__.__doc__ = """**Arguments:**

- `idx`: as in `x[idx]`, where `x` is one example: an integer, which removes an axis, a
    slice, `...`, or a tuple of these. Channels, the last axis, remain.

**Raises:** `ValueError` for anything else, such as arrays.
"""


class _Slicer:
    """See `Slice`."""

    def __getitem__(self, idx: Any) -> Any:
        return idx


Slice = _Slicer()
"""What is in brackets, such as `Slice[::2, 0]`: for [`infinitenet.Index`][]."""
