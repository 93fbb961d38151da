"""Which entries are computed from distances of positions, and not from all pairs."""

import dataclasses
import functools as ft

import jax
from jaxtyping import PyTree

from ._entries import AbstractEntry, Entry
from ._pooled import to_pooled
from ._pooled_attention import to_pooled_attention
from ._pooled_windows import to_pooled_windows


@dataclasses.dataclass(frozen=True)
class _Uncompared:
    """Arrays that do not matter to what is kept in a cache."""

    arrays: PyTree = dataclasses.field(compare=False)


def by_distances(
    entry: Entry, arrays: PyTree, x: PyTree[jax.ShapeDtypeStruct], most: int
) -> AbstractEntry | None:
    """The same entries from distances, or `None` if the network does not keep them.

    **Arguments:**

    - `entry`, `arrays`: the entries from all pairs of positions, and their arrays.
    - `x`: the shape of an example.
    - `most`: bytes that an array of some distances may take.
    """
    # Not of several inputs, nor with a mask or a graph.
    if not isinstance(x, jax.ShapeDtypeStruct):
        return None
    return _cached(entry, _Uncompared(arrays), x, most)


# Looking at all layers takes longer than computing kernels of a few images.
@ft.lru_cache(maxsize=256)
def _cached(
    entry: Entry, uncompared: _Uncompared, x: jax.ShapeDtypeStruct, most: int
) -> AbstractEntry | None:
    about = entry, entry.net(uncompared.arrays), x, most
    ways = to_pooled, to_pooled_windows, to_pooled_attention
    return next(filter(None, (way(*about) for way in ways)), None)
