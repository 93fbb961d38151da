"""Times each layer of `infinitenet` that `neural_tangents` has too, on the CPU.

Each is in a small network, with layers of weights and ReLUs around it: see
`layer_networks.py`. What is timed are NNGP and NTK together, in single precision:

    python benchmarks/layers.py --scale small
    python benchmarks/layers.py --peer-python PATH/TO/bin/python --output results.md

`kernels.py --help` tells how to make the environment of `--peer-python`, and how it is
timed and compared. The exit status is 1 if results are wrong or if a workload fails, but
not if a layer is slower than that of `neural_tangents`: the table marks those.
"""

import argparse
import statistics
import sys
from collections.abc import Iterator, Sequence

from kernels import compare_all, Comparison, parse
from layer_networks import GROUPS
from peer import Workload
from tables import machine, markdown, publish, spread


# The layer is in the network twice.
WORKLOADS = {
    name: Workload(name, name, 2, group.n, group.shape)
    for group in GROUPS
    for name in group.networks
}


def _cells(comparison: Comparison) -> Iterator[str]:
    """Yields one row of the table."""
    workload = comparison.workload
    yield f"`{workload.name}`"
    yield f"{workload.n} of {'×'.join(map(str, workload.shape))}"
    for timings in comparison.timings.values():
        yield f"{1e3 * timings.first:.0f}"
        yield f"{1e3 * timings.median:.3g}"
    for library, error in comparison.errors.items():
        large = " (too large)" if comparison.too_large(library) else ""
        yield f"{error:.1e}{large}"
    if comparison.ratios:
        slower = statistics.median(comparison.ratios) < 1
        yield spread(comparison.ratios)
        yield "**slower**" if slower else ""


def report(comparisons: Sequence[Comparison], args: argparse.Namespace) -> str:
    """Returns all results, as Markdown."""
    infos = {library: x.info for library, x in comparisons[0].timings.items()}
    columns = ["layer", "inputs"]
    for library in infos:
        columns += [f"{library}: first run, ms", "median, ms"]
    columns += [f"error of {library}" for library in infos]
    if len(infos) == 2:
        columns += ["neural_tangents / infinitenet", ""]
    lines = machine(infos, f"{args.repeats} of each, at scale `{args.scale}`")
    lines += ["", *markdown(map(_cells, comparisons), columns)]
    if len(infos) == 2:
        slower = [c for c in comparisons if statistics.median(c.ratios) < 1]
        names = ", ".join(f"`{c.workload.name}`" for c in slower) or "none"
        lines += ["", f"Slower than `neural_tangents`: {names}."]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Runs the workloads and returns the exit status."""
    args = parse(__doc__, WORKLOADS)
    comparisons, failed = compare_all(args)
    if comparisons:
        publish(report(comparisons, args), args.output)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
