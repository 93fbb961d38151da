"""Steps of gradient descent, and weight decay, in closed form."""

# A prediction without covariance has `None` there.
# pyright: reportOptionalOperand=false, reportOptionalMemberAccess=false
# pyright: reportArgumentType=false, reportCallIssue=false

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
import scipy.linalg
from jax.test_util import check_grads

import infinitenet as inn
from infinitenet import Steps
from infinitenet._inference import infinite_ensemble


def _joint(key, n=5, n_test=3, rank=8):
    """A kernel of train and test inputs: pairs dd, td, tt."""
    x = jr.normal(key, (n + n_test, rank))
    k = x @ x.T / rank
    return k[:n, :n], k[n:, :n], k[n:, n:]


_optimisers = {
    "plain": (inn.GradientDescent(0.7), optax.sgd(0.7)),
    "heavy ball": (inn.HeavyBall(0.3, momentum=0.9), optax.sgd(0.3, momentum=0.9)),
    # In the order of Optax.
    "nesterov": (inn.Nesterov(0.3, 0.8), optax.sgd(0.3, 0.8, nesterov=True)),
}


def _iterate(optimiser, features, test_features, y, f_0, f_test_0, decay, steps):
    """Optax, on a linear model whose loss has weight decay to its initial weights."""
    weights = jnp.zeros((features.shape[1], y.shape[1]))

    def loss(w):
        half_mse = jnp.mean((f_0 + features @ w - y) ** 2) / 2
        return half_mse + decay * jnp.sum(w**2) / 2

    def step(carry, _):
        w, state = carry
        change, state = optimiser.update(jax.grad(loss)(w), state, w)
        return (optax.apply_updates(w, change), state), w

    _, ws = jax.lax.scan(step, (weights, optimiser.init(weights)), None, max(steps) + 1)
    ws = ws[jnp.asarray(steps)]
    return f_0[None] + features @ ws, f_test_0[None] + test_features @ ws


@pytest.mark.parametrize("name", _optimisers)
@pytest.mark.parametrize("rank", [8, 3])
def test_against_optax(name, rank, getkey):
    ours, theirs = _optimisers[name]
    x = jr.normal(getkey(), (8, rank)) / rank**0.5
    y, f_0 = jr.normal(getkey(), (2, 5, 2))
    f_test_0 = jr.normal(getkey(), (3, 2))
    steps = np.array([0, 1, 2, 3, 17, 200, 999], np.int32)
    for decay in (0.0, 0.03):

        @jax.jit
        def iterate(x, decay=decay):
            return _iterate(theirs, x[:5], x[5:], y, f_0, f_test_0, decay, steps)

        want = iterate(x)
        flow = inn.gradient_flow(x[:5] @ x[:5].T, y, weight_decay=decay)
        out = flow.train(Steps(steps, ours), f_0)
        np.testing.assert_allclose(out, want[0], atol=1e-11)
        out = flow.test(Steps(steps, ours), x[5:] @ x[:5].T, f_0, f_test_0)
        np.testing.assert_allclose(out, want[1], atol=1e-11)


def test_many_steps_of_little_learning(getkey):
    # Nothing is lost in 10^9 steps.
    k_dd, k_td, _ = _joint(getkey())
    flow = inn.gradient_flow(k_dd, jr.normal(getkey(), (5,)))
    for ours in (inn.GradientDescent(1e-8), inn.HeavyBall(0.5e-8, momentum=0.5)):
        out = flow.test(Steps(1_000_000_000, ours), k_td)
        np.testing.assert_allclose(out, flow.test(10.0, k_td), rtol=1e-6)


def test_steps_approach_the_flow_at_first_order(getkey):
    k_dd, k_td, _ = _joint(getkey())
    flow, t, m = inn.gradient_flow(k_dd, jr.normal(getkey(), (5,))), 20.0, 0.6
    for make in (
        inn.GradientDescent,
        lambda rate: inn.HeavyBall((1 - m) * rate, m),
        lambda rate: inn.Nesterov((1 - m) * rate, m),
    ):
        errors = [
            np.abs(flow.test(Steps(n, make(t / n)), k_td) - flow.test(t, k_td)).max()
            for n in (400, 800, 1600)
        ]
        order = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
        np.testing.assert_allclose(order, 1, atol=0.05)


def test_weight_decay_against_expm(getkey):
    # f' = -K_r (f - y) / N - decay (f - f_0), and the end is ridge regression.
    k_dd, k_td, _ = _joint(getkey(), rank=3)
    y, f_0 = jr.normal(getkey(), (2, 5))
    f_test_0, decay = jr.normal(getkey(), (3,)), 0.02
    flow = inn.gradient_flow(k_dd, y, weight_decay=decay, diag_reg=0.1, absolute=True)
    k = np.asarray(k_dd) + 0.1 * np.eye(5)
    both = np.concatenate([k, k_td])
    # Of the displacements of all outputs, and a one.
    big = np.zeros((9, 9))
    big[:8, :5] = -both / 5
    big[:8, :8] -= decay * np.eye(8)
    big[:8, 8] = both @ (y - f_0) / 5
    t = np.array([0.0, 1e-3, 1.0, 30.0, 1e3])
    for i, change in enumerate(scipy.linalg.expm(big * ti)[:8, 8] for ti in t):
        np.testing.assert_allclose(flow.train(t, f_0)[i], f_0 + change[:5], atol=1e-12)
        out = flow.test(t, k_td, f_0, f_test_0)[i]
        np.testing.assert_allclose(out, f_test_0 + change[5:], atol=1e-12)
    ridge = inn.condition(k, y - f_0, diag_reg=5 * decay, absolute=True)
    out = flow.test(None, k_td, f_0, f_test_0)
    np.testing.assert_allclose(out, f_test_0 + ridge.predict(k_td).mean, rtol=1e-10)


def _grams(key):
    nngp, ntk = _joint(key), _joint(jr.fold_in(key, 1))
    return (*(inn.Gram(*pair) for pair in zip(nngp[:2], ntk[:2], strict=True)), nngp[2])


@pytest.mark.parametrize("t", [Steps([3, 40], inn.HeavyBall(0.4, 0.5)), jnp.ones(2)])
@pytest.mark.parametrize("trained", [inn.AllLayers(), inn.LastLayer()])
def test_ensemble_is_the_average_of_flows(t, trained, getkey):
    # From each direction of the prior, by linearity; with weight decay.
    k_dd, k_td, k_tt = _grams(getkey())
    y = jr.normal(getkey(), (5,))
    ensemble = inn.infinite_ensemble(k_dd, y, trained=trained, weight_decay=0.05)
    prior = jnp.block([[k_dd.nngp, k_td.nngp.T], [k_td.nngp, k_tt]])
    root = jnp.linalg.cholesky(prior)
    tangent = k_td.ntk if isinstance(trained, inn.AllLayers) else k_td.nngp

    @jax.jit
    def run(f_0):
        flow = ensemble.flow
        return flow.train(t, f_0[:5]), flow.test(t, tangent, f_0[:5], f_0[5:])

    mean = run(jnp.zeros(8))
    spread = jax.vmap(lambda f_0: [a - b for a, b in zip(run(f_0), mean, strict=True)])(
        root.T
    )
    covariances = [jnp.einsum("sti,stj->tij", x, x) for x in spread]
    p = ensemble.predict(t, k_td, k_tt)
    np.testing.assert_allclose(p.mean, mean[1], atol=1e-12)
    np.testing.assert_allclose(p.covariance, covariances[1], atol=1e-11)
    only = ensemble.predict(t, k_td, jnp.diagonal(k_tt))
    assert only.covariance is None
    np.testing.assert_allclose(only.variance, p.variance, rtol=1e-10)
    q = ensemble.predict_train(t)
    np.testing.assert_allclose(q.mean, mean[0], atol=1e-12)
    np.testing.assert_allclose(q.covariance, covariances[0], atol=1e-11)


def test_half_of_a_product(getkey):
    # Large ones are computed block by block.
    k, a = _joint(getkey(), n=600)[0], jr.normal(getkey(), (4, 600))
    half = infinite_ensemble._half(a, k)
    out = half @ a.T + a @ half.T
    np.testing.assert_allclose(out, a @ k @ a.T, rtol=1e-10, atol=1e-8)


def test_variances_form_no_square(getkey):
    k_dd, k_td, _ = _grams(getkey())
    k_td = jax.tree.map(lambda k: jnp.concatenate(3 * [k])[:7], k_td)
    ensemble = inn.infinite_ensemble(k_dd, jnp.ones(5))
    run = lambda k: ensemble.predict(jnp.ones(2), k, jnp.ones(7)).diagonal
    assert "7,7]" not in str(jax.make_jaxpr(run)(k_td))


@pytest.mark.parametrize(
    "make", [inn.Nesterov, pytest.param(inn.HeavyBall, marks=pytest.mark.slow)]
)
def test_gradients(make, getkey):
    # With repeated and zero eigenvalues: of x x^T, along changes of x.
    x = jnp.concatenate([jnp.eye(3), jnp.eye(3)])
    x_test, direction = jr.normal(getkey(), (2, 3)), jr.normal(getkey(), (3, 3))
    y = jr.normal(getkey(), (6,))

    @jax.jit
    def run(h, m, rate, decay):
        z = x + h * jnp.concatenate([direction, direction])
        ensemble = inn.infinite_ensemble(inn.Gram(z @ z.T, z @ z.T), y, weight_decay=decay)
        k_td, t = x_test @ z.T, Steps([2, 30], make(rate, m))
        p = ensemble.predict(t, inn.Gram(k_td, k_td), x_test @ x_test.T)
        return p.mean, p.covariance, ensemble.predict_train(t).covariance

    args = tuple(map(jnp.array, (0.0, 0.5, 0.6, 0.1)))
    check_grads(run, args, order=1, rtol=1e-6, atol=1e-6)


def test_rounding_does_not_grow_with_time(getkey):
    # In float32 the near duplicates have eigenvalues which cannot be told from zero, and
    # the errors of the kernel of the test inputs are larger than their share.
    x, x_test = jr.normal(getkey(), (5, 3)), jr.normal(getkey(), (4, 3))
    x = jnp.concatenate([x, x + 1e-4])
    net = inn.Sequential([inn.Dense(8, 1.5), inn.Relu(), inn.Dense(1, 1.5)])
    k_dd, k_td = (
        inn.gram(net, a.astype(jnp.float32), b if b is None else b.astype(jnp.float32)).ntk
        for a, b in ((x, None), (x_test, x))
    )
    y = jr.normal(getkey(), (10,))

    @jax.jit
    def run(t, c):
        return inn.gradient_flow(c * k_dd, y).test(t, c * k_td)

    args = lambda t: (jnp.float32(t), jnp.float32(1))
    late, later = (run(*args(t)) for t in (1e9, 1e20))
    assert jnp.max(jnp.abs(late)) < 100
    np.testing.assert_array_equal(later, late)
    assert jnp.all(jnp.isfinite(jax.jacrev(run, argnums=1)(*args(1e30))))


def test_joint_kernels(getkey):
    # Of two outputs that are correlated.
    x = jr.normal(getkey(), (5, 2, 7))
    x_test, y = jr.normal(getkey(), (3, 2, 7)), jr.normal(getkey(), (5, 2))
    k = jnp.einsum("iax,jbx->ijab", x, x)
    k_td = jnp.einsum("iax,jbx->ijab", x_test, x)
    flow, t = inn.gradient_flow(k, y), jnp.array([0.1, 3.0])
    flat = x.reshape(10, 7), x_test.reshape(6, 7)
    want = inn.gradient_flow(flat[0] @ flat[0].T, y.reshape(10))
    out = flow.train(t), flow.test(t, k_td)
    np.testing.assert_allclose(out[0], want.train(t).reshape(2, 5, 2), atol=1e-12)
    want = want.test(t, flat[1] @ flat[0].T).reshape(2, 3, 2)
    np.testing.assert_allclose(out[1], want, atol=1e-12)
    # Noise of each example is that of all of its outputs.
    noise = jnp.arange(1.0, 6.0)
    flow = inn.gradient_flow(k, y, diag_reg=noise, absolute=True)
    change = flow.spectrum.k - flat[0] @ flat[0].T
    np.testing.assert_allclose(jnp.diagonal(change), jnp.repeat(noise, 2), rtol=1e-9)


_k_dd, _k_td, _k_tt = _joint(jr.key(0))
_sgd = inn.GradientDescent(0.1)
_bad = {
    "`steps` must be whole numbers.*float": lambda: Steps(0.5, _sgd),
    "`steps` must be from 0": lambda: Steps([-1, 2], _sgd),
    "`optimiser` must be `GradientDescent`.*constant momentum": lambda: Steps(
        1, inn.Nesterov(0.1)
    ),
    "constant `learning_rate`": lambda: Steps(1, inn.GradientDescent(lambda t: 1.0)),
    "diverges.*max_learning_rate": lambda: inn.gradient_flow(_k_dd, _k_dd[0]).train(
        Steps(1_000_000, inn.GradientDescent(1e3))
    ),
    "`steps` must be from 0.*4294967301": lambda: Steps(np.array([2**32 + 5]), _sgd),
    "`momentum` must be below 1.*1.5": lambda: inn.max_learning_rate(_k_dd, momentum=1.5),
    "`ntk_train_train`: .* eigenvalues": lambda: inn.max_learning_rate(-_k_dd),
    "`trained` must be .*an instance": lambda: infinite_ensemble.check_trained(
        inn.LastLayer
    ),
    r"`k_train_train.ntk` must have shape \(5, 5\)": lambda: inn.infinite_ensemble(
        inn.Gram(_k_dd, _k_tt), _k_tt[0]
    ),
    r"`k_test_train.nngp` must have shape \(2, 5\)": lambda: inn.infinite_ensemble(
        inn.Gram(_k_dd, _k_dd), _k_dd[0]
    ).predict(1.0, inn.Gram(_k_td, _k_td[:2]), _k_tt),
    "`weight_decay` must not be neg": lambda: inn.gradient_flow(
        _k_dd, _k_dd[0], weight_decay=-0.1
    ),
    "`weight_decay` must be a scalar": lambda: inn.gradient_flow(
        _k_dd, _k_dd[0], weight_decay=jnp.ones(5)
    ),
}


@pytest.mark.parametrize("message", _bad)
def test_bad_arguments(message):
    with pytest.raises(ValueError, match=message):
        _bad[message]()


def test_largest_learning_rate_with_weight_decay(getkey):
    k, y = _joint(getkey())[0], jr.normal(getkey(), (5, 2))
    largest = inn.max_learning_rate(k, y.size, momentum=0.8, weight_decay=0.3)
    flow = inn.gradient_flow(k, y, weight_decay=0.3)
    end = flow.train()
    for factor, converges in ((0.99, True), (1.01, False)):
        out = flow.train(Steps(5000, inn.HeavyBall(factor * largest, momentum=0.8)))
        assert bool(jnp.max(jnp.abs(out - end)) < 1e-6) == converges
