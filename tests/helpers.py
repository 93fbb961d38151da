"""Networks, built from the specifications that stored values come with."""

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import infinitenet as inn
from infinitenet._entries import pairs, program_of


_oracle = pathlib.Path(__file__).parent / "oracle"


def load(name):
    """The cases of a file of stored values, and its arrays."""
    cases = json.loads((_oracle / f"{name}.json").read_text())["cases"]
    with np.load(_oracle / f"{name}.npz") as arrays:
        return cases, dict(arrays)


def case_inputs(case, arrays, dtype: type = np.float64):
    """Both sets of inputs in one batch, and where the second one begins."""
    x1, x2 = (arrays[case["inputs"][x]] for x in ("x1", "x2"))
    x = np.concatenate([x1, x2])
    pattern = None
    if "pattern1" in case["inputs"]:
        patterns = [arrays[case["inputs"][f"pattern{i}"]] for i in (1, 2)]
        pattern = np.concatenate(_padded(patterns))
        if pattern.dtype == np.float64:
            pattern = pattern.astype(dtype)
    x, constant = x.astype(dtype), case.get("mask_constant")
    if constant is not None or pattern is not None:
        x = inn.Inputs(x, mask_constant=constant, pattern=pattern)
    return x, len(x1)


def _padded(patterns):
    """Lists of edges may be of different lengths: no edge is one of negative ends."""
    longest = max(pattern.shape[1] for pattern in patterns)
    return [
        np.pad(
            p,
            [(0, 0), (0, longest - p.shape[1])] + [(0, 0)] * (p.ndim - 2),
            constant_values=-1,
        )
        for p in patterns
    ]


def case_demand(case):
    """Networks without readout keep positions, and their values are of all pairs."""
    keeps = len(case["output_axes"]) > 2
    return inn.Demand(inn.Pairs.ALL) if keeps else inn.Demand()


def _features(specs):
    """Layers, and each of their options: which words, whether a number or none."""
    for spec in specs:
        for option, value in spec.items():
            is_word = value is None or isinstance(value, str | bool)
            yield spec["layer"], option, value if is_word else type(value)
        for nested in [spec.get("layers", []), *spec.get("branches", [])]:
            yield from _features(nested)


def novel(cases):
    """Names of cases that have something which none before them has."""
    seen = set()
    for name, case in cases.items():
        masked = case.get("mask_constant") is not None
        about = masked, "pattern1" in case["inputs"], len(case["output_axes"]) > 2
        features = {(*feature, masked) for feature in _features(case["layers"])} | {about}
        if not features <= seen:
            yield name
        seen |= features


def quick_jit(fn):
    """Compiled without optimisation: to save time, where a function runs a few times."""
    return jax.jit(fn, compiler_options={"xla_backend_optimization_level": "0"})


def run_once(fn, *args):
    """`fn(*args)`, compiled like that."""
    arrays, static = eqx.partition(args, eqx.is_array)
    return quick_jit(lambda arrays: fn(*eqx.combine(arrays, static)))(arrays)


def tile_memory(parts, x1, x2):
    """What the compiler says of the memory of a tile of these inputs."""
    args = parts.arrays, x1, x2, parts.entry.parts[0]
    program = program_of(parts.entry, pairs, *args)
    used: Any = program.run.lower(*jax.tree.leaves(args)).compile().memory_analysis()
    return used


def check_single_precision(net, x):
    """Within 1e-5 of float64: of the root mean square, and of each entry's own size on
    the diagonal."""
    got, want = inn.gram(net, x.astype(np.float32)), inn.gram(net, x)
    for a, b in ((got.nngp, want.nngp), (got.ntk, want.ntk)):
        assert a.dtype == jnp.float32
        assert np.max(np.abs(a - b)) < 1e-5 * np.sqrt(np.mean(np.square(b)))
        np.testing.assert_allclose(jnp.diag(a), jnp.diag(b), rtol=1e-5)


def run_python(source):
    """Runs a program in a process of its own, where JAX is not yet initialised."""
    # The same `infinitenet` as this process: installed, or the one of the repository.
    package = pathlib.Path(inn.__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-P", "-c", source],
        env=os.environ | {"PYTHONPATH": str(package)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def _affine_options(spec):
    options = {"W_std": spec["W_std"], "b_std": spec["b_std"]}
    if spec.get("parameterization") == "standard":
        options |= {"parameterization": "standard", "s": tuple(spec.get("s", (1, 1)))}
    return options


def _decay(spec):
    if spec is None:
        return None
    if spec["kind"] == "exp":
        return lambda d: np.exp(-spec["rate"] * d)
    return lambda d: 1 / (1 + spec["rate"] * d)


def _attention(spec):
    spec = dict(spec)
    decay = _decay(spec.pop("pos_emb_decay"))
    del spec["layer"]
    return inn.SelfAttention(**spec, pos_emb_decay_fn=decay)


# Axes of specifications count that of the batch, which examples do not have.


def _example_axis(axis):
    return axis - 1 if axis > 0 else axis


def _example_axes(axes):
    return [_example_axis(int(axis)) for axis in np.atleast_1d(axes)]


def _aggregate(spec):
    axis = spec["aggregate_axis"]
    axis = None if axis is None else _example_axes(axis)
    kinds = {"DENSE": inn.Aggregate, "SPARSE": inn.SparseAggregate}
    return kinds[spec["implementation"]](axis)


def _dot_general(spec):
    is_lhs = "lhs" not in spec
    sides = [
        [tuple(map(_example_axis, a)) if (i == 0) == is_lhs else a for i, a in enumerate(p)]
        for p in spec["dimension_numbers"]
    ]
    constant = {name: np.asarray(spec[name]) for name in ("lhs", "rhs") if name in spec}
    return inn.DotGeneral(**constant, dimension_numbers=sides)


def _index(spec):
    one = lambda i: slice(*i) if isinstance(i, list) else ... if i == "..." else i
    first, *rest = map(one, spec["index"])
    return inn.Index((first, *rest) if first is ... else tuple(rest))


def _windowed(spec, size):
    return spec[size], spec["strides"], spec["padding"]


# Of which the duals are given by formulas, or otherwise.
_functions = {
    "cube": inn.Pointwise(lambda x: x**3, lambda q1, k, q2: 6 * k**3 + 9 * q1 * k * q2),
    "erf": inn.Pointwise(
        jax.scipy.special.erf, lambda q1, k, q2: inn.Erf().dual(q1, k, q2)
    ),
}

_numerical = {
    "softplus": inn.Elementwise(jax.nn.softplus),
    "tanh": inn.Elementwise(jnp.tanh),
}

_builders = {
    "Abs": lambda s: inn.Abs(),
    "ABRelu": lambda s: inn.ABRelu(s["a"], s["b"]),
    "Aggregate": _aggregate,
    "AvgPool": lambda s: inn.AvgPool(*_windowed(s, "window"), s["normalize_edges"]),
    "Conv": lambda s: inn.Conv(s["width"], *_windowed(s, "filter"), **_affine_options(s)),
    "ConvLocal": lambda s: inn.ConvLocal(
        s["width"], *_windowed(s, "filter"), **_affine_options(s)
    ),
    "ConvTranspose": lambda s: inn.ConvTranspose(
        s["width"], *_windowed(s, "filter"), **_affine_options(s)
    ),
    "Cos": lambda s: inn.Cos(s["a"], s["b"], s["c"]),
    "Dense": lambda s: inn.Dense(s["width"], **_affine_options(s)),
    "DotGeneral": _dot_general,
    "Dropout": lambda s: inn.Dropout(s["keep_rate"], s["mode"]),
    "Elementwise": lambda s: _functions[s["fn"]],
    "ElementwiseNumerical": lambda s: _numerical[s["fn"]],
    "Erf": lambda s: inn.Erf(s["a"], s["b"], s["c"]),
    "Exp": lambda s: inn.Exp(s["a"], s["b"]),
    "ExpNormalized": lambda s: inn.ExpNormalized(s["gamma"], s["shift"], s["do_clip"]),
    "FanInConcat": lambda s: inn.FanInConcat(_example_axis(s["axis"])),
    "FanInProd": lambda s: inn.FanInProd(),
    "FanInSum": lambda s: inn.FanInSum(),
    "FanOut": lambda s: inn.FanOut(s["num"]),
    "Flatten": lambda s: inn.Flatten(),
    "Gabor": lambda s: inn.Gabor(),
    "Gaussian": lambda s: inn.Gaussian(s["a"], s["b"]),
    "Gelu": lambda s: inn.Gelu(s["approximate"]),
    "GlobalAvgPool": lambda s: inn.GlobalAvgPool(),
    "GlobalSelfAttention": _attention,
    "GlobalSumPool": lambda s: inn.GlobalSumPool(),
    "Hermite": lambda s: inn.Hermite(s["degree"]),
    "Identity": lambda s: inn.Identity(),
    "ImageResize": lambda s: inn.ImageResize(s["shape"][1:-1], s["method"], s["antialias"]),
    "Index": _index,
    "LayerNorm": lambda s: inn.LayerNorm(_example_axes(s["axis"]), s["eps"]),
    "LeakyRelu": lambda s: inn.LeakyRelu(s["alpha"]),
    "Monomial": lambda s: inn.Monomial(s["degree"]),
    "Parallel": lambda s: inn.Parallel([build(branch) for branch in s["branches"]]),
    "Polynomial": lambda s: inn.Polynomial(s["coef"]),
    "Rbf": lambda s: inn.Rbf(s["gamma"]),
    "RectifiedMonomial": lambda s: inn.RectifiedMonomial(s["degree"]),
    "Relu": lambda s: inn.Relu(),
    "Repeat": lambda s: inn.Repeat(build(s["layers"]), s["times"]),
    "Sigmoid_like": lambda s: inn.SigmoidLike(),
    "Sign": lambda s: inn.Sign(),
    "Sin": lambda s: inn.Sin(s["a"], s["b"], s["c"]),
    "SumPool": lambda s: inn.SumPool(*_windowed(s, "window")),
}


def is_known(specs):
    """Whether all layers exist."""
    for spec in specs:
        nested = [spec.get("layers", []), *spec.get("branches", [])]
        if spec["layer"] not in _builders or not all(map(is_known, nested)):
            return False
    return True


def build(specs):
    """A network from the list of its layers."""
    return inn.Sequential([_builders[spec["layer"]](spec) for spec in specs])


def unrolled(specs):
    """The same network without `Repeat`."""
    out = []
    for spec in specs:
        if spec["layer"] == "Repeat":
            out += spec["times"] * unrolled(spec["layers"])
        else:
            out.append(spec)
    return out
