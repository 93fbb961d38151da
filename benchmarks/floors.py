"""Compares the times of kernels to what this machine would take for them at least.

What the machine can do is measured first, on all cores: arithmetic on arrays that stay in
the cache, matrix products, and memory bandwidth. Then the operations and bytes of each
network are counted, by `counts.py`, which also tells what is assumed. The floor is the
larger one of the times that these take. What is timed are NNGP and NTK together, in single
precision, for the networks that are listed in `peer.py`:

    python benchmarks/floors.py --scale small
    python benchmarks/floors.py --output results.md
"""

import concurrent.futures
import dataclasses
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np


# The `infinitenet` of this checkout is counted, as it is this one that is timed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.lax as lax
import jax.numpy as jnp
from counts import count, Work
from kernels import compare_all, Comparison, parse
from peer import WORKLOADS
from tables import machine, markdown, publish

import infinitenet as inn


COLUMNS = (
    "workload",
    "covariances, 10⁶",
    "arithmetic, GFLOP",
    "products, GFLOP",
    "memory, MB",
    "compute, s",
    "memory, s",
    "floor, s",
    "measured, s",
    "floor / measured",
)


#
# What the machine can do
#


@dataclasses.dataclass(frozen=True)
class Machine:
    """Operations per second of either kind, bytes per second, and bytes of the cache."""

    arithmetic: float
    products: float
    bandwidth: float
    cache: float

    def compute(self, work: Work) -> float:
        """Returns the seconds that operations take."""
        return work.arithmetic / self.arithmetic + work.products / self.products

    def memory(self, work: Work) -> float:
        """Returns the seconds that traffic to and from memory takes."""
        return work.bytes / self.bandwidth

    def floor(self, work: Work) -> float:
        """Returns the larger one: both may happen at the same time."""
        return max(self.compute(work), self.memory(work))


def _cores() -> int:
    return os.cpu_count() or 1


def _on_all_cores(make: Callable[[], Callable[[], object]], times: int = 7) -> float:
    """Returns the least seconds in which each core does the work once, all at a time."""
    works = [make() for _ in range(_cores())]
    seconds = []
    with concurrent.futures.ThreadPoolExecutor(len(works)) as pool:
        for _ in range(times):
            start = time.perf_counter()
            for future in [pool.submit(work) for work in works]:
                future.result()
            seconds.append(time.perf_counter() - start)
    # The first one includes compilation.
    return min(seconds[1:])


_SIZE = 2**16  # Of arrays of 256 KiB.
_PASSES = 500
_CHAINS, _DEGREE = 4, 16


@jax.jit
def _polynomials(x: jax.Array) -> jax.Array:
    """Polynomials, again and again, of an array that remains in the cache.

    Several of them at a time, so that no operation waits for the one before.
    """

    def once(_: int, x: jax.Array) -> jax.Array:
        out = [x * (0.1 * i) for i in range(_CHAINS)]
        for _ in range(_DEGREE):
            out = [y * x + 0.1 for y in out]
        return sum(out[1:], out[0]) / (4 * _CHAINS)

    return lax.fori_loop(0, _PASSES, once, x)


def measure_arithmetic() -> float:
    """Returns operations per second. A product that is added to something counts as two."""

    def make() -> Callable[[], object]:
        x = jnp.full(_SIZE, 0.5, jnp.float32)
        return lambda: jax.block_until_ready(_polynomials(x))

    operations = _CHAINS * (2 * _DEGREE + 2) * _SIZE * _PASSES
    return _cores() * operations / _on_all_cores(make)


def measure_products(size: int = 2048) -> float:
    """Returns operations per second of matrix products, by the faster of two libraries."""
    a = np.ones((size, size), np.float32)
    b, product = jnp.asarray(a), jax.jit(jnp.matmul)
    seconds = []
    for multiply in (lambda: a @ a, lambda: jax.block_until_ready(product(b, b))):
        multiply()
        for _ in range(5):
            start = time.perf_counter()
            multiply()
            seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


def measure_bandwidth(size: int = 2**25) -> float:
    """Returns bytes per second, of adding one large array to another in its place."""

    def make() -> Callable[[], object]:
        a, b = (np.ones(size, np.float32) for _ in range(2))
        return lambda: np.add(a, b, out=a)

    # Two are read and one is written.
    return _cores() * 3 * 4 * size / _on_all_cores(make)


def cache_bytes() -> float:
    """Returns the size of the last cache, or 32 MiB if it is not known."""
    sizes = ("SC_LEVEL3_CACHE_SIZE", "SC_LEVEL2_CACHE_SIZE")
    known = [os.sysconf(name) for name in sizes if name in os.sysconf_names]
    return next((size for size in known if size > 0), 2**25)


def measure_machine() -> Machine:
    """Measures this machine, which should do nothing else."""
    arithmetic, products = measure_arithmetic(), measure_products()
    return Machine(arithmetic, products, measure_bandwidth(), cache_bytes())


#
# The table
#


def _cells(comparison: Comparison, peak: Machine) -> Iterator[str]:
    """Yields one row."""
    workload, measured = comparison.workload, comparison.timings["infinitenet"].median
    net = workload.spec.build(inn, workload.depth)
    work = count(net, workload.shape, workload.n, workload.n, peak.cache)
    yield f"`{workload.name}`, n={workload.n}"
    yield f"{work.covariances / 1e6:.3g}"
    yield f"{work.arithmetic / 1e9:.3g}"
    yield f"{work.products / 1e9:.3g}"
    yield f"{work.bytes / 1e6:.3g}"
    yield f"{peak.compute(work):.3g}"
    yield f"{peak.memory(work):.3g}"
    yield f"{peak.floor(work):.3g}"
    yield f"{measured:.3g}"
    yield f"{peak.floor(work) / measured:.2g}"


def main() -> int:
    """Measures the machine and the workloads, and returns the exit status."""
    args = parse(__doc__, WORKLOADS, peer=False)
    peak = measure_machine()
    comparisons, failed = compare_all(args)
    if comparisons:
        infos = {"infinitenet": comparisons[0].timings["infinitenet"].info}
        lines = machine(infos, f"{args.repeats} of each, at scale `{args.scale}`")
        lines += [
            f"- Arithmetic in the cache: {peak.arithmetic / 1e9:.0f} GFLOP/s",
            f"- Matrix products: {peak.products / 1e9:.0f} GFLOP/s",
            f"- Memory: {peak.bandwidth / 1e9:.0f} GB/s, behind a cache of "
            f"{peak.cache / 2**20:.0f} MiB",
            "",
            *markdown((_cells(x, peak) for x in comparisons), COLUMNS),
        ]
        publish("\n".join(lines) + "\n", args.output)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
