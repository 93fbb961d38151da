"""Times inference of `infinitenet`, alone or against `neural_tangents`, on the CPU.

`ensemble`: the mean and the covariance of infinitely wide trained networks at 20 times,
for 2000 training and 500 test examples: from data to predictions, kernels included, and
then at 20 other times. Single precision. `neural_tangents` does it by
`gradient_descent_mse_ensemble`.

`cholesky`: Gaussian-process regression on a kernel of 10 000 examples, and how much memory
it takes, in units of that kernel.

    python benchmarks/inference.py --scale small
    python benchmarks/inference.py --peer-python PATH/TO/bin/python --output results.md

`kernels.py --help` tells how to make the environment of `--peer-python`. Each library has a
process of its own, and the two take turns. The exit status is 1 if their results differ or
if a workload fails.
"""

import argparse
import contextlib
import dataclasses
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from inference_peer import Workload, WORKLOADS
from kernels import disagreement, parse
from tables import machine, markdown, publish, spread
from workers import interpreters, Worker, WorkerError


# Of means and covariances, relative to their root mean square: in single precision, of
# kernels of condition number 10^4 or so.
TOLERANCE = 1e-2

COLUMNS = ("library", "first run, s", "median, s", "at other times, s", "peak, MiB")


def ensemble(workload: Workload, args: argparse.Namespace) -> tuple[list[str], bool]:
    """Times both libraries in turns. Returns Markdown, and whether they agree."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        workers = [
            stack.enter_context(
                Worker(python, library, args.peer_mode, folder, "inference_peer.py")
            )
            for library, python in interpreters(args).items()
        ]
        load = {"workload": dataclasses.asdict(workload)}
        infos = {worker.library: worker.ask("load", **load) for worker in workers}
        firsts = [worker.ask("run") for worker in workers]
        rounds = [[worker.ask("run") for worker in workers] for _ in range(args.repeats)]
        paths = [folder / f"{worker.library}.npz" for worker in workers]
        for worker, path in zip(workers, paths, strict=True):
            worker.ask("save", path=str(path))
        error = disagreement(*paths) if len(paths) == 2 else 0.0
    runs = f"{args.repeats} of each, at scale `{args.scale}`"
    lines = [*machine(infos, runs), "", *_table(infos, firsts, rounds)]
    if len(workers) == 2:
        for name, key in (("from data", "seconds"), ("at other times", "again")):
            ratios = [theirs[key] / ours[key] for ours, theirs in rounds]
            lines.append(f"\nneural_tangents / infinitenet, {name}: {spread(ratios)}")
        lines.append(f"\nThe results differ by {error:.1e} of their root mean square.")
    return lines, error < TOLERANCE


def _table(
    infos: dict[str, Any], firsts: list[dict], rounds: list[list[dict]]
) -> list[str]:
    rows = []
    for i, (library, info) in enumerate(infos.items()):
        median = lambda key, i=i: statistics.median(runs[i][key] for runs in rounds)
        mode = f", {info['mode']}" if info["mode"] else ""
        cells = [f"`{library}`{mode}", f"{firsts[i]['seconds']:.3g}"]
        cells += [f"{median('seconds'):.3g}", f"{median('again'):.3g}"]
        rows.append([*cells, f"{rounds[-1][i]['peak_mib']:.0f}"])
    return markdown(rows, COLUMNS)


def cholesky(workload: Workload, args: argparse.Namespace) -> tuple[list[str], bool]:
    """Returns Markdown, and whether the memory was below three matrices."""
    with tempfile.TemporaryDirectory() as folder:
        worker = Worker(
            args.python, "infinitenet", "jit", Path(folder), "inference_peer.py"
        )
        with worker:
            worker.ask("load", workload=dataclasses.asdict(workload))
            answer = worker.ask("cholesky")
    matrices = (answer["peak_mib"] - answer["before_mib"]) / answer["matrix_mib"]
    whole = answer["peak_mib"] / answer["matrix_mib"]
    text = (
        f"`cholesky`, n={workload.n_train}, float32: mean and {workload.n_test} variances "
        f"in {answer['seconds']:.1f} s, compilation included. Peak of resident memory: "
        f"{answer['peak_mib']:.0f} MiB, {whole:.2f} kernel matrices of "
        f"{answer['matrix_mib']:.0f} MiB; of the process before the kernel was made: "
        f"{answer['before_mib']:.0f} MiB. The difference is {matrices:.2f} matrices."
    )
    # What the process itself takes is not small beside small matrices.
    return [text], matrices < 3 or args.scale == "small"


def main() -> int:
    """Runs the workloads and returns the exit status."""
    args = parse(__doc__, WORKLOADS)
    parts, failed = [], False
    for workload in args.workloads:
        print(f"{workload.name} ...", file=sys.stderr, flush=True)
        try:
            lines, good = (ensemble if workload.n_times else cholesky)(workload, args)
        except WorkerError as error:
            failed = True
            print(f"{workload.name} failed. {error}", file=sys.stderr)
            continue
        parts.append("\n".join(lines))
        failed |= not good
    publish("\n\n".join(parts) + "\n", args.output)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
