"""Times the empirical NTK of finite networks, alone or against `neural_tangents`.

Each kernel is between two batches of 32 examples, averaged over 10 outputs, in single
precision on the CPU. `infinitenet` chooses its method by itself; `neural_tangents` runs
with each of its three implementations under `jax.jit`, and the fastest one counts. One
that takes more than a minute at first, compilation included, is left out.

    python benchmarks/empirical.py --scale small
    python benchmarks/empirical.py --peer-python PATH/TO/bin/python --output results.md

`kernels.py --help` tells how to make the environment of `--peer-python`. Each has a process
of its own, and they take turns. The exit status is 1 if the results differ or if a
workload fails.
"""

import argparse
import contextlib
import dataclasses
import statistics
import sys
import tempfile
import threading
from pathlib import Path

from empirical_peer import IMPLEMENTATIONS, Workload, WORKLOADS
from kernels import disagreement, parse
from tables import machine, markdown, publish, spread
from workers import Worker, WorkerError


# Relative to the root mean square: ReLUs of activations near zero may differ by rounding.
TOLERANCE = 1e-4

# Seconds that a first run of the peer may take.
PATIENCE = 60

COLUMNS = (
    "workload",
    "library",
    "first run, s",
    "median, s",
    "min, s",
    "peak, MiB",
    "of which imports, MiB",
)


@dataclasses.dataclass
class Side:
    """One library, by one method: a process, and what it measured."""

    name: str
    worker: Worker
    info: dict
    first: float
    runs: list[float] = dataclasses.field(default_factory=list)
    peak_mib: float = 0.0

    @property
    def median(self) -> float:
        return statistics.median(self.runs)


def _start(
    stack: contextlib.ExitStack, args: argparse.Namespace, folder: Path, spec: Workload
) -> list[Side]:
    """Starts the processes, ours first. One that fails is told and left out."""
    sides = [("`infinitenet`", args.python, "infinitenet", "jit")]
    if args.peer_python is not None:
        sides += [
            (f"`neural_tangents`, {mode}", args.peer_python, "neural_tangents", mode)
            for mode in IMPLEMENTATIONS
        ]
    started = []
    for name, python, library, mode in sides:
        place = folder / mode
        place.mkdir()
        worker = stack.enter_context(
            Worker(python, library, mode, place, "empirical_peer.py")
        )
        try:
            info = worker.ask("load", workload=dataclasses.asdict(spec))
            patience = PATIENCE if library == "neural_tangents" else threading.TIMEOUT_MAX
            answer = worker.ask_within(patience, "run")
        except WorkerError as error:
            if library == "infinitenet":
                raise
            print(f"{spec.name}: {name} failed. {error}", file=sys.stderr)
            continue
        first, peak = answer["seconds"], answer["peak_mib"]
        started.append(Side(name, worker, info, first, peak_mib=peak))
    return started


def measure(workload: Workload, args: argparse.Namespace) -> tuple[list[Side], float]:
    """Times one workload. Returns all sides, and how far their results differ."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sides = _start(stack, args, folder, workload)
        for _ in range(args.repeats):
            for side in sides:
                answer = side.worker.ask("run")
                side.runs.append(answer["seconds"])
                side.peak_mib = answer["peak_mib"]
        paths = [folder / f"{i}.npz" for i in range(len(sides))]
        for side, path in zip(sides, paths, strict=True):
            side.worker.ask("save", path=str(path))
        errors = [disagreement(path, paths[0]) for path in paths[1:]]
        return sides, max(errors, default=0.0)


def _rows(workload: Workload, sides: list[Side]) -> list[list[str]]:
    return [
        [
            f"`{workload.name}`, n={workload.n}",
            side.name,
            f"{side.first:.3g}",
            f"{side.median:.3g}",
            f"{min(side.runs):.3g}",
            f"{side.peak_mib:.0f}",
            f"{side.info['peak_mib']:.0f}",
        ]
        for side in sides
    ]


def _ratio(workload: Workload, sides: list[Side]) -> list[str]:
    """The fastest way of the peer over ours, pair by pair."""
    ours, *theirs = sides
    best = min(theirs, key=lambda side: side.median)
    ratios = [b / a for a, b in zip(ours.runs, best.runs, strict=True)]
    return [f"`{workload.name}`", best.name, spread(ratios)]


def main() -> int:
    """Runs the workloads and returns the exit status."""
    args = parse(__doc__, WORKLOADS)
    rows, ratios, failed, infos = [], [], False, {}
    for workload in args.workloads:
        print(f"{workload.name} ...", file=sys.stderr, flush=True)
        try:
            sides, error = measure(workload, args)
        except WorkerError as problem:
            failed = True
            print(f"{workload.name} failed. {problem}", file=sys.stderr)
            continue
        infos |= {side.worker.library: side.info for side in sides}
        rows += _rows(workload, sides)
        if len(sides) > 1:
            ratios.append([*_ratio(workload, sides), f"{error:.1e}"])
        failed |= not error < TOLERANCE
    runs = f"{args.repeats} of each, at scale `{args.scale}`"
    lines = [*machine(infos, runs), "", *markdown(rows, COLUMNS)]
    if ratios:
        columns = ("workload", "fastest peer", "peer / infinitenet", "difference")
        lines += ["", *markdown(ratios, columns)]
    publish("\n".join(lines) + "\n", args.output)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
