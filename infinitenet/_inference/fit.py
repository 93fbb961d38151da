"""Hyperparameters of infinite networks, learnt from data."""

import enum
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optimistix as optx
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray

from .._batch import batch_size, to_batch
from .._checks import check_diag_reg, check_targets
from .._custom_types import Arrays
from .._gram import gram
from .._layer import AbstractLayer
from .._progress import Progress, reporting
from .._tracing import is_traced
from .ascent import (
    AbstractAscent,
    evaluate,
    Optimiser,
    Problem,
    Record,
    to_ascent,
    unchecked_kernel,
)
from .gp import condition, Posterior
from .hyperparameters import select, Where
from .infinite_ensemble import AbstractTrained, check_trained, LastLayer


class FitStatus(enum.Enum):
    """Why [`infinitenet.fit`][] came to its end."""

    CONVERGED = "converged"
    """The objective rises no more."""

    STOPPED = "stopped before it converged"
    """All steps were made."""

    INTERRUPTED = "interrupted"
    """By the user, `KeyboardInterrupt`."""

    DIVERGED = "diverged"
    """The optimiser went to where the objective is not finite."""


class Fit(eqx.Module):
    """What [`infinitenet.fit`][] returns: the best network of all steps, and the way to it.

    - `net`: the network, with what it has learnt.
    - `diag_reg`: what to give to [`infinitenet.condition`][], with `absolute` as it was.
    - `objective`: after each step, shape `(steps + 1,)`. The first is before any step.
    - `parameters`: the same of what was learnt, by names such as `layers[0].W_std`, and
        `diag_reg`. Arrays with a first axis of size `steps + 1`.
    - `best`: the step that `net` and `diag_reg` are of.
    - `status`: an [`infinitenet.FitStatus`][].
    """

    net: AbstractLayer
    diag_reg: Float[Array, "..."]
    objective: Float[np.ndarray, " records"]
    parameters: dict[str, Float[np.ndarray, "records ..."]]
    best: int = eqx.field(static=True)
    status: FitStatus = eqx.field(static=True)

    def __repr__(self) -> str:
        if not isinstance(self.objective, np.ndarray):  # For example, a mask of it.
            return eqx.tree_pformat(self)
        width = max(map(len, ["objective", *self.parameters]))
        lines = [f"<Fit of {len(self.objective) - 1} steps, {self.status.value}:"]
        for name, trace in {"objective": self.objective, **self.parameters}.items():
            first, best = (np.array2string(trace[i], precision=4) for i in (0, self.best))
            lines.append(f"    {name:{width}}  {first} -> {best}")
        return "\n".join(lines) + ">"


# A step evaluates the objective once, where L-BFGS of Optax with its search along a line
# did so about six times to rise as far. Never done by itself: `fit` tells when.
_bfgs = optx.BFGS(rtol=0.0, atol=0.0)
_nngp = LastLayer()


def fit(
    net: AbstractLayer,
    x_train: Arrays,
    y_train: ArrayLike,
    *,
    diag_reg: ArrayLike = 0.1,
    absolute: bool = False,
    learn_diag_reg: bool = True,
    objective: Callable[[Posterior], Array] = Posterior.log_marginal_likelihood,
    trained: AbstractTrained = _nngp,
    where: Where = None,
    optimiser: Optimiser = _bfgs,
    steps: int = 100,
    tolerance: float = 1e-5,
    starts: int = 1,
    key: PRNGKeyArray | None = None,
    memory: int | None = None,
    progress: Progress | bool = True,
) -> Fit:
    r"""Learns the hyperparameters of an infinite network, and the noise of its targets.

    By default it maximises the log marginal likelihood, equation (5.8) of Rasmussen and
    Williams (2006). Derivatives are exact.

    What must be positive (standard deviations, `diag_reg`) is learnt by its logarithm, and
    stays positive; those of the network within a factor of 10000 of where they start. So a
    `b_std` of zero stays zero, and one of `None` none: to learn it, start from a small one,
    such as 0.1. Other parameters are real numbers. Of `Repeat`,
    all copies of the layer have them in common.

    `diag_reg` stays above what rounding makes of the kernel: about $10^{-5} \sqrt n$ of its
    diagonal in float32, $10^{-14} \sqrt n$ in float64. Targets with less noise need that:
    `jax.config.update("jax_enable_x64", True)`.

    ??? cite "Reference"
        ```bibtex
        @book{rasmussen2006gaussian,
            title={Gaussian Processes for Machine Learning},
            author={Carl Edward Rasmussen and Christopher K. I. Williams},
            publisher={MIT Press},
            year={2006},
        }
        ```

    !!! example

        ```python
        fit = inn.fit(net, x_train, y_train)
        k = inn.gram(fit.net, x_train, ntk=False).nngp
        posterior = inn.condition(k, y_train, diag_reg=fit.diag_reg)
        ```

    **Arguments:**

    - `net`: a network. Widths do not matter. It is best to standardise inputs and targets.
    - `x_train`: a batch of inputs, as for [`infinitenet.gram`][].
    - `y_train`: the targets, shape `(n, *outputs)`. All outputs share the kernel.
    - `diag_reg`: the noise to start from, as for [`infinitenet.condition`][]: a scalar, in
        units of the mean of the kernel's diagonal.
    - `absolute`: if true, `diag_reg` is in units of the kernel.
    - `learn_diag_reg`: if false, `diag_reg` is left as it is. Then it may also be zero, or
        of shape `(n,)`.
    - `objective`: what to maximise, a function of a [`infinitenet.Posterior`][] that
        returns a scalar, such as [`infinitenet.leave_one_out_log_density`][].
    - `trained`: [`infinitenet.LastLayer`][] for the NNGP kernel, that of a Bayesian
        network; [`infinitenet.AllLayers`][] for the NTK in its place.
    - `where`: what to learn. By default, what [`infinitenet.hyperparameters`][] tells.
        Otherwise a pytree as it returns, or a function of a network that returns a leaf or
        several, such as `lambda net: net.layers[0].W_std`.
    - `optimiser`: any of Optax, or a minimiser of Optimistix. They act on a vector, and on
        minus the objective, divided by the number of targets. BFGS by default.
    - `steps`: how many at most.
    - `tolerance`: it has converged when 20 steps together have raised the objective by less
        than this, per target. Optimisers that know it earlier stop earlier.
    - `starts`: how often to start. After the first time, from other hyperparameters: a
        standard normal number is added to each, on the scale on which it is learnt. The
        best fit is returned, and traces of it alone.
    - `key`: a random key, for these.
    - `memory`: as for [`infinitenet.gram`][]. Besides it takes that of about seven kernel
        matrices.
    - `progress`: as there, in steps.

    **Returns:** A [`infinitenet.Fit`][]. If it is interrupted (`KeyboardInterrupt`), of the
        best hyperparameters so far.

    **Raises:** `ValueError` if an argument is none of these, if nothing is to be learnt,
        and if the objective is not finite at the start. Later on, hyperparameters without
        a posterior are those to turn back from, and no error.

    It cannot be transformed itself. To differentiate, compile or vectorise an objective,
    write it as `inn.condition(inn.gram(...).nngp, y).log_marginal_likelihood()`.
    """
    if is_traced((net, x_train, y_train, diag_reg)):
        raise ValueError(_TRACED)
    _check_numbers(steps, tolerance, starts, key)
    check_trained(trained)
    ascent = to_ascent(optimiser)
    x = to_batch("x_train", x_train)
    n, dtype = _check_kernel(net, x, trained, memory)
    y = check_targets("y_train", y_train, n, dtype)
    noise = _check_noise(diag_reg, n, dtype, learn_diag_reg, absolute)
    _check_where(net, where)
    learnt, fixed = select(net, where), None if learn_diag_reg else noise
    problem = Problem(learnt, x, y, fixed, objective, trained, absolute, memory)
    first = _starts(problem.start(noise), starts, key)
    with reporting(progress, "learning", "steps") as report:
        records, status = _best_ascent(problem, first, ascent, steps, tolerance, report)
    if not records:
        _explain_start(problem, noise)
    return _to_fit(problem, records, status)


_TRACED = (
    "`fit` runs step by step, and cannot be compiled, vectorised or differentiated. "
    "Transform `condition(gram(net, x).nngp, y).log_marginal_likelihood()` instead."
)


#
# Checks of arguments
#


def _check_numbers(
    steps: int, tolerance: float, starts: int, key: PRNGKeyArray | None
) -> None:
    for name, value in (("steps", steps), ("starts", starts)):
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
            raise ValueError(f"`{name}` must be a positive integer, but it is {value!r}.")
    if not tolerance >= 0:
        raise ValueError(f"`tolerance` must not be negative, but it is {tolerance!r}.")
    if starts > 1 and key is None:
        raise ValueError("`key` is needed for several starts: give `jax.random.key(0)`.")
    if key is not None and not eqx.is_array(key):
        raise ValueError(
            f"`key` must be a random key, such as `jax.random.key(0)`, but it is {key!r}."
        )


def _check_where(net: AbstractLayer, where: Where) -> None:
    """Of what functions select; the rest is up to `select`."""
    if where is None or isinstance(where, AbstractLayer):
        return
    if not callable(where):
        raise ValueError(f"`where` must be a pytree or a function, but it is {where!r}.")
    chosen = where(net)
    for leaf in chosen if isinstance(chosen, list | tuple) else [chosen]:
        if not isinstance(leaf, eqx.Module | jax.Array | np.ndarray):
            raise ValueError(
                f"`where` selects {leaf!r}, which is no floating-point array. Widths are "
                "not learnt; nor is a `b_std` of `None`: start from one such as 0.1."
            )


def _check_kernel(
    net: AbstractLayer, x: Arrays, trained: AbstractTrained, memory: int | None
) -> tuple[int, np.dtype]:
    """The number of examples, and the kernel's dtype."""
    if not isinstance(net, AbstractLayer):
        raise ValueError(f"`net` must be a layer, but it is {net!r}.")
    k = eqx.filter_eval_shape(unchecked_kernel, net, x, trained, memory)
    if k.ndim > 2:
        raise ValueError(
            "`net` must not keep positions to its end: add `Flatten` or global pooling."
        )
    return batch_size(x), k.dtype


def _check_noise(
    diag_reg: ArrayLike, n: int, dtype: np.dtype, is_learnt: bool, absolute: bool
) -> Float[Array, "..."]:
    noise = check_diag_reg(diag_reg, n, dtype)
    if not is_learnt:
        return noise
    if noise.shape:
        raise ValueError(
            "`diag_reg` must be a scalar to be learnt. With one for each example, use "
            "`learn_diag_reg=False`."
        )
    least = 0.0 if absolute else Problem.floor_of(n, dtype)
    if noise <= least:
        raise ValueError(
            f"`diag_reg` must be above {least:.1e} to be learnt, which is rounding, but it "
            f"is {noise}. Start from a larger one, or use `learn_diag_reg=False`."
        )
    return noise


def _explain_start(problem: Problem, noise: Float[Array, "..."]) -> None:
    """Raises an error that says why there is no objective at the start."""
    net, is_ntk = problem.learnt.net, not isinstance(problem.trained, LastLayer)
    kernels = gram(net, problem.x, ntk=is_ntk, memory=problem.memory, progress=False)
    name, k = problem.trained.tangent_kernel("k", kernels)
    del name
    posterior = condition(k, problem.y, diag_reg=noise, absolute=problem.absolute)
    value = problem.objective(posterior)
    if jnp.all(jnp.isfinite(value)):
        raise ValueError(
            "`objective` is finite at the start, but not its derivatives. Start from other "
            "hyperparameters, or from a larger `diag_reg`."
        )
    raise ValueError(
        f"`objective` is {value} at the start. Start from other hyperparameters, or from a "
        "larger `diag_reg`, or use float64."
    )


#
# Steps
#

# Searches along a line halve their steps: by then a millionth of the first one is left.
_PATIENCE = 20

_advance = eqx.filter_jit(
    lambda ascent, problem, z, state: ascent.advance(problem, z, state)
)


def _highest(records: list[Record]) -> float:
    return max(float(record.value) for record in records)


def _starts(
    z: Float[Array, " parameters"], starts: int, key: PRNGKeyArray | None
) -> list[Float[Array, " parameters"]]:
    if z.size == 0:
        raise ValueError("There is nothing to learn: see `hyperparameters(net)`.")
    out = [z]
    for i in range(1, starts):
        assert key is not None  # It was checked.
        out.append(z + jr.normal(jr.fold_in(key, i), z.shape, z.dtype))
    return out


def _best_ascent(
    problem: Problem,
    starts: list[Float[Array, " parameters"]],
    ascent: AbstractAscent,
    steps: int,
    tolerance: float,
    report: Progress,
) -> tuple[list[Record], FitStatus]:
    """That which comes highest. No records if there is no objective at the first start."""
    total = len(starts) * steps
    best = _ascend(
        problem, starts[0], ascent, steps, tolerance, lambda step: report(step, total)
    )
    for i, z in enumerate(starts[1:], 1):
        if not best[0] or best[1] is FitStatus.INTERRUPTED:
            return best
        tell = lambda step, i=i: report(i * steps + step, total)
        try:
            new = _ascend(problem, z, ascent, steps, tolerance, tell)
        except KeyboardInterrupt:
            new = [], FitStatus.INTERRUPTED
        if new[0] and _highest(new[0]) > _highest(best[0]):
            best = new
        if new[1] is FitStatus.INTERRUPTED:
            return best[0], new[1]
    report(total, total)
    return best


def _ascend(
    problem: Problem,
    z: Float[Array, " parameters"],
    ascent: AbstractAscent,
    steps: int,
    tolerance: float,
    tell: Callable[[int], None],
) -> tuple[list[Record], FitStatus]:
    """Records of parameters with a finite objective, one for each step."""
    records, highest, finished = [], [], False
    try:
        state = ascent.init(problem, z)
        for step in range(steps + 1):
            old = z
            z, state, record, done = _advance(ascent, problem, z, state)
            if np.isnan(record.value):
                record = evaluate(problem, old)
            if not np.isfinite(record.value):
                return records, FitStatus.DIVERGED
            records.append(jax.device_get(record))
            highest.append(max([float(record.value), *highest[-1:]]))
            tell(step)
            # One more step, as a record may be about the parameters before the last ones.
            if finished or _is_level(highest, tolerance * problem.y.size):
                return records, FitStatus.CONVERGED
            finished = bool(done)
    except KeyboardInterrupt:
        if not records:
            raise
        return records, FitStatus.INTERRUPTED
    return records, FitStatus.STOPPED


def _is_level(highest: list[float], tolerance: float) -> bool:
    return len(highest) > _PATIENCE and (highest[-1] - highest[-1 - _PATIENCE] <= tolerance)


def _to_fit(problem: Problem, records: list[Record], status: FitStatus) -> Fit:
    z, objective, diag_reg = (np.stack(each) for each in zip(*records, strict=True))
    best = int(np.argmax(objective))
    learnt = problem.learnt
    traces = jax.vmap(lambda z: learnt.of(learnt.from_vector(z)))(jnp.asarray(z))
    parameters = {name: np.asarray(trace) for name, trace in traces.items()}
    if problem.fixed_diag_reg is None:
        parameters["diag_reg"] = diag_reg
    net = learnt.from_vector(jnp.asarray(z[best]))
    return Fit(net, jnp.asarray(diag_reg[best]), objective, parameters, best, status)
