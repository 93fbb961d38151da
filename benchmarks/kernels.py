"""Times the kernels of `infinitenet`, alone or against `neural_tangents`, on the CPU.

NNGP and NTK are computed together, in single precision, for networks and numbers of
examples that are listed in `peer.py`:

    python benchmarks/kernels.py --scale small
    python benchmarks/kernels.py --peer-python PATH/TO/bin/python --output results.md

`neural_tangents` needs old versions of its dependencies, so it has its own environment
and `--peer-python` is the interpreter of that. To make it, with Python 3.11:

    python3.11 -m venv peer
    peer/bin/pip install "jax==0.4.25" "jaxlib==0.4.25" "numpy<2" "scipy<1.13" \
        "tf2jax==0.3.6" "tensorflow-cpu<2.17" frozendict "flax==0.8.1" "optax==0.2.1"
    peer/bin/pip install --no-deps "neural-tangents==0.6.5"

Each library runs in a process of its own, new for every workload, so that the peak of
resident memory belongs to that workload. The two take turns (A B A B ...) and never run
at once, so that a change in the load of the machine befalls both; the ratio is taken
pair by pair. The results are compared with double precision as well: a fast wrong kernel
is of no use, so the exit status is 1 if they are wrong or if a workload fails.
"""

import argparse
import contextlib
import dataclasses
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from peer import MODES, Workload, WORKLOADS
from tables import machine, markdown, publish, spread
from workers import interpreters, Worker, WorkerError


# The largest errors of single precision, against double precision. That of
# `neural_tangents` only tells whether both compute the same: it sums over positions in an
# order that loses digits.
TOLERANCES = {"infinitenet": 1e-5, "neural_tangents": 1e-3}

# Columns of the table, in `_cells`.
COLUMNS = (
    "workload",
    "library",
    "first run, s",
    "median, s",
    "min, s",
    "ms per entry",
    "peak, MiB",
    "of which imports, MiB",
    "K(x, x) / K(x, y)",
    "error",
)


@dataclasses.dataclass
class Timings:
    """What was measured of one library: `first` includes compilation, `runs` do not."""

    info: dict[str, Any]
    first: float
    runs: list[float]
    peak_mib: float
    symmetric: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.runs)


@dataclasses.dataclass
class Comparison:
    """The result of one workload; `ratios` need two libraries."""

    workload: Workload
    timings: dict[str, Timings]
    ratios: list[float]
    errors: dict[str, float]

    def too_large(self, library: str) -> bool:
        """Whether the error is."""
        return too_large(library, self.errors[library])


def too_large(library: str, error: float) -> bool:
    """Whether a library's error is, or is NaN."""
    return not error < TOLERANCES[library]


def disagreement(path1: Path, path2: Path) -> float:
    """Returns the largest difference of two results, in units of the second's rms.

    Both the NNGP and the NTK count. Elements far below the rms are sums of terms that
    cancel, and are not known to more than that.
    """
    errors = []
    with np.load(path1) as arrays1, np.load(path2) as arrays2:
        for name in ("nngp", "ntk"):
            a1, a2 = arrays1[name], arrays2[name]
            if a1.shape != a2.shape:
                raise WorkerError(f"{name}: shapes {a1.shape} and {a2.shape} differ.")
            rms = np.sqrt(np.mean(np.square(a2), dtype=np.float64))
            errors.append(np.max(np.abs(a1 - a2)) / rms)
    # NumPy's maximum is NaN if an element is, and that is not below the tolerance.
    return float(np.max(errors))


def _adjacency(rng: np.random.Generator, workload: Workload) -> np.ndarray:
    """Returns weights of all edges: whole numbers, which are exact in any precision."""
    vertices = workload.shape[:-1]
    size = (workload.n, *vertices, *vertices)
    return rng.binomial(1, 0.2, size).astype(np.float32)


def _edges(rng: np.random.Generator, workload: Workload) -> np.ndarray:
    """Returns lists of edges, two for each vertex, of graphs of one axis."""
    (vertices,) = workload.shape[:-1]
    return rng.integers(0, vertices, (workload.n, 2 * vertices, 2), dtype=np.int32)


# By `Network.graph`.
_DRAWS = {"adjacency": _adjacency, "edges": _edges}


def write_inputs(workload: Workload, path: Path) -> None:
    """Writes random inputs for both processes, whose NumPy versions may differ."""
    rng = np.random.default_rng(0)
    size = (workload.n, *workload.shape)
    arrays: dict[str, Any] = {}
    for i in (1, 2):
        arrays[f"x{i}"] = rng.standard_normal(size, dtype=np.float32)
    graph = workload.spec.graph
    if graph is not None:
        arrays |= {f"graph{i}": _DRAWS[graph](rng, workload) for i in (1, 2)}
    np.savez(path, **arrays)


def _time_symmetric(worker: Worker, repeats: int) -> list[float]:
    """Returns times of K(x, x), each relative to a K(x, y) just after it."""
    # Compiles.
    worker.seconds(symmetric=True)
    pairs = range(repeats)
    return [worker.seconds(symmetric=True) / worker.seconds() for _ in pairs]


def _time(
    workers: list[Worker],
    workload: Workload,
    repeats: int,
    folder: Path,
    symmetric: bool,
) -> Comparison:
    """Runs one workload in workers that were just started, ours first."""
    inputs = folder / "inputs.npz"
    write_inputs(workload, inputs)
    load = {"workload": dataclasses.asdict(workload), "inputs": str(inputs)}
    infos = [worker.ask("load", **load) for worker in workers]
    firsts = [worker.seconds() for worker in workers]
    rounds = [[worker.ask("run") for worker in workers] for _ in range(repeats)]
    seconds = [[answer["seconds"] for answer in answers] for answers in rounds]
    timings = {
        worker.library: Timings(info, first, list(runs), answer["peak_mib"], [])
        for worker, info, first, runs, answer in zip(
            workers, infos, firsts, zip(*seconds, strict=True), rounds[-1], strict=True
        )
    }
    paths = [folder / f"{worker.library}.npz" for worker in workers]
    for worker, path in zip(workers, paths, strict=True):
        timings[worker.library].info |= worker.ask("save", path=str(path))
    # Last, for the peak of memory above must be that of K(x, y).
    if symmetric:
        timings["infinitenet"].symmetric = _time_symmetric(workers[0], repeats)
    exact = folder / "exact.npz"
    workers[0].ask("save_exact", path=str(exact))
    errors = {
        worker.library: disagreement(path, exact)
        for worker, path in zip(workers, paths, strict=True)
    }
    ratios = [theirs[0] / ours for ours, *theirs in seconds if theirs]
    return Comparison(workload, timings, ratios, errors)


def compare(
    workload: Workload, args: argparse.Namespace, *, symmetric: bool = False
) -> Comparison:
    """Starts the workers, has them time one workload, and ends them.

    If `symmetric`, K(x, x) is timed as well, unless it is of a single example.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        workers = [
            stack.enter_context(Worker(python, library, args.peer_mode, folder))
            for library, python in interpreters(args).items()
        ]
        both = symmetric and workload.n > 1
        return _time(workers, workload, args.repeats, folder, both)


def compare_all(
    args: argparse.Namespace, *, symmetric: bool = False
) -> tuple[list[Comparison], bool]:
    """Compares one workload after the other. Returns also whether any of them failed."""
    comparisons, failed = [], False
    for workload in args.workloads:
        print(f"{workload.name} ...", file=sys.stderr, flush=True)
        try:
            result = compare(workload, args, symmetric=symmetric)
        except WorkerError as error:
            failed = True
            print(f"{workload.name} failed. {error}", file=sys.stderr)
            continue
        comparisons.append(result)
        failed |= any(map(result.too_large, result.errors))
    return comparisons, failed


def _cells(comparison: Comparison, library: str) -> Iterator[str]:
    """Yields one row of the table of times."""
    workload, timings = comparison.workload, comparison.timings[library]
    yield f"`{workload.name}`, n={workload.n}"
    mode = timings.info["mode"]
    yield f"`{library}`" + (f", {mode}" if mode else "")
    yield f"{timings.first:.3g}"
    yield f"{timings.median:.3g}"
    yield f"{min(timings.runs):.3g}"
    yield f"{1e3 * timings.median / workload.n**2:.3g}"
    yield f"{timings.peak_mib:.0f}"
    yield f"{timings.info['peak_mib']:.0f}"
    yield spread(timings.symmetric) if timings.symmetric else ""
    error = f"{comparison.errors[library]:.1e}"
    yield error + (" (too large)" if comparison.too_large(library) else "")


def _ratio_cells(comparison: Comparison) -> Iterator[str]:
    """Yields one row of the table of ratios."""
    yield f"`{comparison.workload.name}`"
    yield spread(comparison.ratios)


def report(comparisons: Sequence[Comparison], args: argparse.Namespace) -> str:
    """Returns all results, as Markdown."""
    rows = [_cells(x, library) for x in comparisons for library in x.timings]
    infos = {library: x.info for library, x in comparisons[0].timings.items()}
    lines = machine(infos, f"{args.repeats} of each, at scale `{args.scale}`")
    lines += ["", *markdown(rows, COLUMNS)]
    if args.peer_python is not None:
        columns = ("workload", "neural_tangents / infinitenet")
        ratios = [_ratio_cells(comparison) for comparison in comparisons]
        lines += ["", *markdown(ratios, columns)]
    return "\n".join(lines) + "\n"


def parse(
    doc: str | None,
    workloads: Mapping[str, Any],
    *,
    peer: bool = True,
    scales: Sequence[str] = ("full", "small"),
) -> argparse.Namespace:
    """Reads the command line of a script that has this docstring and these workloads.

    Unless `peer`, it times `infinitenet` only. Scales other than `full` are methods of the
    workloads.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--python", default=sys.executable, help="interpreter that has infinitenet")
    if peer:
        add("--peer-python", help="interpreter that has neural_tangents")
        how = "how to run neural_tangents"
        add("--peer-mode", choices=MODES, default="jit", help=how)
    parser.set_defaults(peer_python=None, peer_mode="jit")
    add("--repeats", type=int, default=5, help="runs of each that count")
    add("--workloads", default=",".join(workloads), help="which ones, with commas")
    add("--scale", choices=scales, default="full")
    add("--output", type=Path, help="file to write the results to, as Markdown")
    args = parser.parse_args()
    names = args.workloads.split(",")
    if unknown := set(names) - set(workloads):
        parser.error(f"unknown workloads {sorted(unknown)}; known: {[*workloads]}")
    for python in filter(None, (args.python, args.peer_python)):
        if shutil.which(python) is None:
            parser.error(f"no interpreter at {python}")
    if args.repeats < 1:
        parser.error("--repeats must be at least 1")
    args.workloads = [workloads[name] for name in names]
    if args.scale != "full":
        args.workloads = [getattr(x, args.scale)() for x in args.workloads]
    return args


def main() -> int:
    """Runs the workloads and returns the exit status."""
    args = parse(__doc__, WORKLOADS, scales=("full", "small", "large"))
    comparisons, failed = compare_all(args, symmetric=True)
    if comparisons:
        publish(report(comparisons, args), args.output)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
