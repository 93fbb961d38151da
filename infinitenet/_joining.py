"""How the outputs of several branches become one: sums, products and concatenations."""

import abc
import dataclasses
import functools as ft
import itertools as it
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ._covariance import Covariance, Pairs
from ._inputs import Inputs, Positions
from ._kernel import derivative, Kernel
from ._path import LayerError
from ._signal import Signal, Signals


class AbstractJoin(eqx.Module):
    """A function of several arrays, and what it makes of their covariances."""

    @abc.abstractmethod
    def arrays(self, arrays: Sequence[Array]) -> Array:
        """The finite function."""

    @abc.abstractmethod
    def covariance(
        self, covs: Sequence[Covariance], channels: Sequence[int | None]
    ) -> Covariance:
        """The covariance of the outputs. Its derivative gives the NTK."""

    def keeps_distances(self) -> bool:
        """Whether it acts on each position by itself."""
        return True

    @abc.abstractmethod
    def missing(self, masks: Sequence[Bool[Array, "..."]]) -> Bool[Array, "..."]:
        """Which positions of the outputs are missing."""

    @abc.abstractmethod
    def channels(self, channels: Sequence[int | None]) -> int | None:
        """The number of channels of the outputs."""

    @abc.abstractmethod
    def signal(
        self, layer: eqx.Module, signals: Sequence[Signal], names: Sequence[str]
    ) -> Signal:
        """**Raises:** `LayerError` if the covariance would not be the right one."""

    def check(
        self, layer: eqx.Module, signals: Sequence[Signals], names: Sequence[str]
    ) -> Signal:
        """The signal of the outputs."""
        single = [signal for signal in signals if isinstance(signal, Signal)]
        if len(single) < len(signals):
            raise LayerError(layer, "its branches must end in one array each, not a tuple.")
        return single[0] if len(single) == 1 else self.signal(layer, single, names)

    def inputs(self, inputs: Sequence[Inputs]) -> Inputs:
        """The finite function, with masks and graphs."""
        spatials = [x.array.shape[:-1] for x in inputs]
        positions = self._positions([x.positions for x in inputs], spatials)
        out = self.arrays([x.array for x in inputs])
        return Inputs(out, missing=positions.missing, pattern=positions.pattern)

    def _positions(
        self, each: Sequence[Positions], spatials: Sequence[tuple[int, ...]]
    ) -> Positions:
        patterns = [p.pattern for p in each if p.pattern is not None]
        pattern = patterns[0] if patterns else None
        if all(p.missing is None for p in each):
            return Positions(None, pattern)
        masks = [
            jnp.zeros(spatial, bool) if p.missing is None else p.missing
            for p, spatial in zip(each, spatials, strict=True)
        ]
        return Positions(self.missing(masks), pattern)

    def kernel(self, kernels: Sequence[Kernel]) -> Kernel:
        """The kernel of the outputs."""
        channels = [k.channels for k in kernels]
        spatials = [k.nngp.spatial for k in kernels]

        def join(covs: Sequence[Any]) -> Covariance | None:
            known = [cov for cov in covs if cov is not None]
            if len(known) < len(covs):
                return None
            # Branches may hold more than was asked for: keep what they have in common.
            pairs = min(cov.pairs for cov in known)
            return self.covariance([cov.to(pairs) for cov in known], channels)

        nngps, ntks = [k.nngp for k in kernels], [k.ntk for k in kernels]
        nngp, ntk = join(nngps), None
        if None not in ntks:
            # Of the same pairs as the NNGPs, as a derivative along them must be.
            along: Any = join
            ntk = derivative(along, (nngps,), (ntks,))[1]
        assert nngp is not None
        return Kernel(
            nngp,
            ntk,
            join([k.cov1 for k in kernels]),
            join([k.cov2 for k in kernels]),
            alone=kernels[0].alone,
            channels=self.channels(channels),
            uniform=all(k.uniform for k in kernels),
            positions1=self._positions([k.positions1 for k in kernels], spatials),
            positions2=self._positions([k.positions2 for k in kernels], spatials),
        )


@eqx.filter_jit
def join_kernels(join: AbstractJoin, kernels: Sequence[Any]) -> Kernel:
    """`join.kernel(kernels)`, compiled by itself like layers are."""
    return kernels[0] if len(kernels) == 1 else join.kernel(kernels)


#
# What must hold for the covariances to be as simple as they are
#


def _quoted(names: Sequence[str]) -> str:
    return " and ".join(f"`{name}`" for name in names)


def _check_shapes(
    layer: eqx.Module, shapes: Sequence[tuple[int, ...]], names: Sequence[str], what: str
) -> None:
    if len(set(shapes)) > 1:
        listed = ", ".join(map("`{}` {}".format, names, shapes))
        raise LayerError(
            layer, f"its branches must have outputs of {what}, but these are {listed}."
        )


def _check_independent(
    layer: eqx.Module, signals: Sequence[Signal], names: Sequence[str], problem: str
) -> None:
    for (a, name_a), (b, name_b) in it.combinations(zip(signals, names, strict=True), 2):
        if a.origins & b.origins:
            raise LayerError(
                layer,
                f"its branches {_quoted([name_a, name_b])} have no weights of their own "
                f"after their last nonlinearity, so that they are correlated, and "
                f"{problem}. End all of them but one in a `Dense` or `Conv`. "
                "(Nonlinearities of the same Gaussian inputs may be branches of a `Sum` or "
                "a `Product`, which makes one nonlinearity of them.)",
            )


def _check_centred(
    layer: eqx.Module, signals: Sequence[Signal], names: Sequence[str]
) -> None:
    means = [name for name, s in zip(names, signals, strict=True) if not s.centred]
    if len(means) > 1:
        raise LayerError(
            layer,
            f"its branches {_quoted(means)} may have outputs of nonzero mean, so that they "
            "are correlated, and their kernels do not add up. End all of them but one in a "
            "`Dense` or `Conv`, or in an odd nonlinearity of such outputs.",
        )


def _union(signals: Sequence[Signal], **changes: Any) -> Signal:
    """Of all of them, which are of equal shape unless told otherwise."""
    patterns = [s.pattern for s in signals if s.pattern is not None]
    common = {
        "gaussian": all(s.gaussian for s in signals),
        "homogeneous": all(s.homogeneous for s in signals),
        "centred": all(s.centred for s in signals),
        "origins": frozenset().union(*(s.origins for s in signals)),
        "masked": any(s.masked for s in signals),
        "pattern": patterns[0] if patterns else None,
    }
    return dataclasses.replace(signals[0], **(common | changes))


#
# The three of them
#


class Adding(AbstractJoin):
    r"""Sums: $k' = \sum_i k_i$."""

    def arrays(self, arrays):
        return ft.reduce(jnp.add, arrays)

    def covariance(self, covs, channels):
        del channels
        return covs[0].with_array(ft.reduce(jnp.add, [k.array for k in covs]))

    def missing(self, masks):
        return ft.reduce(jnp.logical_and, masks)

    def channels(self, channels):
        return channels[0]

    def signal(self, layer, signals, names):
        _check_shapes(layer, [s.shape for s in signals], names, "equal shapes")
        _check_independent(layer, signals, names, "their kernels do not add up")
        _check_centred(layer, signals, names)
        return _union(signals)


class Multiplying(AbstractJoin):
    r"""Products: $k' = \prod_i k_i$."""

    def arrays(self, arrays):
        return ft.reduce(jnp.multiply, arrays)

    def covariance(self, covs, channels):
        del channels
        product = ft.reduce(jnp.multiply, [k.array for k in covs])
        return covs[0].with_array(product)

    def missing(self, masks):
        # Missing factors are zero.
        return ft.reduce(jnp.logical_and, masks)

    def channels(self, channels):
        return channels[0]

    def signal(self, layer, signals, names):
        _check_shapes(layer, [s.shape for s in signals], names, "equal shapes")
        _check_independent(
            layer, signals, names, "the kernel of their product is not that of kernels"
        )
        mixed = [n for n, s in zip(names, signals, strict=True) if not s.homogeneous]
        if len(mixed) > 1:
            raise LayerError(
                layer,
                f"its branches {_quoted(mixed)} have channels of different distributions "
                "(as after `Flatten` and `Concatenate`, and as the inputs have), so that "
                "the kernel of their product is not that of kernels. End all of them but "
                "one in a `Dense` or `Conv`.",
            )
        centred = any(s.centred for s in signals)
        return _union(signals, gaussian=False, centred=centred)


class Concatenating(AbstractJoin):
    r"""Concatenations along channels, $k' = \sum_i n_i k_i / \sum_i n_i$, or positions."""

    axis: int = eqx.field(static=True)

    def keeps_distances(self):
        return self.axis == -1

    def arrays(self, arrays):
        return jnp.concatenate(arrays, self.axis)

    def covariance(self, covs, channels):
        if self.axis == -1:
            known = [n for n in channels if n is not None]
            return self._mean(covs, known)
        arrays, pairs = [k.array for k in covs], covs[0].pairs
        if pairs == Pairs.SAME:
            return Covariance(jnp.concatenate(arrays, self.axis), pairs)
        sizes = [k.spatial[self.axis] for k in covs]
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        blocks = [
            self._block(k, start, sum(sizes)) for k, start in zip(covs, starts, strict=True)
        ]
        return Covariance(ft.reduce(jnp.add, blocks), pairs)

    def _mean(self, covs: Sequence[Covariance], channels: Sequence[int]) -> Covariance:
        total = sum(channels)
        parts = [n / total * k.array for n, k in zip(channels, covs, strict=True)]
        return covs[0].with_array(ft.reduce(jnp.add, parts))

    def _block(self, k: Covariance, start: int, total: int) -> Float[Array, "..."]:
        """Positions of different branches are not correlated: zeros around this one."""
        ndim = len(k.spatial)
        end = total - start - k.spatial[self.axis]
        widths = [(0, 0, 0)] * (2 * ndim)
        widths[self.axis] = widths[ndim + self.axis] = (start, end, 0)
        return lax.pad(k.array, jnp.zeros((), k.array.dtype), widths)

    def missing(self, masks):
        if self.axis == -1:
            return ft.reduce(jnp.logical_and, masks)
        return jnp.concatenate(masks, self.axis)

    def channels(self, channels):
        if self.axis != -1:
            return channels[0]
        known = [n for n in channels if n is not None]
        return sum(known) if len(known) == len(channels) else None

    def signal(self, layer, signals, names):
        ndim, axis = len(signals[0].shape), self.axis
        if not -1 <= axis < ndim - 1:
            raise LayerError(
                layer,
                f"`axis` must be -1, for channels, or one of the {ndim - 1} axes of "
                f"positions of one example, counted from 0, but it is {axis}.",
            )
        cut = [(*s.shape[:axis], *s.shape[axis:][1:]) for s in signals]
        if axis == -1:
            cut = [s.spatial for s in signals]
        what = f"equal shapes but for axis {axis}"
        _check_shapes(layer, cut, names, what)
        total = sum(s.shape[axis] for s in signals)
        if axis == -1:
            # Correlated branches do no harm, as each channel is of one of them.
            shape = (*signals[0].spatial, total)
            return _union(signals, shape=shape, gaussian=False, homogeneous=False)
        problem = "covariances between their positions are not zero"
        _check_independent(layer, signals, names, problem)
        _check_centred(layer, signals, names)
        shape = list(signals[0].shape)
        shape[axis] = total
        return _union(signals, shape=tuple(shape))
