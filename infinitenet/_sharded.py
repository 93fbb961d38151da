"""Kernel matrices over the devices of a mesh, of one or of several processes."""

import functools as ft
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, PyTree

from ._assembly import mirrored
from ._batch import batch_size
from ._entries import alone, finish_alone, finish_pairs, Pair, pairs
from ._kernel import Demand
from ._layer import AbstractLayer
from ._mesh import auto_mesh
from ._parts import Parts
from ._progress import Progress
from ._schedule import balanced_half, blocks, own_blocks
from ._tiles import cut, starts


class ShardedGram:
    """A matrix of kernels between inputs, or of some with themselves if `x2` is `None`.

    Rows are spread over the first axis of the mesh, and columns over the second one. All
    processes run the same programs at the same time. Those that compute tiles do not
    communicate. If the matrix is not symmetric, each device computes tiles of its own
    block: else those on and above the diagonal are dealt out to all, and after each round
    every device takes from them what is in its block.
    """

    def __init__(
        self,
        net: AbstractLayer,
        x1: PyTree,
        x2: PyTree | None,
        *,
        ntk: bool,
        demand: Demand,
        memory: int | None,
        mesh: Mesh,
    ):
        self.mesh, self.axes = mesh, tuple(mesh.axis_names)
        self.first, self.second = (*self.axes, None)[:2]
        self.shape = tuple(mesh.shape[a] if a else 1 for a in (self.first, self.second))
        self.symmetric, second = x2 is None, x1 if x2 is None else x2
        parts = Parts(net, x1, second, ntk, demand, memory, workers=1)
        self.entry, self.area = parts.entry, parts.area
        # Arrays of NumPy are the same on all devices, also if these are of other processes.
        self.arrays, self.x1, self.x2 = _on_host((parts.arrays, x1, second))
        self.n1, self.n2 = batch_size(x1), batch_size(second)
        self.block = blocks(self.n1, self.shape[0]), blocks(self.n2, self.shape[1])
        make = (
            ft.partial(balanced_half, self.n1)
            if self.symmetric
            else ft.partial(own_blocks, self.n1, self.n2)
        )
        self.schedule = make(self.shape, self.area)

    def whole(self, report: Progress) -> Pair:
        """The matrix, spread over the mesh."""
        rounds, total = len(self.schedule.starts), self.n1 * self.n2
        x1, x2, at = self._inputs()
        out = None
        report(0, total)
        for i in range(rounds):
            tiles = self._tiles(x1, x2, self._spread(at[i]))
            if out is None:
                out = self._empty(tiles)
            out = self._write(out, tiles, self._spread(at[i]))
            jax.block_until_ready(out)
            report((i + 1) * total // rounds, total)
        if self.symmetric:
            out = self._with_diagonal(out)
        return self._finished(out)

    #
    # Where things are
    #

    def _inputs(self) -> tuple[PyTree, PyTree, np.ndarray]:
        """The inputs, and where tiles start on each device."""
        at = self.schedule.starts
        if self.symmetric:
            x = jax.tree.map(lambda x: self._put(x, jax.P()), self.x1)
            return x, x, at
        at = at % np.array(self.block)
        sizes = [b * parts for b, parts in zip(self.block, self.shape, strict=True)]
        x1 = self._padded(self.x1, sizes[0], jax.P(self.first))
        return x1, self._padded(self.x2, sizes[1], jax.P(self.second)), at

    def _padded(self, x: PyTree, n: int, spec: jax.P) -> PyTree:
        """With the last example over and over, of which the kernel is not kept."""

        def pad(x: np.ndarray) -> Array:
            return self._put(x[np.minimum(np.arange(n), len(x) - 1)], spec)

        return jax.tree.map(pad, x)

    def _put(self, x: np.ndarray, spec: jax.P) -> Array:
        sharding = NamedSharding(self.mesh, spec)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    def _spread(self, each: np.ndarray) -> Array:
        """Something for every device."""
        return self._put(each, jax.P(self.axes))

    def _map(self, fn: Callable, in_specs: Any, **options: Any) -> Callable:
        """A function that every device runs by itself, of arrays that belong to it."""
        out = jax.P(self.axes)
        sharded = jax.shard_map(
            fn, mesh=self.mesh, in_specs=in_specs, out_specs=out, check_vma=False
        )
        return jax.jit(sharded, **options)

    @property
    def spec(self) -> jax.P:
        """How the matrix is spread."""
        # JAX has no arrays of which devices hold parts of different sizes.
        even = self.n1 % self.shape[0] == 0, self.n2 % self.shape[1] == 0
        return jax.P(self.first if even[0] else None, self.second if even[1] else None)

    #
    # Programs
    #

    def tile_program(self) -> Callable[..., PyTree]:
        """A part of a tile on each device."""
        rows, columns = self.schedule.rows, self.schedule.columns

        def run(arrays, x1, x2, at, part):
            x1, x2 = cut(x1, at[0, 0], rows), cut(x2, at[0, 1], columns)
            return _with_axis(pairs(self.entry, arrays, x1, x2, part))

        inputs = (None, None) if self.symmetric else (self.first, self.second)
        specs = jax.P(), *map(jax.P, inputs), jax.P(self.axes), jax.P()
        return self._map(run, specs)

    @ft.cached_property
    def _part(self) -> Callable[..., PyTree]:
        return self.tile_program()

    @ft.cached_property
    def _finish(self) -> Callable[..., Pair]:
        def run(arrays, total, at):
            tile = finish_pairs(self.entry, arrays, _without_axis(total))
            if not self.symmetric:
                return _with_axis(tile)
            # Tiles on the diagonal hold each entry twice, perhaps with other rounding.
            on_diagonal = at[0, 0] == at[0, 1]
            mean = lambda a, b: jnp.where(on_diagonal, (a + b) / 2, a)
            return _with_axis(jax.tree.map(mean, tile, mirrored(tile)))

        return self._map(run, (jax.P(), jax.P(self.axes), jax.P(self.axes)))

    def _tiles(self, x1: PyTree, x2: PyTree, at: Array) -> Pair:
        total = None
        for part in self.entry.parts:
            new = self._part(self.arrays, x1, x2, at, part)
            total = new if total is None else _add(total, new)
        return self._finish(self.arrays, total, at)

    #
    # Putting tiles together
    #

    @property
    def _margin(self) -> tuple[int, int]:
        """Around blocks, for tiles that are of other devices in part or as a whole."""
        size = max(self.schedule.rows, self.schedule.columns)
        return (size, size) if self.symmetric else (0, 0)

    def _empty(self, tiles: Pair) -> Pair:
        shape = tuple(b + 2 * m for b, m in zip(self.block, self._margin, strict=True))
        make = lambda k: jnp.zeros((1, *shape, *k.shape[3:]), k.dtype)
        return self._map(lambda tiles: jax.tree.map(make, tiles), jax.P(self.axes))(tiles)

    @ft.cached_property
    def _write(self) -> Callable[..., Pair]:
        write = self._write_half if self.symmetric else self._write_own
        specs = (jax.P(self.axes),) * 3
        return self._map(write, specs, donate_argnums=0)

    def _write_own(self, out: Pair, tiles: Pair, at: Array) -> Pair:
        place = lambda out, k: lax.dynamic_update_slice(
            out, k, (0, at[0, 0], at[0, 1]) + (0,) * (k.ndim - 3)
        )
        return jax.tree.map(place, out, tiles)

    def _write_half(self, out: Pair, tiles: Pair, at: Array) -> Pair:
        tiles, at = lax.all_gather((tiles, at), self.axes, axis=0, tiled=True)
        corner = jnp.array(self._corner())
        margin, block = jnp.array(self._margin), jnp.array(self.block)

        def place(out: Array, k: Array, at: Array) -> Array:
            at = jnp.clip(at - corner + margin, 0, block + margin)
            return lax.dynamic_update_slice(out, k, (at[0], at[1]) + (0,) * (k.ndim - 2))

        def one(i: Array, out: Pair) -> Pair:
            tile = jax.tree.map(lambda k: k[i], tiles)
            put = lambda tile, at: (
                lambda out: jax.tree.map(lambda out, k: place(out, k, at), out, tile)
            )
            return put(tile, at[i])(put(mirrored(tile), at[i][::-1])(out))

        own = lax.fori_loop(0, len(at), one, _without_axis(out))
        return _with_axis(own)

    def _corner(self) -> tuple[Any, Any]:
        """Row and column at which the block of a device starts, in a program of its own."""
        index = [lax.axis_index(a) if a else 0 for a in (self.first, self.second)]
        return index[0] * self.block[0], index[1] * self.block[1]

    def _with_diagonal(self, out: Pair) -> Pair:
        """Entries of inputs with themselves, which are exact: see `Kernel.alone`."""
        diagonal, margin = self._diagonal(), self._margin[0]

        def write(out: Array, diagonal: Array) -> Array:
            diagonal = lax.all_gather(diagonal[0], self.axes, axis=0, tiled=True)
            row, column = self._corner()
            rows = row + jnp.arange(self.block[0])
            columns = rows - column
            # Out of bounds, and so dropped, where the diagonal is not in this block.
            inside = (columns >= 0) & (columns < self.block[1]) & (rows < self.n1)
            at = jnp.where(inside, columns + margin, out.shape[2])
            known = diagonal[jnp.minimum(rows, self.n1 - 1)]
            return out.at[0, rows - row + margin, at].set(known, mode="drop")

        run = lambda out, diagonal: jax.tree.map(write, out, diagonal)
        return self._map(run, (jax.P(self.axes),) * 2, donate_argnums=0)(out, diagonal)

    def _diagonal(self) -> Pair:
        """Of so many inputs on each device."""
        size = blocks(self.n1, math.prod(self.shape))
        x = self._padded(self.x1, size * math.prod(self.shape), jax.P(self.axes))
        # As many as plain tiles have rows, so that rounding is the same.
        step = min(size, self.schedule.rows)

        def part(arrays, x, start, part):
            return _with_axis(alone(self.entry, arrays, cut(x, start, step), part))

        def finish(arrays, total):
            return _with_axis(finish_alone(self.entry, arrays, _without_axis(total)))

        run = self._map(part, (jax.P(), jax.P(self.axes), jax.P(), jax.P()))
        done = self._map(finish, (jax.P(), jax.P(self.axes)))
        at, out = starts(size, step), []
        for start in at:
            each = [run(self.arrays, x, start, part) for part in self.entry.parts]
            out.append(done(self.arrays, ft.reduce(_add, each)))

        def join(*out: Array) -> Array:
            whole = jnp.zeros((1, size, *out[0].shape[2:]), out[0].dtype)
            for start, k in zip(at, out, strict=True):
                whole = whole.at[:, start : start + step].set(k)
            return whole

        spec = (jax.P(self.axes),) * len(out)
        return self._map(lambda *out: jax.tree.map(join, *out), spec)(*out)

    def _finished(self, out: Pair) -> Pair:
        """One matrix of all blocks, on the mesh that was given."""
        (rows, columns), block = self._margin, self.block
        inner = lambda k: k[0, rows : rows + block[0], columns : columns + block[1]]
        joined = jax.shard_map(
            lambda out: jax.tree.map(inner, out),
            mesh=self.mesh,
            in_specs=jax.P(self.axes),
            out_specs=jax.P(self.first, self.second),
            check_vma=False,
        )
        crop = lambda out: jax.tree.map(lambda k: k[: self.n1, : self.n2], joined(out))
        return jax.jit(crop, out_shardings=NamedSharding(self.mesh, self.spec))(out)


def to_grid(mesh: Any) -> Mesh:
    """The devices of a mesh, for a compiler that decides what is where.

    **Raises:** `ValueError` for what is not a mesh of one or two axes.
    """
    if not isinstance(mesh, Mesh):
        raise ValueError(f"`mesh` must be a `jax.sharding.Mesh`, but it is {mesh!r}.")
    if not 1 <= len(mesh.axis_names) <= 2:
        raise ValueError(
            "`mesh` must have one axis, for rows, or two, for rows and columns, but it has "
            f"{mesh.axis_names}. Reshape its devices."
        )
    return auto_mesh(mesh)


def _on_host(tree: PyTree) -> PyTree:
    return jax.tree.map(np.asarray, tree)


def _with_axis(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda k: k[None], tree)


def _without_axis(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda k: k[0], tree)


@ft.partial(jax.jit, donate_argnums=0)
def _add(a: PyTree, b: PyTree) -> PyTree:
    return jax.tree.map(jnp.add, a, b)
