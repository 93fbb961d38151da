"""Ensembles of infinitely wide networks, trained on the mean squared error."""

import abc
from collections.abc import Callable

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from .._checks import (
    check_cross_kernel,
    check_kernel,
    check_shape,
    check_test_diagonal,
    check_test_kernel,
)
from .._matrices import check_gram, Gram, GramDiagonal
from .._tracing import is_traced
from .cholesky import add_noise
from .flow import flow_of, GradientFlow
from .gp import rounding_bound
from .solution import Prediction
from .spectral import dot, unit_rounding
from .time import Motion, Steps


class AbstractTrained(eqx.Module):
    """Which of the network's weights are trained."""

    @abc.abstractmethod
    def tangent_kernel(self, name: str, gram: Gram | GramDiagonal) -> tuple[str, ArrayLike]:
        """The sum over the trained weights of products of the outputs' derivatives.

        After its name, given that of the argument.
        """

    @abc.abstractmethod
    def initial_covariance(self, nngp: Array, flow: GradientFlow) -> Float[Array, "n n"]:
        """That of the training errors at initialisation, seen from the test inputs."""

    @abc.abstractmethod
    def rotated_covariance(self, nngp: Array, flow: GradientFlow) -> Float[Array, "..."]:
        """The same in the basis of eigenvectors: a matrix, or the diagonal of one."""


class AllLayers(AbstractTrained):
    """All weights are trained: the tangent kernel is the NTK."""

    def tangent_kernel(self, name: str, gram: Gram | GramDiagonal) -> tuple[str, ArrayLike]:
        if gram.ntk is None:
            raise ValueError(
                f"`{name}` has no NTK, which training all layers needs. Compute "
                "it too, or train the last layer alone: `trained=LastLayer()`."
            )
        return f"{name}.ntk", gram.ntk

    def initial_covariance(self, nngp: Array, flow: GradientFlow) -> Float[Array, "n n"]:
        return nngp

    def rotated_covariance(self, nngp: Array, flow: GradientFlow) -> Float[Array, "..."]:
        return _rotate(nngp, flow.spectrum.eigenvectors)


class LastLayer(AbstractTrained):
    """Only the last layer is trained: the tangent kernel is the NNGP kernel.

    After infinite time, that is the Bayesian posterior of the network. So `diag_reg` is
    the variance of noise on the targets, which contributes to the covariance.
    """

    def tangent_kernel(self, name: str, gram: Gram | GramDiagonal) -> tuple[str, ArrayLike]:
        return f"{name}.nngp", gram.nngp

    def initial_covariance(self, nngp: Array, flow: GradientFlow) -> Float[Array, "n n"]:
        k = flow.spectrum.k
        return k if flow.decay is None else add_noise(k, -flow.decay)

    def rotated_covariance(self, nngp: Array, flow: GradientFlow) -> Float[Array, "..."]:
        l = flow.spectrum.eigenvalues
        return l if flow.decay is None else l - flow.decay


_all_layers = AllLayers()


def check_trained(trained: object) -> None:
    """**Raises:** `ValueError` for anything but instances of `AbstractTrained`."""
    if not isinstance(trained, AbstractTrained):
        raise ValueError(
            "`trained` must be `AllLayers()` or `LastLayer()`, an instance, but it is "
            f"{trained!r}."
        )


class InfiniteEnsemble(eqx.Module):
    """Infinitely wide networks from all initialisations, each trained in the same way.

    Made by [`infinitenet.infinite_ensemble`][]. It keeps the eigendecomposition, so
    that further times and test sets only cost products with it.

    - `flow`: the training of one network, by the tangent kernel of the trained weights.
    - `nngp_train_train`: the covariance of the initial outputs, shape `(n, n)`.
    - `trained`: which weights are trained.
    """

    flow: GradientFlow
    nngp_train_train: Float[Array, "n n"]
    trained: AbstractTrained

    def predict_train(self, t: ArrayLike | Steps | None = None) -> Prediction:
        r"""On the training inputs: mean $(I - R) y$ and covariance $R K R$, where
        $R = e^{-\Theta_r t / N}$ (without weight decay).

        **Arguments:**

        - `t`: time or steps, as for [`infinitenet.GradientFlow.train`][].

        **Returns:** A [`infinitenet.Prediction`][], whose mean has shape
            `(*times, n, *outputs)`.

        **Raises:** `ValueError` if `t` is negative or NaN.
        """
        mean, k = self.flow.train(t), self.nngp_train_train
        covariance = self.flow.at_times(t, _train_covariance, k)
        # `R` is at most 1, so that rounding is that of `k`.
        tolerance = unit_rounding(len(k), k.dtype) * jnp.trace(k)
        return Prediction(mean, covariance, jnp.full(covariance.shape[:-2], tolerance))

    def predict(
        self,
        t: ArrayLike | Steps | None,
        k_test_train: Gram,
        k_test_test: ArrayLike | None = None,
    ) -> Prediction:
        r"""On test inputs: mean $A y$ and covariance
        $K_{tt} + A K_{dd} A^T - A K_{dt} - K_{td} A^T$, where
        $A = \Theta_{td} \Theta_r^{-1} (I - e^{-\Theta_r t / N})$: equations (14) and
        (15) of Lee et al. (2019), or (16) for the last layer alone.

        **Arguments:**

        - `t`: time or steps, as for `predict_train`.
        - `k_test_train`: kernels of shape `(n_test, n)`.
        - `k_test_test`: the NNGP kernel of the test inputs, shape `(n_test, n_test)`, for
            the covariance. Its diagonal, of shape `(n_test,)`, for variances only. `None`
            for a mean only.

        **Returns:** A [`infinitenet.Prediction`][], whose mean has shape
            `(*times, n_test, *outputs)`.

        **Raises:** `ValueError` if `t` is negative or NaN, or if a kernel has a wrong
            shape or dtype, or entries that are not finite.
        """
        check_gram("k_test_train", k_test_train)
        _, tangent = self.trained.tangent_kernel("k_test_train", k_test_train)
        mean = self.flow.test(t, tangent)
        if k_test_test is None:
            return Prediction(mean)
        n, dtype = len(self.nngp_train_train), self.nngp_train_train.dtype
        k_td = check_cross_kernel("k_test_train.nngp", k_test_train.nngp, n, dtype)
        check_shape(
            "k_test_train.nngp", k_td, jnp.shape(tangent), "as the other kernel has"
        )
        only_variances = jnp.ndim(k_test_test) == 1
        check = check_test_diagonal if only_variances else check_test_kernel
        k_tt = check("k_test_test", k_test_test, len(k_td), dtype)
        a, k_dd, k_td = self._joint(t, jnp.asarray(tangent, dtype), k_td)
        fn = _variance if only_variances else _covariance
        spread, bound = _spread(fn, a, k_dd, k_td, k_tt)
        if only_variances:
            return Prediction(mean, None, bound, spread)
        return Prediction(mean, spread, bound)

    def _joint(
        self, t: ArrayLike | Steps | None, tangent: Array, k_td: Float[Array, "n_test n"]
    ) -> tuple[Array, Array, Array]:
        """The weights $A$, and the initial covariances of training outputs with
        themselves and with test outputs.

        All of them in the basis of eigenvectors, where each time costs half as much, if
        that is known to be right: eigenvectors have no derivatives.
        """
        flow, nngp = self.flow, self.nngp_train_train
        known = not is_traced((t, tangent, k_td, nngp, flow))
        if known and jnp.min(flow.spectrum.eigenvalues) > 0:
            k_dd = self.trained.rotated_covariance(nngp, flow)
            u = flow.spectrum.eigenvectors
            tangent, k_td = dot(tangent, u), dot(k_td, u)
            return flow.at_times(t, _rotated_weights, tangent), k_dd, k_td
        k_dd = self.trained.initial_covariance(nngp, flow)
        return flow.weights(t, tangent), k_dd, k_td


def _train_covariance(flow: GradientFlow, motion: Motion, s: PyTree, k: Array) -> Array:
    covariance = flow.remaining(motion, s, flow.remaining(motion, s, k).T)
    return (covariance + covariance.T) / 2


@jax.jit
def _rotate(k: Float[Array, "n n"], u: Float[Array, "n n"]) -> Float[Array, "n n"]:
    k = dot(u.T, dot(k, u))
    return (k + k.T) / 2


def _rotated_weights(flow: GradientFlow, motion: Motion, s: PyTree, k: Array) -> Array:
    return k * motion.integral.value(flow.spectrum.eigenvalues, s)[None]


@eqx.filter_jit
def _spread(
    fn: Callable, a: Float[Array, "*times n_test n"], *kernels: Array
) -> tuple[Array, Float[Array, "*times"]]:
    """Covariances or variances at all times, and bounds on their rounding."""
    times = a.shape[:-2]
    # One after the other: what belongs to one time stays in the cache.
    spread, bound = lax.map(lambda a: fn(a, *kernels), a.reshape(-1, *a.shape[-2:]))
    return spread.reshape(*times, *spread.shape[1:]), bound.reshape(times)


# Of f_t - A f_d, given the covariances of all f, and the bounds on their rounding. That of
# f_d may be given by its diagonal.


def _covariance(
    a: Float[Array, "n_test n"],
    k_dd: Float[Array, "..."],
    k_td: Float[Array, "n_test n"],
    k_tt: Float[Array, "n_test n_test"],
) -> tuple[Float[Array, "n_test n_test"], Float[Array, ""]]:
    # (A K / 2 - K_td) A^T and its transpose. This sums a joint kernel from both sides, so
    # that errors of `a` do not make it negative.
    half = dot(_half(a, k_dd) - k_td, a.T)
    bound = rounding_bound(a, _diagonal(k_dd), jnp.diagonal(k_tt))
    return k_tt + half + half.T, jnp.sum(bound)


def _variance(
    a: Float[Array, "n_test n"],
    k_dd: Float[Array, "..."],
    k_td: Float[Array, "n_test n"],
    k_tt: Float[Array, " n_test"],
) -> tuple[Float[Array, " n_test"], Float[Array, ""]]:
    variance = k_tt + 2 * jnp.sum((_half(a, k_dd) - k_td) * a, axis=1)
    return variance, jnp.max(rounding_bound(a, _diagonal(k_dd), k_tt))


def _diagonal(k: Float[Array, "..."]) -> Float[Array, " n"]:
    return k if k.ndim == 1 else jnp.diagonal(k)


# Blocks of columns of a triangle, of which the zeros are left out.
_N_BLOCKS, _SMALL = 8, 512


def _half(a: Float[Array, "n_test n"], k: Float[Array, "..."]) -> Float[Array, "n_test n"]:
    """`h` of which `h a^T` and its transpose sum to `a k a^T`: from a triangle of `k`."""
    if k.ndim == 1:
        return a * (k / 2)[None]
    n = len(k)
    if n <= _SMALL:
        return dot(a, k / 2)
    k = jnp.tril(k) - jnp.diag(jnp.diagonal(k) / 2)
    starts = range(0, n, -(-n // _N_BLOCKS))
    stops = [*starts[1:], n]
    columns = [dot(a[:, i:], k[i:, i:j]) for i, j in zip(starts, stops, strict=True)]
    return jnp.concatenate(columns, axis=1)


def infinite_ensemble(
    k_train_train: Gram,
    y_train: ArrayLike,
    *,
    trained: AbstractTrained = _all_layers,
    weight_decay: ArrayLike = 0.0,
    diag_reg: ArrayLike = 0.0,
    absolute: bool = False,
) -> InfiniteEnsemble:
    r"""The distribution over initialisations of trained networks of infinite width.

    ??? cite "Reference"
        ```bibtex
        @inproceedings{lee2019wide,
            title={Wide Neural Networks of Any Depth Evolve as Linear Models},
            author={Jaehoon Lee and Lechao Xiao and Samuel S. Schoenholz and Yasaman Bahri
                    and Roman Novak and Jascha Sohl-Dickstein and Jeffrey Pennington},
            booktitle={Advances in Neural Information Processing Systems},
            year={2019},
        }
        ```

    **Arguments:**

    - `k_train_train`: kernels of the training inputs, of shape `(n, n)`.
    - `y_train`: the targets, shape `(n, *outputs)`.
    - `trained`: [`infinitenet.AllLayers`][] or [`infinitenet.LastLayer`][].
    - `weight_decay`: towards the initial weights, as for [`infinitenet.gradient_flow`][].
    - `diag_reg`: what to add to the diagonal of the tangent kernel of the trained
        weights, in units of its mean: a scalar, or of shape `(n,)` for each example.
    - `absolute`: if true, `diag_reg` is in units of the kernel.

    **Returns:** A [`infinitenet.InfiniteEnsemble`][]. Derivatives by kernels are right for
        repeated eigenvalues too; second derivatives for distinct ones only.

    **Raises:** `ValueError` as [`infinitenet.gradient_flow`][].
    """
    check_gram("k_train_train", k_train_train)
    check_trained(trained)
    nngp = check_kernel("k_train_train.nngp", k_train_train.nngp)
    name, tangent = trained.tangent_kernel("k_train_train", k_train_train)
    check_shape(name, jnp.asarray(tangent), nngp.shape, "as `k_train_train.nngp` has")
    flow = flow_of(name, tangent, y_train, weight_decay, diag_reg, absolute)
    return InfiniteEnsemble(flow, nngp.astype(flow.y_train.dtype), trained)
