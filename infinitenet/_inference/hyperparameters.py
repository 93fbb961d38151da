"""Which leaves of a network are hyperparameters, and a scale to learn them on."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import GetAttrKey, keystr, tree_flatten_with_path
from jaxtyping import Array, Float, PyTree

from .._hyperparameters import Domain, REAL_DOMAIN
from .._layer import AbstractLayer
from .._weights import trainable


# What selects leaves: a pytree of Booleans, or a function of the network, as for
# `equinox.tree_at`, which returns a leaf or several.
Where: TypeAlias = AbstractLayer | Callable[[Any], Any] | None


def _domain(net: PyTree, path: tuple[Any, ...]) -> Domain | None:
    """Of a leaf, by the declaration of the field that holds it; `None` if undeclared."""
    node, found = net, None
    for key in path:
        if isinstance(key, GetAttrKey):
            fields = {field.name: field for field in dataclasses.fields(node)}
            found = fields[key.name].metadata.get("domain")
            node = getattr(node, key.name)
        else:
            node, found = node[getattr(key, "idx", getattr(key, "key", None))], None
    return found


def _is_floating(leaf: Any) -> bool:
    return eqx.is_inexact_array(leaf) and jnp.isrealobj(leaf)


def _is_learnt(net: PyTree, path: tuple[Any, ...], leaf: Any) -> bool:
    if not _is_floating(leaf):
        return False
    domain = _domain(net, path)
    return jnp.ndim(leaf) == 0 if domain is None else domain.learnt


def hyperparameters(net: PyTree) -> PyTree[bool]:
    r"""A filter of hyperparameters, for `eqx.partition` and `eqx.filter`.

    That are standard deviations of weights and biases, and parameters of nonlinearities
    (`alpha` of `LeakyRelu`, `gamma` of `Rbf`, `coef` of `Polynomial`, ...): all that
    shapes the prior over functions. Of layers of your own, each floating-point scalar.

    Not among them are weights, constants that guard against division by zero (`eps` of
    `LayerNorm`), noise in training (`keep_rate` of `Dropout`), and arrays such as that of
    `DotGeneral`.

    !!! example

        ```python
        learnt, rest = eqx.partition(net, inn.hyperparameters(net))


        @eqx.filter_jit
        @eqx.filter_grad
        def gradient(learnt, diag_reg):
            k = inn.gram(eqx.combine(learnt, rest), x, ntk=False).nngp
            return inn.condition(k, y, diag_reg=diag_reg).log_marginal_likelihood()
        ```

    **Arguments:**

    - `net`: a layer or any pytree of layers.

    **Returns:**

    A pytree of the same structure: `True` for hyperparameters, `False` for all else.
    """
    leaves, structure = tree_flatten_with_path(net)
    weights = jax.tree.leaves(trainable(net))
    marks = [
        not is_weight and _is_learnt(net, path, leaf)
        for (path, leaf), is_weight in zip(leaves, weights, strict=True)
    ]
    return jax.tree.unflatten(structure, marks)


def _marks(net: AbstractLayer, where: Where) -> list[bool]:
    """Which leaves are selected."""
    if where is None:
        return jax.tree.leaves(hyperparameters(net))
    if not isinstance(where, AbstractLayer):
        none = jax.tree.map(lambda _: False, net)
        where = eqx.tree_at(where, none, replace_fn=lambda _: True)
    marks, structure = jax.tree.flatten(where)
    if structure != jax.tree.structure(net) or not all(type(m) is bool for m in marks):
        raise ValueError(
            "`where` must be a pytree of `True` and `False` of the structure of `net`, as "
            "`hyperparameters(net)` is, or a function that returns leaves of a network."
        )
    return marks


class Learnt(eqx.Module):
    """The leaves of a network that are learnt, as one vector of real numbers.

    - `net`: where the others are.
    - `indices`: of the learnt ones, among all leaves.
    - `names`: of these, as `layers[0].W_std`.
    - `domains`: of these.
    """

    net: AbstractLayer
    indices: tuple[int, ...] = eqx.field(static=True)
    names: tuple[str, ...] = eqx.field(static=True)
    domains: tuple[Domain, ...] = eqx.field(static=True)

    def of(self, net: AbstractLayer) -> dict[str, Array]:
        """What is learnt, by names."""
        leaves = jax.tree.leaves(net)
        return {name: leaves[i] for name, i in zip(self.names, self.indices, strict=True)}

    def to_vector(self, dtype: np.dtype) -> Float[Array, " parameters"]:
        """That of `net`."""
        values = zip(self.domains, self.of(self.net).values(), strict=True)
        parts = [jnp.ravel(domain.to_real(x)).astype(dtype) for domain, x in values]
        return jnp.concatenate([jnp.zeros(0, dtype), *parts])

    def from_vector(self, z: Float[Array, " parameters"]) -> AbstractLayer:
        """The network of other hyperparameters."""
        leaves, structure = jax.tree.flatten(self.net)
        start = 0
        for i, domain in zip(self.indices, self.domains, strict=True):
            old = leaves[i]
            part = z[start : start + old.size].reshape(old.shape)
            if domain.reach is not None:
                # As it is near the start, and further away ever slower.
                first = domain.to_real(old).astype(z.dtype)
                part = first + domain.reach * jnp.tanh((part - first) / domain.reach)
            leaves[i] = domain.from_real(part).astype(old.dtype)
            start += old.size
        return jax.tree.unflatten(structure, leaves)


def _on_boundary(domain: Domain, leaf: Array) -> bool:
    return not bool(jnp.all(jnp.isfinite(domain.to_real(leaf))))


def select(net: AbstractLayer, where: Where) -> Learnt:
    """What is learnt, all of which is within its domain.

    **Raises:** `ValueError` if `where` selects what cannot be learnt.
    """
    marks = _marks(net, where)
    weights = jax.tree.leaves(trainable(net))
    indices, names, domains = [], [], []
    for i, (path, leaf) in enumerate(tree_flatten_with_path(net)[0]):
        if not marks[i]:
            continue
        name = keystr(path).removeprefix(".")
        if weights[i] or not _is_floating(leaf):
            raise ValueError(
                f"`where` selects `{name}`, which is no hyperparameter: select "
                "floating-point numbers that are not weights."
            )
        domain = _domain(net, path) or REAL_DOMAIN
        if _on_boundary(domain, leaf):
            if where is None:
                continue  # As documented: a zero remains one.
            raise ValueError(
                f"`where` selects `{name}`, which is {leaf}. It is learnt on a scale on "
                "which that is infinitely far away: start from another value, such as 0.1."
            )
        indices.append(i)
        names.append(name)
        domains.append(domain)
    return Learnt(net, tuple(indices), tuple(names), tuple(domains))
