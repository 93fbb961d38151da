"""Hyperparameters: which there are, objectives of them, and how they are learnt."""

# The networks are known to be sequential, and analysis to have been made.
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false

import functools as ft
import inspect
import sys

import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import optimistix as optx
import pytest
import scipy.stats
from helpers import quick_jit

import infinitenet as inn
from infinitenet._inference.ascent import loss, Problem
from infinitenet._inference.fit import _check_numbers, _check_where
from infinitenet._inference.hyperparameters import select
from infinitenet._inference.infinite_ensemble import LastLayer
from infinitenet._inference.leave_one_out import _inverse_diagonal


def _small():
    """Of few parameters, to compile fast."""
    return inn.Sequential([inn.Dense(1, 1.3, 0.2), inn.Relu(), inn.Dense(1)])


def _linear():
    """Of fewer still."""
    return inn.Dense(1, 1.3, 0.2)


def _data(n=12, seed=0, noise=0.1):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 2))
    y = np.tanh(x @ rng.normal(size=(2, 2))) + noise * rng.normal(size=(n, 2))
    return jnp.asarray(x), jnp.asarray(y)


@pytest.fixture(scope="module")
def fitted():
    x, y = _data()
    return inn.fit(_small(), x, y, progress=False)


@pytest.fixture(scope="module")
def linear():
    x, y = _data()
    return inn.fit(_linear(), x, y, progress=False)


#
# Leave-one-out
#


def _posterior(outputs=(2,), diag_reg=0.3):
    x = np.random.default_rng(1).normal(size=(7, 3))
    k = jnp.asarray(np.exp(-((x[:, None] - x[None]) ** 2).sum(-1) / 4))
    y = jr.normal(jr.key(0), (7, *outputs))
    return k, y, inn.condition(k, y, diag_reg=diag_reg, absolute=True)


@pytest.mark.parametrize("outputs", [(), (2, 3)])
@pytest.mark.parametrize("noise", [0.3, np.linspace(0.1, 0.5, 7)])
def test_leave_one_out_against_refits(outputs, noise):
    k, y, posterior = _posterior(outputs, noise)
    out = inn.leave_one_out(posterior)
    each, total = np.broadcast_to(noise, (7,)), 0.0
    for i in range(7):
        rest = np.delete(np.arange(7), i)
        inverse = np.linalg.inv(k[np.ix_(rest, rest)] + np.diag(each[rest]))
        mean = np.tensordot(k[i, rest] @ inverse, y[rest], 1)
        variance = k[i, i] - k[i, rest] @ inverse @ k[rest, i]
        np.testing.assert_allclose(out.mean[i], mean, rtol=1e-10)
        np.testing.assert_allclose(out.function_variance[i], variance, rtol=1e-10)
        np.testing.assert_allclose(out.variance[i], variance + each[i], rtol=1e-10)
        std = np.sqrt(variance + each[i])
        total += scipy.stats.norm.logpdf(y[i], mean, std).sum()
    np.testing.assert_allclose(out.log_density, total, rtol=1e-10)
    np.testing.assert_array_equal(inn.leave_one_out_log_density(posterior), out.log_density)


def test_leave_one_out_by_blocks(monkeypatch):
    # As of many examples, by blocks of columns, of which the last one has 1 of 3.
    root = jr.normal(jr.key(0), (34, 34))
    posterior = inn.condition(root @ root.T / 34, root[:, 0], diag_reg=0.1)
    want = inn.leave_one_out(posterior).variance
    monkeypatch.setattr(sys.modules[_inverse_diagonal.__module__], "SMALL", 33)
    variance = inn.leave_one_out(posterior).variance
    np.testing.assert_allclose(variance, want, rtol=1e-10)


def test_leave_one_out_without_noise():
    k, y, _ = _posterior()
    out = inn.leave_one_out(inn.condition(k, y))
    np.testing.assert_array_equal(out.variance, out.function_variance)


#
# Derivatives by all hyperparameters
#

_dense = ft.partial(inn.Dense, 1, 1.3, 0.4)
_slow = ft.partial(pytest.param, marks=pytest.mark.slow)
_nets = [
    [inn.Dense(3), inn.Residual(inn.Sequential([inn.Relu(), inn.Dense(3, 0.8)])), _dense()],
    [inn.Dense(1, 0.9), inn.LeakyRelu(0.2), inn.Dense(1, 1.3, 0.4), inn.Relu(), _dense()],
    [_dense(), inn.Erf(1.2, 0.7, 0.3), inn.Dense(1), inn.Gelu(), inn.Dense(1)],
    [inn.Conv(1, (2,), W_std=1.3, b_std=0.4), inn.Relu(), inn.Flatten(), _dense()],
    _slow([_dense(), inn.Sin(1.1, 0.8), inn.Dense(1), inn.Rbf(0.6), _dense()]),
    _slow([_dense(), inn.Gaussian(0.9, -0.4), _dense(), inn.Elu(0.5), _dense()]),
    _slow([_dense(), inn.Polynomial([0.1, 1, 0.3]), _dense(), inn.LayerNorm(), inn.Abs()]),
    _slow([inn.Dense(1), inn.Repeat(inn.Sequential([inn.ABRelu(0.1, 0.9), _dense()]), 3)]),
]


@pytest.mark.parametrize("layers", _nets, ids=str)
def test_gradients_against_differences(layers, getkey):
    net = inn.Sequential(layers)
    x = jr.normal(getkey(), (4, 3, 1) if isinstance(layers[0], inn.Conv) else (4, 3))
    y = jr.normal(getkey(), (4, 2))
    learnt, rest = eqx.partition(net, inn.hyperparameters(net))
    flat, unravel = jax.flatten_util.ravel_pytree(learnt)

    def objective(z):
        # Of one of them the NTK too, as that takes twice as long.
        k = inn.gram(eqx.combine(unravel(z[:-1]), rest), x, ntk=len(layers) == 3)
        out = 0.0
        for each in jax.tree.leaves(k):
            posterior = inn.condition(each, y, diag_reg=z[-1])
            out = 0.3 * out + posterior.log_marginal_likelihood()
            out += 0.7 * inn.leave_one_out_log_density(posterior)
        return out

    z = jnp.append(flat, 0.3)
    step = 1e-5 * jnp.eye(len(z))
    # In two programs, of all derivatives and of all displaced points.
    out = quick_jit(jax.grad(objective))(z)
    moved = quick_jit(ft.partial(jax.lax.map, objective))(
        jnp.stack([z[None] + step, z[None] - step]).reshape(-1, len(z))
    )
    want = (moved[: len(z)] - moved[len(z) :]) / 2e-5
    np.testing.assert_allclose(out, want, rtol=1e-6, atol=1e-6)
    assert jnp.all(out != 0)


#
# Which are hyperparameters
#


def _names(net, mask):
    leaves = jax.tree_util.tree_flatten_with_path(net)[0]
    marks = jax.tree.leaves(mask)
    return [jax.tree_util.keystr(p) for (p, _), m in zip(leaves, marks, strict=True) if m]


class _Own(inn.AbstractLayer):
    scale: jax.Array
    table: jax.Array
    name: str

    def __call__(self, x, *, key=None):
        return x

    def infinite(self, kernel):
        return kernel


def test_hyperparameters(getkey):
    net = inn.Sequential(
        [
            inn.Dense(4, 1.5),
            inn.LayerNorm(),
            inn.Erf(c=0.1),
            inn.Dropout(0.9),
            inn.Residual(inn.Conv(4, (3,), padding="SAME", b_std=0.1)),
            inn.Dense(2),
            inn.Polynomial([1, 2.0]),
            _Own(jnp.ones(()), jnp.ones(2), "name"),
        ]
    )
    names = _names(net, inn.hyperparameters(net))
    branch = ".layers[4].branch"
    assert names == [
        ".layers[0].W_std",
        *[f".layers[2].{name}" for name in "abc"],
        f"{branch}.W_std",
        f"{branch}.b_std",
        ".layers[5].W_std",
        ".layers[6].coef",
        ".layers[7].scale",
    ]
    # Weights are none, and an ensemble has the same ones.
    drawn = net.init(getkey(), jnp.ones((5, 4)))
    assert _names(drawn, inn.hyperparameters(drawn)) == names
    mask = inn.hyperparameters([net, {"a": inn.Relu(), "b": inn.Rbf()}])
    assert _names([net, {"b": inn.Rbf()}], mask)[-1] == "[1]['b'].gamma"


def _all_layers_with_hyperparameters():
    return [
        inn.Dense(1, 0.7, 0.2),
        inn.Conv(1, 3, W_std=0.7, b_std=0.2),
        inn.ConvLocal(1, 3, W_std=0.7, b_std=0.2),
        inn.ConvTranspose(1, 3, W_std=0.7, b_std=0.2),
        inn.SelfAttention(1, 2, 2, 2, b_std=0.3),
        inn.Gaussian(0.4, -0.3),
        inn.ExpNormalized(0.3, -0.7),
        inn.Rbf(0.3),
        inn.LeakyRelu(-0.1),
        inn.Elu(0.3),
    ]


@pytest.mark.parametrize(
    "net", _all_layers_with_hyperparameters(), ids=lambda n: type(n).__name__
)
def test_all_vectors_are_within_domains(net):
    # What a layer would refuse to be made of, it never comes to be.
    learnt = select(net, None)
    z = learnt.to_vector(np.dtype(float))
    same = learnt.of(learnt.from_vector(z))
    jax.tree.map(ft.partial(np.testing.assert_allclose, rtol=1e-14), same, learnt.of(net))
    for sign in (-20, 20):
        moved = learnt.from_vector(z + sign)
        for check in type(moved).__mro__:
            if "__check_init__" in vars(check):
                vars(check)["__check_init__"](moved)
        assert all(
            jnp.all(jnp.isfinite(v))
            for v in jax.tree.leaves(eqx.filter(moved, eqx.is_array))
        )


def test_zeros_stay():
    net = inn.Sequential([inn.Dense(1, b_std=0.0), inn.Relu(), inn.Dense(1)])
    assert select(net, None).names == ("layers[0].W_std", "layers[2].W_std")
    with pytest.raises(ValueError, match="start from another value"):
        select(net, lambda net: net.layers[0].b_std)


# A program that is compiled fast.
_descent = optax.sgd(0.3)


def test_where():
    net = inn.Sequential([inn.Dense(1, 1.0, 0.1), inn.LayerNorm(), inn.Dropout(0.5)])
    one = select(net, lambda net: net.layers[0].b_std)
    assert one.names == ("layers[0].b_std",)
    two = select(net, lambda net: (net.layers[1].eps, net.layers[2].keep_rate))
    assert two.names == ("layers[1].eps", "layers[2].keep_rate")
    rate = two.from_vector(jnp.array([0.0, 30.0])).layers[2].keep_rate
    assert 0 < rate <= 1
    assert select(net, inn.hyperparameters(net)).names == select(net, None).names
    with pytest.raises(ValueError, match="must be a pytree"):
        select(net, inn.Dense(1))
    drawn = net.init(jr.key(0), jnp.ones(3))
    with pytest.raises(ValueError, match="no hyperparameter"):
        select(drawn, lambda net: net.layers[0].weights.W)


#
# Learning
#


def test_fit(fitted):
    x, y = _data()
    assert fitted.status is inn.FitStatus.CONVERGED
    assert fitted.objective[fitted.best] == fitted.objective.max()
    assert fitted.objective.max() > fitted.objective[0] + 5
    names = ["layers[0].W_std", "layers[0].b_std", "layers[2].W_std", "diag_reg"]
    assert list(fitted.parameters) == names
    for trace in fitted.parameters.values():
        assert trace.shape == fitted.objective.shape and trace.min() > 0
    net = fitted.net
    assert fitted.parameters["layers[0].b_std"][fitted.best] == net.layers[0].b_std
    k = inn.gram(net, x, ntk=False).nngp
    posterior = inn.condition(k, y, diag_reg=fitted.diag_reg)
    out = posterior.log_marginal_likelihood()
    np.testing.assert_allclose(out, fitted.objective.max(), rtol=1e-10)


def test_is_stationary(fitted):
    x, y = _data()
    learnt, rest = eqx.partition(fitted.net, inn.hyperparameters(fitted.net))

    @eqx.filter_jit
    @eqx.filter_grad
    def slopes(learnt):
        k = inn.gram(eqx.combine(learnt, rest), x, ntk=False).nngp
        return inn.condition(k, y, diag_reg=fitted.diag_reg).log_marginal_likelihood()

    # By logarithms.
    slopes = jax.tree.map(lambda a, b: a * b, slopes(learnt), learnt)
    assert max(abs(float(s)) for s in jax.tree.leaves(slopes)) < 0.05


def test_repr(fitted):
    text = repr(fitted)
    assert text.startswith(f"<Fit of {len(fitted.objective) - 1} steps, converged:")
    assert "layers[0].W_std  1.3 -> " in text
    assert "Fit(" in repr(jax.tree.map(lambda _: True, fitted))


@pytest.mark.parametrize(
    "optimiser, steps",
    [
        (optax.lbfgs(), 30),
        (optax.adam(0.1), 100),
        _slow(optx.LBFGS(rtol=1e-6, atol=1e-6), 100),
    ],
    ids=["L-BFGS", "Adam", "Optimistix"],
)
def test_optimisers_agree(optimiser, steps, linear):
    x, y = _data()
    out = inn.fit(_linear(), x, y, optimiser=optimiser, steps=steps, progress=False)
    assert abs(out.objective.max() - linear.objective.max()) < 0.05


def test_what_was_not_evaluated_is_no_record():
    # The simplex begins with a step that evaluates nothing, of which the objective is zero.
    x, y = _data()
    simplex = optx.NelderMead(1e-3, 1e-3)
    out = inn.fit(_linear(), x, y, optimiser=simplex, steps=30, progress=False)
    first = inn.condition(inn.gram(_linear(), x, ntk=False).nngp, y, diag_reg=0.1)
    value = first.log_marginal_likelihood()
    np.testing.assert_allclose(out.objective[0], value, rtol=1e-10)
    np.testing.assert_allclose(out.parameters["diag_reg"][0], 0.1, rtol=1e-10)
    assert out.best > 0 and out.objective.max() > value + 1


def _loo_error(posterior):
    return -jnp.sum(jnp.square(inn.leave_one_out(posterior).mean - posterior.y_train))


def test_other_objective_kernel_and_starts():
    x, y = _data(6)
    options = {"objective": _loo_error, "trained": inn.AllLayers(), "steps": 3}
    options |= {"optimiser": _descent}
    options |= {"learn_diag_reg": False, "diag_reg": jnp.linspace(0.1, 0.3, 6)}
    net = inn.Dense(1, 1.0, 0.3)
    calls = []
    out = inn.fit(
        net, x, y, starts=3, key=jr.key(0), progress=lambda *c: calls.append(c), **options
    )
    assert calls[-1] == (9, 9)
    assert out.status in (inn.FitStatus.STOPPED, inn.FitStatus.CONVERGED)
    np.testing.assert_array_equal(out.diag_reg, options["diag_reg"])
    assert "diag_reg" not in out.parameters
    k = inn.gram(out.net, x).ntk
    want = _loo_error(inn.condition(k, y, diag_reg=out.diag_reg))
    np.testing.assert_allclose(out.objective.max(), want, rtol=1e-10)
    single = inn.fit(net, x, y, progress=False, **options)
    assert out.objective.max() >= single.objective.max()


def test_absolute():
    x, y = _data()
    options = {"optimiser": _descent, "steps": 4, "progress": False}
    out = inn.fit(_linear(), x, y, absolute=True, **options)
    assert out.objective.max() > out.objective[0]
    k = inn.gram(out.net, x, ntk=False).nngp
    posterior = inn.condition(k, y, diag_reg=out.diag_reg, absolute=True)
    value = posterior.log_marginal_likelihood()
    np.testing.assert_allclose(value, out.objective.max(), rtol=1e-10)


def test_interrupt_keeps_the_best():
    x, y = _data()

    def stop(step, _):
        if step == 5:
            raise KeyboardInterrupt

    out = inn.fit(_linear(), x, y, progress=stop)
    assert out.status is inn.FitStatus.INTERRUPTED
    assert out.objective.shape == (6,)
    assert out.objective[out.best] > out.objective[0]


def _leaky():
    """The slope may be any real number."""
    return inn.Sequential([inn.Dense(1), inn.LeakyRelu(0.1), inn.Dense(1)])


def test_divergence_keeps_the_best():
    x, y = _data()
    out = inn.fit(_leaky(), x, y, optimiser=optax.sgd(1e200), progress=False)
    assert out.status is inn.FitStatus.DIVERGED
    assert np.all(np.isfinite(out.objective)) and out.net.layers[1].alpha == 0.1


def _problem(net, x, y, diag_reg=None, memory=None):
    objective = inn.Posterior.log_marginal_likelihood
    learnt = select(net, None)
    return Problem(learnt, x, y, diag_reg, objective, LastLayer(), False, memory)


def test_no_posterior_is_no_error():
    # Duplicates without noise, overflow, and NaN.
    x, y = _data()
    x = x.at[1].set(x[0])
    problem = _problem(_leaky(), x, y, jnp.zeros(()))
    run = quick_jit(lambda z: jax.value_and_grad(loss, has_aux=True)(z, problem))
    for alpha in (0.1, 1e200, np.nan):
        (value, (objective, _)), grad = run(jnp.array([0.0, alpha, 0.0]))
        assert value == jnp.inf and objective == -jnp.inf
        np.testing.assert_array_equal(grad, 0)


def test_memory_of_the_gradient():
    # A few matrices of 256 KiB, whatever the network.
    n, net = 180, inn.Sequential([inn.Dense(1, 1.3, 0.2), inn.Relu()] * 2 + [inn.Dense(1)])
    x, y = _data(n)
    problem = _problem(net, x, y, jnp.ones(()), memory=2**16)
    run = jax.jit(lambda z: jax.value_and_grad(lambda z: loss(z, problem)[0])(z))
    compiled = run.lower(problem.learnt.to_vector(y.dtype)).compile()
    peak = compiled.memory_analysis().temp_size_in_bytes
    print(peak / (8 * n**2))
    assert peak < 10 * 8 * n**2


#
# Errors
#


_bad = {
    "`steps` must be a positive": {"steps": 0},
    "`starts` must be": {"starts": 0},
    "`key` is needed": {"starts": 2},
    "`tolerance` must not": {"tolerance": -1.0},
    "`diag_reg` must be above": {"diag_reg": 0.0},
    "`diag_reg` must be a scalar": {"diag_reg": jnp.ones(12)},
    "`y_train` must have": {"y_train": jnp.ones((3, 1))},
    "Remove such examples": {"x_train": jnp.full((12, 2), jnp.nan)},
    "must not keep positions": {"x_train": jnp.ones((12, 3, 2))},
    "nothing to learn": {"net": inn.Identity(), "learn_diag_reg": False},
    "`objective` must return a scalar.*sum": {
        "objective": lambda p: inn.leave_one_out(p).mean[:, 0]
    },
    "`where` selects None.*0.1": {"where": lambda net: net.layers[2].b_std},
    "`where` selects 1, .*Widths": {"where": lambda net: net.layers[0].width},
}
# Their types are wrong, which the checks of annotations say first.
_bad_types = {
    "`key` must be a random key": lambda: inspect.unwrap(_check_numbers)(1, 0.0, 2, 0),
    "`where` must be a pytree": lambda: inspect.unwrap(_check_where)(_linear(), 0.1),
}


@pytest.mark.parametrize("message", _bad)
def test_errors(message):
    x, y = _data()
    arguments = {"net": _small(), "x_train": x, "y_train": y, **_bad[message]}
    with pytest.raises(ValueError, match=message):
        inn.fit(**arguments)


@pytest.mark.parametrize("message", _bad_types)
def test_errors_of_types(message):
    with pytest.raises(ValueError, match=message):
        _bad_types[message]()


def test_error_at_the_start():
    x, y = _data()
    net, options = inn.Dense(1), {"progress": False, "optimiser": _descent}
    with pytest.raises(ValueError, match="not positive definite.*`diag_reg`"):
        inn.fit(net, x, y, diag_reg=0.0, learn_diag_reg=False, **options)
    with pytest.raises(ValueError, match="`objective` is nan at the start"):
        inn.fit(net, x, y, objective=lambda p: jnp.nan * p.weights.sum(), **options)
    steep = lambda p: jnp.sqrt(0 * p.weights.sum())
    with pytest.raises(ValueError, match="not its derivatives"):
        inn.fit(net, x, y, objective=steep, **options)


def test_refuses_transformations():
    x, y = _data()
    with pytest.raises(ValueError, match="cannot be compiled"):
        jax.jit(lambda x: inn.fit(_small(), x, y).objective)(x)
