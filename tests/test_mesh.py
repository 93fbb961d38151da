"""Kernel matrices over several devices, and several processes.

In processes of their own, as JAX is told how many devices there are before it starts.
"""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

import infinitenet as inn


_here = pathlib.Path(__file__).parent
_package = pathlib.Path(inn.__file__).resolve().parents[1]
# Far more than they take: for when one of them waits for another that has failed.
_SECONDS = 300


def _start(script, *args, devices=None):
    flags = os.environ.get("XLA_FLAGS", "")
    if devices is not None:
        flags += f" --xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, "-W", "error", str(_here / script), *map(str, args)],
        env=os.environ
        | {"PYTHONPATH": str(_package), "XLA_FLAGS": flags, "JAX_ENABLE_X64": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _finish(processes):
    try:
        texts = [process.communicate(timeout=_SECONDS)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for process, text in zip(processes, texts, strict=True):
        assert process.returncode == 0, text


@pytest.fixture(scope="module")
def matrices(tmp_path_factory):
    """Those of four devices of one process, after all of its checks have passed."""
    folder = tmp_path_factory.mktemp("matrices")
    _finish([_start("mesh_checks.py", folder, devices=8)])
    return {path.stem: np.load(path) for path in folder.glob("*.npy")}


def test_devices_of_one_process(matrices):
    assert set(matrices) == {"both", "alone"}


@pytest.mark.parametrize("n", [2, 4])
def test_several_processes(n, matrices, tmp_path):
    """Together they hold the matrices that one process computes, to the last bit."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    _finish([_start("process_of_mesh.py", port, n, i, tmp_path) for i in range(n)])
    for name, want in matrices.items():
        got = np.full_like(want, np.nan)
        parts = list(tmp_path.glob(f"{name}-*.npy"))
        assert len(parts) == 4
        for path in parts:
            at = json.loads(path.with_suffix(".json").read_text())
            got[tuple(slice(*ends) for ends in at)] = np.load(path)
        assert np.array_equal(got, want)
