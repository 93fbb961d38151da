"""Attention: loops in NumPy, and averages over finite networks.

Against stored values it is tested in `test_kernel_oracle.py`.
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jaxtyping
import numpy as np
import pytest
from helpers import quick_jit, run_once

import infinitenet as inn
from infinitenet._layers.attention import SelfAttention


_everything = inn.Demand(inn.Pairs.ALL, inn.Pairs.ALL)
_all_pairs = inn.Demand(inn.Pairs.ALL)
_stds = ("W_key_std", "W_value_std", "W_query_std", "W_out_std", "b_std", "W_pos_emb_std")


def _exponential(d):
    return jnp.exp(-0.3 * d)


# Every mechanism, embedding and scaling, and hyperparameters that are all different.
_numbers = {
    "W_key_std": 1.2,
    "W_value_std": 0.9,
    "W_query_std": 0.8,
    "W_out_std": 1.1,
    "b_std": 0.3,
    "W_pos_emb_std": 0.7,
}
_identity = {"linear_scaling": False, "attention_mechanism": "IDENTITY"}
_concat = {"pos_emb_type": "CONCAT", "pos_emb_decay_fn": _exponential}
_options = {
    "softmax": {},
    "identity": {"attention_mechanism": "IDENTITY"},
    "abs": {"attention_mechanism": "ABS", "pos_emb_type": "SUM"},
    "relu": {"attention_mechanism": "RELU", **_concat, "pos_emb_p_norm": 1},
    "sum": {"pos_emb_type": "SUM", "pos_emb_decay_fn": _exponential, "val_pos_emb": True},
    "concat": {**_concat, "n_chan_pos_emb": 9},
    "concat_values": {**_concat, "n_chan_pos_emb": 2, "val_pos_emb": True},
    "root": _identity,
    "root_sum": {**_identity, "pos_emb_type": "SUM"},
    "root_values": {**_identity, **_concat, "n_chan_pos_emb": 3, "val_pos_emb": True},
}
_each = pytest.mark.parametrize("name", _options)
_some = pytest.mark.parametrize("name", ("softmax", "concat_values", "root_sum"))


def _layer(name, width=5, sizes=(4, 3, 2), **options):
    return SelfAttention(width, *sizes, **{**_numbers, **_options[name], **options})


def _drawn(name, x, key, *args) -> Any:
    return _layer(name, *args).init(key, x)


def _array(kernel, matrix):
    return getattr(kernel, matrix).array


def _inputs(getkey, *shape):
    return jr.normal(getkey(), shape), jr.normal(getkey(), shape)


def _difference(got, want):
    return np.max(np.abs(got - want)) / np.sqrt(np.mean(np.square(want)))


#
# Loops
#


def _embedded(net, k, tangent):
    """Covariances between tokens with embeddings, or derivatives of it.

    The embeddings' own NTK is their covariance.
    """
    out = np.zeros_like(k)
    channels, spatial = 5, k.shape[: k.ndim // 2]
    embedding = net.n_chan_pos_emb or channels
    source = tangent if tangent is not None else k
    for p in np.ndindex(spatial):
        for q in np.ndindex(spatial):
            d = sum(abs(a - b) ** net.pos_emb_p_norm for a, b in zip(p, q, strict=True))
            r = math.exp(-0.3 * d) if net.pos_emb_decay_fn else float(p == q)
            r *= float(net.W_pos_emb_std) ** 2
            mean = (channels * source[p + q] + embedding * r) / (channels + embedding)
            kinds = {"NONE": source[p + q], "SUM": source[p + q] + r, "CONCAT": mean}
            out[p + q] = kinds[net.pos_emb_type]
    return out


def _mechanism(net, scores):
    if net.attention_mechanism == "SOFTMAX":
        return np.exp(scores) / np.sum(np.exp(scores))
    functions = {"IDENTITY": lambda s: s, "ABS": abs, "RELU": lambda s: np.maximum(s, 0)}
    return functions[net.attention_mechanism](scores)


def _attended(net, k):
    """For each position, weights of all others."""
    scores = _embedded(net, k, None) * float(net.W_query_std * net.W_key_std)
    spatial = k.shape[: k.ndim // 2]
    return {p: _mechanism(net, scores[p]) for p in np.ndindex(spatial)}


def _loops_linear(net, k11, k12, k22, t12):
    G1, G2 = _attended(net, k11), _attended(net, k22)
    kv = _embedded(net, k12, None) if net.val_pos_emb else k12
    tv = _embedded(net, k12, t12) if net.val_pos_emb else t12
    v, b = float(net.W_out_std * net.W_value_std) ** 2, float(net.b_std) ** 2
    nngp, ntk = np.zeros_like(k12), np.zeros_like(k12)
    for p in G1:
        for q in G2:
            sums = [0.0, 0.0]
            for i in np.ndindex(k12.shape):
                weight = G1[p][i[: len(p)]] * G2[q][i[len(p) :]]
                sums[0] += v * weight * kv[i]
                sums[1] += v * weight * tv[i]
            nngp[p + q] = sums[0] + b
            ntk[p + q] = 2 * sums[0] + sums[1] + b
    return nngp, ntk


def _loops_root(net, k11, k12, k22, t12):
    del k11, k22
    k, t = _embedded(net, k12, None), _embedded(net, k12, t12)
    kv, tv = (k, t) if net.val_pos_emb else (k12, t12)
    c = float(net.W_query_std * net.W_key_std * net.W_out_std * net.W_value_std) ** 2
    b = float(net.b_std) ** 2
    nngp = c * np.sum(k * kv) * k + b
    ntk = 4 * (nngp - b) + c * np.sum(k * kv) * t + b
    ntk += c * (np.sum(t * kv) + np.sum(k * tv)) * k
    return nngp, ntk


@_each
def test_loops(name, getkey):
    x1, x2 = _inputs(getkey, 3, 2, 5)
    net = _layer(name)
    products = lambda a, b: np.einsum("ijc,klc->ijkl", a, b) / 5
    # Of `Dense`, the covariance and the NTK of which are equal.
    k11, k12, k22 = (1.44 * products(*pair) for pair in ((x1, x1), (x1, x2), (x2, x2)))
    loops = _loops_linear if net.linear_scaling else _loops_root
    nngp, ntk = loops(net, k11, k12, k22, k12)
    whole = inn.Sequential([inn.Dense(5, W_std=1.2), net])
    kernel = whole.kernel(x1, x2, demand=_everything)
    assert _difference(kernel.nngp.array, nngp) < 1e-13
    assert _difference(kernel.ntk.array, ntk) < 1e-13
    assert kernel.channels == 5
    for cov, x in ((kernel.cov1, x1), (kernel.cov2, x2)):
        alone = whole.kernel(x, demand=_everything)
        assert alone.cov1 is alone.cov2 is None
        assert _difference(cov.array, alone.nngp.array) < 1e-13
        copies = whole.kernel(x, x, demand=_everything)
        assert _difference(copies.ntk.array, alone.ntk.array) < 1e-13


#
# Finite networks
#


def _both_kernels(net, x1, x2):
    """Products of outputs, averaged over channels, and of derivatives of one channel."""
    weights, rest = eqx.partition(net, inn.trainable(net))
    call = lambda weights, x: eqx.combine(weights, rest)(x)
    nngp = net(x1) @ net(x2).T / net.width
    jacobian = jax.jacrev(lambda weights, x: call(weights, x)[:, 0])
    pairs = zip(*(jax.tree.leaves(jacobian(weights, x)) for x in (x1, x2)), strict=True)
    rows = [(j1.reshape(len(x1), -1), j2.reshape(len(x2), -1)) for j1, j2 in pairs]
    return jnp.stack([nngp, sum(j1 @ j2.T for j1, j2 in rows)])


_slow = [pytest.param(name, marks=pytest.mark.slow) for name in ("sum", "root_values")]


@pytest.mark.parametrize("name", ["softmax", *_slow])
def test_finite_networks(name, getkey):
    """Averages over networks that are wide, and so close to their limit."""
    size, n_draws = 128, 150
    x1, x2 = _inputs(getkey, 3, size)
    x1, x2 = x1.astype(jnp.float32), (0.8 * x1 + 0.6 * x2).astype(jnp.float32)
    share = None if _layer(name).n_chan_pos_emb is None else size // 2
    net = _layer(name, 64, (size, 16, 16), n_chan_pos_emb=share)
    one = lambda key: _both_kernels(net.init(key, x1), x1, x2)
    values = eqx.filter_jit(lambda keys: jax.lax.map(one, keys))(
        jr.split(getkey(), n_draws)
    )
    mean, error = np.mean(values, 0), np.std(values, 0) / math.sqrt(n_draws)
    kernel = net.kernel(x1, x2, demand=_all_pairs)
    limit = np.stack([kernel.nngp.array, kernel.ntk.array])
    scale = np.sqrt(np.mean(limit**2, axis=(1, 2), keepdims=True))
    assert np.mean(error / scale) < 0.04
    # Scores have variances of order 1 / n_key, and covariances of embeddings ones of order
    # 1 / channels, by which means differ from the limit.
    assert np.all(np.abs(mean - limit) < 4 * error + 3 / size * scale)


@_some
def test_weights(name, getkey):
    x = jr.normal(getkey(), (3, 2, 5), jnp.float32)
    net = _drawn(name, x, getkey())
    weights = net.weights
    assert (weights.query is None) == net.linear_scaling
    assert (weights.embedding is None) == (net.pos_emb_type == "NONE")
    assert weights.out.shape == (2, 3, 5) and weights.b.shape == (5,)
    assert {leaf.dtype for leaf in jax.tree.leaves(weights)} == {x.dtype}
    marked = eqx.filter(net, inn.trainable(net))
    assert len(jax.tree.leaves(marked)) == len(jax.tree.leaves(weights))
    y = net(x)
    assert y.shape == (3, 2, 5) and y.dtype == x.dtype
    assert net.check(inn.Signal((3, 2, 5), x.dtype)).shape == y.shape

    assert np.allclose(run_once(lambda net: net(x), net), y, atol=1e-5)
    keys = jr.split(getkey(), 3)
    several = jax.eval_shape(jax.vmap(lambda key: _layer(name).init(key, x)(x)), keys)
    assert several.shape == (3, *y.shape)
    kernels = [run_once(lambda net: net.kernel(x, x), n) for n in (net, _layer(name))]
    assert eqx.tree_equal(*kernels)


def test_finite_by_hand(getkey):
    """One head, written out."""
    x = jr.normal(getkey(), (3, 5))
    net = _drawn("root_values", x, getkey(), 2, (4, 3, 1))
    W = jax.tree.map(np.asarray, net.weights)
    decay = np.exp(-0.3 * np.square(np.subtract.outer(np.arange(3), np.arange(3))))
    values, vectors = np.linalg.eigh(decay)
    e = 0.7 * (vectors @ np.diag(np.sqrt(values)) @ vectors.T) @ W.embedding
    tokens = np.concatenate([x, e], axis=1) / math.sqrt(8)
    scores = 0.8 * 1.2 * (tokens @ W.query[0]) @ (tokens @ W.key[0]).T / math.sqrt(4)
    y = (
        1.1 * scores @ (0.9 * tokens @ W.value[0]) @ W.out[0] / math.sqrt(3)
        + 0.3 * W.b[None]
    )
    assert np.allclose(net(x), y, rtol=1e-12, atol=1e-12)


def test_correlated_embeddings(getkey):
    """Also where correlations are singular, as of a decay that is too slow to be seen."""
    x = jnp.zeros((4, 4, 500))
    for rate in (0.5, 1e-9, 0.0):
        decay = lambda d, rate=rate: np.exp(-rate * d)
        net = SelfAttention(1, 1, 1, 1, pos_emb_type="SUM", pos_emb_decay_fn=decay)
        drawn: Any = net.init(getkey(), x)
        e = drawn._embed(x.reshape(16, -1), drawn.weights.embedding, (4, 4))
        i = np.indices((4, 4)).reshape(2, 16)
        want = np.exp(-rate * np.sum(np.square(i[:, :, None] - i[:, None, :]), 0))
        assert np.max(np.abs(np.asarray(e @ e.T) / 500 - want)) < 5 * math.sqrt(2 / 500)


#
# Derivatives and transformations
#


@pytest.mark.parametrize("name", ("sum", "concat", "root_values"))
def test_gradients(name, getkey):
    """Also where one of the standard deviations is zero."""
    x1, x2 = _inputs(getkey, 3, 5)
    w1, w2 = _inputs(getkey, 3, 3)
    net = _layer(name)
    stds = lambda net: [getattr(net, std) for std in _stds]

    def loss(values):
        whole = inn.Sequential([inn.Dense(5), eqx.tree_at(stds, net, list(values))])
        kernel = whole.kernel(x1, x2, demand=_everything)
        return jnp.vdot(w1, kernel.nngp.array) + jnp.vdot(w2, kernel.ntk.array)

    derivatives = quick_jit(
        lambda values: (jax.grad(loss)(values), jax.jacfwd(loss)(values))
    )
    losses = quick_jit(jax.vmap(loss))
    steps = 1e-4 * np.concatenate([np.eye(len(_stds)), -np.eye(len(_stds))])
    values = np.asarray(stds(net))
    for zero in (None, *range(len(_stds))):
        at = np.where(np.arange(len(_stds)) == zero, 0.0, values)
        grad, forward = derivatives(at)
        up, down = np.split(np.asarray(losses(at[None] + steps)), 2)
        # The error of differences is of the order of the step's square.
        assert np.allclose(grad, (up - down) / 2e-4, rtol=1e-6, atol=1e-6)
        assert np.allclose(grad, forward, rtol=1e-12, atol=1e-12)


@_each
def test_degenerate_inputs(name, getkey):
    """Equal inputs, equal tokens, and zeros: finite in value and derivatives."""
    x = jr.normal(getkey(), (3, 5))
    same = jnp.tile(x[:1], (3, 1))
    net = inn.Sequential([inn.Dense(5), _layer(name, b_std=0.0)])

    @eqx.filter_jit
    @eqx.filter_value_and_grad
    def total(args):
        net, x1, x2 = args
        kernel = net.kernel(x1, x2, demand=_everything)
        assert kernel.ntk is not None
        return jnp.sum(kernel.nngp.array) + jnp.sum(kernel.ntk.array)

    for x1, x2 in ((x, x), (x, 0 * x), (0 * x, 0 * x), (same, same), (x, None)):
        leaves = jax.tree.leaves(eqx.filter(total((net, x1, x2)), eqx.is_array))
        assert len(leaves) > 5
        assert all(np.all(np.isfinite(leaf)) for leaf in leaves)


def test_large_scores():
    """Softmax of scores whose exponential overflows."""
    x = 1e4 * jnp.eye(3, dtype=jnp.float32)
    net = SelfAttention(1, 1, 1, 1)
    kernel = net.kernel(x, demand=_everything)
    assert np.allclose(kernel.nngp.array, 1e8 / 3 * np.eye(3), rtol=1e-6)
    assert np.all(np.isfinite(net.init(jr.key(0), x)(x)))


@_some
def test_repeat(name, getkey):
    x1, x2 = _inputs(getkey, 3, 5)
    net = _layer(name, W_value_std=0.7)
    block = inn.Sequential([inn.Relu(), net])
    looped = inn.Sequential([inn.Dense(5), inn.Repeat(block, 3), inn.Flatten()])
    unrolled = inn.Sequential([inn.Dense(5), *[inn.Relu(), net] * 3, inn.Flatten()])
    pairs = (x1, x2), (x1, None)
    kernels = lambda: [[n.kernel(*pair) for n in (looped, unrolled)] for pair in pairs]
    for got, want in run_once(kernels):
        assert _difference(got.nngp.array, want.nngp.array) < 1e-12
        assert _difference(got.ntk.array, want.ntk.array) < 1e-12
    drawn = jax.eval_shape(lambda key: looped.init(key, x1)(x1), getkey())
    assert drawn.shape == (15,)


@_some
def test_jit_and_vmap(name, getkey):
    x1, x2 = (jnp.stack(_inputs(getkey, 3, 5)) for _ in range(2))
    net = inn.Sequential([inn.Dense(5), _layer(name), inn.GlobalAvgPool()])
    want: Any = inn.gram(net, x1, x2)
    got: Any = eqx.filter_jit(inn.gram)(net, x1, x2)
    for i in range(2):
        for j in range(2):
            entry = net.kernel(x1[i], x2[j])
            assert np.allclose(_array(entry, "ntk"), want.ntk[i, j], rtol=1e-12)
    assert np.allclose(got.nngp, want.nngp, rtol=1e-12)
    assert np.allclose(got.ntk, want.ntk, rtol=1e-12)


@_some
def test_float32(name, getkey):
    x1, x2 = (x.astype(jnp.float32) for x in _inputs(getkey, 2, 4, 3, 5))
    net = inn.Sequential([inn.Dense(5), _layer(name)])

    def grams(*pair):
        double = [x.astype(float) for x in pair]
        return [inn.gram(net, *each, demand=_all_pairs) for each in (pair, double)]

    for pair in ((x1, x2), (x1,)):
        single, double = run_once(grams, *pair)
        assert single.nngp.dtype == single.ntk.dtype == jnp.float32
        assert _difference(single.nngp, double.nngp) < 1e-5
        assert _difference(single.ntk, double.ntk) < 1e-5


@pytest.mark.parametrize("name", ("softmax", "relu", "root"))
def test_permutations(name, getkey):
    """Without embeddings, positions are told apart by nothing."""
    x1, x2 = _inputs(getkey, 4, 5)
    p, q = np.array([2, 0, 3, 1]), np.array([1, 2, 0, 3])
    net = _layer(name, pos_emb_type="NONE")
    whole = inn.Sequential([inn.Dense(5), net])
    of_pair = quick_jit(lambda x1, x2: whole.kernel(x1, x2, demand=_all_pairs))
    kernel, permuted = of_pair(x1, x2), of_pair(x1[p], x2[q])
    assert np.allclose(permuted.nngp.array, kernel.nngp.array[p][:, q], rtol=1e-12)
    assert np.allclose(permuted.ntk.array, kernel.ntk.array[p][:, q], rtol=1e-12)
    net = net.init(getkey(), x1)
    call = quick_jit(lambda x: net(x))
    assert np.allclose(call(x1[p]), call(x1)[p], rtol=1e-12)
    # Nor is their number fixed.
    assert jax.eval_shape(net, x1[:2]).shape == (2, 5)


def test_demand():
    same = inn.Demand()
    linear, root = _layer("softmax"), _layer("root")
    assert linear.requires(same) == _everything
    assert root.requires(same) == _all_pairs
    assert root.requires(inn.Demand(inn.Pairs.SAME, inn.Pairs.SAME)) == _everything


def test_channels(getkey):
    """Only the proportion of embeddings depends on the number of channels."""
    kernel = inn.Kernel.of_inputs(*_inputs(getkey, 3, 5), _everything)
    covs = kernel.nngp, kernel.ntk, kernel.cov1, kernel.cov2
    unknown = inn.Kernel(*covs, kernel.alone, channels=None)
    for name in ("softmax", "sum", "relu"):
        net = _layer(name)
        assert eqx.tree_equal(net.infinite(kernel), net.infinite(unknown))
    with pytest.raises(inn.LayerError, match="Leave that out"):
        _layer("concat").infinite(unknown)


#
# Messages
#


@pytest.mark.parametrize(
    "options, message",
    (
        ({"width": 0}, "`width` must be a positive integer"),
        ({"n_chan_key": -1}, "`n_chan_key` must be a positive integer"),
        ({"n_heads": 0}, "`n_heads` must be a positive integer"),
        ({"n_chan_pos_emb": 0}, "`n_chan_pos_emb` must be a positive integer"),
        ({"W_query_std": -1.0}, "`W_query_std` must be finite and not negative"),
        ({"W_pos_emb_std": math.inf}, "`W_pos_emb_std` must be finite and not negative"),
        ({"b_std": -0.1}, "`b_std` must be finite and not negative"),
        ({"pos_emb_p_norm": 0}, "`pos_emb_p_norm` must be positive"),
        ({"attention_mechanism": "softmax"}, "`attention_mechanism` must be one of"),
        ({"pos_emb_type": "ADD"}, "`pos_emb_type` must be one of"),
    ),
)
def test_bad_arguments(options, message):
    arguments = {"width": 4, "n_chan_key": 4, "n_chan_val": 4, "n_heads": 4, **options}
    # The type checker of these tests would be the first to refuse unknown strings.
    disabled = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(inn.LayerError, match=message):
            SelfAttention(**arguments)
    finally:
        jaxtyping.config.update("jaxtyping_disable", disabled)


def test_bad_inputs(getkey):
    x = jr.normal(getkey(), (3, 5))
    net = inn.Sequential([inn.Dense(5), _layer("softmax")])
    with pytest.raises(ValueError, match=r"layers\[1\] \(SelfAttention\): must be given"):
        net.kernel(x[0], x[1])
    with pytest.raises(ValueError, match="`linear_scaling=True`"):
        _layer("root", attention_mechanism="SOFTMAX").kernel(x)
    with pytest.raises(ValueError, match="`n_chan_pos_emb` must not be 4"):
        _layer("sum", n_chan_pos_emb=4).init(getkey(), x)
    with pytest.raises(ValueError, match="has no weights yet"):
        _layer("softmax")(x)
    with pytest.raises(ValueError, match="embeddings of 3 positions, but its input has 2"):
        _layer("sum").init(getkey(), x)(x[:2])
    for decay in (lambda d: 1.0, lambda d: np.where(d > 0, 1.0, np.nan)):
        with pytest.raises(ValueError, match="as many finite correlations"):
            _layer("sum", pos_emb_decay_fn=decay).kernel(x)
    indefinite = _layer("sum", pos_emb_decay_fn=lambda d: 1.0 * (d < 2)).init(getkey(), x)
    with pytest.raises(ValueError, match="positive semi-definite"):
        indefinite(x)


def test_only_infinite_needs_closed_form(getkey):
    """Finite networks with the square root take any mechanism."""
    x = jr.normal(getkey(), (3, 5))
    net = _layer("root", attention_mechanism="SOFTMAX").init(getkey(), x)
    assert np.all(np.isfinite(net(x)))


def test_repr():
    net = SelfAttention(8, 4, 3, 2, W_key_std=1.5, pos_emb_type="SUM")
    assert repr(net) == "SelfAttention(8, 4, 3, 2, W_key_std=1.5, pos_emb_type='SUM')"
