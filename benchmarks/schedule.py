"""How much of the time of many devices is idle, and what a second process brings.

`python benchmarks/schedule.py --help` tells the options.
"""

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tables import markdown, publish


AREAS = {"dense": 512**2, "pooled": 8**2}
DEVICES = (8, 64, 256, 1024)


def grid(devices: int) -> tuple[int, int]:
    """Returns the shape of a mesh, as square as possible."""
    rows = max(r for r in range(1, math.isqrt(devices) + 1) if devices % r == 0)
    return devices // rows, rows


def idle_rows(n: int, devices: Sequence[int]) -> list[list[str]]:
    """Returns a row of the table for each number of devices and area of tiles."""
    from infinitenet._schedule import balanced_half, own_blocks
    from infinitenet._tiles import Cost

    rows = []
    for name, area in AREAS.items():
        for number in devices:
            mesh, cost = grid(number), Cost(beginning=area // 8)
            shares = (
                own_blocks(n, n, mesh, area).idle_share(n, n, symmetric=False),
                balanced_half(n, mesh, area, cost).idle_share(n, n, symmetric=True),
            )
            shape = f"{mesh[0]} × {mesh[1]}"
            rows.append([name, str(number), shape, *(f"{s:.2%}" for s in shares)])
    return rows


#
# Processes
#


def measure(args: argparse.Namespace) -> list[str]:
    """Returns a table of the times of one process and of two, each on a core of its own."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        raise SystemExit("Two processes need two cores.")
    rows, first = [], None
    for n in (1, 2):
        times = run_processes(n, cores, args)
        seconds = min(times)
        first = first or seconds
        rows.append([str(n), f"{seconds:.2f} s", f"{first / seconds:.2f}"])
    return markdown(rows, ["processes", "time", "speed-up"])


def run_processes(n: int, cores: Sequence[int], args: argparse.Namespace) -> list[float]:
    """Returns the seconds of each repetition, until the slowest process is ready."""
    import socket

    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    here = str(Path(__file__).resolve())
    options = ["--examples", str(args.examples), "--repeat", str(args.repeat)]
    options += ["--layers", str(args.layers)]
    started = [
        subprocess.Popen(
            [sys.executable, here, "--process", f"{n},{i},{cores[i]},{port}", *options],
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(n)
    ]
    try:
        answers = [process.communicate(timeout=args.timeout)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    if any(process.returncode for process in started):
        raise SystemExit("A process failed.")
    times = [json.loads(answer.splitlines()[-1]) for answer in answers]
    return [max(each) for each in zip(*times, strict=True)]


def run_process(args: argparse.Namespace) -> None:
    """Prints the seconds of each repetition of one of the processes."""
    import time

    n, process, core, port = map(int, args.process.split(","))
    os.sched_setaffinity(0, {core})  # Before JAX counts its threads.
    import jax

    if n > 1:
        jax.distributed.initialize(f"localhost:{port}", n, process)
    import numpy as np

    import infinitenet as inn

    conv = inn.Conv(64, (3, 3), padding="SAME")
    layers = [layer for _ in range(args.layers) for layer in (conv, inn.Relu())]
    net = inn.Sequential([*layers, inn.GlobalAvgPool(), inn.Dense(1)])
    shape = (args.examples, 8, 8, 3)
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    options: dict[str, Any] = {"progress": False}
    options["mesh"] = jax.sharding.Mesh(np.array(jax.devices()), ("rows",))
    times = []
    for _ in range(args.repeat + 1):
        start = time.perf_counter()
        jax.block_until_ready(inn.gram(net, x, **options))
        times.append(time.perf_counter() - start)
    # The first one includes compilation.
    print(json.dumps(times[1:]), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=50_000, help="examples of the table")
    parser.add_argument("--devices", type=int, nargs="+", default=DEVICES)
    parser.add_argument("--measure", action="store_true", help="time 1 and 2 processes")
    parser.add_argument("--examples", type=int, default=128, help="with --measure")
    parser.add_argument("--layers", type=int, default=21, help="with --measure")
    parser.add_argument("--repeat", type=int, default=3, help="with --measure")
    parser.add_argument("--timeout", type=float, default=3600, help="seconds")
    parser.add_argument("--output", type=Path, help="a file for the results")
    parser.add_argument("--process", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.process:
        run_process(args)
        return
    columns = ["network", "devices", "mesh", "idle, K(x, y)", "idle, K(x, x)"]
    lines = markdown(idle_rows(args.n, args.devices), columns)
    if args.measure:
        lines += ["", *measure(args)]
    publish("\n".join(lines) + "\n", args.output)


if __name__ == "__main__":
    main()
