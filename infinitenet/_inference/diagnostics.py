"""What the eigenvalues of a kernel matrix tell about learning with it."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from .._checks import (
    check_finite,
    check_kernel,
    check_not_negative,
    check_targets,
    guard,
)
from .._tracing import is_traced
from .spectral import decompose, dot, Spectrum, unit_rounding


_no_targets = "There are no targets: give `y` to `diagnose`."


def _centre(x: Float[Array, "n m"], axis: int) -> Float[Array, "n m"]:
    return x - jnp.mean(x, axis=axis, keepdims=True)


def _unit(x: Float[Array, "n m"]) -> Float[Array, "n m"]:
    """With entries of at most 1, of which no square overflows, nor the largest vanishes.

    For what does not depend on the scale, nor then does its derivative.
    """
    size = jax.lax.stop_gradient(jnp.max(jnp.abs(x)))
    return x / jnp.where(size > 0, size, 1)


def _check_nonzero(
    x: Float[Array, "n m"], whole: Float[Array, "n m"], message: str
) -> Float[Array, "n m"]:
    """`x`, unless it is zero up to the rounding of `whole`, which it was made from."""
    unit = unit_rounding(1, x.dtype)
    is_bad = lambda x: ~(jnp.linalg.norm(x) > unit * jnp.linalg.norm(whole))
    return guard(x, is_bad, lambda _: message, message)


def _alignment(k: Float[Array, "n n"], y: Float[Array, "n outputs"]) -> Array:
    """`y y^T` is not formed: its norm is that of `y^T y`."""
    norm = jnp.linalg.norm(k) * jnp.linalg.norm(dot(y.T, y))
    return jnp.sum(y * dot(k, y)) / norm


class KernelDiagnostics(eqx.Module):
    r"""A kernel matrix under the microscope. Made by [`infinitenet.diagnose`][].

    All that is sorted is sorted by eigenvalue, the largest first.

    - `spectrum`: the kernel, of shape `(n, n)`, and its eigendecomposition.
    - `y`: the targets, of shape `(n, *outputs)`, or `None`.
    """

    spectrum: Spectrum
    y: Float[Array, "n *outputs"] | None

    @property
    def eigenvalues(self) -> Float[Array, " n"]:
        """Descending, in the units of the kernel. Those which cannot be told from zero
        are zero."""
        return self.spectrum.eigenvalues[::-1]

    @property
    def rank(self) -> Int[Array, ""]:
        """The number of eigenvalues which can be told from zero: those above 16 units of
        rounding of the largest."""
        return jnp.sum(self.spectrum.eigenvalues > 0)

    def _ridge(
        self, diag_reg: ArrayLike, absolute: bool, *, finite: bool
    ) -> Float[Array, "..."]:
        """`diag_reg` in units of the kernel."""
        k = self.spectrum.k
        remedy = "It is added to the kernel's diagonal, as the variance of noise would be."
        ridge = check_not_negative("diag_reg", diag_reg, k.dtype, remedy)
        if finite:
            ridge = check_finite("diag_reg", ridge, remedy)
        return ridge if absolute else ridge * jnp.mean(jnp.diagonal(k))

    def condition_number(
        self, diag_reg: ArrayLike = 0.0, *, absolute: bool = False
    ) -> Float[Array, "..."]:
        r"""$(\lambda_{\max} + r) / (\lambda_{\min} + r)$, of the regularised kernel.

        Gradient descent converges in about as many steps, and a linear solve loses its
        logarithm in digits.

        **Arguments:**

        - `diag_reg`: $r$, in units of the mean of the kernel's diagonal, of any shape.
        - `absolute`: if true, `diag_reg` is in units of the kernel.

        **Returns:** an array shaped as `diag_reg`: infinity if the kernel is singular.

        **Raises:** `ValueError` if `diag_reg` is negative or not finite.
        """
        r = self._ridge(diag_reg, absolute, finite=True)
        high, low = self.spectrum.eigenvalues[-1] + r, self.spectrum.eigenvalues[0] + r
        return jnp.where(low > 0, high / jnp.where(low > 0, low, 1), jnp.inf)

    def effective_dimension(
        self, diag_reg: ArrayLike, *, absolute: bool = False
    ) -> Float[Array, "..."]:
        r"""$\sum_i \lambda_i / (\lambda_i + r)$: how many directions are fitted.

        It is the rank without regularisation, and falls to zero with it: the degrees of
        freedom of kernel regression (Zhang 2005, section 4).

        **Arguments:**

        - `diag_reg`: $r$, in units of the mean of the kernel's diagonal, of any shape.
            Infinity is allowed.
        - `absolute`: if true, `diag_reg` is in units of the kernel.

        **Returns:** an array shaped as `diag_reg`, between 0 and `n`.

        **Raises:** `ValueError` if `diag_reg` is negative or NaN.
        """
        l = self.spectrum.eigenvalues
        # A kernel of zeros has a mean of zero, of which infinity times would be NaN.
        r = jnp.nan_to_num(self._ridge(diag_reg, absolute, finite=False), posinf=jnp.inf)
        r, positive = r[..., None], l > 0
        l, positive = (
            each.reshape((1,) * (r.ndim - 1) + l.shape) for each in (l, positive)
        )
        # Not the other way round, as infinity over infinity would be NaN.
        share = 1 / (1 + r / jnp.where(positive, l, 1))
        return jnp.sum(jnp.where(positive, share, 0), axis=-1)

    @property
    def time_scales(self) -> Float[Array, " n"]:
        r"""$N / \lambda_i$: after how much time gradient flow has learnt an eigenvector
        of the NTK, up to a factor of $e$.

        In units of learning rate times number of steps, as in
        [`infinitenet.gradient_flow`][]; $N$ is the number of entries of the targets, or
        of examples without targets.

        **Returns:** shape `(n,)`, ascending; infinity for eigenvalues of zero.
        """
        l = self.eigenvalues
        size = len(l) if self.y is None else self.y.size
        return jnp.where(l > 0, size / jnp.where(l > 0, l, 1), jnp.inf)

    def _targets(self) -> Float[Array, "n outputs"]:
        if self.y is None:
            raise ValueError(_no_targets)
        return self.y.reshape(len(self.y), -1)

    @property
    def alignment(self) -> Float[Array, ""]:
        r"""$\langle K, y y^T \rangle / (|K| |y y^T|)$ in Frobenius norms (Cristianini et
        al. 2001): 1 if the kernel is that of the targets, and 0 if it is orthogonal.

        Several outputs are summed over in $y y^T$. It may be differentiated.

        **Raises:** `ValueError` without targets, or if they or the kernel are all zero.
        """
        k, y = _unit(self.spectrum.k), _unit(self._targets())
        zero = "is all zero: nothing can be aligned to it."
        k, y = _check_nonzero(k, k, f"`k` {zero}"), _check_nonzero(y, y, f"`y` {zero}")
        return _alignment(k, y)

    @property
    def centred_alignment(self) -> Float[Array, ""]:
        r"""`alignment` after both are centred: of $HKH$ and $H y$, where
        $H = I - 1 1^T / n$ (Cortes et al. 2012).

        So a constant that is part of the kernel, as of biases, does not count.

        **Raises:** `ValueError` without targets, or if they or the kernel are constant.
        """
        k, y = _unit(self.spectrum.k), _unit(self._targets())
        constant = "is the same for all examples: centred, nothing is left of it."
        k = _check_nonzero(_centre(_centre(k, 0), 1), k, f"`k` {constant}")
        y = _check_nonzero(_centre(y, 0), y, f"`y` {constant}")
        return _alignment(k, y)

    def _power(self, y: Float[Array, "n outputs"]) -> Float[Array, " n"]:
        coefficients = dot(self.spectrum.eigenvectors.T, y)
        return jnp.sum(jnp.square(coefficients), axis=-1)[::-1]

    @property
    def power(self) -> Float[Array, " n"]:
        r"""$|u_i^T y|^2$: the power of the targets along each eigenvector, summed over
        outputs.

        Within an eigenvalue that is repeated it is arbitrary; its sum there is not.

        **Returns:** shape `(n,)`, of sum $|y|^2$.

        **Raises:** `ValueError` without targets.
        """
        return self._power(self._targets())

    @property
    def cumulative_power(self) -> Float[Array, " n"]:
        """The share of the targets' power in the leading 1, 2, ... eigenvectors.

        Gradient descent learns eigenvectors of large eigenvalue first, and from few
        examples: the sooner this rises to 1, the easier the task is for this kernel
        (spectral bias; Canatar et al. 2021).

        **Returns:** shape `(n,)`, ascending to 1.

        **Raises:** `ValueError` without targets, or if they are all zero.
        """
        message = "`y` is all zero, so it has no power to take shares of."
        power = self._power(_unit(self._targets()))
        power = guard(power, lambda x: ~jnp.any(x > 0), lambda _: message, message)
        total = jnp.cumsum(power)
        return total / total[-1]

    def __repr__(self) -> str:
        if is_traced((self.spectrum, self.y)) or self.spectrum.eigenvalues.ndim != 1:
            return eqx.tree_pformat(self)
        l, n = self.eigenvalues, len(self.eigenvalues)
        out = (
            f"{n} examples: rank {self.rank}, eigenvalues from {l[-1]:.2g} to {l[0]:.2g}, "
            f"condition number {self.condition_number():.2g}, effective dimension "
            f"{self.effective_dimension(1e-3):.1f} at diag_reg 1e-3"
        )
        if self.y is not None and jnp.any(self.y != 0):
            half = int(jnp.sum(self.cumulative_power < 0.5)) + 1
            out += f"; half of the targets' power is in the {half} leading eigenvectors"
            if self.rank > 0:
                out += f", alignment {self.alignment:.2f}"
        return f"<KernelDiagnostics of {out}>"


def diagnose(k: ArrayLike, y: ArrayLike | None = None) -> KernelDiagnostics:
    r"""Eigenvalues of a kernel matrix, and what follows from them about learning.

    The matrix is decomposed once, in time of order $n^3$. Of the results,
    `cumulative_power` and `power` have no derivative by the kernel where eigenvalues
    are repeated; all others do.

    !!! example

        ```python
        k = inn.gram(net, x)
        d = inn.diagnose(k.ntk, y)
        d.rank, d.effective_dimension(1e-3), d.centred_alignment
        inn.plot.spectrum(d)
        ```

    ??? cite "Reference"
        Cristianini, Shawe-Taylor, Elisseeff & Kandola, On Kernel-Target Alignment,
        NeurIPS 2001.
        Zhang, Learning Bounds for Kernel Regression Using Effective Data Dimensionality,
        Neural Computation 2005.
        Cortes, Mohri & Rostamizadeh, Algorithms for Learning Kernels Based on Centered
        Alignment, JMLR 2012.
        Canatar, Bordelon & Pehlevan, Spectral bias and task-model alignment explain
        generalization in kernel regression and infinitely wide neural networks, Nature
        Communications 2021.

    **Arguments:**

    - `k`: the kernel of some inputs with themselves, shape `(n, n)`.
    - `y`: what is to be learnt there, of shape `(n, *outputs)`. It is converted to the
        dtype of the kernel.

    **Returns:** a [`infinitenet.KernelDiagnostics`][].

    **Raises:** `ValueError` if an argument has a wrong shape or dtype, if it has entries
        that are not finite, if the kernel is not symmetric, or if it has an eigenvalue
        too negative to be zero up to rounding.
    """
    k = check_kernel("k", k)
    if len(k) == 0:
        raise ValueError("`k` is of no examples: it needs at least 1.")
    y = None if y is None else check_targets("y", y, len(k), k.dtype)
    return KernelDiagnostics(decompose("k", k), y)
