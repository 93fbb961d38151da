"""Kernels of one pair of inputs, and how layers move them."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._covariance import Covariance, Pairs


@dataclasses.dataclass(frozen=True)
class Demand:
    """What a layer must be given for all later layers to work: this flows backwards.

    - `cross`: pairs of positions of the covariance between the two inputs.
    - `marginal`: pairs of positions of the covariance of each input with itself.
    """

    cross: Pairs = Pairs.SAME
    marginal: Pairs = Pairs.NONE

    def at_least(self, cross: Pairs, marginal: Pairs) -> "Demand":
        """The demand raised to these."""
        return Demand(max(self.cross, cross), max(self.marginal, marginal))


# For layers that take several inputs, or that pass on several outputs.
Demands: TypeAlias = "Demand | tuple[Demands, ...]"
Kernels: TypeAlias = "Kernel | tuple[Kernels, ...]"

# `fn(k11, k12, k22, *variances)`: the covariance of a layer's outputs.
CovarianceMap: TypeAlias = Callable[..., Covariance]


class Kernel(eqx.Module):
    """What is known of the activations of an infinitely wide network on a pair of inputs.

    - `nngp`: their covariance over random weights, for one channel.
    - `ntk`: the neural tangent kernel of the layers so far; `None` if it is not wanted.
    - `cov1`, `cov2`: the covariance of each input with itself, `None` if no layer needs
        it, and if it is known anyway:
    - `alone`: whether both inputs are the same one, so that all covariances are `nngp`.
        Then they are so exactly, while separate computations would differ by rounding,
        to which angles near zero are sensitive.
    - `uniform`: whether all inputs have the same variance, so that the marginals are one.
    - `channels`: the width of the (finite) layer, `None` if it is not known.
    """

    nngp: Covariance
    ntk: Covariance | None
    cov1: Covariance | None
    cov2: Covariance | None
    alone: bool = eqx.field(static=True)
    channels: int | None = eqx.field(static=True)
    uniform: bool = eqx.field(default=False, static=True)

    @staticmethod
    def of_inputs(
        x1: Float[Array, "*spatial channels"],
        x2: Float[Array, "*spatial channels"] | None,
        demand: Demand,
        *,
        ntk: bool = True,
    ) -> "Kernel":
        """The kernel of the identity: `x1 . x2 / channels`."""
        if x2 is None:
            nngp = Covariance.of_inputs(x1, x1, max(demand.cross, demand.marginal))
            cov1 = cov2 = None
        else:
            nngp = Covariance.of_inputs(x1, x2, demand.cross)
            cov1 = Covariance.of_inputs(x1, x1, demand.marginal)
            cov2 = Covariance.of_inputs(x2, x2, demand.marginal)
        assert nngp is not None
        zero = jax.tree.map(jnp.zeros_like, nngp) if ntk else None
        return Kernel(nngp, zero, cov1, cov2, x2 is None, x1.shape[-1])

    @property
    def dtype(self) -> jnp.dtype:
        return self.nngp.array.dtype

    def restrict(self, demand: Demand) -> "Kernel":
        """What was asked for: layers may pass on more than that."""
        to = lambda k, pairs: None if k is None or not pairs else k.to(pairs)
        return Kernel(
            self.nngp.to(demand.cross),
            to(self.ntk, demand.cross),
            to(self.cov1, demand.marginal),
            to(self.cov2, demand.marginal),
            self.alone,
            self.channels,
        )

    def propagate(
        self,
        fn: CovarianceMap,
        variances: Sequence[Float[Array, ""]] = (),
        rates: Sequence[Float[Array, ""]] = (),
        *,
        needs: Pairs = Pairs.SAME,
        channels: int | None = None,
    ) -> "Kernel":
        r"""The kernel of the outputs of a layer.

        The NTK is the derivative of the NNGP along the NTK of the inputs, and along the
        variance of each group of weights $g$ of the layer:

        $$
        \Theta' = \frac{\partial f}{\partial k_{12}} \Theta
            + \sum_g \frac{\partial f}{\partial v_g} r_g.
        $$

        **Arguments:**

        - `fn`: `fn(k11, k12, k22, *variances)` is the covariance of the outputs for two
            inputs, given that of the inputs: two marginals and the cross-covariance.
            Marginals that are not demanded are `None`.
        - `variances`: scalars $v_g$, the variances of the groups of weights.
        - `rates`: scalars $r_g$, at which each feeds the NTK: the square of the scale of
            the weights in the forward pass, times the fan-in.
        - `needs`: the pairs of positions that `fn` reads of each covariance.
        - `channels`: of the outputs, if not as many as those of the inputs.

        **Returns:** the kernel of the outputs.
        """
        cov1, cov2 = (self.nngp,) * 2 if self.alone else (self.cov1, self.cov2)
        variances = [jnp.asarray(v, self.dtype) for v in variances]
        if self.ntk is None:
            nngp, ntk = fn(cov1, self.nngp, cov2, *variances), None
        else:
            rates = [jnp.asarray(r, self.dtype) for r in rates]
            nngp, ntk = jax.jvp(
                lambda k, v: fn(cov1, k, cov2, *v),
                (self.nngp, variances),
                (self.ntk, rates),
            )

        def marginal(k: Covariance | None) -> Covariance | None:
            # If it lacks the pairs that `fn` needs, then no later layer needs it.
            lacking = k is None or (k.spatial and k.pairs < needs)
            return None if lacking else fn(k, k, k, *variances)

        channels = self.channels if channels is None else channels
        marginals = marginal(self.cov1), marginal(self.cov2)
        return Kernel(nngp, ntk, *marginals, self.alone, channels)
