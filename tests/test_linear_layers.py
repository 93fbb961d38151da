"""Convolutions, maps of positions, normalisation, dropout and graphs against NumPy.

Positions are numbered, all maps are matrices, and covariances are of all pairs of them. No
code is shared with the library.
"""

import dataclasses
import itertools as it
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import run_once

import infinitenet as inn


_standard = inn.StandardParameterization
_ALL = inn.Demand(inn.Pairs.ALL)


def _normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


#
# Maps of positions as matrices
#


def _positions(spatial):
    return list(it.product(*map(range, spatial)))


def _along(n, size, stride, layer):
    """Of one dimension: the number of outputs, and (output, input, offset) that meet."""
    if not isinstance(layer, inn.ConvTranspose):
        total = max((math.ceil(n / stride) - 1) * stride + size - n, 0)
        before = 0 if layer.padding == "VALID" else total // 2
        out = math.ceil(n / stride)
        out = (n - size) // stride + 1 if layer.padding == "VALID" else out
        meet = [(o, o * stride + d - before, d) for o in range(out) for d in range(size)]
        if layer.padding == "CIRCULAR":
            return out, [(o, i % n, d) for o, i, d in meet]
        return out, [(o, i, d) for o, i, d in meet if 0 <= i < n]
    valid = (n - 1) * stride + max(size, stride)
    out, low = valid if layer.padding == "VALID" else n * stride, size - 1
    if layer.padding == "SAME" and stride <= size - 1:
        low = math.ceil((size + stride - 2) / 2)
    meet = [(i * stride + low - d, i, d) for i in range(n) for d in range(size)]
    if layer.padding == "CIRCULAR":
        return out, [((o - (valid - out) // 2) % out, i, d) for o, i, d in meet]
    return out, [(o, i, d) for o, i, d in meet if 0 <= o < out]


def _taps(layer, spatial):
    """The shape of outputs, and for each offset which output sums which input."""
    ndim = len(spatial)
    strides = layer.strides or (1,) * ndim
    size = layer.window_shape if isinstance(layer, inn.AvgPool) else layer.filter_shape
    each = [_along(*args, layer) for args in zip(spatial, size, strides, strict=True)]
    out = tuple(n for n, _ in each)
    taps = np.zeros((*size, math.prod(out), math.prod(spatial)))
    for meet in it.product(*(meet for _, meet in each)):
        o, i, d = zip(*meet, strict=True)
        taps[*d, np.ravel_multi_index(o, out), np.ravel_multi_index(i, spatial)] += 1
    return out, taps.reshape(-1, *taps.shape[-2:])


def _matrix_of(function, spatial):
    """A linear map as a matrix, from what it makes of each position alone."""
    size = math.prod(spatial)
    columns = [function(e.reshape(spatial)) for e in np.eye(size)]
    return columns[0].shape, np.stack([c.reshape(-1) for c in columns], 1)


def _linear(layer, spatial, pattern):
    """The shape of outputs, and the matrix of what is not random."""
    match layer:
        case inn.DotGeneral():
            constant = np.asarray(layer.rhs if layer.lhs is None else layer.lhs)
            return _matrix_of(lambda x: _dot(layer, constant, x), spatial)
        case inn.ImageResize():
            out = [n if m == -1 else m for n, m in zip(spatial, layer.shape, strict=True)]
            options = {"method": layer.method, "antialias": layer.antialias}
            return _matrix_of(
                lambda x: np.asarray(jax.image.resize(x, out, **options)), spatial
            )
        case inn.Index():
            idx = tuple(slice(*i) if isinstance(i, tuple) else i for i in layer.idx)
            return _matrix_of(lambda x: x[..., None][idx][..., 0], spatial)
        case inn.AvgPool():
            out, taps = _taps(layer, spatial)
            return out, taps.mean(0)
    axes = layer.aggregate_axis or tuple(range(len(spatial)))
    sizes = [spatial[axis] for axis in axes]
    if isinstance(layer, inn.SparseAggregate):
        dense = np.zeros((*sizes, *sizes))
        for edge in pattern.reshape(-1, len(axes), 2):
            if np.all(edge >= 0):
                dense[*edge[:, 0], *edge[:, 1]] += 1
    else:
        dense = pattern
    A = np.zeros(2 * spatial)
    for p, q in it.product(_positions(spatial), repeat=2):
        others = [axis for axis in range(len(spatial)) if axis not in axes]
        if all(p[axis] == q[axis] for axis in others):
            A[*p, *q] = dense[*(q[axis] for axis in axes), *(p[axis] for axis in axes)]
    return spatial, A.reshape(math.prod(spatial), -1)


def _dot(layer, constant, x):
    """By `einsum`, with a letter for each axis."""
    (lc, rc), (lb, rb) = layer.dimension_numbers
    sides = [x, constant] if layer.lhs is None else [constant, x]
    left = list("abcdef"[: sides[0].ndim])
    right = list("uvwxyz"[: sides[1].ndim])
    for i, j in [*zip(lc, rc, strict=True), *zip(lb, rb, strict=True)]:
        right[j] = left[i]
    out = [left[i] for i in lb]
    out += [c for i, c in enumerate(left) if i not in (*lc, *lb)]
    out += [c for j, c in enumerate(right) if j not in (*rc, *rb)]
    return np.einsum(f"{''.join(left)},{''.join(right)}->{''.join(out)}", *sides)


#
# Kernels and finite networks
#


@dataclasses.dataclass
class _State:
    """Of all inputs: covariances of shape `(n, n, positions, positions)`."""

    nngp: np.ndarray
    ntk: np.ndarray
    spatial: tuple
    channels: int
    missing: np.ndarray
    patterns: list

    def after(self, **changes):
        new = dataclasses.replace(self, **changes)
        either = new.missing[:, None, :, None] | new.missing[None, :, None, :]
        return dataclasses.replace(
            new, nngp=np.where(either, 0, new.nngp), ntk=np.where(either, 0, new.ntk)
        )


def _sandwich(A, k, B):
    """`A k B.T` of each input, or of all of them."""
    return np.einsum("iap,ijpq,jbq->ijab", A, k, B)


def _affine(layer, state):
    standard = layer.parameterization
    s_in, s_out = standard.s if isinstance(standard, _standard) else (1, 1)
    v, b = float(layer.W_std) ** 2, float(layer.b_std or 0) ** 2
    fan_in, out = state.channels, state.spatial
    taps = np.eye(math.prod(out))[None]
    missing = state.missing
    if not isinstance(layer, inn.Dense):
        out, taps = _taps(layer, state.spatial)
        fan_in *= len(taps)
        missing = _missing_after(layer, state)
    mean = lambda k: np.mean([np.einsum("ap,ijpq,bq->ijab", A, k, A) for A in taps], 0)
    K, T = mean(state.nngp), mean(state.ntk)
    nngp = v * K + b
    ntk = nngp + v * T
    if isinstance(standard, _standard):
        ntk = fan_in / s_in * K + v * T + (layer.b_std is not None)
    if isinstance(layer, inn.ConvLocal):
        nngp, ntk = (k * np.eye(k.shape[-1]) for k in (nngp, ntk))
    channels = s_out * layer.width
    return state.after(nngp=nngp, ntk=ntk, spatial=out, channels=channels, missing=missing)


def _missing_after(layer, state):
    """The rules of masks, one by one."""
    match layer:
        case inn.ConvTranspose():
            _, taps = _taps(layer, state.spatial)
            return state.missing.astype(int) @ (taps.sum(0) > 0).T > 0
        case inn.Conv() | inn.ConvLocal() | inn.AvgPool():
            _, taps = _taps(layer, state.spatial)
            size = (
                layer.window_shape if isinstance(layer, inn.AvgPool) else layer.filter_shape
            )
            centre = np.ravel_multi_index([(k - 1) // 2 for k in size], size)
            return state.missing.astype(int) @ taps[centre].T > 0
        case inn.DotGeneral() | inn.ImageResize() | inn.Index():
            _, A = _linear(layer, state.spatial, None)
            return ~((~state.missing).astype(int) @ (abs(A) > 1e-9).T > 0)
    return state.missing


def _relu(state):
    diagonal = np.einsum("iipp->ip", state.nngp)
    s = np.sqrt(np.multiply.outer(diagonal, diagonal)).swapaxes(1, 2)
    c = np.clip(state.nngp / np.where(s > 0, s, 1), -1, 1)
    theta = np.where(s > 0, np.arccos(c), np.pi / 2)
    nngp = s * (np.sin(theta) + (np.pi - theta) * c) / (2 * np.pi)
    return state.after(nngp=nngp, ntk=(np.pi - theta) / (2 * np.pi) * state.ntk)


def _layer_norm(layer, state):
    ndim = len(state.spatial)
    axes = tuple(axis + 1 for axis in layer.axis if 0 <= axis < ndim)
    v = np.einsum("iipp->ip", state.nngp).reshape(-1, *state.spatial)
    present = ~state.missing.reshape(v.shape)
    total = np.sum(v * present, axes, keepdims=True)
    v = total / np.maximum(np.sum(present, axes, keepdims=True), 1) + 0 * v
    r = (v + float(layer.eps)).reshape(len(v), -1) ** -0.5
    scale = np.multiply.outer(r, r).swapaxes(1, 2)
    return state.after(nngp=scale * state.nngp, ntk=scale * state.ntk)


def _dropout(layer, state):
    if layer.mode == "test":
        return state
    same = np.einsum("ij,pq->ijpq", *map(np.eye, state.missing.shape))
    scale = 1 + same * (1 / float(layer.keep_rate) - 1)
    return state.after(nngp=scale * state.nngp, ntk=scale * state.ntk)


def _naive(layer, state):
    match layer:
        case inn.Sequential():
            for each in layer.layers:
                state = _naive(each, state)
            return state
        case inn.AbstractAffine():
            return _affine(layer, state)
        case inn.Relu():
            return _relu(state)
        case inn.LayerNorm():
            return _layer_norm(layer, state)
        case inn.Dropout():
            return _dropout(layer, state)
    each = [_linear(layer, state.spatial, pattern) for pattern in state.patterns]
    A = np.stack([A for _, A in each])
    nngp, ntk = (_sandwich(A, k, A) for k in (state.nngp, state.ntk))
    missing = _missing_after(layer, state)
    return state.after(nngp=nngp, ntk=ntk, spatial=each[0][0], missing=missing)


def _inputs(x, missing=None, pattern=None):
    n, *spatial, channels = x.shape
    missing = np.zeros(x.shape[:-1], bool) if missing is None else missing
    flat = np.where(missing[..., None], 0, x).reshape(n, -1, channels)
    nngp = np.einsum("ipc,jqc->ijpq", flat, flat) / channels
    patterns = [None] * n if pattern is None else list(pattern)
    zeros, missing = np.zeros_like(nngp), missing.reshape(n, -1)
    return _State(nngp, zeros, tuple(spatial), channels, missing, patterns)


def _affine_forward(layer, spatial, x):
    assert layer.weights is not None
    W, b = np.asarray(layer.weights.W), layer.weights.b
    out, taps = spatial, np.eye(len(x))[None]
    if not isinstance(layer, inn.Dense):
        out, taps = _taps(layer, spatial)
    W = W.reshape(-1, len(taps), *W.shape[-2:])  # One, or one of each output.
    W = np.broadcast_to(W, (taps.shape[1], *W.shape[1:]))
    z = np.einsum("dop,pc,odcn->on", taps, x, W)
    scale, b_scale = float(layer.W_std) / math.sqrt(len(taps) * x.shape[1]), layer.b_std
    if isinstance(layer.parameterization, _standard):
        scale, b_scale = layer.parameterization.s[0] ** -0.5, 1
    biases = (
        0
        if b is None or b_scale is None
        else float(b_scale) * np.reshape(b, (-1, b.shape[-1]))
    )
    return out, scale * z + biases


def _layer_norm_forward(layer, spatial, x, missing):
    x = x.reshape(*spatial, -1)
    axes = tuple(axis % x.ndim for axis in layer.axis)
    where = np.broadcast_to(~missing.reshape(*spatial, 1), x.shape)
    options = {"axis": axes, "keepdims": True, "where": where}
    mean, variance = np.mean(x, **options), np.var(x, **options)
    return ((x - mean) / np.sqrt(variance + layer.eps)).reshape(len(missing), -1)


def _forward(layer, spatial, x, missing, pattern):
    """One example, as a matrix of positions and channels: its new shape, and its value."""
    match layer:
        case inn.AbstractAffine():
            return _affine_forward(layer, spatial, x)
        case inn.Relu():
            return spatial, np.maximum(x, 0)
        case inn.LayerNorm():
            return spatial, _layer_norm_forward(layer, spatial, x, missing)
    out, A = _linear(layer, spatial, pattern)
    return out, A @ x


def _call(net, state, x):
    """Of a finite network on all inputs."""
    arrays = np.where(state.missing[..., None], 0, x.reshape(*state.missing.shape, -1))
    for layer in net.layers:
        each = zip(arrays, state.missing, state.patterns, strict=True)
        outs = [_forward(layer, state.spatial, *one) for one in each]
        missing = _missing_after(layer, state)
        arrays = np.where(missing[..., None], 0, np.stack([z for _, z in outs]))
        state = dataclasses.replace(state, missing=missing, spatial=outs[0][0])
    return arrays.reshape(len(x), *state.spatial, -1)


#
# Comparison
#


def _close(got, want, tolerance):
    assert np.shape(got) == want.shape
    scale = max(np.sqrt(np.mean(want**2)), 1e-3)
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * scale)


def _compare(net, x, missing=None, pattern=None, *, finite=True):
    """Kernels of all pairs of positions and of equal ones, and finite networks."""
    net, n = inn.Sequential(net), len(x)
    state = _inputs(x, missing, pattern)
    want = _naive(net, state)
    inputs = inn.Inputs(x, missing=missing, pattern=pattern)
    first = jax.tree.map(lambda x: x[0], inputs)

    def kernels(net, x):
        pair = lambda x, y, demand: net.kernel(x, y, demand=demand)
        row = lambda demand: lambda x1: jax.vmap(lambda x2: pair(x1, x2, demand))(x)
        pairs = [jax.vmap(row(demand))(x) for demand in (_ALL, inn.Demand())]
        alone = [
            jax.vmap(lambda x: net.kernel(x, demand=demand))(x)  # noqa: B023
            for demand in (_ALL, inn.Demand())
        ]
        return [[(k.nngp.array, k.ntk.array) for k in each] for each in (pairs, alone)]

    pairs, alone = run_once(kernels, net, inputs)
    different = ~np.eye(n, dtype=bool)
    for name, i in (("nngp", 0), ("ntk", 1)):
        array = getattr(want, name)
        own = np.einsum("ii...->i...", array)
        same = np.einsum("ijpp->ijp", array).reshape(n, n, *want.spatial)
        array = array.reshape(n, n, *2 * want.spatial)
        own = own.reshape(n, *2 * want.spatial)
        _close(np.asarray(pairs[0][i])[different], array[different], 1e-11)
        _close(np.asarray(pairs[1][i])[different], same[different], 1e-11)
        _close(alone[0][i], own, 1e-7)
        _close(alone[1][i], np.einsum("ii...->i...", same), 1e-7)
    if not finite:
        return
    struct = eqx.filter_eval_shape(net.init, jr.key(0), first)
    rng = np.random.default_rng(1)
    weights = jax.tree.map(
        lambda w: jnp.asarray(rng.normal(size=w.shape)),
        eqx.filter(struct, inn.trainable(struct)),
    )
    rest = eqx.filter(struct, inn.trainable(struct), inverse=True)
    rest = jax.tree.unflatten(jax.tree.structure(rest), jax.tree.leaves(net))
    net = eqx.combine(weights, rest)
    got = run_once(lambda net, x: jax.vmap(net)(x), net, inputs)
    _close(got, _call(net, state, x), 1e-12)


_networks = {
    # Bugs 7 and 16: filters, strides and images are not square, and widths have factors.
    "local": (
        [
            inn.Conv(3, (2, 3), None, "SAME", 1.2, 0.3),
            inn.Relu(),
            inn.ConvLocal(
                3, (3, 2), (1, 2), "SAME", 1.2, 0.3, parameterization=_standard((1, 2))
            ),
            inn.Relu(),
            inn.AvgPool((2, 1), None, "CIRCULAR"),
            inn.ConvLocal(
                2, (2, 1), (2, 1), "CIRCULAR", 1.1, parameterization=_standard((2, 3))
            ),
            inn.Relu(),
        ],
        (4, 5, 2),
    ),
    "transposed": (
        [
            inn.ConvTranspose(
                3, (3, 1), (2, 1), "VALID", 1.2, 0.3, parameterization="standard"
            ),
            inn.Relu(),
            inn.ConvTranspose(2, (2, 3), (1, 2), "CIRCULAR", 1.1),
            inn.Index(inn.Slice[1::2, -2]),
            inn.Relu(),
            inn.ConvLocal(2, (2,), None, "VALID", 0.9, 0.1),
        ],
        (2, 3, 2),
    ),
    # Bugs 2 and 23: an odd number of convolutions, and sizes which differ.
    "resized": (
        [
            inn.Conv(3, (2, 2), None, "SAME", 1.2, 0.3),
            inn.LayerNorm((0, -1), 0.3),
            inn.Relu(),
            inn.ImageResize((5, -1), "linear"),
            inn.ImageResize((-1, 4), "nearest"),
            inn.DotGeneral(
                lhs=_normal(5, 2, 5, 3), dimension_numbers=(((1,), (0,)), ((), ()))
            ),
            inn.Index(inn.Slice[..., ::-3, :]),
        ],
        (3, 2, 2),
    ),
    "product": (
        [
            inn.Dense(3, 1.2, 0.3),
            inn.Relu(),
            inn.DotGeneral(rhs=0.7),
            inn.DotGeneral(
                rhs=_normal(6, 2, 4, 3), dimension_numbers=(((1,), (2,)), ((0,), (1,)))
            ),
            inn.Dense(2, 0.8),
            inn.DotGeneral(
                rhs=_normal(7, 4, 2), dimension_numbers=(((), ()), ((0,), (0,)))
            ),
            inn.LayerNorm((-1, 2), 0.0),
        ],
        (4, 3, 2),
    ),
}


@pytest.mark.parametrize("name", _networks)
def test_networks(name):
    layers, shape = _networks[name]
    _compare(layers, _normal(0, 3, *shape))


def test_dropout():
    layers = [
        inn.Dropout(0.7),  # Bug 8: also of inputs.
        inn.Conv(3, (2,), None, "SAME", 1.2, 0.3),
        inn.Relu(),
        inn.Dropout(0.4),
        inn.Conv(3, (3,), None, "CIRCULAR", 1.1),
        inn.Relu(),
        inn.Dropout(0.5, "test"),
    ]
    _compare(layers, _normal(0, 3, 4, 2), finite=False)


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_masks_and_graphs(kind):
    """Bugs 3, 18 and 20: masks with every layer, and graphs after a convolution."""
    x = _normal(0, 3, 4, 3, 2)
    missing = np.random.default_rng(1).random((3, 4, 3)) < 0.3
    if kind == "dense":
        pattern = _normal(2, 3, 3, 4, 3, 4)
        aggregate = inn.Aggregate((1, 0))
        after = [
            inn.ImageResize((3, 6), "linear"),
            inn.AvgPool((2, 2), (2, 1), "CIRCULAR"),
            inn.ConvTranspose(2, (2, 2), (1, 2), "SAME", 1.1, 0.2),
        ]
    else:
        pattern = np.random.default_rng(2).integers(-1, 4, (3, 9, 2))
        aggregate = inn.SparseAggregate(0)
        after = [
            inn.ConvLocal(2, (3, 2), (2, 1), "SAME", 1.2, 0.1),
            inn.DotGeneral(
                lhs=[[1.0, -1, 0], [0, 0.5, 0]], dimension_numbers=(((1,), (1,)), ((), ()))
            ),
            inn.Index(inn.Slice[:, 0]),
        ]
    conv = inn.Conv(3, (2, 3), None, "SAME", 1.2, 0.3)
    norm = inn.LayerNorm((1, -1), 0.2)
    _compare([conv, norm, inn.Relu(), aggregate, *after], x, missing, pattern)


def test_sparse_graphs_are_dense_ones():
    """With several axes, and edges which count twice or not at all."""
    edges = np.array(
        [[[0, 1], [2, 0]], [[0, 1], [2, 0]], [[1, 1], [1, 1]], [[-1, 0], [0, 0]]]
    )
    dense = np.zeros((2, 3, 2, 3))
    dense[0, 2, 1, 0], dense[1, 1, 1, 1] = 2, 1
    x = jnp.asarray(_normal(0, 2, 3, 4))
    want = inn.Aggregate().carry(inn.Inputs(x, pattern=dense)).array
    got = inn.SparseAggregate().carry(inn.Inputs(x, pattern=edges)).array
    np.testing.assert_allclose(got, want, rtol=1e-14)
    np.testing.assert_allclose(want[1, 0], 2 * x[0, 2], rtol=1e-14)


def test_windows_of_transposed_convolutions():
    """Of all sizes, strides and paddings: outputs, covariances, and masks."""
    n = 3
    cases = list(it.product((1, 2, 3, 5), (1, 2, 4), ("VALID", "SAME", "CIRCULAR")))
    layers = [inn.ConvTranspose(1, (k,), (s,), padding) for k, s, padding in cases]
    x, k = _normal(0, n, 2), _normal(1, n, n)
    filters = [_normal(2, size, 2, 1) for size, *_ in cases]
    missing = np.array([False, True, False])

    def compute(x, k, filters, missing):
        cov = inn.Covariance(k, inn.Pairs.ALL)
        return [
            (layer.apply(W, x), layer.mix(cov).array, layer.mask(missing))
            for layer, W in zip(layers, filters, strict=True)
        ]

    results = run_once(compute, x, k, filters, missing)
    for layer, W, (out, mixed, mask) in zip(layers, filters, results, strict=True):
        shape, taps = _taps(layer, (n,))
        want = np.einsum("dop,pc,dcn->on", taps, x, W)
        np.testing.assert_allclose(out, want, atol=1e-13)
        want = np.mean([A @ k @ A.T for A in taps], 0)
        np.testing.assert_allclose(mixed, want, atol=1e-13)
        np.testing.assert_array_equal(mask, taps.sum(0)[:, 1] > 0)
        assert out.shape[:1] == shape == layer.out_spatial((n,))


def test_transposed_convolutions_are_those_of_jax():
    x = jnp.asarray(_normal(0, 1, 4, 5, 2))
    for padding, strides in (("VALID", (2, 3)), ("SAME", (2, 1))):
        layer = inn.ConvTranspose(3, (3, 2), strides, padding)
        W = jnp.asarray(_normal(1, 3, 2, 2, 3))
        want = jax.lax.conv_transpose(x, W, strides, padding)[0]
        np.testing.assert_allclose(layer.apply(W, x[0]), want, atol=1e-13)


#
# Each layer by itself
#


def test_local_convolutions_are_convolutions():
    """Without pooling; bug 7: in standard parameterization too, with factors of widths."""

    def net(conv):
        options = {"W_std": 1.2, "b_std": 0.3}
        return inn.Sequential(
            [
                conv(
                    3, (3, 2), (2, 1), "SAME", parameterization=_standard((1, 2)), **options
                ),
                inn.Relu(),
                conv(
                    4, (1, 2), None, "VALID", parameterization=_standard((2, 3)), **options
                ),
                inn.Flatten(),
                inn.Dense(1, parameterization=_standard((3, 1))),
            ]
        )

    x = _normal(0, 2, 4, 5, 2)
    pair = lambda net, x: net.kernel(x[0], x[1])
    got, want = (run_once(pair, net(conv), x) for conv in (inn.ConvLocal, inn.Conv))
    np.testing.assert_allclose(got.nngp.array, want.nngp.array, rtol=1e-12)
    np.testing.assert_allclose(got.ntk.array, want.ntk.array, rtol=1e-12)
    struct = eqx.filter_eval_shape(net(inn.ConvLocal).init, jr.key(0), x[0])
    first, _, second = struct.layers[:3]
    assert first.weights.W.shape == (2, 5, 3, 2, 2, 6)
    assert first.weights.b.shape == (2, 5, 6)
    assert second.weights.W.shape == (2, 4, 1, 2, 6, 12)


def test_local_convolutions_keep_positions():
    net = inn.ConvLocal(2, 3).init(jr.key(0), jnp.ones((5, 2)))
    with pytest.raises(inn.LayerError, match=r"positions \(3,\).* these are \(4,\)"):
        net(jnp.ones((6, 2)))
    with pytest.raises(inn.LayerError, match="inputs of 2 channels"):
        net(jnp.ones((5, 3)))


def test_layer_norm_of_nothing():
    """Activations without variance remain zero, and derivatives are finite."""
    net = inn.Sequential([inn.Dense(3), inn.LayerNorm(eps=0.0), inn.Relu()])
    drawn = net.init(jr.key(0), jnp.ones(2))
    zero = jnp.zeros(2)
    gradient = jax.jacrev(drawn)(zero)
    kernel, along = jax.value_and_grad(lambda x: net.kernel(x, x + 1).ntk.array)(zero)
    assert np.all(drawn(zero) == 0) and kernel == 0
    assert np.all(np.isfinite(gradient)) and np.all(np.isfinite(along))


def test_layer_norm_with_masks_keeps_eps():
    """Bug 18: `eps` is not scaled by the share of positions which are missing."""
    missing = np.array([False, True, True, False])
    x, norm = _normal(0, 4, 2), inn.LayerNorm((0, -1), 0.5)
    got = norm.carry(inn.Inputs(x, missing=missing)).array[np.array([0, 3])]
    np.testing.assert_allclose(got, norm(jnp.asarray(x[[0, 3]])), rtol=1e-13)
    net = inn.Sequential([inn.Dense(3), norm])
    got = net.kernel(inn.Inputs(x, missing=missing)).nngp.array[np.array([0, 3])]
    want = net.kernel(jnp.asarray(x[[0, 3]])).nngp.array
    np.testing.assert_allclose(got, want, rtol=1e-13)


def test_dropout_of_finite_networks():
    """Averages are those of the infinite network; bug 8: repetitions are independent."""
    rate = 0.6
    dropout = inn.Dropout(rate)
    net = inn.Repeat(dropout, 3)
    x, keys = jnp.ones((4, 500)), jr.split(jr.key(0), 20)
    one, three = (
        np.asarray(jax.vmap(lambda key, net=net: net(x, key=key))(keys))
        for net in (dropout, net)
    )
    n = one.size
    for out, power in ((one, 1), (three, 3)):
        kept = out > 0
        np.testing.assert_allclose(out[kept], rate**-power, rtol=1e-12)
        p = rate**power
        assert abs(np.mean(kept) - p) < 5 * math.sqrt(p * (1 - p) / n)
    assert np.all(inn.Dropout(rate, "test")(x) == x)


def test_dropout_needs_keys():
    net = inn.Sequential([inn.Dense(3), inn.Dropout(0.5)]).init(jr.key(0), jnp.ones(2))
    with pytest.raises(inn.LayerError, match=r"layers\[1\].*needs a random key.*key=key"):
        net(jnp.ones(2))


@pytest.mark.parametrize("method", ["nearest", "linear", "cubic", "lanczos3", "lanczos5"])
def test_resize_is_that_of_jax(method):
    """Bug 2: by the name of a method, or by the method itself."""
    x = jnp.asarray(_normal(0, 6, 5, 2))
    by_name = inn.ImageResize((4, 7), method)
    by_value = inn.ImageResize((4, 7), jax.image.ResizeMethod.from_string(method))
    assert by_name == by_value
    want = jax.image.resize(x, (4, 7, 2), method)
    np.testing.assert_allclose(by_name(x), want, atol=1e-13)


def test_repeated_convolutions():
    """Bug 21: an odd number of them in a loop."""
    block = [inn.Relu(), inn.Conv(2, (2, 3), None, "SAME", 1.2, 0.1)]
    first = inn.Conv(2, (1, 2), None, "SAME")
    x = _normal(0, 2, 3, 4, 2)
    nets = [[first, inn.Repeat(inn.Sequential(block), 3)], [first, *3 * block]]
    pair = lambda net, x: net.kernel(x[0], x[1], demand=_ALL)
    got, want = (run_once(pair, inn.Sequential(net), x) for net in nets)
    np.testing.assert_allclose(got.nngp.array, want.nngp.array, rtol=1e-11)
    np.testing.assert_allclose(got.ntk.array, want.ntk.array, rtol=1e-11)


#
# What is refused
#


_float = np.dtype(float)
_plain = lambda *shape: inn.Signal(shape, _float)
_graph = lambda shape, pattern: inn.Signal(shape, _float, pattern=pattern)
_contract = lambda axis: (((axis,), (0,)), ((), ()))


@pytest.mark.parametrize(
    "make, signal, match",
    [
        # Bug 6.
        (lambda: inn.DotGeneral(), None, "either `lhs` or `rhs`"),
        (lambda: inn.DotGeneral(lhs=1.0, rhs=1.0), None, "either `lhs` or `rhs`"),
        (
            lambda: inn.DotGeneral(rhs=np.ones(2), dimension_numbers=_contract(1)),
            _plain(4, 2),
            r"axes of positions.*there are 1.*axes \(1,\)",
        ),
        (
            lambda: inn.DotGeneral(rhs=np.ones(3), dimension_numbers=_contract(0)),
            _plain(4, 2),
            r"do not fit.*\(4, 2\).*shape \(3,\)",
        ),
        # Bug 10.
        (lambda: inn.Index(([0, 1],)), None, r"`idx` must be made of integers.*\[0, 1\]"),
        (lambda: inn.Index((True,)), None, "integers.*True"),
        (lambda: inn.Index((0, 1, 0)), _plain(4, 3, 2), "must leave channels alone"),
        (lambda: inn.Index((0, 1, 0, 0)), _plain(4, 3, 2), "more axes than an example"),
        (lambda: inn.Index((..., 0, ...)), None, "`...` once"),
        (lambda: inn.Index(4), _plain(4, 2), "4 for axis 0, of which the size is 4"),
        (lambda: inn.Index(inn.Slice[2:2]), _plain(4, 2), "takes nothing"),
        (lambda: inn.ImageResize(3, "best"), None, "`method` must be one of.*'best'"),
        (lambda: inn.ImageResize(0, "linear"), None, "`shape` must be positive.*-1"),
        (lambda: inn.ImageResize((3, 3), "linear"), _plain(4, 2), r"\(4,\).*\(3, 3\)"),
        (lambda: inn.Dropout(0.0), None, "`keep_rate` .* 0.0"),
        (lambda: inn.Dropout(1.5), None, "`keep_rate` .* 1.5"),
        (lambda: inn.LayerNorm(eps=-1.0), None, "`eps`"),
        (lambda: inn.LayerNorm(0), _plain(4, 2), "`axis` must have the channel axis"),
        (lambda: inn.LayerNorm((1, -1)), _plain(4, 2), "`axis` must have the channel axis"),
        (lambda: inn.LayerNorm(), _plain(4, 2), "Gaussian inputs: put it after"),
        (lambda: inn.Aggregate(), _plain(4, 2), r"give `Inputs\(x, pattern=...\)`"),
        (lambda: inn.Aggregate(1), _graph((4, 2), (4, 4)), "`aggregate_axis`.*there are 1"),
        (lambda: inn.Aggregate(), _graph((4, 2), (4, 3)), r"shape \(4, 4\).*\(4, 3\)"),
        (
            lambda: inn.SparseAggregate(),
            _graph((4, 3, 2), (9, 2)),
            r"\(edges, 2, 2\).*\(9, 2\)",
        ),
        (lambda: inn.ConvTranspose(2, (0,)), None, "`filter_shape`"),
        (lambda: inn.ConvTranspose(2, (2, 2)), _plain(4, 2), "2 spatial dimensions.* 1"),
        (lambda: inn.ConvLocal(2, 5), _plain(4, 2), "does not fit into"),
        (lambda: inn.MaxPool(5), _plain(4, 2), "does not fit into"),
        (lambda: inn.Softmax(2), _plain(4, 2), r"among the 2 axes.*\(2,\)"),
        (lambda: inn.BatchNorm(eps=-1.0), None, "`eps`"),
    ],
)
def test_refused(make, signal, match):
    """Errors name the layer, the argument and the remedy."""
    with pytest.raises(ValueError, match=match):
        make().check(signal)


def test_repr():
    net = inn.Sequential(
        [
            inn.ConvTranspose(4, (3,), (2,), b_std=0.1),
            inn.ConvLocal(4, 3, padding="SAME"),
            inn.LayerNorm(),
            inn.Dropout(0.8),
            inn.DotGeneral(rhs=2.0),
            inn.ImageResize((-1, 7), "linear"),
            inn.Index(inn.Slice[::2, 0]),
            inn.SparseAggregate(0),
            inn.MaxPool(2),
        ]
    )
    assert repr(net) == (
        "Sequential([\n"
        "    ConvTranspose(4, (3,), strides=(2,), b_std=0.1),\n"
        "    ConvLocal(4, (3,), padding='SAME'),\n"
        "    LayerNorm(),\n"
        "    Dropout(0.8),\n"
        "    DotGeneral(rhs=2),\n"
        "    ImageResize((-1, 7), 'linear'),\n"
        "    Index((slice(None, None, 2), 0)),\n"
        "    SparseAggregate(aggregate_axis=(0,)),\n"
        "    MaxPool((2,)),\n"
        "])"
    )
