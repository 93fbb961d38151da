"""Duals of functions without closed form, with derivatives of any order."""

import functools as ft
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

from ._correlation_map import interpolate
from ._expectations import correlation, expectations, Function, Pair, Word
from ._polar import COARSE, FINE, line, Resolution
from ._special import roots, snapped_root, sum_known


_VALUE: Pair = (), ()

# Variances along which moments are differentiated: `(q1, q2)`, or `(q,)` of both.
Variances: TypeAlias = tuple[Float[Array, "..."], ...]


@ft.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def moments(
    phi: Function,
    pairs: tuple[Pair, ...],
    resolution: Resolution,
    p: Float[Array, " n"],
    qs: Variances,
    k: Float[Array, "..."],
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
    - `resolution`: of quadrature in two dimensions.
    - `p`: parameters of `phi`.
    - `qs`: both variances, arrays of as many axes as `k` that broadcast. Or one scalar, the
        variance of all variables: then functions of the correlation are interpolated.
    - `k`: the covariance.

    **Returns:** the moments.
    """
    if len(qs) == 2:
        return expectations(phi, pairs, resolution, p, qs[0], k, qs[1])
    (q,) = qs

    def at(c):
        each = q.reshape(1)
        return expectations(phi, pairs, resolution, p, each, q * c, each)

    return interpolate(at, correlation(q, k, q)[0])


def _moments_jvp(phi, pairs, resolution, primals, tangents):
    p, qs, k = primals
    t_p, t_qs, t_k = tangents
    is_known = lambda t: not isinstance(t, SymbolicZero)
    parameters = range(p.size) if is_known(t_p) else ()
    evaluate = ft.partial(_table, phi, resolution=resolution)
    wanted = list(pairs)
    if is_known(t_k):
        wanted += map(_both, pairs)
    for i in parameters:
        wanted += [side for pair in pairs for side in _sides(pair, (i,))]
    at = evaluate(wanted, p, qs, k)
    if any(map(is_known, t_qs)):
        along_qs = _along_variances(phi, evaluate, pairs, p, qs, k)
    else:
        along_qs = {pair: (k,) * len(qs) for pair in pairs}  # Of no use.

    def tangent(pair):
        terms = list(zip(along_qs[pair], t_qs, strict=True))
        if is_known(t_k):
            terms += [(at[_both(pair)] + _of_jumps(phi, pair, p, qs, k), t_k)]
        for i in parameters:
            first, second = _sides(pair, (i,))
            terms += [(at[first] + at[second], t_p[i])]
        out = sum_known(*terms)
        return jnp.zeros_like(at[pair]) if isinstance(out, SymbolicZero) else out

    return tuple(at[pair] for pair in pairs), tuple(map(tangent, pairs))


moments.defjvp(_moments_jvp, symbolic_zeros=True)


def _both(pair: Pair) -> Pair:
    return pair[0] + ("D",), pair[1] + ("D",)


def _sides(pair: Pair, word: Word) -> tuple[Pair, Pair]:
    """A word after that of either side."""
    return (pair[0] + word, pair[1]), (pair[0], pair[1] + word)


def _table(phi, wanted, p, qs, k, *, resolution) -> dict[Pair, Array]:
    """Moments by their words, each of which is computed once."""
    unique = tuple(dict.fromkeys(wanted))
    values = moments(phi, unique, resolution, p, qs, k)
    return dict(zip(unique, values, strict=True))


def _along_variances(phi, evaluate, pairs, p, qs, k) -> dict[Pair, Variances]:
    """Derivatives of moments along each of the variances.

    For small variances differences are divided by them. Below the root of rounding, these
    derivatives are taken at that instead: if functions are smooth they hardly change.
    """
    qs = tuple(jnp.maximum(q, float(jnp.finfo(k.dtype).eps) ** 0.5) for q in qs)
    wanted = [w for pair in pairs for w in (_both(pair), *_sides(pair, ("D", "X")))]
    at = evaluate(wanted, p, qs, k)
    out = {}
    for pair in pairs:
        shared = k * (at[_both(pair)] + _of_jumps(phi, pair, p, qs, k))
        first, second = (at[side] - shared for side in _sides(pair, ("D", "X")))
        if len(qs) == 1:
            out[pair] = ((first + second) / (2 * qs[0]),)
        else:
            out[pair] = first / (2 * qs[0]), second / (2 * qs[1])
    return out


def _of_jumps(phi, pair, p, qs, k) -> Array | float:
    """What jumps of functions at zero add to the expectation of their derivatives' product.

    $f'$ has a part $j_f \\delta(u)$, so that with the density of $u$ at zero and that of
    both these are $j_f p_u E[g'(v) | u = 0] + j_g p_v E[f'(u) | v = 0] + j_f j_g p_{uv}$.

    The nonlinearity itself is continuous, or gradient descent would not see its jumps.
    """
    if not phi.kinked or "D" not in pair[0] or "D" not in pair[1]:
        return 0.0
    tiny = float(jnp.finfo(k.dtype).tiny)
    jumps, slopes = [], []
    for word in pair:
        fn, derivative = (ft.partial(phi.apply(w), p=p) for w in (word, word + ("D",)))
        either = fn(jnp.asarray([tiny, -tiny], k.dtype))
        jumps.append(either[0] - either[1])
        slopes.append(lambda u, v, f=derivative: (f(v),))
    (s1, r1), (s2, r2) = map(roots, (qs[0], qs[-1]))
    t = 1 - jnp.abs(correlation(qs[0], k, qs[-1])[0])
    sine = snapped_root(t) * jnp.sqrt(2 - t)
    inverse = jnp.where(sine > 0, 1 / jnp.where(sine > 0, sine, 1), 0)
    density = lambda r: r * (2 * np.pi) ** -0.5
    # Given that one is zero, the other's standard deviation is smaller by the sine.
    s1, s2 = (jnp.maximum(s * sine, tiny**0.5) for s in (s1, s2))
    (first,), (second,) = line(slopes[0], s1, s1), line(slopes[1], s2, s2)
    out = jumps[0] * density(r1) * second + jumps[1] * density(r2) * first
    return out + jumps[0] * jumps[1] * density(r1) * density(r2) * inverse


def dual(
    phi: Function,
    p: Float[Array, " n"],
    q1: Float[Array, "..."],
    k: Float[Array, "..."],
    q2: Float[Array, "..."],
    *,
    resolution: Resolution = FINE,
) -> Float[Array, "..."]:
    r"""$E[\phi(u) \phi(v)]$, differentiable along all arrays. They broadcast."""
    rank = max(q1.ndim, k.ndim, q2.ndim)
    q1, k, q2 = (a.reshape((1,) * (rank - a.ndim) + a.shape) for a in (q1, k, q2))
    return moments(phi, (_VALUE,), resolution, p, (q1, q2), k)[0]


def dual_at(
    phi: Function, p: Float[Array, " n"], q: Float[Array, ""], k: Float[Array, "..."]
) -> Float[Array, "..."]:
    """The same for variables which all have one variance, much faster."""
    return moments(phi, (_VALUE,), FINE, p, (q,), k)[0]


def error(
    phi: Function,
    p: Float[Array, " n"],
    q1: Float[Array, "..."],
    k: Float[Array, "..."],
    q2: Float[Array, "..."],
) -> Float[Array, "..."]:
    """An estimate of the error of `dual`: its difference from a coarser rule."""
    fine, coarse = (dual(phi, p, q1, k, q2, resolution=r) for r in (FINE, COARSE))
    return jnp.abs(fine - coarse)
