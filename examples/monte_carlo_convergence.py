"""Finite networks approach the infinite one: a wide residual network of ten layers.

    python examples/monte_carlo_convergence.py [--output FOLDER] [--quick]

The kernels of random finite networks are averaged, and compared with those of the infinite
network: for networks of several widths, and several numbers of networks, on images of
handwritten digits. A table has the relative errors, and `monte_carlo_convergence.png` draws
them, with dotted lines for what sampling alone makes.

As in the paper, the NNGP kernel is that of the features before the last layer, and the NTK
that of a network of one output. Unlike there, the first convolution is widened too. With 16
channels in networks of any width, errors would not go to zero with it.

It takes some minutes on two CPU cores; `--quick` takes some seconds, with a small
network of dense layers.

Novak et al., Neural Tangents: Fast and Easy Infinite Neural Networks in Python, ICLR 2020:
Figure 2.
"""

import argparse
import importlib.util
import pathlib
import time

import jax.numpy as jnp
import jax.random as jr
import numpy as np

import infinitenet as inn


NAMES = {"nngp": "NNGP kernel", "ntk": "NTK"}


def images(n):
    """Digits of 8 x 8 pixels, standardised."""
    from sklearn.datasets import load_digits

    x = load_digits(return_X_y=True)[0][:n].reshape(n, 8, 8, 1)
    return jnp.asarray((x - x.mean()) / x.std(), jnp.float32)


def wide_resnet(k):
    net = inn.WideResNet(10, k, 1)
    first = inn.Conv(16 * k, (3, 3), padding="SAME")
    return inn.Sequential([first, *net.layers[1:]])


def small_network(k):
    dense = inn.Dense(8 * k, W_std=2**0.5)
    return inn.Sequential(
        [inn.Flatten(), dense, inn.Relu(), dense, inn.Relu(), inn.Dense(1)]
    )


def features(net):
    """All of it but the last layer."""
    return inn.Sequential(net.layers[:-1])


def measure(net_of_width, widths, n_samples, x):
    """Errors of both kernels."""
    keys = jr.split(jr.key(0))
    # The last layer has weights of variance 1 and no biases: so both NNGP kernels, of the
    # features and of the outputs, are the same. They do not depend on width either.
    exact = inn.gram(net_of_width(1), x)
    nngp = inn.monte_carlo_convergence(
        lambda k: features(net_of_width(k)),
        widths,
        keys[0],
        x,
        n_samples=n_samples,
        exact=exact,
        ntk=False,
    )
    ntk = inn.monte_carlo_convergence(
        net_of_width, widths, keys[1], x, n_samples=n_samples, exact=exact
    )
    return {"nngp": nngp, "ntk": ntk}


def slope(x, y):
    """Of a line through logarithms."""
    return np.polyfit(np.log(x), np.log(y), 1)[0]


def print_table(name, convergence):
    """Errors, the part of sampling at the end, and what is left of it: the bias."""
    c = convergence
    widths, counts = np.asarray(c.widths), np.asarray(c.n_samples)
    errors = np.asarray(getattr(c, name))
    sampling = np.asarray(getattr(c, f"{name}_sampling"))
    print(f"Relative error of the {NAMES[name]}, of so many networks:")
    print(f"{'width':>8}" + "".join(f"{n:9}" for n in counts) + "    slope  sampling")
    for width, row, part in zip(widths, errors, sampling, strict=True):
        cells = "".join(f"{error:9.4f}" for error in row)
        print(f"{width:8}{cells}{slope(counts, row):9.2f}{part[-1]:10.4f}")
    print(
        f"{'slope':>8}"
        + "".join(f"{slope(widths, column):9.2f}" for column in errors.T)
        + f"{'':9}{slope(widths, sampling[:, -1]):10.2f}\n"
    )


def plot(file, convergences):
    """A column for each kernel: errors in the number of networks, and in width."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context({"font.size": 10}):
        figure, axes = plt.subplots(2, 2, figsize=(10, 7), layout="constrained")
        for column, (name, c) in zip(axes.T, convergences.items(), strict=True):
            for ax, along in zip(column, ("samples", "width"), strict=True):
                inn.plot.convergence(c, name, along=along, ax=ax)
            column[0].set_title(NAMES[name], loc="left", fontweight="bold")
            column[1].set_xlabel("widening factor")
        for ax in axes.flat:
            ax.set_ylabel("relative error")
        figure.savefig(file, dpi=110)
        plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description="Convergence of finite networks.")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("."))
    parser.add_argument("--quick", action="store_true", help="small, for tests")
    args = parser.parse_args()
    for name, package in (("matplotlib", "matplotlib"), ("sklearn", "scikit-learn")):
        if importlib.util.find_spec(name) is None:
            raise SystemExit(
                f"This example needs {package}: pip install 'infinitenet[examples]'."
            )
    start = time.perf_counter()
    if args.quick:
        convergences = measure(small_network, (1, 8), (1, 10, 100), images(3))
    else:
        n_samples = (1, 4, 16, 64, 256)
        convergences = measure(wide_resnet, (1, 2, 4, 8), n_samples, images(5))
    for name, convergence in convergences.items():
        print_table(name, convergence)
    args.output.mkdir(parents=True, exist_ok=True)
    file = args.output / "monte_carlo_convergence.png"
    plot(file, convergences)
    print(f"Errors are drawn in {file}.")
    print(f"Finished in {time.perf_counter() - start:.0f} s.")


if __name__ == "__main__":
    main()
