"""What comes of training: networks and records, or divergence."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PyTree

from ._flow_time import flow_time
from ._tracing import is_traced


class TrainedEnsemble(eqx.Module):
    r"""What [`infinitenet.train_ensemble`][] returns: networks, and how they came about.

    - `ensemble`: the trained networks.
    - `steps`: the steps that were recorded, ascending. Step 0 is before training.
    - `train_loss`: at these steps, on all training data, shape `(records, members)`.
    - `test_loss`: likewise, or `None` without `y_test`.
    - `train_outputs`: shape `(records, members, n, *outputs)`, or `None` if they were not
        to be kept. If models return a pytree, such a pytree.
    - `test_outputs`: likewise, or `None` without `x_test`.
    - `ntk_drift`: how far the empirical NTK of each network is from that at the start,
        $\|\Theta_t - \Theta_0\|_F / \|\Theta_0\|_F$, shape `(records, members)`; or `None`
        if it was not asked for.
    """

    ensemble: Any
    steps: Int[Array, " records"]
    train_loss: Float[Array, "records members"]
    test_loss: Float[Array, "records members"] | None
    train_outputs: PyTree[Float[Array, "records members n *outputs"]] | None
    test_outputs: PyTree[Float[Array, "records members n_test *outputs"]] | None
    ntk_drift: Float[Array, "records members"] | None = None

    def times(
        self,
        learning_rate: ArrayLike | Callable[..., ArrayLike],
        momentum: ArrayLike = 0.0,
    ) -> Float[Array, " records"]:
        """The times of gradient flow that the recorded steps stand for.

        **Arguments:**

        - `learning_rate`: a number, or a schedule as for Optax.
        - `momentum`: that of `optax.sgd`.

        **Returns:** [`infinitenet.flow_time`][] of `steps`.

        **Raises:** as `flow_time`.
        """
        times = flow_time(self.steps, learning_rate, momentum)
        return times.astype(self.train_loss.dtype)

    def __repr__(self) -> str:
        if is_traced(self.train_loss):
            return eqx.tree_pformat(self)
        out = f"{self.train_loss.shape[1]} networks after {self.steps[-1]} steps:"
        for name, loss in (("train", self.train_loss), ("test", self.test_loss)):
            if loss is not None:
                low, mean, high = (fn(loss[-1]) for fn in (jnp.min, jnp.mean, jnp.max))
                out += f" {name} loss {mean:.3g} (from {low:.3g} to {high:.3g}),"
        if self.ntk_drift is not None:
            out += f" NTK moved by {jnp.mean(self.ntk_drift[-1]):.2g} of its norm,"
        return f"<TrainedEnsemble of {out[:-1]}>"


class TrainingDiverged(ValueError):
    """Losses became NaN or infinite in training.

    - `step`: after how many steps.
    - `trained`: the networks that were trained together with those that diverged, at the
        last step at which all losses were finite, with the records up to there; `None` if
        there was no such step.
    - `members`: which of the ensemble these are.
    - `finished`: the networks before them, trained to the end, or `None`: see
        `members_at_once` of [`infinitenet.train_ensemble`][].
    """

    step: int
    trained: TrainedEnsemble | None
    members: range
    finished: TrainedEnsemble | None

    def __init__(
        self,
        message: str,
        step: int,
        trained: TrainedEnsemble | None,
        members: range,
        finished: TrainedEnsemble | None,
    ):
        super().__init__(message)
        self.step = step
        self.trained = trained
        self.members = members
        self.finished = finished
