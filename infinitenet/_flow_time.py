"""Steps of an optimiser as times of gradient flow."""

from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ._checks import check_finite
from ._inference.scalars import to_scalar
from ._tracing import is_traced


def flow_time(
    steps: ArrayLike | Sequence[int],
    learning_rate: ArrayLike | Callable[..., ArrayLike],
    momentum: ArrayLike = 0.0,
) -> Float[Array, "*steps"]:
    r"""The time of gradient flow that a number of steps of an optimiser stands for:

    $$
    t(s) = \sum_{k=0}^{s-1} \eta_k \frac{1 - m^{k+1}}{1 - m}.
    $$

    Without momentum $m$, that is the sum of the learning rates $\eta_k$. With it, that sum
    over $1 - m$, less what is missing while the optimiser gathers speed: at a constant
    rate $\eta$, in the end $m \eta / (1 - m)^2$.

    - It is exact where the gradient is constant: weights move by $t$ times the gradient.
    - On half the mean squared error, in the direction of an eigenvalue $l$ of the NTK over
        the number $N$ of entries of the targets, errors at time $t$ are those of the flow
        up to a factor of $1 + O(\eta l / N)$, for given $m$ and $t$. There,
        [`infinitenet.Steps`][] is exact at any constant rate.
    - With Nesterov's momentum, the power is $k + 2$ in place of $k + 1$.
    - Optimisers that scale gradients by their sizes, such as Adam, follow no gradient flow.

    !!! example

        ```python no-run
        inn.flow_time(1000, 0.1)  # 100
        inn.flow_time(trained.steps, optax.cosine_decay_schedule(0.1, 1000), momentum=0.9)
        ```

    **Arguments:**

    - `steps`: whole numbers of at least zero, of any shape.
    - `learning_rate`: a scalar, or a schedule as for Optax: a function of the number of the
        step, from 0 on.
    - `momentum`: $m$ of `optax.sgd(learning_rate, momentum)`, at least 0 and below 1.

    **Returns:** times, of the shape of `steps`.

    **Raises:** `ValueError` if `steps` are no whole numbers or negative; if there is a
        schedule and their values are not known, under `jax.jit`; if a learning rate is not
        finite; or if the momentum is out of its range.
    """
    steps = _to_steps(steps)
    ok = lambda m: (m >= 0) & (m < 1)
    momentum = to_scalar("momentum", momentum, ok, "must be at least 0 and below 1")
    if not callable(learning_rate):
        rate = jnp.asarray(learning_rate, float)
        if rate.ndim:
            raise ValueError(
                f"`learning_rate` must be a scalar, but its shape is {rate.shape}. {_RATE}"
            )
        return check_finite("learning_rate", rate, _RATE) * _pushes(steps, momentum)
    if is_traced(steps):
        raise ValueError(
            "`steps` must be known if `learning_rate` is a schedule: compute times outside "
            "of `jax.jit`, or give an array of NumPy."
        )
    last = int(np.max(steps, initial=0))
    rates = jnp.asarray(jax.vmap(learning_rate)(jnp.arange(last)), float)
    rates = check_finite("learning_rate", rates, _RATE) * _speeds(last, momentum)
    return jnp.concatenate([jnp.zeros(1, rates.dtype), jnp.cumsum(rates)])[steps]


_RATE = "Give a number, or a schedule as for Optax."


def _pushes(steps: Array | np.ndarray, m: Array | np.ndarray) -> Float[Array, "*steps"]:
    """The sum over all steps of how much of a constant gradient each of them moves by."""
    # In NumPy's double precision if possible, as differences are small for `m` near 1.
    return jnp.asarray((steps - m * (1 - m**steps) / (1 - m)) / (1 - m), float)


def _speeds(last: int, m: Array | np.ndarray) -> Float[Array, " last"]:
    return jnp.asarray((1 - m ** np.arange(1, last + 1)) / (1 - m), float)


def _to_steps(steps: ArrayLike | Sequence[int]) -> Array | np.ndarray:
    known = steps if isinstance(steps, jax.Array) else np.asarray(steps)
    if not jnp.issubdtype(known.dtype, jnp.integer):
        raise ValueError(
            f"`steps` must be whole numbers, but their dtype is {known.dtype}."
        )
    if is_traced(known):
        bad = jnp.any(known < 0)
        return eqx.error_if(known, bad, "`steps` must not be negative.")
    known = np.asarray(known)
    if np.any(known < 0):
        raise ValueError(f"`steps` must not be negative, but the least is {known.min()}.")
    return known
