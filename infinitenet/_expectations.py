"""Expectations of functions of two Gaussian variables: by whichever way is fastest."""

import dataclasses
import functools as ft
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ._hermite import is_worthwhile, series, Shape
from ._polar import FINE, line, polar, Resolution
from ._special import roots


# What is done to a function, from left to right: "D" is the derivative along `x`, "X" the
# product with `x`, and a number the derivative along that parameter.
Word: TypeAlias = tuple[str | int, ...]
Pair: TypeAlias = tuple[Word, Word]
Phi: TypeAlias = Callable[[Array, Float[Array, " n"]], Array]

# Correlations which are this many units of rounding from 1 are taken to be 1: see
# `_special.snapped_root`.
_SNAP = 4


@dataclasses.dataclass(frozen=True)
class Function:
    """A nonlinearity.

    - `fn`: `fn(x, p)`, of each number and of a vector of parameters.
    - `odd`: whether it is.
    - `kinked`: whether any of its derivatives may jump at zero.
    """

    fn: Phi
    odd: bool
    kinked: bool

    def apply(self, word: Word) -> Phi:
        """The function that a word makes of it."""
        if not word:
            return self.fn
        f, last = self.apply(word[:-1]), word[-1]
        if last == "X":
            return lambda x, p: x * f(x, p)
        if last == "D":
            along_x = lambda x, p: jax.jvp(lambda x: f(x, p), (x,), (jnp.ones_like(x),))
            return lambda x, p: along_x(x, p)[1]

        def along_p(x, p):
            unit = jnp.zeros_like(p).at[last].set(1)
            return jax.jvp(lambda p: f(x, p), (p,), (unit,))[1]

        return along_p


def correlation(
    q1: Float[Array, "..."], k: Float[Array, "..."], q2: Float[Array, "..."]
) -> tuple[Float[Array, "..."], Bool[Array, "..."]]:
    """The correlation, and whether that is 1 or -1, but for rounding.

    Clipped in here, out of sight of differentiation.
    """
    (_, r1), (_, r2) = roots(q1), roots(q2)
    c = jnp.clip(k * (r1 * r2), -1, 1)
    collinear = 1 - jnp.abs(c) <= _SNAP * float(jnp.finfo(c.dtype).eps)
    return jnp.where(collinear, jnp.sign(c), c), collinear


def expectations(
    phi: Function,
    pairs: tuple[Pair, ...],
    resolution: Resolution,
    p: Float[Array, " n"],
    q1: Float[Array, "..."],
    k: Float[Array, "..."],
    q2: Float[Array, "..."],
) -> tuple[Float[Array, "..."], ...]:
    """Of products of the functions that words make, at variances and covariances.

    Batches of `vmap` are further axes here, so that these are seen: of size 1 for those
    which are not batched. Arrays broadcast, and have equally many axes. Not to be
    differentiated.
    """
    again = ft.partial(expectations, phi, pairs, resolution)
    fn = jax.custom_batching.custom_vmap(ft.partial(_expectations, phi, pairs, resolution))

    @fn.def_vmap
    def rule(axis_size, in_batched, p, *qs):
        del axis_size
        p_batched, *batched = in_batched
        if not p_batched:
            qs = [q if b else q[None] for q, b in zip(qs, batched, strict=True)]
            return again(p, *qs), (True,) * len(pairs)

        def one(given):
            p, *rest = given
            each = iter(rest)
            return again(
                p, *(next(each) if b else q for q, b in zip(qs, batched, strict=True))
            )

        # Parameters are few, hence one by one.
        given = p, *(q for q, b in zip(qs, batched, strict=True) if b)
        return lax.map(one, given), (True,) * len(pairs)

    return fn(p, q1, k, q2)


def _expectations(phi, pairs, resolution, p, q1, k, q2):
    shapes = q1.shape, k.shape, q2.shape
    axis = _common_axis(*shapes)
    if axis is not None:
        first = [jnp.moveaxis(a, axis, 0) for a in (q1, k, q2)]
        fn = ft.partial(_expectations, phi, pairs, resolution, p)
        out = lax.map(lambda qs: fn(*qs), tuple(first))
        return tuple(jnp.moveaxis(a, 0, axis) for a in out)
    words = {w: ft.partial(phi.apply(w), p=p) for pair in pairs for w in pair}

    def integrand(u, v):
        at_u = {f: words[f](u) for f, _ in pairs}
        at_v = {g: words[g](v) for _, g in pairs}
        return tuple(at_u[f] * at_v[g] for f, g in pairs)

    c, collinear = correlation(q1, k, q2)
    # Of variances of zero there is a limit, in which kinks count as the mean of both sides.
    s1, s2 = (jnp.sqrt(jnp.maximum(q, float(jnp.finfo(k.dtype).tiny))) for q in (q1, q2))
    in_plane = lambda: polar(integrand, s1, c, s2, resolution=resolution, even=phi.odd)
    if resolution != FINE:
        return in_plane()
    if not phi.kinked:
        collinear |= (q1 == 0) | (q2 == 0)
    on_line = lambda: line(integrand, s1, jnp.where(c < 0, -s2, s2), even=phi.odd)
    if not is_worthwhile(*shapes):
        return lax.cond(jnp.all(collinear), on_line, in_plane)
    functions = [(words[f], words[g]) for f, g in pairs]
    values, good = series(functions, s1, c, s2)
    return _replaced(values, good, collinear, on_line, in_plane)


def _replaced(
    values: tuple[Array, ...],
    good: Bool[Array, "..."],
    collinear: Bool[Array, "..."],
    on_line: Callable[[], tuple[Array, ...]],
    in_plane: Callable[[], tuple[Array, ...]],
) -> tuple[Array, ...]:
    """Others where values are not good, which cost nothing if all are."""

    def by(fn):
        return lambda: tuple(
            jnp.where(good, a, b) for a, b in zip(values, fn(), strict=True)
        )

    rest = lambda: lax.cond(jnp.all(good | collinear), by(on_line), by(in_plane))
    return lax.cond(jnp.all(good), lambda: values, rest)


def _common_axis(q1: Shape, k: Shape, q2: Shape) -> int | None:
    """An axis that both variances have, if there is too much of them at once."""
    if is_worthwhile(q1, k, q2):
        return None
    for axis, (a, b) in enumerate(zip(q1, q2, strict=True)):
        rest = [shape[:axis] + shape[axis + 1 :] for shape in (q1, k, q2)]
        if a == b > 1 and (is_worthwhile(*rest) or _common_axis(*rest) is not None):
            return axis
    return None
