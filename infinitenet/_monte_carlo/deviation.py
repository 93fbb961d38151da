"""Estimated kernels against those in closed form."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._tracing import is_traced
from .student import check_level, half_width, tail


# How many units of rounding a kernel may be off by, at least.
_ROUNDING = 16

# Of the probability to call an estimate inconsistent that is not.
_LEVEL = 0.99


def _rms(x: Array) -> Float[Array, ""]:
    return jnp.sqrt(jnp.mean(jnp.square(x)))


def relative(error: Array, k: Array) -> Float[Array, ""]:
    """The Frobenius norm of an error, in units of that of the kernel; 0 for no error."""
    error, size = _rms(error), _rms(k)
    return jnp.where(error == 0, 0, error / size)


class KernelDeviation(eqx.Module):
    r"""How far one estimated kernel is from another: part of a
    [`infinitenet.KernelComparison`][].

    - `z`: the deviation of each entry in units of its standard error, shape
        `(n1, n2, *positions)`. Standard errors are taken to be at least what rounding
        leaves of zero.
    - `relative_error`: $\|\hat K - K\|_F / \|K\|_F$.
    - `relative_standard_error`: what sampling alone leads to in place of it, as a root mean
        square.
    - `n_samples`: the number of networks.
    """

    z: Float[Array, "n1 n2 *positions"]
    relative_error: Float[Array, ""]
    relative_standard_error: Float[Array, ""]
    n_samples: int = eqx.field(static=True)

    @property
    def root_mean_square(self) -> Float[Array, ""]:
        """Of the z-scores: about 1 if there is no other error than that of sampling."""
        return _rms(self.z)

    def within(self, level: float = 0.95) -> Float[Array, ""]:
        """The fraction of entries of which the confidence interval has the other kernel.

        **Arguments:**

        - `level`: of confidence, between 0 and 1. The fraction is about that if there is
            no other error than that of sampling.
        """
        half = half_width(level, self.n_samples)
        return jnp.mean((jnp.abs(self.z) <= half).astype(self.z.dtype))

    def consistent(self, level: float = _LEVEL) -> bool:
        r"""Whether sampling alone may well lead to such a deviation.

        It is asked whether the root mean square of the z-scores is below the quantile that
        a single z-score exceeds with probability `1 - level`, to either side. This is right
        for entries that all are copies of one, and cautious for all others: of correlated
        Gaussian z-scores no root mean square exceeds that more often. So deviations that
        are called inconsistent are so, while small ones may go unnoticed: see
        `root_mean_square`.

        **Arguments:**

        - `level`: of confidence, above 0.79, as the rule is not cautious below that.

        ??? cite "Reference"
            Székely & Bakirov, Extremal probabilities for Gaussian quadratic forms,
            Probability Theory and Related Fields 126, 2003.
        """
        if check_level(level) < 0.79:
            raise ValueError(f"`level` must be above 0.79, but it is {level}.")
        return bool(self.root_mean_square <= half_width(level, self.n_samples))

    def __repr__(self) -> str:
        if is_traced(self.z):
            return eqx.tree_pformat(self)
        percent = lambda x: f"{100 * float(x):.3g} %"
        rms = float(self.root_mean_square)
        p = tail(rms, self.n_samples)
        verdict = (
            "consistent with sampling error alone"
            if self.consistent()
            else f"inconsistent with sampling error alone (p < {max(p, 1e-16):.0e})"
        )
        return (
            f"relative error {percent(self.relative_error)}, where sampling alone makes "
            f"{percent(self.relative_standard_error)}; z-scores have a root mean square of "
            f"{rms:.2f} and are up to {float(jnp.max(jnp.abs(self.z))):.1f}; "
            f"{percent(self.within())} are within their intervals of 95 %: {verdict}"
        )


def deviation(mean: Array, standard_error: Array, k: Array, n: int) -> KernelDeviation:
    least = _ROUNDING * jnp.finfo(mean.dtype).eps * _rms(mean)
    error = mean - k.astype(mean.dtype)
    se = jnp.maximum(standard_error, least)
    z = jnp.where(error == 0, 0, error / jnp.where(se == 0, 1, se))
    return KernelDeviation(z, relative(error, k), relative(standard_error, k), n)


class KernelComparison(eqx.Module):
    r"""Kernels of finite networks against those in closed form.

    Made by [`infinitenet.MonteCarloGram.compare`][].

    There are two kinds of errors. That of sampling falls as $1 / \sqrt{\text{samples}}$,
    and z-scores are in units of it. That of finite width is a bias of
    $O(1 / \text{width})$, which more samples do not reduce: it shows up as soon as it
    exceeds the error of sampling. Entries of one kernel are correlated, as they come from
    the same networks. So the root mean square of the z-scores, and the fraction within the
    intervals, vary more from one key to another than the number of entries suggests.

    - `nngp`: a [`infinitenet.KernelDeviation`][].
    - `ntk`: likewise, or `None` if one of the two has no NTK.
    """

    nngp: KernelDeviation
    ntk: KernelDeviation | Any

    @property
    def n_samples(self) -> int:
        """The number of networks."""
        return self.nngp.n_samples

    def __repr__(self) -> str:
        lines = [f"    NNGP: {self.nngp!r}."]
        if self.ntk is not None:
            lines.append(f"    NTK: {self.ntk!r}.")
        return (
            f"<KernelComparison of {self.n_samples} networks, {self.nngp.z.size} entries.\n"
            + "\n".join(lines)
            + "\n    Entries are correlated, so that all may be off to one side. Finite "
            "width adds a\n    bias of O(1 / width), which is no error of sampling.>"
        )
