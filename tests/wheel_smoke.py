"""Checks an installed wheel. Run it from a directory outside the repository."""

import sys

import jax.numpy as jnp
import jax.random as jr

import infinitenet as inn


optional = {"matplotlib", "sklearn", "tqdm", "tensorflow"} & set(sys.modules)
assert not optional, f"`import infinitenet` imported {sorted(optional)}."
assert "site-packages" in inn.__file__, f"Not the wheel: {inn.__file__}."

x = jr.normal(jr.key(0), (5, 3))
net = inn.Sequential([inn.Dense(64, W_std=1.5, b_std=0.1), inn.Relu(), inn.Dense(1)])
k = inn.gram(net, x)
for name, matrix in (("nngp", k.nngp), ("ntk", k.ntk)):
    assert matrix.shape == (5, 5), f"`{name}` has shape {matrix.shape}."
    assert jnp.array_equal(matrix, matrix.T), f"`{name}` is not symmetric."
print(f"infinitenet from {inn.__file__} works.")
