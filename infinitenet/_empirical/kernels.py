"""Kernels of finite networks with given weights."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .._batch import batch_of_one, batch_size, shape_of_one
from .._checks import check_finite
from .._matrices import Gram, GramDiagonal
from .._progress import Progress, reporting
from .._tracing import is_traced
from .axes import Axes, check_same, to_axes
from .methods import AbstractNTKMethod, choose_method
from .model import to_examples, to_unit, Unit, unit_outputs
from .tiling import (
    by_devices,
    by_pairs,
    by_rows,
    by_tiles,
    choose_sizes,
    joined,
    Kernels,
    Task,
)


def empirical_nngp(
    model: Any,
    x1: PyTree,
    x2: PyTree | None = None,
    *,
    trace_axes: Sequence[int] | None = None,
    diagonal_axes: Sequence[int] = (),
    memory: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
    progress: Progress | bool = True,
) -> PyTree[Array]:
    r"""Products of outputs, $f(x_1) f(x_2)^T$, of a model with given weights.

    Averaged over random weights, that is the NNGP kernel of networks of finite width.

    **Arguments:** as for [`infinitenet.empirical_ntk`][].

    **Returns:** as `empirical_ntk`.

    **Raises:** as `empirical_ntk`.
    """
    options = Options(trace_axes, diagonal_axes, None, memory, mesh, progress)
    problem = _problem(model, x1, x2, options, nngp=True, ntk=False)
    nngp, _ = _compute(problem, options)
    assert nngp is not None
    return jax.tree.unflatten(problem.structure, _checked("nngp", nngp))


def empirical_ntk(
    model: Any,
    x1: PyTree,
    x2: PyTree | None = None,
    *,
    trace_axes: Sequence[int] | None = None,
    diagonal_axes: Sequence[int] = (),
    method: AbstractNTKMethod | None = None,
    memory: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
    progress: Progress | bool = True,
) -> PyTree[Array]:
    r"""The neural tangent kernel of a model with given weights $w$,
    $\Theta(x_1, x_2) = \partial_w f(x_1) \, \partial_w f(x_2)^T$.

    By default it is averaged over outputs, $\frac1O \sum_o \Theta_{oo}(x_1, x_2)$.

    !!! example

        ```python
        mlp = eqx.nn.MLP(3, 10, 64, 2, key=key)
        inn.empirical_ntk(mlp, x)  # (n, n)
        inn.empirical_ntk(mlp, x_test, x, trace_axes=())  # (n_test, n, 10, 10)
        inn.empirical_ntk(mlp, x, diagonal_axes=(0,))  # (n,)
        ```

    **Arguments:**

    - `model`: an infinitenet network after `init`, any Equinox module of one example, or
        an [`infinitenet.BatchFunction`][] or [`infinitenet.CoupledFunction`][]. The kernel
        is that of the weights that [`infinitenet.trainable`][] tells.
    - `x1`: a batch of inputs: an array with a first axis of `n1` examples, or a pytree of
        such, if the model takes that.
    - `x2`: likewise, of `n2` examples; without it the kernel is that of `x1` with itself.
    - `trace_axes`: axes of the outputs, of shape `(n, *outputs)`, over which to take the
        mean of the kernel's diagonal. By default the last one, unless that is of examples.
    - `diagonal_axes`: axes of which only equal indices are paired. With 0 that are the
        examples, each of `x1` with one of `x2`.
    - `method`: how to compute it: [`infinitenet.JacobianContraction`][],
        [`infinitenet.NTKVectorProducts`][] or [`infinitenet.StructuredDerivatives`][]. By
        default that which takes the fewest multiplications.
    - `memory`: bytes that may be used, besides the result. By default half of what the
        device has.
    - `mesh`: devices to share the work: rows over its first axis, and columns over its
        second if it has one. The result is left sharded.
    - `progress`: as for [`infinitenet.gram`][].

    **Returns:**

    An array of shape `(n1, n2)` and, for each of the other axes of outputs, two axes side
    by side, or one if it is in `diagonal_axes`. If the model returns a pytree of arrays, a
    pytree of such; kernels between different arrays of it are left out.

    **Raises:** `ValueError` for wrong axes, with the axis; if the model cannot be evaluated
    on `x1` or `x2`, with the remedy; if weights or inputs are not finite, or the kernel is
    not; and if the memory is too small.

    In float32 it is as exact as the model's own derivatives are. It can be compiled,
    vectorised, and differentiated.

    ??? cite "Reference"
        Jacot, Gabriel & Hongler, Neural Tangent Kernel, NeurIPS 2018; Novak et al., Fast
        Finite Width Neural Tangent Kernel, ICML 2022: equation 1.
    """
    options = Options(trace_axes, diagonal_axes, method, memory, mesh, progress)
    problem = _problem(model, x1, x2, options, nngp=False, ntk=True)
    _, ntk = _compute(problem, options)
    assert ntk is not None
    return jax.tree.unflatten(problem.structure, _checked("ntk", ntk))


def empirical_kernel(
    model: Any,
    x1: PyTree,
    x2: PyTree | None = None,
    *,
    trace_axes: Sequence[int] | None = None,
    diagonal_axes: Sequence[int] = (),
    method: AbstractNTKMethod | None = None,
    memory: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
    progress: Progress | bool = True,
) -> PyTree[Gram | GramDiagonal]:
    """[`infinitenet.empirical_nngp`][] and [`infinitenet.empirical_ntk`][] at once.

    **Arguments:** as for `empirical_ntk`, where `trace_axes` must not have axis 0.

    **Returns:** An [`infinitenet.Gram`][], or an [`infinitenet.GramDiagonal`][] if 0 is in
    `diagonal_axes`; if the model returns a pytree of arrays, a pytree of such.

    **Raises:** as `empirical_ntk`.
    """
    options = Options(trace_axes, diagonal_axes, method, memory, mesh, progress)
    nngp, ntk, kind, structure = unchecked_kernels(model, x1, x2, options, ntk=True)
    assert ntk is not None
    pairs = zip(_checked("nngp", nngp), _checked("ntk", ntk), strict=True)
    return jax.tree.unflatten(structure, [kind(a, b) for a, b in pairs])


class Options(NamedTuple):
    """Arguments that all of these functions share."""

    trace_axes: Sequence[int] | None
    diagonal_axes: Sequence[int]
    method: AbstractNTKMethod | None
    memory: int | None
    mesh: jax.sharding.Mesh | None
    progress: Progress | bool


class Unchecked(NamedTuple):
    """Kernels which may be infinite, for each array of outputs.

    - `kind`: what holds a pair of them.
    - `structure`: of the pytree of outputs.
    """

    nngp: list[Array]
    ntk: list[Array] | None
    kind: type[Gram] | type[GramDiagonal]
    structure: Any


def unchecked_kernels(
    model: Any, x1: PyTree, x2: PyTree | None, options: Options, *, ntk: bool
) -> Unchecked:
    """As by `empirical_kernel`, but what is not finite is no error.

    **Raises:** `ValueError` as `empirical_kernel`, for everything else.
    """
    problem = _problem(model, x1, x2, options, nngp=True, ntk=ntk)
    if 0 in problem.axes[0].trace:
        raise ValueError(
            "`trace_axes` has axis 0, that of examples, of which no kernel is left: use "
            "`diagonal_axes=(0,)`, and take the mean."
        )
    nngp, tangent = _compute(problem, options)
    assert nngp is not None
    kind = GramDiagonal if 0 in problem.axes[0].diagonal else Gram
    return Unchecked(nngp, tangent, kind, problem.structure)


class _Problem(NamedTuple):
    """Checked arguments.

    - `axes`: of outputs as users see them, the first of which is that of examples.
    - `shapes`: of the outputs of one unit, for `x1` and for `x2`.
    - `structure`: of the pytree of outputs.
    """

    task: Task
    x1: PyTree
    x2: PyTree | None
    axes: tuple[Axes, ...]
    shapes: list[tuple[tuple[int, ...], tuple[int, ...]]]
    structure: Any

    @property
    def paired(self) -> bool:
        return self.axes[0].paired and not self.task.unit.coupled


def _problem(
    model: Any,
    x1: PyTree,
    x2: PyTree | None,
    options: Options,
    *,
    nngp: bool,
    ntk: bool,
) -> _Problem:
    unit = to_unit(model)
    x1 = to_examples("x1", x1, model)
    x2 = None if x2 is None else to_examples("x2", x2, model)
    sizes = [batch_size(x1), batch_size(x1 if x2 is None else x2)]
    units = [_units(unit, x) for x in (x1, x2)]
    named = zip(units, ("x1", "x2"), strict=True)
    outs = [unit_outputs(unit, x, name) for x, name in named if x is not None]
    outs = outs if x2 is not None else outs * 2
    structure = jax.tree.structure(outs[0])
    shapes = [(a.shape, b.shape) for a, b in zip(*map(jax.tree.leaves, outs), strict=True)]
    axes = []
    for shape, other in shapes:
        _check_alike(unit, sizes, shape, other)
        full = shape if unit.coupled else (sizes[0], *shape)
        each = to_axes(full, options.trace_axes, options.diagonal_axes)
        check_same(each, *sizes)
        axes.append(each)
    inner = tuple(each.of_unit(unit.coupled) for each in axes)
    method = _to_method(unit, units, inner, options.method) if ntk else None
    shapes_of_units = [shape_of_one(x) for x in units if x is not None]
    alike = all(shape == shapes_of_units[0] for shape in shapes_of_units)
    task = Task(unit, inner, nngp, method, () if alike else tuple(shapes_of_units))
    return _Problem(task, units[0], units[1], tuple(axes), shapes, structure)


def _units(unit: Unit, x: PyTree | None) -> PyTree | None:
    """A batch of units: of all examples at once if they are coupled."""
    return batch_of_one(x) if unit.coupled and x is not None else x


def _check_alike(
    unit: Unit, sizes: list[int], shape: tuple[int, ...], other: tuple[int, ...]
) -> None:
    if not unit.coupled:
        if shape != other:
            raise ValueError(
                f"`x1` and `x2` must be alike, but outputs have shapes {shape} and {other}."
            )
        return
    for n, out in zip(sizes, (shape, other), strict=True):
        if out[:1] != (n,):
            raise ValueError(
                f"`model` must return outputs with a first axis of the {n} examples, but "
                f"their shape is {out}."
            )


def _to_method(
    unit: Unit, units: list[PyTree], axes: tuple[Axes, ...], method: Any
) -> AbstractNTKMethod:
    if method is None:
        n1, n2 = (batch_size(units[0] if x is None else x) for x in units)
        return choose_method(unit, shape_of_one(units[0]), axes, n1, n2)
    if not isinstance(method, AbstractNTKMethod):
        raise ValueError(
            "`method` must be `JacobianContraction()`, `NTKVectorProducts()`, "
            f"`StructuredDerivatives()`, or `None` for the best, but it is {method!r}."
        )
    return method


def _compute(problem: _Problem, options: Options) -> Kernels:
    task, x1, x2 = problem.task, problem.x1, problem.x2
    sides = [x1] if x2 is None else [x1, x2]
    sizes = choose_sizes(task, sides, options.memory)
    if options.mesh is not None:
        if not isinstance(options.mesh, jax.sharding.Mesh):
            raise ValueError("`mesh` must be one of devices: see `jax.make_mesh`.")
        if task.unit.coupled:
            raise ValueError("`mesh` needs a model whose examples are independent.")
        out = by_devices(task, x1, x2, sizes, options.mesh, problem.paired)
    elif problem.paired:
        out = by_pairs(task, x1, x2, sizes)
    elif is_traced((task, x1, x2)):
        out = by_rows(task, x1, x2, sizes)
    else:
        with reporting(options.progress, "empirical kernel", "entries") as report:
            out = by_tiles(task, x1, x2, sizes, report)
    nngp, ntk = (None if k is None else _finished(problem, k) for k in out)
    return nngp, ntk


def _finished(problem: _Problem, kernels: list[Array]) -> list[Array]:
    coupled = problem.task.unit.coupled
    if coupled:
        kernels = [k[0, 0] for k in kernels]
    out = []
    each = joined(kernels, problem.shapes, problem.task.axes)
    for k, axes in zip(each, problem.axes, strict=True):
        if 0 in axes.trace and not coupled:
            k = jnp.mean(k, axis=0)
        out.append(k)
    return out


def _checked(name: str, kernels: list[Array]) -> list[Array]:
    return [check_finite(name, k, _NOT_FINITE) for k in kernels]


_NOT_FINITE = (
    "The outputs or derivatives of the model overflow or are undefined on these inputs: "
    "evaluate `model` and `jax.jacobian` of it there."
)
