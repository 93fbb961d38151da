"""Kernel matrices of networks."""

import functools as ft
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ._batch import batch_size, first_of, to_batch
from ._checks import check_finite
from ._covariance import Covariance, Pairs
from ._custom_types import Arrays
from ._kernel import Demand, Kernel
from ._layer import AbstractLayer
from ._matrices import Gram, GramDiagonal
from ._progress import Progress, reporting
from ._tiles import (
    choose_area,
    choose_tiles,
    cut,
    empty,
    Program,
    starts,
    write_tile,
)
from ._tracing import is_traced
from ._uniform import common_variance
from ._weights import without_weights


def gram(
    net: AbstractLayer,
    x1: Arrays,
    x2: Arrays | None = None,
    *,
    ntk: bool = True,
    memory: int | None = None,
    progress: Progress | bool = True,
    demand: Demand = Demand(),
) -> Gram:
    r"""Kernel matrices of an infinitely wide network.

    Entries $(i, j)$ are what `net.kernel(x1[i], x2[j])` gives. They are computed in tiles,
    one after the other, of a size that fits into a memory budget and into the cache.

    !!! example

        ```python
        k_train = inn.gram(net, x_train)
        k_test = inn.gram(net, x_test, x_train)
        k_test.nngp, k_test.ntk  # of shape (n_test, n_train)
        ```

    **Arguments:**

    - `net`: a network, before or after `init`.
    - `x1`: a batch of inputs, of shape `(n1, *spatial, channels)`, or a tuple of such for
        a network with several inputs. float64 is computed in float64 where JAX has it
        enabled; anything below float32 in float32.
    - `x2`: likewise, of `n2` inputs. Without it the matrix is that of `x1` with itself, of
        which only one half is computed. Its diagonal then is exact even in float32, while
        `gram(net, x, x)` may lose half of the digits of the NTK there.
    - `ntk`: whether to compute the NTK too. It doubles the work.
    - `memory`: bytes that a tile may use, besides the result. By default half of what
        the device has.
    - `progress`: `True` for a bar on long work (if `tqdm` is installed), `False` for none,
        or a function that is called with the number of entries done and of all entries.
    - `demand`: for networks that keep positions to their end, the pairs of positions
        that are wanted: equal ones by default.

    **Returns:**

    A [`infinitenet.Gram`][], of arrays `nngp` and `ntk` of shape `(n1, n2)`. `ntk` is
    `None` if it was not asked for. If positions remain, `(n1, n2, *spatial)`, or
    `(n1, n2, *spatial, *spatial)` if all pairs are demanded.

    **Raises:** `ValueError` if the network or the inputs cannot work, with the layer and
    the remedy; if inputs are not finite; if the memory budget is too small for one entry;
    and if the kernel overflows.

    In float32 entries are within 1e-5 of float64, relative to their root mean square, and
    the diagonal too. But of inputs that nearly coincide (less than a thousandth of their
    length apart) float32 knows the angle to half of its digits only: there the NTK of
    ReLU-like networks is within about 1e-3. Use float64 then.

    It can be differentiated, compiled and vectorised. Under these transformations it is one
    computation without progress, and what is not finite is a `RuntimeError` at run time.
    """
    _check_layer(net)
    if demand.cross == Pairs.NONE:
        raise ValueError("`demand.cross` must not be `Pairs.NONE`: nothing would be left.")
    x1 = to_batch("x1", x1)
    x2 = None if x2 is None else to_batch("x2", x2)
    variance = common_variance(net, x1, x2)
    arrays, static = eqx.partition((without_weights(net), variance), eqx.is_array)
    entry = Entry(static, ntk, demand)
    first = first_of(x1), first_of(x1 if x2 is None else x2)
    area = choose_area(_program(entry, _one, arrays, *first).largest_array(), memory)
    if is_traced((arrays, x1, x2)):
        out = _by_rows(entry, arrays, x1, x2, area)
    else:
        with reporting(progress, "kernel", "entries") as report:
            out = _by_tiles(entry, arrays, x1, x2, area, report)
    return Gram(*_finite(out))


def gram_diagonal(
    net: AbstractLayer,
    x: Arrays,
    *,
    ntk: bool = True,
    memory: int | None = None,
    demand: Demand = Demand(),
) -> GramDiagonal:
    """The kernel of each input with itself: the diagonal of [`infinitenet.gram`][].

    **Arguments:**

    - `net`: a network, before or after `init`.
    - `x`: a batch of inputs, of shape `(n, *spatial, channels)`.
    - `ntk`, `memory`, `demand`: as for `gram`.

    **Returns:** A [`infinitenet.GramDiagonal`][], of arrays of shape `(n,)`.

    **Raises:** as `gram`.
    """
    _check_layer(net)
    x = to_batch("x", x)
    variance = common_variance(net, x, None)
    arrays, static = eqx.partition((without_weights(net), variance), eqx.is_array)
    entry, first = Entry(static, ntk, demand), first_of(x)
    area = choose_area(_program(entry, _one, arrays, first, first).largest_array(), memory)
    by = _diagonal_by_rows if is_traced((arrays, x)) else _diagonal_by_tiles
    return GramDiagonal(*_finite(by(entry, arrays, x, area)))


def _check_layer(net: object) -> None:
    if not isinstance(net, AbstractLayer):
        raise ValueError(f"`net` must be a layer, but it is {net!r}.")


def _finite(pair: "Pair") -> tuple[Array, Array | None]:
    nngp, tangent = pair
    out = check_finite("nngp", nngp.array, _OVERFLOW)
    return out, None if tangent is None else check_finite("ntk", tangent.array, _OVERFLOW)


Pair: TypeAlias = tuple[Covariance, Covariance | None]


class Entry(NamedTuple):
    """One entry of the matrices, as a function that can be told from others."""

    static: PyTree
    ntk: bool
    demand: Demand

    def __call__(self, arrays: PyTree, x1: PyTree, x2: PyTree | None) -> Pair:
        net, variance = eqx.combine(arrays, self.static)
        kernel = net.kernel(x1, x2, ntk=self.ntk, demand=self.demand, variance=variance)
        if not isinstance(kernel, Kernel):
            raise ValueError("`net` must end in one array: add `FanInSum` after branches.")
        return kernel.nngp, kernel.ntk


def _one(entry: Entry, arrays: PyTree, x1: PyTree, x2: PyTree) -> Pair:
    return entry(arrays, x1, x2)


def _pairs(entry: Entry, arrays: PyTree, x1: PyTree, x2: PyTree) -> Pair:
    row = lambda x1: jax.vmap(lambda x2: entry(arrays, x1, x2))(x2)
    return jax.vmap(row)(x1)


def _alone(entry: Entry, arrays: PyTree, x: PyTree) -> Pair:
    return jax.vmap(lambda x: entry(arrays, x, None))(x)


def _program(entry: Entry, fn: Callable[..., Pair], *args: PyTree) -> Program:
    structs = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), args)
    return _cached_program(entry, fn, structs)


# Tracing takes longer than running does for small matrices.
@ft.lru_cache(maxsize=256)
def _cached_program(entry: Entry, fn: Callable[..., Pair], structs: PyTree) -> Program:
    return Program(ft.partial(fn, entry), *structs)


_OVERFLOW = (
    "The kernel has overflowed (unless inputs or hyperparameters are not finite under "
    "`jit`): lower `W_std`, use fewer layers, scale the inputs down, or use float64 "
    '(`jax.config.update("jax_enable_x64", True)`).'
)


def _by_rows(
    entry: Entry, arrays: PyTree, x1: PyTree, x2: PyTree | None, area: int
) -> Pair:
    """One differentiable computation, the memory of which is that of `area` entries."""
    columns = x1 if x2 is None else x2
    n1, n2 = batch_size(x1), batch_size(columns)

    def row(x1: PyTree) -> Pair:
        one = jax.checkpoint(lambda x2: entry(arrays, x1, x2))
        if n2 <= area:
            return jax.vmap(one)(columns)
        return lax.map(one, columns, batch_size=area)

    out = lax.map(row, x1, batch_size=min(max(area // n2, 1), n1))
    if x2 is not None:
        return out
    index = jnp.arange(n1)
    alone = _diagonal_by_rows(entry, arrays, x1, area)
    return jax.tree.map(lambda k, k0: k.at[index, index].set(k0), out, alone)


def _diagonal_by_rows(entry: Entry, arrays: PyTree, x: PyTree, area: int) -> Pair:
    one = jax.checkpoint(lambda x: entry(arrays, x, None))
    return lax.map(one, x, batch_size=min(area, batch_size(x)))


def _by_tiles(
    entry: Entry,
    arrays: PyTree,
    x1: PyTree,
    x2: PyTree | None,
    area: int,
    report: Progress,
) -> Pair:
    """Tile after tile, each waiting for the one before: so few are in memory."""
    columns = x1 if x2 is None else x2
    n1, n2 = batch_size(x1), batch_size(columns)
    tiling = choose_tiles(n1, n2, area, symmetric=x2 is None)
    row, column = cut(x1, 0, tiling.rows), cut(columns, 0, tiling.columns)
    program = _program(entry, _pairs, arrays, row, column)
    out = new = None
    write = write_tile if x2 is not None else _write_symmetric
    total = n1 * n2
    for done, tile in enumerate(tiling.tiles):
        jax.block_until_ready(new)
        report(done * total // len(tiling.tiles), total)
        row = cut(x1, tile.row, tiling.rows)
        new = program(arrays, row, cut(columns, tile.column, tiling.columns))
        out = empty(new, n1, n2) if out is None else out
        out = write(out, new, tile.row, tile.column)
    assert out is not None
    if x2 is None:
        # From inputs alone, which is exact: see `Kernel.alone`.
        out = _write_diagonal(out, _diagonal_by_tiles(entry, arrays, x1, area))
    jax.block_until_ready(out)
    report(total, total)
    return out


def _diagonal_by_tiles(entry: Entry, arrays: PyTree, x: PyTree, area: int) -> Pair:
    n = batch_size(x)
    size = min(area, n)
    program = _program(entry, _alone, arrays, cut(x, 0, size))
    parts = [(start, program(arrays, cut(x, start, size))) for start in starts(n, size)]
    out = jax.tree.map(lambda k: jnp.zeros((n, *k.shape[1:]), k.dtype), parts[0][1])
    for start, part in parts:
        out = jax.tree.map(lambda out, k, i=start: out.at[i : i + size].set(k), out, part)
    return out


@ft.partial(jax.jit, donate_argnums=0)
def _write_symmetric(out: Pair, tile: Pair, row: Array, column: Array) -> Pair:
    mirrored = jax.tree.map(_mirror, tile, is_leaf=lambda k: isinstance(k, Covariance))
    # Tiles on the diagonal hold each entry twice, perhaps with other rounding.
    mean = lambda a, b: jnp.where(row == column, (a + b) / 2, a)
    out = write_tile(out, jax.tree.map(mean, tile, mirrored), row, column)
    return write_tile(out, jax.tree.map(mean, mirrored, tile), column, row)


def _mirror(cov: Covariance) -> Covariance:
    """Swaps both inputs of a matrix of covariances."""
    k = jnp.swapaxes(cov.array, 0, 1)
    if cov.pairs == Pairs.ALL:
        ndim = (k.ndim - 2) // 2
        first, second = range(2, 2 + ndim), range(2 + ndim, k.ndim)
        k = jnp.transpose(k, (0, 1, *second, *first))
    return Covariance(k, cov.pairs)


@ft.partial(jax.jit, donate_argnums=0)
def _write_diagonal(out: Pair, diagonal: Pair) -> Pair:
    def write(out: Array, diagonal: Array) -> Array:
        index = jnp.arange(len(diagonal))
        return out.at[index, index].set(diagonal)

    return jax.tree.map(write, out, diagonal)
