"""Stores kernel matrices under a limit of memory, kills that half way, and resumes it.

    python benchmarks/stored.py --scale small
    python benchmarks/stored.py

Each row is a process of its own, which may not address more than 2 GiB. The first one is
not interrupted. The second one is killed when half of the chunks are there, and the third
one goes on from there. Seconds of a killed process include imports. *Tiles* are those
computed by the process: all that were stored before a kill must not be computed again. The
exit status is 1 if they are, or if the resumed matrix differs from the other one.
"""

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tables import markdown


LIMIT = 2 * 2**30
# Of the rest JAX, its compiler and the result take most.
MEMORY = 2**29

COLUMNS = ("workload", "process", "seconds", "peak, MiB", "tiles", "of", "stored before")


class Run(NamedTuple):
    """What a process has done.

    - `tiles`: those it has computed, if it was not killed.
    """

    seconds: float
    peak: float
    tiles: int | None


def inputs(workload: str, n: int) -> np.ndarray:
    """Returns `n` examples."""
    if workload == "fc3-relu":
        return np.random.default_rng(0).normal(size=(n, 784)).astype(np.float32)
    from sklearn.datasets import load_digits

    pixels = np.asarray(load_digits(return_X_y=True)[0])[:n]
    return (pixels / 16).astype(np.float32).reshape(n, 8, 8, 1)


def work(workload: str, n: int, store: str) -> None:
    """The inside of a process: computes a kernel into a store, and tells how many tiles."""
    from networks import convolutional, dense

    import infinitenet as inn
    from infinitenet._store import StoredGram

    tiles, write = [], StoredGram.write

    def counting(self: StoredGram, tile: Any, values: Any) -> None:
        write(self, tile, values)
        tiles.append(tile)

    StoredGram.write = counting
    net = (
        dense("Relu", inn, 2)
        if workload == "fc3-relu"
        else convolutional("GlobalAvgPool", inn, 21)
    )
    begun = time.perf_counter()
    gram = inn.gram(net, inputs(workload, n), store=store, memory=MEMORY, progress=False)
    assert gram.ntk.shape == (n, n)
    print(json.dumps([time.perf_counter() - begun, len(tiles)]))


def chunks(store: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(store / "ntk" / "c"))


def run(workload: str, n: int, store: Path, kill_at: int | None = None) -> Run:
    """A process from the outside, which is killed once so many chunks are there."""
    begun = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, __file__, "--inside", workload, str(n), str(store)],
        stdout=subprocess.PIPE,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT)),
    )
    while kill_at is not None and chunks(store) < kill_at:
        time.sleep(0.002)
    if kill_at is not None:
        child.send_signal(signal.SIGKILL)
    assert child.stdout is not None
    text = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    peak = usage.ru_maxrss / 2**10
    if kill_at is not None:
        return Run(time.perf_counter() - begun, peak, None)
    if child.returncode:
        raise RuntimeError(f"{workload} failed: its error is above.")
    seconds, tiles = json.loads(text)
    return Run(seconds, peak, tiles)


def rows(workload: str, n: int, folder: Path) -> tuple[list[list[str]], bool]:
    """The rows of a table, and whether all is well."""
    import infinitenet as inn

    whole, resumed = folder / "whole", folder / "resumed"
    once = run(workload, n, whole)
    killed = run(workload, n, resumed, chunks(whole) // 2)
    stored = inn.open_gram(resumed)
    before = sum(map(stored.has, stored.tiling.tiles))
    again = run(workload, n, resumed)
    a, b = (inn.open_gram(path) for path in (whole, resumed))
    good = once.tiles is not None and again.tiles == once.tiles - before
    good &= np.array_equal(a.nngp[...], b.nngp[...]) and np.array_equal(a.ntk, b.ntk)
    names = {"whole": (once, 0), "killed": (killed, 0), "resumed": (again, before)}
    table = [
        [
            f"{workload}, {n} x {n}",
            name,
            f"{done.seconds:.2f}",
            f"{done.peak:.0f}",
            "-" if done.tiles is None else f"{done.tiles}",
            f"{once.tiles}",
            f"{kept}",
        ]
        for name, (done, kept) in names.items()
    ]
    return table, good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", choices=("small", "full"), default="full")
    parser.add_argument("--inside", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        workload, n, store = args.inside
        work(workload, int(n), store)
        return 0
    small = args.scale == "small"
    sizes = {"fc3-relu": 1000 if small else 4000, "cnn21-gap-8": 30 if small else 300}
    table, well = [], True
    for workload, n in sizes.items():
        with tempfile.TemporaryDirectory() as folder:
            more, good = rows(workload, n, Path(folder))
        table += more
        well &= good
    print("\n".join(markdown(table, COLUMNS)))
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
