"""Missing positions: the same as inputs without them, finite and infinite."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import run_once

import infinitenet as inn


def _normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def _attention(**options):
    return inn.SelfAttention(4, 4, 4, 2, b_std=0.3, **options)


# Nets of which the outputs do not change when zeros are appended to a sequence.
_layers = [
    inn.Conv(4, (3,), padding="SAME", W_std=1.3, b_std=0.4),
    inn.Residual(
        inn.Sequential(
            [inn.Relu(), inn.Conv(4, (3,), padding="SAME", W_std=1.1, b_std=0.2)]
        )
    ),
    inn.Relu(),
]
_nets = {
    "conv": [*_layers, inn.GlobalAvgPool(), inn.Dense(3, 1.2, 0.1)],
    "attention": [*_layers, _attention(), inn.Relu(), inn.GlobalAvgPool()],
    "sqrt_attention": [
        *_layers,
        _attention(
            linear_scaling=False, attention_mechanism="IDENTITY", pos_emb_type="SUM"
        ),
        inn.GlobalSumPool(),
    ],
    "repeat": [
        _layers[0],
        inn.Repeat(_layers[1], 2),
        inn.Erf(1.0, 1.0, 0.5),
        inn.GlobalAvgPool(),
    ],
}
_all = pytest.mark.parametrize("name", _nets)


def _padded(x, n, fill=np.nan):
    """Sequences with `n` positions more, which are missing."""
    more = np.full((len(x), n, x.shape[-1]), fill)
    missing = np.arange(x.shape[1] + n) >= x.shape[1]
    return inn.Inputs(np.concatenate([x, more], 1), missing=np.tile(missing, (len(x), 1)))


def _close(got, want, tolerance=1e-11):
    got, want = np.asarray(got), np.asarray(want)
    scale = np.sqrt(np.mean(want**2))
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * scale)


@_all
def test_appended_positions(name):
    """Of the infinite network; whatever is in them."""
    net = inn.Sequential(_nets[name])
    x, y = _normal(0, 2, 3, 5, 2)
    y[0] = x[0]
    want = run_once(inn.gram, net, x, y)
    got = run_once(inn.gram, net, _padded(x, 3), _padded(y, 3))
    _close(got.nngp, want.nngp)
    _close(got.ntk, want.ntk, 1e-7)  # Angles of inputs with themselves.


@_all
def test_appended_positions_of_finite_networks(name):
    net, x = inn.Sequential(_nets[name]), _normal(0, 4, 5, 2)
    padded = _padded(x, 3)
    # Positional embeddings are of as many positions as there were at `init`.
    if "sqrt" in name:
        return
    finite = net.init(jr.key(0), x[0])
    both = lambda net, padded, x: (jax.vmap(net)(padded), jax.vmap(net)(x))
    _close(*run_once(both, finite, padded, x))


def test_lengths_differ():
    """Against the average over finite networks."""
    x = _normal(0, 2, 6, 2)
    lengths = np.asarray([3, 5])
    inputs = inn.Inputs(x, missing=np.arange(6) >= lengths[:, None])
    net = inn.Sequential(
        [
            inn.Conv(40, (3,), padding="SAME", W_std=1.3, b_std=0.4),
            inn.Relu(),
            inn.GlobalAvgPool(),
            inn.Dense(30, 1.2, 0.1),
        ]
    )

    def outputs(key):
        f = jax.vmap(net.init(key, x[0]))(inputs)
        return jnp.einsum("ic,jc->ij", f, f) / f.shape[-1]

    sample = jax.jit(jax.vmap(outputs))(jr.split(jr.key(0), 500))
    mean, error = np.mean(sample, 0), np.std(sample, 0) / 500**0.5
    assert np.all(np.abs(mean - inn.gram(net, inputs).nngp) < 4 * error)


def test_nothing_is_left():
    """An example without any positions is zero, with biases too."""
    x = _normal(0, 3, 4, 2)
    missing = np.zeros((3, 4), bool)
    missing[1] = True
    inputs = inn.Inputs(x, missing=missing)
    net = inn.Sequential(_nets["attention"])
    kernel = run_once(inn.gram, net, inputs)
    for k in map(np.asarray, (kernel.nngp, kernel.ntk)):
        assert np.all(np.isfinite(k))
        np.testing.assert_array_equal(k[1], 0)
        assert np.all(k[::2, ::2] > 0)
    outputs = lambda net, inputs: jax.vmap(net)(inputs)
    f = run_once(outputs, net.init(jr.key(0), x[0]), inputs)
    np.testing.assert_array_equal(f[1], 0)


def test_nothing_is_missing():
    net, x = inn.Sequential(_nets["conv"]), _normal(0, 3, 4, 2)
    everything = inn.Inputs(x, missing=np.zeros((3, 4), bool))
    got, want = (run_once(inn.gram, net, each, x + 1) for each in (everything, x))
    _close(got.ntk, want.ntk)


def test_mask_constant():
    net, x = inn.Sequential(_nets["conv"]), _normal(0, 3, 4, 2)
    missing = np.arange(4) >= np.asarray([[2], [4], [3]])
    want = inn.gram(net, inn.Inputs(x, missing=missing))
    for constant in (10.0, np.nan, np.inf):
        marked = np.where(missing[..., None], constant, x)
        got = inn.gram(net, inn.Inputs(marked, mask_constant=constant))
        np.testing.assert_array_equal(got.ntk, want.ntk)


def test_strides_look_at_centres():
    """Of windows: others are there although some of their window is missing."""
    x = inn.Inputs(_normal(0, 6, 2), missing=np.asarray([0, 0, 0, 1, 1, 1], bool))
    for layer, want in (
        (inn.Conv(4, (3,), (2,), "SAME"), [0, 1, 1]),
        (inn.Conv(4, (3,), (1,), "VALID"), [0, 0, 1, 1]),
        (inn.AvgPool((2,), (2,)), [0, 0, 1]),
        (inn.AvgPool((3,), (3,), "CIRCULAR"), [0, 1]),
        (inn.SumPool((2,), (1,), "SAME"), [0, 0, 0, 1, 1, 1]),
        (inn.Flatten(), 0),
        (inn.GlobalAvgPool(), 0),
    ):
        out = run_once(lambda net, x: net.carry(x), layer.init(jr.key(0), x), x)
        np.testing.assert_array_equal(out.positions.missing, np.asarray(want, bool))
        of_input = lambda x, layer=layer: layer.kernel(x, demand=inn.Demand(inn.Pairs.ALL))
        kernel = run_once(of_input, x)
        np.testing.assert_array_equal(kernel.positions1.missing, out.positions.missing)


def test_transformations():
    """jit and gradients: of missing values there are none."""
    net = inn.Sequential([_layers[0], inn.Erf(1.0, 1.0, 0.2), inn.GlobalAvgPool()])
    x = _normal(0, 4, 4, 2)
    missing = np.arange(4) >= np.asarray([[2], [4], [3], [1]])
    inputs = inn.Inputs(x, missing=missing)

    def total(x):
        return jnp.sum(inn.gram(net, inn.Inputs(x, missing=missing)).nngp)

    both = lambda x: (inn.gram(net, inn.Inputs(x, missing=missing)).ntk, jax.grad(total)(x))
    ntk, gradient = map(np.asarray, jax.jit(both)(x))
    _close(ntk, inn.gram(net, inputs).ntk, 1e-7)
    assert np.all(np.isfinite(gradient))
    np.testing.assert_array_equal(gradient[missing], 0)
    assert np.all(gradient[~missing] != 0)


def test_branches():
    """A sum is missing where all of its branches are."""
    first = inn.Inputs(_normal(0, 4, 2), missing=np.asarray([0, 1, 0, 1], bool))
    second = inn.Inputs(_normal(1, 4, 2), missing=np.asarray([0, 0, 1, 1], bool))
    layers = [inn.Parallel([inn.Dense(3), inn.Dense(3)]), inn.FanInSum()]
    net = inn.Sequential(layers)
    finite = net.init(jr.key(0), (first, second))
    out = finite.carry((first, second))
    np.testing.assert_array_equal(out.positions.missing, np.asarray([0, 0, 0, 1], bool))
    kernel = net.kernel((first, second))
    np.testing.assert_array_equal(kernel.positions1.missing, out.positions.missing)
    parts = [inn.Dense(3).kernel(x).nngp.array for x in (first, second)]
    _close(kernel.nngp.array, sum(parts))
    joined = inn.Sequential([layers[0], inn.FanInConcat(0)]).kernel((first, second))
    _close(joined.nngp.array, np.concatenate(parts))
    assert joined.positions1.missing.shape == (8,)


class _Reversed(inn.AbstractLayer):
    """Does not say what becomes of masks."""

    def __call__(self, x, *, key=None):
        return x[1:]

    def check(self, signal):
        shape = (signal.shape[0] - 1, signal.channels)
        return inn.Signal(shape, signal.dtype, masked=signal.masked)

    def infinite(self, kernel):
        raise AssertionError


@pytest.mark.parametrize(
    "make, words",
    [
        (
            lambda x: inn.gram(
                inn.Sequential([_Reversed()]), inn.Inputs(x, missing=x[..., 0] > 0)
            ),
            [r"layers\[0\] \(_Reversed\)", "`mask`"],
        ),
        (lambda x: inn.Inputs(x, missing=x > 0), ["`missing`", r"\(3, 4\)"]),
        (lambda x: inn.Inputs(x, missing=x[..., 0]), ["`missing`", "Booleans"]),
        (
            lambda x: inn.Inputs(x, missing=x[..., 0] > 0, mask_constant=1.0),
            ["`mask_constant`", "not both"],
        ),
        (
            lambda x: inn.Inputs(x, mask_constant=x[0, 0, 0]),
            ["`mask_constant`", "all channels"],
        ),
    ],
)
def test_errors(make, words):
    with pytest.raises(ValueError) as error:
        make(_normal(0, 3, 4, 2))
    for word in words:
        assert error.match(word)
