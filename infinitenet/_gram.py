"""Kernel matrices of networks."""

import os
from typing import Any

import jax
from jaxtyping import Array

from ._batch import of_one_precision, to_batch, to_batches
from ._custom_types import Arrays
from ._entries import check_arguments, Pair
from ._grid import to_mesh
from ._kernel import Demand
from ._layer import AbstractLayer
from ._matrices import Gram, GramDiagonal
from ._mesh import on_devices
from ._overflow import finite
from ._progress import Progress, reporting
from ._sharded import ShardedGram
from ._storing import store_gram
from ._tiled import tiled_diagonal, TiledGram
from ._traced_gram import traced_diagonal, traced_gram
from ._tracing import is_traced, of_known_arrays


def gram(
    net: AbstractLayer,
    x1: Arrays,
    x2: Arrays | None = None,
    *,
    ntk: bool = True,
    memory: int | None = None,
    progress: Progress | bool = True,
    demand: Demand = Demand(),
    store: str | os.PathLike | None = None,
    mesh: jax.sharding.Mesh | None = None,
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
    - `store`: a folder to keep the matrices in, so that a second call goes on where the
        first one ended: see [`infinitenet.store_gram`][], for matrices larger than memory
        too. By default there is none.
    - `mesh`: devices to spread the work over, and the result: rows over its first axis,
        and columns over the second one if there is any. `memory` is that of each device
        then. It may be a mesh of several processes, all of which call this likewise.
        An axis of the result is only spread if devices divide it evenly: otherwise each
        device holds all of it.

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

    It can be differentiated, compiled and vectorised. Where inputs or hyperparameters are
    traced for that it is one computation without progress, and what is not finite is a
    `RuntimeError` at run time. Otherwise it is computed at once, whatever else is traced.
    """
    check_arguments(net, demand)
    options: dict[str, Any] = {"ntk": ntk, "demand": demand, "memory": memory}
    if store is not None:
        if mesh is not None:
            raise ValueError("Give either `store` or `mesh`: stores do not use meshes.")
        stored = store_gram(net, x1, x2, store=store, progress=progress, **options)
        with of_known_arrays():
            loaded = stored.load()
            return Gram(*finite((loaded.nngp, loaded.ntk)))
    if is_traced((net, x1, x2)):
        x1, x2 = to_batches(x1, x2)
        return Gram(*_arrays(finite(traced_gram(net, x1, x2, ntk, demand, memory))))
    with of_known_arrays():
        x1, x2 = to_batches(x1, x2)
        return _known(net, x1, x2, mesh, progress, **options)


def _known(
    net: AbstractLayer,
    x1: Arrays,
    x2: Arrays | None,
    mesh: jax.sharding.Mesh | None,
    progress: Progress | bool,
    **options: Any,
) -> Gram:
    """Of known arrays, as batches."""
    if mesh is not None and jax.process_index() > 0 and not callable(progress):
        progress = False  # One bar is enough.
    with reporting(progress, "kernel", "entries") as report:
        if mesh is not None:
            return _sharded(net, x1, x2, mesh, report, **options)
        return Gram(*_arrays(TiledGram(net, x1, x2, **options).whole(report)))


def _sharded(
    net: AbstractLayer,
    x1: Arrays,
    x2: Arrays | None,
    mesh: jax.sharding.Mesh,
    report: Progress,
    **options: Any,
) -> Gram:
    # Explicit axes would have to be told where each array of a computation is.
    auto = to_mesh(mesh)
    with on_devices(auto):
        tiles = ShardedGram(net, x1, x2, mesh=auto, **options)
        out = Gram(*_arrays(finite(tiles.whole(report))))
    return jax.device_put(out, jax.sharding.NamedSharding(mesh, tiles.grid.spec))


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
    check_arguments(net, Demand())
    if is_traced((net, x)):
        x = of_one_precision(to_batch("x", x))
        out = traced_diagonal(net, x, ntk, demand, memory)
        return GramDiagonal(*_arrays(finite(out)))
    with of_known_arrays():
        x = of_one_precision(to_batch("x", x))
        out = tiled_diagonal(net, x, ntk=ntk, demand=demand, memory=memory)
        return GramDiagonal(*_arrays(finite(out)))


def _arrays(pair: Pair) -> tuple[Array, Array | None]:
    nngp, tangent = pair
    return nngp.array, tangent and tangent.array
