"""One side of the comparison in `inference.py`: it times one library.

As `peer.py`, of which it uses the protocol, it runs under either interpreter.
"""

import dataclasses
import importlib
import sys
import time
from typing import Any

from peer import peak_mib, serve


@dataclasses.dataclass(frozen=True)
class Workload:
    """Training and test examples, at `n_times` times of training.

    Without times it is Gaussian-process regression by a Cholesky factor, of a kernel
    which is made before.
    """

    name: str
    n_train: int
    n_test: int
    n_times: int

    def small(self) -> "Workload":
        """Returns the same kind of inference, of a size to be done in seconds."""
        n_train = 2100 if self.n_times == 0 else 200
        return dataclasses.replace(self, n_train=n_train, n_test=50)


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("ensemble", 2000, 500, 20),
        Workload("cholesky", 10_000, 500, 0),
    )
}

N_INPUTS, N_OUTPUTS = 100, 10


def _layers(library: Any) -> list[Any]:
    stds = {"W_std": 1.5, "b_std": 0.1}
    hidden = [library.Dense(512, **stds), library.Relu()]
    return [*hidden, *hidden, library.Dense(N_OUTPUTS, **stds)]


class _Infinitenet:
    """From data to the mean and the covariance of an ensemble."""

    def __init__(self):
        self.inn = importlib.import_module("infinitenet")
        self.net = self.inn.Sequential(_layers(self.inn))

    def start(self, x_train: Any, y_train: Any) -> Any:
        return self.inn.network_ensemble(self.net, x_train, y_train, progress=False)

    def predict(self, ensemble: Any, t: Any, x_test: Any) -> tuple[Any, Any]:
        out = ensemble.predict_jointly(t, x_test)
        return out.mean, out.covariance


class _NeuralTangents:
    """The same. `gradient_descent_mse_ensemble` keeps what it has computed.

    In mode `jit` the prediction is compiled as a whole, and nothing is kept.
    """

    def __init__(self, mode: str):
        self.jax = importlib.import_module("jax")
        self.nt = importlib.import_module("neural_tangents")
        _, _, kernel_fn = self.nt.stax.serial(*_layers(self.nt.stax))
        self.kernel_fn = self.jax.jit(kernel_fn, static_argnames="get")
        self.mode = mode
        self.compiled = self.jax.jit(self._whole)

    def _ensemble(self, x_train: Any, y_train: Any) -> Any:
        ensemble = self.nt.predict.gradient_descent_mse_ensemble
        return ensemble(self.kernel_fn, x_train, y_train, learning_rate=1.0)

    def _whole(self, x_train: Any, y_train: Any, t: Any, x_test: Any) -> Any:
        predict = self._ensemble(x_train, y_train)
        return predict(t=t, x_test=x_test, get="ntk", compute_cov=True)

    def start(self, x_train: Any, y_train: Any) -> Any:
        if self.mode == "jit":
            return x_train, y_train
        return self._ensemble(x_train, y_train)

    def predict(self, ensemble: Any, t: Any, x_test: Any) -> tuple[Any, Any]:
        if self.mode == "jit":
            out = self.compiled(*ensemble, t, x_test)
        else:
            out = ensemble(t=t, x_test=x_test, get="ntk", compute_cov=True)
        return out.mean, out.covariance


class _Session:
    def __init__(self, library: str, mode: str):
        self.library = library
        self.mode = mode if library == "neural_tangents" else ""

    def load(self, workload: dict[str, Any]) -> dict[str, Any]:
        """Imports the library and makes the data, of which nothing is timed."""
        self.jax = importlib.import_module("jax")
        np = importlib.import_module("numpy")
        self.workload = Workload(**workload)
        ours = self.library == "infinitenet"
        self.side = _Infinitenet() if ours else _NeuralTangents(self.mode)
        rng = np.random.default_rng(0)
        draw = lambda *shape: rng.standard_normal(shape, dtype=np.float32)
        self.x_train = self.jax.device_put(draw(self.workload.n_train, N_INPUTS))
        self.x_test = self.jax.device_put(draw(self.workload.n_test, N_INPUTS))
        self.y_train = self.jax.device_put(draw(self.workload.n_train, N_OUTPUTS))
        self.t = np.geomspace(1, 1e6, self.workload.n_times or 1, dtype=np.float32)
        version = importlib.import_module("peer").version(self.library)
        return {
            "python": sys.version.split()[0],
            "jax": self.jax.__version__,
            "device": self.jax.devices()[0].platform,
            "library": version,
            "mode": self.mode,
            "dtype": str(self.y_train.dtype),
        }

    def run(self) -> dict[str, Any]:
        """From data to predictions; then other times, of what is kept."""
        self.result = None
        start = time.perf_counter()
        ensemble = self.side.start(self.x_train, self.y_train)
        self.result = self.side.predict(ensemble, self.t, self.x_test)
        self.jax.block_until_ready(self.result)
        first = time.perf_counter() - start
        start = time.perf_counter()
        self.jax.block_until_ready(self.side.predict(ensemble, 2 * self.t, self.x_test))
        again = time.perf_counter() - start
        return {"seconds": first, "again": again, "peak_mib": peak_mib()}

    def save(self, path: str) -> dict[str, Any]:
        """Writes mean and covariance, to be compared."""
        assert self.result is not None
        mean, covariance = self.result
        importlib.import_module("numpy").savez(path, nngp=mean, ntk=covariance)
        return {}

    def cholesky(self) -> dict[str, Any]:
        """Gaussian-process regression on a kernel: mean and variances of the test set."""
        assert isinstance(self.side, _Infinitenet)
        inn, net = self.side.inn, self.side.net
        options = {"ntk": False, "progress": False}
        k_test = inn.gram(net, self.x_test, self.x_train, **options).nngp
        k_diagonal = inn.gram_diagonal(net, self.x_test, ntk=False).nngp
        before = resident_mib()
        k = inn.gram(net, self.x_train, **options).nngp
        out = self.jax.block_until_ready(k)
        matrix = out.nbytes / 2**20
        start = time.perf_counter()
        posterior = inn.condition(k, self.y_train, diag_reg=1e-2)
        prediction = posterior.predict(k_test, k_diagonal)
        self.jax.block_until_ready((prediction.mean, prediction.variance))
        seconds = time.perf_counter() - start
        return {
            "seconds": seconds,
            "before_mib": before,
            "matrix_mib": matrix,
            "peak_mib": peak_mib(),
        }


def resident_mib() -> float:
    """Returns the resident memory of this process now, in MiB. For Linux."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20


if __name__ == "__main__":
    serve(_Session)
