"""Conversion and checks of the arguments that layers are made from."""

import dataclasses
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._custom_types import Scalar, Sizes
from ._path import LayerError
from ._tracing import is_traced


def to_scalar(value: Scalar) -> Float[Array, ""]:
    """Hyperparameters are arrays: to be differentiated, and changed without compiling."""
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jnp.floating):
        return value
    return jnp.asarray(value, float)


def to_optional_scalar(value: Scalar | None) -> Float[Array, ""] | None:
    return None if value is None else to_scalar(value)


class Domain(NamedTuple):
    """Which values a hyperparameter has, and a scale on which it can be any real number.

    - `to_real`: to that scale. Not finite at the ends of the domain.
    - `from_real`: its inverse.
    - `reach`: how far from where it starts it is to come, on that scale. `None` for any.
    - `learnt`: whether to learn it if nothing else is said.
    """

    to_real: Callable[[Array], Array]
    from_real: Callable[[Array], Array]
    reach: float | None = None
    learnt: bool = True

    def of_field(self) -> dict[str, Any]:
        """For the declaration of a layer's hyperparameter, `eqx.field(metadata=...)`."""
        return {"domain": self}


def _same(x: Array) -> Array:
    return x


def _log_of_minus(x: Array) -> Array:
    return jnp.log(-x)


def _minus_exp(x: Array) -> Array:
    return -jnp.exp(x)


# Of logarithms. Scales of some layers undo each other (of ReLU networks without biases,
# all do), and a bias that is of no use goes to zero for ever. Without an end to it they
# would come to numbers that overflow.
_REACH = float(np.log(1e4))

# Of fields that are declared without any, if they are scalars.
REAL_DOMAIN = Domain(_same, _same)
POSITIVE_DOMAIN = Domain(jnp.log, jnp.exp, _REACH)

# Metadata of fields.
REAL = REAL_DOMAIN.of_field()
POSITIVE = POSITIVE_DOMAIN.of_field()
NEGATIVE = Domain(_log_of_minus, _minus_exp, _REACH).of_field()
# Safeguards, such as what is added to variances before dividing by them.
SAFEGUARD = POSITIVE_DOMAIN._replace(learnt=False).of_field()
# Of noise in training. The marginal likelihood knows it as noise of the prior.
PROBABILITY = Domain(
    jax.scipy.special.logit, jax.nn.sigmoid, _REACH, learnt=False
).of_field()


def check_scalars(layer: eqx.Module) -> None:
    """Refuses stacks of networks, the hyperparameters of which have a further axis."""
    for field in dataclasses.fields(layer):
        if field.metadata.get("converter") not in (to_scalar, to_optional_scalar):
            continue
        value = getattr(layer, field.name)
        shape = () if value is None else jnp.shape(value)
        if shape != ():
            raise LayerError(
                layer,
                f"`{field.name}` must be a scalar, but its shape is {shape}. If this is a "
                "stack of networks, such as an ensemble, take them one by one: "
                "`equinox.filter_vmap(lambda net: infinitenet.gram(net, x))(nets)`.",
            )


def to_sizes(value: Sizes | int) -> tuple[int, ...]:
    """One size for each spatial dimension."""
    try:
        several = value if isinstance(value, Iterable) else (value,)
        return tuple(operator.index(n) for n in several)
    except TypeError:
        raise ValueError(
            f"Sizes and strides must be integers or tuples of them, but one is {value!r}."
        ) from None


def to_optional_sizes(value: Sizes | int | None) -> tuple[int, ...] | None:
    return None if value is None else to_sizes(value)


def check_width(layer: object, name: str, value: int) -> None:
    if not isinstance(value, int | np.integer) or value is True or value < 1:
        raise LayerError(layer, f"`{name}` must be a positive integer, but is {value!r}.")


def check_scale(layer: object, name: str, value: Array | None) -> None:
    """Standard deviations are not negative. Arrays under transformations pass."""
    if value is None or is_traced(value):
        return
    if not isinstance(value, jax.Array | np.ndarray):  # For example, a mask of `value`s.
        return
    if not np.all(np.isfinite(value)) or np.any(np.asarray(value) < 0):
        raise LayerError(
            layer, f"`{name}` must be finite and not negative, but it is {value}."
        )


def check_number(layer: object, name: str, value: Array | None) -> None:
    """Any real number. Arrays under transformations pass."""
    if is_traced(value) or not isinstance(value, jax.Array):
        return
    if not np.all(np.isfinite(value)):
        raise LayerError(layer, f"`{name}` must be finite, but it is {value}.")


# The moments of higher powers overflow in float64.
_MAX_DEGREE = 140


def check_degree(layer: object, name: str, value: int) -> None:
    """Of a polynomial."""
    known = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not known or not 0 <= value <= _MAX_DEGREE:
        raise LayerError(
            layer,
            f"`{name}` must be an integer from 0 to {_MAX_DEGREE}, but is {value!r}.",
        )


def check_window(
    layer: object, name: str, size: Sequence[int], strides: Sequence[int], padding: str
) -> None:
    """Filters and windows of pooling."""
    if any(n < 1 for n in (*size, *strides)):
        raise LayerError(
            layer,
            f"`{name}` and `strides` must be positive, but they are {tuple(size)} and "
            f"{tuple(strides)}.",
        )
    if len(size) != len(strides):
        raise LayerError(
            layer,
            f"`{name}` and `strides` must be of the same length, one number for each "
            f"spatial dimension, but they are {tuple(size)} and {tuple(strides)}.",
        )
    if padding not in ("SAME", "VALID", "CIRCULAR"):
        raise LayerError(
            layer,
            f'`padding` must be "SAME", "VALID" or "CIRCULAR", but it is {padding!r}.',
        )
