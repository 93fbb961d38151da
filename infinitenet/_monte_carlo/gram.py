"""Kernels of which there is no closed form."""

import operator
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree

from .._checkpoint import fingerprint_of
from .._checks import check_finite
from .._empirical.methods import AbstractNTKMethod
from .._layer import AbstractLayer
from .._progress import Progress, reporting
from .._tiles import to_memory
from .._tracing import is_traced
from .._weights import without_weights
from .draws import to_sampler
from .estimate import MonteCarloGram
from .experiment import empty, Experiment, FEWEST, Options, unconditional
from .moments import Moments
from .run import run
from .store import Store


def monte_carlo_gram(
    net: Any,
    key: Array,
    x1: PyTree,
    x2: PyTree | None = None,
    *,
    n_samples: int | Sequence[int] | np.ndarray,
    ntk: bool = True,
    rtol: float | None = None,
    samples_at_once: int = 1,
    trace_axes: Sequence[int] | None = None,
    diagonal_axes: Sequence[int] = (),
    method: AbstractNTKMethod | None = None,
    memory: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
    progress: Progress | bool = True,
    checkpoint: str | os.PathLike | None = None,
    save_every: float = 60.0,
) -> MonteCarloGram:
    r"""Kernels of finite networks, averaged over draws of their weights, with errors.

    It serves for networks of which there is no kernel in closed form, such as those with
    `MaxPool` or `BatchNorm` or of other libraries, and to see how far finite networks are
    from the infinite one: $\mathbb{E} f(x_1) f(x_2)^T$ and $\mathbb{E}\, \partial_w f(x_1)
    \, \partial_w f(x_2)^T$, of networks of the widths that they have. From the kernels of
    the infinite network these differ by $O(1 / \text{width})$, in NTK parameterization.

    !!! example

        ```python
        layers = [inn.Conv(64, (3, 3)), inn.Relu(), inn.MaxPool((2, 2)), inn.Flatten()]
        net = inn.Sequential([*layers, inn.Dense(1)])
        estimate = inn.monte_carlo_gram(net, key, x, n_samples=500)
        estimate.gram.ntk, estimate.standard_error.ntk  # of shape (n, n)
        posterior = inn.condition(estimate.gram.nngp, y, diag_reg=0.1)
        ```

    **Arguments:**

    - `net`: a network, before or after `init`; or a function `net(key)` that returns a
        model: any of those that [`infinitenet.empirical_ntk`][] takes; or a pair of
        functions `(init, apply)` of batches, `apply(init(key, x), x)`, as of Flax Linen
        and (`hk.without_apply_rng`) Haiku.
    - `key`: a random key. Network `i` is drawn from `jax.random.fold_in(key, i)`, whatever
        else is asked for.
    - `x1`: a batch of `n1` inputs, of shape `(n1, *spatial, channels)`, or what else the
        model takes.
    - `x2`: likewise, of `n2` inputs. Without it the kernel is that of `x1` with itself.
    - `n_samples`: the number of networks; or ascending numbers at which to record the
        estimate, of which the last is the number of networks.
    - `ntk`: whether to estimate the NTK too. Mostly it is what takes the time.
    - `rtol`: stops as soon as the root mean square of the standard errors is below this
        fraction of that of the kernel (of both kernels), after 16 networks or more.
        `n_samples` is then the largest number of networks.
    - `samples_at_once`: how many networks to evaluate at the same time. Single small
        networks leave most of a GPU idle. Results differ by rounding only.
    - `trace_axes`, `diagonal_axes`, `method`, `memory`, `mesh`: as for
        [`infinitenet.empirical_ntk`][].
    - `progress`: as for [`infinitenet.gram`][], with the number of networks.
    - `checkpoint`: a file that keeps what was done. If it exists, the estimate goes on from
        it, with the same numbers as if there had been no interruption: after an
        interruption, for more samples, or for other records. Networks that are in the file
        count, though fewer would do for `rtol`. It is kept in the end.
    - `save_every`: seconds between two saves.

    **Returns:** A [`infinitenet.MonteCarloGram`][].

    **Raises:** `ValueError` if an argument makes no sense, or if the model fails, with the
        remedy; if a sample is not finite, with its number; and if the checkpoint is of
        another computation, with what differs.

    Of layers that draw something for each example, such as [`infinitenet.Dropout`][], each
    example has a key of its own, both of `x1` and of `x2`. Without `x2` each example is
    paired with itself under the same key. Examples of networks with
    [`infinitenet.BatchNorm`][] depend on each other: `x1` is one batch, and `x2` another
    one.

    It can be compiled, vectorised and differentiated (with respect to hyperparameters and
    inputs), then without `rtol`, `checkpoint` and progress and one network after the
    other; and what is not finite is a `RuntimeError` at run time.

    ??? cite "Reference"
        Novak et al., Bayesian Deep Convolutional Networks with Many Channels are Gaussian
        Processes, ICLR 2019: section 4 (Monte Carlo evaluation of kernels).
    """
    counts = _to_counts(n_samples)
    _check_rtol(rtol, counts[-1])
    key = _to_key(key)
    sampler, x1, x2 = to_sampler(net, key, x1, x2)
    at_once = _to_size(samples_at_once)
    memory = memory if at_once == 1 else to_memory(memory) // at_once
    axes = (_hashable(trace_axes), _hashable(diagonal_axes))
    options = Options(ntk, *axes, method, memory, mesh)
    tolerance = None if rtol is None else jnp.asarray(rtol, float)
    experiment = Experiment(sampler, options, key, x1, x2, at_once, tolerance)
    if is_traced(experiment):
        if rtol is not None or checkpoint is not None:
            raise ValueError(_NOT_TRACED)
        return _estimate(unconditional(experiment, counts), counts, None)
    fingerprint = {} if checkpoint is None else _fingerprint(net, experiment)
    store = Store(checkpoint, save_every, fingerprint, empty(experiment))
    with reporting(progress, "Monte Carlo", "networks") as report:
        moments, reached = run(experiment, counts, store, report)
    done = [int(m.count) for m in moments]
    return _estimate(moments, done, None if rtol is None else reached)


_NOT_TRACED = (
    "`rtol` and `checkpoint` need values, which are not known under `jit` and other "
    "transformations: leave them out, or call it outside."
)


def _estimate(
    moments: Sequence[Moments], counts: Sequence[int], reached: bool | None
) -> MonteCarloGram:
    records = []
    for each, n in zip(moments, counts, strict=True):
        mean = jax.tree.map(lambda k: check_finite("kernel", k, _OVERFLOW), each.mean)
        last = n == counts[-1]
        records.append(MonteCarloGram(mean, each.squares, n, reached if last else None))
    last = records[-1]
    return MonteCarloGram(last.gram, last.squares, last.n_samples, reached, tuple(records))


_OVERFLOW = (
    "A network, or its derivatives, overflow or are undefined on these inputs. Lower the "
    "scale of weights or inputs, or use float64."
)


def _fingerprint(net: Any, experiment: Experiment) -> dict[str, Any]:
    """What can be told of a computation, besides what comes out.

    How many networks are evaluated at once is left out, and `rtol`: they may change.
    """
    options = experiment.options
    known = isinstance(net, AbstractLayer)
    bare = without_weights(net) if known else None
    return {
        "kind": "monte_carlo_gram",
        "`key`": fingerprint_of(experiment.key),
        "`x1`": fingerprint_of(experiment.x1),
        "`x2`": None if experiment.x2 is None else fingerprint_of(experiment.x2),
        "`ntk`": options.ntk,
        "`trace_axes`": options.trace_axes,
        "`diagonal_axes`": options.diagonal_axes,
        "`net`": repr(bare) if known else "a function",
        "hash of the hyperparameters of `net`": fingerprint_of(bare),
    }


#
# Checks of arguments
#


def _to_counts(n_samples: Any) -> list[int]:
    counts = np.asarray(n_samples)
    if not np.issubdtype(counts.dtype, np.integer) or counts.ndim > 1 or not counts.size:
        raise ValueError(
            "`n_samples` must be a whole number, or a sequence of the numbers to record, "
            f"but it is {n_samples!r}."
        )
    counts = np.atleast_1d(counts)
    if counts[0] < 1 or np.any(np.diff(counts) <= 0):
        raise ValueError(
            "`n_samples` must be at least 1, and ascend if there are several, but it is "
            f"{n_samples!r}."
        )
    return [int(n) for n in counts]


def _check_rtol(rtol: float | None, most: int) -> None:
    if rtol is None:
        return
    if not isinstance(rtol, int | float) or not rtol > 0:
        raise ValueError(
            f"`rtol` must be a positive number, such as 0.01, or `None`, not {rtol!r}."
        )
    if most < FEWEST:
        raise ValueError(
            f"`n_samples` must be at least {FEWEST} with `rtol`, as fewer samples do not "
            f"tell how much they vary, but it is {most}."
        )


def _to_key(key: Any) -> PRNGKeyArray:
    if not isinstance(key, jax.Array):
        raise ValueError(
            f"`key` must be a random key, such as `jax.random.key(0)`, but it is {key!r}."
        )
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not typed and key.dtype == jnp.uint32 and key.ndim == 1:
        key, typed = jr.wrap_key_data(key), True
    if not typed or key.ndim > 0:
        raise ValueError(
            "`key` must be a single random key, such as `jax.random.key(0)`, but its dtype "
            f"is {key.dtype} and its shape {key.shape}. Use `jax.vmap` for several."
        )
    return key


def _to_size(samples_at_once: Any) -> int:
    try:
        size = operator.index(samples_at_once)
    except TypeError:
        size = 0
    if size < 1:
        raise ValueError(
            "`samples_at_once` must be a whole number of at least 1, but it is "
            f"{samples_at_once!r}."
        )
    return size


def _hashable(axes: Any) -> Any:
    return tuple(axes) if isinstance(axes, Sequence) else axes
