"""Empirical kernels against Jacobians that are formed as a whole."""

import equinox as eqx
import jax
import jax.random as jr
import numpy as np
import pytest
from models import MODELS

import infinitenet as inn


METHODS = [
    inn.JacobianContraction(),
    inn.NTKVectorProducts(),
    inn.StructuredDerivatives(),
]


def batch_outputs(model, x):
    """Outputs as a function of the weights, on a batch."""
    weights, rest = eqx.partition(model, inn.trainable(model))

    def fn(weights):
        model = eqx.combine(weights, rest)
        batched = isinstance(model, inn.BatchFunction | inn.CoupledFunction)
        return model(x) if batched else jax.vmap(model)(x)

    return fn, weights


def naive(model, x):
    """NNGP and NTK of all outputs, of shapes `(n, *outputs, n, *outputs)`."""
    fn, weights = batch_outputs(model, x)
    out, jacobian = jax.jit(lambda w: (fn(w), jax.jacrev(fn)(w)))(weights)
    leaves, structure = jax.tree.flatten(out)
    kernels = []
    for f, each in zip(leaves, structure.flatten_up_to(jacobian), strict=True):
        flat = [np.asarray(j).reshape(f.size, -1) for j in jax.tree.leaves(each)]
        f, j, shape = np.asarray(f).reshape(-1, 1), np.concatenate(flat, 1), f.shape
        kernels.append(((f @ f.T).reshape(shape * 2), (j @ j.T).reshape(shape * 2)))
    return kernels


def reduce(k, trace=None, diagonal=()):
    """What `trace_axes` and `diagonal_axes` leave, by einsum."""
    ndim = k.ndim // 2
    trace = (() if ndim == 1 else (ndim - 1,)) if trace is None else trace
    first, second = list("abcdef"[:ndim]), list("uvwxyz"[:ndim])
    out = []
    for i in range(ndim):
        if i in trace or i in diagonal:
            second[i] = first[i]
        if i in diagonal:
            out.append(first[i])
        elif i not in trace:
            out += [first[i], second[i]]
    size = np.prod([k.shape[i] for i in trace], initial=1)
    return np.einsum(f"{''.join(first + second)}->{''.join(out)}", k) / size


@pytest.mark.parametrize("name", MODELS)
def test_methods(name):
    """All pairs of outputs as they come; traces under `jit`."""
    model, x = MODELS[name](jr.key(0))
    want = naive(model, x)
    # The second side has other examples, where these are independent.
    n1 = len(x) if isinstance(model, inn.CoupledFunction) else 2
    x1, x2 = x[:n1], x if n1 == len(x) else x[n1:]
    for method in METHODS:
        options = {"method": method, "progress": False}
        full = inn.empirical_kernel(model, x1, x2, trace_axes=(), **options)
        full = jax.tree.leaves(full, is_leaf=lambda k: isinstance(k, inn.Gram))
        fn = lambda x, options=options: inn.empirical_ntk(model, x, **options)
        traced = jax.tree.leaves(jax.jit(fn)(x1))
        for got, trace, (nngp, ntk) in zip(full, traced, want, strict=True):
            close = lambda a, b: np.testing.assert_allclose(
                a, b, rtol=1e-9, atol=1e-11 * np.sqrt(np.mean(b**2))
            )
            ndim = nngp.ndim // 2
            cut = lambda k, n=len(x) - len(x2), ndim=ndim: k[:n1].take(
                range(n, len(x)), axis=ndim
            )
            close(got.nngp, reduce(cut(nngp), ()))
            close(got.ntk, reduce(cut(ntk), ()))
            close(trace, reduce(ntk[:n1].take(range(n1), axis=ndim)))
