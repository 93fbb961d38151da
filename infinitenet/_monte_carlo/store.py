"""Moments to go on from, in memory and in a file."""

import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from .. import _checkpoint as checkpoint
from .deviation import relative
from .moments import Moments


class Store:
    """Moments by number of samples.

    Those that were asked for are kept, and in the file also the last of those that only
    were passed by.
    """

    def __init__(
        self,
        path: str | os.PathLike | None,
        save_every: float,
        fingerprint: Mapping[str, Any],
        empty: Moments,
    ):
        self.path = None if path is None else pathlib.Path(path)
        self.save_every = save_every
        self.fingerprint = fingerprint
        self.kept = {0: empty}
        self.passing: Moments | None = None
        self.first: Moments | None = None
        self.saved_at = time.monotonic()
        self.is_new = False
        if self.path is not None and self.path.exists():
            self._load(self.path, empty)

    def latest(self, count: int) -> Moments:
        """What to go on from, to come to that many samples."""
        known = [*self.kept.values(), *([] if self.passing is None else [self.passing])]
        return max((m for m in known if m.count <= count), key=lambda m: int(m.count))

    def keep(self, moments: Moments) -> None:
        n = int(moments.count)
        self.is_new |= n not in self.kept
        self.kept[n] = moments
        if self.passing is not None and self.passing.count <= n:
            self.passing = None

    def pass_by(self, moments: Moments) -> None:
        if self.passing is not None and moments.count <= self.passing.count:
            return  # What the file has is further.
        self.passing, self.is_new = moments, True
        if time.monotonic() - self.saved_at > self.save_every:
            self.save()

    def begin(self, first: Moments) -> None:
        """Makes the file, or makes sure that it is of these networks.

        **Arguments:**

        - `first`: moments of the first sample. If they are those in the file, then the
            network is the same too, of which nothing else can be told.

        **Raises:** `ValueError` if the file is of something else.
        """
        if self.first is not None:
            self._check_first(self.first, first)
            return
        self.first = first
        self.pass_by(first)
        # At once, as it may turn out that there can be no file.
        self.save()

    def _load(self, path: pathlib.Path, empty: Moments) -> None:
        like = _like(path, empty)
        saved = checkpoint.load(path, like, self.fingerprint)
        self.first = saved["first"]
        several = saved["moments"]
        for i in range(len(several.count)):
            moments = jax.tree.map(lambda x, i=i: x[i], several)
            self.kept[int(moments.count)] = moments
        if saved["passing"]:
            self.passing = self.kept.pop(int(several.count[-1]))

    def save(self) -> None:
        """If there is a file, and anything new for it."""
        if self.path is None or self.first is None or not self.is_new:
            return
        known = [moments for n, moments in sorted(self.kept.items()) if n]
        if self.passing is not None:
            known.append(self.passing)
        several = jax.tree.map(lambda *x: jnp.stack(x), *known)
        tree = {
            "first": self.first,
            "moments": several,
            "passing": jnp.asarray(self.passing is not None),
        }
        checkpoint.save(self.path, tree, self.fingerprint)
        self.saved_at, self.is_new = time.monotonic(), False

    def _check_first(self, saved: Moments, first: Moments) -> None:
        # Kernels of other networks differ by far more than rounding.
        difference = lambda a, b: float(relative(a - b, b))
        errors = jax.tree.leaves(jax.tree.map(difference, saved.mean, first.mean))
        tolerance = max(
            float(jnp.finfo(x.dtype).eps) ** 0.5 for x in jax.tree.leaves(first.mean)
        )
        if not max(errors) <= tolerance:
            raise ValueError(
                f"The checkpoint {self.path} is of another run: its first network has a "
                f"kernel that differs from that of `net` by {max(errors):.1g} of its size. "
                "Give the same network to go on with it, or another path to begin anew."
            )


def _like(path: pathlib.Path, empty: Moments) -> PyTree:
    """What is in a file, of as many moments as there are in it."""
    n, *_ = checkpoint.shapes_in(path).get("['moments'].count") or (1,)
    struct = lambda x: jax.ShapeDtypeStruct((n, *x.shape), x.dtype)
    several = jax.tree.map(struct, empty)
    return {"first": empty, "moments": several, "passing": jnp.asarray(False)}
