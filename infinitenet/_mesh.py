"""Meshes of devices."""

import jax
from jax.sharding import AxisType


def auto_mesh(mesh: jax.sharding.Mesh) -> jax.sharding.Mesh:
    """The same devices, for a compiler that decides what is where.

    Where axes are explicit, arrays could not be cut to any number of rows.
    """
    names = mesh.axis_names
    axis_types = (AxisType.Auto,) * len(names)
    return jax.sharding.Mesh(mesh.devices, names, axis_types=axis_types)
