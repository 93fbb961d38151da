"""Architectures: shapes, and loops against layers one after the other."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from nets import architectures

import infinitenet as inn


def _unrolled(layer):
    """The same network without `Repeat`."""
    if isinstance(layer, inn.Sequential):
        return inn.Sequential([_unrolled(each) for each in layer.layers])
    if isinstance(layer, inn.Residual):
        return inn.Residual(_unrolled(layer.branch), _unrolled(layer.shortcut))
    if not isinstance(layer, inn.Repeat):
        return layer
    weights, rest = eqx.partition(layer.layer, inn.trainable(layer.layer))
    each = [jax.tree.map(lambda w: w[i], weights) for i in range(layer.times)]  # noqa: B023
    return inn.Sequential([_unrolled(eqx.combine(w, rest)) for w in each])


def _shape(net, shape):
    """Of the outputs of the finite network, of which nothing is computed."""
    x = jax.ShapeDtypeStruct(shape, jnp.zeros(()).dtype)
    evaluate = lambda key, x: net.init(key, x)(x)
    return eqx.filter_eval_shape(evaluate, jr.key(0), x).shape


@pytest.mark.parametrize(
    "net, shapes",
    [
        (inn.FullyConnected(1, 16, 3), [(5,), (4, 4, 2)]),
        (inn.FullyConnected(4, 16, 3, inn.Erf()), [(5,), (4, 4, 2)]),
        (inn.ConvOnly(1, 16, 3), [(4, 5, 2)]),
        (inn.ConvOnly(4, 16, 3, head=inn.GlobalAvgPool()), [(4, 5, 2)]),
        (inn.ConvOnly(4, 16, 3, filter_shape=(2,), padding="VALID"), [(9, 2)]),
        (inn.WideResNet(num_classes=3), [(32, 32, 3), (40, 28, 3)]),
        (inn.WideResNet(10, 1, 3), [(4, 4, 1), (7, 3, 1)]),
        *[(inn.Myrtle(depth, 16, 3), [(32, 32, 3), (17, 4, 1)]) for depth in (5, 7, 10)],
        (inn.LeNet(3), [(28, 28, 1), (12, 12, 3), (32, 40, 3)]),
    ],
)
def test_shapes(net, shapes):
    for shape in shapes:
        assert _shape(net, shape) == (3,)
    with pytest.raises(ValueError, match=r"layers\[|channel axis"):
        _shape(net, (2, 2, 2, 2, 2) if shapes[0] != (5,) else ())


def test_transformer_shape():
    block = inn.TransformerEncoderBlock(6, 4)
    net = inn.Sequential([inn.Conv(6, (2, 2)), block, block])
    assert _shape(net, (3, 4, 2)) == (2, 3, 6)
    with pytest.raises(ValueError, match="LayerNorm"):
        _shape(block, (3, 6))


def _count(net, kind):
    is_kind = lambda node: isinstance(node, kind)
    leaves = jax.tree.leaves(_unrolled(net), is_leaf=is_kind)
    return sum(map(is_kind, leaves))


def test_depths():
    """Numbers of layers, by which networks are called."""
    assert _count(inn.FullyConnected(6, 4, 1), inn.Dense) == 7
    assert _count(inn.ConvOnly(6, 4, 1), inn.Conv) == 6
    for depth in (10, 16, 28, 40):
        assert _count(inn.WideResNet(depth), inn.Conv) == depth
    for depth in (5, 7, 10):
        assert _count(inn.Myrtle(depth), (inn.Conv, inn.Dense)) == depth
    assert _count(inn.LeNet(), (inn.Conv, inn.Dense)) == 5


def _with_weights(net, shape):
    """Drawn by NumPy, as `init` would take longer to compile."""
    x = jax.ShapeDtypeStruct(shape, jnp.zeros(()).dtype)
    drawn = eqx.filter_eval_shape(lambda key: net.init(key, x), jr.key(0))
    rng = np.random.default_rng(0)
    weights = eqx.filter(drawn, inn.trainable(drawn))
    weights = jax.tree.map(lambda w: jnp.asarray(rng.normal(size=w.shape)), weights)
    return eqx.combine(weights, net, is_leaf=lambda x: isinstance(x, inn.AffineWeights))


@pytest.mark.parametrize(
    "net, shape",
    [
        (inn.FullyConnected(4, 8, 2, b_std=0.3), (3,)),
        (inn.WideResNet(22, 1, 2, b_std=0.3), (3, 4, 2)),
    ],
)
def test_finite_is_unrolled(net, shape):
    x = np.random.default_rng(1).normal(size=shape)
    net = _with_weights(net, shape)
    evaluate = eqx.filter_jit(lambda net, x: net(x))
    np.testing.assert_allclose(evaluate(net, x), evaluate(_unrolled(net), x), rtol=1e-9)


def _wide_resnet(n, W_std, b_std):
    """As listed in the paper, block by block."""

    def conv(width, strides=(1, 1)):
        return inn.Conv(width, (3, 3), strides, "SAME", W_std, b_std)

    def block(width, strides, mismatch):
        branch = [inn.Relu(), conv(width, strides), inn.Relu(), conv(width)]
        shortcut = conv(width, strides) if mismatch else inn.Identity()
        both = inn.Parallel([inn.Sequential(branch), shortcut])
        return [inn.FanOut(2), both, inn.FanInSum()]

    def group(width, strides):
        blocks = [block(width, strides, True), *(n - 1) * [block(width, (1, 1), False)]]
        return sum(blocks, [])

    groups = group(16, (1, 1)) + group(32, (2, 2)) + group(64, (2, 2))
    return inn.Sequential([conv(16), *groups, inn.GlobalAvgPool(), inn.Dense(1)])


def test_wide_resnet_block_by_block():
    # Of the shapes of the next test, so that most layers are compiled once for both.
    make, shape = architectures["wide_resnet"]
    x = jr.normal(jr.key(3), (3, *shape))
    W_std, b_std = make(16).layers[0].W_std, make(16).layers[0].b_std
    net = inn.WideResNet(22, 1, 1, W_std=W_std, b_std=b_std)
    kernels = [inn.gram(net, x), inn.gram(_wide_resnet(3, W_std, b_std), x)]
    np.testing.assert_allclose(kernels[0].nngp, kernels[1].nngp, rtol=1e-12)
    np.testing.assert_allclose(kernels[0].ntk, kernels[1].ntk, rtol=1e-12)


@pytest.mark.parametrize("name", architectures)
def test_kernels(name):
    """Symmetric, positive definite, and independent of widths."""
    make, shape = architectures[name]
    x = jr.normal(jr.key(3), (3, *shape))
    k = inn.gram(make(16), x)
    for matrix in (k.nngp, k.ntk):
        np.testing.assert_array_equal(matrix, matrix.T)
        assert np.linalg.eigvalsh(matrix)[0] > 0
    # The NTK is the NNGP and more, as the last layer is trained as well.
    assert np.linalg.eigvalsh(k.ntk - k.nngp)[0] > 0


@pytest.mark.parametrize("name", architectures)
def test_widths_grow(name):
    """All of them: so finite networks approach the infinite one."""
    make, shape = architectures[name]
    x = jax.ShapeDtypeStruct(shape, jnp.zeros(()).dtype)

    def widths(width):
        net = make(width)
        net = eqx.filter_eval_shape(lambda key: net.init(key, x), jr.key(0))
        is_weights = lambda node: isinstance(node, inn.AffineWeights)
        nodes = jax.tree.leaves(net, is_leaf=is_weights)
        return np.array([n.W.shape[-1] for n in nodes if is_weights(n)])

    few, many = widths(96), widths(192)
    assert few[-1] == many[-1] == 1
    np.testing.assert_array_equal(many[:-1], 2 * few[:-1])


def test_standard_parameterization():
    """Its NTK grows with the width, and reaches all layers."""
    x = jr.normal(jr.key(4), (2, 5))
    options = {"parameterization": "standard", "W_std": 1.0, "b_std": 0.1}
    few, many = (inn.gram(inn.FullyConnected(2, n, 1, **options), x) for n in (32, 64))
    np.testing.assert_allclose(few.nngp, many.nngp, rtol=1e-12)
    assert np.all(np.diag(many.ntk) > 1.5 * np.diag(few.ntk))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: inn.FullyConnected(0, 4, 1), "`depth` of `FullyConnected`.*positive"),
        (lambda: inn.FullyConnected(1, 0, 1), "`width` of `FullyConnected`"),
        (lambda: inn.ConvOnly(3, 4, -1), "`out` of `ConvOnly`.*-1"),
        (lambda: inn.ConvOnly(3, 4, 1, W_std=-1.0), "`W_std`.*not negative"),
        (lambda: inn.WideResNet(4), "`depth` of `WideResNet`.*multiple of 6"),
        (lambda: inn.WideResNet(27), "`depth` of `WideResNet`.*multiple of 6"),
        (lambda: inn.WideResNet(k=0), "`k` of `WideResNet`.*positive"),
        (lambda: inn.Myrtle(6), "`depth` of `Myrtle`.*5, 7 or 10"),
        (
            lambda: inn.TransformerEncoderBlock(4, 0),
            "`n_heads` of `TransformerEncoderBlock`",
        ),
        (lambda: inn.LeNet(0), "`num_classes` of `LeNet`"),
        (lambda: inn.LeNet(parameterization="ntp"), "parameterization"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
