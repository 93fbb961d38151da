"""Order and chaos in deep networks: phase diagrams of nonlinearities.

    python examples/phase_diagram.py [--output FOLDER] [--quick] [--nonlinearities NAME ...]

For each pair of standard deviations of weights and biases, the limit of infinite depth of a
fully-connected network: the variance of activations, the correlation of different inputs,
and the depth over which networks forget the latter. They are drawn in `phase_diagram.png`,
with the edge of chaos in black.

Variances are those to which 1 leads. There may be others: those of GELU jump where they
begin to diverge from there, so that its line is no edge along which depth is infinite.

It takes less than a minute on two CPU cores; `--quick` draws a coarse diagram of one.

Poole et al., Exponential expressivity in deep neural networks through transient chaos,
NeurIPS 2016. Schoenholz et al., Deep Information Propagation, ICLR 2017.
"""

import argparse
import importlib.util
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

import infinitenet as inn


# Names of layers, and the largest W_std and b_std to draw.
LIMITS = {"Erf": (4.0, 1.0), "Tanh": (4.0, 1.0), "Relu": (2.0, 1.0), "Gelu": (3.0, 1.0)}


def diagram(name, n):
    """The limits on a grid, and its axes."""
    W_max, b_max = LIMITS[name]
    W_stds, b_stds = jnp.linspace(0.4, W_max, n), jnp.linspace(0, b_max, n // 2)
    return W_stds, b_stds, inn.phase_diagram(getattr(inn, name)(), W_stds, b_stds)


def print_edge(names):
    """A table: to keep gradients at their size, with biases or without."""
    b_stds = np.array([0.0, 0.05, 0.2, 0.5])
    heading = "".join(f"{b:10}" for b in b_stds)
    print(f"W_std at the edge of chaos, for b_std of\n{'':10}{heading}")
    for name in names:
        edge = inn.edge_of_chaos(getattr(inn, name)(), b_std=b_stds)
        cells = ("none" if np.isnan(w) else f"{w:.4f}" for w in edge.W_std)
        print(f"{name:10}" + "".join(f"{cell:>10}" for cell in cells))
    print()


def print_check(name, W_std, b_std, depth):
    """The correlation of two inputs in an actual deep network, and its limit."""
    block = inn.Sequential([getattr(inn, name)(), inn.Dense(1, W_std, b_std)])
    limit = inn.signal_propagation(block)
    deep = inn.Sequential([inn.Dense(1), inn.Repeat(block, depth)])
    k = inn.gram(deep, jnp.asarray([[1.0, 0.0], [1.0, 1.0]]), ntk=False).nngp
    c = k[0, 1] / jnp.sqrt(k[0, 0] * k[1, 1])
    print(
        f"{name} with W_std {W_std}, b_std {b_std}: correlation {limit.c:.6f} in the "
        f"limit, {c:.6f} after {depth} layers.\nIts distance from the limit shrinks by a "
        f"factor of e in {limit.depth_correlation:.1f} layers.\n"
    )


def plot(file, diagrams):
    """A row for each nonlinearity: variance, correlation, depth."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context({"font.size": 10}):
        size = (11, 2.9 * len(diagrams) + 0.4)
        figure, axes = plt.subplots(
            len(diagrams), 3, figsize=size, layout="constrained", squeeze=False
        )
        for row, (name, (W_stds, b_stds, limits)) in zip(
            axes, diagrams.items(), strict=True
        ):
            for ax, quantity in zip(row, ("q", "c", "depth_correlation"), strict=True):
                inn.plot.phases(W_stds, b_stds, limits, quantity, ax=ax)
                ax.set(xlabel="", ylabel="")
            row[0].set_title(name, loc="left", fontweight="bold")
        for ax in axes[-1]:
            ax.set_xlabel("$\\sigma_W$")
        for ax in axes[:, 0]:
            ax.set_ylabel("$\\sigma_b$")
        figure.savefig(file, dpi=110)
        plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description="Phase diagrams of nonlinearities.")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("."))
    parser.add_argument("--quick", action="store_true", help="small, for tests")
    parser.add_argument("--nonlinearities", nargs="+", choices=LIMITS, metavar="NAME")
    args = parser.parse_args()
    if importlib.util.find_spec("matplotlib") is None:
        raise SystemExit(
            "This example needs matplotlib: pip install 'infinitenet[examples]'."
        )
    # Near the edge of chaos the last digits matter.
    jax.config.update("jax_enable_x64", True)
    start = time.perf_counter()
    names = args.nonlinearities or (["Erf"] if args.quick else list(LIMITS))
    print_edge(names)
    print_check(names[0], 1.5, 0.1, 30)
    diagrams = {name: diagram(name, 12 if args.quick else 80) for name in names}
    args.output.mkdir(parents=True, exist_ok=True)
    file = args.output / "phase_diagram.png"
    plot(file, diagrams)
    print(f"Phase diagrams are drawn in {file}, with contours of chi_1.")
    print(f"Finished in {time.perf_counter() - start:.0f} s.")


if __name__ == "__main__":
    main()
