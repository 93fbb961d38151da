"""How the error of kernel regression falls with the number of examples, predicted."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from .._checks import (
    check_finite,
    check_floating,
    check_kernel,
    check_not_negative,
    check_shape,
    check_targets,
    guard,
)
from .spectral import decompose, Spectral, Spectrum


class _Learning(NamedTuple):
    r"""How far modes are learnt from `n` examples.

    - `kappa`: modes of larger eigenvalue are learnt, as $\lambda / (\lambda + \kappa)$.
    - `overfitting`: $E_0$, by which the error is larger than from endless examples and a
        ridge of $\kappa$. Infinite at an interpolation threshold.
    - `train`: the root of the ratio of training to test error.
    """

    kappa: Array
    overfitting: Array
    train: Array


#
# kappa
#


class _State(NamedTuple):
    x: Array
    low: Array
    high: Array
    iterations: Array
    done: Array


# Newton's method takes about 10, bisection alone would take about 60.
_NEWTON, _MAX_ITERATIONS = 40, 120


def _root(fn: Callable[[Array], Array], low: Array, high: Array) -> Array:
    """Where `fn` falls through zero, between `low` and `high`: by Newton's method, or by
    bisection where that would leave the bracket, or takes long."""
    eps = float(jnp.finfo(low.dtype).eps)

    def step(state: _State) -> _State:
        x = state.x
        value, slope = jax.jvp(fn, (x,), (jnp.ones_like(x),))
        low = jnp.where(value > 0, x, state.low)
        high = jnp.where(value > 0, state.high, x)
        newton, middle = x - value / slope, (low + high) / 2
        inside = (newton > low) & (newton < high) & (state.iterations < _NEWTON)
        new = jnp.where(inside, newton, middle)
        tolerance = 2 * eps * (1 + jnp.abs(x))
        done = (jnp.abs(new - x) <= tolerance) | (high - low <= tolerance)
        return _State(new, low, high, state.iterations + 1, done)

    going = lambda state: ~state.done & (state.iterations < _MAX_ITERATIONS)
    none = jnp.zeros((), int)
    start = _State((low + high) / 2, low, high, none, jnp.zeros((), bool))
    return lax.while_loop(going, step, start).x


def _log_kappa(l: Float[Array, " m"], n: Array, ridge: Array, least: Array) -> Array:
    r"""The root of $\sum_i \lambda_i / (\lambda_i + \kappa) + \delta / \kappa = n$.

    In logarithms of both sides, which for power laws are linear in one another.
    """

    def excess(log_kappa):
        kappa = jnp.exp(log_kappa)
        return jnp.log(jnp.sum(l / (l + kappa)) + ridge / kappa) - jnp.log(n)

    ends = jnp.log(least), jnp.log((jnp.sum(l) + ridge) / n)
    low, high = lax.stop_gradient(ends)
    solve = lambda fn, start: _root(fn, start, high)
    # Its derivative is that of the implicit function.
    tangent_solve = lambda linear, y: y / linear(jnp.ones_like(y))
    return lax.custom_root(excess, low, solve, tangent_solve)


def _learning(l: Float[Array, " m"], n: Array, ridge: Array) -> _Learning:
    """**Arguments:** eigenvalues, of which some may be zero; and scalars."""
    positive = l > 0
    rank = jnp.sum(positive).astype(l.dtype)
    # Of the order of 1. The derivative by the scale would be zero.
    scale = lax.stop_gradient(jnp.sum(l) + ridge)
    scale = jnp.where(scale > 0, scale, 1)
    l, ridge = l / scale, ridge / scale
    # Otherwise all modes are learnt, and kappa is zero; or it is at most
    # `ridge / (n - rank)`, and below all numbers.
    tiny = float(jnp.finfo(l.dtype).tiny)
    exists = (ridge > tiny * jnp.maximum(n - rank, 0)) | (n < rank)
    ridge = jnp.where(exists, ridge, 1)
    lowest = jnp.min(jnp.where(positive, l, jnp.inf))
    # As all eigenvalues are at least `lowest`; and without them, the ridge alone.
    least = jnp.where(n < rank, lowest * (rank / n - 1), 0)
    least = jnp.maximum(jnp.where(jnp.isfinite(least), least, 0), ridge / n)
    least = jnp.maximum(least, tiny)
    kappa = jnp.exp(_log_kappa(l, n, ridge, least))
    # Without differences of numbers that are nearly equal, and without small squares.
    rest = jnp.sum(l / (l + kappa) * (kappa / (l + kappa))) + ridge / kappa
    rest = jnp.where(exists, rest, n - rank)
    overfitting = jnp.where(rest > 0, n / jnp.where(rest > 0, rest, 1), jnp.inf)
    train = jnp.where(exists, ridge / (n * kappa), 1 - rank / n)
    return _Learning(jnp.where(exists, kappa * scale, 0), overfitting, train)


def _unlearned(l: Array, kappa: Array) -> Array:
    r"""$(\kappa / (\lambda + \kappa))^2$, as a limit where both are zero."""
    total = l + kappa
    share = jnp.where(total > 0, kappa / jnp.where(total > 0, total, 1), 1)
    return jnp.square(share)


def _slope_of_unlearned(a: Array, b: Array, kappa: Array) -> Array:
    a, b = a + kappa, b + kappa
    regular = (a > 0) & (b > 0)
    a, b = jnp.where(regular, a, 1), jnp.where(regular, b, 1)
    return jnp.where(regular, -(kappa / a) * (kappa / b) * (1 / a + 1 / b), 0)


def _rate_of_unlearned(l: Array, kappa: Array, t_kappa: Array) -> Array:
    total = l + kappa
    safe = jnp.where(total > 0, total, 1)
    return t_kappa * jnp.where(total > 0, 2 * kappa * l / safe**3, 0)


# Applied to the targets, so that derivatives are right at repeated eigenvalues.
_UNLEARNED = Spectral(_unlearned, _slope_of_unlearned, _rate_of_unlearned)


def _product(overfitting: Array, error: Array) -> Array:
    """At an interpolation threshold, what can be learnt without error is."""
    finite = jnp.isfinite(overfitting)
    product = jnp.where(finite, overfitting, 1) * error
    return jnp.where(finite | (error <= 0), product, jnp.inf)


#
# Arguments
#


def _check_sizes(n: ArrayLike, dtype) -> Float[Array, "..."]:
    n = jnp.asarray(n, dtype)
    message = "`n` must be positive: it is the number of training examples."
    n = guard(
        n,
        lambda n: ~jnp.all(n > 0),
        lambda n: f"{message} But it is {jnp.min(jnp.where(n > 0, jnp.inf, n))}.",
        message,
    )
    return check_finite("n", n, "It is the number of training examples.")


def _check_below(n: Array, n_points: int) -> Array:
    message = (
        f"`n` must be below {n_points}, the number of examples in `k`: predictions are of "
        "training on some of these and testing on the others. For larger `n` give the "
        "kernel of more examples, best of three times as many: its small eigenvalues "
        "cannot be known from fewer."
    )
    is_bad = lambda n: ~jnp.all(n < n_points)
    return guard(n, is_bad, lambda n: f"{message} But it is {jnp.max(n)}.", message)


def _check_scalar(name: str, x: ArrayLike, dtype, remedy: str) -> Float[Array, ""]:
    if jnp.shape(x):
        raise ValueError(f"`{name}` must be a scalar, but its shape is {jnp.shape(x)}.")
    return check_finite(name, check_not_negative(name, x, dtype, remedy), remedy)


_noise_remedy = "It is the standard deviation of noise on the targets."


# Compiled as one, as the solver's loop would be compiled anew at each call.


@jax.jit
def _of_spectrum(
    l: Float[Array, " m"],
    power: Float[Array, " m"],
    n: Float[Array, "..."],
    ridge: Float[Array, ""],
    noise_std: Float[Array, ""],
) -> Float[Array, "..."]:
    def at(n):
        learning = _learning(l, n, ridge)
        error = jnp.sum(_unlearned(l, learning.kappa) * power) + jnp.square(noise_std)
        return _product(learning.overfitting, error)

    return jax.vmap(at)(jnp.ravel(n)).reshape(n.shape)


@jax.jit
def _of_matrix(
    spectrum: Spectrum,
    y: Float[Array, "n_points outputs"],
    n: Float[Array, "..."],
    ridge: Float[Array, ""],
    noise_std: Float[Array, ""],
) -> Float[Array, "..."]:
    n_points, l = len(y), spectrum.eigenvalues / len(y)

    def at(n):
        learning = _learning(l, n, ridge)
        rest = spectrum.apply(_UNLEARNED, learning.kappa * n_points, y)
        held_out = 1 - n / n_points * (1 - jnp.square(learning.train))
        error = jnp.sum(y * rest) / (y.size * held_out) + jnp.square(noise_std)
        return _product(learning.overfitting, error)

    return jax.vmap(at)(jnp.ravel(n)).reshape(n.shape)


#
# Public functions
#


def learning_curve_of_spectrum(
    eigenvalues: ArrayLike,
    power: ArrayLike,
    n: ArrayLike,
    *,
    ridge: ArrayLike = 0.0,
    noise_std: ArrayLike = 0.0,
) -> Float[Array, "..."]:
    r"""The expected error of kernel regression, from the eigenvalues of the kernel as an
    integral operator.

    $$
    E = E_0 \Big( \sum_i (1 - L_i)^2 v_i^2 + \sigma^2 \Big), \quad
    L_i = \frac{\lambda_i}{\lambda_i + \kappa}, \quad E_0 = \frac{n}{n - \sum_i L_i^2},
    \quad \sum_i L_i + \frac{\delta}{\kappa} = n,
    $$

    for kernels $K(x, x') = \sum_i \lambda_i \phi_i(x) \phi_i(x')$ and targets
    $\sum_i v_i \phi_i(x)$ of orthonormal $\phi_i$, fitted to noisy targets at $n$ random
    inputs by $K + \delta I$. It is exact for large $n$ and Gaussian features, and close
    for others. It is the mean squared error on new noisy targets: subtract $\sigma^2$ for
    that on the function itself.

    ??? cite "Reference"
        Bordelon, Canatar & Pehlevan, Spectrum Dependent Learning Curves in Kernel
        Regression and Wide Neural Networks, ICML 2020.
        Simon, Dickens, Karkada & DeWeese, The Eigenlearning Framework: A Conservation Law
        Perspective on Kernel Ridge Regression and Wide Neural Networks, TMLR 2023.

    **Arguments:**

    - `eigenvalues`: $\lambda_i$, each as often as it occurs, of shape `(m,)`. If there
        are endlessly many, leave out small ones and add their sum to `ridge`.
    - `power`: $v_i^2$, of shape `(m,)`. Of several outputs, the mean.
    - `n`: numbers of training examples, of any shape. They need not be whole.
    - `ridge`: $\delta$, in the units of the kernel, a scalar.
    - `noise_std`: $\sigma$, in the units of the targets, a scalar.

    **Returns:** mean squared errors, shaped as `n`: infinity where, without ridge, there
        are as many examples as modes, and noise.

    **Raises:** `ValueError` if an argument has a wrong shape, is not finite or is
        negative, or if an `n` is not positive.
    """
    remedy = "Give numbers such as `1.0`."
    l = check_floating("eigenvalues", eigenvalues, remedy)
    if l.ndim != 1 or not l.size:
        raise ValueError(f"`eigenvalues` must have shape (m,), but it has {l.shape}.")
    l = check_not_negative("eigenvalues", l, l.dtype, "Leave out those of rounding.")
    l = check_finite("eigenvalues", l, "They are of a kernel of finite trace.")
    power = check_shape("power", jnp.asarray(power, l.dtype), l.shape, "as `eigenvalues`")
    power = check_not_negative("power", power, l.dtype, "It is of squared coefficients.")
    power = check_finite("power", power, "It is of squared coefficients.")
    n = _check_sizes(n, l.dtype)
    remedy = "It is added to the diagonal of kernel matrices."
    ridge = _check_scalar("ridge", ridge, l.dtype, remedy)
    noise_std = _check_scalar("noise_std", noise_std, l.dtype, _noise_remedy)
    return _of_spectrum(l, power, n, ridge, noise_std)


def learning_curve(
    k: ArrayLike,
    y: ArrayLike,
    n: ArrayLike,
    *,
    diag_reg: ArrayLike = 0.0,
    absolute: bool = False,
    noise_std: ArrayLike = 0.0,
) -> Float[Array, "..."]:
    r"""The expected test error of kernel regression on `n` of the given examples.

    It is that of [`infinitenet.learning_curve_of_spectrum`][], of eigenvalues
    $\lambda_i / N$ and powers $|u_i^T y|^2 / N$, where $\lambda_i$ and $u_i$ are those of
    the kernel of all $N$ examples. This is the error on all of them, of which a share
    $n / N$ was trained on, with errors smaller by a factor of
    $c^2 = (\delta / n \kappa)^2$. Without these it is larger by a factor of
    $1 / (1 - (1 - c^2) n / N)$, which is included: so one decomposition predicts the test
    error at all sizes, as if by training on random subsets. Without regularisation, the
    limit $n \to N$ is generalised cross-validation.

    Features of a kernel are not Gaussian, and of small eigenvalues those of the examples
    differ from those of the kernel. Beside errors measured on random subsets of digits and
    of normal inputs in 2 and 4 dimensions, with noise or `diag_reg`, predictions were
    within 20 %, mostly too low. With neither, for a kernel that is not smooth, they were
    too low by a sixth at a sixth of the examples, and by half at half of them. Noise that
    is added by `noise_std` counts too much beyond a third, without `diag_reg`.

    !!! example

        ```python
        k = inn.gram(net, x).ntk
        n = jnp.asarray([30, 100, 300])
        error = inn.learning_curve(k, y, n, diag_reg=1e-3)
        ```

    **Arguments:**

    - `k`: the kernel of some inputs with themselves, shape `(N, N)`.
    - `y`: the targets there, of shape `(N, *outputs)`, with their noise if they have some.
    - `n`: numbers of training examples, of any shape, below `N`. They need not be whole.
    - `diag_reg`: what is added to the diagonal of the kernel of the `n` examples, in units
        of its mean.
    - `absolute`: if true, `diag_reg` is in units of the kernel.
    - `noise_std`: the standard deviation of noise that is added to the targets of
        training and of test, beside what `y` has already. In the units of `y`.

    **Returns:** mean squared errors, the mean over outputs too, shaped as `n`. Without
        regularisation it is infinity where `n` is the rank of the kernel, unless the
        targets are in its span. It may be differentiated, by the kernel too.

    **Raises:** `ValueError` if an argument has a wrong shape or dtype, if it has entries
        that are not finite, if the kernel is not symmetric or has negative eigenvalues,
        if an `n` is not positive, or not below `N`.
    """
    k = check_kernel("k", k)
    y = check_targets("y", y, len(k), k.dtype)
    n = _check_below(_check_sizes(n, k.dtype), len(k))
    remedy = "It is added to the kernel's diagonal, as the variance of noise would be."
    ridge = _check_scalar("diag_reg", diag_reg, k.dtype, remedy)
    ridge = ridge if absolute else ridge * jnp.mean(jnp.diagonal(k))
    noise_std = _check_scalar("noise_std", noise_std, k.dtype, _noise_remedy)
    return _of_matrix(decompose("k", k), y.reshape(len(k), -1), n, ridge, noise_std)
