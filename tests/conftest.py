import os


if "PYTEST_XDIST_WORKER" in os.environ:
    # The workers already use every core.
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"
    )
# Nothing in the tests opens a window.
os.environ.setdefault("MPLBACKEND", "Agg")

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
