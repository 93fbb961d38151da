"""One side of the comparison in `empirical.py`: it times one library.

As `peer.py`, of which it uses the protocol, it runs under either interpreter.
"""

import dataclasses
import importlib
import sys
import time
from collections.abc import Callable
from typing import Any

from networks import Stax
from peer import peak_mib, serve


@dataclasses.dataclass(frozen=True)
class Workload:
    """A finite network of 10 outputs, and `n` examples on either side of its kernel.

    - `mlp`: two hidden dense layers of some width.
    - `cnn`: three 3x3 convolutions of some width, and global average pooling.
    - `wrn`: a wide residual network of some depth, `width` times as wide as the narrowest.
    """

    name: str
    n: int
    shape: tuple[int, ...]
    width: int
    depth: int

    def small(self) -> "Workload":
        """Returns the same kind of network, of a size to be done in seconds."""
        n, width, depth = min(self.n, 4), min(self.width, 32), min(self.depth, 10)
        shape = tuple(min(size, 8) for size in self.shape[:-1]) + self.shape[-1:]
        width = 1 if self.name == "wrn" else width
        return dataclasses.replace(self, n=n, shape=shape, width=width, depth=depth)


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("mlp", 32, (784,), 1024, 2),
        Workload("cnn", 32, (32, 32, 3), 64, 3),
        Workload("wrn", 32, (16, 16, 3), 4, 16),
    )
}

# Of `neural_tangents`, by its numbers.
IMPLEMENTATIONS = {"jacobian": 1, "products": 2, "structured": 3}

N_OUTPUTS = 10


def _layers(library: Any, workload: Workload) -> list[Any]:
    stds = {"W_std": 2**0.5, "b_std": 0.1}
    layers = []
    for _ in range(workload.depth):
        if workload.name == "mlp":
            layers.append(library.Dense(workload.width, **stds))
        else:
            layers.append(library.Conv(workload.width, (3, 3), padding="SAME", **stds))
        layers.append(library.Relu())
    pool = [] if workload.name == "mlp" else [library.GlobalAvgPool()]
    return [*layers, *pool, library.Dense(N_OUTPUTS, **stds)]


def _draw(np: Any, weights: list[Any]) -> list[Any]:
    """Returns normal numbers in place of weights: the same ones for both libraries."""
    rng = np.random.default_rng(0)
    return [rng.standard_normal(w.shape, dtype=np.float32) for w in weights]


def _infinitenet(workload: Workload) -> Callable[[Any, Any], Any]:
    """Returns the kernel as `infinitenet` computes it, by the method that it chooses."""
    inn = importlib.import_module("infinitenet")
    jax = importlib.import_module("jax")
    np = importlib.import_module("numpy")
    eqx = importlib.import_module("equinox")
    if workload.name == "wrn":
        net = inn.WideResNet(workload.depth, workload.width, N_OUTPUTS)
    else:
        net = inn.Sequential(_layers(inn, workload))
    net = net.init(jax.random.key(0), np.zeros(workload.shape, np.float32))
    weights, rest = eqx.partition(net, inn.trainable(net))
    leaves, structure = jax.tree.flatten(weights)
    drawn = [jax.device_put(w) for w in _draw(np, leaves)]
    net = eqx.combine(jax.tree.unflatten(structure, drawn), rest)
    return lambda x1, x2: inn.empirical_ntk(net, x1, x2, progress=False)


def _neural_tangents(workload: Workload, mode: str) -> Callable[[Any, Any], Any]:
    """Returns the kernel as `neural_tangents` computes it, compiled."""
    jax = importlib.import_module("jax")
    np = importlib.import_module("numpy")
    nt = importlib.import_module("neural_tangents")
    if workload.name == "wrn":
        net = Stax(nt.stax).WideResNet(workload.depth, workload.width, N_OUTPUTS)
        init, apply, _ = net
    else:
        init, apply, _ = nt.stax.serial(*_layers(nt.stax, workload))
    _, weights = init(jax.random.PRNGKey(0), (1, *workload.shape))
    leaves, structure = jax.tree_util.tree_flatten(weights)
    # Its biases have axes for all positions, and the same order.
    drawn = [jax.device_put(w) for w in _draw(np, leaves)]
    weights = jax.tree_util.tree_unflatten(structure, drawn)
    ntk_fn = nt.empirical_ntk_fn(
        apply, trace_axes=(-1,), vmap_axes=0, implementation=IMPLEMENTATIONS[mode]
    )
    compiled = jax.jit(ntk_fn)
    return lambda x1, x2: compiled(x1, x2, weights)


class _Session:
    """The kernel and the inputs of one workload, and its last result."""

    def __init__(self, library: str, mode: str):
        self.library = library
        self.mode = mode if library == "neural_tangents" else ""

    def load(self, workload: dict[str, Any]) -> dict[str, Any]:
        """Imports the library and makes the network and inputs; nothing is timed."""
        self.jax = importlib.import_module("jax")
        np = importlib.import_module("numpy")
        spec = Workload(**{**workload, "shape": tuple(workload["shape"])})
        if self.library == "infinitenet":
            self.kernel_fn = _infinitenet(spec)
        else:
            self.kernel_fn = _neural_tangents(spec, self.mode)
        rng = np.random.default_rng(1)
        self.x1, self.x2 = (
            self.jax.device_put(
                rng.standard_normal((spec.n, *spec.shape), dtype=np.float32)
            )
            for _ in range(2)
        )
        return {
            "python": sys.version.split()[0],
            "jax": self.jax.__version__,
            "device": self.jax.devices()[0].platform,
            "library": importlib.import_module("peer").version(self.library),
            "mode": self.mode,
            "dtype": "float32",
            "peak_mib": peak_mib(),
        }

    def run(self) -> dict[str, Any]:
        """Computes the kernel once. The first time includes compilation."""
        self.result = None
        start = time.perf_counter()
        self.result = self.jax.block_until_ready(self.kernel_fn(self.x1, self.x2))
        return {"seconds": time.perf_counter() - start, "peak_mib": peak_mib()}

    def save(self, path: str) -> dict[str, Any]:
        """Writes the last result, to be compared with that of the other library."""
        importlib.import_module("numpy").savez(path, nngp=self.result, ntk=self.result)
        return {}


if __name__ == "__main__":
    serve(_Session, ("jit", *IMPLEMENTATIONS))
