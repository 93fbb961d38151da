"""Meshes of devices."""

import contextlib

import jax
from jax.sharding import AxisType


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
