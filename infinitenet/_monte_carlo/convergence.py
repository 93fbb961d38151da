"""How kernels of finite networks approach those of the infinite one."""

import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from .._checks import check_shape
from .._empirical.methods import AbstractNTKMethod
from .._gram import gram
from .._layer import AbstractLayer
from .._matrices import check_gram, Gram
from .._progress import Progress, reporting
from .deviation import relative
from .estimate import MonteCarloGram
from .gram import monte_carlo_gram


class MonteCarloConvergence(eqx.Module):
    r"""Errors of Monte Carlo kernels. Made by
    [`infinitenet.monte_carlo_convergence`][].

    Errors are $\|\hat K - K\|_F / \|K\|_F$, of which the square is sometimes given in
    place of it. They have two parts: the error of sampling, which falls as
    $1 / \sqrt{\text{samples}}$, and the bias of finite width, $O(1 / \text{width})$. The
    expectation of the squared error is the sum of both squares.

    - `widths`: shape `(widths,)`.
    - `n_samples`: numbers of networks, shape `(samples,)`.
    - `nngp`: the errors, shape `(widths, samples)`.
    - `ntk`: likewise, or `None` if it was not asked for.
    - `nngp_sampling`: the part that is due to sampling, as its root mean square, shape
        `(widths, samples)`. It is of the variance of all networks of a width.
    - `ntk_sampling`: likewise, or `None`.
    """

    widths: Int[Array, " widths"]
    n_samples: Int[Array, " samples"]
    nngp: Float[Array, "widths samples"]
    ntk: Float[Array, "widths samples"] | Any
    nngp_sampling: Float[Array, "widths samples"]
    ntk_sampling: Float[Array, "widths samples"] | Any

    def __repr__(self) -> str:
        first, last = int(self.widths[0]), int(self.widths[-1])
        out = (
            f"<MonteCarloConvergence of widths {first} to {last} and up to "
            f"{int(self.n_samples[-1])} networks: relative error"
        )
        for name, error in (("NNGP", self.nngp), ("NTK", self.ntk)):
            if error is not None:
                out += f" of the {name} kernel {float(error[0, 0]):.2g} to "
                out += f"{float(error[-1, -1]):.2g},"
        return out[:-1].replace("NTK kernel", "NTK") + ">"


def monte_carlo_convergence(
    net_of_width: Callable[[int], Any],
    widths: Sequence[int] | np.ndarray,
    key: PRNGKeyArray,
    x1: PyTree,
    x2: PyTree | None = None,
    *,
    n_samples: Sequence[int] | np.ndarray | int,
    exact: Gram | None = None,
    ntk: bool = True,
    samples_at_once: int = 1,
    method: AbstractNTKMethod | None = None,
    memory: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
    progress: Progress | bool = True,
    checkpoint: str | os.PathLike | None = None,
    save_every: float = 60.0,
) -> MonteCarloConvergence:
    r"""Errors of Monte Carlo kernels, for networks of several widths and several numbers of
    them.

    !!! example

        ```python
        convergence = inn.monte_carlo_convergence(
            lambda k: inn.WideResNet(16, k, 1),
            (1, 2, 4, 8),
            key,
            x,
            n_samples=(1, 4, 16, 64),
            exact=inn.gram(inn.WideResNet(16, 1, 1), x),
        )
        inn.plot.convergence(convergence, "ntk")
        ```

    **Arguments:**

    - `net_of_width`: a function of a width that returns what
        [`infinitenet.monte_carlo_gram`][] takes, such as a network.
    - `widths`: ascending. Networks of a width are drawn from
        `jax.random.fold_in(key, width)`, so that widths are independent of each other.
    - `key`: a random key.
    - `x1`, `x2`: as for `monte_carlo_gram`.
    - `n_samples`: numbers of networks at which to tell the error, ascending. The last must
        be 2 or more.
    - `exact`: the kernel of infinite width, for all widths. By default it is computed for
        each width by [`infinitenet.gram`][]: in standard parameterization the NTK is
        another one for each. If it is the same for all, as in NTK parameterization,
        giving it saves time.
    - `ntk`, `samples_at_once`, `method`, `memory`, `mesh`, `progress`, `save_every`: as for
        `monte_carlo_gram`.
    - `checkpoint`: a folder that keeps what was done, in a file for each width.

    **Returns:** A [`infinitenet.MonteCarloConvergence`][].

    **Raises:** `ValueError` for arguments that make no sense, and as `monte_carlo_gram`.

    ??? cite "Reference"
        Novak et al., Neural Tangents: Fast and Easy Infinite Neural Networks in Python,
        ICLR 2020: Figure 2.
    """
    widths = _to_widths(widths)
    _check_counts(n_samples)
    options: dict = {"n_samples": n_samples, "ntk": ntk, "save_every": save_every}
    options |= {"samples_at_once": samples_at_once, "method": method}
    options |= {"memory": memory, "mesh": mesh}
    rows, records = [], ()
    with reporting(progress, "Monte Carlo", "networks") as report:
        for i, width in enumerate(widths):
            net = net_of_width(width)
            # First, as it may be refused.
            k = _exact(exact, net, x1, x2, ntk)
            shift = lambda done, total, i=i: report(i * total + done, len(widths) * total)
            options |= {"progress": shift, "checkpoint": _file(checkpoint, width)}
            estimate = monte_carlo_gram(net, jr.fold_in(key, width), x1, x2, **options)
            rows.append(_errors(estimate, k))
            records = estimate.records
    counts = jnp.asarray([record.n_samples for record in records])
    table = jax.tree.map(lambda *rows: jnp.stack(rows), *rows)
    return MonteCarloConvergence(jnp.asarray(widths), counts, *table)


def _check_counts(n_samples: Any) -> None:
    if np.size(n_samples) and np.max(n_samples) < 2:
        raise ValueError(
            "`n_samples` must go to 2 at least, as one network has no standard error, but "
            f"it is {n_samples!r}."
        )


def _file(folder: str | os.PathLike | None, width: int) -> pathlib.Path | None:
    return None if folder is None else pathlib.Path(folder) / f"width_{width}.npz"


def _to_widths(widths: Any) -> list[int]:
    out = np.asarray(widths)
    good = np.issubdtype(out.dtype, np.integer) and out.ndim == 1 and out.size
    if not good or out[0] < 1 or np.any(np.diff(out) <= 0):
        raise ValueError(
            f"`widths` must be positive whole numbers that ascend, but they are {widths!r}."
        )
    return [int(width) for width in out]


def _exact(exact: Gram | None, net: Any, x1: PyTree, x2: PyTree | None, ntk: bool) -> Gram:
    if exact is not None:
        check_gram("exact", exact)
        # Inputs are looked at later.
        examples = lambda x: np.shape(jax.tree.leaves(x)[0])[:1]
        sizes = (*examples(x1), *examples(x1 if x2 is None else x2))
        because = "a row for each of `x1` and a column for each of `x2`"
        check_shape("exact.nngp", exact.nngp, (*sizes, *exact.nngp.shape[2:]), because)
        if ntk and exact.ntk is None:
            raise ValueError("`exact` has no NTK: give it, or use `ntk=False`.")
        return exact
    if not isinstance(net, AbstractLayer):
        raise ValueError(
            "`exact` must be given if `net_of_width` does not return layers of "
            "infinitenet, as there is no kernel in closed form."
        )
    return gram(net, x1, x2, ntk=ntk, progress=False)


def _errors(estimate: MonteCarloGram, k: Gram) -> tuple[Array | None, ...]:
    """Of a width: both errors, and both parts of them that are due to sampling."""
    std = estimate.std
    errors, parts = [], []
    for name in ("nngp", "ntk"):
        last, exact = getattr(estimate.gram, name), getattr(k, name)
        if last is None:
            errors.append(None)
            parts.append(None)
            continue
        exact = check_shape(f"exact.{name}", exact, last.shape, "that of the estimate")
        means = [getattr(record.gram, name) for record in estimate.records]
        counts = jnp.asarray([record.n_samples for record in estimate.records], last.dtype)
        errors.append(jnp.stack([relative(mean - exact, exact) for mean in means]))
        parts.append(relative(getattr(std, name), exact) / jnp.sqrt(counts))
    return (*errors, *parts)
