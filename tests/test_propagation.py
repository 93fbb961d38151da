"""Deep signal propagation, against closed forms and against iteration."""

from inspect import unwrap  # Without types, which are checked first.

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
from helpers import quick_jit

import infinitenet as inn
from infinitenet._fixed_points import flow_limit


def _block(phi, W_std, b_std=None):
    return inn.Sequential([phi, inn.Dense(1, W_std, b_std)])


# NumPy's, which share no code with the library: maps of variances and covariances, and
# the expectation of the squared derivative.


def _erf_dual(q1, k, q2):
    return 2 / np.pi * np.arcsin(2 * k / np.sqrt((1 + 2 * q1) * (1 + 2 * q2)))


def _erf_slope(q):
    return 4 / np.pi / np.sqrt(1 + 4 * q)


def _iterate_erf(W_std, b_std, c, times, q=1.0):
    """Variances and correlations after each layer."""
    out = []
    q = np.broadcast_to(q, np.broadcast_shapes(np.shape(W_std), np.shape(b_std)))
    for _ in range(times):
        k = W_std**2 * _erf_dual(q, c * q, q) + b_std**2
        q = W_std**2 * _erf_dual(q, q, q) + b_std**2
        c = np.divide(k, q, out=np.ones_like(k), where=q > 0)
        out.append((q, c))
    return np.moveaxis(np.array(out), 1, 0)


def _gauss(fn, q):
    """`E[fn(u)]` for Gaussian `u` of variance `q`."""
    density = lambda z: np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    integrand = lambda z: fn(np.sqrt(q) * z) * density(z)
    return scipy.integrate.quad(integrand, -12, 12, epsabs=1e-13, epsrel=1e-13)[0]


_close = lambda out, want, rtol=1e-10, atol=0.0: np.testing.assert_allclose(
    out, want, rtol=rtol, atol=atol
)


#
# Zeros
#


def test_flow_limit():
    # From the left and the right of 0, 1 and 2, of which 1 repels.
    cubic = lambda x, s: -s / 10 * x * (x - 1) * (x - 2)
    starts = jnp.array([-0.9, -0.5, 0.0, 0.999, 1.0, 1.001, 1.5, 2.5, 2.9])
    find = jax.vmap(lambda start, s: flow_limit(lambda x: cubic(x, s), start, -10.0, 99.0))
    x, leaves = quick_jit(find)(starts, jnp.full(9, 1.0))
    _close(x, [0, 0, 0, 0, 1, 2, 2, 2, 2], atol=1e-14)
    np.testing.assert_array_equal(leaves, 0)
    # The other way round only 1 attracts.
    x, leaves = quick_jit(find)(starts, jnp.full(9, -1.0))
    _close(x[jnp.array([3, 4, 5, 6])], 1, atol=1e-14)
    np.testing.assert_array_equal(leaves, [-1, -1, 0, 0, 0, 0, 0, 1, 1])


def test_flow_limit_of_hard_functions():
    functions = [
        (lambda x: (x - 1) ** 2 / 4, 0.0, 1.0, 1e-6),  # A double root.
        (lambda x: 1 - jnp.sign(x) * jnp.sqrt(jnp.abs(x)), -5.0, 1.0, 1e-14),
        (lambda x: jnp.where(x < 3, 1, -1) - x / 9, 0.0, 3.0, 1e-14),  # A jump.
        (lambda x: jnp.where(x > 2, jnp.nan, 1.0), 0.0, 9.0, 0),  # Overflow.
        (lambda x: jnp.exp(-x), 0.0, 9.0, 0),  # A root at infinity.
    ]

    def find(fn, start):
        return flow_limit(fn, jnp.asarray(start), -9.0, 9.0)[0]

    run = quick_jit(lambda: jnp.stack([find(fn, start) for fn, start, _, _ in functions]))
    for out, (_, _, want, atol) in zip(run(), functions, strict=True):
        assert abs(out - want) <= atol


def test_flow_limit_is_differentiable():
    root = lambda a: flow_limit(lambda x: a - x**3, jnp.asarray(1.0), 0.1, 10.0)[0]
    a = jnp.asarray(5.0)
    derivatives = [root, jax.grad(root), jax.jacfwd(jax.grad(root))]
    value, first, second = quick_jit(lambda a: [fn(a) for fn in derivatives])(a)
    _close(value, 5 ** (1 / 3))
    _close(first, 5 ** (-2 / 3) / 3)
    _close(second, -2 / 9 * 5 ** (-5 / 3))


#
# Maps
#


def test_maps_of_erf():
    W_std, b_std = 1.3, 0.2
    block = _block(inn.Erf(), W_std, b_std)
    rng = np.random.default_rng(0)
    q1, q2 = rng.uniform(0.1, 5, (2, 7, 1))
    c = np.linspace(-1, 1, 5)
    V = lambda q: W_std**2 * _erf_dual(q, q, q) + b_std**2
    _close(inn.variance_map(block, q1), V(q1), 1e-14)
    k = W_std**2 * _erf_dual(q1, c * np.sqrt(q1 * q2), q2) + b_std**2
    _close(inn.correlation_map(block, c, q1, q2), k / np.sqrt(V(q1) * V(q2)), 1e-13)
    _close(inn.correlation_map(block, jnp.ones(7), q1[:, 0]), 1, 1e-15)
    assert inn.variance_map(block, 1).shape == ()


def test_maps_of_networks():
    # Of input vectors of such lengths and angle, with residual blocks that ask for widths.
    block = inn.Residual(inn.Sequential([inn.Relu(), inn.Dense(9, 1.2, 0.1)]))
    last = inn.Dense(5, 1.5, parameterization="standard")
    net = inn.Sequential([block, inn.LeakyRelu(0.1), last])
    q1, q2, c = 0.7, 2.0, 0.3
    x1 = jnp.array([q1**0.5, 0]) * 2**0.5
    x2 = jnp.array([c, (1 - c**2) ** 0.5]) * (2 * q2) ** 0.5
    # The identity: a layer of weights without which nonlinearities refuse inputs.
    deep = inn.Sequential([inn.Dense(9), net])
    kernel = deep.kernel(x1, x2, ntk=False, demand=inn.Demand(marginal=inn.Pairs.SAME))
    variances = kernel.cov1.array, kernel.cov2.array
    _close(inn.variance_map(net, jnp.array([q1, q2])), variances, 1e-14)
    want = kernel.nngp.array / np.sqrt(variances[0] * variances[1])
    _close(inn.correlation_map(net, c, q1, q2), want, 1e-14)


def test_maps_are_differentiable():
    def maps(W_std, q, c):
        block = _block(inn.Erf(), W_std, 0.2)
        return inn.variance_map(block, q), inn.correlation_map(block, c, q, q / 2)

    at, h = jnp.array([1.3, 0.8, 0.4]), 1e-6
    fn = lambda at: jnp.stack(maps(*at))
    # Both ways from here, along each argument.
    plus, minus = quick_jit(jax.vmap(fn))(
        at[None] + h * jnp.concatenate([jnp.eye(3), -jnp.eye(3)])
    ).reshape(2, 3, 2)
    out = quick_jit(jax.jacrev(fn))(at)
    _close(out.T, (plus - minus) / (2 * h), rtol=1e-8, atol=1e-9)


def test_slope_of_correlation_map_is_chi():
    # As the derivative at c = 1, and from the expectation of the squared derivative.
    block = _block(inn.Erf(), 1.5, 0.1)
    limit = inn.signal_propagation(block)
    slope = jax.grad(lambda c: inn.correlation_map(block, c, limit.q))(1.0)
    _close(slope, limit.chi_1)
    _close(limit.chi_1, 1.5**2 * _erf_slope(limit.q))


#
# Limits
#

_W_stds = np.array([0.3, 0.8, 1.2, 1.4, 1.45, 2.0])
_b_stds = np.array([0.05, 0.5, 2.0])


@pytest.mark.parametrize("name", ["Relu", "Identity"])
def test_closed_forms(name):
    # The variance map is linear: of slope W_std**2 / 2, or W_std**2.
    half = 0.5 if name == "Relu" else 1.0
    out = inn.phase_diagram(getattr(inn, name)(), _W_stds, _b_stds)
    assert out.q.shape == out.phase.shape == (6, 3)
    chi = np.broadcast_to(half * _W_stds[:, None] ** 2, (6, 3))
    with np.errstate(divide="ignore"):
        q = np.where(chi < 1, _b_stds**2 / (1 - chi), np.inf)
        depth = np.where(chi < 1, -1 / np.log(np.minimum(chi, 1)), np.inf)
    _close(out.q, q, 1e-12)
    _close(out.chi_1, chi, 1e-13)
    _close(out.chi_q, chi, 1e-13)
    _close(out.c, 1)
    _close(out.depth_variance, depth, 1e-11)
    _close(out.depth_correlation, depth, 1e-11)
    np.testing.assert_array_equal(out.phase, np.where(chi < 1, -1, 1))


@pytest.mark.parametrize(
    "W_std, b_std, q, want",
    [
        (2**0.5, 0.0, 3.0, 3.0),  # All variances are fixed points: the one given.
        (2**0.5, 0.1, 3.0, np.inf),  # It grows in proportion to depth.
        (1.6, 0.0, 3.0, np.inf),
        (1.2, 0.0, 3.0, 0.0),
    ],
)
def test_relu_without_fixed_point(W_std, b_std, q, want):
    out = inn.signal_propagation(_block(inn.Relu(), W_std, b_std), q)
    _close(out.q, want)
    _close(out.chi_1, W_std**2 / 2)
    _close(out.chi_q, W_std**2 / 2)
    _close(out.c, 1)
    # Correlations approach 1 by a power law of depth.
    assert out.depth_correlation == (np.inf if want != 0 or b_std == 0 else 0)
    assert out.phase == {2**0.5: inn.Phase.CRITICAL, 1.6: inn.Phase.CHAOTIC}.get(
        W_std, inn.Phase.ORDERED
    )


def test_fixed_points_of_erf_by_iteration():
    W_stds = np.array([0.5, 0.8, 1.0, 1.5, 2.5, 4.0])
    b_stds = np.array([0.0, 0.1, 0.7])
    out = inn.phase_diagram(inn.Erf(), W_stds, b_stds)
    qs, cs = _iterate_erf(W_stds[:, None], b_stds, np.full((6, 3), 0.2), 2000)
    _close(out.q, qs[-1], rtol=1e-12, atol=1e-100)
    ordered = np.asarray(out.phase) == inn.Phase.ORDERED
    assert ordered[:2].all() and not ordered[3:, :2].any()
    # Without biases, correlations of small signals last; and it takes long near chaos.
    done = (np.abs(cs[-1] - cs[-2]) < 1e-15) & ((out.q > 0) | ~ordered)
    assert done.sum() >= 14
    _close(out.c[done], cs[-1][done], atol=1e-12)
    np.testing.assert_array_equal(out.c == 1, ordered)
    _close(out.chi_1, W_stds[:, None] ** 2 * _erf_slope(np.asarray(out.q)))
    # Derivatives of both maps by differences.
    q, c, h = np.asarray(out.q), np.asarray(out.c), 1e-5
    inside = (q > 0) & ~ordered
    step = lambda q, c: _iterate_erf(W_stds[:, None], b_stds, c, 1, q)[:, 0]
    chi_q = (step(q + h, c)[0] - step(q - h, c)[0]) / (2 * h)
    chi_c = (step(q, c + h)[1] - step(q, c - h)[1]) / (2 * h)
    _close(out.chi_q[inside], chi_q[inside], 1e-7)
    _close(out.chi_c[inside], chi_c[inside], 1e-7)


@pytest.mark.parametrize("W_std", [1.1, 1.8])
def test_depths_are_those_of_decay(W_std):
    # In the ordered phase, and in the chaotic one.
    out = inn.signal_propagation(_block(inn.Erf(), W_std, 0.3))
    assert out.phase == (inn.Phase.ORDERED if W_std < 1.5 else inn.Phase.CHAOTIC)
    qs, cs = _iterate_erf(W_std, 0.3, 0.6, 60)
    for values, limit, depth in [
        (qs, float(out.q), out.depth_variance),
        (cs, float(out.c), out.depth_correlation),
    ]:
        distance = np.abs(values - limit)
        last = np.flatnonzero(distance > 1e-9)[-1]
        measured = 5 / np.log(distance[last - 5] / distance[last])
        _close(measured, depth, 1e-3)


def test_tanh():
    # The critical line starts at W_std = 1 (Poole et al., section 2).
    limits = inn.phase_diagram(inn.Tanh(), np.array([0.999, 1.0, 1.001, 1.3]), np.zeros(1))
    np.testing.assert_array_equal(limits.phase[:, 0], [-1, 0, 1, 1])
    _close(limits.q[:2, 0], 0)
    # For small variances V(q) = W_std**2 (q - 2 q**2).
    _close(limits.q[2, 0], (1 - 1 / 1.001**2) / 2, rtol=0.01)
    q = float(limits.q[3, 0])
    _close(1.3**2 * _gauss(lambda u: np.tanh(u) ** 2, q), q)
    _close(limits.chi_1[3, 0], 1.3**2 * _gauss(lambda u: np.cosh(u) ** -4.0, q))
    _close(limits.c[2:, 0], 0, atol=1e-14)
    _close(limits.chi_c[3, 0], 1.3**2 * _gauss(lambda u: np.cosh(u) ** -2.0, q) ** 2)


@pytest.mark.parametrize("q, want", [(0.01, 0.1), (0.2, 0.1), (0.3, np.inf)])
def test_several_fixed_points(q, want):
    # q = 3 q**2 + 0.07 at 0.1, which attracts, and at 0.7 / 3, which does not.
    out = inn.signal_propagation(_block(inn.Monomial(2), 1.0, 0.07**0.5), q)
    _close(out.q, want)


def test_jumps():
    # c q = W_std**2 (1 - 2 arccos(c) / pi) + b_std**2, where q is known.
    W_std, b_std = 1.5, 0.3
    out = inn.signal_propagation(_block(inn.Sign(), W_std, b_std))
    q, c = W_std**2 + b_std**2, 0.0
    for _ in range(200):
        c = (W_std**2 * 2 / np.pi * np.arcsin(c) + b_std**2) / q
    _close(out.q, q)
    _close(out.c, c)
    _close(out.chi_c, W_std**2 * 2 / np.pi / np.sqrt(1 - c**2) / q)
    assert out.chi_1 == np.inf and out.phase == inn.Phase.CHAOTIC
    constant = inn.signal_propagation(_block(inn.Monomial(0), W_std, b_std))
    assert constant.chi_1 == 0 and constant.c == 1 and constant.depth_variance == 0


def test_deep_kernels():
    branch = inn.Sequential([inn.Gelu(), inn.Dense(7, 1.0, 0.3)])
    block = inn.Residual(branch, inn.Dense(7, 0.6))
    limit = inn.signal_propagation(block)
    net = inn.Sequential([inn.Dense(7), inn.Repeat(block, 300)])
    x = jnp.array([[1.0, 0, 0], [0.5, 1.0, 2.0]])
    k = inn.gram(net, x, ntk=False).nngp
    want = limit.q * jnp.where(jnp.eye(2) > 0, 1, limit.c)
    _close(k, want, 1e-10)


def test_noise():
    # Of dropout, which adds to variances alone, so that even copies become different.
    W_std, b_std, rate = 1.1, 0.3, 0.8
    layers = [inn.Erf(), inn.Dropout(rate), inn.Dense(1, W_std, b_std)]
    out = inn.signal_propagation(inn.Sequential(layers))
    q, c = 1.0, 0.0
    for _ in range(500):
        k = W_std**2 * _erf_dual(q, c * q, q) + b_std**2
        q = W_std**2 * _erf_dual(q, q, q) / rate + b_std**2
        c = k / q
    _close(out.q, q)
    _close(out.c, c)
    assert out.phase == inn.Phase.ORDERED and out.c < 1


def test_no_nans():
    W_stds, b_stds = np.array([0.0, 0.7, 1.0, 3.0, 30.0]), np.array([0.0, 1e-3, 3.0])
    out = inn.phase_diagram(inn.Gabor(), W_stds, b_stds)
    for name in ("c", "chi_1", "chi_c", "chi_q", "depth_correlation", "depth_variance"):
        assert not np.isnan(getattr(out, name)).any(), name
    assert ((out.c >= 0) & (out.c <= 1) & (out.q >= 0)).all()
    assert (out.depth_correlation >= 0).all() and (out.depth_variance >= 0).all()


def test_float32():
    W_stds, b_stds = np.array([0.8, 1.4, 2.0]), np.array([0.1, 0.6])
    args = (jnp.asarray(stds, jnp.float32) for stds in (W_stds, b_stds))
    out = inn.phase_diagram(inn.Erf(), *args, q=jnp.float32(1))
    assert {x.dtype for x in jax.tree.leaves(out)} == {np.dtype("float32")}
    qs, cs = _iterate_erf(W_stds[:, None], b_stds, np.zeros((3, 2)), 999)
    _close(out.q, qs[-1], 2e-5)
    _close(out.c, cs[-1], 1e-5, atol=5e-6)
    _close(out.chi_1, W_stds[:, None] ** 2 * _erf_slope(qs[-1]), 2e-5)


def test_gradients():
    def limits(at):
        out = inn.signal_propagation(_block(inn.Erf(), at[0], at[1]))
        return jnp.stack([out.q, out.c, out.chi_1, out.chi_q, out.depth_correlation])

    at, h = jnp.array([1.7, 0.3]), 1e-5
    limits_jit = quick_jit(jax.vmap(limits))
    steps = h * jnp.array([[1.0, 0], [0, 1]])
    want = (limits_jit(at[None] + steps) - limits_jit(at[None] - steps)) / (2 * h)
    _close(quick_jit(jax.jacrev(limits))(at), want.T, 1e-7)


def test_gradients_without_fixed_point():
    # Neither NaN, nor anything else than zero.
    q = lambda W_std: inn.signal_propagation(_block(inn.Relu(), W_std)).q
    _close(quick_jit(jax.vmap(jax.grad(q)))(jnp.array([1.2, 1.6])), 0)


#
# The edge of chaos
#


def test_edge_of_erf():
    q = np.array([0.0, 1e-4, 0.3, 1.0, 20.0])
    edge = inn.edge_of_chaos(inn.Erf(), q=q)
    W = 1 / _erf_slope(q)
    _close(edge.W_std, np.sqrt(W))
    _close(edge.b_std, np.sqrt(q - W * _erf_dual(q, q, q)), rtol=1e-7)
    again = inn.edge_of_chaos(inn.Erf(), b_std=edge.b_std)
    _close(again.W_std, edge.W_std)
    _close(again.q, q, rtol=1e-6)
    at = eqx.filter_vmap(lambda W, b: inn.signal_propagation(_block(inn.Erf(), W, b)))
    limits = at(edge.W_std, edge.b_std)
    _close(limits.chi_1, 1)
    _close(limits.q, q, atol=1e-12)
    np.testing.assert_array_equal(limits.phase, inn.Phase.CRITICAL)
    _close(limits.c, 1)


def test_edge_of_tanh():
    edge = inn.edge_of_chaos(inn.Tanh(), b_std=np.array([0.0, 0.05**0.5, 1.0]))
    _close(edge.W_std[0], 1)
    # The setting of Schoenholz et al., Figure 5.
    _close(edge.W_std[1] ** 2, 1.76, 2e-3)
    for W_std, b_std, q in zip(*jax.tree.leaves(edge), strict=True):
        if q > 0:
            _close(W_std**2 * _gauss(lambda u: np.cosh(u) ** -4.0, q), 1)
            _close(W_std**2 * _gauss(lambda u: np.tanh(u) ** 2, q) + b_std**2, q)


def test_edge_which_is_not_there():
    edge = inn.edge_of_chaos(inn.Relu(), q=np.array([0.5, 2.0]))
    _close(edge.W_std, 2**0.5)
    _close(edge.b_std, 0)
    edge = inn.edge_of_chaos(inn.Relu(), b_std=np.array([0.0, 0.1]))
    _close(edge.W_std, [2**0.5, np.nan])
    assert np.isnan(inn.edge_of_chaos(inn.Sign(), q=1.0).W_std)
    # Slopes of 9 E[u**4] / 2, while variances are E[u**6] / 2.
    at = inn.edge_of_chaos(inn.RectifiedMonomial(3), q=np.array([1.0]))
    _close(at.W_std**2, 1 / (9 * 3 / 2))
    _close(at.b_std**2, 1 - at.W_std**2 * 15 / 2)


def test_gradient_of_edge():
    edge = lambda b_std: inn.edge_of_chaos(inn.Erf(), b_std=b_std).W_std
    b_std, h = jnp.asarray(0.3), 1e-6
    difference = (edge(b_std + h) - edge(b_std - h)) / (2 * h)
    _close(quick_jit(jax.grad(edge))(b_std), difference, 1e-7)


#
# Errors
#

_dense, _one = inn.Dense(1), np.ones(1)
_bad = {
    "`net` must be a layer": lambda: unwrap(inn.variance_map)(inn.Erf, 1.0),
    "`block` must be a layer": lambda: unwrap(inn.signal_propagation)(jnp.tanh),
    "`nonlinearity` must be a layer": lambda: unwrap(inn.phase_diagram)("erf", _one, _one),
    "must be a layer.*Relu": lambda: unwrap(inn.edge_of_chaos)(inn.Relu, q=1.0),
    "`q` must not be negative": lambda: inn.variance_map(_dense, np.array([1.0, -0.1])),
    "`q` has 1 entries": lambda: inn.variance_map(_dense, np.array([np.inf, 1])),
    "`q` must be positive": lambda: inn.signal_propagation(_block(inn.Erf(), 1.0), 0.0),
    "`q` must be a scalar": lambda: inn.signal_propagation(_dense, np.ones(2)),
    "`q1` must not be negative": lambda: inn.correlation_map(_dense, 0.1, -1.0),
    "`c` must be a correlation.*1.1": lambda: inn.correlation_map(_dense, 1.1),
    "`W_stds` must be a list": lambda: inn.phase_diagram(inn.Erf(), 1.0, _one),
    "`b_stds` must not be neg": lambda: inn.phase_diagram(inn.Erf(), _one, -_one),
    "either `q` or `b_std`": lambda: inn.edge_of_chaos(inn.Erf()),
    "either `q` or `b_std`, and": lambda: inn.edge_of_chaos(inn.Erf(), q=1.0, b_std=0.1),
    "Relu: must come after": lambda: inn.signal_propagation(inn.Relu()),
    "FanOut: must take vectors to vectors": lambda: inn.signal_propagation(inn.FanOut(2)),
    "FanOut: must give one array": lambda: inn.variance_map(inn.FanOut(2), 1.0),
    "layers\\[0\\] \\(Conv\\)": lambda: inn.signal_propagation(
        inn.Sequential([inn.Conv(1, (3,)), inn.Relu()])
    ),
}


@pytest.mark.parametrize("message", _bad)
def test_errors(message):
    with pytest.raises(ValueError, match=message):
        _bad[message]()


def test_errors_under_jit():
    run = eqx.filter_jit(lambda q: inn.variance_map(_dense, q))
    with pytest.raises(RuntimeError, match="`q` must not be negative"):
        jax.block_until_ready(run(jnp.asarray(-1.0)))
