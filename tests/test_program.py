"""Functions without the Python that made them."""

import jax
import jax.lax as lax
import jax.numpy as jnp
import numpy as np

import infinitenet as inn
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
