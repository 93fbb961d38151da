"""Kernels of one pair of inputs, and how layers move them."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._covariance import Covariance, Pairs
from ._inputs import Inputs, Positions, wrap
from ._shifts import Shifts


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

    def of_all_pairs(self) -> "Demand":
        """What is needed if every pair of positions contributes to each that is wanted."""
        return Demand(Pairs.ALL, Pairs.ALL if self.marginal else Pairs.NONE)


# For layers that take several inputs, or that pass on several outputs.
Demands: TypeAlias = Demand | tuple[Any, ...]
Kernels: TypeAlias = "Kernel | tuple[Any, ...]"

# `fn(k11, k12, k22, *variances)`: the covariance of a layer's outputs.
CovarianceMap: TypeAlias = Callable[..., Covariance]

# From which positions of the inputs are missing, to which ones of the outputs are.
Mask: TypeAlias = Callable[[Array], Array]


def derivative(
    fn: Callable[..., Covariance], primals: Any, tangents: Any
) -> tuple[Covariance, Covariance]:
    """A covariance, and its derivative along arguments of the same structure."""
    arrays, rest = eqx.partition(primals, eqx.is_inexact_array)

    def of_arrays(arrays):
        out = fn(*eqx.combine(arrays, rest))
        return out.array, out

    along = eqx.filter(tangents, eqx.is_inexact_array)
    _, tangent, out = jax.jvp(of_arrays, (arrays,), (along,), has_aux=True)
    return out, out.with_array(tangent)


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
    - `channels`: the width of the (finite) layer, `None` if it is not known: a layer that
        depends on it must raise an error then.
    - `positions1`, `positions2`: which positions of each input are missing, and its graph.
        Covariances are zero where either is missing.
    """

    nngp: Covariance
    ntk: Covariance | None
    cov1: Covariance | None
    cov2: Covariance | None
    alone: bool = eqx.field(static=True)
    channels: int | None = eqx.field(static=True)
    uniform: bool = eqx.field(default=False, static=True)
    positions1: Positions = Positions()
    positions2: Positions = Positions()

    @staticmethod
    def of_inputs(
        x1: Inputs | Float[Array, "*spatial channels"],
        x2: Inputs | Float[Array, "*spatial channels"] | None,
        demand: Demand,
        *,
        ntk: bool = True,
        variance: Float[Array, ""] | None = None,
        shifts: Shifts | None = None,
    ) -> "Kernel":
        """The kernel of the identity: `x1 . x2 / channels`.

        `variance` tells that it is `x . x / channels` of all inputs. With `shifts` it is
        of positions at these distances.
        """
        inputs1, inputs2 = wrap(x1), wrap(x1 if x2 is None else x2)
        channels = inputs1.array.shape[-1]
        # Not their products, of which there are more.
        a, b = (x.array * x.array.shape[-1] ** -0.5 for x in (inputs1, inputs2))
        if x2 is None:
            nngp = Covariance.of_inputs(a, a, max(demand.cross, demand.marginal))
            cov1 = cov2 = None
        elif variance is not None:
            nngp = Covariance.of_inputs(a, b, demand.cross)
            cov1 = cov2 = Covariance(variance, Pairs.SAME) if demand.marginal else None
        else:
            nngp = Covariance.of_inputs(a, b, demand.cross, shifts)
            cov1 = Covariance.of_inputs(a, a, demand.marginal)
            cov2 = Covariance.of_inputs(b, b, demand.marginal)
        assert nngp is not None
        return Kernel(
            nngp,
            nngp.with_array(jnp.zeros_like(nngp.array)) if ntk else None,
            cov1,
            cov2,
            alone=x2 is None,
            channels=channels,
            uniform=variance is not None and x2 is not None,
            positions1=inputs1.positions,
            positions2=inputs2.positions,
        )

    @property
    def dtype(self) -> jnp.dtype:
        return self.nngp.array.dtype

    def restrict(self, demand: Demand) -> "Kernel":
        """What was asked for: layers may pass on more than that."""
        to = lambda k, pairs: None if k is None or not pairs else k.to(pairs)
        return dataclasses.replace(
            self,
            nngp=self.nngp.to(demand.cross),
            ntk=to(self.ntk, demand.cross),
            cov1=to(self.cov1, demand.marginal),
            cov2=to(self.cov2, demand.marginal),
        )

    def propagate(
        self,
        fn: CovarianceMap,
        variances: Sequence[Float[Array, ""]] = (),
        rates: Sequence[Float[Array, ""]] = (),
        *,
        needs: Pairs = Pairs.SAME,
        channels: int | None = None,
        mask: Mask | None = None,
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
        - `mask`: the layer's `mask`, if it is not the identity.

        **Returns:** the kernel of the outputs.
        """
        return self.propagate_at(
            lambda *positions: fn,
            variances,
            rates,
            needs=needs,
            channels=channels,
            mask=mask,
        )

    def propagate_at(
        self,
        fn_at: Callable[[Positions, Positions], CovarianceMap],
        variances: Sequence[Float[Array, ""]] = (),
        rates: Sequence[Float[Array, ""]] = (),
        *,
        needs: Pairs = Pairs.SAME,
        channels: int | None = None,
        mask: Mask | None = None,
    ) -> "Kernel":
        """`propagate` of a map that depends on masks or graphs.

        `fn_at(positions1, positions2)` is the map for such a pair of inputs.
        """
        p1, p2 = self.positions1, self.positions2
        variances = [jnp.asarray(v, self.dtype) for v in variances]
        rates = [jnp.asarray(r, self.dtype) for r in rates]
        nngp, ntk = self._push(fn_at(p1, p2), variances, rates)

        def marginal(k: Covariance | None, p: Positions) -> Covariance | None:
            # If it lacks the pairs that `fn` needs, then no later layer needs it.
            lacking = k is None or (k.spatial and k.pairs < needs)
            return None if lacking else fn_at(p, p)(k, k, k, *variances)

        out = dataclasses.replace(
            self,
            nngp=nngp,
            ntk=ntk,
            cov1=marginal(self.cov1, p1),
            cov2=marginal(self.cov2, p2),
            channels=self.channels if channels is None else channels,
            positions1=p1.through(mask),
            positions2=p2.through(mask),
        )
        return out.without_missing()

    def _push(
        self, fn: CovarianceMap, variances: list[Array], rates: list[Array]
    ) -> tuple[Covariance, Covariance | None]:
        """The NNGP, and the NTK as its derivative."""
        cov1, cov2 = (self.nngp,) * 2 if self.alone else (self.cov1, self.cov2)
        if self.ntk is None:
            return fn(cov1, self.nngp, cov2, *variances), None
        along = lambda k, v: fn(cov1, k, cov2, *v)
        return derivative(along, (self.nngp, variances), (self.ntk, rates))

    def without_missing(self) -> "Kernel":
        """Zeros where a position is missing."""
        m1, m2 = self.positions1.missing, self.positions2.missing
        if m1 is None or m2 is None:
            return self
        zero = lambda k, m1, m2: None if k is None else k.without(m1, m2)
        return dataclasses.replace(
            self,
            nngp=zero(self.nngp, m1, m2),
            ntk=zero(self.ntk, m1, m2),
            cov1=zero(self.cov1, m1, m1),
            cov2=zero(self.cov2, m2, m2),
        )
