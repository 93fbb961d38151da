"""What is known of a layer's input before anything is computed."""

import dataclasses
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from ._custom_types import Example


@dataclasses.dataclass(frozen=True)
class Signal:
    """The activations of one example, as far as they can be told in advance.

    - `shape`: `(*spatial, channels)`.
    - `dtype`: of the activations, and of the weights drawn for them.
    - `gaussian`: whether channels are Gaussian and independent at infinite width, given
        the inputs. They are after layers of weights, and nonlinearities need it.
    - `fresh`: for each enclosing fan-out, outermost first, whether these activations have
        zero covariance with those of any other branch. They do if weights of their own
        come after their last nonlinearity.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    gaussian: bool = False
    fresh: tuple[bool, ...] = ()

    @property
    def spatial(self) -> tuple[int, ...]:
        return self.shape[:-1]

    @property
    def channels(self) -> int:
        return self.shape[-1]

    def affine(self, shape: tuple[int, ...]) -> "Signal":
        """After a layer of random weights of zero mean."""
        fresh = tuple(True for _ in self.fresh)
        return dataclasses.replace(self, shape=shape, gaussian=True, fresh=fresh)

    def nonlinear(self) -> "Signal":
        """After a nonlinearity, the outputs of which may have a mean."""
        fresh = tuple(False for _ in self.fresh)
        return dataclasses.replace(self, gaussian=False, fresh=fresh)


Signals: TypeAlias = "Signal | tuple[Signals, ...]"
Examples: TypeAlias = "Example | tuple[Examples, ...]"


def check_numbers(name: str, x: Example) -> None:
    """**Raises:** `ValueError` for integers, and for what is empty."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"`{name}` must be real floating-point numbers, but its dtype is {x.dtype}. "
            f"Convert it first, such as by `{name}.astype(float) / 255` for images."
        )
    if 0 in x.shape:
        raise ValueError(f"`{name}` must not be empty, but its shape is {x.shape}.")


def signal_of(x: Examples, fresh: tuple[bool, ...] = ()) -> Signals:
    """The signal that an input is: of one example, or of a tuple of such."""
    if isinstance(x, tuple):
        # Different inputs may be correlated: as if they came from a fan-out.
        return tuple(signal_of(each, (*fresh, False)) for each in x)
    if not isinstance(x, jax.Array | np.ndarray | jax.ShapeDtypeStruct):
        raise ValueError(f"`x` must be an array, but it is a {type(x).__name__}.")
    check_numbers("x", x)
    if len(x.shape) == 0:
        raise ValueError(
            "`x` must have a channel axis, its last: one example is of shape "
            "`(*spatial, channels)`. Add it by `x[..., None]`."
        )
    return Signal(tuple(x.shape), np.dtype(x.dtype), fresh=fresh)
