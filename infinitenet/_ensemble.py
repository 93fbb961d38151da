"""Ensembles of finite networks: drawn, trained, and compared with the infinite one.

The members of an ensemble are stacked: each array has a first axis over them, as
`eqx.filter_vmap` makes it.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array, PRNGKeyArray, PyTree

from ._custom_types import Arrays
from ._empirical.model import to_examples
from ._inference.losses import half_mse
from ._layer import AbstractLayer
from ._mesh import on_devices
from ._minibatch import Batches
from ._progress import Progress, reporting
from ._signal import Examples
from ._trained import TrainedEnsemble
from ._training import Problem
from ._training_data import check_batches, check_data, to_steps
from ._training_parts import put, to_plan
from ._training_run import train
from ._training_store import open_store
from ._weights import trainable


def draw_ensemble(
    net: AbstractLayer | Callable[[PRNGKeyArray], Any],
    key: PRNGKeyArray,
    x: Examples | None,
    n: int,
) -> Any:
    """Draws independent finite networks: `net.init`, over as many keys.

    !!! example

        ```python no-run
        inn.draw_ensemble(net, key, x[0], 100)
        # Models of other libraries are made by a function of the key.
        make = lambda key: eqx.nn.MLP(3, 1, 64, 2, key=key)
        inn.draw_ensemble(make, key, None, 100)
        make = lambda key: inn.BatchFunction(module.apply, module.init(key, x))  # Flax
        ```

    **Arguments:**

    - `net`: a network; or a function of a key that returns a model, as for
        [`infinitenet.empirical_ntk`][].
    - `key`: a random key.
    - `x`: an example (not a batch), as for [`infinitenet.AbstractLayer.init`][]. `None` if
        `net` is a function.
    - `n`: the number of networks.

    **Returns:** the networks as one, each array with a first axis of size `n`.

    **Raises:** `ValueError` if `n` is below 1, if `x` is missing, and as `net.init`.
    """
    if n < 1:
        raise ValueError(f"`n` must be at least 1 network, but it is {n}.")
    if not isinstance(net, AbstractLayer):
        return eqx.filter_vmap(net)(jr.split(key, n))
    if x is None:
        raise ValueError("`x` must be an example of the inputs of `net`, such as `x[0]`.")
    return eqx.filter_vmap(lambda key: net.init(key, x))(jr.split(key, n))


def train_ensemble(
    ensemble: Any,
    x_train: Arrays,
    y_train: PyTree,
    optimiser: optax.GradientTransformation,
    steps: int | Sequence[int] | np.ndarray,
    *,
    loss: Callable[..., Array] = half_mse,
    batches: Batches | None = None,
    x_test: Arrays | None = None,
    y_test: PyTree | None = None,
    ntk_drift: Arrays | None = None,
    keep_outputs: bool = True,
    members_at_once: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
    checkpoint: str | os.PathLike | None = None,
    save_every: float = 60.0,
    progress: Progress | bool = True,
) -> TrainedEnsemble:
    r"""Trains all networks of an ensemble, by any optimiser of Optax.

    Only weights are trained: those that [`infinitenet.trainable`][] tells, so never
    `W_std` or `b_std`.

    !!! example

        ```python
        ensemble = inn.draw_ensemble(net, key, x_train[0], 100)
        trained = inn.train_ensemble(ensemble, x_train, y_train, optax.sgd(0.1), 1000)
        trained.train_loss  # of shape (records, 100), at `trained.steps`
        ```

    **Arguments:**

    - `ensemble`: as made by [`infinitenet.draw_ensemble`][]: networks of infinitenet, other
        Equinox modules of one example, or an [`infinitenet.BatchFunction`][] or
        [`infinitenet.CoupledFunction`][]; stacked.
    - `x_train`: a batch of inputs, of shape `(n, *spatial, channels)`; or as the models
        take it: a pytree of arrays with a first axis of `n` examples.
    - `y_train`: the targets, of the shape `(n, *outputs)` of the networks' outputs. For
        another loss, what that takes: a pytree of arrays.
    - `optimiser`: any of Optax. Each network has its own state of it.
    - `steps`: the number of steps; by default about 50 of them are recorded, at equal
        distances on a logarithmic scale, the first and the last included. Or the steps to
        record, ascending, of which the last is the number of steps; 0 is before training.
    - `loss`: a function of outputs and targets of one network that returns a scalar.
    - `batches`: [`infinitenet.Batches`][], for training on some examples in each step. By
        default it is on all of them. Losses are recorded of all of them in any case.
    - `x_test`, `y_test`: likewise, to be evaluated at the recorded steps. Without
        `y_test`, only outputs are.
    - `ntk_drift`: inputs on which to compare the empirical NTK of each network with that
        at the start, at each record: $\|\Theta_t - \Theta_0\|_F / \|\Theta_0\|_F$, where
        $\Theta$ is [`infinitenet.empirical_ntk`][], the mean over outputs.
    - `keep_outputs`: whether to record outputs, not only losses. They take memory of
        `records * members * n * outputs` numbers.
    - `members_at_once`: how many networks to train at the same time; all by default. A
        smaller number takes less memory; best a divisor of the number of networks, for
        otherwise a second program is compiled for the rest.
    - `mesh`: devices, over the first axis of which the networks are spread. So the
        trained ones are returned. Their number must be a multiple of that of the devices.
        By default that of `ensemble`, if it is spread like this.
    - `checkpoint`: a file to save the state of training in. If it exists, training goes on
        from there, to the very same numbers; and if it was at the end, they are returned
        at once. A kill at any moment leaves a whole file. (On GPUs, numbers repeat with
        `XLA_FLAGS=--xla_gpu_deterministic_ops=true`.)
    - `save_every`: the seconds from one saving to the next, at least.
    - `progress`: as for [`infinitenet.gram`][].

    **Returns:** A [`infinitenet.TrainedEnsemble`][].

    **Raises:** `ValueError` if an argument has a wrong shape or dtype, or is not finite;
        if the networks have no weights yet; and if the checkpoint is of other arguments,
        with what differs, or is corrupt. [`infinitenet.TrainingDiverged`][], a
        `ValueError`, if losses become infinite: it has the step, and all that was computed
        before. Under `jax.jit` that is a `RuntimeError` at run time.

    It can be compiled and vectorised, but not be differentiated in reverse.

    ??? cite "Reference"
        Lee et al., Wide Neural Networks of Any Depth Evolve as Linear Models Under
        Gradient Descent, NeurIPS 2019: section 3, and figure 2 for `ntk_drift`.
    """
    plan = to_plan(to_steps(steps), ensemble, members_at_once, mesh)
    train_data = check_data("train", ensemble, x_train, y_train, loss)
    test_data = check_data("test", ensemble, x_test, y_test, loss)
    check_batches(batches, *train_data)
    if ntk_drift is not None:
        ntk_drift = to_examples("ntk_drift", ntk_drift, ensemble)
    functions = (_to_optimiser(optimiser), loss, batches, keep_outputs)
    with on_devices(plan.mesh), reporting(progress, "training", "steps") as report:
        ensemble = put(ensemble, plan.mesh, split=True)
        weights, rest = eqx.partition(ensemble, trainable(ensemble))
        members, where = jnp.arange(plan.n_members), (ntk_drift, plan.mesh)
        problem = Problem(rest, members, *train_data, *test_data, *functions, *where)
        store = open_store(checkpoint, save_every, problem, weights, plan)
        trained = train(problem, weights, plan, store, report)
    placed = put(trained.ensemble, plan.returned_on, split=True)
    return eqx.tree_at(lambda t: t.ensemble, trained, placed)


def _to_optimiser(
    optimiser: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    if not isinstance(optimiser, optax.GradientTransformation):
        raise ValueError(
            "`optimiser` must be an `optax.GradientTransformation`, but it is "
            f"{optimiser!r}."
        )
    return optax.with_extra_args_support(optimiser)
