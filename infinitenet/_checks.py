"""Checks of arguments: each message names the argument, what is wrong, and the remedy.

Arguments with values raise `ValueError` before any computation. Under `jax.jit`,
`jax.vmap` and `jax.grad` values are not known: there, `equinox.error_if` raises when
the program runs. So each check of values returns its argument, which is to be used from
then on.

Arguments which are checked here are annotated as `ArrayLike`, and their shapes are
given by docstrings: a shape in the annotation would be checked first, and its message
does not say what to do.
"""

from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from ._finite import all_finite, not_all_finite
from ._mesh import without_explicit_axes
from ._tracing import is_traced


# Compiled as one, for speed: outside of `jax.jit` each operation would be by itself.
_not_all_positive = jax.jit(lambda x: ~jnp.all(x >= 0))
_asymmetry = jax.jit(lambda k: jnp.max(jnp.abs(k - k.T), initial=0))
_size = jax.jit(lambda k: jnp.max(jnp.abs(k), initial=0))
_symmetric_part = jax.jit(lambda k: (k + k.T) / 2)


def guard(
    x: Array,
    is_bad: Callable[[Array], Bool[Array, ""]],
    describe: Callable[[Array], str],
    otherwise: str,
) -> Array:
    """Raises an error if `is_bad(x)`, as soon as that is known.

    **Arguments:**

    - `x`: what to check.
    - `is_bad`: whether to raise.
    - `describe`: the message if the values of `x` are known.
    - `otherwise`: the message if they are not.

    **Returns:** `x`.

    **Raises:** `ValueError` if `x` is known and bad.
    """
    if is_traced(x):
        return eqx.error_if(x, is_bad(x), otherwise)
    # Otherwise constants that meet `jit` would be traced.
    with jax.ensure_compile_time_eval():
        if is_bad(x):
            raise ValueError(describe(x))
    return x


def check_floating(name: str, x: ArrayLike, remedy: str) -> Float[Array, "..."]:
    """An array of real floating-point numbers, in single precision or better.

    **Arguments:**

    - `name`: the argument's name, for the message.
    - `x`: of any shape.
    - `remedy`: a sentence that says what to do about other dtypes.

    **Raises:** `ValueError` for integers, Booleans, complex numbers and half precision,
        for which there is no linear algebra.
    """
    if isinstance(x, eqx.Module):
        raise ValueError(
            f"`{name}` must be a single array, but it is a {type(x).__name__}. Give one of "
            "its arrays, such as `.nngp`."
        )
    dtype = x.dtype if isinstance(x, jax.Array | np.ndarray) else np.asarray(x).dtype
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"`{name}` must have a floating-point dtype, but it is {dtype}. {remedy}"
        )
    if dtype.itemsize < 4:
        raise ValueError(
            f"`{name}` is {dtype}, which is too coarse to solve with. Convert it with "
            f"`{name}.astype(jax.numpy.float32)`, or better compute it in float32."
        )
    return without_explicit_axes(jnp.asarray(x))


def check_finite(name: str, x: Array, remedy: str) -> Array:
    """Neither NaN nor infinity.

    **Arguments:**

    - `name`: the argument's name, for the message.
    - `x`: of any shape and dtype.
    - `remedy`: a sentence that says what to do.

    **Returns:** `x`.

    **Raises:** `ValueError`, with the number of bad entries and the place of the first.
    """

    def describe(x):
        bad = np.argwhere(~np.isfinite(np.asarray(x)))
        first = tuple(int(i) for i in bad[0])
        value = np.asarray(x)[first]
        where = f"the first is {value} at index {first}" if first else f"it is {value}"
        return (
            f"`{name}` has {len(bad)} entries which are NaN or infinite, of {x.size}: "
            f"{where}. {remedy}"
        )

    return guard(
        x,
        not_all_finite,
        describe,
        f"`{name}` has entries which are NaN or infinite. {remedy}",
    )


def are_finite(xs: Sequence[ArrayLike]) -> bool:
    """Whether none of some known arrays has NaN or infinity: faster than one by one."""
    with jax.ensure_compile_time_eval():
        return all_finite(xs)


def check_shape(
    name: str, x: Array, expected: tuple[int, ...], because: str
) -> Float[Array, "..."]:
    """**Raises:** `ValueError` if `x` is not of the shape `expected`, and why."""
    if x.shape != expected:
        raise ValueError(
            f"`{name}` must have shape {expected}, {because}, but it has shape {x.shape}."
        )
    return x


_kernel_remedy = (
    "Look for NaN or infinity in the inputs of the network, and for weights so large "
    "that its kernel overflows."
)
_dtype_remedy = "Compute it from floating-point inputs, or convert it with `astype`."
_positions_remedy = (
    "A kernel with further axes is that of a network which keeps positions to the end: "
    "finish the network by `Flatten` or by global pooling. Use `jax.vmap` for many "
    "kernels at once."
)


def check_kernel(name: str, k: ArrayLike) -> Float[Array, "n n"]:
    """The kernel of examples with themselves: square, floating, finite and symmetric.

    **Arguments:**

    - `name`: the argument's name, for the message.
    - `k`: shape `(n, n)`.

    **Returns:** its symmetric part, which is `k` itself if that is known to be symmetric.

    **Raises:** `ValueError` if it is not so.
    """
    k = check_floating(name, k, _dtype_remedy)
    if k.ndim != 2 or k.shape[0] != k.shape[1]:
        raise ValueError(
            f"`{name}` must be a square matrix, but it has shape {k.shape}. "
            + (_positions_remedy if k.ndim > 2 else "Both axes are the same examples.")
        )
    k = check_finite(name, k, _kernel_remedy)
    # Half of the digits: kernels may have been computed in a way that rounds K(x, x')
    # and K(x', x) differently, while two different sets of inputs differ by much more.
    tolerance = float(jnp.finfo(k.dtype).eps) ** 0.5
    message = (
        f"`{name}` must be symmetric, as the kernel of a set of examples with itself. "
        "Was it computed between two different sets?"
    )
    k = guard(
        k,
        lambda k: _asymmetry(k) > tolerance * _size(k),
        lambda k: (
            f"{message} It differs from its transpose by up to {_asymmetry(k):.1e}, and "
            f"its entries are up to {_size(k):.1e}."
        ),
        message,
    )
    if not is_traced(k):
        with jax.ensure_compile_time_eval():
            if _asymmetry(k) == 0:
                return k  # Large kernels need no copy.
    return _symmetric_part(k)


def check_cross_kernel(
    name: str, k: ArrayLike, n_train: int, dtype: np.dtype
) -> Float[Array, "n_test n_train"]:
    """The kernel between other examples (rows) and those of training (columns).

    **Arguments:**

    - `name`: the argument's name, for the message.
    - `k`: shape `(n_test, n_train)`.
    - `n_train`: the number of training examples.
    - `dtype`: of the result.

    **Raises:** `ValueError` if it is of other shape, not floating, or not finite.
    """
    k = check_floating(name, k, _dtype_remedy)
    if k.ndim != 2 or k.shape[1] != n_train:
        remedy = ""
        if k.ndim > 2:
            remedy = _positions_remedy
        elif k.ndim == 2 and k.shape[0] == n_train:
            remedy = "It seems to be transposed: test examples come first."
        elif k.ndim == 1:
            remedy = f"For a single test example use `{name}[None, :]`."
        raise ValueError(
            f"`{name}` must have shape (n_test, {n_train}), one column for each "
            f"training example, but it has shape {k.shape}. {remedy}".rstrip()
        )
    return check_finite(name, k, _kernel_remedy).astype(dtype)


def check_test_kernel(
    name: str, k: ArrayLike, n_test: int, dtype: np.dtype
) -> Float[Array, "n_test n_test"]:
    """As `check_kernel`, for as many examples as `k_test_train` has rows."""
    k = check_kernel(name, k)
    because = "one row and column for each row of `k_test_train`"
    return check_shape(name, k, (n_test, n_test), because).astype(dtype)


def check_test_diagonal(
    name: str, k: ArrayLike, n_test: int, dtype: np.dtype
) -> Float[Array, " n_test"]:
    """The kernel of each test example with itself.

    **Raises:** `ValueError` if it is of other shape, not floating, or not finite.
    """
    k = check_floating(name, k, _dtype_remedy)
    k = check_shape(name, k, (n_test,), "a variance for each row of `k_test_train`")
    return check_finite(name, k, _kernel_remedy).astype(dtype)


def check_targets(
    name: str, y: ArrayLike, n: int, dtype: np.dtype
) -> Float[Array, "n *outputs"]:
    """What a network should output, or does output: finite numbers, one row per
    example.

    **Arguments:**

    - `name`: the argument's name, for the message.
    - `y`: shape `(n, *outputs)`.
    - `n`: the number of examples.
    - `dtype`: of the result.

    **Raises:** `ValueError` if it is of other length, not floating (labels of classes,
        say), empty, or not finite.
    """
    y = check_floating(
        name,
        y,
        f"If these are labels of classes, use `jax.nn.one_hot({name}, n_classes)`, "
        f"less `1 / n_classes` for zero mean. If they are numbers, use "
        f"`{name}.astype(float)`.",
    )
    if y.ndim == 0 or y.shape[0] != n:
        raise ValueError(
            f"`{name}` must have shape ({n}, *outputs), one row for each row of the "
            f"kernel, but it has shape {y.shape}."
        )
    if y.size == 0:
        raise ValueError(
            f"`{name}` has shape {y.shape}: at least one example and one output are needed."
        )
    y = check_finite(name, y, "Leave these examples out of the targets and kernels.")
    return y.astype(dtype)


def check_not_negative(name: str, x: ArrayLike, dtype: np.dtype, remedy: str) -> Array:
    """Numbers of at least zero: times, regularisation, variances. Infinity is allowed.

    **Raises:** `ValueError`, with the smallest one.
    """
    # Whole numbers are as good as any here.
    x = jnp.asarray(x, dtype)
    return guard(
        x,
        _not_all_positive,
        lambda x: (
            f"`{name}` must not be negative or NaN, but it is {x[~(x >= 0)].min()}. "
            f"{remedy}"
        ),
        f"`{name}` must not be negative or NaN. {remedy}",
    )


def check_times(t: ArrayLike | None, dtype: np.dtype) -> Float[Array, "*times"]:
    """Times of training; `None` is infinity.

    **Raises:** `ValueError` if one is negative or NaN.
    """
    if t is None:
        return jnp.asarray(jnp.inf, dtype)
    remedy = "It is learning rate times number of steps; `None` stands for convergence."
    return check_not_negative("t", t, dtype, remedy)


def check_diag_reg(
    diag_reg: ArrayLike, n: int, dtype: np.dtype, name: str = "diag_reg"
) -> Float[Array, "..."]:
    """A finite number of at least zero, or one for each of `n` examples.

    **Raises:** `ValueError` if it is not so.
    """
    remedy = "It is added to the kernel's diagonal, as the variance of noise would be."
    if jnp.shape(diag_reg) not in ((), (n,)):
        raise ValueError(
            f"`{name}` must be a scalar, or of shape ({n},) with a number for each "
            f"example, but it has shape {jnp.shape(diag_reg)}. {remedy}"
        )
    out = check_not_negative(name, diag_reg, dtype, remedy)
    return check_finite(name, out, remedy)


# Above this many examples all eigenvalues take minutes, where a few factors take seconds.
_MANY = 3000


def _mending(k: Array) -> str:
    """A `diag_reg` by which a large kernel has a Cholesky factor."""
    n, high = len(k), float(jnp.max(jnp.abs(jnp.diagonal(k))))
    more = n * float(jnp.finfo(k.dtype).eps) * high
    while 0 < more <= high:
        factor = jnp.linalg.cholesky(k + more * jnp.eye(n, dtype=k.dtype))
        if jnp.all(jnp.isfinite(factor)):
            return f" Here, `diag_reg={10 * more:.0e}` with `absolute=True` is enough."
        more *= 10
    return ""


def indefinite(name: str, k: Array | None, reason: str) -> str:
    """The message about a kernel which has negative, or zero, eigenvalues.

    **Arguments:**

    - `name`: the argument's name.
    - `k`: shape `(n, n)`; `None` if its values are not known.
    - `reason`: a sentence.

    **Returns:** a message with the smallest eigenvalue and with a `diag_reg` that mends
        it.
    """
    advice = (
        "Give a larger `diag_reg`, leave out duplicates among the training "
        "examples, or use float64: `jax.config.update('jax_enable_x64', True)`."
    )
    if k is None or len(k) > _MANY:
        return f"`{name}`: {reason} {advice}" + ("" if k is None else _mending(k))
    if not jnp.any(k):
        return (
            f"`{name}`: {reason} Its eigenvalues are zero: give `diag_reg`, with "
            "`absolute=True`."
        )
    eigenvalues = jnp.linalg.eigvalsh(k)
    low, high = float(eigenvalues[0]), float(eigenvalues[-1])
    mean = float(jnp.mean(jnp.diagonal(k)))
    # Twice what is missing, as the rounding of the eigenvalues is not known; and enough
    # for the smallest one to exceed that rounding, which is below `n * eps` of the
    # largest.
    unit = max(len(k), 16) * float(jnp.finfo(k.dtype).eps)
    more = 2 * max(-low, 0) + 4 * unit * max(abs(low), abs(high))
    text = (
        f"`{name}`: {reason} Its eigenvalues are from {low:.1e} to {high:.1e}. {advice} "
        f"Here, raise `diag_reg` by {2 * more:.0e} with `absolute=True`"
    )
    if mean > 0:
        text += f", or by {2 * more / mean:.0e}, relative to the mean of the diagonal"
    return text + "."
