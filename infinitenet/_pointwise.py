"""Nonlinearities that act on each activation by itself."""

import abc
import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._covariance import Pairs
from ._kernel import Demand, Kernel
from ._layer import AbstractLayer
from ._path import LayerError
from ._signal import Signal


class AbstractPointwise(AbstractLayer):
    r"""A nonlinearity $\phi$, applied to each activation.

    At infinite width $k' = E[\phi(u) \phi(v)]$ for Gaussian $u, v$ of variances $q_1, q_2$
    and covariance $k$: the dual of $\phi$. The NTK's factor $E[\phi'(u) \phi'(v)]$ is its
    derivative along $k$ (Price's theorem), so that nothing else need be given.

    ??? cite "Reference"
        Daniely, Frostig & Singer, Toward Deeper Understanding of Neural Networks, NeurIPS
        2016: section 4 (duals).
    """

    @abc.abstractmethod
    def dual(
        self, q1: Float[Array, "..."], k: Float[Array, "..."], q2: Float[Array, "..."]
    ) -> Float[Array, "..."]:
        """`E[f(u) f(v)]`, for Gaussian `u, v` of variances `q1, q2`, covariance `k`.

        It acts on each entry, and must be differentiable, with finite values and
        derivatives also for `q1 == k == q2`, and for variances of zero.
        """

    @property
    def odd(self) -> bool:
        r"""Whether $\phi(-x) = -\phi(x)$ for certain, so that outputs have zero mean."""
        return False

    @property
    def flat(self) -> bool:
        r"""Whether $\phi'$ vanishes wherever it exists, as for steps.

        Gradient descent does not see through these, so that the NTK is zero after them,
        although the dual does change with the covariance.
        """
        return False

    def dual_at(self, q: Float[Array, "*#s"], k: Float[Array, "*s"]) -> Float[Array, "*s"]:
        """The dual where all inputs have the variance `q`, if there is a faster way then.

        Under `vmap` over inputs `q` is not batched, so what depends on it alone is
        computed once.
        """
        return self.dual(q, k, q)

    def as_pointwise(self) -> "AbstractPointwise":
        return self

    def check(self, signal: Signal) -> Signal:
        if not signal.gaussian:
            raise LayerError(
                self,
                "must come after a layer of weights such as `Dense` or `Conv` (with "
                "nothing in between that mixes features with positions or applies "
                "another nonlinearity), as its inputs must be Gaussian at infinite width. "
                "Insert one before it.",
            )
        return signal.nonlinear(odd=self.odd)

    def step(self, signal: Signal) -> tuple[int, ...]:
        return (1,) * len(signal.spatial)

    def requires(self, demand: Demand) -> Demand:
        return demand.at_least(Pairs.SAME, Pairs.SAME)

    def infinite(self, kernel: Kernel) -> Kernel:
        def dual(k11, q1, k12, q2):
            if kernel.uniform and k12 is not k11:
                return self.dual_at(q1, k12.array)
            return self.dual(q1, k12.array, q2)

        def pointwise(k11, k12, k22):
            q1, q2 = k12.align(k11.diagonal(), k22.diagonal())
            return k12.with_array(dual(k11, q1, k12, q2))

        if not self.flat or kernel.ntk is None:
            return kernel.propagate(pointwise)
        out = dataclasses.replace(kernel, ntk=None).propagate(pointwise)
        return dataclasses.replace(out, ntk=jax.tree.map(jnp.zeros_like, out.nngp))
