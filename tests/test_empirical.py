"""Empirical kernels against Jacobians that are formed as a whole."""

import inspect
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import pytest
from helpers import run_python
from models import MODELS

import infinitenet as inn
from infinitenet._empirical.axes import to_axes
from infinitenet._empirical.methods import AbstractNTKMethod, choose_method
from infinitenet._empirical.model import to_unit
from infinitenet._program import Program


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


def _sides(model, x):
    """Two batches; of other examples, where these are independent."""
    n1 = len(x) if isinstance(model, inn.CoupledFunction) else 2
    return x[:n1], x if n1 == len(x) else x[n1:]


def _check(got, want, n1, n2):
    """Kernels of all pairs of outputs, against those of all examples."""
    got = jax.tree.leaves(got, is_leaf=lambda k: isinstance(k, inn.Gram))
    for gram, kernels in zip(got, want, strict=True):
        for k, all_pairs in zip((gram.nngp, gram.ntk), kernels, strict=True):
            n, ndim = len(all_pairs), all_pairs.ndim // 2
            second = all_pairs[:n1].take(range(n - n2, n), axis=ndim)
            _close(k, reduce(second, ()))


@pytest.mark.parametrize("name", MODELS)
def test_methods(name):
    """Under `jit` by each method, and as it comes by the best."""
    model, x = MODELS[name](jr.key(0))
    want = naive(model, x)
    x1, x2 = _sides(model, x)
    full = lambda x1, x2, m: inn.empirical_kernel(model, x1, x2, trace_axes=(), method=m)
    everything = lambda x1, x2: [full(x1, x2, method) for method in METHODS]
    traces = lambda x1: [inn.empirical_ntk(model, x1, method=m) for m in METHODS]
    compiled, traces = jax.jit(lambda x1, x2: (everything(x1, x2), traces(x1)))(x1, x2)
    for got, trace in zip(compiled, traces, strict=True):
        _check(got, want, len(x1), len(x2))
        for k, (_, ntk) in zip(jax.tree.leaves(trace), want, strict=True):
            _close(k, reduce(ntk[: len(x1)].take(range(len(x1)), axis=ntk.ndim // 2)))
    _check(full(x1, x2, None), want, len(x1), len(x2))


_quick = ("mlp", "cnn")
_slow = [
    pytest.param(name, marks=pytest.mark.slow) for name in MODELS if name not in _quick
]


@pytest.mark.parametrize("name", [*_quick, *_slow])
def test_methods_as_they_come(name):
    model, x = MODELS[name](jr.key(0))
    x1, x2 = _sides(model, x)
    want = naive(model, x)
    for method in METHODS:
        options = {"method": method, "trace_axes": (), "progress": False}
        got = inn.empirical_kernel(model, x1, x2, **options)
        _check(got, want, len(x1), len(x2))


def _close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11 * np.sqrt(np.mean(b**2)))


def _complex(w, x):
    return jnp.abs((jnp.fft.fft(x) + 1j) @ w[0] @ w[1])


def _by_size(w, x):
    """Another arrangement of the same numbers, for other numbers of examples."""
    h = jnp.tanh(x @ w[0])
    if len(x) > 2:
        return h @ w[1]
    h = h.reshape(-1, 2, 2).swapaxes(1, 2)
    return jnp.einsum("nab,abj->nj", h, w[1].reshape(2, 2, 4).transpose(1, 0, 2))


def _long(w, x):
    """More steps than are looked into, on one side; and a loop of no step."""

    def one(x):
        step = lambda h, x: (jnp.tanh(h @ w[0] + x @ w[1]), None)
        h = jax.lax.scan(step, jnp.zeros(4), x)[0]
        return jax.lax.scan(lambda h, w: (h @ w, h), h, w[1][None][:0])[0]

    return jax.vmap(one)(x)


_odd = {
    "complex": (inn.BatchFunction, _complex, (3, 4), (2, 4)),
    "by size": (inn.CoupledFunction, _by_size, (3, 4), (2, 4)),
    "long": (inn.BatchFunction, _long, (1, 66, 4), (2, 3, 4)),
}


@pytest.mark.parametrize("name", _odd)
def test_structure_is_not_trusted(name, getkey):
    """Where sites of both sides do not fit together, or are not all that counts."""
    kind, fn, *shapes = _odd[name]
    w = [jr.normal(getkey(), (4, 4)) for _ in range(2)]
    xs = [jr.normal(getkey(), shape) for shape in shapes]
    sides = []
    for x in xs:
        f, jac = fn(w, x), jax.jacrev(fn)(w, x)
        sides.append(jnp.concatenate([j.reshape(*f.shape, -1) for j in jac], axis=-1))
    want = jnp.einsum("nop,mqp->nmoq", *sides)
    for method in (METHODS[2], None):
        got = inn.empirical_ntk(kind(fn, w), *xs, trace_axes=(), method=method)
        _close(got, want)


#
# Axes, tiles, devices
#


def _mlp(getkey, widths=(5, 3), n=7):
    layers = [inn.Dense(widths[0], 1.5, 0.1), inn.Erf(), inn.Dense(widths[1])]
    x = jr.normal(getkey(), (n, 4))
    return inn.Sequential(layers).init(getkey(), x[0]), x


def _full(net, x1, x2=None, **options):
    options = {"trace_axes": (), "progress": False} | options
    return inn.empirical_kernel(net, x1, x2, **options)


def _shapes_of_tiles(net, x):
    """A budget of memory that makes tiles of a few examples."""
    try:
        inn.empirical_ntk(net, x, memory=1, trace_axes=())
    except ValueError as error:
        least = int(re.search(r"at least (\d+)", str(error))[1])  # pyright: ignore
        return [least, 4 * least, 10 * least]
    raise AssertionError


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_tiles(getkey, method):
    net, x = _mlp(getkey)
    want, want12 = _full(net, x, method=method), _full(net, x, x[:4], method=method)
    assert np.array_equal(want.ntk, want.ntk.transpose(1, 0, 3, 2))
    done = []
    for memory in _shapes_of_tiles(net, x):
        report = lambda *now: done.append(now)
        got = _full(net, x, method=method, memory=memory, progress=report)
        got12 = _full(net, x, x[:4], method=method, memory=memory)
        options = {"method": method, "memory": memory}
        traced = jax.jit(lambda x, options=options: _full(net, x, **options))(x)
        for k, k12 in ((got, got12), (traced, want12)):
            for name in ("nngp", "ntk"):
                close = lambda a, b: np.testing.assert_allclose(
                    a, b, rtol=1e-12, atol=1e-13
                )
                close(getattr(k, name), getattr(want, name))
                close(getattr(k12, name), getattr(want12, name))
    assert done[-1] == (49, 49)


def test_pairs(getkey):
    """The axis of examples on the diagonal, and traced."""
    net, x = _mlp(getkey)
    want = _full(net, x, x[::-1]).ntk
    options = {"trace_axes": (-1,), "diagonal_axes": (0,)}
    for method in METHODS:
        got = _full(net, x, x[::-1], method=method, **options)
        assert isinstance(got, inn.GramDiagonal)
        np.testing.assert_allclose(got.ntk, np.einsum("aauu->a", want) / 3, rtol=1e-12)
        got = inn.empirical_ntk(net, x, x[::-1], method=method, trace_axes=(0,))
        np.testing.assert_allclose(got, np.einsum("aauv->uv", want) / 7, atol=1e-14)


def test_output_without_axes(getkey):
    net = eqx.nn.MLP(3, "scalar", 4, 1, key=getkey())
    x = jr.normal(getkey(), (4, 3))
    k = inn.empirical_kernel(net, x)
    f = jax.vmap(net)(x)
    np.testing.assert_allclose(k.nngp, f[:, None] * f[None], rtol=1e-12)


def test_nngp_only(getkey):
    net, x = _mlp(getkey)
    f = jax.vmap(net)(x)
    np.testing.assert_allclose(inn.empirical_nngp(net, x), f @ f.T / 3, rtol=1e-12)


def test_transformations(getkey):
    """Over an ensemble, and of a kernel along what is not a weight."""
    net, x = _mlp(getkey, n=3)
    ensemble = inn.draw_ensemble(net, getkey(), x[0], 2)
    one = lambda net: inn.empirical_kernel(net, x)
    got = eqx.filter_vmap(one)(ensemble)
    for i in range(2):
        member = jax.tree.map(lambda a, i=i: a[i] if eqx.is_array(a) else a, ensemble)
        np.testing.assert_allclose(got.ntk[i], one(member).ntk, rtol=1e-12)

    def total(x):
        return jnp.sum(jnp.sin(inn.empirical_ntk(net, x)))

    direction = jr.normal(getkey(), x.shape)
    h = 1e-5
    slope = (total(x + h * direction) - total(x - h * direction)) / (2 * h)
    np.testing.assert_allclose(jnp.vdot(jax.grad(total)(x), direction), slope, rtol=1e-7)


def test_half_precision_and_single(getkey):
    net, x = _mlp(getkey)
    want = inn.empirical_kernel(net, x)
    to = lambda dtype: jax.tree.map(
        lambda a: a.astype(dtype) if eqx.is_inexact_array(a) else a, net
    )
    single = inn.empirical_kernel(to(jnp.float32), x.astype(jnp.float32))
    assert single.ntk.dtype == jnp.float32
    for name in ("nngp", "ntk"):
        k = getattr(want, name)
        error = np.abs(getattr(single, name) - k).max() / np.sqrt(np.mean(k**2))
        assert error < 1e-6
    weights = {"a": jr.normal(getkey(), (4, 2), jnp.bfloat16)}
    model = inn.BatchFunction(lambda w, x: x @ w["a"], weights)
    half = inn.empirical_ntk(model, x.astype(jnp.bfloat16))
    assert half.dtype == jnp.float32
    x = x.astype(jnp.bfloat16).astype(jnp.float32)
    np.testing.assert_allclose(half, x @ x.T, rtol=1e-5, atol=1e-5)


_devices = """
import jax
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_enable_x64", True)
import infinitenet as inn, jax.random as jr, numpy as np
x = jr.normal(jr.key(0), (7, 4))
net = inn.Sequential([inn.Dense(5), inn.Erf(), inn.Dense(3)]).init(jr.key(1), x[0])
want, want12 = inn.empirical_kernel(net, x), inn.empirical_ntk(net, x, x[:3])
want0 = inn.empirical_ntk(net, x, diagonal_axes=(0,))
auto = (jax.sharding.AxisType.Auto,) * 2
for mesh in (
    jax.make_mesh((2, 2), ("a", "b")),
    jax.make_mesh((2, 2), ("a", "b"), axis_types=auto),
    jax.make_mesh((4,), ("a",)),
):
    got = inn.empirical_kernel(net, x, mesh=mesh)
    assert len(got.ntk.devices()) == 4, got.ntk.sharding
    np.testing.assert_allclose(got.nngp, want.nngp, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(got.ntk, want.ntk, rtol=1e-12, atol=1e-14)
    got = jax.jit(lambda x, mesh=mesh: inn.empirical_ntk(net, x, mesh=mesh))(x)
    np.testing.assert_allclose(got, want.ntk, rtol=1e-12, atol=1e-14)
    got = inn.empirical_ntk(net, x, x[:3], mesh=mesh)
    np.testing.assert_allclose(got, want12, rtol=1e-12, atol=1e-14)
    got = inn.empirical_ntk(net, x, mesh=mesh, diagonal_axes=(0,))
    np.testing.assert_allclose(got, want0, rtol=1e-12, atol=1e-14)
"""


def test_devices():
    run_python(_devices)


#
# Products with vectors
#


@pytest.mark.parametrize("name", ["odd", "batch norm"])
def test_vector_product(name, getkey):
    """Against Jacobians; outputs of several arrays interact too."""
    model, x = MODELS[name](getkey())
    x1, x2 = (x, x) if name == "batch norm" else (x[:3], x)
    multiply = inn.ntk_vector_product(model, x1, x2, at_once=3)

    def outputs(x):
        fn, weights = batch_outputs(model, x)
        return fn, weights, jax.jit(jax.jacrev(fn))(weights)

    def flat(jacobian, out):
        each = jax.tree.structure(out).flatten_up_to(jacobian)
        rows = [
            np.concatenate([j.reshape(f.size, -1) for j in jax.tree.leaves(js)], 1)
            for f, js in zip(jax.tree.leaves(out), each, strict=True)
        ]
        return np.concatenate(rows)

    (fn1, weights, j1), (fn2, _, j2) = outputs(x1), outputs(x2)
    out1, out2 = fn1(weights), fn2(weights)
    v = jax.tree.map(lambda f: jr.normal(getkey(), f.shape), out2)
    got = eqx.filter_jit(multiply)(v)
    assert jax.tree.structure(got) == jax.tree.structure(out1)
    stack = lambda v: np.concatenate([np.ravel(x) for x in jax.tree.leaves(v)])
    want = flat(j1, out1) @ (flat(j2, out2).T @ stack(v))
    np.testing.assert_allclose(stack(got), want, rtol=1e-9, atol=1e-9)


def test_conjugate_gradients(getkey):
    net, x = _mlp(getkey, widths=(30, 2), n=4)
    y = jr.normal(getkey(), (4, 2))
    multiply = inn.ntk_vector_product(net, x)
    operator = lx.FunctionLinearOperator(
        multiply, jax.eval_shape(lambda: y), lx.positive_semidefinite_tag
    )
    got = lx.linear_solve(operator, y, lx.CG(1e-12, 1e-12)).value
    k = _full(net, x).ntk.transpose(0, 2, 1, 3).reshape(8, 8)
    np.testing.assert_allclose(got.ravel(), jnp.linalg.solve(k, y.ravel()), rtol=1e-6)


#
# Choice of the method
#


def test_structure_is_used(getkey):
    """No derivative along a large weight is formed where its structure is known."""
    net = eqx.nn.MLP(100, 3, 200, 2, key=getkey())
    x = jr.normal(getkey(), (2, 100))

    def largest(method):
        fn = lambda x: inn.empirical_ntk(net, x, method=method)
        return Program(fn, x).largest_array

    assert largest(inn.StructuredDerivatives()) < 8 * 200 * 200 * 2
    assert largest(inn.JacobianContraction()) >= 8 * 200 * 200 * 3 * 2
    assert largest(None) < 8 * 200 * 200 * 2


def test_many_outputs_by_products(getkey):
    """A convolution, of which a pass is cheap for so many pairs of outputs."""
    net = inn.Sequential([inn.Conv(8, (3,), padding="SAME"), inn.Erf(), inn.Conv(8, (3,))])
    x = jr.normal(getkey(), (2, 30, 8))
    net = net.init(getkey(), x[0])
    unit = to_unit(net)
    axes = (to_axes((2, 28, 8), (), ()).of_unit(False),)
    assert isinstance(choose_method(unit, x[0], axes, 2, 2), inn.NTKVectorProducts)
    axes = (to_axes((2, 28, 8), (1, 2), ()).of_unit(False),)
    assert isinstance(choose_method(unit, x[0], axes, 2, 2), AbstractNTKMethod)


#
# Errors
#


_errors = [
    ({"trace_axes": (2,)}, "`trace_axes` has axis 2, but outputs have shape (7, 3)"),
    ({"trace_axes": (0, -2)}, "`trace_axes` has an axis twice"),
    (
        {"trace_axes": (1,), "diagonal_axes": (-1,)},
        "Axis 1 is in both `trace_axes` and `diagonal_axes`",
    ),
    ({"diagonal_axes": (0,), "x2": 3}, "there are 7 and 3"),
    ({"memory": 10}, "`memory` must be at least"),
    ({"method": "structured"}, "`method` must be `JacobianContraction()`"),
]


@pytest.mark.parametrize("options, message", _errors)
def test_wrong_options(getkey, options, message):
    net, x = _mlp(getkey)
    x2 = x[: options.pop("x2")] if "x2" in options else None
    untyped = inspect.unwrap(inn.empirical_ntk)
    with pytest.raises(ValueError, match=re.escape(message)):
        untyped(net, x, x2, **options)


def test_wrong_models(getkey):
    net, x = _mlp(getkey)
    key = getkey()

    def refused(model, message, x=x):
        with pytest.raises(ValueError, match=message):
            inn.empirical_ntk(model, x)

    refused(eqx.nn.Sequential([eqx.nn.Linear(4, 2, key=key), eqx.nn.Dropout()]), "key")
    norm, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(4, "batch", mode="batch")
    del state
    refused(norm, "If it has state")
    dropout = inn.Sequential([inn.Dense(3), inn.Dropout(0.5), inn.Dense(2)])
    refused(dropout.init(key, x[0]), "key")
    refused(inn.Sequential([inn.Dense(3)]), "no weights yet")
    refused(lambda x: x, "`model` has no weights")
    refused(3, "`model` must be a function")
    refused(net, "`x1` must have a first axis|`x1`", x=x[0])
    bad = eqx.tree_at(lambda n: n.layers[0].weights.W, net, replace_fn=lambda w: w / 0)
    refused(bad, r"model.layers\[0\].weights.W` has 20 entries")
    whole = eqx.tree_at(
        lambda n: n.layers[0].weights.W, net, replace_fn=lambda w: 1e200 * w
    )
    refused(eqx.nn.Lambda(lambda x, net=whole: 1e300 * net(x) ** 2), "no weights")
    huge = inn.BatchFunction(lambda w, x: 1e200 * w * x, jnp.array(1e300))
    refused(huge, "overflow")
    refused(inn.BatchFunction(lambda w, x: x > w[None], jnp.ones(4)), "real floating")
    summed = inn.BatchFunction(lambda w, x: jnp.sum(x @ w, axis=0), jnp.ones((4, 2)))
    refused(summed, "a first axis of examples, but given one example")
    refused(inn.BatchFunction(lambda w, x: x @ w, jnp.ones((4, 2)) * 1j), "complex weights")
    coupled = inn.CoupledFunction(lambda w, x: jnp.sum(w * x), jnp.ones(()))
    refused(coupled, "first axis of the 7 examples")
    refused(eqx.nn.Linear(4, 2, key=key), "NaN or infinite", x=x / 0)
