"""Sums over the neighbours in a graph."""

import abc
import math

import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
from equinox import AbstractVar
from jaxtyping import Array, Float

from .._covariance import Covariance, Pairs
from .._hyperparameters import to_optional_sizes
from .._inputs import Inputs, Positions
from .._layer import AbstractLayer
from .._path import LayerError


class AbstractAggregate(AbstractLayer):
    """Sums over positions as a graph says, which comes along with each input."""

    aggregate_axis: AbstractVar[tuple[int, ...] | None]

    @abc.abstractmethod
    def problem(self, pattern: tuple[int, ...], sizes: tuple[int, ...]) -> str | None:
        """What stands in the way of a graph of this shape, on so many positions."""

    @abc.abstractmethod
    def sum(self, pattern: Array, x: Float[Array, "*tails n"]) -> Float[Array, "*heads n"]:
        """The sums over neighbours of each position."""

    def _axes(self, ndim: int) -> tuple[int, ...]:
        return tuple(range(ndim)) if self.aggregate_axis is None else self.aggregate_axis

    def check(self, signal):
        ndim, axes = len(signal.spatial), self._axes(len(signal.spatial))
        valid = all(0 <= axis < ndim for axis in axes) and len(set(axes)) == len(axes)
        if not axes or not valid:
            raise LayerError(
                self,
                "`aggregate_axis` must be axes of positions of one example, counted from "
                f"0, without channels: there are {ndim}, but it is {self.aggregate_axis}.",
            )
        if signal.pattern is None:
            raise self._no_pattern()
        sizes = tuple(signal.spatial[axis] for axis in axes)
        problem = self.problem(signal.pattern, sizes)
        if problem is not None:
            raise LayerError(
                self,
                f"{problem}, for aggregation over positions {sizes}, but its shape for one "
                f"example is {signal.pattern}.",
            )
        return signal

    def _no_pattern(self) -> LayerError:
        return LayerError(
            self,
            "needs a graph: give `Inputs(x, pattern=...)` for `x`, wherever that is given.",
        )

    def _move(
        self, positions: Positions, x: Float[Array, "*spatial n"]
    ) -> Float[Array, "*spatial n"]:
        if positions.pattern is None:
            raise self._no_pattern()
        axes = self._axes(x.ndim - 1)
        first = tuple(range(len(axes)))
        x = jnp.moveaxis(x, axes, first)
        # Axes that are not summed over are like channels.
        flat = x.reshape(*x.shape[: len(axes)], -1)
        return jnp.moveaxis(self.sum(positions.pattern, flat).reshape(x.shape), first, axes)

    def __call__(self, x, *, key=None):
        return self.carry(Inputs(x), key=key).array

    def carry(self, inputs, *, key=None):
        del key
        return inputs.through(self._move(inputs.positions, inputs.array), self.mask)

    def requires(self, demand):
        return demand.of_all_pairs()

    def infinite(self, kernel):
        def aggregate_at(p1: Positions, p2: Positions):
            def aggregate(k11: Covariance, k12: Covariance, k22: Covariance):
                del k11, k22
                return k12.transform(
                    lambda x: self._move(p1, x), lambda x: self._move(p2, x)
                )

            return aggregate

        return kernel.propagate_at(aggregate_at, needs=Pairs.ALL)


class Aggregate(AbstractAggregate):
    r"""Sums over the neighbours in a graph, $z(p) = \sum_q A_{q p}\, x(q)$.

    Positions are its vertices, and $A_{q p}$ is the weight of the edge from $q$, the tail,
    to $p$, the head. It comes with each input, as that has a graph of its own:
    `inn.Inputs(x, pattern=A)`. At infinite width $k' = A_1^\top k A_2$.

    !!! example

        ```python
        net = inn.Sequential(
            [inn.Dense(64), inn.Aggregate(), inn.Relu(), inn.GlobalAvgPool(), inn.Dense(1)]
        )
        # `x` of shape `(n, vertices, channels)`, `A` of `(n, vertices, vertices)`.
        k = inn.gram(net, inn.Inputs(x, pattern=A))
        ```

    ??? cite "Reference"
        Du, Hou, Salakhutdinov, Poczos, Wang & Xu, Graph Neural Tangent Kernel, NeurIPS
        2019: section 3.
    """

    aggregate_axis: tuple[int, ...] | None = eqx.field(
        default=None, static=True, converter=to_optional_sizes
    )

    def problem(self, pattern, sizes):
        if pattern == 2 * sizes:
            return None
        return f"`pattern` must be of shape {2 * sizes}, first tails, then heads"

    def sum(self, pattern, x):
        ndim = x.ndim - 1
        weights = pattern.astype(x.dtype)
        axes = tuple(range(ndim))
        return jnp.tensordot(weights, x, (axes, axes), precision=lax.Precision.HIGHEST)


class SparseAggregate(AbstractAggregate):
    r"""Sums over the neighbours in a graph that is given by the list of its edges.

    `inn.Inputs(x, pattern=edges)` has, for each input, integers of shape `(edges, axes,
    2)`: coordinates of the tail and of the head of each edge, along as many axes of
    positions as are aggregated over. If that is one, `(edges, 2)` will do. Edges with a
    negative coordinate do not count, so that all inputs may have the same number of edges;
    those which are given several times count as often. See [`infinitenet.Aggregate`][].

    ??? cite "Reference"
        Du, Hou, Salakhutdinov, Poczos, Wang & Xu, Graph Neural Tangent Kernel, NeurIPS
        2019: section 3.
    """

    aggregate_axis: tuple[int, ...] | None = eqx.field(
        default=None, static=True, converter=to_optional_sizes
    )

    def problem(self, pattern, sizes):
        shapes = [(len(sizes), 2)] + [(2,)] * (len(sizes) == 1)
        if len(pattern) > 1 and pattern[1:] in shapes:
            return None
        return f"`pattern` must be of shape `(edges, {len(sizes)}, 2)`, of (tail, head)"

    def sum(self, pattern, x):
        spatial = x.shape[:-1]
        if not jnp.issubdtype(pattern.dtype, jnp.integer):
            raise LayerError(
                self, f"`pattern` must be integers, but its dtype is {pattern.dtype}."
            )
        edges = pattern.reshape(-1, len(spatial), 2)
        sizes = jnp.asarray(spatial)[None, :, None]
        inside = jnp.all((edges >= 0) & (edges < sizes), (1, 2))
        edges = jnp.where(inside[:, None, None], edges, 0)
        tails, heads = (
            jnp.ravel_multi_index(tuple(edges[..., i].T), spatial, mode="clip")
            for i in range(2)
        )
        flat = x.reshape(math.prod(spatial), -1)
        along = jnp.where(inside[:, None], flat[tails], 0)
        return jnp.zeros_like(flat).at[heads].add(along).reshape(x.shape)


_arguments = """**Arguments:**

- `aggregate_axis`: the axes of positions that the graph is on, of one example, counted
    from 0. By default all of them.
"""
Aggregate.__init__.__doc__ = _arguments
SparseAggregate.__init__.__doc__ = _arguments
