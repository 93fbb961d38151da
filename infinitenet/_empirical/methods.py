"""Ways to compute the neural tangent kernel of a finite network."""

import abc
import math
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.extend.core as jex
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .._batch import batch_of_one, first_of
from .abstract import of_shapes
from .axes import Axes, in_single
from .factors import AbstractFactor
from .features import explicit_plan, Features, make_plan, Plan, unit_features
from .model import Unit


class AbstractNTKMethod(eqx.Module):
    r"""How to compute $\Theta(x_1, x_2) = \partial_w f(x_1) \, \partial_w f(x_2)^T$.

    Below, `n` is the number of examples, `O` of outputs, `P` of weights, and `FP` the time
    of one forward pass (Novak et al., 2022, Table 1).
    """

    @abc.abstractmethod
    def half(
        self,
        unit: Unit,
        x: PyTree,
        axes: tuple[Axes, ...],
        others: Sequence[PyTree],
    ) -> PyTree:
        """What can be computed of each of some units by itself.

        **Arguments:**

        - `unit`: the model.
        - `x`: a batch of units.
        - `axes`: of each array of outputs.
        - `others`: shapes of units to be paired with, where they differ.
        """

    @abc.abstractmethod
    def pairs(
        self, unit: Unit, half1: PyTree, half2: PyTree, axes: tuple[Axes, ...]
    ) -> list[Float[Array, "n1 n2 full1 full2 diagonal"]]:
        """The kernel of pairs of units, for each array of outputs."""


def _features_pairs(half1: list[Features], half2: list[Features]) -> list[Array]:
    return [a.ntk(b) for a, b in zip(half1, half2, strict=True)]


class JacobianContraction(AbstractNTKMethod):
    r"""Forms all derivatives, and multiplies them.

    Time `n O FP + n^2 O P` for a trace over outputs (`n^2 O^2 P` for all pairs of them),
    memory `n O P`. It serves for any model.
    """

    def half(self, unit, x, axes, others):
        del others
        return _features(explicit_plan(unit, first_of(x)), unit, x, axes)

    def pairs(self, unit, half1, half2, axes):
        del unit, axes
        return _features_pairs(half1, half2)


class StructuredDerivatives(AbstractNTKMethod):
    r"""Forms derivatives along activations, and of weights only where that is cheaper.

    Time `n O FP` and, for a dense layer of `I` inputs and `J` outputs, `n^2 (I + O J)` in
    place of `n^2 O I J`. So it is wherever a weight is multiplied by `lax.dot_general` or
    as the filter of `lax.conv_general_dilated`: in layers of any library, in loops
    (`lax.scan`) of up to 64 steps, and shared by several places. All other weights are
    treated as in [`infinitenet.JacobianContraction`][], one by one: biases and scales, for
    which that is as fast, and those inside `lax.while_loop`, `lax.cond`, custom
    derivatives or gathers, those that are normalised or mixed before their use, those that
    multiply complex numbers, and those of which `x1` and `x2` of different shapes make
    different uses.

    ??? cite "Reference"
        Novak et al., Fast Finite Width Neural Tangent Kernel, ICML 2022: section 3.3.
    """

    def half(self, unit, x, axes, others):
        return _features(make_plan(unit, first_of(x), others), unit, x, axes)

    def pairs(self, unit, half1, half2, axes):
        del unit, axes
        return _features_pairs(half1, half2)


def _features(plan: Plan, unit: Unit, x: PyTree, axes: tuple[Axes, ...]) -> list[Features]:
    leaves = jax.tree.leaves(unit.weights)
    out = jax.vmap(lambda x: unit_features(plan, leaves, x, axes))(x)
    return jax.tree.map(lambda x: x.reshape(x.shape[0], *x.shape[2:]), out)


class NTKVectorProducts(AbstractNTKMethod):
    r"""Multiplies the kernel with all unit vectors, each by a backward and a forward pass.

    Time `n^2 O FP`, memory `n^2 O^2` and `P`. It is best for many outputs in total, if
    a forward pass is cheap for the number of weights, as it is in dense networks.

    ??? cite "Reference"
        Novak et al., Fast Finite Width Neural Tangent Kernel, ICML 2022: section 3.2.
    """

    def half(self, unit, x, axes, others):
        del unit, axes, others
        return x

    def pairs(self, unit, half1, half2, axes):
        return [_all_columns(unit, half1, half2, i, each) for i, each in enumerate(axes)]


# Bytes of weights' directions that are carried along at once.
_DIRECTIONS = 2**28


@eqx.filter_jit
def _all_columns(
    unit: Unit, x1: PyTree, x2: PyTree, i: int, axes: Axes
) -> Float[Array, "n1 n2 full1 full2 diagonal"]:
    k = lax.map(lambda x2: _columns(unit, x1, x2, i, axes), x2)
    return jnp.swapaxes(k, 0, 1)


def _columns(
    unit: Unit, x1: PyTree, x2: PyTree, i: int, axes: Axes
) -> Float[Array, "n1 full1 full2 diagonal"]:
    """The kernel of all units with a single one, of one array of outputs."""
    outputs = lambda weights, x: jax.tree.leaves(unit(weights, x))
    outs, pull = jax.vjp(lambda weights: outputs(weights, x2), unit.weights)
    shape, dtype = outs[i].shape, outs[i].dtype
    size = math.prod(shape)

    def column(d: Array) -> Array:
        along = [jnp.zeros_like(out) for out in outs]
        along[i] = d.reshape(shape)
        (direction,) = pull(along)

        def push(x: PyTree) -> Array:
            fn = lambda weights: outputs(weights, x)[i]
            return jax.jvp(fn, (unit.weights,), (direction,))[1]

        return jax.vmap(push)(x1)

    weights_bytes = sum(w.size * w.dtype.itemsize for w in jax.tree.leaves(unit.weights))
    at_once = max(1, min(size, _DIRECTIONS // max(weights_bytes, 1)))
    k = lax.map(column, jnp.eye(size, dtype=dtype), batch_size=at_once)
    k = in_single(k)
    # From (outputs of x2, n1, *outputs of x1), once for each.
    shape1 = k.shape[2:]
    k = axes.split(k[None].reshape(1, size, -1), shape)[0]
    k = jnp.moveaxis(k.reshape(*k.shape[:3], -1, math.prod(shape1)), 3, 0)
    n1, g, d, t, _ = k.shape
    k = axes.split(jnp.moveaxis(k, -1, 1).reshape(n1, -1, g, d, t), shape1)
    return jnp.einsum("nfdtgdt->nfgd", k) / t


#
# Choice of the method
#


@of_shapes
def choose_method(
    unit: Unit, x: PyTree, axes: tuple[Axes, ...], n1: int, n2: int
) -> AbstractNTKMethod:
    """The method of the fewest multiplications for `n1` times `n2` units such as `x`.

    That of Jacobians never is, as structured derivatives are the same where they are not
    better.
    """
    method = StructuredDerivatives()
    half = eqx.filter_eval_shape(
        lambda unit, x: method.half(unit, batch_of_one(x), axes, ()), unit, x
    )
    contraction = sum(
        factor.multiplications(n1, n2)
        for factor in jax.tree.leaves(half, is_leaf=_is_factor)
        if _is_factor(factor)
    )
    jaxpr, outputs = forward(unit, x)
    # For each output, a pass of twice as many multiplications.
    passes = 2 * outputs * multiplications(jaxpr)
    structured = (n1 + n2) * passes + contraction
    products = (n2 + n1 * n2) * passes
    return NTKVectorProducts() if products < structured else method


def _is_factor(node: object) -> bool:
    return isinstance(node, AbstractFactor)


def forward(unit: Unit, x: PyTree) -> tuple[jex.Jaxpr, int]:
    """A forward pass, of shapes, as equations; and the number of outputs."""
    closed, outs, _ = eqx.filter_make_jaxpr(lambda unit, x: unit(unit.weights, x))(unit, x)
    return closed.jaxpr, sum(math.prod(out.shape) for out in jax.tree.leaves(outs))


def multiplications(jaxpr: jex.Jaxpr) -> int:
    """Of matrix products and convolutions; of all else, one for each entry."""
    return sum(_of_equation(eqn) for eqn in jaxpr.eqns)


def _of_equation(eqn: Any) -> int:
    name, params = eqn.primitive.name, eqn.params
    out = sum(math.prod(getattr(v.aval, "shape", ())) for v in eqn.outvars)
    if name == "dot_general":
        (contracting, _), _ = params["dimension_numbers"]
        shape = eqn.invars[0].aval.shape
        return out * math.prod(shape[i] for i in contracting)
    if name == "conv_general_dilated":
        shape = eqn.invars[1].aval.shape
        numbers = params["dimension_numbers"].rhs_spec
        return out * math.prod(shape[i] for i in numbers[1:])
    inner = _inner_jaxprs(params.values())
    repeated = params.get("length", 1) if name == "scan" else 1
    return repeated * sum(map(multiplications, inner)) if inner else out


def _inner_jaxprs(values: Any) -> Sequence[jex.Jaxpr]:
    is_jaxpr = lambda v: isinstance(v, jex.Jaxpr | jex.ClosedJaxpr)
    found = [v for v in jax.tree.leaves(list(values), is_leaf=is_jaxpr) if is_jaxpr(v)]
    return [v.jaxpr if isinstance(v, jex.ClosedJaxpr) else v for v in found]
