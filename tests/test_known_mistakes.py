"""Mistakes that are known of other libraries of infinitely wide networks.

Those of linear layers are in `test_linear_layers.py`.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import infinitenet as inn


_ALL = inn.Demand(inn.Pairs.ALL)


def _normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def _both(gram):
    return np.asarray(gram.nngp), np.asarray(gram.ntk)


def test_sign_between_positions():
    """Covariances between different positions are not those of equal ones."""
    x = _normal(0, 2, 4, 3)
    net = inn.Sequential(
        [
            inn.Conv(4, (1,), W_std=1.3),
            inn.Sign(),
            inn.AvgPool((2,), (2,)),
            inn.Conv(4, (1,), W_std=1.7),
            inn.Relu(),
        ]
    )
    flat = x.reshape(8, 3)
    c = flat @ flat.T / np.linalg.norm(flat, axis=1) / np.linalg.norm(flat, axis=1)[:, None]
    k = 2 / np.pi * np.arcsin(np.clip(c, -1, 1))
    pool = np.kron(np.eye(4), np.full((1, 2), 0.5))
    k = 1.7**2 * pool @ k @ pool.T
    s = np.sqrt(np.diag(k))
    theta = np.arccos(np.clip(k / np.outer(s, s), -1, 1))
    relu = np.outer(s, s) * (np.sin(theta) + (np.pi - theta) * np.cos(theta)) / (2 * np.pi)
    tangent = k * (np.pi - theta) / (2 * np.pi)
    got = inn.gram(net, x, demand=_ALL)
    for array, want in ((got.nngp, relu), (got.ntk, tangent)):
        matrix = np.asarray(array).transpose(0, 2, 1, 3).reshape(4, 4)
        np.testing.assert_allclose(matrix, want, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("degree", range(4))
def test_rectified_powers_of_equal_inputs(degree):
    """The diagonal is finite, of the NNGP and of the NTK."""
    x = _normal(0, 3, 4)
    net = inn.Sequential([inn.Dense(4), inn.RectifiedMonomial(degree), inn.Dense(1)])
    for got in (inn.gram(net, x), inn.gram(net, x, x)):
        q = np.mean(x**2, 1)
        moment = np.prod(np.arange(2 * degree - 1, 0, -2))
        np.testing.assert_allclose(np.diag(got.nngp), moment * q**degree / 2, rtol=1e-12)
        assert np.all(np.isfinite(got.ntk))


@pytest.mark.parametrize(
    "layer, at_zero",
    [
        (inn.Polynomial([0.5, 0.3, -0.2]), 0.25),
        (inn.Elementwise(lambda x: 0.7 + x**2), 0.49),
        (inn.Tanh(), 0.0),
        (inn.Softplus(), np.log(2) ** 2),
    ],
)
def test_inputs_of_zero(layer, at_zero):
    x = np.stack([np.zeros(4), _normal(0, 4)])
    got = inn.gram(inn.Sequential([inn.Dense(4), layer]), x)
    assert np.all(np.isfinite(got.nngp)) and np.all(np.isfinite(got.ntk))
    np.testing.assert_allclose(got.nngp[0, 0], at_zero, atol=1e-12)


def test_quadrature_is_symmetric():
    """Exchanging the inputs exchanges the results, and few nodes are not enough."""
    q1, k, q2 = jnp.asarray([[0.01, 0.05, 9.0], [4.0, -3.0, 5.0], [1.0, 0.99, 1.0]]).T
    for layer in (inn.Tanh(), inn.Elementwise(lambda x: x * jax.nn.sigmoid(x))):
        one, other = layer.dual(q1, k, q2), layer.dual(q2, k, q1)
        np.testing.assert_allclose(one, other, rtol=1e-12)


def test_masks_in_tiles_of_all_pairs():
    """Tiles, masks, and covariances of all pairs of positions at once."""
    x = inn.Inputs(
        _normal(0, 5, 4, 2), missing=np.arange(4) >= np.array([[4, 2, 3, 1, 4]]).T
    )
    net = inn.Sequential([inn.Conv(4, (2,), padding="SAME"), inn.Relu()])
    want = inn.gram(net, x, demand=_ALL)
    with pytest.raises(ValueError, match="at least") as error:
        inn.gram(net, x, memory=1, demand=_ALL)
    least = int(str(error.value).split("at least ")[1].split(" bytes")[0])
    got = inn.gram(net, x, memory=4 * least, demand=_ALL)
    for a, b in zip(_both(got), _both(want), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-13)


@pytest.mark.parametrize("layer", [inn.Monomial(0), inn.RectifiedMonomial(0), inn.Cos()])
def test_functions_that_are_not_zero_at_zero(layer):
    """Missing positions stay zero, and do not contribute to averages."""
    x, missing = _normal(0, 3, 5, 2), np.arange(5) >= np.asarray([[2], [3], [5]])
    inputs = inn.Inputs(x, missing=missing)
    net = inn.Sequential([inn.Dense(4), layer])
    kernel = inn.gram(net, inputs, demand=_ALL)
    for i in range(3):
        block = np.asarray(kernel.nngp)[i, i]
        assert np.all(block[missing[i]] == 0) and np.all(block[:, missing[i]] == 0)
        assert np.all(np.diag(block)[~missing[i]] > 0)
    finite = net.init(jr.key(0), x[0])
    assert np.all(np.asarray(jax.vmap(finite)(inputs))[missing] == 0)


def test_two_resizes_keep_marginals_of_single_inputs():
    """Covariances between all pairs of examples on one side would break batches."""
    resize = inn.ImageResize((3,), "linear")
    net = inn.Sequential(
        [inn.Conv(4, (1,)), resize, inn.Relu(), inn.Conv(4, (1,)), resize, inn.Relu()]
    )
    x, y = _normal(0, 5, 4, 2), _normal(1, 7, 4, 2)
    pairs = jax.vmap(jax.vmap(net.kernel, (None, 0)), (0, None))
    jaxpr = str(jax.make_jaxpr(lambda x, y: pairs(x, y).nngp.array)(x, y))
    assert "f64[5,3" in jaxpr and "f64[7,3" in jaxpr
    assert "f64[5,5" not in jaxpr and "f64[7,7" not in jaxpr


def test_repeated_odd_number_of_convolutions():
    x, y = _normal(0, 2, 2, 4, 3, 2)
    block = inn.Sequential([inn.Conv(4, (2, 1), None, "SAME", 1.2), inn.Relu()])
    first = inn.Dense(4)
    nets = [first, inn.Repeat(block, 3)], [first, block, block, block]
    repeated, unrolled = (inn.gram(inn.Sequential(net), x, y, demand=_ALL) for net in nets)
    for a, b in zip(_both(repeated), _both(unrolled), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_axes_of_positions_keep_their_order(depth):
    """However many convolutions there are: `(n1, n2, h, w, h', w')`."""
    x = _normal(0, 2, 4, 3, 2)
    net = inn.Sequential([inn.Conv(4, (2, 1), None, "SAME", 1.2)] * depth)
    k = np.einsum("iabc,jdec->ijabde", x, x) / 2
    for _ in range(depth):
        shifted = np.pad(k, [(0, 0)] * 2 + [(0, 1), (0, 0)] * 2)[:, :, 1:, :, 1:]
        k = 1.2**2 * (k + shifted) / 2
    np.testing.assert_allclose(inn.gram(net, x, demand=_ALL).nngp, k, rtol=1e-12)


def test_ntk_without_trained_layers():
    """Is zero, of the shape of the kernel."""
    got = inn.gram(inn.Sequential([inn.Flatten()]), _normal(0, 3, 4, 2))
    np.testing.assert_array_equal(got.ntk, np.zeros((3, 3)))


#
# Beyond all bounds
#


@pytest.mark.parametrize("layer", [inn.Sin(), inn.Cos(), inn.Rbf()])
def test_bounded_functions_of_large_inputs(layer):
    """Covariances which rounding makes larger than variances are not exponentiated."""
    x = 1e9 * _normal(0, 4, 5)
    x[3] = x[0] * (1 + 1e-9)
    k = inn.gram(inn.Sequential([inn.Dense(8), layer]), x, x.copy()).nngp
    assert np.all(np.abs(k) <= 1 + 1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_small_variances(dtype):
    """Of functions with bounds, in products that under- and overflow."""
    rng = np.random.default_rng(0)
    q1, q2 = 10 ** rng.uniform(-7 if dtype == np.float32 else -18, 0, (2, 2000))
    k = rng.uniform(-1, 1, 2000) * np.sqrt(q1 * q2) * rng.choice([1, 1e-8], 2000)
    args = [jnp.asarray(a, dtype) for a in (q1, k, q2)]
    value = inn.HardTanh().dual(*args)
    assert np.all(np.isfinite(value))
    # Of small variances it is linear.
    small = np.maximum(q1, q2) < 1e-3
    np.testing.assert_allclose(value[small], args[1][small], rtol=1e-5, atol=1e-30)


#
# Inference
#

_shallow = inn.Sequential([inn.Dense(4), inn.Relu(), inn.Dense(1)])


def test_flow_of_singular_kernels():
    """At any time, infinity included, with eigenvalues that are exactly zero."""
    x = _normal(0, 4, 3)
    x[3] = x[0]
    k = inn.gram(_shallow, x)
    y = np.asarray([[1.0], [-1.0], [0.5], [1.0]])
    flow = inn.gradient_flow(k.ntk, y)
    for t in (0.0, 1.0, 1e6, np.inf):
        assert np.all(np.isfinite(flow.train(t)))
    ensemble = inn.infinite_ensemble(k, y)
    other = _normal(1, 2, 3)
    k_td, k_tt = inn.gram(_shallow, other, x), inn.gram(_shallow, other)
    for t in (1.0, np.inf):
        prediction = ensemble.predict(t, k_td, k_tt.nngp)
        assert np.all(np.isfinite(prediction.mean))
        assert np.all(np.isfinite(np.asarray(prediction.covariance)))


def test_max_learning_rate_needs_no_scipy():
    k = np.diag([1.0, 4.0])
    np.testing.assert_allclose(inn.max_learning_rate(k), 2 * 2 / 4)


def test_nothing_is_printed(capsys):
    net = inn.Sequential([inn.Dense(4), inn.Relu(), inn.Dense(1)])
    inn.gram(net, _normal(0, 5, 3), progress=False)
    eqx.filter_jit(inn.gram)(net, _normal(0, 5, 3))
    out, err = capsys.readouterr()
    assert out == err == ""
