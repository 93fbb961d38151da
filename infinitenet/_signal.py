"""What is known of a layer's input before anything is computed."""

import dataclasses
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from ._custom_types import Example
from ._inputs import Inputs, Positions


@dataclasses.dataclass(frozen=True)
class Signal:
    """The activations of one example, as far as they can be told in advance.

    - `shape`: `(*spatial, channels)`.
    - `dtype`: of the activations, and of the weights drawn for them.
    - `gaussian`: whether channels are Gaussian and independent at infinite width, given
        the inputs. They are after layers of weights, and nonlinearities need it.
    - `homogeneous`: whether all channels have the same distribution.
    - `centred`: whether it is known that activations have zero mean.
    - `origins`: what the activations are functions of: the last layers of weights, and
        maybe the inputs. Activations of different origins are independent.
    - `masked`: whether positions may be missing.
    - `pattern`: the shape of the graph that the input is on, if it is on one.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    gaussian: bool = False
    homogeneous: bool = False
    centred: bool = False
    origins: frozenset = frozenset({"inputs"})
    masked: bool = False
    pattern: tuple[int, ...] | None = None

    @property
    def spatial(self) -> tuple[int, ...]:
        return self.shape[:-1]

    @property
    def channels(self) -> int:
        return self.shape[-1]

    def affine(self, shape: tuple[int, ...]) -> "Signal":
        """After a layer of random weights of zero mean."""
        return dataclasses.replace(
            self,
            shape=shape,
            gaussian=True,
            homogeneous=True,
            centred=True,
            origins=frozenset({object()}),
        )

    def nonlinear(self, *, odd: bool = False) -> "Signal":
        """After a nonlinearity: its outputs have a mean, unless it is odd."""
        return dataclasses.replace(self, gaussian=False, centred=self.centred and odd)


Signals: TypeAlias = Signal | tuple[Any, ...]
Examples: TypeAlias = Example | Inputs | tuple[Any, ...]


def check_numbers(name: str, x: Example) -> None:
    """**Raises:** `ValueError` for integers, and for what is empty."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"`{name}` must be real floating-point numbers, but its dtype is {x.dtype}. "
            f"Convert it first, such as by `{name}.astype(float) / 255` for images."
        )
    if 0 in x.shape:
        raise ValueError(f"`{name}` must not be empty, but its shape is {x.shape}.")


def signal_of(x: Any) -> Signals:
    """The signal that an input is: of one example, or of a tuple of such."""
    if isinstance(x, tuple):
        return tuple(map(signal_of, x))
    positions = Positions()
    if isinstance(x, Inputs):
        x, positions = x.array, x.positions
    if not isinstance(x, jax.Array | np.ndarray | jax.ShapeDtypeStruct):
        raise ValueError(f"`x` must be an array, but it is a {type(x).__name__}.")
    check_numbers("x", x)
    if len(x.shape) == 0:
        raise ValueError(
            "`x` must have a channel axis, its last: one example is of shape "
            "`(*spatial, channels)`. Add it by `x[..., None]`."
        )
    pattern = None if positions.pattern is None else positions.pattern.shape
    masked = positions.missing is not None
    return Signal(tuple(x.shape), np.dtype(x.dtype), masked=masked, pattern=pattern)
