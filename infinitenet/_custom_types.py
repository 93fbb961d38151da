"""Aliases for the types of arguments."""

from collections.abc import Sequence
from typing import Literal, TypeAlias

import jax
from jaxtyping import Array, Float
import numpy as np


# What `init` takes: it looks at the shape and the dtype of an example only.
Example: TypeAlias = jax.Array | np.ndarray | jax.ShapeDtypeStruct

# What a user may give for a hyperparameter: it becomes a scalar array, a leaf of the net.
Scalar: TypeAlias = float | int | Float[Array, ""]

Sizes: TypeAlias = Sequence[int]
Padding: TypeAlias = Literal["SAME", "VALID", "CIRCULAR"]
