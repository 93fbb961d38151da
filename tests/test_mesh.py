"""Kernel matrices over several devices, and several processes."""

import numpy as np
import pytest
from processes import finish, joined, run_together, start


@pytest.fixture(scope="module")
def matrices(tmp_path_factory):
    """Those of four devices of one process, after all of its checks have passed."""
    folder = tmp_path_factory.mktemp("matrices")
    finish([start("mesh_checks.py", folder, devices=8)])
    return {path.stem: np.load(path) for path in folder.glob("*.npy")}


def test_devices_of_one_process(matrices):
    assert set(matrices) == {"both", "alone"}


@pytest.mark.parametrize("n", [2, 4])
def test_several_processes(n, matrices, tmp_path):
    """Together they hold the matrices that one process computes, to the last bit."""
    run_together(n, tmp_path)
    for name, want in matrices.items():
        assert np.array_equal(joined(tmp_path, name, want), want)
