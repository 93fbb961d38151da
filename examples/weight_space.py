"""Training in the space of weights, and in that of functions.

    python examples/weight_space.py [--output FOLDER] [--quick]

A network is trained on handwritten digits in three ways, at two widths:

1. the network itself, by Optax;
2. its linearisation, the Taylor polynomial of degree 1 in the weights, by the same steps;
3. its outputs, without any weights, by the empirical neural tangent kernel.

The second and the third are the same thing. On the mean squared error they agree to
rounding, as steps of gradient descent are known in closed form. On the cross-entropy, with
momentum, the third is a differential equation, to which training by small steps comes
close. The network itself differs from both, the less the wider it is.

Losses and differences are printed, and drawn in `weight_space.png`. It takes one to two
minutes on two CPU cores; `--quick` takes some seconds, with few data and one width.

Lee et al., Wide Neural Networks of Any Depth Evolve as Linear Models, NeurIPS 2019.
"""

import argparse
import importlib.util
import pathlib
import time
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax

import infinitenet as inn


def network(width):
    """Two hidden layers, and an output for each digit."""
    return inn.Sequential(
        [
            inn.Dense(width, W_std=1.5, b_std=0.1),
            inn.Erf(),
            inn.Dense(width, W_std=1.5, b_std=0.1),
            inn.Erf(),
            inn.Dense(10, W_std=1.0),
        ]
    )


class Data(NamedTuple):
    """Images as vectors, and one-hot labels."""

    x_train: jax.Array
    y_train: jax.Array
    x_test: jax.Array
    y_test: jax.Array


def digits(n_train, n_test):
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))[: n_train + n_test]
    x, y = jnp.asarray(images[order] / 16), jax.nn.one_hot(labels[order], 10)
    return Data(x[:n_train], y[:n_train], x[n_train:], y[n_train:])


class Outputs(NamedTuple):
    """On both sets of examples, at all recorded steps."""

    train: jax.Array
    test: jax.Array


@eqx.filter_jit
def outputs(model, data):
    return Outputs(jax.vmap(model)(data.x_train), jax.vmap(model)(data.x_test))


#
# Weights: any model is trained in this way
#


@eqx.filter_jit
def advance(model, state, data, loss, optimiser, n):
    """`n` steps on all of the training data, by an optimiser of Optax."""
    weights, rest = eqx.partition(model, inn.trainable(model))

    def objective(weights):
        f = jax.vmap(eqx.combine(weights, rest))(data.x_train)
        return loss(f, data.y_train)

    def step(_, carry):
        weights, state = carry
        updates, state = optimiser.update(jax.grad(objective)(weights), state)
        return optax.apply_updates(weights, updates), state

    weights, state = jax.lax.fori_loop(0, n, step, (weights, state))
    return eqx.combine(weights, rest), state


def train(model, data, loss, optimiser, steps):
    """The outputs after each number of steps."""
    state = optimiser.init(eqx.filter(model, inn.trainable(model)))
    records = []
    # The number of steps is an array, so that one program serves all.
    for n in jnp.diff(jnp.asarray(steps), prepend=0):
        model, state = advance(model, state, data, loss, optimiser, n)
        records.append(outputs(model, data))
    return jax.tree.map(lambda *each: jnp.stack(each), *records)


#
# Functions: the empirical NTK at initialisation is all that is known of the network
#


class Kernels(NamedTuple):
    """Over examples and outputs, shapes `(n, n_train, 10, 10)`."""

    train: jax.Array
    test_train: jax.Array


def kernels(net, data):
    k = inn.empirical_ntk(net, data.x_train, trace_axes=(), progress=False)
    k_test_train = inn.empirical_ntk(
        net, data.x_test, data.x_train, trace_axes=(), progress=False
    )
    return Kernels(k, k_test_train)


def predict_mse(k, data, start, optimiser, steps):
    """The mean squared error, in closed form for each step."""
    flow = inn.gradient_flow(k.train, data.y_train)
    t = inn.Steps(steps, optimiser)
    return Outputs(
        flow.train(t, start.train), flow.test(t, k.test_train, start.train, start.test)
    )


def predict_cross_entropy(k, data, start, optimiser, steps):
    """Cross-entropy, as a differential equation, of which a step is a unit of time."""
    flow = inn.loss_flow(
        k.train, data.y_train, inn.softmax_cross_entropy, optimiser=optimiser
    )
    trajectory = flow.solve(steps.astype(float), start.train, progress=False)
    return Outputs(trajectory.train, trajectory.test(k.test_train, start.test))


#
# All three
#


class Task(NamedTuple):
    """A loss, how it is trained, and how that is predicted."""

    title: str
    loss: Callable
    predict: Callable
    rate: float  # In units of the largest for which the mean squared error converges.
    momentum: float


TASKS = (
    Task("Mean squared error", inn.half_mse, predict_mse, 0.5, 0.0),
    Task(
        "Cross-entropy, with momentum",
        inn.softmax_cross_entropy,
        predict_cross_entropy,
        0.01,
        0.9,
    ),
)


class Result(NamedTuple):
    """Outputs of the network, of its linearisation, and those of the kernel."""

    network: Outputs
    linear: Outputs
    functions: Outputs

    def losses(self, task, data):
        """On the training data, shape `(3, steps)`."""
        loss = jax.vmap(lambda f: task.loss(f, data.y_train))
        return np.stack([loss(each.train) for each in self])

    def differences(self):
        """Of test outputs, in the root mean square: between the first two, and the last."""
        rms = lambda x: np.sqrt(np.mean(np.square(x), axis=(1, 2)))
        first, second, third = (each.test for each in self)
        return rms(first - second), rms(second - third)


def run(task, net, k, data, steps):
    size = data.y_train.size
    matrix = k.train.transpose(0, 2, 1, 3).reshape(size, size)
    rate = task.rate * float(inn.max_learning_rate(matrix, size))
    if task.momentum:
        sgd, limit = optax.sgd(rate, task.momentum), inn.HeavyBall(rate, task.momentum)
    else:
        sgd, limit = optax.sgd(rate), inn.GradientDescent(rate)
    return Result(
        train(net, data, task.loss, sgd, steps),
        train(inn.linearize(net), data, task.loss, sgd, steps),
        task.predict(k, data, outputs(net, data), limit, steps),
    )


def run_all(widths, data, steps):
    """Results for each task and width."""
    results = {}
    for width in widths:
        net = network(width).init(jr.key(0), data.x_train[0])
        k = kernels(net, data)
        for task in TASKS:
            results[task, width] = run(task, net, k, data, steps)
            print_result(task, width, results[task, width], data, steps)
    return results


def print_result(task, width, result, data, steps):
    """Losses and differences at some of the steps, and accuracies after all."""
    print(
        f"{task.title}, width {width}\n\n"
        "            training loss                 difference of test outputs (rms)\n"
        "    step    network   linear functions    network - linear  linear - functions"
    )
    losses, (nonlinear, rounding) = result.losses(task, data), result.differences()
    for i in np.unique(np.linspace(0, len(steps) - 1, 6).astype(int)):
        print(
            f"{steps[i]:8d}  " + "".join(f"{loss[i]:9.5f}" for loss in losses),
            f"{nonlinear[i]:18.1e}{rounding[i]:20.1e}",
        )
    labels = np.argmax(data.y_test, axis=-1)
    right = [np.mean(np.argmax(each.test[-1], -1) == labels) for each in result]
    print("accuracy  " + "".join(f"{100 * each:8.1f}%" for each in right), "\n", flush=True)


#
# Figure
#

# Told apart in all common kinds of colour blindness (Okabe and Ito).
BLUE, ORANGE, BLACK = "#0072B2", "#D55E00", "#222222"


def plot(file, results, widths, data, steps):
    """Losses of both tasks, and how far the network is from its linearisation."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    style: dict = {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}
    with plt.rc_context(style):
        figure, axes = plt.subplots(1, 3, figsize=(13.5, 4.2), layout="constrained")
        for ax, task in zip(axes, TASKS, strict=False):
            plot_losses(ax, task, results, widths, data, steps)
        plot_differences(axes[-1], results, widths, steps)
        for ax in axes[:-1]:
            ax.set_xscale("symlog", linthresh=1, linscale=0.3)
            ax.set_xlim(0, steps[-1])
        figure.savefig(file, dpi=120)
        plt.close(figure)


def plot_losses(ax, task, results, widths, data, steps):
    dashed: dict = {"color": BLACK, "ls": (0, (4, 3)), "lw": 1.2}
    for width, colour in zip(widths, (ORANGE, BLUE), strict=False):
        network, linear, functions = results[task, width].losses(task, data)
        ax.plot(steps, network, color=colour, lw=1.6, label=f"network, width {width}")
        ax.plot(steps, linear, color=colour, lw=5, alpha=0.3, label="linearised")
        ax.plot(steps, functions, **dashed)
    # The label is once for both.
    ax.plot([], [], label="function space", **dashed)
    ax.set(xlabel="step", ylabel="training loss", yscale="log")
    ax.set_title(task.title, loc="left", fontweight="bold")
    ax.legend(frameon=False, loc="lower left")


def plot_differences(ax, results, widths, steps):
    for task, dashes in zip(TASKS, ("-", (0, (1.2, 1.2))), strict=True):
        for width, colour in zip(widths, (ORANGE, BLUE), strict=False):
            difference, _ = results[task, width].differences()
            label = f"{task.title.split(',')[0].lower()}, width {width}"
            # They start equal, up to rounding.
            ax.plot(steps[1:], difference[1:], color=colour, ls=dashes, lw=1.8, label=label)
    # With room for the legend.
    ax.set(ylabel="root mean square", yscale="log", ylim=(1e-8, 3))
    ax.set(xlabel="step", xscale="log", xlim=(1, steps[-1]))
    ax.set_title("Network − linearisation, test", loc="left", fontweight="bold")
    ax.legend(frameon=False, loc="lower right")


def main():
    parser = argparse.ArgumentParser(description="Weight space and function space.")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("."))
    parser.add_argument("--quick", action="store_true", help="small, for tests")
    args = parser.parse_args()
    for name, package in (("matplotlib", "matplotlib"), ("sklearn", "scikit-learn")):
        if importlib.util.find_spec(name) is None:
            raise SystemExit(
                f"This example needs {package}: pip install 'infinitenet[examples]'."
            )
    # To show that weights and functions agree to rounding.
    jax.config.update("jax_enable_x64", True)
    start = time.perf_counter()
    widths, n, last = ((32,), 20, 100) if args.quick else ((64, 512), 100, 600)
    data = digits(n, n)
    steps = np.unique(np.geomspace(1, last, 12 if args.quick else 40).astype(int))
    steps = np.concatenate([[0], steps])
    results = run_all(widths, data, steps)
    args.output.mkdir(parents=True, exist_ok=True)
    file = args.output / "weight_space.png"
    plot(file, results, widths, data, steps)
    print(f"Losses and differences are drawn in {file}.")
    print(f"Finished in {time.perf_counter() - start:.0f} s.")


if __name__ == "__main__":
    main()
