"""Inference for a network and data: kernels are computed as they are needed."""

import equinox as eqx
from jax.typing import ArrayLike

from .._batch import to_batch
from .._custom_types import Arrays
from .._gram import gram, gram_diagonal
from .._layer import AbstractLayer
from .._matrices import Gram
from .._progress import Progress
from .gp import condition, Posterior
from .infinite_ensemble import (
    AbstractTrained,
    AllLayers,
    check_trained,
    infinite_ensemble,
    InfiniteEnsemble,
    LastLayer,
)
from .solution import Prediction
from .time import Steps


class Computation(eqx.Module):
    """How kernels are computed: see [`infinitenet.gram`][]."""

    ntk: bool = eqx.field(static=True)
    memory: int | None = eqx.field(static=True)
    progress: Progress | bool = eqx.field(static=True)

    def gram(self, net: AbstractLayer, x1: Arrays, x2: Arrays | None = None) -> Gram:
        options = {"memory": self.memory, "progress": self.progress}
        return gram(net, x1, x2, ntk=self.ntk, **options)


class NetworkPosterior(eqx.Module):
    """An infinitely wide network as a Gaussian process, given training data. Made by
    [`infinitenet.network_posterior`][].

    - `net`: the network.
    - `x_train`: the training inputs.
    - `posterior`: of the kernel, with its factor.
    - `trained`: which kernel it is.
    """

    net: AbstractLayer
    x_train: Arrays
    posterior: Posterior
    trained: AbstractTrained
    computation: Computation

    def _kernel(self, x1: Arrays, x2: Arrays | None = None) -> ArrayLike:
        k = self.computation.gram(self.net, x1, x2)
        return self.trained.tangent_kernel("kernel", k)[1]

    def predict(self, x_test: Arrays) -> Prediction:
        """The posterior mean and variances, in memory of order `n * n_test`.

        **Arguments:**

        - `x_test`: a batch of inputs, of shape `(n_test, *spatial, channels)`.

        **Returns:** A [`infinitenet.Prediction`][], whose mean has shape
            `(n_test, *outputs)`.

        **Raises:** `ValueError` as [`infinitenet.gram`][].
        """
        x_test, computation = to_batch("x_test", x_test), self.computation
        memory, ntk = computation.memory, computation.ntk
        k = gram_diagonal(self.net, x_test, memory=memory, ntk=ntk)
        _, variance = self.trained.tangent_kernel("kernel", k)
        return self.posterior.predict(self._kernel(x_test, self.x_train), variance)

    def predict_jointly(self, x_test: Arrays) -> Prediction:
        """As `predict`, with the covariance, which can be sampled from."""
        x_test = to_batch("x_test", x_test)
        k_test_train = self._kernel(x_test, self.x_train)
        return self.posterior.predict(k_test_train, self._kernel(x_test))


_last_layer, _all_layers = LastLayer(), AllLayers()


def network_posterior(
    net: AbstractLayer,
    x_train: Arrays,
    y_train: ArrayLike,
    *,
    trained: AbstractTrained = _last_layer,
    diag_reg: ArrayLike = 0.0,
    absolute: bool = False,
    memory: int | None = None,
    progress: Progress | bool = True,
) -> NetworkPosterior:
    """The Bayesian posterior of an infinitely wide network.

    [`infinitenet.condition`][] on the kernel that [`infinitenet.gram`][] computes.

    !!! example

        ```python
        bayes = inn.network_posterior(net, x_train, y_train, diag_reg=0.1)
        p = bayes.predict(x_test)
        p.mean, p.std
        ```

    **Arguments:**

    - `net`: a network, before or after `init`.
    - `x_train`: a batch of inputs, of shape `(n, *spatial, channels)`.
    - `y_train`: the targets, shape `(n, *outputs)`.
    - `trained`: [`infinitenet.LastLayer`][] for the NNGP kernel, which is that of the
        Bayesian network, or [`infinitenet.AllLayers`][] for the NTK (NTK-GP).
    - `diag_reg`, `absolute`: as for `condition`.
    - `memory`, `progress`: as for `gram`.

    **Returns:** A [`infinitenet.NetworkPosterior`][].

    **Raises:** `ValueError` as `condition` and `gram`.
    """
    check_trained(trained)
    x_train = to_batch("x_train", x_train)
    computation = Computation(not isinstance(trained, LastLayer), memory, progress)
    k = computation.gram(net, x_train)
    _, k = trained.tangent_kernel("kernel", k)
    posterior = condition(k, y_train, diag_reg=diag_reg, absolute=absolute)
    return NetworkPosterior(net, x_train, posterior, trained, computation)


class NetworkEnsemble(eqx.Module):
    """Infinitely wide networks from all initialisations, trained on data. Made by
    [`infinitenet.network_ensemble`][].

    - `net`: the network.
    - `x_train`: the training inputs.
    - `ensemble`: an [`infinitenet.InfiniteEnsemble`][] of its kernels.
    """

    net: AbstractLayer
    x_train: Arrays
    ensemble: InfiniteEnsemble
    computation: Computation

    def predict_train(self, t: ArrayLike | Steps | None = None) -> Prediction:
        """On the training inputs: see [`infinitenet.InfiniteEnsemble.predict_train`][]."""
        return self.ensemble.predict_train(t)

    def predict(self, t: ArrayLike | Steps | None, x_test: Arrays) -> Prediction:
        """Mean and variances on test inputs, in memory of order `n * n_test * times`.

        **Arguments:**

        - `t`: time, learning rate times number of steps, of any shape `(*times,)`.
            `None` or infinity for convergence. Or [`infinitenet.Steps`][].
        - `x_test`: a batch of inputs, of shape `(n_test, *spatial, channels)`.

        **Returns:** A [`infinitenet.Prediction`][], whose mean has shape
            `(*times, n_test, *outputs)`.

        **Raises:** `ValueError` as [`infinitenet.InfiniteEnsemble.predict`][] and
            [`infinitenet.gram`][].
        """
        x_test = to_batch("x_test", x_test)
        k_test_train = self.computation.gram(self.net, x_test, self.x_train)
        memory = self.computation.memory
        k_test_test = gram_diagonal(self.net, x_test, ntk=False, memory=memory).nngp
        return self.ensemble.predict(t, k_test_train, k_test_test)

    def predict_jointly(self, t: ArrayLike | Steps | None, x_test: Arrays) -> Prediction:
        """As `predict`, with the covariance, which can be sampled from."""
        x_test = to_batch("x_test", x_test)
        k_test_train = self.computation.gram(self.net, x_test, self.x_train)
        memory, progress = self.computation.memory, self.computation.progress
        k = gram(self.net, x_test, ntk=False, memory=memory, progress=progress)
        return self.ensemble.predict(t, k_test_train, k.nngp)


def network_ensemble(
    net: AbstractLayer,
    x_train: Arrays,
    y_train: ArrayLike,
    *,
    trained: AbstractTrained = _all_layers,
    weight_decay: ArrayLike = 0.0,
    diag_reg: ArrayLike = 0.0,
    absolute: bool = False,
    memory: int | None = None,
    progress: Progress | bool = True,
) -> NetworkEnsemble:
    """The distribution of infinitely wide networks that are trained on data by gradient
    descent on the mean squared error.

    [`infinitenet.infinite_ensemble`][] of the kernels that [`infinitenet.gram`][] computes.

    !!! example

        ```python
        ensemble = inn.network_ensemble(net, x_train, y_train)
        ensemble.predict(jnp.array([1.0, 10.0, 100.0]), x_test).std  # (3, n_test)
        ```

    **Arguments:**

    - `net`: a network, before or after `init`.
    - `x_train`: a batch of inputs, of shape `(n, *spatial, channels)`.
    - `y_train`: the targets, shape `(n, *outputs)`.
    - `trained`, `weight_decay`, `diag_reg`, `absolute`: as for `infinite_ensemble`.
    - `memory`, `progress`: as for `gram`.

    **Returns:** A [`infinitenet.NetworkEnsemble`][].

    **Raises:** `ValueError` as `infinite_ensemble` and `gram`.
    """
    check_trained(trained)
    x_train = to_batch("x_train", x_train)
    computation = Computation(not isinstance(trained, LastLayer), memory, progress)
    ensemble = infinite_ensemble(
        computation.gram(net, x_train),
        y_train,
        trained=trained,
        weight_decay=weight_decay,
        diag_reg=diag_reg,
        absolute=absolute,
    )
    return NetworkEnsemble(net, x_train, ensemble, computation)
