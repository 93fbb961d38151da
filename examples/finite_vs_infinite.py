"""Finite networks follow the infinite one: training on handwritten digits.

    python examples/finite_vs_infinite.py [--output FOLDER] [--quick]

An ensemble of finite networks is trained by gradient descent on the mean squared error. At
the same times, the infinite one is known in closed form: the mean and the covariance of its
outputs, and its losses. Figure 1 of Novak et al. (Neural Tangents, ICLR 2020) on real data,
with the distance of each finite network's own kernel from that at the start:
`finite_vs_infinite.png`. And a table of how far finite widths are from the infinite one, in
units of what chance gives.

It takes a few minutes on two CPU cores; `--quick` takes some seconds.
"""

import argparse
import pathlib
import time

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from sklearn.datasets import load_digits

import infinitenet as inn


def digits(n_train, n_test):
    """Threes and eights, as vectors of mean square 1; targets are -1 and 1."""
    x, labels = load_digits(return_X_y=True)
    chosen = np.flatnonzero((labels == 3) | (labels == 8))
    order = np.random.default_rng(0).permutation(chosen)[: n_train + n_test]
    x = x[order] - x[order].mean(axis=0)
    x = jnp.asarray(x / np.sqrt(np.mean(x**2, axis=1, keepdims=True)), jnp.float32)
    y = jnp.where(np.asarray(labels)[order] == 8, 1.0, -1.0)[:, None]
    return x[:n_train], y[:n_train], x[n_train:], y[n_train:]


def network(width):
    """Two hidden layers. `width` only matters to finite networks."""
    hidden = [inn.Dense(width, W_std=1.5, b_std=0.05), inn.Erf()]
    return inn.Sequential([*hidden, *hidden, inn.Dense(1, W_std=1.5, b_std=0.05)])


class Infinite:
    """The infinite network on some data."""

    def __init__(self, data):
        self.x_train, self.y_train, self.x_test, self.y_test = data
        net = network(1)
        self.k_train = inn.gram(net, self.x_train)
        self.k_test_train = inn.gram(net, self.x_test, self.x_train)
        self.k_test = inn.gram(net, self.x_test, ntk=False)
        self.ensemble = inn.infinite_ensemble(self.k_train, self.y_train)
        # A small fraction of what is stable, so that descent follows its flow.
        self.rate = 0.1 * float(inn.max_learning_rate(self.k_train.ntk))

    def compare(self, trained):
        """On training and test data, at the recorded steps, which are exact here."""
        steps = inn.Steps(trained.steps, inn.GradientDescent(self.rate))
        on_train = self.ensemble.predict_train(steps)
        on_test = self.ensemble.predict(steps, self.k_test_train, self.k_test.nngp)
        return inn.compare(
            trained,
            on_test,
            self.y_test,
            train_prediction=on_train,
            y_train=self.y_train,
        )


def train(infinite, width, n_members, steps):
    """Finite networks, and how far their kernels move."""
    net = network(width)
    ensemble = inn.draw_ensemble(net, jr.key(width), infinite.x_train[0], n_members)
    return inn.train_ensemble(
        ensemble,
        infinite.x_train,
        infinite.y_train,
        optax.sgd(infinite.rate),
        steps,
        x_test=infinite.x_test,
        y_test=infinite.y_test,
        ntk_drift=infinite.x_train[:20],
        members_at_once=min(8, n_members),
    )


def print_row(width, on_test):
    rms = lambda z: float(jnp.sqrt(jnp.mean(jnp.square(z))))
    drift = on_test.ntk_drift[-1]
    print(
        f"{width:6d}{rms(on_test.z_mean):10.2f}{rms(on_test.z_variance):11.2f}"
        f"{rms(on_test.z_loss):8.2f}{on_test.ensemble_loss[-1]:12.4f}"
        f"{on_test.loss[-1]:10.4f}{jnp.mean(drift):10.3f}",
        flush=True,
    )


def draw(file, t, width, on_test, drifts):
    """Outputs, losses, and the drift of kernels."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(
        1, 3, figsize=(13.5, 4.2), layout="constrained"
    )
    # The test images that change most, to either side.
    change = on_test.mean[-1, :, 0] - on_test.mean[0, :, 0]
    images = [int(jnp.argmax(change)), int(jnp.argmin(change))]
    inn.plot.finite_vs_infinite(t, on_test, images, axes=(left, middle))
    left.set_title(f"Two test images: {on_test.n_members} networks of width {width}")
    middle.set_title("Losses")
    for each, drift in drifts.items():
        right.loglog(t[1:], jnp.mean(drift[1:], axis=1), label=f"width {each}")
    right.set(xlabel="training time (learning rate × steps)", ylabel="relative distance")
    right.set_title("NTK of finite networks from that at the start")
    right.legend(frameon=False)
    figure.savefig(file, dpi=120)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description="Finite and infinite networks.")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("."))
    parser.add_argument("--quick", action="store_true", help="small, for tests")
    args = parser.parse_args()
    start = time.perf_counter()
    sizes = (
        ((20, 10), (16, 64), 8, 50) if args.quick else ((100, 50), (32, 128, 512), 64, 600)
    )
    n_data, widths, n_members, steps = sizes
    infinite = Infinite(digits(*n_data))
    print(
        f"{n_members} networks of each width, after {steps} steps on {n_data[0]} images. "
        "z-scores are root mean squares\nover all times and test images: about 1 is what "
        "chance gives, and more is the finite width.\n\n"
        " width    z(mean)  z(variance) z(loss)   test loss  infinite  NTK drift"
    )
    comparisons, t = {}, np.zeros(0)
    for width in widths:
        trained = train(infinite, width, n_members, steps)
        comparisons[width] = infinite.compare(trained)
        print_row(width, comparisons[width])
        t = np.asarray(trained.times(infinite.rate))
    args.output.mkdir(parents=True, exist_ok=True)
    file = args.output / "finite_vs_infinite.png"
    drifts = {width: comparison.ntk_drift for width, comparison in comparisons.items()}
    draw(file, t, widths[-1], comparisons[widths[-1]], drifts)
    print(f"\nThe figure is {file}. Finished in {time.perf_counter() - start:.0f} s.")


if __name__ == "__main__":
    main()
