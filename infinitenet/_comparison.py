"""Comparison of finite ensembles with the infinite one."""

import equinox as eqx
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ._checks import check_finite, check_floating, check_shape
from ._inference.solution import Prediction
from ._inference.spectral import dot
from ._tracing import is_traced
from ._trained import TrainedEnsemble


def expected_loss(prediction: Prediction, y: ArrayLike) -> Float[Array, "*times"]:
    r"""The expectation of half the mean squared error: $(\text{bias}^2 + \text{variance})
    / 2$, averaged over examples and outputs.

    That is the mean loss of an ensemble of many wide networks, not the loss of their mean.

    **Arguments:**

    - `prediction`: of [`infinitenet.InfiniteEnsemble`][], with covariance.
    - `y`: the targets, of shape `(n, *outputs)`.

    **Returns:** shape `(*times,)`.

    **Raises:** `ValueError` if `y` has a wrong shape or dtype, or if the prediction has no
        covariance.
    """
    variance, bias = jnp.square(prediction.std), _bias(prediction, y)
    return jnp.mean(jnp.square(bias) + variance[..., None], axis=(-2, -1)) / 2


def _loss_std(prediction: Prediction, y: ArrayLike) -> Float[Array, "*times"]:
    r"""The standard deviation of the loss between networks.

    Outputs $f = y + b + e$ of Gaussian $e$ have
    $\operatorname{Var}(|b + e|^2) = 4 b^T \Sigma b + 2 \operatorname{tr} \Sigma^2$.
    """
    covariance, _ = prediction._covariance()
    bias = _bias(prediction, y)
    n_outputs, size = bias.shape[-1], bias.shape[-2] * bias.shape[-1]
    linear = 4 * jnp.sum(bias * dot(covariance, bias), axis=(-2, -1))
    square = 2 * n_outputs * jnp.sum(jnp.square(covariance), axis=(-2, -1))
    return jnp.sqrt(jnp.maximum(linear, 0) + square) / (2 * size)


def _bias(prediction: Prediction, y: ArrayLike) -> Float[Array, "*times n outputs"]:
    """Of the predicted mean, with all axes of outputs as one."""
    y = _check_targets(prediction, y)
    shape = prediction.std.shape
    bias = prediction.mean - y.reshape((1,) * (len(shape) - 1) + y.shape)
    return bias.reshape(*shape, -1)


def _check_targets(prediction: Prediction, y: ArrayLike) -> Float[Array, "n *outputs"]:
    y = check_floating("y", y, "Use the targets that the networks were trained on.")
    times = prediction.std.ndim - 1
    shape = prediction.mean.shape[times:]
    return check_shape("y", y, shape, "that of the predicted mean at one time")


class Comparison(eqx.Module):
    """A finite ensemble against the infinite one. Made by [`infinitenet.compare`][].

    If the networks are wide enough, each z-score is standard normal, so that their root
    mean square is about 1. Neighbouring inputs and times have similar ones, as the outputs
    are correlated: what varies is then less averaged out than their number suggests.

    - `n_members`: the number of finite networks.
    - `ensemble_mean`, `ensemble_std`: of the finite networks, shape
        `(*times, n, *outputs)`.
    - `mean`, `std`: of the infinite ensemble, likewise.
    - `ensemble_covariance`: between inputs, averaged over outputs, shape `(*times, n, n)`.
    - `covariance`: of the infinite ensemble, likewise.
    - `member_loss`: the losses of the finite networks, shape `(*times, members)`, or `None`
        without targets.
    - `loss`, `loss_std`: the mean of the infinite ensemble, and the standard deviation
        between its networks, shape `(*times,)`, likewise.
    - `train`: the comparison on training data, if that was asked for too.
    - `ntk_drift`: that of [`infinitenet.TrainedEnsemble`][], or `None`.
    """

    n_members: int = eqx.field(static=True)
    ensemble_mean: Float[Array, " *times_n_outputs"]
    ensemble_std: Float[Array, " *times_n_outputs"]
    mean: Float[Array, " *times_n_outputs"]
    std: Float[Array, " *times_n_outputs"]
    ensemble_covariance: Float[Array, "*times n n"]
    covariance: Float[Array, "*times n n"]
    member_loss: Float[Array, "*times members"] | None
    loss: Float[Array, "*times"] | None
    loss_std: Float[Array, "*times"] | None
    train: "Comparison | None" = None
    ntk_drift: Float[Array, "times members"] | None = None

    @property
    def ensemble_loss(self) -> Float[Array, "*times"] | None:
        """The mean loss of the finite networks, or `None` without targets."""
        return None if self.member_loss is None else jnp.mean(self.member_loss, axis=-1)

    @property
    def z_mean(self) -> Float[Array, " *times_n_outputs"]:
        r"""z-scores of the means, $(\bar f - \mu) / (\sigma / \sqrt{m})$.

        Here $\mu$ and $\sigma$ are analytic and $m$ is the number of networks. The mean of
        finite networks differs from $\mu$ by $O(1 / \text{width})$, however many there are.
        That is not taken off: it counts as error, and shows up as soon as it exceeds
        $\sigma / \sqrt{m}$.
        """
        return (self.ensemble_mean - self.mean) * self.n_members**0.5 / self.std

    @property
    def z_variance(self) -> Float[Array, " *times_n_outputs"]:
        r"""z-scores of the variances, $(s^2 / \sigma^2 - 1) \sqrt{(m - 1) / 2}$.

        Sample variances of Gaussians are distributed as $\chi^2$ of $m - 1$ degrees of
        freedom; this is its normal approximation, of which the right tail is too light
        below some tens of networks. Finite width also adds $O(1 / \text{width})$ here.
        """
        ratio = jnp.square(self.ensemble_std / self.std)
        return (ratio - 1) * ((self.n_members - 1) / 2) ** 0.5

    @property
    def z_covariance(self) -> Float[Array, "*times n n"]:
        r"""z-scores of the covariances between inputs, averaged over the $O$ outputs:

        $$
        z_{ij} = (S_{ij} - \Sigma_{ij})
            \sqrt{\frac{(m - 1)\, O}{\Sigma_{ij}^2 + \Sigma_{ii} \Sigma_{jj}}}.
        $$

        For Gaussian outputs, $(m - 1)\, O\, S$ has a Wishart distribution of as many
        degrees of freedom, and these are its variances. On the diagonal with one output,
        that is `z_variance`.
        """
        std = self.std.reshape(*self.covariance.shape[:-1], -1)[..., 0]
        n_outputs = self.mean.size // std.size
        products = std[..., :, None] * std[..., None, :]
        variance = jnp.square(self.covariance) + jnp.square(products)
        degrees = (self.n_members - 1) * n_outputs
        return (self.ensemble_covariance - self.covariance) * jnp.sqrt(degrees / variance)

    @property
    def z_loss(self) -> Float[Array, "*times"]:
        """z-scores of the mean losses, as those of the mean outputs.

        Losses are less Gaussian than outputs: the right tail is heavier.

        **Raises:** `ValueError` if there were no targets.
        """
        measured, loss, spread = self.ensemble_loss, self.loss, self.loss_std
        if measured is None or spread is None or loss is None:
            raise ValueError("There are no losses: give `y` to `compare`.")
        return (measured - loss) * self.n_members**0.5 / spread

    def __repr__(self) -> str:
        if is_traced(self.mean):
            return eqx.tree_pformat(self)
        lines = [f"<Comparison of {self.n_members} networks: z-scores, and last values"]
        lines += self._lines()
        if self.train is not None:
            lines += ["on training data:", *self.train._lines()]
        if self.ntk_drift is not None:
            lines.append(f"NTK moved by {jnp.mean(self.ntk_drift[-1]):.2g} of its norm")
        return "\n  ".join(lines) + ">"

    def _lines(self) -> list[str]:
        out = []
        names = ["mean", "variance", "covariance"]
        names += [] if self.loss is None else ["loss"]
        for name in names:
            z = getattr(self, f"z_{name}")
            rms, most = jnp.sqrt(jnp.mean(jnp.square(z))), jnp.max(jnp.abs(z))
            out.append(f"{name:11}rms {rms:.2f}, up to {most:.1f}")
        if self.loss is not None and self.ensemble_loss is not None:
            finite, infinite = (jnp.ravel(x)[-1] for x in (self.ensemble_loss, self.loss))
            out[-1] += f"; {finite:.3g}, for infinite width {infinite:.3g}"
        return out


def compare(
    outputs: Float[Array, "..."] | TrainedEnsemble | None,
    prediction: Prediction,
    y: ArrayLike | None = None,
    *,
    train_prediction: Prediction | None = None,
    y_train: ArrayLike | None = None,
) -> Comparison:
    """Compares a finite ensemble with the infinite one, on the same inputs and times.

    !!! example

        ```python
        trained = inn.train_ensemble(
            ensemble, x_train, y_train, optax.sgd(0.1), 1000, x_test=x_test
        )
        prediction = infinite.predict(trained.times(0.1), k_test_train, k_test_test)
        inn.compare(trained.test_outputs, prediction)
        # On training data as well, and how far the empirical NTK has moved.
        on_train = infinite.predict_train(trained.times(0.1))
        inn.compare(
            trained, prediction, y_test, train_prediction=on_train, y_train=y_train
        )
        ```

    **Arguments:**

    - `outputs`: of the finite networks, shape `(*times, members, n, *outputs)`; or the
        trained ensemble: its `test_outputs` or, without these, its `train_outputs`.
    - `prediction`: of [`infinitenet.InfiniteEnsemble`][], with covariance. Variances are
        taken to be at least what rounding leaves of zero.
    - `y`: targets, of shape `(n, *outputs)`, to compare losses by: half the mean squared
        error.
    - `train_prediction`, `y_train`: likewise for training data, to compare the
        `train_outputs` of a trained ensemble too.

    **Returns:** A [`infinitenet.Comparison`][].

    **Raises:** `ValueError` if shapes do not match, if there are less than 2 networks, or
        if `outputs` were not recorded.
    """
    if isinstance(outputs, TrainedEnsemble):
        return _of_ensemble(outputs, prediction, y, train_prediction, y_train)
    if train_prediction is not None or y_train is not None:
        raise ValueError(
            "`train_prediction` and `y_train` are for a trained ensemble: give `trained` "
            "in place of its outputs, or compare these by themselves."
        )
    if outputs is None:
        raise ValueError(
            "`outputs` were not recorded: use `train_ensemble` with `keep_outputs=True`, "
            "and with `x_test` for those on test inputs."
        )
    return _of_outputs(outputs, prediction, y)


def _of_ensemble(
    trained: TrainedEnsemble,
    prediction: Prediction,
    y: ArrayLike | None,
    train_prediction: Prediction | None,
    y_train: ArrayLike | None,
) -> Comparison:
    outputs = (
        trained.train_outputs if trained.test_outputs is None else trained.test_outputs
    )
    out, train = compare(outputs, prediction, y), None
    if train_prediction is not None:
        train = compare(trained.train_outputs, train_prediction, y_train)
    elif y_train is not None:
        raise ValueError("`y_train` was given without `train_prediction`: give both.")
    where = lambda c: (c.train, c.ntk_drift)
    new = (train, trained.ntk_drift)
    return eqx.tree_at(where, out, new, is_leaf=lambda x: x is None)


def _of_outputs(
    outputs: Float[Array, "..."], prediction: Prediction, y: ArrayLike | None
) -> Comparison:
    # The tolerance bounds the rounding of all variances together.
    covariance, tolerance = prediction._covariance()
    least = jnp.sqrt(tolerance / prediction.std.shape[-1])
    std = jnp.maximum(prediction.std, least[..., None])
    axis = std.ndim - 1
    shape = prediction.mean.shape
    n_members = outputs.shape[axis] if outputs.ndim > axis else 0
    expected = (*shape[:axis], n_members, *shape[axis:])
    reason = "that of the predicted mean, with the members after the times"
    outputs = check_shape("outputs", jnp.asarray(outputs), expected, reason)
    if n_members < 2:
        raise ValueError(f"`outputs` must be of at least 2 networks, not of {n_members}.")
    outputs = check_finite("outputs", outputs, "Train at a smaller learning rate.")
    std = std.reshape(*std.shape, *(1,) * (len(shape) - std.ndim))
    losses = (None, None, None)
    if y is not None:
        target = _check_targets(prediction, y).reshape((1,) * (axis + 1) + shape[axis:])
        square = jnp.square(outputs - target)
        measured = jnp.mean(square, axis=tuple(range(axis + 1, outputs.ndim))) / 2
        losses = (measured, expected_loss(prediction, y), _loss_std(prediction, y))
    return Comparison(
        n_members,
        jnp.mean(outputs, axis=axis),
        jnp.std(outputs, axis=axis, ddof=1),
        prediction.mean,
        jnp.broadcast_to(std, shape),
        _sample_covariance(outputs, axis),
        covariance,
        *losses,
    )


def _sample_covariance(
    outputs: Float[Array, "..."], axis: int
) -> Float[Array, "*times n n"]:
    """Between inputs, the mean over outputs. Members are along `axis`."""
    f = outputs - jnp.mean(outputs, axis=axis, keepdims=True)
    f = f.reshape(*outputs.shape[: axis + 2], -1)
    products = jnp.einsum("...mio,...mjo->...ij", f, f)
    return products / ((f.shape[axis] - 1) * f.shape[-1])
