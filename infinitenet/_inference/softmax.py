"""Probabilities of classes, from Gaussian predictions of outputs."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from .._checks import check_finite
from .gumbel import expected_softmax
from .solution import Prediction


class ClassProbabilities(eqx.Module):
    """Probabilities, with what is known of their errors.

    - `probabilities`: shape `(*times, n_test, classes)`.
    - `error`: of the same shape. An estimate of the absolute error of quadrature, or the
        standard error if they are averages of samples.
    """

    probabilities: Float[Array, "..."]
    error: Float[Array, "..."]


def to_probabilities(
    mean: Float[Array, "*batch classes"], variance: Float[Array, "*batch classes"]
) -> ClassProbabilities:
    """The expected softmax of independent outputs, of which the variances may differ.

    **Arguments:** finite means, and variances, which must not be negative.
    """
    classes = mean.shape[-1]
    out = expected_softmax(mean.reshape(-1, classes), variance.reshape(-1, classes))
    return ClassProbabilities(*(x.reshape(mean.shape) for x in out))


def _moments(prediction: Prediction) -> tuple[Array, Array]:
    """Means, and variances of the same shape."""
    if not isinstance(prediction, Prediction):
        raise ValueError(
            "`prediction` must be a `Prediction`, as `predict` returns, but it is a "
            f"{type(prediction).__name__}. For logits without variances, use "
            "`jax.nn.softmax`."
        )
    if prediction.mean.size == 0:
        raise ValueError(
            f"`prediction` has a mean of shape {prediction.mean.shape}: it needs at least "
            "one test input, and one output."
        )
    mean, variance = prediction.mean, prediction.variance
    variance = variance.reshape(*variance.shape, *(1,) * (mean.ndim - variance.ndim))
    remedy = "Look for NaN or infinity in the kernels and targets."
    mean = check_finite("prediction.mean", mean, remedy)
    variance = check_finite("prediction.variance", variance, remedy)
    return mean, jnp.broadcast_to(variance, mean.shape).astype(mean.dtype)


def softmax_probabilities(prediction: Prediction) -> ClassProbabilities:
    r"""The probabilities of classes whose logits are the outputs,
    $p_c = E[e^{f_c} / \sum_j e^{f_j}]$.

    By quadrature in one dimension, for any number of classes. With independent Gumbel
    variables $G_j$, softmax is the distribution of
    $\operatorname{argmax}_j (f_j + G_j)$, so that

    $$
    p_c = \int H_c'(u) \prod_{j \ne c} H_j(u)\, du, \qquad
    H_j(u) = E_\varepsilon\bigl[\exp(-e^{-(u - \mu_j - \sigma_j \varepsilon)})\bigr].
    $$

    In float64 the error is about 1e-10 at most, for standard deviations up to 100 and up to
    a thousand classes, and `error` has an estimate of it. Derivatives are those of the
    expectation, also by variances of zero.

    Outputs are taken for logits. Regression on one-hot targets does not make them that:
    for labels there is [`infinitenet.dirichlet_classifier`][].

    !!! example

        ```python
        posterior = inn.condition(k_train_train, y_train, diag_reg=1e-2)
        prediction = posterior.predict(k_test_train, k_test_test_diagonal)
        inn.softmax_probabilities(prediction).probabilities
        ```

    ??? cite "Reference"
        ```bibtex
        @article{yellott1977relationship,
            title={The Relationship Between {L}uce's Choice Axiom, {T}hurstone's Theory of
                   Comparative Judgment, and the Double Exponential Distribution},
            author={John I. Yellott},
            journal={Journal of Mathematical Psychology},
            volume={15},
            number={2},
            pages={109--144},
            year={1977},
        }
        ```

    **Arguments:**

    - `prediction`: with variances, and with one axis of outputs: the classes.

    **Returns:** A [`infinitenet.ClassProbabilities`][], of the shape of the mean,
        `(*times, n_test, classes)`. Probabilities sum to 1 up to rounding.

    **Raises:** `ValueError` if outputs have another number of axes, if there is only
        one class, if the prediction has a mean only, or if it is not finite.
    """
    mean, variance = _moments(prediction)
    outputs = mean.shape[prediction.variance.ndim :]
    if len(outputs) != 1 or outputs[0] < 2:
        raise ValueError(
            "`prediction` must have outputs of shape (classes,) with at least 2 classes, "
            f"but they have shape {outputs}. For a single output, use "
            "`sigmoid_probabilities`; join several axes of classes by `reshape`."
        )
    return to_probabilities(mean, variance)


def sigmoid_probabilities(prediction: Prediction) -> ClassProbabilities:
    r"""The probabilities $E[1 / (1 + e^{-f})]$ of the positive one of two classes.

    Each output is the logit of an event of its own. As the softmax of $f$ and 0, by the
    quadrature of [`infinitenet.softmax_probabilities`][].

    **Arguments:**

    - `prediction`: with variances, and with outputs of any shape.

    **Returns:** A [`infinitenet.ClassProbabilities`][], of the shape of the mean,
        `(*times, n_test, *outputs)`.

    **Raises:** `ValueError` if the prediction has a mean only, or if it is not finite.
    """
    mean, variance = _moments(prediction)
    both = lambda x: jnp.stack([x, jnp.zeros_like(x)], axis=-1)
    out = to_probabilities(both(mean), both(variance))
    return jax.tree.map(lambda x: x[..., 0], out)


@eqx.filter_jit
def _average(
    link: Callable[[Array], Array], mean: Array, std: Array, key: PRNGKeyArray, n: int
) -> tuple[Array, Array]:
    """The mean of `link` of `n` samples, and its standard error (Welford 1962)."""
    for _ in range(std.ndim):
        link = jax.vmap(link)
    # The same noise at all times, so that probabilities are continuous in time.
    shape = mean.shape[std.ndim - 1 :]
    std = std.reshape(*std.shape, *(1,) * (mean.ndim - std.ndim))
    zero = jnp.zeros_like(jax.eval_shape(link, mean))

    def add(sums, inputs):
        average, squares = sums
        key, count = inputs
        noise = jr.normal(key, shape, mean.dtype)
        noise = noise.reshape((1,) * (mean.ndim - noise.ndim) + shape)
        value = link(mean + std * noise)
        step = value - average
        average = average + step / count
        return (average, squares + step * (value - average)), None

    inputs = jr.split(key, n), 1 + jnp.arange(n, dtype=mean.dtype)
    (average, squares), _ = jax.lax.scan(add, (zero, zero), inputs)
    # Not to be differentiated: at zero variance the root has no derivative.
    squares = jax.lax.stop_gradient(squares)
    return average, jnp.sqrt(jnp.maximum(squares, 0) / (n - 1) / n)


def monte_carlo_probabilities(
    prediction: Prediction,
    link: Callable[[Array], Array],
    key: PRNGKeyArray,
    n: int,
) -> ClassProbabilities:
    r"""The expectation of any function of the outputs, by sampling.

    Outputs are sampled as independent Gaussians at each test input. That is all that the
    expectation at each input depends on: [`infinitenet.Prediction.sample`][] is for
    functions of several inputs.

    !!! example

        The probit link of one output, `n_test` probabilities with standard errors of at
        most 0.005:

        ```python
        inn.monte_carlo_probabilities(prediction, jax.scipy.special.ndtr, key, 10_000)
        ```

    **Arguments:**

    - `prediction`: with variances.
    - `link`: takes the outputs of one test input, of shape `outputs`, and returns
        probabilities (an array of any shape), such as `jax.nn.softmax`.
    - `key`: a JAX random key.
    - `n`: the number of samples, at least 2. They are drawn one after the other, so
        memory does not grow with it.

    **Returns:** A [`infinitenet.ClassProbabilities`][], of shape
        `(*times, n_test, *link_outputs)`, with standard errors.

    **Raises:** `ValueError` if `n` is below 2, if the prediction has a mean only or is not
        finite, or if `link` does not return an array of finite numbers.
    """
    if n < 2:
        raise ValueError(f"`n` must be at least 2 samples, for an error, but it is {n}.")
    mean, _ = _moments(prediction)
    std = prediction.std.astype(mean.dtype)
    example = jax.ShapeDtypeStruct(mean.shape[std.ndim :], mean.dtype)
    out = jax.eval_shape(link, example)
    if not (hasattr(out, "dtype") and jnp.issubdtype(out.dtype, jnp.floating)):
        raise ValueError(
            "`link` must return one array of floating-point numbers, such as "
            f"`jax.nn.softmax` does, but it returned {out}."
        )
    average, error = _average(link, mean, std, key, n)
    remedy = "`link` must be finite for all outputs."
    return ClassProbabilities(check_finite("link(outputs)", average, remedy), error)
