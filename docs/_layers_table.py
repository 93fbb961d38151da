"""The table of all layers on the page of layers, made from what the code does.

`mkdocs.yml` names this file as a hook, and `tests/test_layers_table.py` tests the table.
"""

import dataclasses
import inspect
import pathlib
import re
import sys
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np


# For `mkdocs build` where the package is not installed.
sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))

import infinitenet as inn


_MARK = "<!-- table of layers -->"

# One of each layer, where that takes arguments.
_made: dict[str, Any] = {
    "ABRelu": lambda: inn.ABRelu(0.5, 1.0),
    "AvgPool": lambda: inn.AvgPool((2, 2)),
    "Concatenate": lambda: inn.Concatenate([inn.Dense(2), inn.Dense(2)]),
    "Conv": lambda: inn.Conv(2, (2, 2)),
    "ConvLocal": lambda: inn.ConvLocal(2, (2, 2)),
    "ConvTranspose": lambda: inn.ConvTranspose(2, (2, 2)),
    "Dense": lambda: inn.Dense(2),
    "DotGeneral": lambda: inn.DotGeneral(rhs=2.0),
    "Dropout": lambda: inn.Dropout(0.5),
    "Elementwise": lambda: inn.Elementwise(jnp.arctan),
    "FanOut": lambda: inn.FanOut(2),
    "Hermite": lambda: inn.Hermite(2),
    "ImageResize": lambda: inn.ImageResize((2, 2), "linear"),
    "Index": lambda: inn.Index(inn.Slice[1, :]),
    "LeakyRelu": lambda: inn.LeakyRelu(0.1),
    "MaxPool": lambda: inn.MaxPool((2, 2)),
    "Monomial": lambda: inn.Monomial(2),
    "Parallel": lambda: inn.Parallel([inn.Dense(2), inn.Dense(2)]),
    "Pointwise": lambda: inn.Pointwise(lambda x: x, lambda q1, k, q2: k),
    "Polynomial": lambda: inn.Polynomial([0.0, 1.0]),
    "Product": lambda: inn.Product([inn.Dense(2), inn.Dense(2)]),
    "RectifiedMonomial": lambda: inn.RectifiedMonomial(2),
    "Repeat": lambda: inn.Repeat(inn.Dense(2), 2),
    "Residual": lambda: inn.Residual(inn.Dense(2)),
    "SelfAttention": lambda: inn.SelfAttention(2, 2, 2, 1),
    "Sequential": lambda: inn.Sequential([inn.Dense(2)]),
    "SumPool": lambda: inn.SumPool((2, 2)),
    "Sum": lambda: inn.Sum([inn.Dense(2), inn.Dense(2)]),
}
_takes_tuples = {"FanInConcat", "FanInProd", "FanInSum", "Parallel"}


@dataclasses.dataclass(frozen=True)
class Row:
    """What a layer can do."""

    name: str
    finite: str
    infinite: str
    masks: str
    demand: str
    parameterizations: str
    reference: str


def exported() -> list[type]:
    """All layers of the library."""
    classes = [value for value in vars(inn).values() if inspect.isclass(value)]
    layers = {c for c in classes if issubclass(c, inn.AbstractLayer)}
    final = {c for c in layers if not c.__name__.startswith("Abstract")}
    return sorted(final, key=lambda c: c.__name__)


def _inputs(name: str, missing: Any = None) -> Any:
    """An example with positions and a graph."""
    size = 9 if name == "SparseAggregate" else (3, 3, 3, 3)
    pattern = np.zeros(size) if size != 9 else np.zeros((1, 2, 2), int)
    x = inn.Inputs(jnp.ones((3, 3, 2)), missing=missing, pattern=pattern)
    return (x, x) if name in _takes_tuples else x


def _network(cls: type) -> tuple[inn.AbstractLayer, inn.AbstractLayer]:
    """A layer, and a network which ends in it."""
    layer = _made.get(cls.__name__, cls)()
    first: inn.AbstractLayer = inn.Dense(2)
    if cls.__name__ in _takes_tuples:
        first = inn.Parallel([inn.Dense(2), inn.Dense(2)])
    return layer, inn.Sequential([first, layer])


def _works(fn: Any) -> bool:
    try:
        eqx.filter_eval_shape(fn)
    except ValueError:
        return False
    return True


def _finite(cls: type, layer: inn.AbstractLayer, net: inn.AbstractLayer) -> bool:
    name, key = cls.__name__, jax.random.key(0)

    def call():
        x = _inputs(name)
        # As a batch, which `BatchNorm` needs.
        batch = jax.tree.map(lambda x: x[None], x)
        drawn = net.init(key, x)
        call = jax.vmap(lambda x: drawn(x, key=key), axis_name="batch")
        return call(batch)

    return _works(call)


def _kernel(cls: type, net: inn.AbstractLayer, missing: Any = None) -> bool:
    return _works(lambda: net.kernel(_inputs(cls.__name__, missing)))


def _masks(cls: type, net: inn.AbstractLayer, infinite: bool) -> bool:
    x = _inputs(cls.__name__, np.zeros((3, 3), bool))
    if infinite:
        return _kernel(cls, net, np.zeros((3, 3), bool))
    return _works(lambda: net.init(jax.random.key(0), x).carry(x, key=jax.random.key(1)))


def _demand(layer: inn.AbstractLayer) -> str:
    """Pairs of positions that a layer must be given to pass on those of equal ones."""
    demand = layer.requires(inn.Demand())
    if not isinstance(demand, inn.Demand):
        return "as its layers do"
    if isinstance(layer, inn.AbstractCombinator):
        return (
            "as asked"
            if isinstance(layer, inn.Identity | inn.FanOut)
            else "as its layers do"
        )
    return {inn.Pairs.SAME: "equal positions", inn.Pairs.ALL: "all pairs"}[demand.cross]


def _reference(cls: type) -> str:
    doc = inspect.cleandoc(vars(cls).get("__doc__") or "")
    match = re.search(r'\?\?\? cite "Reference"\n((?: {4}.*\n?)+)', doc)
    if match is None:
        return ""
    first = " ".join(match[1].split()).split(". ")[0]
    return re.split(r": (?:section|Listing|theorem|equation)", first)[0].rstrip(".")


def row(cls: type) -> Row:
    """What a layer does, tried."""
    layer, net = _network(cls)
    infinite = _kernel(cls, net)
    kind = "closed form"
    if isinstance(layer, inn.AbstractQuadrature):
        kind = "by quadrature"
    elif isinstance(layer, inn.AbstractCombinator):
        kind = "yes"
    parameterizations = "–"
    if hasattr(layer, "parameterization"):
        parameterizations = "ntk, standard"
    elif "weights" in vars(layer):
        parameterizations = "ntk"
    return Row(
        cls.__name__,
        "yes" if _finite(cls, layer, net) else "–",
        kind if infinite else "–",
        "yes" if _masks(cls, net, infinite) else "–",
        _demand(layer) if infinite else "–",
        parameterizations,
        _reference(cls),
    )


def table() -> str:
    """The table, in Markdown."""
    titles = ["Layer", "Finite", "Infinite", "Masks", "Needs covariances of"]
    titles += ["Parameterizations", "Reference"]
    lines = [titles, ["---"] * len(titles)]
    for cls in exported():
        name, *cells = dataclasses.astuple(row(cls))
        lines.append([f"[`{name}`][infinitenet.{name}]", *(cell or "–" for cell in cells)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    """Called by MkDocs for each page."""
    del kwargs
    return markdown.replace(_MARK, table()) if _MARK in markdown else markdown
