import os
import tempfile


if "PYTEST_XDIST_WORKER" in os.environ:
    # The workers already use every core, and most of their time would go to optimising
    # programs that run once. Without `-n`, tests are compiled as users' programs are.
    os.environ["XLA_FLAGS"] = " ".join(
        [
            os.environ.get("XLA_FLAGS", ""),
            "--xla_cpu_multi_thread_eigen=false",
            "--xla_backend_optimization_level=0",
            "--xla_cpu_parallel_codegen_split_count=1",
            "--xla_cpu_use_fusion_emitters=false",
            "--xla_llvm_disable_expensive_passes=true",
        ]
    )
# Nothing in the tests opens a window.
os.environ.setdefault("MPLBACKEND", "Agg")
# Most of the time goes to compilation, and many programs are the same: in other modules,
# other workers, and processes that tests start. So a run compiles each once, into a new
# folder. Set the variable to keep what is in there for the next run.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _compiled = tempfile.TemporaryDirectory(
        prefix="infinitenet-", ignore_cleanup_errors=True
    )
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import gc

import hypothesis
import jax
import jax.random as jr
import pytest


jax.config.update("jax_enable_x64", True)
# Type promotion is not strict, as Optax's Adam promotes its count of steps.
jax.config.update("jax_numpy_rank_promotion", "raise")

# No deadline, as the first example of a test compiles. Derandomised, as a failure must
# be the same on every machine.
hypothesis.settings.register_profile("infinitenet", deadline=None, derandomize=True)
hypothesis.settings.load_profile("infinitenet")


# JAX makes many objects that stay: looking at all of them for garbage takes long.
gc.set_threshold(100_000, 20, 100)


def pytest_configure(config):
    # A worker may find what another one is about to write: then it compiles that itself.
    message = "Error reading persistent compilation cache"
    config.addinivalue_line("filterwarnings", f"ignore:{message}:UserWarning")


def pytest_collection_modifyitems(items):
    # CPython keeps frames in chunks of 16 KiB, and unmaps one as soon as it is empty. If a
    # loop within JAX happens to call across the end of a chunk, each call maps memory: that
    # is a tenth of all time. A frame of so many slots has a chunk with room for all others.
    for item in items:
        item.obj.__code__ = item.obj.__code__.replace(co_stacksize=2**17)


class GetKey:
    """Returns a new random key at each call, the same ones in every run of a test."""

    def __init__(self, seed: int):
        self.seed = seed
        self.key = jr.key(seed)

    def __call__(self):
        self.key, key = jr.split(self.key)
        return key

    def __repr__(self):
        return f"GetKey(seed={self.seed})"


@pytest.fixture
def getkey():
    """Random keys. `INFINITENET_SEED=1 pytest` runs the tests on other numbers."""
    getkey = GetKey(int(os.environ.get("INFINITENET_SEED", "0")))
    print(f"{getkey!r}: set INFINITENET_SEED={getkey.seed} to reproduce.")
    return getkey


@pytest.fixture(autouse=True, scope="module")
def _bounded_memory():
    """Drops what a module compiled: a process may map only so many executables."""
    yield
    jax.clear_caches()
