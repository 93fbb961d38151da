"""Duals of functions without closed form, with derivatives of any order."""

import functools as ft
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.lax as lax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

from ._polar import COARSE, FINE, polar
from ._special import roots, sum_known


# `phi(x, p)`: a function of each number, and of a vector of parameters.
Phi: TypeAlias = Callable[[Array, Float[Array, " n"]], Array]

# What is done to `phi`, from left to right: "D" is the derivative along `x`, "X" the
# product with `x`, and a number the derivative along that parameter.
Word: TypeAlias = tuple[str | int, ...]
Pair: TypeAlias = tuple[Word, Word]

_VALUE: Pair = (), ()


def _apply(phi: Phi, word: Word) -> Phi:
    """The function that a word makes of `phi`."""
    if not word:
        return phi
    f, last = _apply(phi, word[:-1]), word[-1]
    if last == "X":
        return lambda x, p: x * f(x, p)
    if last == "D":
        along_x = lambda x, p: jax.jvp(lambda x: f(x, p), (x,), (jnp.ones_like(x),))
        return lambda x, p: along_x(x, p)[1]

    def along_p(x, p):
        unit = jnp.zeros_like(p).at[last].set(1)
        return jax.jvp(lambda p: f(x, p), (p,), (unit,))[1]

    return along_p


@ft.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def moments(
    phi: Phi,
    pairs: tuple[Pair, ...],
    even: bool,
    p: Float[Array, " n"],
    q1: Float[Array, "..."],
    k: Float[Array, "..."],
    q2: Float[Array, "..."],
) -> tuple[Float[Array, "..."], ...]:
    r"""$E[f(u) g(v)]$ of Gaussian $u, v$, where words make $f$ and $g$ of $\phi$.

    Derivatives are moments again, of which each takes no more than first derivatives of
    $f$ and $g$: $E[f' g']$ along `k` (Price's theorem) and, as
    $E[u f'(u) g(v)] = q_1 E[f'' g] + k E[f' g']$,

    $$
    \frac{1}{2 q_1} \bigl(E[u f'(u)\, g(v)] - k E[f'(u) g'(v)]\bigr)
    $$

    along `q1`. All moments that are needed at once share their nodes.

    **Arguments:**

    - `phi`: the function.
    - `pairs`: the words of each moment.
    - `even`: whether $f(-u) g(-v) = f(u) g(v)$ for all of them.
    - `p`: parameters of `phi`.
    - `q1`, `k`, `q2`: variances and covariance: arrays of equal rank that broadcast.

    **Returns:** the moments.
    """
    return _batched(phi, pairs, even, FINE, p, q1, k, q2)


def _moments_jvp(phi, pairs, even, primals, tangents):
    p, q1, k, q2 = primals
    t_p, t_q1, t_k, t_q2 = tangents
    is_known = lambda t: not isinstance(t, SymbolicZero)
    parameters = range(p.size) if is_known(t_p) else ()
    wanted = list(pairs)
    if is_known(t_k):
        wanted += [_both(pair) for pair in pairs]
    for i in parameters:
        wanted += [(f + (i,), g) for f, g in pairs] + [(f, g + (i,)) for f, g in pairs]
    at = _table(phi, wanted, even, p, q1, k, q2)
    along1, along2 = {}, {}
    if is_known(t_q1) or is_known(t_q2):
        along1, along2 = _along_variances(phi, pairs, even, p, q1, k, q2)

    def tangent(pair):
        f, g = pair
        # Those which were not computed are of no use either.
        unknown = at[pair]
        terms = [(at.get(_both(pair), unknown), t_k)]
        terms += [(along1.get(pair, unknown), t_q1), (along2.get(pair, unknown), t_q2)]
        terms += [(at[f + (i,), g] + at[f, g + (i,)], t_p[i]) for i in parameters]
        out = sum_known(*terms)
        return jnp.zeros_like(at[pair]) if isinstance(out, SymbolicZero) else out

    return tuple(at[pair] for pair in pairs), tuple(map(tangent, pairs))


moments.defjvp(_moments_jvp, symbolic_zeros=True)


def _both(pair: Pair) -> Pair:
    return pair[0] + ("D",), pair[1] + ("D",)


def _table(phi, pairs, even, p, q1, k, q2) -> dict[Pair, Array]:
    """Moments by their words, each of which is computed once."""
    unique = tuple(dict.fromkeys(pairs))
    values = moments(phi, unique, even, p, q1, k, q2)
    return dict(zip(unique, values, strict=True))


def _along_variances(phi, pairs, even, p, q1, k, q2):
    """Derivatives of moments along `q1` and along `q2`.

    For small variances differences are divided by them. Below the root of rounding, these
    derivatives are taken at that instead: if functions are smooth they hardly change.
    """
    least = jnp.finfo(k.dtype).eps ** 0.5
    q1, q2 = jnp.maximum(q1, least), jnp.maximum(q2, least)
    wanted = []
    for f, g in pairs:
        wanted += [_both((f, g)), (f + ("D", "X"), g), (f, g + ("D", "X"))]
    at = _table(phi, wanted, even, p, q1, k, q2)
    along1, along2 = {}, {}
    for f, g in pairs:
        shared = k * at[_both((f, g))]
        along1[f, g] = (at[f + ("D", "X"), g] - shared) / (2 * q1)
        along2[f, g] = (at[f, g + ("D", "X")] - shared) / (2 * q2)
    return along1, along2


def _batched(phi, pairs, even, resolution, p, q1, k, q2):
    """`_evaluate`, to which batches are further axes, so that it sees them.

    Those of `q1` and `q2` have size 1 where these are not batched.
    """
    evaluate = ft.partial(_evaluate, phi, pairs, even, resolution)
    fn = jax.custom_batching.custom_vmap(evaluate)

    @fn.def_vmap
    def rule(axis_size, in_batched, p, *qs):
        again = ft.partial(_batched, phi, pairs, even, resolution)
        p_batched, *batched = in_batched
        if p_batched:
            # Few values of parameters are given at once.
            xs = (p, *(q for q, b in zip(qs, batched, strict=True) if b))

            def one(xs):
                p, *rest = xs
                return again(
                    p, *(rest.pop(0) if b else q for q, b in zip(qs, batched, strict=True))
                )

            out = lax.map(one, xs)
        else:
            out = again(p, *(q if b else q[None] for q, b in zip(qs, batched, strict=True)))
        return out, (True,) * len(pairs)

    return fn(p, q1, k, q2)


def _evaluate(phi, pairs, even, resolution, p, q1, k, q2):
    words1 = {f: _apply(phi, f) for f, _ in pairs}
    words2 = {g: _apply(phi, g) for _, g in pairs}

    def integrand(u, v):
        at_u = {word: f(u, p) for word, f in words1.items()}
        at_v = {word: g(v, p) for word, g in words2.items()}
        return tuple(at_u[f] * at_v[g] for f, g in pairs)

    (_, r1), (_, r2) = roots(q1), roots(q2)
    # Clipped in here, out of sight of differentiation. Of zero variance there is a limit,
    # in which kinks count as the mean of both sides.
    c = jnp.clip(k * (r1 * r2), -1, 1)
    s1, s2 = (jnp.sqrt(jnp.maximum(q, jnp.finfo(k.dtype).tiny)) for q in (q1, q2))
    return polar(integrand, s1, c, s2, resolution=resolution, even=even)


def dual(
    phi: Phi,
    even: bool,
    p: Float[Array, " n"],
    q1: Float[Array, "..."],
    k: Float[Array, "..."],
    q2: Float[Array, "..."],
) -> Float[Array, "..."]:
    r"""$E[\phi(u) \phi(v)]$, differentiable along all arrays."""
    return moments(phi, (_VALUE,), even, p, *_aligned(q1, k, q2))[0]


def error(
    phi: Phi,
    p: Float[Array, " n"],
    q1: Float[Array, "..."],
    k: Float[Array, "..."],
    q2: Float[Array, "..."],
) -> Float[Array, "..."]:
    """An estimate of the error of `dual`: its difference from a coarser rule."""
    args = _aligned(q1, k, q2)
    fine = dual(phi, False, p, *args)
    return jnp.abs(fine - _batched(phi, (_VALUE,), False, COARSE, p, *args)[0])


def _aligned(*arrays):
    """Arrays of equal rank: scalars broadcast with arrays."""
    rank = max(a.ndim for a in arrays)
    return [a.reshape((1,) * (rank - a.ndim) + a.shape) for a in arrays]
