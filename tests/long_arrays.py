"""Functions are compiled rightly also for as many entries as vectors are of, and more."""

import jax
import jax.numpy as jnp
import numpy as np

import infinitenet as inn


FUNCTIONS = jnp.arctan, jnp.tanh, jnp.sin, jax.nn.softplus
LAYERS = *map(inn.Elementwise, FUNCTIONS), inn.Relu(), inn.Erf(), inn.Gelu()


def check(layer, dtype):
    """Entries of a large matrix are those of matrices of one."""
    x, y = np.random.default_rng(0).normal(size=(2, 70, 6)).astype(dtype)
    net = inn.Sequential([inn.Dense(4, 1.5, 0.1), layer, inn.Dense(1)])
    got = inn.gram(net, x, y)
    for i, j in ((0, 0), (1, 5), (2, 33), (69, 69)):
        one = inn.gram(net, x[i : i + 1], y[j : j + 1])
        for a, b in zip(*map(jax.tree.leaves, (got, one)), strict=True):
            np.testing.assert_allclose(a[i, j], b[0, 0], 1e-4, 1e-5, err_msg=f"{layer}")


if __name__ == "__main__":
    for dtype in (np.float32, np.float64):
        for layer in LAYERS:
            check(layer, dtype)
