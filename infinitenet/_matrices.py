"""Kernel matrices, as computed by `gram` and consumed by inference."""

from typing import Any

import equinox as eqx
from jaxtyping import Array, Float


def check_gram(name: str, value: object) -> None:
    """**Raises:** `ValueError` for a single matrix, where both kernels are needed."""
    if not isinstance(value, Gram):
        raise ValueError(
            f"`{name}` must be of both kernels, as `infinitenet.gram` returns them, but it "
            f"is a {type(value).__name__}. Give `infinitenet.Gram(nngp, ntk)`."
        )


class Gram(eqx.Module):
    """Kernel matrices between two sets of inputs: what [`infinitenet.gram`][] returns.

    Networks that keep positions to the end have further axes, those of the positions,
    after the first two. `ntk` is `None` if it was not asked for.
    """

    nngp: Float[Array, "n1 n2 *positions"]
    # Not `| None`, as type checkers cannot tell that it was asked for.
    ntk: Float[Array, "n1 n2 *positions"] | Any


class GramDiagonal(eqx.Module):
    """The diagonals of kernel matrices: what [`infinitenet.gram_diagonal`][] returns.

    Networks that keep positions to the end have further axes, those of the positions.
    `ntk` is `None` if it was not asked for.
    """

    nngp: Float[Array, "n *positions"]
    ntk: Float[Array, "n *positions"] | Any
