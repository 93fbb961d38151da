"""Times how long `infinitenet` takes to compile a deep network, on the CPU.

What is timed is the first kernel of a process: tracing, compilation, and one evaluation of
NNGP and NTK for so few examples that this takes little time, in single precision. Imports
are not included. The networks are listed in `peer.py`:

    python benchmarks/compile.py --scale small
    python benchmarks/compile.py --peer-python PATH/TO/bin/python --output results.md

`kernels.py --help` tells how to make the environment of `--peer-python`. Each repetition is
a new process, of one library at a time, and the two take turns (A B A B ...). The results
are compared with double precision; the exit status is 1 if they are wrong or if a workload
fails.
"""

import argparse
import contextlib
import dataclasses
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kernels import disagreement, parse, too_large, write_inputs
from peer import DEEP, Workload
from tables import machine, markdown, publish, spread
from workers import interpreters, Worker, WorkerError


# Columns of the table, in `_cells`.
COLUMNS = (
    "workload",
    "library",
    "first run, s",
    "second run, s",
    "peak, MiB",
    "of which imports, MiB",
    "error",
)


@dataclasses.dataclass
class Start:
    """What was measured of one process."""

    info: dict[str, Any]
    first: float
    second: float
    peak_mib: float
    error: float


def measure(python: str, library: str, mode: str, workload: Workload, exact: Path) -> Start:
    """Runs a workload in a new process.

    The result of double precision is written to `exact` unless it exists.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        worker = stack.enter_context(Worker(python, library, mode, folder))
        inputs, result = folder / "inputs.npz", folder / "result.npz"
        write_inputs(workload, inputs)
        load = {"workload": dataclasses.asdict(workload), "inputs": str(inputs)}
        info = worker.ask("load", **load)
        # Of the first run: it is compilation that takes memory.
        first = worker.ask("run")
        second = worker.seconds()
        info |= worker.ask("save", path=str(result))
        if not exact.exists():
            worker.ask("save_exact", path=str(exact))
        error = disagreement(result, exact)
    return Start(info, first["seconds"], second, first["peak_mib"], error)


def compare(workload: Workload, args: argparse.Namespace) -> dict[str, list[Start]]:
    """Measures the libraries in turn, ours first."""
    pythons = interpreters(args)
    starts: dict[str, list[Start]] = {library: [] for library in pythons}
    with tempfile.TemporaryDirectory() as folder:
        exact = Path(folder) / "exact.npz"
        for _ in range(args.repeats):
            for library, python in pythons.items():
                start = measure(python, library, args.peer_mode, workload, exact)
                starts[library].append(start)
    return starts


def _cells(workload: Workload, library: str, starts: list[Start]) -> Iterator[str]:
    """Yields one row of the table of times."""
    mode = starts[0].info["mode"]
    yield f"`{workload.name}`, n={workload.n}"
    yield f"`{library}`" + (f", {mode}" if mode else "")
    yield spread([start.first for start in starts])
    yield f"{statistics.median(start.second for start in starts):.3g}"
    yield f"{max(start.peak_mib for start in starts):.0f}"
    yield f"{starts[0].info['peak_mib']:.0f}"
    error = max(start.error for start in starts)
    yield f"{error:.1e}" + (" (too large)" if too_large(library, error) else "")


def _ratio_cells(workload: Workload, starts: dict[str, list[Start]]) -> Iterator[str]:
    """Yields one row of the table of ratios."""
    pairs = zip(*starts.values(), strict=True)
    yield f"`{workload.name}`"
    yield spread([theirs.first / ours.first for ours, theirs in pairs])


Results = list[tuple[Workload, dict[str, list[Start]]]]


def report(results: Results, args: argparse.Namespace) -> str:
    """Returns all results, as Markdown."""
    infos = {library: starts[0].info for library, starts in results[0][1].items()}
    rows = [
        _cells(workload, library, starts)
        for workload, both in results
        for library, starts in both.items()
    ]
    processes = f"{args.repeats} processes of each, at scale `{args.scale}`"
    lines = [*machine(infos, processes), "", *markdown(rows, COLUMNS)]
    if args.peer_python is not None:
        columns = ("workload", "first run, neural_tangents / infinitenet")
        ratios = [_ratio_cells(workload, both) for workload, both in results]
        lines += ["", *markdown(ratios, columns)]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Runs the workloads and returns the exit status."""
    args = parse(__doc__, DEEP)
    results: Results = []
    failed = False
    for workload in args.workloads:
        print(f"{workload.name} ...", file=sys.stderr, flush=True)
        try:
            both = compare(workload, args)
        except WorkerError as error:
            failed = True
            print(f"{workload.name} failed. {error}", file=sys.stderr)
            continue
        results.append((workload, both))
        for library, starts in both.items():
            failed |= any(too_large(library, start.error) for start in starts)
    if results:
        publish(report(results, args), args.output)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
