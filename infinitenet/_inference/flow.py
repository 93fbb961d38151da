r"""Training by gradient flow on the mean squared error, in closed form.

The loss is $|f - y|^2 / (2 N)$ with $N$ the number of entries of $y$, all outputs
included. Time `t` is learning rate times number of steps, for small learning rates.
"""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from .._checks import (
    check_cross_kernel,
    check_kernel,
    check_not_negative,
    check_shape,
    check_targets,
    check_test_kernel,
    check_times,
)
from .._matrices import check_gram, Gram
from .gp import regularise, rounding_bound
from .solution import Prediction
from .spectral import (
    decompose,
    dot,
    INTEGRAL,
    MOVED,
    REMAINING,
    Spectrum,
    unit_rounding,
)


class GradientFlow(eqx.Module):
    """Training of a network of given kernel, made by [`infinitenet.gradient_flow`][].

    It keeps the eigendecomposition, so that further times and test sets only cost
    products with it.

    - `spectrum`: the regularised kernel, of shape `(n, n)`, and its eigendecomposition.
    - `y_train`: the targets, shape `(n, *outputs)`.
    """

    spectrum: Spectrum
    y_train: Float[Array, "n *outputs"]

    def _at_times(self, t: ArrayLike | None, fn, *shape: int) -> Float[Array, "..."]:
        """`fn(s)` for all times, reshaped to `shape`, where `s = t / N`."""
        t = check_times(t, self.y_train.dtype)
        out = jax.vmap(fn)(jnp.ravel(t) / self.y_train.size)
        return out.reshape(*t.shape, *shape)

    def _initial(self, f_0: ArrayLike | None, name: str, n: int) -> Float[Array, "..."]:
        outputs, dtype = self.y_train.shape[1:], self.y_train.dtype
        if f_0 is None:
            return jnp.zeros((n, *outputs), dtype)
        f_0 = check_targets(name, f_0, n, dtype)
        return check_shape(name, f_0, (n, *outputs), "with the outputs of `y_train`")

    def train(
        self, t: ArrayLike | None = None, f_train_0: ArrayLike | None = None
    ) -> Float[Array, "..."]:
        r"""Outputs on the training inputs: $f_0 + (I - e^{-K_r t / N}) (y - f_0)$.

        **Arguments:**

        - `t`: time, learning rate times number of steps, of any shape `(*times,)`.
            `None` or infinity for convergence.
        - `f_train_0`: outputs before training, shaped as `y_train`. `None` for zero.

        **Returns:** shape `(*times, n, *outputs)`.

        **Raises:** `ValueError` if `t` is negative or NaN, or if `f_train_0` has a
            wrong shape or dtype, or is not finite.
        """
        f_0 = self._initial(f_train_0, "f_train_0", len(self.y_train))
        error = (self.y_train - f_0).reshape(len(f_0), -1)
        move = lambda s: f_0 + self.spectrum.apply(MOVED, s, error).reshape(f_0.shape)
        return self._at_times(t, move, *f_0.shape)

    def test(
        self,
        t: ArrayLike | None,
        k_test_train: ArrayLike,
        f_train_0: ArrayLike | None = None,
        f_test_0: ArrayLike | None = None,
    ) -> Float[Array, "..."]:
        r"""Outputs on test inputs:
        $f^*_0 + K_{td} K_r^{-1} (I - e^{-K_r t / N}) (y - f_0)$.

        **Arguments:**

        - `t`: time, as for `train`.
        - `k_test_train`: the kernel, shape `(n_test, n)`.
        - `f_train_0`, `f_test_0`: outputs on training and test inputs before training,
            shapes `(n, *outputs)` and `(n_test, *outputs)`. `None` for zero.

        **Returns:** shape `(*times, n_test, *outputs)`.

        **Raises:** `ValueError` as `train`, likewise for `k_test_train` and `f_test_0`.
        """
        n, dtype = len(self.y_train), self.y_train.dtype
        k_td = check_cross_kernel("k_test_train", k_test_train, n, dtype)
        f_0 = self._initial(f_train_0, "f_train_0", n)
        f_test = self._initial(f_test_0, "f_test_0", len(k_td))
        error = (self.y_train - f_0).reshape(n, -1)
        null = self.spectrum.null_part(error)
        share = dot(k_td, null)
        noise = dot(jax.lax.stop_gradient(k_td), null)
        size = jax.lax.stop_gradient(dot(jnp.abs(k_td), jnp.abs(null)))

        def move(s):
            resolved = dot(k_td, self.spectrum.apply(INTEGRAL, s, error))
            moved = resolved + self.spectrum.null_integral(share, noise, size, s)
            return f_test + moved.reshape(f_test.shape)

        return self._at_times(t, move, *f_test.shape)

    def _weights(
        self, t: ArrayLike | None, k_test_train: ArrayLike
    ) -> Float[Array, "*times n_test n"]:
        """How the outputs of `test` depend on the errors before training."""
        n = len(self.y_train)
        k_td = check_cross_kernel("k_test_train", k_test_train, n, self.y_train.dtype)
        constant = jax.lax.stop_gradient(k_td)
        share = self.spectrum.null_part(k_td.T)
        noise = self.spectrum.null_part(constant.T)
        size = jnp.broadcast_to(jnp.linalg.norm(constant.T, axis=0), share.shape)

        def weigh(s):
            resolved = self.spectrum.apply(INTEGRAL, s, k_td.T)
            return (resolved + self.spectrum.null_integral(share, noise, size, s)).T

        return self._at_times(t, weigh, *k_td.shape)


def gradient_flow(
    ntk_train_train: ArrayLike,
    y_train: ArrayLike,
    *,
    diag_reg: ArrayLike = 0.0,
    absolute: bool = False,
) -> GradientFlow:
    r"""Gradient flow on the mean squared error, $\dot f = -K (f - y) / N$.

    With the NTK that is the training of an infinitely wide network from given initial
    outputs. Kernels may be singular: in directions of eigenvalue zero nothing moves.

    ??? cite "Reference"
        ```bibtex
        @inproceedings{jacot2018neural,
            title={Neural Tangent Kernel: Convergence and Generalization in
                   Neural Networks},
            author={Arthur Jacot and Franck Gabriel and Cl{\'e}ment Hongler},
            booktitle={Advances in Neural Information Processing Systems},
            year={2018},
        }
        ```

    **Arguments:**

    - `ntk_train_train`: the kernel of the training inputs, shape `(n, n)`.
    - `y_train`: the targets, shape `(n, *outputs)`. All outputs share the kernel. They
        are converted to the dtype of the kernel.
    - `diag_reg`: what to add to the kernel's diagonal, in units of its mean.
    - `absolute`: if true, `diag_reg` is in units of the kernel.

    **Returns:** A [`infinitenet.GradientFlow`][].

    **Raises:** as [`infinitenet.condition`][], except that the kernel may be singular.
        Negative eigenvalues are an error, with a `diag_reg` that would mend it.
    """
    k, name = ntk_train_train, "ntk_train_train"
    return _gradient_flow(name, k, y_train, diag_reg, absolute)


def _gradient_flow(
    name: str,
    k_train_train: ArrayLike,
    y_train: ArrayLike,
    diag_reg: ArrayLike,
    absolute: bool,
) -> GradientFlow:
    k = check_kernel(name, k_train_train)
    y = check_targets("y_train", y_train, len(k), k.dtype)
    return GradientFlow(decompose(name, regularise(k, diag_reg, absolute)), y)


class AbstractTrained(eqx.Module):
    """Which of the network's weights are trained."""

    @abc.abstractmethod
    def tangent_kernel(self, name: str, gram: Gram) -> tuple[str, ArrayLike]:
        """The sum over the trained weights of products of the outputs' derivatives.

        After its name, given that of the argument.
        """

    @abc.abstractmethod
    def initial_covariance(self, nngp: Array, regularised: Array) -> Array:
        """That of the training errors at initialisation, seen from the test inputs.

        **Arguments:** the NNGP kernel, and the tangent kernel with `diag_reg`.
        """


class AllLayers(AbstractTrained):
    """All weights are trained: the tangent kernel is the NTK."""

    def tangent_kernel(self, name: str, gram: Gram) -> tuple[str, ArrayLike]:
        if gram.ntk is None:
            raise ValueError(
                f"`{name}` has no NTK, which training all layers needs. Compute "
                "it too, or train the last layer alone: `trained=LastLayer()`."
            )
        return f"{name}.ntk", gram.ntk

    def initial_covariance(self, nngp: Array, regularised: Array) -> Array:
        return nngp


class LastLayer(AbstractTrained):
    """Only the last layer is trained: the tangent kernel is the NNGP kernel.

    After infinite time, that is the Bayesian posterior of the network. So `diag_reg` is
    the variance of noise on the targets, which contributes to the covariance.
    """

    def tangent_kernel(self, name: str, gram: Gram) -> tuple[str, ArrayLike]:
        return f"{name}.nngp", gram.nngp

    def initial_covariance(self, nngp: Array, regularised: Array) -> Array:
        return regularised


_all_layers = AllLayers()


class InfiniteEnsemble(eqx.Module):
    """Infinitely wide networks from all initialisations, each trained by gradient flow.

    Made by [`infinitenet.infinite_ensemble`][]. It keeps the eigendecomposition, so
    that further times and test sets only cost products with it.

    - `flow`: the training of one network, by the tangent kernel of the trained weights.
    - `nngp_train_train`: the covariance of the initial outputs, shape `(n, n)`.
    - `trained`: which weights are trained.
    """

    flow: GradientFlow
    nngp_train_train: Float[Array, "n n"]
    trained: AbstractTrained

    def predict_train(self, t: ArrayLike | None = None) -> Prediction:
        r"""On the training inputs: mean $(I - R) y$ and covariance $R K R$, where
        $R = e^{-\Theta_r t / N}$.

        **Arguments:**

        - `t`: time, as for [`infinitenet.GradientFlow.train`][].

        **Returns:** A [`infinitenet.Prediction`][], whose mean has shape
            `(*times, n, *outputs)`.

        **Raises:** `ValueError` if `t` is negative or NaN.
        """
        mean, k = self.flow.train(t), self.nngp_train_train
        remain = lambda s, v: self.flow.spectrum.apply(REMAINING, s, v)
        covary = lambda s: remain(s, remain(s, k).T)
        covariance = self.flow._at_times(t, covary, *k.shape)
        covariance = (covariance + jnp.matrix_transpose(covariance)) / 2
        # `R` is at most 1, so that rounding is that of `k`.
        tolerance = unit_rounding(len(k), k.dtype) * jnp.trace(k)
        return Prediction(mean, covariance, jnp.full(covariance.shape[:-2], tolerance))

    def predict(
        self,
        t: ArrayLike | None,
        k_test_train: Gram,
        k_test_test: ArrayLike | None = None,
    ) -> Prediction:
        r"""On test inputs: mean $A y$ and covariance
        $K_{tt} + A K_{dd} A^T - A K_{dt} - K_{td} A^T$, where
        $A = \Theta_{td} \Theta_r^{-1} (I - e^{-\Theta_r t / N})$: equations (14) and
        (15) of Lee et al. (2019), or (16) for the last layer alone.

        **Arguments:**

        - `t`: time, as for `predict_train`.
        - `k_test_train`: kernels of shape `(n_test, n)`.
        - `k_test_test`: the NNGP kernel of the test inputs, shape `(n_test, n_test)`.
            Without it, there is a mean only.

        **Returns:** A [`infinitenet.Prediction`][], whose mean has shape
            `(*times, n_test, *outputs)`.

        **Raises:** `ValueError` if `t` is negative or NaN, or if a kernel has a wrong
            shape or dtype, or entries that are not finite.
        """
        check_gram("k_test_train", k_test_train)
        _, tangent = self.trained.tangent_kernel("k_test_train", k_test_train)
        mean = self.flow.test(t, tangent)
        if k_test_test is None:
            return Prediction(mean, None)
        n, dtype = len(self.nngp_train_train), self.nngp_train_train.dtype
        k_td = check_cross_kernel("k_test_train.nngp", k_test_train.nngp, n, dtype)
        k_tt = check_test_kernel("k_test_test", k_test_test, len(k_td), dtype)
        regularised = self.flow.spectrum.k
        k_dd = self.trained.initial_covariance(self.nngp_train_train, regularised)
        a = self.flow._weights(t, tangent)

        def covary(a):
            # (A K / 2 - K_td) A^T and its transpose. This sums a joint kernel from both
            # sides, so that errors of `a` do not make it negative.
            half = dot(dot(a, k_dd) / 2 - k_td, a.T)
            bound = rounding_bound(a, jnp.diagonal(k_dd), jnp.diagonal(k_tt))
            return k_tt + half + half.T, jnp.sum(bound)

        covariance, bound = jax.vmap(covary)(a.reshape(-1, *k_td.shape))
        covariance = covariance.reshape(*a.shape[:-2], *k_tt.shape)
        return Prediction(mean, covariance, bound.reshape(a.shape[:-2]))


def infinite_ensemble(
    k_train_train: Gram,
    y_train: ArrayLike,
    *,
    trained: AbstractTrained = _all_layers,
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
    - `diag_reg`: what to add to the diagonal of the tangent kernel of the trained
        weights, in units of its mean.
    - `absolute`: if true, `diag_reg` is in units of the kernel.

    **Returns:** A [`infinitenet.InfiniteEnsemble`][].

    **Raises:** `ValueError` as [`infinitenet.gradient_flow`][].
    """
    check_gram("k_train_train", k_train_train)
    nngp = check_kernel("k_train_train.nngp", k_train_train.nngp)
    name, tangent = trained.tangent_kernel("k_train_train", k_train_train)
    flow = _gradient_flow(name, tangent, y_train, diag_reg, absolute)
    return InfiniteEnsemble(flow, nngp.astype(flow.y_train.dtype), trained)


def max_learning_rate(
    ntk_train_train: ArrayLike,
    y_size: int | None = None,
    *,
    momentum: ArrayLike = 0.0,
) -> Float[Array, ""]:
    r"""The largest learning rate for which gradient descent on the mean squared error
    converges: $2 (1 + m) N / \lambda_{max}$.

    **Arguments:**

    - `ntk_train_train`: the NTK of the training inputs, shape `(n, n)`.
    - `y_size`: the number $N$ of entries of the targets, all outputs included. `None`
        for a single output, so `n`.
    - `momentum`: $m$, of heavy-ball momentum.

    **Returns:** a scalar.

    **Raises:** `ValueError` if the argument is no kernel, if `y_size` is not a positive
        multiple of `n`, or if `momentum` is negative.
    """
    k = check_kernel("ntk_train_train", ntk_train_train)
    y_size = len(k) if y_size is None else y_size
    if y_size < 1 or y_size % len(k):
        raise ValueError(
            f"`y_size` must be a positive multiple of the {len(k)} training examples, "
            f"but it is {y_size}. It counts all entries: use `y_train.size`."
        )
    remedy = "Without it, it is 0."
    momentum = check_not_negative("momentum", momentum, k.dtype, remedy)
    return 2 * (1 + momentum) * y_size / jnp.linalg.eigvalsh(k)[-1]
