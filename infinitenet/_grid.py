"""Blocks of a matrix on the devices of a mesh."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.lax as lax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, PyTree

from ._mesh import auto_mesh
from ._schedule import blocks


@dataclasses.dataclass(frozen=True)
class Grid:
    """A matrix of `n1` rows and `n2` columns, of which each device has a block.

    Rows are spread over the first axis of the mesh, and columns over the second one if
    there is any. Arrays of something on each device have a first axis of devices.
    """

    mesh: Mesh
    n1: int
    n2: int

    @property
    def axes(self) -> tuple[str, ...]:
        return tuple(self.mesh.axis_names)

    @property
    def of_rows(self) -> str | None:
        return self.axes[0]

    @property
    def of_columns(self) -> str | None:
        return self.axes[1] if len(self.axes) > 1 else None

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of devices along rows and along columns."""
        rows, columns = (*self.mesh.devices.shape, 1)[:2]
        return rows, columns

    @property
    def block(self) -> tuple[int, int]:
        """The size of each block. Those at the end may reach beyond the matrix."""
        return blocks(self.n1, self.shape[0]), blocks(self.n2, self.shape[1])

    @property
    def spec(self) -> jax.P:
        """How the matrix is spread."""
        # JAX has no arrays of which devices hold parts of different sizes.
        rows = self.of_rows if self.n1 % self.shape[0] == 0 else None
        return jax.P(rows, self.of_columns if self.n2 % self.shape[1] == 0 else None)

    @property
    def on_each(self) -> jax.P:
        return jax.P(self.axes)

    def put(self, x: np.ndarray, spec: jax.P) -> Array:
        sharding = NamedSharding(self.mesh, spec)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    def padded(self, x: PyTree, n: int, spec: jax.P) -> PyTree:
        """With the last example over and over, of which the kernel is not kept."""

        def pad(x: np.ndarray) -> Array:
            return self.put(x[np.minimum(np.arange(n), len(x) - 1)], spec)

        return jax.tree.map(pad, x)

    def map(self, fn: Callable, in_specs: Any, **options: Any) -> Callable:
        """A function that every device runs by itself, of what belongs to it."""
        return jax.jit(self.mapped(fn, in_specs, self.on_each), **options)

    def mapped(self, fn: Callable, in_specs: Any, out_specs: Any) -> Callable:
        return jax.shard_map(
            fn, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
        )

    def corner(self) -> tuple[Any, Any]:
        """Row and column at which a device's block starts, within `map`."""
        axes = self.of_rows, self.of_columns
        row, column = (lax.axis_index(a) if a else 0 for a in axes)
        return row * self.block[0], column * self.block[1]


def to_mesh(mesh: Any) -> Mesh:
    """The devices of a mesh, for a compiler that decides what is where.

    **Raises:** `ValueError` for what is not a mesh of one or two axes.
    """
    if not isinstance(mesh, Mesh):
        raise ValueError(f"`mesh` must be a `jax.sharding.Mesh`, but it is {mesh!r}.")
    if not 1 <= len(mesh.axis_names) <= 2:
        raise ValueError(
            "`mesh` must have one axis, for rows, or two, for rows and columns, but it has "
            f"{mesh.axis_names}. Reshape its devices."
        )
    return auto_mesh(mesh)
