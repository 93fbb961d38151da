"""Bad input: an error at once, which names the layer, the argument, and the remedy."""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import infinitenet as inn


_vectors = np.ones((2, 3))
_images = np.ones((2, 6, 6, 3))


def _gram(layers, x: np.ndarray = _vectors, **options):
    return inn.gram(inn.Sequential(layers), x, **options)


def _dense(**options):
    return inn.Dense(4, **options)


@pytest.mark.parametrize(
    "layers, words",
    [
        ([inn.Relu(), _dense()], ["layers[0] (Relu)", "Dense"]),
        ([_dense(), inn.Relu(), inn.Erf(), _dense()], ["layers[2] (Erf)", "Insert"]),
        (
            [_dense(), inn.Residual(inn.Sequential([_dense(), inn.Relu(), inn.Relu()]))],
            ["layers[1].branch.layers[2] (Relu)"],
        ),
        (
            [_dense(), inn.Sum([_dense(), inn.Dense(5)])],
            ["layers[1] (Sum)", "equal shapes"],
        ),
        (
            [_dense(), inn.Sum([inn.Sign(), inn.Identity(), _dense()])],
            ["layers[1] (Sum)", "`layers[0]` and `layers[1]`", "correlated"],
        ),
        ([_dense(), inn.Residual(inn.Sign())], ["(Residual)", "`branch` and `shortcut`"]),
        ([inn.FanInSum()], ["layers[0] (FanInSum)", "Parallel"]),
        ([inn.FanOut(2), _dense()], ["layers[1] (Dense)", "tuple of 2"]),
        ([inn.FanOut(2), inn.Parallel([_dense()])], ["(Parallel)", "tuple of 1 inputs"]),
        ([inn.Parallel([_dense()])], ["(Parallel)", "a single array"]),
        (
            [inn.FanOut(2), inn.Residual(inn.Identity())],
            ["branch and shortcut", "tuple of 2"],
        ),
        ([inn.FanOut(2), inn.FanInSum()], ["(FanInSum)", "`0` and `1`"]),
        ([inn.Conv(4, (3, 3))], ["layers[0] (Conv)", "2 spatial dimensions"]),
        ([inn.SelfAttention(4, 4, 4, 1)], ["layers[0] (SelfAttention)"]),
    ],
)
def test_networks(layers, words):
    x = _vectors
    net = inn.Sequential(layers)
    for call in (
        lambda: inn.gram(net, x),
        lambda: net.kernel(x[0], x[1]),
        lambda: net.init(jr.key(0), x[0]),
        lambda: eqx.filter_jit(net.kernel)(x[0], x[1]),
    ):
        with pytest.raises(ValueError) as error:
            call()
        for word in words:
            assert word in str(error.value)


@pytest.mark.parametrize(
    "layers, words",
    [
        ([inn.Conv(4, (7, 7))], ["layers[0] (Conv)", "does not fit", "SAME"]),
        ([inn.AvgPool((7, 1))], ["layers[0] (AvgPool)", "does not fit"]),
        ([inn.Conv(4, (3,))], ["(Conv)", "1 spatial dimensions", "have 2"]),
        ([inn.AvgPool((2, 2, 2))], ["(AvgPool)", "3 spatial dimensions"]),
        ([inn.Conv(4, (20, 20), padding="CIRCULAR")], ["(Conv)", "more than once"]),
        ([_dense(), inn.Flatten(), inn.Relu()], ["layers[2] (Relu)", "positions"]),
        ([inn.Repeat(inn.Conv(3, (3, 3)), 2)], ["(Repeat)", "keep the shape"]),
        (
            [inn.Sum([inn.Conv(4, (3, 3)), inn.Conv(4, (3, 3), padding="SAME")])],
            ["(Sum)", "(4, 4, 4)", "(6, 6, 4)"],
        ),
    ],
)
def test_images(layers, words):
    with pytest.raises(ValueError) as error:
        _gram(layers, _images)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: inn.Conv(4, (3, 3), (2,)), ["Conv", "`filter_shape`", "`strides`"]),
        (lambda: inn.AvgPool((3, 3), (2,)), ["AvgPool", "`window_shape`", "`strides`"]),
        (lambda: inn.Conv(4, (3, 0)), ["Conv", "positive"]),
        (lambda: inn.Conv(4, (3, 3), padding="same"), ["`padding`", "SAME"]),
        (lambda: inn.Conv(4, (3, 3), strides=()), ["`filter_shape`", "`strides`"]),
        (lambda: inn.Sequential(inn.Dense(3)), ["`layers` must be a list"]),
        (lambda: inn.Dense(0), ["Dense", "`width`"]),
        (lambda: inn.Dense(4, -1.0), ["Dense", "`W_std`", "negative"]),
        (lambda: inn.Dense(4, np.nan), ["Dense", "`W_std`", "finite"]),
        (lambda: inn.Dense(4, b_std=-1.0), ["Dense", "`b_std`"]),
        (lambda: inn.Dense(4, parameterization="mup"), ["`parameterization`", "standard"]),
        (lambda: inn.StandardParameterization((0, 1)), ["`s`"]),
        (lambda: inn.Dense(4, s=(1, 2)), ["`s`", "standard"]),
        (lambda: inn.LeakyRelu(np.inf), ["LeakyRelu", "`alpha`"]),
        (lambda: inn.Sequential([inn.Relu]), ["`layers[0]`", "a class"]),
        (lambda: inn.Repeat(inn.Relu(), 0), ["Repeat", "`times`"]),
        (lambda: inn.Sum([]), ["Sum", "`layers`"]),
        (lambda: inn.FanOut(0), ["FanOut", "`num`"]),
    ],
)
def test_arguments_of_layers(make, words):
    with pytest.raises(ValueError) as error:
        make()
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    "x1, x2, words",
    [
        (np.ones((2, 3), int), None, ["`x1`", "int64", "astype"]),
        (_vectors, np.ones((2, 3), np.uint8), ["`x2`", "uint8", "/ 255"]),
        (np.ones(3), None, ["`x1`", "channel axis", "[:, None]"]),
        (np.ones((0, 3)), None, ["`x1`", "empty"]),
        (_vectors, np.ones((0, 3)), ["`x2`", "empty"]),
        (_vectors, np.ones((2, 4)), ["same shape", "(3,)", "(4,)"]),
        (_vectors, np.ones((2, 4, 3)), ["same shape"]),
        (np.array([[1.0, np.nan]]), None, ["`x1`", "NaN"]),
        (_vectors, np.array([[1.0, 2.0, np.inf]]), ["`x2`", "inf"]),
        ((_vectors, _vectors[:1]), None, ["`x1`", "same size"]),
        (np.ones((2, 3), complex), None, ["`x1`", "complex"]),
        ([_vectors], None, ["`x1`", "list", "numpy.array"]),
    ],
)
def test_inputs(x1, x2, words):
    with pytest.raises(ValueError) as error:
        inn.gram(inn.Sequential([inn.Dense(2)]), x1, x2)
    for word in words:
        assert word in str(error.value)


def test_networks_of_gram():
    with pytest.raises(ValueError, match=r"end in one array.*FanInSum"):
        _gram([inn.FanOut(2)])


def test_stacks_of_networks():
    """Their hyperparameters have a further axis, which must not meet that of positions."""
    net = inn.Sequential([inn.Conv(4, (3,), padding="SAME"), inn.Relu(), inn.Flatten()])
    x = np.asarray(jr.normal(jr.key(0), (2, 4, 3)))
    nets = inn.draw_ensemble(net, jr.key(1), x[0], 4)
    with pytest.raises(ValueError, match=r"layers\[0\] \(Conv\).*scalar.*filter_vmap"):
        inn.gram(nets, x)
    each = eqx.filter_vmap(lambda net: inn.gram(net, x).ntk)(nets)
    np.testing.assert_allclose(each[2], inn.gram(net, x).ntk)


def test_other_options_of_gram():
    with pytest.raises(ValueError, match="nothing would be left"):
        _gram([_dense()], demand=inn.Demand(inn.Pairs.NONE))
    assert _gram([_dense()], memory=10**6).ntk.shape == (2, 2)


def test_inputs_of_finite_networks():
    net = inn.Dense(4).init(jr.key(0), np.ones(3))
    with pytest.raises(ValueError, match=r"Dense.*3 channels.*\(5,\)"):
        net(np.ones(5))
    net = inn.Conv(4, (2, 2)).init(jr.key(0), np.ones((5, 5, 3)))
    with pytest.raises(ValueError, match=r"Conv.*\(5, 3\).*vmap"):
        net(np.ones((5, 3)))


def test_not_finite_under_jit():
    x = np.array([[1.0, np.nan]])
    with pytest.raises(Exception, match="not finite"):
        eqx.filter_jit(inn.gram)(inn.Dense(2), x)


def test_kernels_of_pairs_are_checked():
    with pytest.raises(ValueError, match=r"`x2`.*NaN"):
        inn.Dense(2).kernel(np.ones(2), np.array([1.0, np.nan]))


def test_examples():
    net = inn.Sequential([inn.Dense(2)])
    with pytest.raises(ValueError, match="channel axis"):
        net.init(jr.key(0), jnp.ones(()))
    with pytest.raises(ValueError, match="floating-point"):
        net.init(jr.key(0), jnp.ones(3, int))
    with pytest.raises(ValueError, match="floating-point"):
        net.kernel(np.ones(3, int), np.ones(3, int))
    with pytest.raises(ValueError, match="same shape"):
        net.kernel(np.ones(3), np.ones(4))


def test_fan_in_of_standard_parameterization():
    net = inn.Dense(4, parameterization="standard")
    k = inn.Covariance(jnp.ones(()), inn.Pairs.SAME)
    kernel = inn.Kernel(k, k, None, None, alone=False, channels=None)
    with pytest.raises(ValueError, match=r"Dense.*fan-in.*`channels`"):
        net.infinite(kernel)


def test_uninitialised():
    net = inn.Sequential([inn.Dense(4), inn.Residual(inn.Dense(4))])
    with pytest.raises(ValueError, match=r"layers\[0\] \(Dense\).*init\(key, x\)"):
        net(jnp.ones(3))
    with pytest.raises(ValueError, match=r"layer \(Dense\)"):
        inn.Repeat(inn.Dense(3), 2)(jnp.ones(3))


def test_overflow():
    layers = [inn.Dense(4, 1e30), inn.Relu()] * 4 + [inn.Dense(1)]
    with pytest.raises(ValueError, match=r"overflow.*W_std"):
        _gram(layers, np.ones((2, 3), np.float32))


def test_memory():
    layers = [inn.Conv(4, (3, 3), padding="SAME"), inn.Relu(), inn.GlobalAvgPool()]
    with pytest.raises(ValueError, match=r"`memory` must be at least \d+ bytes"):
        _gram(layers, _images, memory=1000)


def test_errors_come_before_any_computation(monkeypatch):
    """The last layer is wrong: the first must not have been evaluated."""

    class Never(inn.AbstractPointwise):
        def __call__(self, x, *, key=None):
            raise AssertionError

        def dual(self, q1, k, q2):
            raise AssertionError

    with pytest.raises(ValueError, match=r"layers\[3\]"):
        _gram([inn.Dense(4), Never(), inn.Dense(4), inn.Conv(4, (3, 3))])
