"""Hyperparameters of an infinite network, learnt from data by the marginal likelihood.

    python examples/learn_hyperparameters.py [--output FOLDER] [--quick] [--seed SEED]

On three of scikit-learn's data sets, the standard deviations of weights and biases of each
layer of an infinitely wide network are learnt, and the noise of the targets. A Gaussian
process of RBF kernel, tuned in the same way, is beside it. How they are learnt is plotted
in `learn_hyperparameters.png`.

The prior improves by what it learns, as long as noise is about Gaussian. Labels of classes
have no such noise: on some splits (`--seed 3`, breast cancer) the training data look almost
free of it, and then a few test points are many standard deviations away from their
prediction. The test log-likelihood is lower then, for either kind of kernel.

It takes one to two minutes on two CPU cores; `--quick` takes some seconds, with too few
data to show much.
"""

import argparse
import importlib.util
import pathlib
import time
import warnings

import jax


# Targets of little noise need it.
jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp
import numpy as np

import infinitenet as inn


def network():
    """Three layers of usual scales. Widths do not matter: infinite networks have none."""
    layer = inn.Dense(1, W_std=2**0.5, b_std=0.1)
    return inn.Sequential([layer, inn.Relu(), layer, inn.Relu(), layer])


DIAG_REG = 0.1


#
# Data
#


def data(name, n_train, n_test, seed):
    """Inputs, targets and labels for training and test. Targets are standardised.

    Classes are told by regression: to -1 and 1, or to one-hot vectors less their mean.
    """
    from sklearn import datasets

    load = {
        "diabetes": datasets.load_diabetes,
        "breast cancer": datasets.load_breast_cancer,
        "digits": datasets.load_digits,
    }[name]
    x, labels = load(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(x))[: n_train + n_test]
    x, labels = x[order], labels[order]
    y = np.eye(10)[labels] if name == "digits" else labels[:, None].astype(float)
    train = slice(n_train)
    # Pixels have a scale in common, as some are dark in all images of training.
    axis = None if name == "digits" else 0
    x = (x - x[train].mean(0)) / x[train].std(axis)
    y = (y - y[train].mean(0)) / y[train].std(axis)
    return [np.split(each, [n_train]) for each in (x, y, labels)]


def test_error(name, mean, y_test, labels_test):
    """The share of wrong classes, or the root mean square, of standardised targets."""
    if name == "diabetes":
        return np.sqrt(np.mean((mean - y_test) ** 2))
    if name == "digits":
        return np.mean(np.argmax(mean, 1) != labels_test)
    # Halfway between both classes.
    threshold = (y_test.min() + y_test.max()) / 2
    return np.mean((mean > threshold) != (y_test > threshold))


def log_density(mean, std, y):
    """The mean logarithm of the predictive density of a target, noise included."""
    variance = np.reshape(std, (len(y), -1)) ** 2
    error = np.square(np.asarray(mean) - y)
    return np.mean(-0.5 * (error / variance + np.log(2 * np.pi * variance)))


#
# Models
#


def score(name, mean, std, y, labels):
    return log_density(mean, std, y[1]), test_error(name, np.asarray(mean), y[1], labels[1])


def predict(net, diag_reg, x, y):
    """The log marginal likelihood, and the mean and standard deviation of test targets."""
    k_train = inn.gram(net, x[0], ntk=False).nngp
    k_test_train = inn.gram(net, x[1], x[0], ntk=False).nngp
    k_test = inn.gram_diagonal(net, x[1], ntk=False).nngp
    posterior = inn.condition(k_train, y[0], diag_reg=diag_reg)
    prediction = posterior.predict(k_test_train, k_test)
    std = np.sqrt(np.asarray(prediction.std) ** 2 + float(posterior.noise))
    return float(posterior.log_marginal_likelihood()), prediction.mean, std


def infinite_network(name, x, y, labels):
    """Scores before and after learning, and the way from one to the other."""
    x_arrays = [jnp.asarray(each) for each in x]
    net = network()
    fit = inn.fit(net, x_arrays[0], y[0], diag_reg=DIAG_REG)
    rows = []
    for each, diag_reg in ((net, DIAG_REG), (fit.net, fit.diag_reg)):
        likelihood, mean, std = predict(each, diag_reg, x_arrays, y)
        rows.append((likelihood, *score(name, mean, std, y, labels)))
    return rows, fit


def rbf_process(name, x, y, labels):
    """scikit-learn's Gaussian process, its scales and noise tuned by L-BFGS."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, RBF, WhiteKernel

    # From a length scale of the size of distances between inputs.
    length = np.sqrt(2 * np.sum(np.var(x[0], axis=0)))
    bounds = (1e-8, 1e8)
    kernel = ConstantKernel(1.0, bounds) * RBF(length, bounds) + WhiteKernel(0.1, bounds)
    with warnings.catch_warnings():
        # Of parameters at their bounds.
        warnings.simplefilter("ignore", ConvergenceWarning)
        process = GaussianProcessRegressor(kernel).fit(x[0], y[0])
    mean, std = (np.asarray(each) for each in process.predict(x[1], return_std=True))
    mean = mean.reshape(y[1].shape)
    likelihood = process.log_marginal_likelihood_value_
    return (likelihood, *score(name, mean, std, y, labels))


#
# Figures
#

BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
COLOURS = {"W_std": BLUE, "b_std": ORANGE}


def plot(file, fits, baselines):
    """Above, the log marginal likelihood at each step; below, the hyperparameters."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    style: dict = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
    with plt.rc_context(style):
        figure, axes = plt.subplots(
            2,
            len(fits),
            figsize=(11, 5.5),
            layout="constrained",
            sharex="col",
            squeeze=False,
        )
        for (name, fit), (above, below) in zip(fits.items(), axes.T, strict=True):
            highest = np.maximum.accumulate(fit.objective)
            above.plot(highest, color=BLUE, lw=2, label="infinite network")
            above.axhline(baselines[name][0], color="grey", ls="--", label="RBF, tuned")
            above.set_title(name, loc="left", fontweight="bold")
            plot_parameters(below, fit)
        axes[0, 0].set_ylabel("log marginal likelihood")
        axes[0, 0].legend(frameon=False)
        axes[1, 0].set_ylabel("hyperparameters")
        axes[1, 0].legend(frameon=False, fontsize=8)
        figure.savefig(file, dpi=120)
        plt.close(figure)


def plot_parameters(axes, fit):
    for name, trace in fit.parameters.items():
        kind = name.rpartition(".")[2]
        layer = 1 + int(name[7]) // 2 if name.startswith("layers[") else None
        style = "-" if layer is None else ("-", "--", ":")[layer - 1]
        label = "diag_reg" if layer is None else f"{kind} of layer {layer}"
        axes.plot(trace, color=COLOURS.get(kind, GREEN), ls=style, lw=1.5, label=label)
    axes.set(yscale="log", xlabel="step")


#
# All of it
#

_HEADING = "{:16}{:>20}{:>22}{:>12}\n".format(
    "", "log marg. likelihood", "test log-likelihood", "test error"
)


def print_table(name, rows, baseline, sizes):
    kind = "rms" if name == "diabetes" else "% wrong"
    print(f"{name}: {sizes[0]} training and {sizes[1]} test points; error in {kind}")
    named = zip(
        ("network, before", "network, learnt", "RBF, tuned"), (*rows, baseline), strict=True
    )
    for label, (likelihood, density, error) in named:
        scale = 1 if name == "diabetes" else 100
        print(f"  {label:16}{likelihood:18.1f}{density:22.3f}{scale * error:12.3g}")
    print(flush=True)


def compare(names, n_train, n_test, seed):
    """Prints a table for each data set; returns the fits, and scores of the baseline."""
    fits, baselines = {}, {}
    print(_HEADING)
    for name in names:
        x, y, labels = data(name, n_train, n_test, seed)
        rows, fits[name] = infinite_network(name, x, y, labels)
        baselines[name] = rbf_process(name, x, y, labels)
        print_table(name, rows, baselines[name], (len(x[0]), len(x[1])))
    return fits, baselines


def main():
    parser = argparse.ArgumentParser(description="Learning hyperparameters.")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("."))
    parser.add_argument("--quick", action="store_true", help="small, for tests")
    parser.add_argument("--seed", type=int, default=0, help="of the split of the data")
    args = parser.parse_args()
    for name, package in (("matplotlib", "matplotlib"), ("sklearn", "scikit-learn")):
        if importlib.util.find_spec(name) is None:
            raise SystemExit(
                f"This example needs {package}: pip install 'infinitenet[examples]'."
            )
    start = time.perf_counter()
    sizes = (30, 20) if args.quick else (300, 500)
    names = ("diabetes", "breast cancer", "digits")
    fits, baselines = compare(names, *sizes, args.seed)
    args.output.mkdir(parents=True, exist_ok=True)
    file = args.output / "learn_hyperparameters.png"
    plot(file, fits, baselines)
    for name, fit in fits.items():
        print(f"{name}: {fit!r}")
    print(f"\nThe way there is plotted in {file}.")
    print(f"Finished in {time.perf_counter() - start:.0f} s.")


if __name__ == "__main__":
    main()
