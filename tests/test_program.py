"""Functions without the Python that made them."""

import jax
import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from processes import finish, start

import infinitenet as inn
from infinitenet._entries import finish_alone, finish_pairs, finish_stacks, program_of
from infinitenet._parts import Parts
from infinitenet._program import Program


_vector = jnp.ones(8, np.float32)


def _looped(arrays, x, y, part):
    """A covariance, and with it a larger array of one of the inputs."""

    def step(carry, _):
        k, q = carry
        return (k * q.sum(), jnp.tanh(q)), None

    k, q = jnp.vdot(x, y), jax.jit(lambda y: jnp.outer(y, y))(y)
    return lax.scan(step, (k, q), length=3)[0][0]


def test_arrays_of_one_input():
    """They are told from those of pairs, in calls and in loops."""
    program = Program(_looped, (), _vector, _vector, None)
    assert program.largest_of_pairs == 4
    assert program.largest_of_one == 4 * 8**2
    assert program.largest_array == 4 * 8**2


def test_what_a_loop_passes_on():
    """An array that is of both inputs only from the second step on."""

    def fn(arrays, x, y, part):
        step = lambda carry, _: ((carry[0] + carry[1], carry[1] * carry[2], carry[2]), None)
        large = jnp.outer(x, x)
        return lax.scan(step, (large, large, y.sum()), length=3)[0][0].sum()

    program = Program(fn, (), _vector, _vector, None)
    assert program.largest_of_pairs == 4 * 8**2


def test_contexts():
    """Programs of one context are not those of another one."""
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    net = inn.Sequential([inn.Dense(4), inn.Gelu(), inn.Dense(1)])
    mesh = jax.make_mesh((1,), ("rows",))
    with jax.set_mesh(mesh):
        first = inn.gram(net, x)
    second = inn.gram(net, x)
    with jax.enable_x64(False):
        third = inn.gram(net, x)
    with jax.set_mesh(mesh):
        inn.gram(net, x)
    for k in (second, third):
        np.testing.assert_allclose(k.ntk, first.ntk, rtol=1e-6)


def test_long_arrays(monkeypatch):
    """By a compiler that optimises, as that of users does, but not that of these tests."""
    for name in ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    finish([start("long_arrays.py")])


def test_nothing_left_to_do():
    """After a single part, there is no other program to call."""
    net = inn.Sequential([inn.Dense(4), inn.Relu(), inn.Dense(1)])
    x = jnp.ones((2, 3))
    parts = Parts(net, x, x, True, inn.Demand(), None)
    for fn, shape in (
        (finish_alone, (2,)),
        (finish_pairs, (1, 2)),
        (finish_stacks, (4,) * 4),
    ):
        total = jax.tree.map(lambda k, shape=shape: jnp.ones(shape, k.dtype), parts.like)
        assert not program_of(parts.entry, fn, parts.arrays, total).jaxpr.eqns


class _WithKey(inn.AbstractLayer):
    """Has leaves that are no numbers."""

    key: jax.Array

    def __call__(self, x, *, key=None):
        return x

    def check(self, signal):
        return signal

    def requires(self, demand):
        return demand

    def infinite(self, kernel):
        return kernel


def test_keys():
    x = np.random.default_rng(0).normal(size=(3, 4))
    layers = [inn.Dense(4), inn.Relu(), inn.Dense(1)]
    got = inn.gram(inn.Sequential([_WithKey(jax.random.key(0)), *layers]), x)
    want = inn.gram(inn.Sequential(layers), x)
    np.testing.assert_allclose(got.ntk, want.ntk, rtol=1e-12)
