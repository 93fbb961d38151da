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
import datetime
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from peer import MODES, Workload, WORKLOADS


HERE = Path(__file__).resolve().parent

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


class WorkerError(RuntimeError):
    """A worker failed; the message is its traceback or what it last wrote."""


class Worker:
    """A process that times one library, as a context manager. See `peer.py`."""

    def __init__(
        self,
        python: str,
        library: str,
        mode: str,
        folder: Path,
        script: str = "peer.py",
    ):
        self.library = library
        # A file, not a pipe: nobody reads it while the worker is busy.
        self.log = folder / f"{library}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [python, str(HERE / script), "--library", library, "--mode", mode],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=_environment(),
            )

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Ends the process: gently, but at once if it is not waiting for a request."""
        del error, trace
        if kind is not None:
            self.process.kill()
        with contextlib.suppress(BrokenPipeError):
            self.process.communicate()

    def ask_within(self, seconds: float, do: str, **arguments: Any) -> dict[str, Any]:
        """Ends the process if it does not answer in time."""
        timer = threading.Timer(seconds, self.process.kill)
        timer.start()
        try:
            return self.ask(do, **arguments)
        finally:
            timer.cancel()

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Sends a request and waits for the answer to it."""
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None and stdout is not None
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps({"do": do, **arguments}), file=stdin, flush=True)
        line = stdout.readline()
        if not line:
            status = self.process.wait()
            tail = self.log.read_text(errors="replace")[-2000:]
            raise WorkerError(f"{self.library} ended with status {status}:\n{tail}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(f"{self.library}:\n{answer['error']}")
        return answer

    def seconds(self, symmetric: bool = False) -> float:
        """Returns the time of one evaluation of the kernel."""
        return self.ask("run", symmetric=symmetric)["seconds"]


def _environment() -> dict[str, str]:
    """Returns the variables that make the two processes alike, and alike each time."""
    paths = [os.environ.get("PYTHONPATH", ""), str(HERE.parent)]
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_X64": "0",
        # A cache would turn the time of compilation into that of a look-up.
        "JAX_ENABLE_COMPILATION_CACHE": "0",
        # TensorFlow, which `neural_tangents` imports, is talkative.
        "TF_CPP_MIN_LOG_LEVEL": "3",
        # The `infinitenet` of this checkout is timed, unless another one is named.
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
    }
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    return environment


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


def write_inputs(workload: Workload, path: Path) -> None:
    """Writes random images for both processes, whose NumPy versions may differ."""
    rng = np.random.default_rng(0)
    size = (workload.n, *workload.shape)
    x1, x2 = (rng.standard_normal(size, dtype=np.float32) for _ in range(2))
    np.savez(path, x1=x1, x2=x2)


def _time_symmetric(worker: Worker, repeats: int) -> list[float]:
    """Returns times of K(x, x), each relative to a K(x, y) just after it."""
    # Compiles.
    worker.seconds(symmetric=True)
    pairs = range(repeats)
    return [worker.seconds(symmetric=True) / worker.seconds() for _ in pairs]


def _time(
    workers: list[Worker], workload: Workload, repeats: int, folder: Path
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
    for worker in workers:
        if worker.library == "infinitenet":
            timings[worker.library].symmetric = _time_symmetric(worker, repeats)
    exact = folder / "exact.npz"
    workers[0].ask("save_exact", path=str(exact))
    errors = {
        worker.library: disagreement(path, exact)
        for worker, path in zip(workers, paths, strict=True)
    }
    ratios = [theirs[0] / ours for ours, *theirs in seconds if theirs]
    return Comparison(workload, timings, ratios, errors)


def interpreters(args: argparse.Namespace) -> dict[str, str]:
    """Returns the interpreter of each library that is to be timed, ours first."""
    pythons = {"infinitenet": args.python, "neural_tangents": args.peer_python}
    return {library: python for library, python in pythons.items() if python is not None}


def compare(workload: Workload, args: argparse.Namespace) -> Comparison:
    """Starts the workers, has them time one workload, and ends them."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        workers = [
            stack.enter_context(Worker(python, library, args.peer_mode, folder))
            for library, python in interpreters(args).items()
        ]
        return _time(workers, workload, args.repeats, folder)


def spread(values: list[float]) -> str:
    """Returns the median and, in brackets, the range."""
    median = statistics.median(values)
    return f"{median:.2f} ({min(values):.2f}–{max(values):.2f})"


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


def markdown(rows: list[Iterator[str]], columns: tuple[str, ...]) -> list[str]:
    """Returns the lines of a table."""
    lines = ["| " + " | ".join(row) + " |" for row in ([*columns], *rows)]
    return [lines[0], "|" + " --- |" * len(columns), *lines[1:]]


def machine(infos: dict[str, dict[str, Any]], runs: str) -> list[str]:
    """Returns the lines that say what was measured, and where."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(x for x in cpuinfo if x.startswith("model name")).split(": ")[1]
    lines = [
        f"- Date: {datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
        f"- Processor: {model}, {os.cpu_count()} cores, {platform.system()}",
        f"- Runs: {runs}",
    ]
    for library, info in infos.items():
        lines.append(
            f"- `{library}` {info['library']}: Python {info['python']}, "
            f"JAX {info['jax']}, {info['device']}, {info['dtype']}"
        )
    return lines


def report(comparisons: list[Comparison], args: argparse.Namespace) -> str:
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
    doc: str | None, workloads: Mapping[str, Any], argv: list[str] | None = None
) -> argparse.Namespace:
    """Reads the command line of a script that has this docstring and these workloads."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--python", default=sys.executable, help="interpreter that has infinitenet")
    add("--peer-python", help="interpreter that has neural_tangents")
    add("--peer-mode", choices=MODES, default="jit", help="how to run neural_tangents")
    add("--repeats", type=int, default=5, help="runs of each that count")
    add("--workloads", default=",".join(workloads), help="which ones, with commas")
    add("--scale", choices=("full", "small"), default="full")
    add("--output", type=Path, help="file to write the results to, as Markdown")
    args = parser.parse_args(argv)
    names = args.workloads.split(",")
    if unknown := set(names) - set(workloads):
        parser.error(f"unknown workloads {sorted(unknown)}; known: {[*workloads]}")
    for python in filter(None, (args.python, args.peer_python)):
        if shutil.which(python) is None:
            parser.error(f"no interpreter at {python}")
    if args.repeats < 1:
        parser.error("--repeats must be at least 1")
    chosen = [workloads[name] for name in names]
    args.workloads = [x.small() for x in chosen] if args.scale == "small" else chosen
    return args


def main() -> int:
    """Runs the workloads and returns the exit status."""
    args = parse(__doc__, WORKLOADS)
    comparisons, failed = [], False
    for workload in args.workloads:
        print(f"{workload.name} ...", file=sys.stderr, flush=True)
        try:
            result = compare(workload, args)
        except WorkerError as error:
            failed = True
            print(f"{workload.name} failed. {error}", file=sys.stderr)
            continue
        comparisons.append(result)
        failed |= any(map(result.too_large, result.errors))
    if comparisons:
        text = report(comparisons, args)
        print(text, end="")
        if args.output is not None:
            args.output.write_text(text)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
