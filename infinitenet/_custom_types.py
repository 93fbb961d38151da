"""Aliases for the types of arguments."""

from collections.abc import Sequence
from typing import TypeAlias

import jax
import numpy as np
from jaxtyping import Array, Float, PyTree


# Inputs: arrays, or tuples of arrays for networks with several inputs. Their shapes are
# told by docstrings: in the annotation they would be checked first, and the message would
# not say what to do.
Arrays: TypeAlias = PyTree[jax.Array | np.ndarray]

# What `init` takes: it looks at the shape and the dtype of an example only.
Example: TypeAlias = jax.Array | np.ndarray | jax.ShapeDtypeStruct

# What a user may give for a hyperparameter: it becomes a scalar array, a leaf of the net.
Scalar: TypeAlias = float | int | Float[Array, ""]

Sizes: TypeAlias = Sequence[int]
