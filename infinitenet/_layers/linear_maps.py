"""Linear maps of positions that are not random."""

import dataclasses
import functools as ft
import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._covariance import apply_matrix, Covariance, Pairs
from .._hyperparameters import check_number, to_sizes
from .._layer import AbstractLayer
from .._path import LayerError


#
# Products with a constant
#


Axes: TypeAlias = tuple[int, ...]
DimensionNumbers: TypeAlias = tuple[tuple[Axes, Axes], tuple[Axes, Axes]]


def _to_constant(value: Any) -> Array | None:
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jnp.floating):
        return value
    return None if value is None else jnp.asarray(value, float)


def _to_numbers(value: Any) -> DimensionNumbers:
    contracted, batch = (tuple(map(to_sizes, pair)) for pair in value)
    (left, right), (left_batch, right_batch) = contracted, batch
    return (left, right), (left_batch, right_batch)


class DotGeneral(AbstractLayer):
    r"""The product with a constant array, in the sense of `jax.lax.dot_general`.

    It scales activations by a number or by one for each position, or it sums over
    positions with any weights, $z(p) = \sum_{p'} A_{p p'} x(p')$. At infinite width

    $$
    k'(p, q) = \sum_{p' q'} A_{p p'} A_{q q'} k(p', q').
    $$

    An output is missing if all inputs are that it sums over with a nonzero weight.

    !!! example

        ```python
        # Differences between the halves of a sequence of 6.
        halves = jnp.array([1, 1, 1, -1, -1, -1]) / 3
        difference = inn.DotGeneral(rhs=halves, dimension_numbers=(((0,), (0,)), ((), ())))
        ```

    ??? cite "Reference"
        Novak et al., Neural Tangents: Fast and Easy Infinite Neural Networks in Python,
        ICLR 2020: Table 1.
    """

    lhs: Array | None = eqx.field(default=None, converter=_to_constant, kw_only=True)
    rhs: Array | None = eqx.field(default=None, converter=_to_constant, kw_only=True)
    dimension_numbers: DimensionNumbers = eqx.field(
        default=(((), ()), ((), ())), static=True, converter=_to_numbers, kw_only=True
    )

    def __check_init__(self):
        if (self.lhs is None) == (self.rhs is None):
            raise LayerError(
                self,
                "must be given either `lhs` or `rhs`: the constant that is the left, or "
                "the right factor. The other one is the input.",
            )
        check_number(self, "lhs" if self.rhs is None else "rhs", self._constant)

    @property
    def _constant(self) -> Array:
        constant = self.rhs if self.lhs is None else self.lhs
        assert constant is not None
        return constant

    def _numbers(self) -> tuple[tuple[Axes, Axes], tuple[Axes, Axes]]:
        """Contracted and batch axes of the input, and of the constant."""
        (contracted, batch), side = self.dimension_numbers, int(self.lhs is not None)
        return (contracted[side], batch[side]), (contracted[1 - side], batch[1 - side])

    def _product(self, constant: Array, x: Float[Array, "*spatial n"]) -> Array:
        """Channels come last."""
        constant = constant.astype(x.dtype)
        sides = (x, constant) if self.lhs is None else (constant, x)
        precision = lax.Precision.HIGHEST
        out = lax.dot_general(*sides, self.dimension_numbers, precision=precision)
        if self.lhs is not None:
            return out
        contracted, _ = self._numbers()[0]
        return jnp.moveaxis(out, x.ndim - len(contracted) - 1, -1)

    def check(self, signal):
        (contracted, batch), constants = self._numbers()
        axes, spatial = (*contracted, *batch), signal.spatial
        if any(not 0 <= axis < len(spatial) for axis in axes):
            raise LayerError(
                self,
                "`dimension_numbers` must count the axes of positions of one example, "
                f"from 0: there are {len(spatial)} of them, but its input is to be summed "
                f"over axes {contracted}, with batch axes {batch}. Channels remain.",
            )
        try:
            x = jax.ShapeDtypeStruct(signal.shape, signal.dtype)
            out = jax.eval_shape(self._product, self._constant, x)
        except (TypeError, ValueError, IndexError):
            raise LayerError(
                self,
                f"`dimension_numbers` do not fit: axes {(contracted, batch)} of an input "
                f"of shape {signal.shape}, and axes {constants} of a constant of shape "
                f"{self._constant.shape}.",
            ) from None
        return dataclasses.replace(signal, shape=out.shape)

    def __call__(self, x, *, key=None):
        del key
        return self._product(self._constant, x)

    def mask(self, missing):
        seen = (self._constant != 0).astype(float)
        present = (~missing).astype(float)[..., None]
        return self._product(seen, present)[..., 0] == 0

    def _sums(self) -> bool:
        return bool(self._numbers()[0][0])

    def requires(self, demand):
        return demand.of_all_pairs() if self._sums() else demand

    def infinite(self, kernel):
        def product(k11, k12, k22):
            del k11, k22
            if k12.pairs == Pairs.SAME and not self._sums() and k12.spatial:
                square = self._constant**2
                k = self._product(square, k12.array[..., None])[..., 0]
                return Covariance(k, Pairs.SAME)
            left = lambda x: self._product(self._constant, x)
            return k12.transform(left, left)

        needs = Pairs.ALL if self._sums() else Pairs.SAME
        out = kernel.propagate(product, needs=needs, mask=self.mask)
        # Positions may be made, each with a variance of its own.
        uniform = out.uniform and not out.nngp.spatial
        return dataclasses.replace(out, uniform=uniform)


DotGeneral.__init__.__doc__ = """**Arguments:**

- `lhs`, `rhs`: the constant, a number or an array, differentiable. It is the left factor
    or the right one, and the input is the other.
- `dimension_numbers`: `((lhs_contracted, rhs_contracted), (lhs_batch, rhs_batch))`, axes
    that are summed over, and axes along which elements belong together. Those of the input
    are axes of positions of one example, counted from 0.

Axes of the output are in the order of `jax.lax.dot_general`: batch axes, the others of the
left factor, those of the right one. But channels always come last.

**Raises:** `ValueError` if there is no constant, or two of them.
"""


#
# Images of other sizes
#


def _to_method(value: Any) -> str:
    return value.name.lower() if isinstance(value, jax.image.ResizeMethod) else value


# Compiled as one, as it has dozens of operations.
@ft.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _weights(n: int, size: int, method: str, antialias: bool) -> Float[Array, "size n"]:
    # Each column is what becomes of a single one among zeros.
    return jax.image.resize(jnp.eye(n), (size, n), method, antialias=antialias)


class ImageResize(AbstractLayer):
    r"""Resizes an image, or positions of any dimension, as `jax.image.resize` does.

    At infinite width $k' = A k A^\top$ with the weights $A$ of the interpolation, of
    whichever method. An output is missing if all inputs are that it is interpolated from.

    ??? cite "Reference"
        Novak et al., Neural Tangents: Fast and Easy Infinite Neural Networks in Python,
        ICLR 2020: Table 1.
    """

    shape: tuple[int, ...] = eqx.field(static=True, converter=to_sizes)
    method: str = eqx.field(static=True, converter=_to_method)
    antialias: bool = eqx.field(default=True, static=True)

    def __check_init__(self):
        try:
            jax.image.ResizeMethod.from_string(self.method)
        except (ValueError, AttributeError, TypeError):
            names = [method.name.lower() for method in jax.image.ResizeMethod]
            raise LayerError(
                self, f"`method` must be one of {names}, but it is {self.method!r}."
            ) from None
        if any(n < 1 and n != -1 for n in self.shape):
            raise LayerError(
                self,
                "`shape` must be positive sizes, or -1 to keep one, but it is "
                f"{self.shape}.",
            )

    def _out(self, spatial: Sequence[int]) -> tuple[int, ...]:
        each = zip(spatial, self.shape, strict=True)
        return tuple(n if size == -1 else size for n, size in each)

    def _matrices(self, spatial: Sequence[int]) -> list[np.ndarray]:
        """The weights along each dimension, of shape `(outputs, inputs)`."""
        out = []
        # They depend on shapes alone: constants to whatever is compiled.
        with jax.ensure_compile_time_eval():
            for n, size in zip(spatial, self._out(spatial), strict=True):
                out.append(np.asarray(_weights(n, size, self.method, self.antialias)))
        return out

    def _resize(self, x: Float[Array, "*spatial n"], matrices: Sequence[np.ndarray]):
        for axis, matrix in enumerate(matrices):
            x = apply_matrix(matrix, x, axis)
        return x

    def check(self, signal):
        if len(self.shape) != len(signal.spatial):
            raise LayerError(
                self,
                "`shape` must have a size for each axis of positions, without channels: "
                f"these are {signal.spatial}, but it is {self.shape}. Keep one by -1.",
            )
        shape = (*self._out(signal.spatial), signal.channels)
        return dataclasses.replace(signal, shape=shape)

    def __call__(self, x, *, key=None):
        del key
        return self._resize(x, self._matrices(x.shape[:-1]))

    def mask(self, missing):
        # What is below rounding counts as zero.
        tiny = math.sqrt(jnp.finfo(jnp.result_type(float)).eps)
        seen = [abs(m) > tiny for m in self._matrices(missing.shape)]
        present = (~missing).astype(float)[..., None]
        return self._resize(present, seen)[..., 0] == 0

    @property
    def _copies(self) -> bool:
        """Whether each output is one of the inputs."""
        method = jax.image.ResizeMethod.from_string(self.method)
        return method == jax.image.ResizeMethod.NEAREST

    def requires(self, demand):
        return demand if self._copies else demand.of_all_pairs()

    def infinite(self, kernel):
        def resize(k11, k12, k22):
            del k11, k22
            return k12.map(self._matrices(k12.spatial))

        needs = Pairs.SAME if self._copies else Pairs.ALL
        return kernel.propagate(resize, needs=needs, mask=self.mask)


ImageResize.__init__.__doc__ = """**Arguments:**

- `shape`: the new size of each axis of positions, or -1 to keep one.
- `method`: that of `jax.image.resize`: `"nearest"`, `"linear"`, `"cubic"`, `"lanczos3"`,
    `"lanczos5"`, or a `jax.image.ResizeMethod`.
- `antialias`: whether to average over more inputs where an axis gets shorter.

**Raises:** `ValueError` for arguments that make no sense.
"""
