"""One side of the comparisons of kernels: it times one library.

The two libraries need different versions of JAX, so that they cannot share a process.
This file and those it imports run under either interpreter, and need nothing but the
standard library, NumPy, JAX and the library that is timed:

    python peer.py --library infinitenet
    python peer.py --library neural_tangents --mode jit

It is not for direct use. It reads one request per line from its standard input, as
JSON, and answers each with one line of JSON on its standard output; see `_serve`.
"""

import argparse
import dataclasses
import importlib
import importlib.metadata
import json
import os
import pathlib
import re
import resource
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, TextIO

from layer_networks import LAYERS
from networks import Network, NETWORKS, Stax


LIBRARIES = ("infinitenet", "neural_tangents")
MODES = ("jit", "eager", "batch")

# `(x1, x2, graphs)` to `(nngp, ntk)`; `x2=None` asks for the symmetric kernel. There is a
# graph of positions for each example of either input, or `graphs=None`.
KernelFn = Callable[[Any, Any, Any], tuple[Any, Any]]


@dataclasses.dataclass(frozen=True)
class Workload:
    """A network, by its name, and the inputs on which its kernel is evaluated.

    `n` is the number of examples of shape `shape` on either side of the kernel.
    """

    name: str
    network: str
    depth: int
    n: int
    shape: tuple[int, ...]

    @property
    def spec(self) -> Network:
        """The network, of which there is one definition for both libraries."""
        return (NETWORKS | LAYERS)[self.network]

    def small(self) -> "Workload":
        """Returns the same kind of network, of a size to be done in seconds."""
        *spatial, channels = self.shape
        shape = (*(min(size, 8) for size in spatial), channels)
        n = min(self.n, 4 if spatial else 50)
        depth = min(self.depth, self.spec.least)
        return dataclasses.replace(self, n=n, shape=shape, depth=depth)

    def large(self) -> "Workload":
        """Returns the same with more examples, to tell what a symmetric kernel saves."""
        times = 4 if len(self.shape) > 1 else 2
        return dataclasses.replace(self, n=times * self.n)


def _named(*workloads: Workload) -> dict[str, Workload]:
    return {workload.name: workload for workload in workloads}


_IMAGE, _SMALL_IMAGE = (32, 32, 3), (8, 8, 3)

WORKLOADS = _named(
    Workload("fc3-relu", "dense-relu", 2, 2000, (784,)),
    Workload("fc3-erf", "dense-erf", 2, 2000, (784,)),
    Workload("fc20-relu", "dense-relu", 19, 1000, (784,)),
    Workload("cnn21-flatten", "conv-flatten", 21, 32, _IMAGE),
    Workload("cnn21-gap-32", "conv-gap", 21, 2, _IMAGE),
    Workload("cnn21-gap-8", "conv-gap", 21, 16, _SMALL_IMAGE),
    Workload("wrn28-gap-8", "wide-resnet", 28, 8, _SMALL_IMAGE),
    Workload("wrn28-gap-32", "wide-resnet", 28, 1, _IMAGE),
    Workload("myrtle5", "myrtle", 5, 1, _IMAGE),
    Workload("myrtle10", "myrtle", 10, 1, _IMAGE),
    Workload("attention", "attention", 3, 16, _SMALL_IMAGE),
)

# Of `compile.py`: deep networks and few examples, so that running them takes little time.
DEEP = _named(
    Workload("wrn28-8", "wide-resnet", 28, 2, _SMALL_IMAGE),
    Workload("wrn28-32", "wide-resnet", 28, 1, _IMAGE),
    Workload("cnn100-flatten-32", "conv-flatten", 100, 2, _IMAGE),
    Workload("cnn100-gap-8", "conv-gap", 100, 2, _SMALL_IMAGE),
)


def _infinitenet(workload: Workload) -> KernelFn:
    """Returns the kernel as `infinitenet` computes it. It compiles by itself."""
    inn = importlib.import_module("infinitenet")
    net = workload.spec.build(inn, workload.depth)

    def run(x1: Any, x2: Any, graphs: Any) -> tuple[Any, Any]:
        inputs = (x1,) if x2 is None else (x1, x2)
        if graphs is not None:
            on = zip(inputs, graphs, strict=False)
            inputs = tuple(inn.Inputs(x, pattern=graph) for x, graph in on)
        kernel = inn.gram(net, *inputs, progress=False)
        return kernel.nngp, kernel.ntk

    return run


def _neural_tangents(workload: Workload, mode: str) -> KernelFn:
    """Returns the kernel as `neural_tangents` computes it: compiled, or as it comes.

    Batches are compiled as well, and the parts of the result stay on the device.
    """
    jax = importlib.import_module("jax")
    nt = importlib.import_module("neural_tangents")
    _, _, kernel_fn = workload.spec.build(Stax(nt.stax), workload.depth)
    if mode != "eager":
        kernel_fn = jax.jit(kernel_fn, static_argnames="get")
    if mode == "batch":
        half = max(1, workload.n // 2)
        kernel_fn = nt.batch(kernel_fn, half, store_on_device=True)

    def run(x1: Any, x2: Any, graphs: Any) -> tuple[Any, Any]:
        options = {} if graphs is None else {"pattern": graphs}
        kernel = kernel_fn(x1, x2, get=("nngp", "ntk"), **options)
        return kernel.nngp, kernel.ntk

    return run


def version(library: str) -> str:
    """Returns the version of a library, which need not be installed to be imported."""
    try:
        return importlib.metadata.version(library.replace("_", "-"))
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def peak_mib() -> float:
    """Returns the peak resident memory of this process so far, in MiB."""
    # On Linux, as what it tells of resources begins with the memory of the parent process.
    status = pathlib.Path("/proc/self/status")
    text = status.read_text() if status.exists() else ""
    if found := re.search(r"^VmHWM:\s+(\d+) kB$", text, re.MULTILINE):
        return int(found[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # In bytes on macOS, in KiB elsewhere.
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


class _Session:
    """The kernel and the inputs of one workload, and its last result."""

    def __init__(self, library: str, mode: str):
        self.library = library
        # `infinitenet` has one way to be used.
        self.mode = mode if library == "neural_tangents" else ""

    def load(self, workload: dict[str, Any], inputs: str) -> dict[str, Any]:
        """Imports the library and places the inputs, of which nothing is timed."""
        jax = importlib.import_module("jax")
        np = importlib.import_module("numpy")
        spec = Workload(**{**workload, "shape": tuple(workload["shape"])})
        if self.library == "infinitenet":
            self.kernel_fn = _infinitenet(spec)
        else:
            self.kernel_fn = _neural_tangents(spec, self.mode)
        with np.load(inputs) as arrays:
            self.x1, self.x2 = (jax.device_put(arrays[key]) for key in ("x1", "x2"))
            keys = [key for key in ("graph1", "graph2") if key in arrays]
            graphs = tuple(jax.device_put(arrays[key]) for key in keys)
        self.graphs = graphs or None
        jax.block_until_ready((self.x1, self.x2, graphs))
        return {
            "python": sys.version.split()[0],
            "jax": jax.__version__,
            "device": jax.devices()[0].platform,
            "library": version(self.library),
            "mode": self.mode,
            "peak_mib": peak_mib(),
        }

    def run(self, symmetric: bool = False) -> dict[str, Any]:
        """Computes the kernel once. The first time includes compilation."""
        jax = importlib.import_module("jax")
        # Let go of the last result: the memory of two is not what is measured.
        self.result = None
        start = time.perf_counter()
        x2 = None if symmetric else self.x2
        result = self.kernel_fn(self.x1, x2, self.graphs)
        self.result = jax.block_until_ready(result)
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "peak_mib": peak_mib()}

    def save(self, path: str) -> dict[str, Any]:
        """Writes the last result, to be compared with that of the other library."""
        np = importlib.import_module("numpy")
        assert self.result is not None
        nngp, ntk = self.result
        np.savez(path, nngp=nngp, ntk=ntk)
        return {"dtype": str(nngp.dtype)}

    def save_exact(self, path: str) -> dict[str, Any]:
        """Writes the result of double precision; nothing can be timed after it."""
        jax = importlib.import_module("jax")
        np = importlib.import_module("numpy")
        jax.config.update("jax_enable_x64", True)
        x1, x2 = (np.asarray(x, np.float64) for x in (self.x1, self.x2))
        self.result = self.kernel_fn(x1, x2, self.graphs)
        return self.save(path)


def _serve(session: object, requests: TextIO, answers: TextIO) -> None:
    """Answers `{"do": method of the session, **arguments}` until the input ends."""
    for line in requests:
        request = json.loads(line)
        method = getattr(session, request.pop("do"))
        try:
            answer = method(**request)
        except Exception:
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)


def serve(
    make_session: Callable[[str, str], object], modes: tuple[str, ...] = MODES
) -> None:
    """Sets the streams apart and serves, as the command line says."""
    parser = argparse.ArgumentParser(description="Times one library.")
    parser.add_argument("--library", choices=LIBRARIES, required=True)
    parser.add_argument("--mode", choices=modes, default="jit")
    args = parser.parse_args()
    # Whatever a library prints, from Python or from C++, goes to the standard error,
    # so that only answers are ever written to the pipe.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    _serve(make_session(args.library, args.mode), sys.stdin, answers)


if __name__ == "__main__":
    serve(_Session)
