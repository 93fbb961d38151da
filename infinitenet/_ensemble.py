"""Ensembles of finite networks: drawn, trained, and compared with the infinite one.

The members of an ensemble are stacked: each array has a first axis over them, as
`eqx.filter_vmap` makes it.
"""

from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from ._batch import to_batch
from ._checks import check_finite, check_floating, check_shape
from ._custom_types import Arrays
from ._inference.losses import half_mse
from ._layer import AbstractLayer
from ._progress import Progress, reporting
from ._signal import Examples
from ._tracing import is_traced
from ._training import evaluate_ensemble, Problem, train_in_parts
from ._weights import trainable


def draw_ensemble(
    net: AbstractLayer, key: PRNGKeyArray, x: Examples, n: int
) -> AbstractLayer:
    """Draws independent finite networks: `net.init`, over as many keys.

    **Arguments:**

    - `net`: a network.
    - `key`: a random key.
    - `x`: an example (not a batch), as for [`infinitenet.AbstractLayer.init`][].
    - `n`: the number of networks.

    **Returns:** the networks as one, each array with a first axis of size `n`.

    **Raises:** `ValueError` if `n` is below 1, and as `net.init`.
    """
    if n < 1:
        raise ValueError(f"`n` must be at least 1 network, but it is {n}.")
    return eqx.filter_vmap(lambda key: net.init(key, x))(jr.split(key, n))


class TrainedEnsemble(eqx.Module):
    """What [`infinitenet.train_ensemble`][] returns: networks, and how they came about.

    - `ensemble`: the trained networks.
    - `steps`: the steps that were recorded, ascending. Step 0 is before training.
    - `train_loss`: at these steps, shape `(records, members)`.
    - `test_loss`: likewise, or `None` without `y_test`.
    - `train_outputs`: shape `(records, members, n, *outputs)`, or `None` if they were not
        to be kept.
    - `test_outputs`: likewise, or `None` without `x_test`.
    """

    ensemble: AbstractLayer
    steps: Int[Array, " records"]
    train_loss: Float[Array, "records members"]
    test_loss: Float[Array, "records members"] | None
    train_outputs: Float[Array, "records members n *outputs"] | None
    test_outputs: Float[Array, "records members n_test *outputs"] | None

    def times(
        self, learning_rate: float | optax.Schedule | Float[Array, ""]
    ) -> Float[Array, " records"]:
        """The times of gradient flow that the recorded steps stand for.

        **Arguments:**

        - `learning_rate`: a number, or a schedule as for Optax. For momentum `m`, give
            the learning rate divided by `1 - m`.

        **Returns:** the sum of the learning rates of all steps before each record.
        """
        dtype = self.train_loss.dtype
        if not callable(learning_rate):
            return learning_rate * self.steps.astype(dtype)
        rates = jnp.asarray(jax.vmap(learning_rate)(jnp.arange(int(self.steps[-1]))))
        rates = jnp.concatenate([jnp.zeros(1, dtype), rates.astype(dtype)])
        return jnp.cumsum(rates)[self.steps]

    def __repr__(self) -> str:
        if is_traced(self.train_loss):
            return eqx.tree_pformat(self)
        out = f"{self.train_loss.shape[1]} networks after {self.steps[-1]} steps:"
        for name, loss in (("train", self.train_loss), ("test", self.test_loss)):
            if loss is not None:
                low, mean, high = (fn(loss[-1]) for fn in (jnp.min, jnp.mean, jnp.max))
                out += f" {name} loss {mean:.3g} (from {low:.3g} to {high:.3g}),"
        return f"<TrainedEnsemble of {out[:-1]}>"


def train_ensemble(
    ensemble: AbstractLayer,
    x_train: Arrays,
    y_train: ArrayLike,
    optimiser: optax.GradientTransformation,
    steps: int | Sequence[int] | np.ndarray,
    *,
    loss: Callable[..., Array] = half_mse,
    x_test: Arrays | None = None,
    y_test: ArrayLike | None = None,
    keep_outputs: bool = True,
    members_at_once: int | None = None,
    progress: Progress | bool = True,
) -> TrainedEnsemble:
    """Trains all networks of an ensemble, each on the full batch in every step.

    Only weights are trained: those that [`infinitenet.trainable`][] tells, so never
    `W_std` or `b_std`.

    !!! example

        ```python
        ensemble = inn.draw_ensemble(net, key, x_train[0], 100)
        trained = inn.train_ensemble(ensemble, x_train, y_train, optax.sgd(0.1), 1000)
        trained.train_loss  # of shape (records, 100), at `trained.steps`
        ```

    **Arguments:**

    - `ensemble`: as made by [`infinitenet.draw_ensemble`][].
    - `x_train`: a batch of inputs, of shape `(n, *spatial, channels)`.
    - `y_train`: the targets, of the shape `(n, *outputs)` of the networks' outputs. For
        another loss, what that takes.
    - `optimiser`: any of Optax. Each network has its own state of it.
    - `steps`: the number of steps; by default about 50 of them are recorded, at equal
        distances on a logarithmic scale, the first and the last included. Or the steps to
        record, ascending, of which the last is the number of steps; 0 is before training.
    - `loss`: a function of outputs and targets of one network that returns a scalar.
    - `x_test`, `y_test`: likewise, to be evaluated at the recorded steps. Without
        `y_test`, only outputs are.
    - `keep_outputs`: whether to record outputs, not only losses. They take memory of
        `records * members * n * outputs` numbers.
    - `members_at_once`: how many networks to train at the same time; all by default. A
        smaller number takes less memory; best a divisor of the number of networks, for
        otherwise a second program is compiled for the rest.
    - `progress`: as for [`infinitenet.gram`][].

    **Returns:** A [`infinitenet.TrainedEnsemble`][].

    **Raises:** `ValueError` if an argument has a wrong shape or dtype, or is not finite;
        if the networks have no weights yet; and if training diverges, with the step. Under
        `jax.jit` divergence is a `RuntimeError` at run time.

    It can be compiled and vectorised, but not be differentiated in reverse.
    """
    stops = _to_steps(steps)
    n_members = _count_members(ensemble)
    train_data = _check_data("train", ensemble, x_train, y_train, loss)
    test_data = _check_data("test", ensemble, x_test, y_test, loss)
    if members_at_once is None:
        members_at_once = n_members
    if members_at_once < 1:
        raise ValueError(f"`members_at_once` must be at least 1, not {members_at_once}.")
    if not isinstance(optimiser, optax.GradientTransformation):
        raise ValueError(f"`optimiser` must be one of Optax, but it is {optimiser!r}.")
    optimiser = optax.with_extra_args_support(optimiser)
    weights, rest = eqx.partition(ensemble, trainable(ensemble))
    problem = Problem(rest, *train_data, *test_data, optimiser, loss, keep_outputs)
    with reporting(progress, "training", "steps") as report:
        weights, records = train_in_parts(
            problem, weights, stops, n_members, members_at_once, report
        )
    return TrainedEnsemble(
        eqx.combine(weights, rest),
        jnp.asarray(stops),
        records.train_loss,
        records.test_loss,
        records.train_outputs,
        records.test_outputs,
    )


#
# Checks of arguments
#


# How many steps are recorded by default.
_n_records = 50


def _to_steps(steps: int | Sequence[int] | np.ndarray) -> np.ndarray:
    out = np.asarray(steps)
    if not np.issubdtype(out.dtype, np.integer) or out.ndim > 1 or out.size == 0:
        raise ValueError(
            "`steps` must be a whole number, or a sequence of the steps to record, but it "
            f"is {steps!r}."
        )
    if out.ndim == 0:
        if out < 1:
            raise ValueError(f"`steps` must be at least 1, but it is {steps}.")
        spaced = np.geomspace(1, int(out), _n_records).round().astype(int)
        return np.union1d(0, spaced)
    if out[0] < 0 or out[-1] < 1 or np.any(np.diff(out) <= 0):
        raise ValueError(
            "`steps` to record must ascend, from 0 or above to 1 or above, but they are "
            f"{steps!r}. Use `sorted(set(steps))`."
        )
    return out


def _count_members(ensemble: AbstractLayer) -> int:
    if not isinstance(ensemble, AbstractLayer):
        raise ValueError(f"`ensemble` must be networks, but it is {ensemble!r}.")
    if not any(jax.tree.leaves(trainable(ensemble))):
        raise ValueError(
            "`ensemble` has no weights yet: draw them by "
            "`draw_ensemble(net, key, x_train[0], n)`."
        )
    sizes = {jnp.shape(x)[:1] for x in jax.tree.leaves(eqx.filter(ensemble, eqx.is_array))}
    if len(sizes) > 1 or () in sizes:
        raise ValueError(
            "`ensemble` must be several networks, stacked along a first axis of each "
            "array: use `draw_ensemble` in place of `net.init`. For a single network, "
            "that is `draw_ensemble(net, key, x_train[0], 1)`."
        )
    return sizes.pop()[0]


def _check_data(
    name: str, ensemble: AbstractLayer, x: PyTree, y: PyTree, loss: Callable[..., Array]
) -> tuple[PyTree, PyTree]:
    """Inputs as arrays, and the targets in the dtype of the outputs."""
    x_name, y_name = f"x_{name}", f"y_{name}"
    if x is None:
        if y is not None:
            raise ValueError(f"`{y_name}` was given without `{x_name}`: give both.")
        return None, None
    x = to_batch(x_name, x)
    f = eqx.filter_eval_shape(evaluate_ensemble, ensemble, x)
    if not isinstance(f, jax.ShapeDtypeStruct):
        raise ValueError("`ensemble` must end in one array: add `FanInSum` after branches.")
    f = jax.ShapeDtypeStruct(f.shape[1:], f.dtype)
    if y is None:
        return x, None
    if loss is half_mse:
        remedy = "For classes, use `jax.nn.one_hot`, less `1 / n_classes` for zero mean."
        y = check_floating(y_name, y, remedy)
        reason = "that of the outputs: reshape it, or change the width of the last layer"
        y = check_shape(y_name, y, f.shape, reason).astype(f.dtype)
        return x, check_finite(y_name, y, "Leave these examples out.")
    value = eqx.filter_eval_shape(loss, f, y)
    if not isinstance(value, jax.ShapeDtypeStruct) or value.shape != ():
        raise ValueError(f"`loss` must return a scalar for all of a batch, not {value}.")
    return x, jax.tree.map(jnp.asarray, y)
