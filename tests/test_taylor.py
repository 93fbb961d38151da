"""Taylor polynomials of models, against closed forms, stored values and the models."""

import functools
import math

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from helpers import load, quick_jit, run_once
from models import MODELS

import infinitenet as inn


def _erf_mlp(key, outputs=2):
    net = inn.Sequential([inn.Dense(6, 1.5, 0.1), inn.Erf(), inn.Dense(outputs, 1.2)])
    x = jr.normal(jr.fold_in(key, 1), (4, 3))
    return net.init(key, x[0]), x


def _cnn(key):
    net = inn.Sequential([inn.Conv(3, (3,)), inn.Tanh(), inn.Conv(2, (2,))])
    x = jr.normal(jr.fold_in(key, 1), (2, 6, 2))
    return net.init(key, x[0]), x


def _tanh_mlp(key):
    x = jr.normal(jr.fold_in(key, 1), (4, 3))
    return eqx.nn.MLP(3, 2, 5, 1, jnp.tanh, key=key), x


def _loop(key):
    fn = lambda w, x: jax.lax.scan(lambda h, W: (jnp.tanh(h @ W), None), x, w)[0]
    keys = jr.split(key)
    return inn.BatchFunction(fn, jr.normal(keys[0], (4, 3, 3))), jr.normal(keys[1], (4, 3))


class _Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        dense = functools.partial(nn.Dense, param_dtype=float)
        return dense(2)(nn.tanh(dense(5)(x)))


def _flax_mlp(key):
    x = jr.normal(jr.fold_in(key, 1), (4, 3))
    return inn.BatchFunction(_Linen().apply, _Linen().init(key, x)), x


def _moved(model, key, distance=1.0):
    """The model with other weights."""
    weights, rest = eqx.partition(model, inn.trainable(model))
    leaves, structure = jax.tree.flatten(weights)
    keys = jr.split(key, len(leaves))
    noise = [jr.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
    move = lambda x, d: x + distance * d
    return eqx.combine(jax.tree.map(move, weights, structure.unflatten(noise)), rest)


def _evaluate(model, x):
    batched = isinstance(model, inn.BatchFunction | inn.CoupledFunction)
    return model(x) if batched else jax.vmap(model)(x)


def _at(taylor, model):
    """A polynomial at the weights of another model."""
    if isinstance(taylor, inn.TaylorModel):
        return taylor.at(model)
    return type(taylor)(taylor.fn, model.weights)


def _size(tree):
    leaves = jax.tree.leaves(tree)
    return jnp.sqrt(sum(jnp.sum(jnp.abs(x) ** 2) for x in leaves))


#
# Values
#


def test_polynomial_network(getkey):
    # Of degree 3 in its weights: `(x W)^2 a`.
    net = inn.Sequential([inn.Dense(4), inn.Monomial(2), inn.Dense(1)])
    x = jr.normal(getkey(), (3,))
    net = net.init(getkey(), x)
    other = _moved(net, getkey())
    layers = [(net.layers[i].weights.W, other.layers[i].weights.W) for i in (0, 2)]
    (W0, W1), (a0, a1) = layers
    # Coefficients in `t`, by the arithmetic of polynomials.
    poly = np.polynomial.Polynomial
    total = poly([0.0])
    for h0, dh, a, da in zip(
        x @ W0, x @ (W1 - W0), a0[:, 0], a1[:, 0] - a0[:, 0], strict=True
    ):
        h = poly([float(h0), float(dh)]) / math.sqrt(3)
        total += h**2 * poly([float(a), float(da)]) / 2
    values = lambda net, other: [
        inn.taylor_expand(net, degree).at(other)(x)[0] for degree in range(5)
    ]
    got = run_once(values, net, other)
    want = np.array([float(np.sum(total.coef[: degree + 1])) for degree in range(5)])
    np.testing.assert_allclose(got, want, rtol=1e-12)
    np.testing.assert_allclose(got[3], other(x)[0], rtol=1e-12)


# And the largest degree: the time that compilation takes doubles with each.
_smooth = {
    "erf mlp": (_erf_mlp, 4),
    "eqx.nn.MLP": (_tanh_mlp, 4),
    "cnn": (_cnn, 4),
    "flax": (_flax_mlp, 4),
    "haiku": (MODELS["haiku"], 4),
    "loop": (_loop, 2),
    "batch norm": (MODELS["batch norm"], 1),
}


@pytest.mark.parametrize("name", _smooth)
def test_order_of_residual(getkey, name):
    make, top = _smooth[name]
    model, x = make(getkey())
    key, distances = getkey(), np.array([0.01, 0.005])

    @quick_jit
    @jax.vmap
    def errors(distance):
        other = _moved(model, key, distance)
        want = _evaluate(other, x)
        polynomials = [inn.taylor_expand(model, d) for d in range(top + 1)]
        outputs = [_evaluate(_at(taylor, other), x) for taylor in polynomials]
        return jnp.stack([_size(jax.tree.map(jnp.subtract, f, want)) for f in outputs])

    first, second = np.asarray(errors(jnp.asarray(distances)))
    slopes = np.log(first / second) / math.log(distances[0] / distances[1])
    np.testing.assert_allclose(slopes, np.arange(top + 1) + 1, atol=0.15)


_cases, _arrays = load("empirical")
_cases = {case["name"]: case for case in _cases if "new_params" in case}
_activations = {
    "Erf": jax.scipy.special.erf,
    "Gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "Sin": jnp.sin,
    "Tanh": jnp.tanh,
}


def _from_spec(specs):
    """A network as a plain function of its weights and a batch."""

    def fn(weights, x):
        numbers = iter(range(len(specs)))
        for spec in specs:
            layer = spec["layer"]
            if layer in _activations:
                x = _activations[layer](x)
            elif layer == "Flatten":
                x = x.reshape(len(x), -1)
            elif layer == "GlobalAvgPool":
                x = jnp.mean(x, axis=(1, 2))
            else:
                i = next(numbers)
                W, b = weights[f"W{i}"], weights.get(f"b{i}")
                scale = spec["W_std"] / math.sqrt(math.prod(W.shape[:-1]))
                x = scale * (x @ W if layer == "Dense" else _convolution(spec, x, W))
                x = x if b is None else x + jnp.broadcast_to(spec["b_std"] * b, x.shape)
        return x

    return fn


def _convolution(spec, x, W):
    dimensions = ("NHWC", "HWIO", "NHWC")
    strides = spec["strides"] or (1, 1)
    return jax.lax.conv_general_dilated(
        x, W, strides, spec["padding"], dimension_numbers=dimensions
    )


@pytest.mark.parametrize("name", _cases)
def test_stored_values(name):
    case = _cases[name]
    weights, new = (
        {key: _arrays[place] for key, place in case[which].items()}
        for which in ("params", "new_params")
    )
    fn, x = _from_spec(case["layers"]), _arrays[case["inputs"]["x1"]]
    expand = lambda degree: inn.taylor_expand(fn, degree, weights)
    polynomials = {f"taylor{d}_x1": expand(d) for d in case["taylor_degrees"]}
    polynomials |= {"linearize_x1": inn.linearize(fn, weights), "f_x1": expand(0)}
    outputs = quick_jit(lambda new: {key: p(new, x) for key, p in polynomials.items()})(new)
    outputs["f_new_x1"] = fn(new, x)
    for key, got in outputs.items():
        want = _arrays[case["outputs"][key]]
        np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-10, err_msg=key)


#
# Derivatives and training
#


def test_gradient_is_transposed_jacobian(getkey):
    net, x = _erf_mlp(getkey())
    other = _moved(net, getkey())
    weights, rest = eqx.partition(net, inn.trainable(net))
    f = lambda weights: jax.vmap(eqx.combine(weights, rest))(x)
    v = jr.normal(getkey(), (4, 2))
    linear, quadratic = (inn.taylor_expand(net, d).at(other) for d in (1, 2))

    def gradient(model):
        objective = lambda model: jnp.vdot(v, jax.vmap(model)(x))
        return eqx.filter_grad(objective)(model)

    @quick_jit
    def want(weights, displacement):
        pulled = lambda weights: jax.vjp(f, weights)[1](v)[0]
        return jax.jvp(pulled, (weights,), (displacement,))

    displacement = jax.tree.map(jnp.subtract, linear.free.tree, weights)
    first, second = want(weights, displacement)
    both = jax.tree.map(jnp.add, first, second)
    for model, want in ((linear, first), (quadratic, both)):
        got = run_once(gradient, model)
        close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
        jax.tree.map(close, got.free.tree, want)
        # Nothing else has derivatives, by whatever filter.
        assert not any(jnp.any(g) for g in jax.tree.leaves(got.function))


def _matrix(k):
    """A joint kernel of shape `(n, n, outputs, outputs)` as a matrix."""
    n, _, m, _ = k.shape
    return np.transpose(k, (0, 2, 1, 3)).reshape(n * m, n * m)


def test_training_is_that_of_the_kernel(getkey):
    net, x = _erf_mlp(getkey())
    y = jr.normal(getkey(), (4, 2))
    f_0 = jax.vmap(net)(x)
    k = inn.empirical_ntk(net, x, trace_axes=())
    rate = 0.6 * y.size / float(np.linalg.norm(_matrix(k), 2))
    sgd, steps = optax.sgd(rate, momentum=0.5, nesterov=True), 30
    linear = inn.linearize(net)
    weights, rest = eqx.partition(linear, inn.trainable(linear))
    evaluate = lambda weights: jax.vmap(eqx.combine(weights, rest))(x)

    def train(weights):
        loss = lambda weights: inn.half_mse(evaluate(weights), y)

        def step(carry, _):
            weights, state = carry
            updates, state = sgd.update(jax.grad(loss)(weights), state)
            weights = optax.apply_updates(weights, updates)
            return (weights, state), evaluate(weights)

        return jax.lax.scan(step, (weights, sgd.init(weights)), length=steps)

    (weights, _), outputs = quick_jit(train)(weights)
    flow = inn.gradient_flow(k, y)
    t = inn.Steps(jnp.arange(1, steps + 1), inn.Nesterov(rate, momentum=0.5))
    np.testing.assert_allclose(outputs, flow.train(t, f_0), atol=1e-8)
    # That is far from what the network itself becomes.
    trained = eqx.combine(weights, rest)
    assert jnp.max(jnp.abs(jax.vmap(trained.model)(x) - outputs[-1])) > 1e-2
    assert eqx.tree_equal(trained.centre, net)
    # The kernel of a linear model is the same everywhere.
    jacobian = jax.tree.leaves(quick_jit(jax.jacrev(evaluate))(weights))
    jacobian = np.concatenate([j.reshape(y.size, -1) for j in jacobian], axis=1)
    np.testing.assert_allclose(jacobian @ jacobian.T, _matrix(k), rtol=1e-10)


def test_derivatives_by_inputs(getkey):
    # Through those by weights, forwards and in reverse.
    fn = lambda w, x: jnp.exp(jnp.vdot(w, x))
    w0, w1, x = (jr.normal(getkey(), (3,)) for _ in range(3))
    quadratic = inn.taylor_expand(fn, 2, w0)
    f = lambda x: quadratic(w1, x)
    got = quick_jit(lambda x: (jax.grad(f)(x), jax.jacfwd(f)(x)))(x)
    u, v = jnp.vdot(w0, x), jnp.vdot(w1 - w0, x)
    want = jnp.exp(u) * ((1 + v + v**2 / 2) * w0 + (1 + v) * (w1 - w0))
    for gradient in got:
        np.testing.assert_allclose(gradient, want, rtol=1e-12)


#
# Structure
#


def _marked(tree):
    return [bool(leaf) for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize("make", [_erf_mlp, _tanh_mlp, MODELS["batch norm"]])
def test_filter(getkey, make):
    model, _ = make(getkey())
    linear = inn.linearize(model)
    weights = eqx.filter(linear, inn.trainable(linear))
    want = eqx.filter(model, inn.trainable(model))
    found, expected = jax.tree.leaves(weights), jax.tree.leaves(want)
    assert len(found) == len(expected) > 0
    assert all(jnp.array_equal(a, b) for a, b in zip(found, expected, strict=True))
    # They are in `free`, and copies.
    assert sum(_marked(inn.trainable(linear))) == len(expected)
    assert len(jax.tree.leaves(eqx.filter(linear.free, inn.trainable(linear.free)))) == len(
        expected
    )
    assert not any(a is b for a, b in zip(found, expected, strict=True))


def test_weights_in_and_out(getkey):
    net, x = _erf_mlp(getkey())
    other = _moved(net, getkey())
    constant = inn.taylor_expand(net, 0)
    assert eqx.tree_equal(constant.model, net) and eqx.tree_equal(constant.centre, net)
    moved = constant.at(other)
    assert eqx.tree_equal(moved.model, other) and eqx.tree_equal(moved.centre, net)
    assert moved.degree == 0
    np.testing.assert_array_equal(moved(x[0]), net(x[0]))
    # An expansion of an expansion.
    linear = inn.linearize(net).at(other)
    np.testing.assert_allclose(inn.linearize(linear)(x[0]), linear(x[0]), rtol=1e-12)


def test_donation(getkey):
    net, x = _erf_mlp(getkey())
    linear = inn.linearize(net)
    weights, rest = eqx.partition(linear, inn.trainable(linear))
    double = jax.jit(lambda w: jax.tree.map(lambda x: 2 * x, w), donate_argnums=0)
    eqx.combine(double(weights), rest)(x[0])
    net(x[0])


def test_ensemble(getkey):
    net, x = _erf_mlp(getkey())
    keys = jr.split(getkey(), 3)
    linear = inn.linearize(net)
    # Other weights about one point, and one set of weights about other points.
    moved = lambda key: linear.at(_moved(net, key))
    around = lambda key: inn.linearize(_moved(net, key)).at(net)

    def both(keys):
        models = [eqx.filter_vmap(fn)(keys) for fn in (moved, around)]
        evaluate = eqx.filter_vmap(lambda model: jax.vmap(model)(x))
        return [evaluate(model) for model in models]

    got = run_once(both, keys)
    one = quick_jit(lambda key: [jax.vmap(fn(key))(x) for fn in (moved, around)])
    for i, key in enumerate(keys):
        for outputs, want in zip(got, one(key), strict=True):
            np.testing.assert_allclose(outputs[i], want, rtol=1e-12)


def test_vmap_of_a_function(getkey):
    function = inn.taylor_expand(lambda w, x: jnp.sin(x @ w), 2, jnp.ones(3))
    w, x = jr.normal(getkey(), (5, 3)), jr.normal(getkey(), (4, 3))
    got = run_once(jax.vmap(function, in_axes=(0, None)), w, x)
    u, v = x @ jnp.ones(3), x @ (w - 1).T
    u = u[:, None]
    want = jnp.sin(u) + jnp.cos(u) * v - jnp.sin(u) * v**2 / 2
    np.testing.assert_allclose(got, want.T, rtol=1e-12)


def test_dtypes(getkey):
    net, x = _erf_mlp(getkey())
    other = _moved(net, getkey(), 0.3)

    def outputs(dtype, *trees):
        cast = lambda x: x.astype(dtype) if eqx.is_inexact_array(x) else x
        net, other, x = jax.tree.map(cast, trees)
        return jax.vmap(inn.taylor_expand(net, 2).at(other))(x)

    dtypes = {jnp.float64: 0.0, jnp.float32: 1e-6, jnp.bfloat16: 0.05}
    got = run_once(lambda *trees: [outputs(d, *trees) for d in dtypes], net, other, x)
    for f, (dtype, tolerance) in zip(got, dtypes.items(), strict=True):
        assert f.dtype == dtype
        np.testing.assert_allclose(np.asarray(f, float), got[0], atol=tolerance)


class _Various(eqx.Module):
    """Outputs of all kinds, and a key."""

    scale: jax.Array
    offset: jax.Array
    unit: str = "m"

    def __call__(self, x, *, shift=0.0, key=None):
        out = self.scale**2 * x + shift
        noise = 0.0 if key is None else jr.normal(key)
        return {
            "value": out + noise,
            "class": jnp.argmax(out) + self.offset,
            "unit": self.unit,
            "key": key,
            "none": None,
        }


def test_other_arguments_and_outputs(getkey):
    model, x, key = _Various(jnp.array([1.0, 2.0]), jnp.array(3)), jnp.ones(2), getkey()
    other = _Various(jnp.array([3.0, 1.0]), jnp.array(5))
    linear = inn.linearize(model).at(other)
    got = linear(x, shift=1.0, key=key)
    want = model(x, shift=1.0, key=key)
    assert jax.tree.structure(got) == jax.tree.structure(want)
    np.testing.assert_allclose(got["value"] - want["value"], [4.0, -4.0], rtol=1e-12)
    # Of the model at the point of expansion, integers of weights included.
    assert got["class"] == want["class"] == 4
    assert got["unit"] == "m" and got["key"] is key and got["none"] is None
    # Dropout is the same for the same key.
    net = inn.Sequential([inn.Dense(32), inn.Dropout(0.5), inn.Dense(1)])
    net = net.init(getkey(), x)
    linear = inn.linearize(net)
    outputs = lambda key: (linear(x, key=key)[0], net(x, key=key)[0])
    got, want = run_once(jax.vmap(outputs), jr.split(key))
    np.testing.assert_allclose(got, want, rtol=1e-12)
    assert got[0] != got[1]


def test_complex_weights(getkey):
    # The line from one point to another is real.
    fn = lambda w, x: jnp.abs(jnp.exp(w["a"]) * x) ** 2
    w0 = {"a": jnp.array(0.3 + 0.2j), "n": jnp.array(2)}
    w1 = {"a": jnp.array(0.8 - 0.5j), "n": jnp.array(7)}
    exponent, value = 2 * (w1["a"] - w0["a"]).real, fn(w0, 1.5)
    for degree in range(4):
        want = value * sum(exponent**k / math.factorial(k) for k in range(degree + 1))
        got = inn.taylor_expand(fn, degree, w0)(w1, 1.5)
        np.testing.assert_allclose(got, want, rtol=1e-12)


def test_repr(getkey):
    net, _ = _erf_mlp(getkey())
    assert repr(inn.taylor_expand(net, 2)) == f"TaylorModel({net!r}, degree=2)"
    assert repr(inn.linearize(lambda w, x: w, jnp.ones(1))).startswith("TaylorFunction(")


#
# Errors
#


def test_errors_of_arguments(getkey):
    net, _ = _erf_mlp(getkey())
    fn = lambda w, x: w * x
    for degree in (-1, True):
        with pytest.raises(ValueError, match="`degree` must be a whole number"):
            inn.taylor_expand(net, degree)
    with pytest.raises(ValueError, match=r"give its weights: `linearize\(fn, weights\)`"):
        inn.linearize(fn)
    with pytest.raises(ValueError, match="draw them by `net.init"):
        inn.linearize(inn.Dense(3))
    with pytest.raises(ValueError, match="A model has its own"):
        inn.linearize(net, jnp.ones(3))
    with pytest.raises(ValueError, match="`weights` must have arrays of floating-point"):
        inn.linearize(fn, jnp.arange(3))
    with pytest.raises(ValueError, match=r"`weights\['a'\]` has 1 entries which are NaN"):
        inn.linearize(fn, {"a": jnp.array([1.0, jnp.nan])})
    with pytest.raises(ValueError, match="entries which are NaN"):
        inn.linearize(inn.BatchFunction(fn, jnp.array([jnp.inf])))


def test_errors_of_weights(getkey):
    net, _ = _erf_mlp(getkey())
    wide, _ = _erf_mlp(getkey(), outputs=3)
    linear = inn.linearize(net)
    with pytest.raises(
        ValueError, match=r"layers\[2\].weights.W` has shape \(6, 3\), but \(6, 2\)"
    ):
        linear.at(wide)
    with pytest.raises(ValueError, match=r"`model` lacks `model.layers\[0\].weights.W`"):
        linear.at(eqx.nn.Linear(3, 2, key=getkey()))
    function = inn.linearize(lambda w, x: w["a"] * x, {"a": jnp.ones(3)})
    with pytest.raises(ValueError, match=r"`weights` has `weights\['b'\]`"):
        function({"a": jnp.ones(3), "b": jnp.ones(3)}, 1.0)
    with pytest.raises(ValueError, match=r"is complex128, but real"):
        function({"a": jnp.ones(3) + 1j}, 1.0)
