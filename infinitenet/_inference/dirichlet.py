"""Classification by Gaussian processes of which the targets stand for Dirichlet
distributions.
"""

import equinox as eqx
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from .._checks import (
    check_cross_kernel,
    check_finite,
    check_kernel,
    check_test_diagonal,
    guard,
)
from .gp import condition, Posterior
from .labels import check_labels, check_range, count_classes
from .softmax import to_probabilities


class DirichletPrediction(eqx.Module):
    """Classes of test inputs, as [`infinitenet.DirichletClassifier`][] predicts them.

    - `probabilities`: shape `(n_test, classes)`.
    - `error`: of the same shape. An estimate of the absolute error of quadrature.
    - `mean`: of the logits, of the same shape.
    - `variance`: of the logits, likewise. They are independent Gaussians.
    """

    probabilities: Float[Array, "n_test classes"]
    error: Float[Array, "n_test classes"]
    mean: Float[Array, "n_test classes"]
    variance: Float[Array, "n_test classes"]


class DirichletClassifier(eqx.Module):
    """Gaussian processes of the logits of classes, given labels. Made by
    [`infinitenet.dirichlet_classifier`][].

    - `posteriors`: one [`infinitenet.Posterior`][] for each class, of targets less their
        prior mean.
    - `prior_mean`: of each logit, shape `(classes,)`.
    """

    posteriors: tuple[Posterior, ...]
    prior_mean: Float[Array, " classes"]

    def predict(
        self, k_test_train: ArrayLike, k_test_test_diagonal: ArrayLike
    ) -> DirichletPrediction:
        """The probabilities of all classes: the expected softmax of the logits.

        **Arguments:**

        - `k_test_train`: shape `(n_test, n)`.
        - `k_test_test_diagonal`: the kernel of each test input with itself, shape
            `(n_test,)`.

        **Returns:** A [`infinitenet.DirichletPrediction`][].

        **Raises:** `ValueError` as [`infinitenet.Posterior.predict`][], and if a variance
            is negative by more than rounding (`RuntimeError` under `jax.jit`).
        """
        n, dtype = len(self.posteriors[0].factor), self.prior_mean.dtype
        k_td = check_cross_kernel("k_test_train", k_test_train, n, dtype)
        name = "k_test_test_diagonal"
        k_tt = check_test_diagonal(name, k_test_test_diagonal, len(k_td), dtype)
        each = [p.predict(k_td, k_tt) for p in self.posteriors]
        mean = jnp.stack([p.mean for p in each], axis=1) + self.prior_mean[None]
        variance = jnp.stack([p.variance for p in each], axis=1)
        out = to_probabilities(mean, variance)
        return DirichletPrediction(out.probabilities, out.error, mean, variance)

    def log_marginal_likelihood(self) -> Float[Array, ""]:
        """The logarithm of the probability density of the targets that stand for labels.

        To choose hyperparameters of the kernel by. Other values of `alpha` make other
        targets, so they cannot be compared by it.

        **Returns:** a scalar, in nats: the sum over classes.
        """
        each = [p.log_marginal_likelihood() for p in self.posteriors]
        return jnp.sum(jnp.stack(each))


def dirichlet_classifier(
    k_train_train: ArrayLike,
    labels: ArrayLike,
    n_classes: int | None = None,
    *,
    alpha: ArrayLike = 0.01,
) -> DirichletClassifier:
    r"""Classification by exact Gaussian-process regression (Milios et al. 2018).

    A label $y_i$ stands for a Dirichlet distribution of class probabilities, of parameters
    $\alpha_{ic} = \alpha + [y_i = c]$. That is a distribution of independent Gamma
    variables, normalised; these are approximated by log-normal ones of the same mean and
    variance. So their logarithms, the logits, are observed with Gaussian noise:

    $$
    \sigma_{ic}^2 = \log(1 / \alpha_{ic} + 1), \qquad
    \text{target}_{ic} = \log \alpha_{ic} - \sigma_{ic}^2 / 2.
    $$

    Each logit is a Gaussian process of the given kernel, and class probabilities are the
    expected softmax. The noise differs between examples and classes, so that each class has
    a Cholesky factor of its own: memory of `classes * n**2` numbers, and as many times the
    work of [`infinitenet.condition`][].

    The prior mean of the logit of class $c$ is $\log \pi_c + m$. Here $\pi_c =
    (n_c + \alpha) / (n + \alpha \cdot \text{classes})$ are the shares of classes in the
    labels, so that these are predicted far from all data, if all logits have the same
    small variance. The constant $m$ makes the mean of all targets zero, when the prior mean
    is taken off. That is what the authors' code does, with $n_c / n$ for $\pi_c$, which is
    zero for classes without examples.

    Targets of a class and of all others are about $\frac32 \log(1 / \alpha)$ apart, 7 for
    the default, and logits must vary as much: a kernel with a diagonal of 1 is too small.
    Kernels, and their scale, are best chosen by `log_marginal_likelihood`, but not
    `alpha`: choose that by [`infinitenet.negative_log_likelihood`][] on validation data.

    !!! example

        ```python
        classifier = inn.dirichlet_classifier(k_train_train, labels)
        prediction = classifier.predict(k_test_train, k_test_test_diagonal)
        inn.negative_log_likelihood(prediction.probabilities, test_labels)
        ```

    ??? cite "Reference"
        ```bibtex
        @inproceedings{milios2018dirichlet,
            title={{D}irichlet-based {G}aussian Processes for Large-scale Calibrated
                   Classification},
            author={Dimitrios Milios and Raffaello Camoriano and Pietro Michiardi and
                    Lorenzo Rosasco and Maurizio Filippone},
            booktitle={Advances in Neural Information Processing Systems},
            year={2018},
        }
        ```

    **Arguments:**

    - `k_train_train`: the kernel of the training inputs, shape `(n, n)`.
    - `labels`: integers of at least 0 and below `n_classes`, shape `(n,)`.
    - `n_classes`: the number of classes; by default one more than the largest label. To be
        given under `jax.jit`.
    - `alpha`: the parameter of the Dirichlet distribution of an example without label,
        above zero. The smaller, the more a label is trusted.

    **Returns:** A [`infinitenet.DirichletClassifier`][].

    **Raises:** `ValueError` if labels are not integers of shape `(n,)` (one-hot, say), or
        out of range; if there are less than 2 classes; if `alpha` is not above zero; and
        for kernels as [`infinitenet.condition`][] (`RuntimeError` under `jax.jit`).
    """
    k = check_kernel("k_train_train", k_train_train)
    labels = check_labels("labels", labels, len(k))
    n_classes = count_classes("labels", labels, n_classes)
    labels = check_range("labels", labels, n_classes)
    alpha = _check_alpha(alpha, k.dtype)
    one_hot = (labels[:, None] == jnp.arange(n_classes)[None]).astype(k.dtype)
    noise = jnp.log1p(1 / (alpha + one_hot))
    targets = jnp.log(alpha + one_hot) - noise / 2
    share = (jnp.sum(one_hot, axis=0) + alpha) / (len(k) + n_classes * alpha)
    prior_mean = jnp.log(share)
    prior_mean = prior_mean + jnp.mean(targets - prior_mean[None])
    targets = targets - prior_mean[None]
    # One after the other: batches of factors would take a copy of all of them.
    posteriors = tuple(
        condition(k, targets[:, c], diag_reg=noise[:, c], absolute=True)
        for c in range(n_classes)
    )
    return DirichletClassifier(posteriors, prior_mean)


def _check_alpha(alpha: ArrayLike, dtype) -> Float[Array, ""]:
    remedy = "Values from 0.001 to 0.1 are usual."
    if jnp.ndim(alpha):
        raise ValueError(f"`alpha` must be a scalar, but its shape is {jnp.shape(alpha)}.")
    alpha = check_finite("alpha", jnp.asarray(alpha, dtype), remedy)
    return guard(
        alpha,
        lambda x: x <= 0,
        lambda x: f"`alpha` must be above zero, but it is {x}. {remedy}",
        f"`alpha` must be above zero. {remedy}",
    )
