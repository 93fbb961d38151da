"""Models of several libraries, small enough for their Jacobians to be formed.

Each is a function of a key that returns a model and a batch of inputs.
"""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.lax as lax
import jax.numpy as jnp
import jax.random as jr

import infinitenet as inn


def _infinitenet(layers, shape):
    def make(key):
        x = jr.normal(jr.fold_in(key, 1), (4, *shape))
        return inn.Sequential(layers).init(key, x[0]), x

    return make


def _equinox(make_model, shape):
    def make(key):
        return make_model(key), jr.normal(jr.fold_in(key, 1), (4, *shape))

    return make


class SharedResNet(eqx.Module):
    """One convolution, three times; the weights of the stem in the head, transposed."""

    stem: jax.Array
    conv: eqx.nn.Conv2d

    def __init__(self, key):
        self.stem = jr.normal(key, (2, 3))
        self.conv = eqx.nn.Conv2d(3, 3, 3, padding=1, key=jr.fold_in(key, 2))

    def __call__(self, x):
        x = jnp.einsum("hwi,ij->jhw", x, self.stem)
        for _ in range(3):
            x = x + jnp.tanh(self.conv(x))
        return self.stem @ jnp.mean(x, axis=(1, 2))


class Recurrent(eqx.Module):
    """A cell in a scan, and an embedding of integers."""

    embedding: eqx.nn.Embedding
    cell: eqx.nn.GRUCell
    head: eqx.nn.Linear

    def __init__(self, key):
        keys = jr.split(key, 3)
        self.embedding = eqx.nn.Embedding(5, 3, key=keys[0])
        self.cell = eqx.nn.GRUCell(3, 4, key=keys[1])
        self.head = eqx.nn.Linear(4, 2, key=keys[2])

    def __call__(self, tokens):
        step = lambda state, x: (self.cell(x, state), None)
        x = jax.vmap(self.embedding)(tokens)
        state, _ = lax.scan(step, jnp.zeros(4), x, reverse=True)
        return self.head(state)


def _recurrent(key):
    return Recurrent(key), jr.randint(jr.fold_in(key, 1), (4, 6), 0, 5)


class Transformer(eqx.Module):
    """Attention and normalisation with a scale and a shift; checkpointed."""

    attention: eqx.nn.MultiheadAttention
    norm: eqx.nn.LayerNorm
    positions: jax.Array
    head: eqx.nn.Linear

    def __init__(self, key):
        keys = jr.split(key, 3)
        self.attention = eqx.nn.MultiheadAttention(2, 4, key=keys[0])
        self.norm = eqx.nn.LayerNorm(4)
        self.positions = jr.normal(keys[1], (5, 4))
        self.head = eqx.nn.Linear(4, 2, key=keys[2])

    def __call__(self, x):
        @jax.checkpoint
        def block(x):
            return jax.vmap(self.norm)(x + self.attention(x, x, x))

        return jax.vmap(self.head)(block(x + self.positions))


class Odd(eqx.Module):
    """Convolutions of all kinds; weights that are normalised, in a branch, not used."""

    grouped: eqx.nn.Conv1d
    transposed: eqx.nn.ConvTranspose1d
    direction: jax.Array
    unused: jax.Array

    def __init__(self, key):
        keys = jr.split(key, 3)
        self.grouped = eqx.nn.Conv1d(
            4, 6, 3, stride=2, padding=2, dilation=2, groups=2, key=keys[0]
        )
        self.transposed = eqx.nn.ConvTranspose1d(6, 2, 3, stride=2, key=keys[1])
        self.direction = jr.normal(keys[2], (2, 2))
        self.unused = jnp.ones(3)

    def __call__(self, x):
        x = self.transposed(jnp.tanh(self.grouped(x)))
        weight = self.direction / jnp.linalg.norm(self.direction, axis=0, keepdims=True)
        x = x.T @ weight
        x = lax.cond(x[0, 0] > 0, lambda w: x @ w, lambda w: x @ w.T, self.direction)
        # Several outputs, one of them a number.
        return {"positions": x[:2], "energy": jnp.sum(x**2) / 10}


class _Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        double = {"param_dtype": jnp.float64}
        x = nn.tanh(nn.Conv(3, (2, 2), strides=(1, 2), **double)(x))
        x = nn.LayerNorm(**double)(x)
        return nn.Dense(2, **double)(x.reshape(len(x), -1))


def _linen(key):
    x = jr.normal(jr.fold_in(key, 1), (4, 4, 4, 2))
    module = _Linen()
    return inn.BatchFunction(module.apply, module.init(key, x)), x


def _haiku(key):
    forward = lambda x: hk.nets.MLP([4, 2], activation=jnp.tanh)(x)
    net = hk.without_apply_rng(hk.transform(forward))
    x = jr.normal(jr.fold_in(key, 1), (4, 3))
    return inn.BatchFunction(net.apply, net.init(key, x)), x


def _plain(key):
    def fn(weights, x):
        return jnp.sin(x @ weights["a"] / 2) @ (-weights["b"].T)

    weights = {"a": jr.normal(key, (3, 4)), "b": jr.normal(jr.fold_in(key, 2), (2, 4))}
    return inn.BatchFunction(fn, weights), jr.normal(jr.fold_in(key, 1), (4, 3))


def _batch_norm(key):
    layers = [inn.Dense(4), inn.BatchNorm("batch"), inn.Erf(), inn.Dense(2)]
    x = jr.normal(jr.fold_in(key, 1), (4, 3))
    fn = lambda net, x: jax.vmap(net, axis_name="batch")(x)
    return inn.CoupledFunction(fn, inn.Sequential(layers).init(key, x[0])), x


_block = inn.Residual(inn.Sequential([inn.LayerNorm(), inn.Erf(), inn.Dense(4)]))

MODELS = {
    "mlp": _infinitenet(
        [inn.Dense(6, 1.5, 0.1), inn.Relu(), inn.Dense(4), inn.Erf(), inn.Dense(2)], (3,)
    ),
    "cnn": _infinitenet(
        [
            inn.Conv(3, (3, 3), (2, 2), "SAME", 1.5, 0.1),
            inn.Relu(),
            inn.ConvLocal(2, (2, 2)),
            inn.ConvTranspose(3, (2, 2), (2, 2), "CIRCULAR"),
            inn.GlobalAvgPool(),
            inn.Dense(2),
        ],
        (5, 5, 2),
    ),
    "fully convolutional": _infinitenet(
        [inn.Conv(3, (3,)), inn.Erf(), inn.Conv(2, (2,))], (6, 2)
    ),
    "attention": _infinitenet(
        [inn.SelfAttention(4, 3, 4, 2, pos_emb_type="SUM"), inn.Erf(), inn.Dense(2)],
        (3, 2),
    ),
    "repeat": _infinitenet([inn.Dense(4), inn.Repeat(_block, 3), inn.Dense(2)], (3,)),
    "eqx.nn.MLP": _equinox(lambda key: eqx.nn.MLP(3, 2, 5, 2, key=key), (3,)),
    "shared weights": _equinox(SharedResNet, (4, 4, 2)),
    "recurrent": _recurrent,
    "transformer": _equinox(Transformer, (5, 4)),
    "odd": _equinox(Odd, (4, 7)),
    "flax": _linen,
    "haiku": _haiku,
    "plain": _plain,
    "batch norm": _batch_norm,
}
