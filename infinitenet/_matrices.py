"""Kernel matrices, as computed by `gram` and consumed by inference."""

import equinox as eqx
from jaxtyping import Array, Float


class Gram(eqx.Module):
    """Kernel matrices between two sets of inputs: what [`infinitenet.gram`][] returns.

    Networks that keep positions to the end have further axes, those of the positions,
    after the first two.
    """

    nngp: Float[Array, "n1 n2 *positions"]
    ntk: Float[Array, "n1 n2 *positions"] | None
