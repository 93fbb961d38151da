"""Meshes of devices."""

import contextlib

import jax
from jax.sharding import AxisType, NamedSharding
from jaxtyping import Array, PyTree

from ._tracing import is_traced


def auto_mesh(mesh: jax.sharding.Mesh) -> jax.sharding.Mesh:
    """The same devices, for a compiler that decides what is where.

    Where axes are explicit, arrays could not be cut to any number of rows.
    """
    names = mesh.axis_names
    axis_types = (AxisType.Auto,) * len(names)
    return jax.sharding.Mesh(mesh.devices, names, axis_types=axis_types)


def on_devices(mesh: jax.sharding.Mesh | None) -> contextlib.AbstractContextManager:
    """Where new arrays are made: not on a mesh that the user may have set."""
    if mesh is None:
        return contextlib.nullcontext()
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def without_explicit_axes(x: Array) -> Array:
    """The same array where it is, for a compiler that decides where results are.

    Where axes are explicit, not even a matrix and its transpose could be added.
    """
    sharding = None if is_traced(x) else getattr(x, "sharding", None)
    if not isinstance(sharding, NamedSharding):
        return x
    mesh, spec = sharding.mesh, sharding.spec
    if AxisType.Explicit not in mesh.axis_types or not isinstance(mesh, jax.sharding.Mesh):
        return x
    return jax.device_put(x, NamedSharding(auto_mesh(mesh), spec))


def on_all_devices(x: PyTree[Array]) -> PyTree[Array]:
    """Arrays of a trace, but whole if they are spread over explicit axes.

    No loop over what is spread would have parts of one shape on each device.
    """

    def whole(x: Array) -> Array:
        mesh = jax.typeof(x).sharding.mesh
        if AxisType.Explicit not in mesh.axis_types:
            return x
        return jax.sharding.reshard(x, NamedSharding(mesh, jax.P()))

    return jax.tree.map(whole, x)
