"""How good, and how honest, probabilities of classes are."""

import equinox as eqx
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from .._checks import check_finite, check_floating, guard
from .labels import check_labels, check_range


def negative_log_likelihood(
    probabilities: ArrayLike, labels: ArrayLike
) -> Float[Array, ""]:
    r"""The mean of $-\log p_{i y_i}$, also known as cross-entropy or log loss.

    A proper score: its expectation is least for the true probabilities.

    **Arguments:**

    - `probabilities`: shape `(n, classes)`, such as those of
        [`infinitenet.softmax_probabilities`][].
    - `labels`: integers, shape `(n,)`.

    **Returns:** a scalar, in nats; infinite if a label has probability zero.

    **Raises:** `ValueError` if probabilities are not between 0 and 1, or do not sum to 1;
        if labels are not integers of shape `(n,)`, or out of range; if there are no
        examples. Under `jax.jit` what depends on values is a `RuntimeError` at run time.
    """
    p, labels = _check(probabilities, labels)
    return -jnp.mean(jnp.log(_of_labels(p, labels)))


def brier_score(probabilities: ArrayLike, labels: ArrayLike) -> Float[Array, ""]:
    r"""The mean of $\sum_c (p_{ic} - [y_i = c])^2$, from 0 to 2.

    That is the definition of Brier (1950), for any number of classes. For two classes, half
    of it is in use too. A proper score: its expectation is least for the true
    probabilities.

    ??? cite "Reference"
        ```bibtex
        @article{brier1950verification,
            title={Verification of Forecasts Expressed in Terms of Probability},
            author={Glenn W. Brier},
            journal={Monthly Weather Review},
            volume={78},
            number={1},
            pages={1--3},
            year={1950},
        }
        ```

    **Arguments:** as for [`infinitenet.negative_log_likelihood`][].

    **Returns:** a scalar.

    **Raises:** as [`infinitenet.negative_log_likelihood`][].
    """
    p, labels = _check(probabilities, labels)
    one_hot = labels[:, None] == jnp.arange(p.shape[1])[None]
    return jnp.mean(jnp.sum(jnp.square(p - one_hot), axis=1))


def accuracy(probabilities: ArrayLike, labels: ArrayLike) -> Float[Array, ""]:
    """The share of examples of which the most probable class is right.

    Of classes that are equally probable, the first one counts.

    **Arguments:** as for [`infinitenet.negative_log_likelihood`][].

    **Returns:** a scalar, from 0 to 1.

    **Raises:** as [`infinitenet.negative_log_likelihood`][].
    """
    p, labels = _check(probabilities, labels)
    return jnp.mean((jnp.argmax(p, axis=1) == labels).astype(p.dtype))


class CalibrationCurve(eqx.Module):
    r"""Confidence against accuracy, in bins of equal width. Made by
    [`infinitenet.calibration_curve`][].

    Probabilities are calibrated if both are equal, up to the standard error of the
    accuracy, which is about $\sqrt{a (1 - a) / n}$ for `count` $n$ and accuracy $a$.

    - `confidence`: the mean probability of the most probable class, shape `(n_bins,)`.
    - `accuracy`: the share of examples of which this class is right, shape `(n_bins,)`.
    - `count`: the number of examples, shape `(n_bins,)`. Without examples, confidence and
        accuracy are zero.
    - `edges`: of the bins, shape `(n_bins + 1,)`. The upper edge belongs to the bin.
    """

    confidence: Float[Array, " n_bins"]
    accuracy: Float[Array, " n_bins"]
    count: Int[Array, " n_bins"]
    edges: Float[Array, " n_edges"]


def calibration_curve(
    probabilities: ArrayLike, labels: ArrayLike, n_bins: int = 15
) -> CalibrationCurve:
    """Whether the most probable class is right as often as its probability says.

    Also known as reliability diagram.

    **Arguments:**

    - `probabilities`, `labels`: as for [`infinitenet.negative_log_likelihood`][].
    - `n_bins`: the number of bins, of equal width, from 0 to 1.

    **Returns:** A [`infinitenet.CalibrationCurve`][].

    **Raises:** as [`infinitenet.negative_log_likelihood`][], and if `n_bins` is below 1.
    """
    if n_bins < 1:
        raise ValueError(f"`n_bins` must be at least 1, but it is {n_bins}.")
    p, labels = _check(probabilities, labels)
    confidence = jnp.max(p, axis=1)
    right = (jnp.argmax(p, axis=1) == labels).astype(p.dtype)
    edges = jnp.linspace(0, 1, n_bins + 1, dtype=p.dtype)
    place = jnp.maximum(jnp.searchsorted(edges, confidence) - 1, 0)
    total = lambda x: jnp.zeros(n_bins, x.dtype).at[place].add(x)
    count = total(jnp.ones_like(place))
    size = jnp.maximum(count, 1).astype(p.dtype)
    return CalibrationCurve(total(confidence) / size, total(right) / size, count, edges)


def expected_calibration_error(
    probabilities: ArrayLike, labels: ArrayLike, n_bins: int = 15
) -> Float[Array, ""]:
    r"""The mean of |accuracy - confidence| over the bins of
    [`infinitenet.calibration_curve`][], each weighted by its number of examples: equation
    (3) of Guo et al. (2017).

    Not a proper score: it is zero too for probabilities that tell nothing of an input but
    how frequent classes are. For few examples in a bin it is above zero even if
    probabilities are calibrated. So compare it together with the others.

    ??? cite "Reference"
        ```bibtex
        @inproceedings{guo2017calibration,
            title={On Calibration of Modern Neural Networks},
            author={Chuan Guo and Geoff Pleiss and Yu Sun and Kilian Q. Weinberger},
            booktitle={International Conference on Machine Learning},
            year={2017},
        }
        ```

    **Arguments:** as for [`infinitenet.calibration_curve`][].

    **Returns:** a scalar, from 0 to 1.

    **Raises:** as [`infinitenet.calibration_curve`][].
    """
    curve = calibration_curve(probabilities, labels, n_bins)
    share = curve.count / jnp.sum(curve.count)
    return jnp.sum(share * jnp.abs(curve.accuracy - curve.confidence))


#
# Checks of arguments
#


def _of_labels(p: Float[Array, "n classes"], labels: Int[Array, " n"]) -> Array:
    return jnp.take_along_axis(p, labels[:, None], axis=1)[:, 0]


def _check_sums(name: str, p: Float[Array, "n classes"]) -> Float[Array, "n classes"]:
    """Probabilities, without what rounding has beyond 0 and 1."""
    # Half of the digits, as probabilities may have been computed in any way.
    tolerance = float(jnp.finfo(p.dtype).eps) ** 0.5
    remedy = "Use `jax.nn.softmax` if they are logits."
    text = f"`{name}` must be from 0 to 1, and sum to 1 along the last axis"
    sums = lambda p: jnp.sum(p, axis=1)

    def is_bad(p):
        outside = (p < -tolerance) | (p > 1 + tolerance)
        return jnp.any(outside) | jnp.any(jnp.abs(sums(p) - 1) > tolerance)

    def describe(p):
        return (
            f"{text}, but they are from {p.min():.3g} to {p.max():.3g}, with sums from "
            f"{sums(p).min():.6g} to {sums(p).max():.6g}. {remedy}"
        )

    p = guard(p, is_bad, describe, f"{text}. {remedy}")
    # Of those beyond by rounding there would be no logarithm.
    return jnp.where(p < 0, 0, jnp.where(p > 1, 1, p))


def _check(
    probabilities: ArrayLike, labels: ArrayLike
) -> tuple[Float[Array, "n classes"], Int[Array, " n"]]:
    name = "probabilities"
    if isinstance(probabilities, eqx.Module):
        raise ValueError(
            f"`{name}` must be an array, but it is a {type(probabilities).__name__}. Give "
            "`.probabilities` of what `softmax_probabilities(prediction)` returns."
        )
    p = check_floating(name, probabilities, f"Use `{name}.astype(float)`.")
    if p.ndim != 2 or p.shape[1] < 2:
        remedy = "Use `jax.vmap` for several times."
        if p.ndim == 1 or (p.ndim == 2 and p.shape[1] == 1):
            remedy = (
                "For probabilities `p` of the second of two classes, use "
                "`jax.numpy.stack([1 - p, p], axis=-1)`, of shape (n, 2)."
            )
        raise ValueError(
            f"`{name}` must have shape (n, classes), but it has shape {p.shape}. {remedy}"
        )
    labels = check_labels("labels", labels, len(p))
    p = check_finite(name, p, "Look for NaN in predictions.")
    p = _check_sums(name, p)
    return p, check_range("labels", labels, p.shape[1])
