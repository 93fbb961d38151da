"""Duals by quadrature, against another quadrature, in which nothing is shared with it."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import quick_jit, run_once
from jax.flatten_util import ravel_pytree
from nonlinearities import quadrature as _quadrature

import infinitenet as inn
from infinitenet._program import Program


_all = pytest.mark.parametrize("name", _quadrature)
_kinks = {"hard_tanh": (-1.0, 0.0, 1.0)}

#
# Composite quadrature in Cartesian coordinates: of `u`, then of `v` given `u`
#

_edges = np.asarray([0, 3e-4, 2e-3, 6e-3, 0.02, 0.06, 0.2, 0.5, 1, 1.6, 2.4, 3.4, 4.6, 6])
_edges = np.concatenate([_edges, np.arange(7.5, 18.5, 1.5)])
_x, _w = np.polynomial.legendre.leggauss(14)


def _nodes(centres):
    """Nodes and weights from -9 to 9, dense at each centre, along a last axis."""
    both = np.concatenate([-_edges[::-1], _edges[1:]])
    around = [np.clip(c, -9, 9)[..., None] + both for c in centres]
    edges = np.sort(np.clip(np.concatenate(around, -1), -9, 9), -1)
    middle, half = (edges[..., 1:] + edges[..., :-1]) / 2, np.diff(edges) / 2
    x, w = middle[..., None] + half[..., None] * _x, half[..., None] * _w
    w = w * np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)
    return x.reshape(*x.shape[:-2], -1), w.reshape(*w.shape[:-2], -1)


def _expectation(f, q1, c, q2, kinks=(0.0,)):
    """`E[f(u) f(v)]` for Gaussian `u, v` of variances `q1, q2` and correlation `c`."""
    s1, s2, sine = np.sqrt(q1), np.sqrt(q2), np.sqrt((1 - abs(c)) * (1 + abs(c)))
    others = [x / (s2 * c) for x in kinks if x and c]
    x, w = _nodes([np.asarray(x) for x in [*(x / s1 for x in kinks), *others]])
    if sine == 0:
        return np.sum(w * f(s1 * x) * f(c * s2 * x))
    y, w_y = _nodes([(kink / s2 - c * x) / sine for kink in kinks])
    v = s2 * (c * x[:, None] + sine * y)
    return np.sum(w * f(s1 * x) * np.sum(w_y * f(v), -1))


def _cases(correlations, variances):
    """`q1, c, q2` of all combinations."""
    each = [(q1, c, q2) for q1, q2 in variances for c in correlations]
    return np.asarray(each).T


_variances = [(1e-4, 1e-4), (1e-4, 100.0), (0.3, 2.0), (4.0, 4.0), (100.0, 100.0)]


@eqx.filter_jit
def _dual(layer, q1, k, q2):
    """The dual, and its derivative along the covariance: the factor of the NTK."""
    return jax.jvp(lambda k: layer.dual(q1, k, q2), (k,), (jnp.ones_like(k),))


@eqx.filter_jit
def _dual_at(layer, q, k):
    return jax.jvp(lambda k: layer.dual_at(q, k), (k,), (jnp.ones_like(k),))


#
# Values
#


@_all
def test_call(name):
    layer, f, _ = _quadrature[name]
    x = np.asarray([[-1e3, -2.0, -0.3, -1e-9], [0.0, 1e-9, 0.7, 1e3]])
    np.testing.assert_allclose(layer(x), f(x), rtol=1e-14, atol=1e-14)
    assert layer(x.astype(np.float32)).dtype == np.float32


@_all
def test_dual(name):
    """Of positive variances, and where one or both are zero."""
    layer, *functions = _quadrature[name]
    q1, c, q2 = cases = _cases([-1, -1 + 1e-6, -0.9, 0, 0.6, 0.999, 1], _variances)
    if name == "hard_tanh":  # Of which three kinks take nine times as many nodes.
        q1, c, q2 = cases = cases[:, ::3]
    zero1, zero2 = np.asarray([[0.0, 0.0, 2.0, 1.0], [0.0, 2.0, 0.0, 1.0]])
    args = (q1, zero1), (c * np.sqrt(q1 * q2), 0 * zero1), (q2, zero2)
    size = 1 + np.sqrt(q1 * q2)
    kinks = _kinks.get(name, (0.0,))
    for got, f in zip(_dual(layer, *map(np.concatenate, args)), functions, strict=True):
        got, at_zero = np.split(np.asarray(got), [q1.size])
        want = np.asarray([_expectation(f, *case, kinks=kinks) for case in cases.T])
        np.testing.assert_allclose(got / size, want / size, atol=2e-10)
        means = [[_mean(f, q, kinks) for q in zeros] for zeros in (zero1, zero2)]
        np.testing.assert_allclose(at_zero, np.prod(means, 0), atol=1e-12)


def _mean(f, q, kinks):
    """`E[f(u)]`. At zero variance a kink counts as the mean of its slopes."""
    if q == 0:
        return np.mean(f(np.asarray([-1e-100, 1e-100])))
    x, w = _nodes([np.asarray(x / np.sqrt(q)) for x in kinks])
    return np.sum(w * f(np.sqrt(q) * x))


@pytest.mark.parametrize("name", ["tanh", "elu_alpha", "hard_tanh"])
def test_near_duplicates(name):
    """Continuous up to the diagonal, on it, and beyond it by rounding."""
    layer, *_ = _quadrature[name]
    for sign in (1, -1):
        q = np.asarray([1e-4, 1.0, 100.0])
        want = _dual(layer, q, sign * q, q)
        for excess in (-1e-12, -1e-15, 1e-15):
            got = _dual(layer, q, sign * q * (1 + excess), q)
            np.testing.assert_allclose(got[0], want[0], rtol=1e-11, atol=1e-12)
            # The angle is 1e-6 there, and slopes jump by 1 across it.
            np.testing.assert_allclose(got[1], want[1], atol=2e-6)


@pytest.mark.parametrize(
    ("fn", "same"),
    [
        (jax.scipy.special.erf, inn.Erf()),
        (jax.nn.relu, inn.Relu()),
        (lambda x: x**3, inn.Monomial(3)),
    ],
)
def test_closed_forms(fn, same):
    """Also of derivatives of the NTK's factor, along all of its arguments."""
    q1, c, q2 = _cases([-1, -0.9, 0, 0.5, 1], [(0.2, 3.0), (2.0, 2.0)])
    args = q1, c * np.sqrt(q1 * q2), q2

    def derivatives(layer, *args):
        total = lambda *args: sum(map(jnp.sum, _dual(layer, *args)))
        return _dual(layer, *args), jax.grad(total, (0, 1, 2))(*args)

    (got, got_slopes), (want, want_slopes) = (
        run_once(derivatives, layer, *args) for layer in (inn.Elementwise(fn), same)
    )
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-9, atol=1e-8)
    # Where both coincide, ReLU's derivatives along single arguments are infinite.
    apart = np.abs(c) < 1
    for g, w in zip(got_slopes, want_slopes, strict=True):
        np.testing.assert_allclose(g[apart], w[apart], rtol=1e-9, atol=1e-8)


#
# Derivatives
#


@pytest.mark.parametrize("name", ["tanh", "elu_alpha", "hard_tanh"])
def test_derivatives(name):
    """Of the dual and of the NTK's factor, by finite differences."""
    layer, *_ = _quadrature[name]
    q1, c, q2 = _cases([-0.9, 0, 0.3, 0.8], _variances[1:])
    args = np.stack([q1, c * np.sqrt(q1 * q2), q2])
    tangent = np.stack([q1, np.sqrt(q1 * q2), q2])  # Relative to these.

    @quick_jit
    def derivatives(args):
        one = lambda i: np.where(np.arange(3) == i, 1.0, 0.0)[:, None] * tangent
        fn = lambda args: jnp.stack(_dual(layer, *args))
        forward = jnp.stack([jax.jvp(fn, (args,), (one(i),))[1] for i in range(3)])
        return forward, jax.grad(lambda args: jnp.sum(fn(args)))(args)

    forward, reverse = derivatives(args)
    np.testing.assert_allclose(np.sum(forward, 1), reverse * tangent, atol=1e-12)
    step = 1e-3
    for i in range(3):

        def at(h, i=i):
            moved = args + h * step * tangent * (np.arange(3) == i)[:, None]
            return np.stack(_dual(layer, *moved))

        want = (8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * step)
        np.testing.assert_allclose(forward[i], want, rtol=1e-7, atol=2e-8)


@pytest.mark.parametrize("name", ["tanh", "elu_alpha", "hard_tanh"])
def test_derivatives_on_the_diagonal(name):
    """Along the variance of copies, where those along each argument may be infinite."""
    layer, *_ = _quadrature[name]
    fn = lambda q: jnp.stack(_dual(layer, q, q, q))
    q, step = np.asarray([0.1, 1.0, 4.0, 100.0]), 1e-3
    moved = np.concatenate([q * (1 + h * step) for h in (1, -1, 2, -2)])
    both = lambda q, moved: (jax.jvp(fn, (q,), (q,))[1], fn(moved))
    got, values = run_once(both, q, moved)
    values = dict(zip((1, -1, 2, -2), np.split(np.asarray(values), 4, -1), strict=True))
    want = (8 * (values[1] - values[-1]) - (values[2] - values[-2])) / (12 * step)
    np.testing.assert_allclose(got, want, rtol=1e-7, atol=1e-8)


def test_parameters():
    """Of `Elu`, and of functions that are modules: in both modes, and vectorised."""

    class Scaled(eqx.Module):
        scale: jax.Array

        def __call__(self, x):
            return jnp.tanh(self.scale[0] * x) + self.scale[1] * x

    q1, c, q2 = _cases([-0.9, 0.3, 1], [(0.3, 2.0)])
    args = q1, c * np.sqrt(q1 * q2), q2
    for layer in (inn.Elu(1.3), inn.Elementwise(Scaled(jnp.asarray([1.2, 0.3])))):
        p, unravel = ravel_pytree(eqx.filter(layer, eqx.is_array))
        static = eqx.filter(layer, eqx.is_array, inverse=True)
        fn = lambda p: jnp.stack(_dual(eqx.combine(unravel(p), static), *args))  # noqa: B023
        moved = p[None] + 1e-5 * np.concatenate([np.eye(p.size), -np.eye(p.size)])
        all_of = lambda p, moved, fn=fn: (
            jax.jacfwd(fn)(p),
            jax.jacrev(fn)(p),
            jax.vmap(fn)(moved),
        )
        forward, reverse, values = run_once(all_of, p, moved)
        np.testing.assert_allclose(forward, reverse, rtol=1e-10)
        up, down = np.split(np.asarray(values), 2)
        want = np.moveaxis((up - down) / 2e-5, 0, -1)
        np.testing.assert_allclose(forward, want, atol=1e-8)


#
# Special arguments
#


def test_derivatives_at_zero_variance():
    """Finite, and for smooth functions right: half of `E[f''(u) f(v)]`."""
    q1, q2 = jnp.asarray([[0.0, 0.0, 2.0], [0.0, 2.0, 0.0]])
    gradient = eqx.filter_jit(
        lambda layer: jax.grad(lambda *args: jnp.sum(layer.dual(*args)), (0, 1, 2))(
            q1, 0 * q1, q2
        )
    )
    for layer in (inn.Elu(1.7), inn.HardTanh()):
        assert all(np.all(np.isfinite(g)) for g in gradient(layer))
    along_q1, along_k, along_q2 = gradient(inn.Softplus())
    x, w = _nodes([np.zeros(())])
    u = np.sqrt(2) * x
    sigmoid = 1 / (1 + np.exp(-u))
    mean, slope = np.sum(w * np.logaddexp(0, u)), np.sum(w * sigmoid)
    half = np.sum(w * sigmoid * (1 - sigmoid)) / 2
    want = [np.log(2) / 8, mean / 8, half * np.log(2)]
    np.testing.assert_allclose(along_q1, want, rtol=1e-7)
    np.testing.assert_allclose(along_q2, np.take(want, [0, 2, 1]), rtol=1e-7)
    np.testing.assert_allclose(along_k, [0.25, slope / 2, slope / 2], rtol=1e-9)


@pytest.mark.parametrize("name", ["softplus", "hard_tanh"])
def test_symmetric(name):
    layer, *_ = _quadrature[name]
    q1, c, q2 = _cases([-0.99, 0.3, 0.9], _variances)
    k = c * np.sqrt(q1 * q2)
    for one, other in zip(_dual(layer, q1, k, q2), _dual(layer, q2, k, q1), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-13, atol=1e-15)


#
# Ways that are faster
#


@pytest.mark.parametrize("name", ["tanh", "elu_alpha", "hard_tanh"])
def test_many_inputs(name):
    """Under `vmap` series serve most of the entries: the same as entry by entry."""
    layer, *_ = _quadrature[name]
    q = np.repeat([0.0, 1e-4, 0.5, 2.0, 100.0], 6)
    c = np.array(jr.uniform(jr.key(0), (30, 30), minval=-1, maxval=1))
    np.fill_diagonal(c, 1)
    rows = jax.jit(jax.vmap(jax.vmap(_dual, (None, None, 0, 0)), (None, 0, 0, None)))
    for factor in (0.9, 1):  # Without and with some that series do not serve.
        k = factor * c * np.sqrt(q[:, None] * q)
        flat = [np.broadcast_to(a, k.shape).ravel() for a in (q[:, None], k, q)]
        for got, want in zip(rows(layer, q, k, q), _dual(layer, *flat), strict=True):
            np.testing.assert_allclose(got.ravel(), want, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", ["tanh", "elu_alpha", "hard_tanh"])
def test_equal_variances(name):
    layer, *_ = _quadrature[name]
    c = [-1, -1 + 1e-12, -0.9999, 0, 0.3, 1 - 1e-4, 1 - 1e-8, 1 - 1e-12, 1, 1 + 1e-15]
    c = np.asarray([*c, *np.cos(np.linspace(0, np.pi, 30))])
    for q in (0.0, 1e-4, 1.0, 100.0):
        got = _dual_at(layer, jnp.asarray(q), jnp.asarray(q * c))
        want = _dual(layer, np.full_like(c, q), q * c, np.full_like(c, q))
        for g, w in zip(got, want, strict=True):
            np.testing.assert_allclose(g, w, rtol=1e-10, atol=1e-9)


def test_derivatives_of_equal_variances():
    """Along the variance, and along parameters."""
    q, c = jnp.asarray(1.3), jnp.asarray([-0.9, 0.0, 0.5, 0.9])
    one = lambda layer, q: layer.dual_at(q, q * c)
    other = lambda layer, q: layer.dual(q + 0 * c, q * c, q + 0 * c)
    derivative = lambda f, args: jax.jacrev(lambda args: f(*args))(args)
    for layer in (inn.Elu(1.7), inn.HardTanh()):
        both = lambda *args: [derivative(f, args) for f in (one, other)]
        got, want = run_once(both, layer, q)
        for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(g, w, atol=1e-9)


@pytest.mark.parametrize("name", ["selu", "hard_tanh"])
def test_float32(name):
    layer, *_ = _quadrature[name]
    q1, c, q2 = _cases([-0.9, -0.2, 0.5, 0.9], _variances)
    args = q1, c * np.sqrt(q1 * q2), q2
    size = 1 + np.sqrt(q1 * q2)
    narrow = _dual(layer, *(a.astype(np.float32) for a in args))
    for got, want in zip(narrow, _dual(layer, *args), strict=True):
        assert got.dtype == np.float32
        np.testing.assert_allclose(got / size, want / size, atol=2e-6)


#
# Memory, and errors
#


@pytest.mark.parametrize("shared", [False, True])
def test_memory(shared):
    """A few arrays of the result's shape: no product of entries and nodes."""
    k = jax.ShapeDtypeStruct((400, 400), float)
    column, row = (jax.ShapeDtypeStruct(shape, float) for shape in ((400, 1), (1, 400)))
    args = (column, k, row) if shared else (k, k, k)
    fn = jax.jit(lambda *args: _dual(inn.Tanh(), *args))
    analysis = fn.lower(*args).compile().memory_analysis()
    assert analysis is not None
    assert analysis.temp_size_in_bytes < 20 * 8 * 400**2


def test_tiles_are_large():
    """The sizes of quadrature's own arrays do not count for those of tiles."""
    layer, one = inn.Tanh(), jnp.ones(())
    for fn in (layer.dual_at, lambda q, k: layer.dual(q, k, q)):
        assert Program(lambda k, fn=fn: _dual_of(fn, k), one).largest_array == 8


def _dual_of(fn, k):
    return jax.jvp(lambda k: fn(jnp.ones(()), k), (k,), (k,))


def test_error():
    q1, c, q2 = _cases([-0.9, 0.5, 0.99], _variances[2:])
    args = tuple(map(jnp.asarray, (q1, c * np.sqrt(q1 * q2), q2)))
    assert np.all(inn.Tanh().error(*args) < 1e-8)
    # A kink that the rule does not know of.
    layer, f = inn.Elementwise(lambda x: jnp.abs(x - 1)), lambda x: np.abs(x - 1)
    cases = np.stack([q1, c, q2]).T
    want = np.asarray([_expectation(f, *case, kinks=(0.0, 1.0)) for case in cases])
    error = np.abs(layer.dual(*args) - want)
    estimate = np.asarray(layer.error(*args))
    assert np.all(error < 10 * np.max(estimate)) and np.max(estimate) > 1e-6
