r"""Training on the mean squared error, in closed form.

The loss is $|f - y|^2 / (2 N)$ with $N$ the number of entries of $y$, all outputs
included. Time `t` is learning rate times number of steps, for small learning rates.
"""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from .._checks import (
    check_finite,
    check_kernel,
    check_not_negative,
    check_shape,
    check_targets,
    guard,
)
from .joint_kernel import decompose_kernel, flatten_cross_kernel
from .spectral import decompose, dot, Spectrum
from .time import Durations, Motion, Steps, to_durations


class GradientFlow(eqx.Module):
    r"""Training of a network of given kernel, made by [`infinitenet.gradient_flow`][].

    It keeps the eigendecomposition, so that further times and test sets only cost
    products with it. With the kernel $K_r$, regularised, and weight decay $\lambda$, let
    $D = K_r + N \lambda I$.

    - `spectrum`: $D$, of shape `(n, n)`, and its eigendecomposition. For joint kernels it
        has a row for each output of each example.
    - `y_train`: the targets, shape `(n, *outputs)`.
    - `decay`: $N \lambda$, or `None` for none.
    - `joint`: the shape of the outputs, if the kernel is one over these too.
    """

    spectrum: Spectrum
    y_train: Float[Array, "n *outputs"]
    decay: Float[Array, ""] | None
    joint: tuple[int, ...] | None = eqx.field(static=True)

    def at_times(self, t: ArrayLike | Steps | None, fn: Callable, *args: Any) -> Array:
        """`fn(flow, motion, s, *args)` for the parameters `s` of all times."""
        times = to_durations(t, self.y_train.size, self.y_train.dtype)
        out = _at_times(self, times, fn, *args)
        if not isinstance(t, Steps):
            return out
        return check_finite("The outputs after training", out, _diverged)

    def _rows(self, f: Float[Array, "n *outputs"]) -> Float[Array, "rows columns"]:
        """As the kernel acts on: with one column for a joint kernel."""
        n_columns = math.prod(f.shape[1:]) if self.joint is None else 1
        return f.reshape(-1, n_columns)

    def _cross_kernel(self, k: ArrayLike) -> Float[Array, "test_rows rows"]:
        n, dtype = len(self.y_train), self.y_train.dtype
        return flatten_cross_kernel("k_test_train", k, n, self.joint, dtype)

    def _initial(self, f_0: ArrayLike | None, name: str, n: int) -> Float[Array, "..."]:
        outputs, dtype = self.y_train.shape[1:], self.y_train.dtype
        if f_0 is None:
            return jnp.zeros((n, *outputs), dtype)
        f_0 = check_targets(name, f_0, n, dtype)
        return check_shape(name, f_0, (n, *outputs), "with the outputs of `y_train`")

    def _moved(self, motion: Motion, s, v: Float[Array, "n m"]) -> Float[Array, "n m"]:
        """How much of the errors `v` is gone."""
        moved = self.spectrum.apply(motion.moved, s, v)
        if self.decay is None:
            return moved
        # `K_r = D - decay`, of which the second part keeps the weights back.
        return moved - self.decay * self.spectrum.apply(motion.integral, s, v)

    def remaining(self, motion: Motion, s, v: Float[Array, "n m"]) -> Float[Array, "n m"]:
        """How much of the errors `v` is left."""
        remaining = self.spectrum.apply(motion.remaining, s, v)
        if self.decay is None:
            return remaining
        return remaining + self.decay * self.spectrum.apply(motion.integral, s, v)

    def train(
        self, t: ArrayLike | Steps | None = None, f_train_0: ArrayLike | None = None
    ) -> Float[Array, "..."]:
        r"""Outputs on the training inputs: $f_0 + K_r D^{-1} (I - e^{-D t / N}) (y - f_0)$.

        **Arguments:**

        - `t`: time, learning rate times number of steps, of any shape `(*times,)`.
            `None` or infinity for convergence. Or [`infinitenet.Steps`][] of gradient
            descent, where a power of $I - \eta D / N$ takes the place of the exponential.
        - `f_train_0`: outputs before training, shaped as `y_train`. `None` for zero.

        **Returns:** shape `(*times, n, *outputs)`.

        **Raises:** `ValueError` if `t` is negative or NaN, if `f_train_0` has a wrong
            shape or dtype, or is not finite, and if gradient descent diverges until it
            overflows.
        """
        f_0 = self._initial(f_train_0, "f_train_0", len(self.y_train))
        return self.at_times(t, _train, f_0)

    def test(
        self,
        t: ArrayLike | Steps | None,
        k_test_train: ArrayLike,
        f_train_0: ArrayLike | None = None,
        f_test_0: ArrayLike | None = None,
    ) -> Float[Array, "..."]:
        r"""Outputs on test inputs:
        $f^*_0 + K_{td} D^{-1} (I - e^{-D t / N}) (y - f_0)$.

        **Arguments:**

        - `t`: time or steps, as for `train`.
        - `k_test_train`: the kernel, shape `(n_test, n)`, with further axes
            `(*outputs, *outputs)` for joint kernels.
        - `f_train_0`, `f_test_0`: outputs on training and test inputs before training,
            shapes `(n, *outputs)` and `(n_test, *outputs)`. `None` for zero.

        **Returns:** shape `(*times, n_test, *outputs)`.

        **Raises:** `ValueError` as `train`, likewise for `k_test_train` and `f_test_0`.
        """
        k_td = self._cross_kernel(k_test_train)
        f_0 = self._initial(f_train_0, "f_train_0", len(self.y_train))
        n_test = len(k_td) // math.prod(self.joint or ())
        f_test = self._initial(f_test_0, "f_test_0", n_test)
        return self.at_times(t, _test, k_td, f_0, f_test)

    def weights(
        self, t: ArrayLike | Steps | None, k_test_train: ArrayLike
    ) -> Float[Array, "*times n_test n"]:
        """How the outputs of `test` depend on the errors before training: the matrix
        $K_{td} D^{-1} (I - e^{-D t / N})$.

        **Arguments:**

        - `t`, `k_test_train`: as for `test`.

        **Returns:** shape `(*times, n_test, n)`.

        **Raises:** `ValueError` as `test`.
        """
        return self.at_times(t, _weights, self._cross_kernel(k_test_train))


_diverged = (
    "Gradient descent diverges at this learning rate. `max_learning_rate`, given the "
    "momentum and the weight decay, is the largest for which it converges; with Nesterov's "
    "momentum `m` that is to be divided by `1 + 2 * m`."
)


# Functions of all times are compiled as one.


@eqx.filter_jit
def _at_times(flow: GradientFlow, times: Durations, fn: Callable, *args: Any) -> Array:
    parameters = times.parameters
    if flow.decay is None and times.continuous:
        finite = jnp.isfinite(parameters)
        short = jnp.minimum(parameters, flow.spectrum.longest)
        parameters = jnp.where(finite, short, parameters)
    out = jax.vmap(lambda s: fn(flow, times.motion, s, *args))(parameters)
    return out.reshape(*times.shape, *out.shape[1:])


def _train(flow: GradientFlow, motion: Motion, s: PyTree, f_0: Array) -> Array:
    error = flow._rows(flow.y_train - f_0)
    return f_0 + flow._moved(motion, s, error).reshape(f_0.shape)


def _test(
    flow: GradientFlow, motion: Motion, s: PyTree, k_td: Array, f_0: Array, f_test: Array
) -> Array:
    spectrum, error = flow.spectrum, flow._rows(flow.y_train - f_0)
    null = spectrum.null_part(error)
    noise = dot(lax.stop_gradient(k_td), null)
    size = lax.stop_gradient(dot(jnp.abs(k_td), jnp.abs(null)))
    moved = spectrum.null_integral(dot(k_td, null), noise, size, motion.elapsed(s))
    moved = moved + dot(k_td, spectrum.apply(motion.integral, s, error))
    return f_test + moved.reshape(f_test.shape)


def _weights(flow: GradientFlow, motion: Motion, s: PyTree, k_td: Array) -> Array:
    spectrum, constant = flow.spectrum, lax.stop_gradient(k_td.T)
    share, noise = spectrum.null_part(k_td.T), spectrum.null_part(constant)
    size = jnp.broadcast_to(jnp.linalg.norm(constant, axis=0), share.shape)
    null = spectrum.null_integral(share, noise, size, motion.elapsed(s))
    return (spectrum.apply(motion.integral, s, k_td.T) + null).T


def gradient_flow(
    ntk_train_train: ArrayLike,
    y_train: ArrayLike,
    *,
    weight_decay: ArrayLike = 0.0,
    diag_reg: ArrayLike = 0.0,
    absolute: bool = False,
) -> GradientFlow:
    r"""Gradient flow on the mean squared error,
    $\dot f = -K_r (f - y) / N - \lambda (f - f_0)$.

    With the NTK that is the training of an infinitely wide network from given initial
    outputs. Kernels may be singular: in directions of eigenvalue zero nothing moves.

    Weight decay $\lambda$ pulls the weights to their initial values: the loss has the
    further term $\frac \lambda 2 |\theta - \theta_0|^2$. After infinite time that is kernel
    ridge regression of $y - f_0$, with $N \lambda$ on the diagonal (Hu et al. 2020).

    ??? cite "Reference"
        ```bibtex
        @inproceedings{jacot2018neural,
            title={Neural Tangent Kernel: Convergence and Generalization in
                   Neural Networks},
            author={Arthur Jacot and Franck Gabriel and Cl{\'e}ment Hongler},
            booktitle={Advances in Neural Information Processing Systems},
            year={2018},
        }

        @inproceedings{hu2020simple,
            title={Simple and Effective Regularization Methods for Training on Noisily
                   Labeled Data with Generalization Guarantee},
            author={Wei Hu and Zhiyuan Li and Dingli Yu},
            booktitle={International Conference on Learning Representations},
            year={2020},
        }
        ```

    **Arguments:**

    - `ntk_train_train`: the kernel of the training inputs, shape `(n, n)`. Or a joint
        kernel, of shape `(n, n, *outputs, *outputs)`, as finite networks have it.
    - `y_train`: the targets, shape `(n, *outputs)`. All outputs share the kernel, unless
        it is joint. They are converted to the dtype of the kernel.
    - `weight_decay`: $\lambda$, per unit of time.
    - `diag_reg`: what to add to the kernel's diagonal, in units of its mean: a scalar, or
        of shape `(n,)` for each example.
    - `absolute`: if true, `diag_reg` is in units of the kernel.

    **Returns:** A [`infinitenet.GradientFlow`][]. Derivatives by the kernel are right for
        repeated eigenvalues too; second derivatives for distinct ones only.

    **Raises:** as [`infinitenet.condition`][], except that the kernel may be singular.
        Negative eigenvalues are an error, with a `diag_reg` that would mend it.
    """
    k, name = ntk_train_train, "ntk_train_train"
    return flow_of(name, k, y_train, weight_decay, diag_reg, absolute)


def flow_of(
    name: str,
    k_train_train: ArrayLike,
    y_train: ArrayLike,
    weight_decay: ArrayLike,
    diag_reg: ArrayLike,
    absolute: bool,
) -> GradientFlow:
    """`gradient_flow`, with the kernel under the name of another argument."""
    spectrum, joint = decompose_kernel(name, k_train_train, diag_reg, absolute)
    n, dtype = jnp.shape(k_train_train)[0], spectrum.k.dtype
    y = check_targets("y_train", y_train, n, dtype)
    if joint is not None:
        y = check_shape("y_train", y, (n, *joint), f"with the outputs of `{name}`")
    decay = to_decay(weight_decay, dtype)
    if decay is not None:
        decay = y.size * decay
        spectrum = spectrum.shifted(decay)
    return GradientFlow(spectrum, y, decay, joint)


def to_decay(weight_decay: ArrayLike, dtype) -> Float[Array, ""] | None:
    """`None` for a literal zero, by which much is simpler."""
    if isinstance(weight_decay, float | int) and weight_decay == 0:
        return None
    return check_weight_decay(weight_decay, dtype)


def check_weight_decay(weight_decay: ArrayLike, dtype) -> Float[Array, ""]:
    """**Raises:** `ValueError` unless it is a finite number of at least zero."""
    if jnp.shape(weight_decay):
        shape = jnp.shape(weight_decay)
        raise ValueError(f"`weight_decay` must be a scalar, but it has shape {shape}.")
    remedy = "It is the rate at which weights return to their initial values."
    out = check_not_negative("weight_decay", weight_decay, dtype, remedy)
    return check_finite("weight_decay", out, remedy)


def max_learning_rate(
    ntk_train_train: ArrayLike,
    y_size: int | None = None,
    *,
    momentum: ArrayLike = 0.0,
    weight_decay: ArrayLike = 0.0,
) -> Float[Array, ""]:
    r"""The largest learning rate for which gradient descent on the mean squared error
    converges: $2 (1 + m) / (l_{max} / N + \lambda)$, of the largest eigenvalue $l_{max}$.

    **Arguments:**

    - `ntk_train_train`: the NTK of the training inputs, shape `(n, n)`.
    - `y_size`: the number $N$ of entries of the targets, all outputs included. `None`
        for a single output, so `n`.
    - `momentum`: $m$, of heavy-ball momentum. With Nesterov's, divide by $1 + 2 m$.
    - `weight_decay`: $\lambda$, as for [`infinitenet.gradient_flow`][].

    **Returns:** a scalar.

    **Raises:** `ValueError` if the argument is no kernel, if `y_size` is not a positive
        multiple of `n`, or if `momentum` is negative or not below 1.
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
    below = "`momentum` must be below 1: it is the share of the last step in the next one"
    momentum = guard(
        momentum, lambda m: m >= 1, lambda m: f"{below}, but it is {m}.", f"{below}."
    )
    largest = decompose("ntk_train_train", k).eigenvalues[-1]
    decay = to_decay(weight_decay, k.dtype)
    if decay is not None:
        largest = largest + y_size * decay
    return 2 * (1 + momentum) * y_size / largest
