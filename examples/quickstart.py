"""The library in two pictures' worth of work: a line to fit, and digits to tell.

    python examples/quickstart.py [--output FOLDER] [--quick]

1. Finite networks, trained by gradient descent, follow the infinite one: their losses and
   predictions are compared with those in closed form, and plotted in `quickstart.png`.
2. Infinite networks classify handwritten digits, beside a tuned support-vector machine.

It takes one to two minutes on two CPU cores; `--quick` takes some seconds, with networks
too narrow, and data too few, to show much.
"""

import argparse
import importlib.util
import pathlib
import time

import jax
import jax.numpy as jnp
import jax.random as jr
import jax.scipy as jsp
import numpy as np
import optax

import infinitenet as inn


#
# 1. Regression: finite networks follow the infinite one
#


def erf_network(width):
    """Three layers. `width` only matters to finite networks."""
    return inn.Sequential(
        [
            inn.Dense(width, W_std=1.5, b_std=0.05),
            inn.Erf(),
            inn.Dense(width, W_std=1.5, b_std=0.05),
            inn.Erf(),
            inn.Dense(1, W_std=1.5, b_std=0.05),
        ]
    )


def sine_data():
    """Five noisy observations of a sine, and where to predict it."""
    x_train = jnp.asarray([-2.6, -1.3, -0.2, 1.1, 2.4])[:, None]
    y_train = jnp.sin(x_train) + 0.1 * jr.normal(jr.key(3), x_train.shape)
    x_test = jnp.linspace(-np.pi, np.pi, 61)[:, None]
    return x_train, y_train, x_test, jnp.sin(x_test)


def learning_rates(largest, steps):
    """Small at first, and larger once what changes fast is learnt.

    So descent stays close to gradient flow, whose time is the sum of the learning rates.
    """
    slow = steps // 10
    rise = optax.linear_schedule(0.05 * largest, 0.5 * largest, steps // 4)
    return optax.join_schedules([optax.constant_schedule(0.05 * largest), rise], [slow])


def regression(width, n_members, steps):
    """Trains finite networks, solves the infinite one, and compares both."""
    x_train, y_train, x_test, y_test = sine_data()
    net = erf_network(width)

    # The kernels of the infinitely wide network.
    k_train = inn.gram(net, x_train)
    k_test_train = inn.gram(net, x_test, x_train)
    k_test = inn.gram(net, x_test, ntk=False)
    assert k_train.ntk is not None  # As it is by default.

    # Finite networks. Eight at a time fit into the cache of a CPU.
    rates = learning_rates(float(inn.max_learning_rate(k_train.ntk)), steps)
    ensemble = inn.draw_ensemble(net, jr.key(0), x_train[0], n_members)
    trained = inn.train_ensemble(
        ensemble,
        x_train,
        y_train,
        optax.sgd(rates),
        steps,
        x_test=x_test,
        y_test=y_test,
        members_at_once=8,
    )

    # Infinite networks at the same times: their mean and covariance over initialisations.
    t = trained.times(rates)
    infinite = inn.infinite_ensemble(k_train, y_train)
    on_train = inn.compare(trained.train_outputs, infinite.predict_train(t), y_train)
    prediction = infinite.predict(t, k_test_train, k_test.nngp)
    on_test = inn.compare(trained.test_outputs, prediction, y_test)
    return trained, t, on_train, on_test


def print_comparison(width, t, on_test):
    """z-scores at some times: about 1 in the root mean square, if all is well."""
    rms = lambda z: float(jnp.sqrt(jnp.mean(jnp.square(z))))
    largest = lambda z: float(jnp.max(jnp.abs(z)))
    print(
        f"{on_test.n_members} networks of width {width} against the infinite one, at "
        f"{on_test.mean.shape[1]} test points.\nz-scores of the ensemble's mean and "
        "variance, and of its mean test loss:\n\n"
        "             mean            variance        loss\n"
        "     time    rms  max |z|    rms  max |z|       z"
    )
    for i in np.linspace(0, len(t) - 1, 8).astype(int):
        mean, variance = on_test.z_mean[i], on_test.z_variance[i]
        print(
            f"{t[i]:9.2f}  {rms(mean):5.2f} {largest(mean):8.2f}  {rms(variance):5.2f} "
            f"{largest(variance):8.2f}  {on_test.z_loss[i]:6.2f}"
        )
    print(
        f"      all  {rms(on_test.z_mean):5.2f} {largest(on_test.z_mean):8.2f}  "
        f"{rms(on_test.z_variance):5.2f} {largest(on_test.z_variance):8.2f}  "
        f"{rms(on_test.z_loss):6.2f} (rms)\n\n"
        "About 1 is what chance alone gives. Points and times are correlated, so even the "
        "rms over\nall of them varies from draw to draw.\n"
    )


# Blue and orange are told apart in all common kinds of colour blindness (Okabe and Ito).
BLUE, ORANGE, BLACK = "#0072B2", "#D55E00", "#222222"


def plot(file, width, trained, t, on_train, on_test):
    """Loss curves to the left, predictions to the right."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    style: dict = {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}
    with plt.rc_context(style):
        figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
        plot_losses(left, trained, t, on_train, on_test)
        plot_predictions(right, width, on_test)
        figure.savefig(file, dpi=120)
        plt.close(figure)


def plot_losses(axes, trained, t, on_train, on_test):
    inn.plot.losses(t, trained.train_loss, on_train, name="train", ax=axes)
    inn.plot.losses(t, trained.test_loss, on_test, name="test", colour=ORANGE, ax=axes)
    axes.set(xlabel="training time (sum of learning rates)", ylabel="loss", ylim=(5e-4, 5))
    axes.set_title("Training", loc="left", fontweight="bold")
    axes.legend(frameon=False, loc="lower left")


def plot_predictions(axes, width, on_test):
    x_train, y_train, x_test, y_test = (np.asarray(each)[:, 0] for each in sine_data())
    mean, std = on_test.mean[-1, :, 0], on_test.std[-1, :, 0]
    finite, spread = on_test.ensemble_mean[-1, :, 0], on_test.ensemble_std[-1, :, 0]
    label = f"{on_test.n_members} finite networks, width {width}"
    band = (finite - 2 * spread, finite + 2 * spread)
    axes.fill_between(x_test, *band, color=BLUE, alpha=0.25, lw=0)
    axes.plot(x_test, finite, color=BLUE, lw=2.2, label=label)
    dashed = {"color": BLACK, "ls": (0, (4, 3))}
    axes.plot(x_test, mean, lw=1.4, label="infinite network", **dashed)
    for sign in (-2, 2):
        axes.plot(x_test, mean + sign * std, lw=1, **dashed)
    axes.plot(x_test, y_test, color=ORANGE, lw=1.2, label="$\\sin x$")
    axes.plot(x_train, y_train, "o", color=BLACK, ms=6, label="training data")
    axes.set(xlabel="$x$", xlim=(x_test[0], x_test[-1]))
    axes.set(ylabel="output", ylim=(-2.1, 1.3))  # With room for the legend.
    axes.set_title("Predictions ± 2 standard deviations", loc="left", fontweight="bold")
    axes.legend(frameon=False, loc="lower right")


#
# 2. Classification: infinite networks on handwritten digits
#


def digit_networks():
    """Infinitely wide, so that numbers of channels do not matter: they are 1."""
    std = 2**0.5
    dense = inn.Dense(1, W_std=std, b_std=0.1)
    convolutions = [
        inn.Conv(1, (4, 4), W_std=std, b_std=0.1),
        inn.Relu(),
        inn.Conv(1, (3, 3), W_std=std, b_std=0.1),
        inn.Relu(),
    ]
    return {
        "fully connected": inn.Sequential(
            [inn.Flatten(), dense, inn.Relu(), dense, inn.Relu(), dense]
        ),
        "convolutional": inn.Sequential([*convolutions, inn.Flatten(), dense]),
        "convolutional, pooled": inn.Sequential(
            [*convolutions, inn.GlobalAvgPool(), dense]
        ),
    }


def digit_data(n_train, n_test):
    """Images of shape (8, 8, 1), and their labels."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))[: n_train + n_test]
    x = jnp.asarray(images[order].reshape(-1, 8, 8, 1) / 16, jnp.float32)
    return jnp.split(x, [n_train]), np.split(labels[order], [n_train])


def choose_diag_reg(k, y, candidates=(1e-4, 1e-3, 1e-2, 1e-1)):
    """By the squared error of each training point, predicted from all the others.

    That error is known in closed form (Rasmussen and Williams, 2006, equation 5.12).
    """
    errors = []
    for diag_reg in candidates:
        posterior = inn.condition(k, y, diag_reg=diag_reg)
        inverse = jsp.linalg.cho_solve((posterior.factor, True), jnp.eye(len(k)))
        errors.append(jnp.sum((posterior.weights / jnp.diagonal(inverse)[:, None]) ** 2))
    return candidates[int(np.argmin(errors))]


def kernel_accuracy(k_train, k_test_train, labels_train, labels_test):
    """Regression to one-hot labels less their mean; the class of the largest output."""
    y = jax.nn.one_hot(labels_train, 10) - 0.1
    posterior = inn.condition(k_train, y, diag_reg=choose_diag_reg(k_train, y))
    classes = jnp.argmax(posterior.predict(k_test_train).mean, axis=-1)
    return float(np.mean(np.asarray(classes) == labels_test))


def network_accuracies(net, sizes, x, labels):
    """For each kernel and each size: one computation of kernels, and blocks of it."""
    k_train, k_test_train = inn.gram(net, x[0]), inn.gram(net, x[1], x[0])
    return {
        name: [
            kernel_accuracy(
                getattr(k_train, name)[:n, :n],
                getattr(k_test_train, name)[:, :n],
                labels[0][:n],
                labels[1],
            )
            for n in sizes
        ]
        for name in ("nngp", "ntk")
    }


def svm_accuracies(sizes, x, labels):
    """A support-vector machine of RBF kernel, tuned by cross-validation."""
    from sklearn.model_selection import GridSearchCV
    from sklearn.svm import SVC

    x_train, x_test = (np.asarray(each).reshape(len(each), -1) for each in x)
    grid = {"C": [0.1, 1, 10, 100], "gamma": [0.003, 0.01, 0.03, 0.1, 0.3]}
    out = []
    for n in sizes:
        search = GridSearchCV(SVC(), grid, cv=4).fit(x_train[:n], labels[0][:n])
        out.append(np.mean(search.predict(x_test) == labels[1]))
    return out


def classification(sizes, n_test):
    """Prints a table of test accuracies."""
    x, labels = digit_data(max(sizes), n_test)
    heading = "".join(f"{n:>8}" for n in sizes)
    print(f"Handwritten digits: accuracy on {n_test} test images, in %\n")
    print(f"{'training images':30}{heading}")

    def row(name, accuracies):
        print(f"{name:30}" + "".join(f"{100 * a:8.1f}" for a in accuracies), flush=True)

    row("RBF kernel, tuned SVM", svm_accuracies(sizes, x, labels))
    for name, net in digit_networks().items():
        for kernel, accuracies in network_accuracies(net, sizes, x, labels).items():
            row(f"{name}, {kernel.upper()}", accuracies)
    error = 100 * (0.98 * 0.02 / n_test) ** 0.5
    print(f"\nThe standard error of 98 % is {error:.1f} %.\n")


def main():
    parser = argparse.ArgumentParser(description="A tour of infinitenet.")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("."))
    parser.add_argument("--quick", action="store_true", help="small, for tests")
    args = parser.parse_args()
    for name, package in (("matplotlib", "matplotlib"), ("sklearn", "scikit-learn")):
        if importlib.util.find_spec(name) is None:
            raise SystemExit(
                f"This example needs {package}: pip install 'infinitenet[examples]'."
            )
    start = time.perf_counter()
    width, n_members, steps = (64, 8, 100) if args.quick else (512, 64, 600)
    trained, t, on_train, on_test = regression(width, n_members, steps)
    print_comparison(width, t, on_test)
    args.output.mkdir(parents=True, exist_ok=True)
    file = args.output / "quickstart.png"
    plot(file, width, trained, t, on_train, on_test)
    print(f"Losses and predictions are plotted in {file}.\n")
    classification(*(((20, 40), 40) if args.quick else ((100, 250, 500), 1000)))
    print(f"Finished in {time.perf_counter() - start:.0f} s.")


if __name__ == "__main__":
    main()
