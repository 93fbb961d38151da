"""The program which draws networks, and adds their kernels up."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from .._empirical import kernels as empirical
from .._empirical.methods import AbstractNTKMethod
from .draws import Sampler
from .estimate import relative
from .moments import Kernels, Moments, no_samples


# Why the program came to an end.
RUNNING, REACHED, FAILED = range(3)

# Samples before anything is said of how much they vary.
FEWEST = 16


class Options(eqx.Module):
    """What is wanted of each network: as for `empirical_kernel`."""

    ntk: bool = eqx.field(static=True)
    trace_axes: Any = eqx.field(static=True)
    diagonal_axes: Any = eqx.field(static=True)
    method: AbstractNTKMethod | None
    memory: int | None = eqx.field(static=True)
    mesh: jax.sharding.Mesh | None = eqx.field(static=True)

    def kernel(self, model: Any, x1: PyTree, x2: PyTree | None) -> Kernels:
        """Of one network. It may be infinite, which is looked for in all of them."""
        axes = self.trace_axes, self.diagonal_axes
        options = empirical.Options(*axes, self.method, self.memory, self.mesh, False)
        out = empirical.unchecked_kernels(model, x1, x2, options, ntk=self.ntk)
        if len(out.nngp) != 1:
            raise ValueError(
                f"`net` must return one array, but it returns {len(out.nngp)} of them: "
                "leave out what is not of interest."
            )
        return out.kind(out.nngp[0], out.ntk[0] if out.ntk else None)


class Experiment(eqx.Module):
    """Everything that samples are determined by: sample `i` is of `fold_in(key, i)`.

    - `at_once`: how many networks are evaluated at the same time.
    - `rtol`: the relative standard error that is small enough; `None` to go on.
    """

    sampler: Sampler
    options: Options
    key: PRNGKeyArray
    x1: PyTree
    x2: PyTree | None
    at_once: int = eqx.field(static=True)
    rtol: Float[Array, ""] | None

    # Compiled by itself, so that it is traced once.
    @eqx.filter_jit
    def sample(self, i: Int[Array, ""]) -> Kernels:
        key = jr.fold_in(self.key, i)
        return self.options.kernel(*self.sampler(key, self.x1, self.x2))

    def samples(self, start: Int[Array, ""]) -> Kernels:
        """As many as are evaluated at once, along a first axis."""
        if self.at_once == 1:
            return jax.tree.map(lambda k: k[None], self.sample(start))
        return jax.vmap(self.sample)(start + jnp.arange(self.at_once, dtype=jnp.int32))

    def is_enough(self, moments: Moments) -> Bool[Array, ""]:
        if self.rtol is None:
            return jnp.asarray(False)
        variance = moments.variance_of_mean()
        one = lambda v, k: relative(jnp.sqrt(v), k)
        errors = jax.tree.leaves(jax.tree.map(one, variance, moments.mean))
        enough = jnp.max(jnp.stack(errors)) <= self.rtol
        return enough & (moments.count >= FEWEST)


@eqx.filter_jit
def advance(
    experiment: Experiment, moments: Moments, stop: Int[Array, ""]
) -> tuple[Moments, Int[Array, ""]]:
    """Adds samples until there are `stop` of them, and says why it came to an end.

    How many samples there were to begin with does not matter to the sum: those which
    are evaluated at once always begin at a multiple of their number. What comes before the
    ones that are missing, or after them, is thrown away.
    """
    size = experiment.at_once

    def add_one(j, carry, samples, start):
        moments, status = carry
        new = moments.add(jax.tree.map(lambda k: k[j], samples))
        missing = (start + j == moments.count) & (moments.count < stop)
        missing &= status == RUNNING
        good = new.is_finite()
        enough = jnp.where(experiment.is_enough(new), REACHED, RUNNING)
        status = jnp.where(missing, jnp.where(good, enough, FAILED), status)
        keep = lambda new, old: jnp.where(missing & good, new, old)
        return jax.tree.map(keep, new, moments), status

    def add_some(carry):
        start = carry[0].count // size * size
        samples = experiment.samples(start)
        body = lambda j, carry: add_one(j, carry, samples, start)
        return lax.fori_loop(0, size, body, carry)

    goes_on = lambda carry: (carry[0].count < stop) & (carry[1] == RUNNING)
    status = jnp.where(experiment.is_enough(moments), REACHED, RUNNING)
    return lax.while_loop(goes_on, add_some, (moments, status))


def unconditional(experiment: Experiment, counts: Sequence[int]) -> list[Moments]:
    """Moments at some numbers of samples, in a way that can be differentiated."""
    # A method would be hashed with its arrays.
    sample = jax.checkpoint(lambda i: experiment.sample(i))
    start = empty(experiment)
    several = jax.tree.map(lambda x: jnp.stack([x] * len(counts)), start)

    def add(i, carry):
        moments, records = carry
        moments = moments.add(sample(i))
        due = jnp.asarray(counts) == moments.count

        def write(records, x):
            return jnp.where(due.reshape(-1, *[1] * x.ndim), x[None], records)

        return moments, jax.tree.map(write, records, moments)

    _, records = lax.fori_loop(0, counts[-1], add, (start, several))
    return [jax.tree.map(lambda x, i=i: x[i], records) for i in range(len(counts))]


def empty(experiment: Experiment) -> Moments:
    """No samples yet.

    **Raises:** `ValueError` if there is anything wrong with the model.
    """
    first = jnp.asarray(0, jnp.int32)
    return no_samples(eqx.filter_eval_shape(experiment.sample, first))
