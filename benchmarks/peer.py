"""One side of the comparisons of kernels: it times one library.

The two libraries need different versions of JAX, so that they cannot share a process.
This file runs under either interpreter and needs nothing but the standard library,
NumPy, JAX and the library that it times:

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
import resource
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, TextIO


LIBRARIES = ("infinitenet", "neural_tangents")
MODES = ("jit", "eager", "batch")

# `(x1, x2)` to `(nngp, ntk)`; `x2=None` asks for the symmetric kernel.
KernelFn = Callable[[Any, Any], tuple[Any, Any]]


@dataclasses.dataclass(frozen=True)
class Workload:
    """A network, and the inputs on which its kernel is evaluated.

    The hidden layers are dense if an input of shape `shape` is a vector, 3x3
    convolutions if it is an image. Each of the `depth` hidden layers ends in a ReLU.
    `n` is the number of examples on either side of the kernel, and `batch` what
    `--mode batch` divides it into. If `residual`, it is a wide residual network of
    `depth` convolutions instead, ten times as wide as the narrowest one.
    """

    name: str
    n: int
    shape: tuple[int, ...]
    depth: int
    head: str | None
    out_size: int
    batch: int
    residual: bool = False

    def small(self) -> "Workload":
        """Returns the same kind of network, of a size to be done in seconds."""
        n = min(self.n, 4 if self.head else 50)
        shape = tuple(min(size, 8) for size in self.shape[:-1]) + self.shape[-1:]
        depth = min(self.depth, 10 if self.residual else 3)
        batch = max(1, n // 2)
        return dataclasses.replace(self, n=n, shape=shape, depth=depth, batch=batch)


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("fc3-relu", 2000, (784,), 2, None, 1, 1000),
        Workload("cnn21-flatten", 32, (32, 32, 3), 21, "Flatten", 10, 16),
        Workload("cnn21-gap-32", 2, (32, 32, 3), 21, "GlobalAvgPool", 10, 1),
        Workload("cnn21-gap-8", 16, (8, 8, 3), 21, "GlobalAvgPool", 10, 8),
    )
}


# Of `compile.py`: deep networks and few examples, so that running them takes little time.
DEEP = {
    workload.name: workload
    for workload in (
        Workload("wrn28-8", 2, (8, 8, 3), 28, None, 10, 1, residual=True),
        Workload("wrn28-32", 1, (32, 32, 3), 28, None, 10, 1, residual=True),
        Workload("cnn100-flatten-32", 2, (32, 32, 3), 100, "Flatten", 10, 1),
        Workload("cnn100-gap-8", 2, (8, 8, 3), 100, "GlobalAvgPool", 10, 1),
    )
}


def _layers(library: Any, workload: Workload) -> list[Any]:
    """Returns the layers of the network, from either library.

    Their constructors are called alike, so that one definition serves both: the two
    networks cannot drift apart. Standard deviations are always passed, for the
    libraries need not have the same defaults.
    """
    stds = {"W_std": 2**0.5, "b_std": 0.1}
    layers = []
    for _ in range(workload.depth):
        if len(workload.shape) == 1:
            layers.append(library.Dense(1024, **stds))
        else:
            layers.append(library.Conv(64, (3, 3), padding="SAME", **stds))
        layers.append(library.Relu())
    if workload.head is not None:
        layers.append(getattr(library, workload.head)())
    return [*layers, library.Dense(workload.out_size, **stds)]


def _infinitenet(workload: Workload) -> KernelFn:
    """Returns the kernel as `infinitenet` computes it. It compiles by itself."""
    inn = importlib.import_module("infinitenet")
    if workload.residual:
        net = inn.WideResNet(workload.depth, 10, workload.out_size)
    else:
        net = inn.Sequential(_layers(inn, workload))

    def run(x1: Any, x2: Any) -> tuple[Any, Any]:
        inputs = (x1,) if x2 is None else (x1, x2)
        kernel = inn.gram(net, *inputs, progress=False)
        return kernel.nngp, kernel.ntk

    return run


def wide_resnet(stax: Any, depth: int, widening: int, out_size: int) -> Any:
    """Returns `infinitenet.WideResNet` in terms of the other library."""

    def conv(width: int, strides: tuple[int, int] = (1, 1)) -> Any:
        return stax.Conv(width, (3, 3), strides, padding="SAME")

    def block(first: Any, shortcut: Any, width: int) -> Any:
        branch = stax.serial(stax.Relu(), first, stax.Relu(), conv(width))
        branches = stax.parallel(branch, shortcut)
        return stax.serial(stax.FanOut(2), branches, stax.FanInSum())

    layers = [conv(16)]
    for factor, strides in ((16, (1, 1)), (32, (2, 2)), (64, (2, 2))):
        width = factor * widening
        first = conv(width, strides)
        others = (depth - 4) // 6 - 1
        layers += [
            block(first, first, width),
            *[block(conv(width), stax.Identity(), width)] * others,
        ]
    return stax.serial(*layers, stax.GlobalAvgPool(), stax.Dense(out_size))


def _neural_tangents(workload: Workload, mode: str) -> KernelFn:
    """Returns the kernel as `neural_tangents` computes it: compiled, or as it comes.

    Batches are compiled as well, and the parts of the result stay on the device.
    """
    jax = importlib.import_module("jax")
    nt = importlib.import_module("neural_tangents")
    if workload.residual:
        _, _, kernel_fn = wide_resnet(nt.stax, workload.depth, 10, workload.out_size)
    else:
        _, _, kernel_fn = nt.stax.serial(*_layers(nt.stax, workload))
    if mode != "eager":
        kernel_fn = jax.jit(kernel_fn, static_argnames="get")
    if mode == "batch":
        kernel_fn = nt.batch(kernel_fn, workload.batch, store_on_device=True)

    def run(x1: Any, x2: Any) -> tuple[Any, Any]:
        kernel = kernel_fn(x1, x2, get=("nngp", "ntk"))
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
        jax.block_until_ready((self.x1, self.x2))
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
        result = self.kernel_fn(self.x1, None if symmetric else self.x2)
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
        self.result = self.kernel_fn(x1, x2)
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
