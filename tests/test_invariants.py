"""What holds for kernels whatever their values are."""

import functools as ft

import hypothesis as hyp
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import infinitenet as inn


_few = hyp.settings(max_examples=10)
_eps = float(np.finfo(float).eps)


def _rms(x):
    return np.sqrt(np.mean(np.asarray(x) ** 2))


def _close(got, want, tolerance=1e-12):
    """Both kernels, relative to their root mean squares."""
    for name in ("nngp", "ntk"):
        a, b = np.asarray(getattr(got, name)), np.asarray(getattr(want, name))
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * _rms(b), err_msg=name)


def _normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def _deep_relu(depth, b_std):
    """Of variances which neither grow nor shrink."""
    block = inn.Sequential([inn.Relu(), inn.Dense(4, 2**0.5, b_std)])
    return inn.Sequential([inn.Dense(4, 2**0.5, b_std), inn.Repeat(block, depth)])


# The nets of several tests, which so share what is compiled.
_dense = inn.Sequential(
    [
        inn.Dense(4, 1.3, 0.2),
        inn.Relu(),
        inn.Dense(4, 1.1),
        inn.Erf(1.2, 0.7, 0.3),
        inn.Dense(1),
    ]
)
_pooled = inn.Sequential(
    [
        inn.Conv(4, (3,), None, "CIRCULAR", 1.3, 0.2),
        inn.Relu(),
        inn.Conv(4, (2,), None, "CIRCULAR", 1.1),
        inn.Abs(),
        inn.GlobalAvgPool(),
        inn.Dense(1),
    ]
)
_flat = inn.Sequential([*_pooled.layers[:4], inn.Flatten(), inn.Dense(1)])
_homogeneous = inn.Sequential(
    [
        inn.Dense(4, 1.3),
        inn.Residual(inn.Sequential([inn.Relu(), inn.Dense(4)])),
        inn.Abs(),
        inn.Dense(1),
    ]
)


def _inputs_of(net: inn.AbstractLayer, n: int):
    return _normal(0, n, 3) if net is _dense else _normal(0, n, 4, 2)


# Numbers of all sizes, with zeros and coincidences among them.
_numbers = st.one_of(
    st.sampled_from([0.0, 1.0, -1.0, 1e-9]), st.floats(-1e3, 1e3, width=32)
)
_batches = hnp.arrays(float, (4, 3), elements=_numbers)


#
# Symmetry
#


@hyp.given(x=_batches)
@_few
def test_symmetric_and_positive(x):
    kernel = inn.gram(_dense, x)
    for k in (np.asarray(kernel.nngp), np.asarray(kernel.ntk)):
        assert np.all(np.isfinite(k))
        np.testing.assert_array_equal(k, k.T)
    norm = np.linalg.norm(kernel.nngp, 2)
    assert np.linalg.eigvalsh(kernel.nngp)[0] >= -10 * len(x) * _eps * norm
    # The angle between inputs which nearly coincide is known to the root of rounding.
    norm = np.linalg.norm(kernel.ntk, 2)
    assert np.linalg.eigvalsh(kernel.ntk)[0] >= -len(x) * _eps**0.5 * norm


@pytest.mark.parametrize("net", [_dense, _pooled], ids=["dense", "pooled"])
def test_positive(net):
    """Of different inputs, both kernels are, to rounding."""
    x = _inputs_of(net, 9)
    kernel = inn.gram(net, x)
    for k in (kernel.nngp, kernel.ntk):
        np.testing.assert_array_equal(k, k.T)
        assert np.linalg.eigvalsh(k)[0] >= -9 * _eps * np.linalg.norm(k, 2)


@hyp.given(x1=_batches, x2=_batches)
@_few
def test_transposed(x1, x2):
    one, other = inn.gram(_dense, x1, x2), inn.gram(_dense, x2, x1)
    for k1, k2 in ((one.nngp, other.nngp), (one.ntk, other.ntk)):
        scale = np.max(np.abs(k1))
        np.testing.assert_allclose(k1, k2.T, rtol=0, atol=1e-12 * scale)


@hyp.given(x=_batches, permutation=st.permutations(range(4)))
@_few
def test_permuted_examples(x, permutation):
    kernel, permuted = inn.gram(_dense, x), inn.gram(_dense, x[permutation])
    for k1, k2 in ((kernel.nngp, permuted.nngp), (kernel.ntk, permuted.ntk)):
        scale = np.max(np.abs(k1))
        moved = k1[np.ix_(permutation, permutation)]
        np.testing.assert_allclose(moved, k2, rtol=0, atol=1e-13 * scale)


@pytest.mark.parametrize("demand", [inn.Demand(), inn.Demand(inn.Pairs.ALL)])
def test_transposed_positions(demand):
    """Exchanging the inputs exchanges the positions too."""
    net = inn.Sequential([inn.Conv(4, (2,), None, "SAME", 1.3, 0.2), inn.Relu()])
    x1, x2 = _normal(0, 2, 3, 4, 2)
    one, other = (inn.gram(net, *x, demand=demand) for x in ((x1, x2), (x2, x1)))
    axes = (1, 0, 2) if demand.cross == inn.Pairs.SAME else (1, 0, 3, 2)
    _close(one, inn.Gram(*(k.transpose(axes) for k in (other.nngp, other.ntk))))
    alone = inn.gram(net, x1, demand=demand)
    for k in (alone.nngp, alone.ntk):
        np.testing.assert_array_equal(k, k.transpose(axes))


#
# Different ways to the same result
#


def _least_memory(net, *args):
    """What a single entry takes, which errors tell."""
    with pytest.raises(ValueError, match="must be at least (.*) bytes") as error:
        inn.gram(net, *args, memory=1)
    return int(str(error.value).split("at least ")[1].split(" bytes")[0])


@pytest.mark.parametrize("symmetric", [True, False])
def test_tiles(symmetric):
    """Tiles of one entry, and of some, which overlap at the ends."""
    x1, x2 = _normal(0, 7, 4, 2), _normal(1, 5, 4, 2)
    args = (x1,) if symmetric else (x1, x2)
    want, least = inn.gram(_pooled, *args), _least_memory(_pooled, *args)
    for area in (1, 6):
        got = inn.gram(_pooled, *args, memory=area * least)
        _close(got, want, 1e-13)
        if symmetric:
            np.testing.assert_array_equal(got.ntk, got.ntk.T)


def test_without_ntk():
    x = _normal(0, 4, 3)
    kernel = inn.gram(_dense, x, ntk=False)
    assert kernel.ntk is None
    np.testing.assert_allclose(kernel.nngp, inn.gram(_dense, x).nngp, rtol=1e-13)


def test_repeat_is_unrolled():
    x1, x2 = _normal(0, 2, 3, 4, 2)
    # Twice and thrice, inside of each other, where it also asks for all pairs.
    block = inn.Sequential([inn.Relu(), inn.Conv(4, (2,), None, "SAME", 1.3, 0.1)])
    inner = inn.Repeat(inn.Residual(block), 2)
    first, last = inn.Dense(4, 0.9, 0.2), inn.GlobalAvgPool()
    repeated = inn.Sequential([first, inn.Repeat(inner, 3), last])
    unrolled = inn.Sequential([first, *6 * [inn.Residual(block)], last])
    for args in ((x1, x2), (x1,)):
        _close(inn.gram(repeated, *args), inn.gram(unrolled, *args))


def test_sum_is_parallel():
    x1, x2 = _normal(0, 2, 3, 3)
    branches = [
        inn.Sequential([inn.Relu(), inn.Dense(4, 1.3, 0.1)]),
        inn.Dense(4, 0.7),
        inn.Identity(),
    ]
    first = inn.Dense(4, 0.9, 0.2)
    parallel = inn.Sequential(
        [first, inn.FanOut(3), inn.Parallel(branches), inn.FanInSum(), inn.Relu()]
    )
    want = inn.gram(inn.Sequential([first, inn.Sum(branches), inn.Relu()]), x1, x2)
    _close(inn.gram(parallel, x1, x2), want)
    # A sum of two of them is a residual block.
    residual = inn.Sequential([first, inn.Residual(branches[0])])
    total = inn.Sequential([first, inn.Sum([branches[2], branches[0]])])
    _close(inn.gram(residual, x1, x2), inn.gram(total, x1, x2))


def test_more_pairs_than_needed():
    """Kernels between all positions agree with those between equal ones."""
    x1, x2 = jnp.asarray(_normal(0, 2, 4, 2))
    everything = inn.Demand(inn.Pairs.ALL, inn.Pairs.ALL)
    keeps = inn.Sequential(_flat.layers[:4])
    for net in (keeps, _flat):
        of_same = net.kernel(x1, x2)
        of_all = net.infinite(inn.Kernel.of_inputs(x1, x2, everything))
        for name in ("nngp", "ntk"):
            same, all_ = getattr(of_same, name), getattr(of_all, name)
            assert same.pairs == inn.Pairs.SAME
            np.testing.assert_allclose(all_.diagonal(), same.array, rtol=1e-12)


@pytest.mark.parametrize("net", [_dense, _pooled], ids=["dense", "pooled"])
def test_matrix_of_entries(net):
    """`gram` is `kernel` of each pair, and of each input alone on the diagonal."""
    x = _inputs_of(net, 2)
    matrix = inn.gram(net, x)
    for i in range(2):
        for j in range(2):
            kernel = net.kernel(x[i]) if i == j else net.kernel(x[i], x[j])
            np.testing.assert_allclose(matrix.nngp[i, j], kernel.nngp.array, rtol=1e-12)
            np.testing.assert_allclose(matrix.ntk[i, j], kernel.ntk.array, rtol=1e-12)


#
# Symmetries of networks
#


@hyp.given(x=_batches, scale=st.sampled_from([1e-6, 0.3, 2.0, 1e5]))
@_few
def test_homogeneous(x, scale):
    """Without biases, piecewise linear networks scale with their inputs."""
    kernel, scaled = inn.gram(_homogeneous, x), inn.gram(_homogeneous, scale * x)
    for k1, k2 in ((kernel.nngp, scaled.nngp), (kernel.ntk, scaled.ntk)):
        k1 = scale**2 * k1
        # As scaling rounds, so may angles between inputs which nearly coincide.
        np.testing.assert_allclose(k1, k2, rtol=0, atol=1e-7 * np.max(np.abs(k1)))
    scaled = inn.gram(_homogeneous, 8 * x)  # Rounds nothing.
    np.testing.assert_allclose(64 * kernel.nngp, scaled.nngp, rtol=1e-12)
    np.testing.assert_allclose(64 * kernel.ntk, scaled.ntk, rtol=1e-12)


@pytest.mark.parametrize("shift", [1, 2, 3])
def test_translation(shift):
    """Of periodic convolutions: of either input if pooled, of both if flattened."""
    x1, x2 = _normal(0, 2, 3, 4, 2)
    moved1, moved2 = (np.roll(x, shift, 1) for x in (x1, x2))
    want = inn.gram(_pooled, x1, x2)
    _close(inn.gram(_pooled, moved1, x2), want)
    _close(inn.gram(_pooled, x1, moved2), want)
    want = inn.gram(_flat, x1, x2)
    _close(inn.gram(_flat, moved1, moved2), want)
    assert _rms(inn.gram(_flat, moved1, x2).nngp - want.nngp) > 1e-3 * _rms(want.nngp)


def test_permuted_channels():
    """Kernels know of inputs only their products: they may be rotated."""
    x1, x2 = _normal(0, 2, 4, 3)
    rotation, _ = np.linalg.qr(_normal(1, 3, 3))
    want = inn.gram(_dense, x1, x2)
    _close(inn.gram(_dense, x1 @ rotation, x2 @ rotation), want)


#
# Inputs that nearly coincide, or vanish
#


def test_near_duplicates():
    """Kernels change as little as their inputs do."""
    x, step = _normal(0, 2, 4, 3)
    distances = 10.0 ** -np.arange(1, 16)
    # Along the input, so that they are collinear, and across.
    for net, direction in ((_homogeneous, x), (_dense, step)):
        exact = inn.gram(net, x)
        for d in distances:
            near = inn.gram(net, x, x + d * direction)
            # A change of angle changes the NTK by as much, and the angle between inputs
            # which coincide is known to the root of rounding, at each nonlinearity.
            for k, k0, rounding in (
                (near.nngp, exact.nngp, 1e-14),
                (near.ntk, exact.ntk, 1e-7),
            ):
                assert np.all(np.isfinite(k))
                change = np.max(np.abs(np.diag(k - k0)) / np.diag(k0))
                assert change < 10 * d + rounding
            if net is _homogeneous:
                for k, k0 in ((near.nngp, exact.nngp), (near.ntk, exact.ntk)):
                    np.testing.assert_allclose(np.diag(k), (1 + d) * np.diag(k0), rtol=1e-7)


def test_duplicates():
    """In a data set, and between two of them, as on the diagonal."""
    x = _normal(0, 4, 3)
    x[2] = x[0]
    kernel, copies = inn.gram(_dense, x), inn.gram(_dense, x, x.copy())
    for k in (kernel, copies):
        np.testing.assert_allclose(k.nngp[0, 2], kernel.nngp[0, 0], rtol=1e-14)
        np.testing.assert_allclose(k.ntk[0, 2], kernel.ntk[0, 0], rtol=1e-7)
    np.testing.assert_allclose(copies.nngp, kernel.nngp, rtol=1e-14)
    np.testing.assert_allclose(copies.ntk, kernel.ntk, rtol=1e-7)


def test_zero_inputs():
    """Without biases there is nothing; and NTKs with another input are its limits."""
    x = _normal(0, 4, 3)
    x[1] = x[3] = 0
    for kernel in (inn.gram(_homogeneous, x), inn.gram(_homogeneous, x, x.copy())):
        for k in (kernel.nngp, kernel.ntk):
            assert np.all(np.isfinite(k))
            np.testing.assert_array_equal(k[1], 0)
            np.testing.assert_array_equal(k[:, 3], 0)
            assert np.all(k[::2, ::2] > 0)
    near = np.where(x == 0, 1e-9 * _normal(1, 4, 3), x)
    _close(inn.gram(_dense, x), inn.gram(_dense, near), 1e-7)


#
# Single precision
#


_x = _normal(0, 8, 10)
_x[5] = _x[2]


@ft.cache
def _deep_kernels(b_std):
    """In both precisions, of the same inputs, two of which are equal."""
    net, x = _deep_relu(20, b_std), _x.astype(np.float32)
    return inn.gram(net, x.astype(float)), inn.gram(net, x), inn.gram(net, x, x.copy())


@pytest.mark.parametrize("b_std", [None, 0.1])
def test_float32(b_std):
    """Of twenty layers, the diagonal included."""
    exact, single, _ = _deep_kernels(b_std)
    apart = np.ones_like(exact.nngp, bool)
    apart[2, 5] = apart[5, 2] = False
    for name in ("nngp", "ntk"):
        want, got = (np.asarray(getattr(k, name)) for k in (exact, single))
        assert got.dtype == np.float32
        difference = np.abs(got - want)[apart]
        assert np.max(difference) < 1e-5 * _rms(want), name
        np.testing.assert_allclose(np.diag(got), np.diag(want), rtol=1e-5)


@pytest.mark.parametrize("b_std", [None, 0.1])
def test_float32_duplicates(b_std):
    """Of twenty layers, where the angles of equal inputs are lost to rounding."""
    exact, single, copies = _deep_kernels(b_std)
    for got in (single, copies):
        for name, tolerance in (("nngp", 1e-5), ("ntk", 1e-4)):
            want = np.asarray(getattr(exact, name))
            difference = np.abs(np.asarray(getattr(got, name)) - want)
            assert np.max(difference) < tolerance * _rms(want), name


def test_float32_convolution():
    """Symmetric to the bit, and close to double precision."""
    x = _normal(0, 4, 4, 2).astype(np.float32)
    got, want = inn.gram(_pooled, x), inn.gram(_pooled, x.astype(float))
    _close(jax.tree.map(lambda k: np.asarray(k, float), got), want, 1e-5)
    np.testing.assert_array_equal(got.ntk, got.ntk.T)
