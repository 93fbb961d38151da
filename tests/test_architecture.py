"""Rules of the source code itself. `CONTRIBUTING.md` gives their reasons."""

import ast
import importlib
import inspect
import pathlib
import pkgutil
import re

import equinox as eqx
import pytest

import infinitenet


_root = pathlib.Path(__file__).resolve().parents[1]
_package = _root / "infinitenet"
_files = sorted(_package.rglob("*.py"))

# A module imports only from those above it. `_layers.*` are the modules of that folder,
# which never import each other; `_layers` is the folder's `__init__.py`, which
# may import them all. The last, `""`, is the package's `__init__.py`.
_order = [
    "_custom_types",
    "_tracing",
    "_progress",
    "_checkpoint",
    "_workers",
    "_mesh",
    "_compiler",
    "_flow_of_arrays",
    "_program",
    "_finite",
    "_checks",
    "_path",
    "_show",
    "_hyperparameters",
    "_special",
    "_moments",
    "_polar",
    "_hermite",
    "_correlation_map",
    "_expectations",
    "_quadrature",
    "_piecewise",
    "_window",
    "_shifts",
    "_inputs",
    "_covariance",
    "_kernel",
    "_signal",
    "_parameterization",
    "_weights",
    "_layer",
    "_loop",
    "_pointwise",
    "_piecewise_linear",
    "_by_quadrature",
    "_affine",
    "_tokens",
    "_joining",
    "_branches",
    "_merging",
    "_layers.*",
    "_layers",
    "_fixed_points",
    "_vector_maps",
    "_propagation",
    "_phase_diagram",
    "_architectures",
    "_matrices",
    "_batch",
    "_tiles",
    "_uniform",
    "_entries",
    "_distances",
    "_sum_of_distances",
    "_pooled",
    "_pooled_windows",
    "_pooled_attention",
    "_by_distances",
    "_stacks",
    "_parts",
    "_overflow",
    "_symmetry",
    "_assembly",
    "_tiled",
    "_schedule",
    "_grid",
    "_sharded_programs",
    "_sharded",
    "_traced_gram",
    "_manifest",
    "_store",
    "_storing",
    "_beam",
    "_gram",
    "_inference.spectral",
    "_inference.cholesky",
    "_inference.solution",
    "_inference.gp",
    "_inference.leave_one_out",
    "_inference.joint_kernel",
    "_inference.scalars",
    "_inference.losses",
    "_inference.optimisers",
    "_inference.time",
    "_inference.flow",
    "_inference.infinite_ensemble",
    "_inference.dynamics",
    "_inference.integration",
    "_inference.trajectory",
    "_inference.loss_flow",
    "_inference.gumbel",
    "_inference.labels",
    "_inference.softmax",
    "_inference.dirichlet",
    "_inference.calibration",
    "_inference.diagnostics",
    "_inference.learning_curve",
    "_inference.hyperparameters",
    "_inference.ascent",
    "_inference.fit",
    "_inference.network",
    "_inference",
    "_empirical.abstract",
    "_empirical.model",
    "_empirical.taylor",
    "_empirical.axes",
    "_empirical.products",
    "_empirical.sites",
    "_empirical.factors",
    "_empirical.features",
    "_empirical.methods",
    "_empirical.tiling",
    "_empirical.kernels",
    "_empirical.vector_product",
    "_empirical",
    "_monte_carlo.student",
    "_monte_carlo.moments",
    "_monte_carlo.deviation",
    "_monte_carlo.estimate",
    "_monte_carlo.draws",
    "_monte_carlo.experiment",
    "_monte_carlo.store",
    "_monte_carlo.run",
    "_monte_carlo.gram",
    "_monte_carlo.convergence",
    "_monte_carlo",
    "_flow_time",
    "_ntk_rates",
    "_minibatch",
    "_members",
    "_drift",
    "_training",
    "_training_parts",
    "_training_data",
    "_training_store",
    "_trained",
    "_training_run",
    "_comparison",
    "_ensemble",
    "plot._style",
    "plot.*",
    "plot",
    "",
]

# Abstract class and the methods which are its defaults: subclasses may override these.
_defaults = {
    "AbstractAffine": {"unshared"},
    "AbstractJoin": {"keeps_distances"},
    "AbstractLayer": {
        *("as_pointwise", "carry", "check", "draw", "mask", "requires", "step"),
    },
    "AbstractQuadrature": {"kinked"},
    "AbstractPointwise": {"dual_at", "flat", "odd"},
}

_max_lines_of_file = 400
_max_lines_of_function = 40


#
# Imports, by reading the source
#


def _module_name(file: pathlib.Path) -> str:
    """The name of a module within the package: `""`, `_layers`, `_layers.affine`."""
    parts = file.relative_to(_package).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


_module_names = {_module_name(file) for file in _files}


def _place(module: str) -> str:
    """The entry of `_order` for a module."""
    folder = module.rpartition(".")[0]
    return module if module in _order or not folder else f"{folder}.*"


def _module_of(path: str) -> str:
    """`_layers.affine` of `_layers.affine.Dense`: what is left are attributes."""
    while path and path not in _module_names:
        path = path.rpartition(".")[0]
    return path


def _imported(file: pathlib.Path) -> set[str]:
    """The modules of the package that a file imports, wherever in the file."""
    out = set()
    folder = ("infinitenet", *file.relative_to(_package).parent.parts)
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            paths = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = folder[: len(folder) - node.level + 1] if node.level else ()
            start += (node.module,) if node.module else ()
            paths = [".".join((*start, alias.name)) for alias in node.names]
        else:
            continue
        for path in paths:
            package, _, rest = path.partition(".")
            if package == "infinitenet":
                out.add(_module_of(rest))
    return out


def _relative(file: pathlib.Path) -> str:
    return str(file.relative_to(_root))


@pytest.mark.parametrize("file", _files, ids=_relative)
def test_import_direction(file):
    module = _module_name(file)
    assert _place(module) in _order, (
        f"{_relative(file)} has no place in the order of modules: add it to `_order` "
        "of tests/test_architecture.py, above all modules that import it."
    )
    for other in sorted(_imported(file)):
        assert _place(other) in _order[: _order.index(_place(module))], (
            f"{_relative(file)} imports `infinitenet.{other}`, which is not above it "
            "in the order of modules. Move what both need to a module above both."
        )


#
# Lengths
#


def _length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function, from `def` on, without its docstring."""
    first = function.body[0]
    lines = function.end_lineno - function.lineno + 1  # pyright: ignore
    if ast.get_docstring(function, clean=False) is not None:
        lines -= first.end_lineno - first.lineno + 1  # pyright: ignore
    return lines


@pytest.mark.parametrize("file", _files, ids=_relative)
def test_lengths(file):
    source = file.read_text("utf-8")
    assert len(source.splitlines()) < _max_lines_of_file, "Split the file by concept."
    long = {
        f"{node.name}, line {node.lineno}": _length(node)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and _length(node) >= _max_lines_of_function
    }
    assert not long, f"Functions of {_max_lines_of_function} lines or more: {long}."


#
# Abstract or final: https://docs.kidger.site/equinox/pattern
#


def _all_modules():
    """The package's classes that are `eqx.Module`s, by introspection."""
    out = set()
    for info in pkgutil.walk_packages(infinitenet.__path__, "infinitenet."):
        module = importlib.import_module(info.name)
        for value in vars(module).values():
            if inspect.isclass(value) and value.__module__ == info.name:
                out.add(value)
    out = {cls for cls in out if issubclass(cls, eqx.Module)}
    return sorted(out, key=lambda cls: (cls.__module__, cls.__qualname__))


_classes = _all_modules()
# Written by `dataclass` or, as for `__check_init__`, called for each class of the MRO.
_not_overriding = {"__check_init__", "__eq__", "__hash__", "__init__", "__repr__"}
_not_overriding |= {"__replace__", "__annotate__", "__annotate_func__"}


def _is_abstract(cls: type) -> bool:
    return cls.__name__.lstrip("_").startswith("Abstract")


def _methods(cls: type) -> set[str]:
    kinds = (property, classmethod, staticmethod)
    return {
        name
        for name, value in vars(cls).items()
        if callable(value) or isinstance(value, kinds)
    } - _not_overriding


def _bases(cls: type) -> list[type]:
    return [b for b in cls.__mro__[1:] if b.__module__.split(".")[0] == "infinitenet"]


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


@pytest.mark.parametrize("cls", _classes, ids=_name)
def test_abstract_or_final(cls):
    concrete = [_name(base) for base in _bases(cls) if not _is_abstract(base)]
    assert not concrete, (
        f"{_name(cls)} is a subclass of {concrete}. Only classes named `Abstract...` "
        "are subclassed: move what is shared to such a class."
    )
    if not _is_abstract(cls):
        missing = cls.__abstractmethods__ | cls.__abstractvars__
        missing |= cls.__abstractclassvars__
        assert not missing, (
            f"{_name(cls)} leaves {sorted(missing)} abstract: define them, or name the "
            "class `Abstract...`."
        )


@pytest.mark.parametrize("cls", _classes, ids=_name)
def test_only_abstract_methods_are_overridden(cls):
    for base in _bases(cls):
        concrete = _methods(base) - base.__abstractmethods__  # pyright: ignore
        concrete -= _defaults.get(base.__name__, set())
        overridden = concrete & _methods(cls)
        assert not overridden, (
            f"{_name(cls)} overrides {sorted(overridden)} of {_name(base)}, which are "
            "not abstract. If they are defaults, list them in `_defaults` of "
            "tests/test_architecture.py."
        )


@pytest.mark.parametrize("name", sorted(_defaults))
def test_defaults_exist(name):
    cls = {cls.__name__: cls for cls in _classes}[name]
    assert _defaults[name] <= _methods(cls) - cls.__abstractmethods__


#
# The public namespace and its documentation
#


_public = {
    name: value
    for name, value in vars(infinitenet).items()
    if not name.startswith("_") and not inspect.ismodule(value)
}
# The only public module.
_public |= {
    f"plot.{name}": value
    for name, value in vars(infinitenet.plot).items()
    if not name.startswith("_") and not inspect.ismodule(value)
}
_entry = re.compile(r"^::: infinitenet\.(\S+)\s*$", re.MULTILINE)
_documented = [
    name
    for file in sorted((_root / "docs" / "api").rglob("*.md"))
    for name in _entry.findall(file.read_text("utf-8"))
]


@pytest.mark.parametrize("name", sorted(_public))
def test_public_is_documented(name):
    assert name in _documented, f"No page of docs/api has `::: infinitenet.{name}`."
    value = _public[name]
    if inspect.isclass(value) or callable(value):
        doc = vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__
        # A dataclass without docstring gets its signature for one.
        assert doc and not doc.startswith(f"{name}("), f"`{name}` has no docstring."


def test_documented_is_public():
    assert len(_documented) == len(set(_documented)), "A name is documented twice."
    known = lambda name: name in _public or name.split(".")[0] in _public
    unknown = {name for name in _documented if not known(name)}
    assert not unknown, f"docs/api lists {sorted(unknown)}, which are not public."
