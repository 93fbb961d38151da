"""Products of an empirical NTK with vectors, without the matrix."""

from typing import Any

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .._batch import batch_of_one, batch_size, first_of
from .._checks import check_finite, check_shape
from .._tracing import is_traced
from .model import to_examples, to_unit, Unit, unit_outputs


class NTKVectorProduct(eqx.Module):
    r"""The map $v \mapsto \Theta(x_1, x_2) v$, as [`infinitenet.ntk_vector_product`][]
    returns it.
    """

    unit: Unit
    x1: PyTree[Array]
    x2: PyTree[Array]
    at_once: int = eqx.field(static=True)

    def __call__(self, v: PyTree[Array]) -> PyTree[Array]:
        """Multiplies.

        **Arguments:**

        - `v`: as the outputs on `x2`: shape `(n2, *outputs)`, or a pytree of such.

        **Returns:** as the outputs on `x1`.

        **Raises:** `ValueError` if `v` has a wrong shape or is not finite.
        """
        n = batch_size(self.x2)
        more = lambda x: jax.ShapeDtypeStruct((n, *x.shape), x.dtype)
        outs = jax.tree.map(more, unit_outputs(self.unit, self.x2))
        v = self._checked(outs, v)
        return self._multiply(v)

    def _checked(self, outs: PyTree, v: PyTree) -> PyTree:
        if jax.tree.structure(outs) != jax.tree.structure(v):
            raise ValueError(
                f"`v` must have the structure of the outputs, {jax.tree.structure(outs)}, "
                f"but it has {jax.tree.structure(v)}."
            )

        def check(out: jax.ShapeDtypeStruct, v: Array) -> Array:
            v = check_shape("v", jnp.asarray(v), out.shape, "that of the outputs on `x2`")
            if jnp.iscomplexobj(v):
                raise ValueError("`v` must be real: multiply its parts one by one.")
            if not is_traced(v):
                v = check_finite("v", v, "Look where it comes from.")
            return v.astype(out.dtype)

        return jax.tree.map(check, outs, v)

    @eqx.filter_jit
    def _multiply(self, v: PyTree[Array]) -> PyTree[Array]:
        unit = self.unit

        def pull(total: PyTree, each: tuple[PyTree, PyTree]) -> tuple[PyTree, None]:
            x, v = each
            fn = lambda weights: jax.vmap(lambda x: unit(weights, x))(x)
            (more,) = jax.vjp(fn, unit.weights)[1](v)
            return jax.tree.map(jnp.add, total, more), None

        def push(x: PyTree) -> PyTree:
            fn = lambda weights: unit(weights, x)
            return jax.jvp(fn, (unit.weights,), (direction,))[1]

        direction = jax.tree.map(jnp.zeros_like, unit.weights)
        n = batch_size(self.x2)
        whole = n - n % self.at_once
        if whole:
            first = lambda x: x[:whole].reshape(-1, self.at_once, *x.shape[1:])
            parts = jax.tree.map(first, (self.x2, v))
            direction, _ = lax.scan(pull, direction, parts)
        if whole < n:
            rest = jax.tree.map(lambda x: x[whole:], (self.x2, v))
            direction, _ = pull(direction, rest)
        return lax.map(push, self.x1, batch_size=min(self.at_once, batch_size(self.x1)))


class _Coupled(eqx.Module):
    """The same for a model whose examples depend on each other: all are one unit."""

    product: NTKVectorProduct

    def __call__(self, v: PyTree[Array]) -> PyTree[Array]:
        return first_of(self.product(batch_of_one(v)))


def ntk_vector_product(
    model: Any, x1: PyTree, x2: PyTree | None = None, *, at_once: int = 64
) -> Any:
    r"""Products with the empirical NTK of all outputs, $\Theta(x_1, x_2) v$, in the time of
    a backward and a forward pass and without the matrix. Where the outputs are several
    arrays, so is $v$, and all of them interact, as they do in training.

    For iterative solvers, and for eigenvalues:

    !!! example

        ```python
        multiply = inn.ntk_vector_product(mlp, x)
        operator = lx.FunctionLinearOperator(
            multiply, jax.eval_shape(lambda: y), lx.positive_semidefinite_tag
        )
        alpha = lx.linear_solve(operator, y, lx.CG(1e-6, 1e-6)).value
        ```

    **Arguments:**

    - `model`, `x1`, `x2`: as for [`infinitenet.empirical_ntk`][].
    - `at_once`: how many examples to evaluate at the same time.

    **Returns:** A function from arrays like the outputs on `x2`, of shape
    `(n2, *outputs)`, to such like those on `x1`. It is an Equinox module, and can be
    compiled, vectorised and differentiated.

    **Raises:** `ValueError` as `empirical_ntk`.
    """
    if not isinstance(at_once, int) or at_once < 1:
        raise ValueError(
            f"`at_once` must be a whole number of examples, at least 1, not {at_once!r}."
        )
    unit = to_unit(model)
    x1 = to_examples("x1", x1, model)
    x2 = x1 if x2 is None else to_examples("x2", x2, model)
    if unit.coupled:
        x1, x2 = batch_of_one(x1), batch_of_one(x2)
    product = NTKVectorProduct(unit, x1, x2, at_once)
    for name, x in (("x1", x1), ("x2", x2)):
        unit_outputs(unit, x, name)
    return _Coupled(product) if unit.coupled else product
