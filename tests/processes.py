"""Scripts in processes of their own, as JAX is told how many devices there are before it
starts; and what several processes hold of an array."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np

import infinitenet as inn


_here = pathlib.Path(__file__).parent
_package = pathlib.Path(inn.__file__).resolve().parents[1]


def start(script, *args, devices=None):
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


def finish(processes, seconds=300):
    """What they print. `seconds` are far more than they take: for when one of them waits
    for another that has failed."""
    try:
        texts = [process.communicate(timeout=seconds)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for process, text in zip(processes, texts, strict=True):
        assert process.returncode == 0, text
    return texts


def run_together(n, folder, *args, seconds=300):
    """`process_of_mesh.py` in `n` processes, which know of each other."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    script = "process_of_mesh.py"
    finish([start(script, port, n, i, folder, *args) for i in range(n)], seconds)


def save_parts(folder, name, array):
    """Those that this process has, one file for each device."""
    for shard in array.addressable_shards:
        path = folder / f"{name}-{shard.device.id}"
        np.save(f"{path}.npy", np.asarray(shard.data))
        where = zip(shard.index, array.shape, strict=True)
        at = [s.indices(size)[:2] for s, size in where]
        pathlib.Path(f"{path}.json").write_text(json.dumps(at))


def joined(folder, name, want):
    """An array of which the processes have saved their parts, of the shape of another."""
    out, parts = np.full_like(want, np.nan), list(folder.glob(f"{name}-*.npy"))
    assert len(parts) == 4
    for path in parts:
        at = json.loads(path.with_suffix(".json").read_text())
        out[tuple(slice(*ends) for ends in at)] = np.load(path)
    return out
