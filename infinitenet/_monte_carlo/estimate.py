"""Kernels that were estimated, and how far to trust them."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import check_finite, check_shape
from .._tracing import is_traced
from .deviation import deviation, KernelComparison, relative
from .moments import Kernels
from .student import half_width


class MonteCarloGram(eqx.Module):
    r"""Kernel matrices of finite networks, averaged over draws of their weights.

    Made by [`infinitenet.monte_carlo_gram`][].

    - `gram`: a [`infinitenet.Gram`][] of the means; a [`infinitenet.GramDiagonal`][] if
        examples were paired by `diagonal_axes`.
    - `squares`: likewise, the sums of squared deviations from these.
    - `n_samples`: the number of networks.
    - `reached`: whether the standard error came to be as small as it was asked for by
        `rtol`; `None` if nothing was asked for.
    - `records`: estimates from the first few of these networks, at each number that was to
        be recorded. The last is this one. Empty in records themselves.
    """

    gram: Kernels
    squares: Kernels
    n_samples: int = eqx.field(static=True)
    reached: bool | None = eqx.field(default=None, static=True)
    records: tuple["MonteCarloGram", ...] = ()

    def _several(self) -> int:
        if self.n_samples < 2:
            raise ValueError(
                "There is no standard error, as `n_samples` is 1: draw at least 2 networks."
            )
        return self.n_samples

    @property
    def std(self) -> Kernels:
        """The standard deviation of single networks, of each entry.

        **Raises:** `ValueError` if there is one sample only.
        """
        n = self._several()
        return jax.tree.map(lambda x: jnp.sqrt(x / (n - 1)), self.squares)

    @property
    def standard_error(self) -> Kernels:
        r"""The standard error of each mean, `std` $/ \sqrt{\text{samples}}$.

        **Raises:** `ValueError` if there is one sample only.
        """
        return jax.tree.map(lambda x: x / self.n_samples**0.5, self.std)

    @property
    def relative_standard_error(self) -> Float[Array, ""]:
        """The root mean square of the standard errors, in units of that of the kernel.

        Of both kernels, the larger one.

        **Raises:** `ValueError` if there is one sample only.
        """
        each = jax.tree.leaves(jax.tree.map(relative, self.standard_error, self.gram))
        return jnp.max(jnp.stack(each))

    def interval(self, level: float = 0.95) -> tuple[Kernels, Kernels]:
        r"""Confidence intervals, of each entry by itself.

        They are of Student's distribution, $\hat K \pm t\, s / \sqrt{\text{samples}}$.
        Samples of kernels are skewed, most of all those of narrow networks with few
        outputs, so that some tens of samples are needed for the level to be met.

        **Arguments:**

        - `level`: the probability to cover the expectation over networks of this width,
            between 0 and 1. (The kernel of the infinite network is another one.)

        **Returns:** the lower and the upper ends.

        **Raises:** `ValueError` if there is one sample only.
        """
        half = half_width(level, self._several())
        error = self.standard_error
        low = jax.tree.map(lambda mean, se: mean - half * se, self.gram, error)
        return low, jax.tree.map(lambda mean, se: mean + half * se, self.gram, error)

    def compare(self, k: Any) -> KernelComparison:
        """Compares the estimate with a kernel in closed form.

        !!! example

            ```python
            estimate = inn.monte_carlo_gram(net, key, x, n_samples=200)
            estimate.compare(inn.gram(net, x))
            ```

        **Arguments:**

        - `k`: of the same inputs: of [`infinitenet.gram`][].

        **Returns:** A [`infinitenet.KernelComparison`][].

        **Raises:** `ValueError` if shapes do not match, if `k` is not finite, or if there
            is one sample only.
        """
        kind = type(self.gram)
        if not isinstance(k, kind):
            raise ValueError(
                f"`k` must be a {kind.__name__} as the estimate is, of both kernels, but "
                f"it is a {type(k).__name__}."
            )
        n, error = self._several(), self.standard_error

        def one(name: str):
            mean, se, other = (getattr(g, name) for g in (self.gram, error, k))
            if mean is None or other is None:
                return None
            other = check_shape(f"k.{name}", other, mean.shape, "that of the estimate")
            other = check_finite(f"k.{name}", other, "Is it of these inputs?")
            return deviation(mean, se, other, n)

        nngp = one("nngp")
        assert nngp is not None
        return KernelComparison(nngp, one("ntk"))

    def __repr__(self) -> str:
        if is_traced(self.gram):
            return eqx.tree_pformat(self)
        plural = "" if self.n_samples == 1 else "s"
        shape = " × ".join(map(str, self.gram.nngp.shape))
        out = f"{self.n_samples} network{plural}: {shape}"
        if self.n_samples > 1:
            error = jax.tree.map(relative, self.standard_error, self.gram)
            out += f", relative standard error {float(error.nngp):.2g} of the NNGP kernel"
            if error.ntk is not None:
                out += f", {float(error.ntk):.2g} of the NTK"
        return f"<MonteCarloGram of {out}>"
