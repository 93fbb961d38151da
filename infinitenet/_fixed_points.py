"""Zeros of functions of one variable: the one that a flow along the function ends in."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


# A value of this many units of rounding is taken to be zero.
_NOISE = 8

# Slopes of this many units of rounding are taken to be zero, so that there is no root where
# a function only comes ever closer to zero.
_FLAT = 64

# Far below the start, slopes of this many roots of the unit are: functions may have their
# derivatives there only from larger arguments.
_FLAT_BELOW = 16

# Steps are no longer, nor do they grow faster, so that the search sees what is on its way.
_MAX_STEP = 4.0
_GROWTH = 4

# Bisection alone would take fewer.
_MAX_ITERATIONS = 200


class _State(NamedTuple):
    """`ahead` is the distance from the start, in the direction of the flow.

    No root is known at `lower` or before; there is one before `upper`, if that is finite.
    """

    ahead: Float[Array, ""]
    step: Float[Array, ""]
    lower: Float[Array, ""]
    upper: Float[Array, ""]
    sign: Float[Array, ""]
    slope: Float[Array, ""]
    iterations: Int[Array, ""]
    done: Bool[Array, ""]


def flow_limit(
    fn: Callable[[Float[Array, ""]], Float[Array, ""]],
    start: Float[Array, ""],
    low: float,
    high: float,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    r"""Where $\dot x = f(x)$ leads to: the first root in the direction of $f$ at the start.

    If $x + f(x)$ increases, iteration of it leads there too.

    Steps are those of Newton while the function falls. These do not jump across a root of
    a convex function, and of others they find a bracket, in which they are safeguarded by
    bisection. It may be differentiated, as often as `fn`, by the implicit function theorem.

    **Arguments:**

    - `fn`: the function, which may be a closure over what is differentiated.
    - `start`, `low`, `high`: where to begin, and where to end.

    **Returns:** the root; and in which direction the flow leaves the interval, -1 or 1, or
        0 if there is a root. If it leaves, it comes with an end of the interval instead of
        a root, of which the derivative means nothing.
    """

    def tangent_solve(linear, y):
        slope = linear(jnp.ones_like(y))
        # At a double root, and where there is none, the derivative is not defined.
        regular = jnp.isfinite(slope) & (slope != 0)
        return jnp.where(regular, y / jnp.where(regular, slope, 1), 0)

    solve = lambda fn, start: _search(fn, start, low, high)
    start = lax.stop_gradient(start)
    return lax.custom_root(fn, start, solve, tangent_solve, has_aux=True)


def _search(fn, start, low, high):
    eps = jnp.finfo(start.dtype).eps
    limit = lambda sign: jnp.where(sign < 0, start - low, high - start)
    # Decay over so many orders of magnitude, if `x` is a logarithm.
    far = -0.5 * math.log(eps)

    def flat(state):
        x, slope = start + state.sign * state.ahead, jnp.abs(state.slope)
        below = (state.sign < 0) & (state.ahead > far)
        vanishes = below & (slope <= _FLAT_BELOW * eps**0.5)
        return vanishes, vanishes | (slope <= _FLAT * eps * (1 + jnp.abs(x)))

    def step(state):
        x = start + state.sign * state.ahead
        value, slope = jax.jvp(fn, (x,), (jnp.ones_like(x),))
        sign = jnp.where(state.iterations == 0, jnp.where(value < 0, -1.0, 1.0), state.sign)
        state = state._replace(sign=sign.astype(x.dtype), slope=slope)
        value = value * state.sign
        new = _proposal(state, value, slope, limit(state.sign))
        width = new.upper - new.lower
        zero = jnp.abs(value) <= _NOISE * eps * (1 + jnp.abs(x))
        done = zero | (width <= 2 * eps * (1 + jnp.abs(x))) | flat(state)[0]
        # NaN counts as going on: of overflow.
        done |= ~(value < 0) & (state.ahead >= limit(state.sign))
        # The root itself stays, with the slope there.
        new = new._replace(ahead=jnp.where(done, state.ahead, new.ahead))
        return new._replace(done=done, iterations=state.iterations + 1)

    going = lambda state: ~state.done & (state.iterations < _MAX_ITERATIONS)
    state = lax.while_loop(going, step, _initial(start))
    moved = state.ahead > 0
    end = limit(state.sign)
    leaves = moved & ((state.ahead >= end) | flat(state)[1])
    ahead = jnp.where(leaves, end, state.ahead)
    return start + state.sign * ahead, jnp.where(leaves, state.sign, 0)


def _initial(start):
    zero, infinity = jnp.zeros_like(start), jnp.full_like(start, jnp.inf)
    iterations, done = jnp.zeros((), int), jnp.zeros((), bool)
    return _State(zero, zero, zero, infinity, zero, zero, iterations, done)


def _proposal(state, value, slope, limit):
    """Where to look next, given the value here in the direction of the flow."""
    ahead, last = state.ahead, state.step
    behind = value < 0
    lower = jnp.where(behind, state.lower, ahead)
    upper = jnp.where(behind, ahead, state.upper)
    falls = slope < 0
    newton = jnp.where(falls, -value / jnp.where(falls, slope, 1), jnp.inf)
    # No bracket yet. A plain step does not cross a root of `x + fn(x)` that increases.
    plain = jnp.where(jnp.isfinite(value), value, jnp.inf)
    march = jnp.where(falls, newton, 2 * last)
    march = jnp.maximum(jnp.minimum(march, _GROWTH * last), plain)
    march = jnp.minimum(march, jnp.minimum(_MAX_STEP, limit - ahead))
    # In a bracket, steps must get smaller.
    inside = (ahead + newton > lower) & (ahead + newton < upper)
    inside &= jnp.abs(newton) <= jnp.abs(last) / 2
    bracketed = jnp.isfinite(upper)
    middle = (lower + jnp.where(bracketed, upper, lower)) / 2
    safe = jnp.where(inside, newton, middle - ahead)
    new = jnp.where(bracketed, safe, march)
    return state._replace(ahead=ahead + new, step=new, lower=lower, upper=upper)
