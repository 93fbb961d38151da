"""Steps, learning rates and parameterizations as times of gradient flow."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import infinitenet as inn


_schedule = optax.cosine_decay_schedule(0.2, 30)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("rate", [0.2, _schedule])
def test_constant_gradient(rate, momentum):
    """Weights have moved by the time."""
    optimiser = optax.sgd(rate, momentum)

    @jax.jit
    def run():
        def step(carry, _):
            change, state = optimiser.update(jnp.ones(()), carry[1])
            return (carry[0] + change, state), carry[0]

        start = jnp.zeros(())
        return jax.lax.scan(step, (start, optimiser.init(start)), length=31)[1]

    steps = np.asarray([[0, 1], [2, 30]])
    # Optax computes schedules in float32.
    rtol = 1e-6 if callable(rate) else 1e-12
    times = inn.flow_time(steps, rate, momentum)  # pyright: ignore
    np.testing.assert_allclose(times, -run()[steps], rtol)


def test_of_momentum_near_one():
    # Summed one by one; single precision is as good.
    m, n = 0.999, np.arange(40)
    exact = 0.1 * np.cumsum(np.cumsum(m**n))
    np.testing.assert_allclose(inn.flow_time(n + 1, 0.1, m), exact, 1e-11)
    with jax.enable_x64(False):
        np.testing.assert_allclose(inn.flow_time(n + 1, 0.1, m), exact, 1e-6)


def test_transformations():
    steps = jnp.arange(4)
    times = jax.jit(inn.flow_time)(steps, 0.1, 0.9)
    np.testing.assert_allclose(times, inn.flow_time(steps, 0.1, 0.9))
    slope = jax.jacobian(lambda rate: inn.flow_time(steps, rate, 0.9))(0.1)
    np.testing.assert_allclose(slope, times / 0.1)
    slope = jax.jacobian(lambda m: inn.flow_time(steps, 0.1, m))(0.0)
    np.testing.assert_allclose(slope, [0, 0, 0.1, 0.2])


def test_errors_are_of_first_order():
    """Of heavy balls, exactly: the error of flow at these times halves with the rate."""
    x = jnp.asarray([[-1.0], [0.5], [2.0]])
    k = inn.gram(inn.Sequential([inn.Dense(1), inn.Erf(), inn.Dense(1)]), x)
    infinite = inn.infinite_ensemble(k, jnp.sin(x))
    predict = eqx.filter_jit(lambda infinite, t: infinite.predict_train(t).mean)
    errors, late = [], []
    for rate, steps in ((0.02, 200), (0.01, 400)):
        exact = predict(infinite, inn.Steps(steps, inn.HeavyBall(rate, 0.9)))
        time = inn.flow_time(steps, rate, 0.9)
        errors.append(float(jnp.max(jnp.abs(predict(infinite, time) - exact))))
        time = jnp.asarray(rate * steps / 0.1)
        late.append(float(jnp.max(jnp.abs(predict(infinite, time) - exact))))
    assert 1.7 < errors[0] / errors[1] < 2.3
    # Most of which would be the time in which it gathers speed.
    few = inn.Steps(5, inn.HeavyBall(0.01, 0.9))
    good = predict(infinite, inn.flow_time(5, 0.01, 0.9)) - predict(infinite, few)
    poor = predict(infinite, jnp.asarray(0.5)) - predict(infinite, few)
    assert jnp.max(jnp.abs(good)) < 0.05 * jnp.max(jnp.abs(poor))


@pytest.mark.parametrize(
    "match, args",
    [
        ("`steps` must be whole", (0.5, 0.1)),
        ("`steps` must not be negative, but the least is -1", ([-1, 2], 0.1)),
        ("`learning_rate` must be a scalar", (3, jnp.ones(3))),
        ("`learning_rate` has 1 entries", (3, jnp.nan)),
        ("`learning_rate` has 2 entries", (3, lambda step: jnp.log(step - 1.0))),
        ("`momentum` must be at least 0 and below 1", (3, 0.1, 1.0)),
        ("`momentum` must be a scalar", (3, 0.1, jnp.zeros(2))),
    ],
)
def test_bad_times(match, args):
    with pytest.raises(ValueError, match=match):
        inn.flow_time(*args)


def test_schedules_need_steps():
    with pytest.raises(ValueError, match="`steps` must be known"):
        jax.jit(lambda steps: inn.flow_time(steps, _schedule))(3)


#
# Parameterizations
#


def _net(parameterization, s=(1, 1)):
    options = {"parameterization": parameterization}
    wide = {"s": s} if parameterization == "standard" else {}
    return inn.Sequential(
        [
            inn.Conv(3, (2,), W_std=1.3, b_std=0.2, **options),
            inn.Erf(),
            inn.Repeat(
                inn.Sequential([inn.Dense(3, 1.2, 0.4, **options, **wide), inn.Erf()]), 2
            )
            if s == (1, 1)
            else inn.Dense(3, 1.2, 0.4, **options, **wide),
            inn.Flatten(),
            inn.Dense(2, 1.1, **options),
        ]
    )


_x = jr.normal(jr.key(0), (4, 3, 2))
_y = jr.normal(jr.key(1), (4, 2))


def _train(net, optimiser, steps=6):
    """Outputs after all steps, in one program."""
    weights, rest = eqx.partition(net, inn.trainable(net))

    @jax.jit
    def run(weights):
        outputs = lambda weights: jax.vmap(eqx.combine(weights, rest))(_x)
        loss = lambda weights: inn.half_mse(outputs(weights), _y)

        def step(carry, _):
            weights, state = carry
            value, grad = jax.value_and_grad(loss)(weights)
            more = {"value": value, "grad": grad, "value_fn": loss}
            change, state = optimiser.update(grad, state, weights, **more)
            return (eqx.apply_updates(weights, change), state), outputs(weights)

        start = (weights, optimiser.init(weights))
        return jax.lax.scan(step, start, length=steps)[1]

    return run(weights)


def _scaled(rates, optimiser):
    multiply = lambda gradient, _: jax.tree.map(jnp.multiply, rates, gradient)
    scale = optax.stateless(multiply)
    return optax.with_extra_args_support(optax.chain(scale, optimiser))


@pytest.mark.parametrize("optimiser", [optax.sgd(0.5), optax.sgd(0.2, 0.9)])
def test_ntk_learning_rates(optimiser):
    standard = _net("standard").init(jr.key(2), _x[0])
    ntk = _net("ntk").init(jr.key(2), _x[0])
    optimiser = optax.with_extra_args_support(optimiser)
    expected = _train(ntk, optimiser)
    assert jnp.max(jnp.abs(expected[-1] - expected[0])) > 0.1
    rates = inn.ntk_learning_rates(standard)
    assert jax.tree.structure(rates) == jax.tree.structure(
        eqx.filter(standard, inn.trainable(standard))
    )
    got = _train(standard, _scaled(rates, optimiser))
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-10)
    got = _train(standard, inn.ntk_parameterized(optimiser, standard))
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("optimiser", [optax.adamw(0.05, weight_decay=0.1), optax.lbfgs()])
def test_ntk_parameterized(optimiser):
    standard = _net("standard").init(jr.key(2), _x[0])
    expected = _train(_net("ntk").init(jr.key(2), _x[0]), optimiser)
    got = _train(standard, inn.ntk_parameterized(optimiser, standard))
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-8)


def test_values_of_learning_rates():
    rates = inn.ntk_learning_rates(_net("standard", (4, 1)).init(jr.key(0), _x[0]))
    # Each fan-in is that of the layer; four times less of it is counted for `s`.
    expected = [1.3**2 / 4, 0.2**2, 1.2**2 * 4 / 3, 0.4**2, 1.1**2 / 6]
    np.testing.assert_allclose(jax.tree.leaves(rates), expected)
    rates = inn.ntk_learning_rates(_net("ntk").init(jr.key(0), _x[0]))
    np.testing.assert_array_equal(jax.tree.leaves(rates), 1)
    # A bias that starts at zero stays there, as its scale is zero.
    dense = inn.Dense(1, b_std=0.0, parameterization="standard").init(jr.key(0), _x[0, 0])
    optimiser = inn.ntk_parameterized(optax.adam(0.1), dense)
    weights = eqx.filter(dense, inn.trainable(dense))
    change, _ = optimiser.update(weights, optimiser.init(weights), weights)
    assert not jnp.any(change.weights.b) and jnp.all(jnp.isfinite(change.weights.W))  # pyright: ignore


def test_bad_networks():
    net = _net("standard")
    ensemble = inn.draw_ensemble(net, jr.key(0), _x[0], 2)
    for bad, match in ((net, "with weights"), (ensemble, "it is an ensemble")):
        for fn in (
            inn.ntk_learning_rates,
            lambda n: inn.ntk_parameterized(optax.sgd(1), n),
        ):
            with pytest.raises(ValueError, match=match):
                fn(bad)


def test_standard_parameterization_is_a_flow():
    """Of its own NTK, at the sum of the learning rates; loosely, at finite width."""
    width, p = 256, {"parameterization": "standard"}
    layers = [inn.Dense(width, 1.5, 0.05, **p), inn.Erf(), inn.Dense(1, 1.5, 0.05, **p)]  # pyright: ignore
    net = inn.Sequential(layers)
    x = jnp.asarray([[-2.0], [-0.4], [0.7], [2.2]])
    k = jax.jit(lambda x: inn.gram(net, x))(x)
    rate = float(inn.max_learning_rate(k.ntk)) / 20
    # Far smaller than in NTK parameterization.
    assert rate < 0.02
    ensemble = inn.draw_ensemble(net, jr.key(3), x[0], 32)
    y = jnp.sin(x)
    trained = inn.train_ensemble(ensemble, x, y, optax.sgd(rate), [0, 20, 200])
    infinite = inn.infinite_ensemble(k, y)
    predict = eqx.filter_jit(lambda infinite, t: infinite.predict_train(t))
    right = inn.compare(trained, predict(infinite, trained.times(rate)))
    rms = lambda z: float(jnp.sqrt(jnp.mean(z**2)))
    assert rms(right.z_mean) < 1.6 and rms(right.z_covariance) < 1.6
    wrong = inn.compare(trained, predict(infinite, trained.times(3 * rate)))
    assert rms(wrong.z_covariance) > 5
