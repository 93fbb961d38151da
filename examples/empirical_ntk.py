"""The neural tangent kernel of finite convolutional networks, in Equinox and in Flax.

    python examples/empirical_ntk.py [--output FOLDER] [--quick]

1. Kernels of the same architecture in both libraries, on handwritten digits, by all
   methods: they agree, and take different times.
2. The kernel learns: as the network is trained, its NTK aligns with the classes. Regression
   on the kernel after training classifies better than on the one before.

`empirical_ntk.png` shows the kernel before and after. It takes under two minutes on two
CPU cores; `--quick` takes some seconds. Flax is optional: `pip install flax`.
"""

import argparse
import importlib.util
import pathlib
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from sklearn.datasets import load_digits

import infinitenet as inn


def digits(n_train, n_test):
    """Images of 8x8 pixels with a channel, and classes."""
    x, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))[: n_train + n_test]
    x = jnp.asarray(x[order].reshape(-1, 8, 8, 1) / 8 - 1, jnp.float32)
    labels = labels[order]
    return x[:n_train], labels[:n_train], x[n_train:], labels[n_train:]


class EquinoxCNN(eqx.Module):
    """Two convolutions and two dense layers. Equinox has channels first."""

    convolutions: list[eqx.nn.Conv2d]
    dense: eqx.nn.Linear
    head: eqx.nn.Linear

    def __init__(self, key):
        keys = jr.split(key, 4)
        conv = lambda n, key: eqx.nn.Conv2d(n, 16, 3, 2, padding=1, key=key)
        self.convolutions = [conv(1, keys[0]), conv(16, keys[1])]
        self.dense = eqx.nn.Linear(64, 128, key=keys[2])
        self.head = eqx.nn.Linear(128, 10, key=keys[3])

    def __call__(self, x):
        x = jnp.moveaxis(x, -1, 0)
        for convolution in self.convolutions:
            x = jax.nn.relu(convolution(x))
        return self.head(jax.nn.relu(self.dense(x.ravel())))


def flax_cnn(key, x):
    """The same in Flax Linen, whose modules take batches."""
    import flax.linen as nn

    class FlaxCNN(nn.Module):
        @nn.compact
        def __call__(self, x):
            for _ in range(2):
                x = nn.relu(nn.Conv(16, (3, 3), (2, 2))(x))
            x = nn.relu(nn.Dense(128)(x.reshape(len(x), -1)))
            return nn.Dense(10)(x)

    module = FlaxCNN()
    return inn.BatchFunction(module.apply, module.init(key, x[:1]))


def compare_methods(name, model, x):
    """The kernel by all methods: how far they are from each other, and the time."""
    print(f"\n{name}, {len(x)} images, mean over 10 outputs")
    methods = [
        inn.JacobianContraction(),
        inn.NTKVectorProducts(),
        inn.StructuredDerivatives(),
    ]
    first = None
    for method in methods:
        kernel = lambda method=method: inn.empirical_ntk(
            model, x, method=method, progress=False
        )
        jax.block_until_ready(kernel())  # It is compiled.
        start = time.perf_counter()
        k = jax.block_until_ready(kernel())
        seconds = time.perf_counter() - start
        first = k if first is None else first
        error = jnp.linalg.norm(k - first) / jnp.linalg.norm(first)
        print(f"  {type(method).__name__:22}{seconds:8.3f} s   differs by {error:.0e}")


def train(model, x, labels, steps):
    """Adam on the cross-entropy, in small batches."""
    weights, rest = eqx.partition(model, inn.trainable(model))
    optimiser = optax.adam(2e-3)
    targets = jax.nn.one_hot(labels, 10)

    @jax.jit
    def step(weights, state, key):
        batch = jr.choice(key, len(x), (32,), replace=False)

        def loss(weights):
            outputs = jax.vmap(eqx.combine(weights, rest))(x[batch])
            return optax.softmax_cross_entropy(outputs, targets[batch]).mean()

        updates, state = optimiser.update(jax.grad(loss)(weights), state)
        return optax.apply_updates(weights, updates), state

    state = optimiser.init(weights)
    for key in jr.split(jr.key(1), steps):
        weights, state = step(weights, state, key)
    return eqx.combine(weights, rest)


def accuracy(outputs, labels):
    return 100 * float(jnp.mean(jnp.argmax(outputs, axis=-1) == labels))


def regression(model, k, x_train, labels, x_test, test_labels):
    """Accuracy of regression on the classes, with the kernel of a model."""
    targets = jax.nn.one_hot(labels, 10) - 0.1
    posterior = inn.condition(k, targets, diag_reg=1e-3)
    cross = inn.empirical_ntk(model, x_test, x_train, progress=False)
    return accuracy(posterior.predict(cross).mean, test_labels)


def before_and_after(model, data, steps):
    """Trains the model, and looks at its kernel. Returns both kernels."""
    x_train, labels, x_test, test_labels = data
    trained = train(model, x_train, labels, steps)
    targets = jax.nn.one_hot(labels, 10) - 0.1
    kernels = []
    print(f"\n{'':18}alignment with classes   accuracy by the kernel   by the network")
    for name, net in (("before training", model), ("after training", trained)):
        k = inn.empirical_ntk(net, x_train, progress=False)
        alignment = float(inn.diagnose(k, targets).alignment)
        by_kernel = regression(net, k, x_train, labels, x_test, test_labels)
        by_network = accuracy(jax.vmap(net)(x_test), test_labels)
        print(f"{name:18}{alignment:22.2f}{by_kernel:25.1f}{by_network:17.1f}")
        kernels.append(k)
    drift = jnp.linalg.norm(kernels[1] - kernels[0]) / jnp.linalg.norm(kernels[0])
    print(f"The kernel moved by {drift:.1f} times its own size.")
    return kernels


def draw(kernels, labels, folder):
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    titles = ("NTK before training", "NTK after training")
    for ax, k, title in zip(axes, kernels, titles, strict=True):
        scale = jnp.sqrt(jnp.diagonal(k))
        cosines = k / (scale[:, None] * scale[None])
        inn.plot.kernel(cosines, order=labels, label="cosine", ax=ax)
        ax.set_title(title)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "empirical_ntk.png", dpi=150)
    print(f"\nThe kernels are drawn in {folder / 'empirical_ntk.png'}.")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # pyright: ignore
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("."))
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    n_train, n_test, n_methods, steps = (
        (40, 50, 5, 30) if args.quick else (500, 1000, 50, 1500)
    )
    data = digits(n_train, n_test)
    model = EquinoxCNN(jr.key(0))
    compare_methods("Equinox", model, data[0][:n_methods])
    if importlib.util.find_spec("flax") is None:
        print("\nFlax is not installed: `pip install flax` for its network beside.")
    else:
        linen = flax_cnn(jr.key(0), data[0])
        compare_methods("Flax", linen, data[0][:n_methods])
    kernels = before_and_after(model, data, steps)
    draw(kernels, data[1], args.output)


if __name__ == "__main__":
    main()
