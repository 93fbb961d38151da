"""How long networks are trained: a time of gradient flow, or a number of steps.

Errors $e = f - y$ of training on the mean squared error are a function of the kernel times
those at the beginning, as gradient flow and gradient descent are linear. In the direction
of an eigenvalue $l$ of the kernel, the displacement of the weights is an integral
$a(l)$ of these errors, and $e = (1 - l a(l)) e_0$.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PyTree

from .._checks import check_times
from .._tracing import is_traced
from .optimisers import GradientDescent, HeavyBall, Nesterov
from .spectral import dot, INTEGRAL, MOVED, REMAINING, Spectral


class Motion(NamedTuple):
    """Functions of eigenvalues: what has moved, what remains, and the integral.

    `elapsed(s)` is the integral in the direction of eigenvalue zero, given parameters `s`.
    """

    moved: Spectral
    remaining: Spectral
    integral: Spectral
    elapsed: Callable[[PyTree[Array]], Float[Array, ""]]


class Durations(NamedTuple):
    """Times of training, in the units of eigenvalues.

    - `shape`: that of the times.
    - `motion`: what happens until then.
    - `parameters`: those of `motion`, with one axis over all times. If `continuous`, these
        are the times.
    """

    shape: tuple[int, ...]
    motion: Motion
    parameters: PyTree[Array]
    continuous: bool


def _to_steps(steps: ArrayLike | Sequence[int]) -> Int[Array, "*times"]:
    # In NumPy, as JAX has no large integers by default.
    known = steps if isinstance(steps, jax.Array) else np.asarray(steps)
    if not jnp.issubdtype(known.dtype, jnp.integer):
        raise ValueError(
            f"`steps` must be whole numbers, but their dtype is {known.dtype}. For times "
            "of gradient flow, give these in place of `Steps`."
        )
    text = f"`steps` must be from 0 to 2**{_BITS} - 1"
    if is_traced(known):
        return eqx.error_if(known, jnp.any(known < 0), f"{text}.")
    known = np.asarray(known)
    if np.any((known < 0) | (known > 2**_BITS - 1)):
        raise ValueError(f"{text}, but are {known.min()} to {known.max()}.")
    return jnp.asarray(steps)


class Steps(eqx.Module):
    r"""Steps of gradient descent, exactly: at any learning rate, in place of a time.

    Gradient descent on the mean squared error multiplies the errors in the direction of an
    eigenvalue $l$ by $1 - \eta l / N$ in each step. With momentum it is a linear recursion
    of second order. Powers of its matrix take as long as the number of steps has digits.

    !!! example

        ```python
        infinite = inn.infinite_ensemble(k_train, y_train)
        sgd = inn.HeavyBall(0.1, momentum=0.9)  # optax.sgd(0.1, momentum=0.9)
        infinite.predict(inn.Steps(trained.steps, sgd), k_test_train, k_test_test)
        ```

    **Arguments:**

    - `steps`: whole numbers, of any shape `(*times,)`.
    - `optimiser`: [`infinitenet.GradientDescent`][], [`infinitenet.HeavyBall`][] or
        [`infinitenet.Nesterov`][], with constant learning rate and momentum: what
        `optax.sgd` does.
    """

    steps: Int[Array, "*times"] = eqx.field(converter=_to_steps)
    optimiser: GradientDescent | HeavyBall | Nesterov

    def __check_init__(self):
        known = isinstance(self.optimiser, GradientDescent | HeavyBall | Nesterov)
        if not known or _momentum(self.optimiser) is None:
            raise ValueError(
                "`optimiser` must be `GradientDescent`, `HeavyBall` or `Nesterov`, with a "
                f"constant momentum, but it is {self.optimiser!r}."
            )
        if callable(self.optimiser.learning_rate):
            raise ValueError(
                "`optimiser` must have a constant `learning_rate`, but has a schedule. In "
                "place of `Steps`, give times of gradient flow: the sums of the learning "
                "rates. Or use `loss_flow`."
            )


def _momentum(optimiser: GradientDescent | HeavyBall | Nesterov) -> ArrayLike | None:
    return 0.0 if isinstance(optimiser, GradientDescent) else optimiser.momentum


class _Recursion(NamedTuple):
    """A number of steps, and what they do: `size` is the learning rate over `N`."""

    steps: Int[Array, "..."]
    size: Float[Array, "..."]
    momentum: Float[Array, "..."]


def to_durations(t: ArrayLike | Steps | None, n_entries: int, dtype) -> Durations:
    """**Arguments:** times or steps; the number of entries of the targets; the dtype."""
    if not isinstance(t, Steps):
        t = check_times(t, dtype)
        return Durations(t.shape, _flow, jnp.ravel(t) / n_entries, True)
    steps, optimiser = jnp.ravel(t.steps), t.optimiser
    full = lambda x: jnp.broadcast_to(jnp.asarray(x, dtype), steps.shape)
    size = full(optimiser.rate(jnp.zeros((), dtype)) / n_entries)
    s = _Recursion(steps, size, full(_momentum(optimiser)))
    motion = _ahead if isinstance(optimiser, Nesterov) else _descent
    return Durations(t.steps.shape, motion, s, False)


#
# With the integral `a` and the last change `w`, gradient descent with momentum is linear
# in (a, w, 1). Matrices are less the identity, so that small changes keep their digits.
#


def _heavy_ball(l: Array, s: _Recursion) -> Float[Array, "... 3 3"]:
    # w' = m w + size (1 - l a), and a' = a + w'.
    h, m = jnp.broadcast_to(s.size, l.shape), jnp.broadcast_to(s.momentum, l.shape)
    return _matrix((-h * l, m, h), (-h * l, m - 1, h))


def _nesterov(l: Array, s: _Recursion) -> Float[Array, "... 3 3"]:
    # The same w', but a' = a + size (1 - l a) + m w', as Optax has it.
    h, m = jnp.broadcast_to(s.size, l.shape), jnp.broadcast_to(s.momentum, l.shape)
    return _matrix((-(1 + m) * h * l, m**2, (1 + m) * h), (-h * l, m - 1, h))


def _matrix(*rows: tuple[Array, Array, Array]) -> Float[Array, "... 3 3"]:
    first, second = (jnp.stack(row, -1) for row in rows)
    return jnp.stack([first, second, jnp.zeros_like(first)], -2)


# Of the number of steps.
_BITS = 31


def _power(one: PyTree[Array], join: Callable, steps: Array) -> PyTree[Array]:
    """`one` joined with itself as often as there are steps, by repeated squaring."""

    def body(i, carry):
        total, power = carry
        bit = ((steps >> i) & 1).astype(bool)
        select = lambda a, b: jnp.where(bit, a, b)
        total = jax.tree.map(select, join(total, power), total)
        # What is not needed must not overflow: its derivative would be NaN.
        more = (steps >> i) > 1
        keep = lambda a: jnp.where(more, a, 0)
        return total, jax.tree.map(keep, join(power, power))

    start = jax.tree.map(jnp.zeros_like, one)
    return lax.fori_loop(0, _BITS, body, (start, one))[0]


def _motion(matrix: Callable[[Array, _Recursion], Array]) -> Motion:
    def integral(l, s):
        join = lambda a, b: a + b + dot(a, b)
        return _power(matrix(l, s), join, s.steps)[..., 0, 2]

    def slope(a, b, s):
        # Of powers of M: the corner of those of [[M(a), M'], [0, M(b)]], as M is linear.
        a, b = jnp.broadcast_arrays(a, b)
        unit = matrix(jnp.ones_like(a), s) - matrix(jnp.zeros_like(a), s)

        def join(x, y):
            corner = x[1] + y[1] + dot(x[0], y[1]) + dot(x[1], y[2])
            return x[0] + y[0] + dot(x[0], y[0]), corner, x[2] + y[2] + dot(x[2], y[2])

        return _power((matrix(a, s), unit, matrix(b, s)), join, s.steps)[1][..., 0, 2]

    def rate(l, s, t_s):
        return eqx.filter_jvp(lambda s: integral(l, s), (s,), (t_s,))[1]

    slope_of_moved = lambda a, b, s: integral(a, s) + b * slope(a, b, s)
    return Motion(
        Spectral(
            lambda l, s: l * integral(l, s),
            slope_of_moved,
            lambda l, s, t_s: l * rate(l, s, t_s),
        ),
        Spectral(
            lambda l, s: 1 - l * integral(l, s),
            lambda a, b, s: -slope_of_moved(a, b, s),
            lambda l, s, t_s: -l * rate(l, s, t_s),
        ),
        # As `INTEGRAL`, it leaves out directions of eigenvalue zero.
        Spectral(lambda l, s: jnp.where(l > 0, integral(l, s), 0), slope, rate),
        lambda s: integral(jnp.zeros_like(s.size), s),
    )


_flow = Motion(MOVED, REMAINING, INTEGRAL, lambda s: s)
_descent, _ahead = _motion(_heavy_ball), _motion(_nesterov)
