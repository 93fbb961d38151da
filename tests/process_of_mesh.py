"""One of several processes that compute kernel matrices together: see `test_mesh.py`.

`python process_of_mesh.py PORT PROCESSES ID FOLDER` saves the parts of matrices that it
has, one file for each device.
"""

import pathlib
import sys

import jax


if __name__ == "__main__":
    port, n, process = map(int, sys.argv[1:4])
    folder = pathlib.Path(sys.argv[4])
    jax.config.update("jax_num_cpu_devices", 4 // n)
    jax.distributed.initialize(f"localhost:{port}", n, process, initialization_timeout=60)

import json

import mesh_checks
import numpy as np


def main():
    assert jax.process_count() == n and jax.local_device_count() == 4 // n
    for name, k in mesh_checks.matrices(mesh_checks.mesh(2, 2)).items():
        assert len(k.addressable_shards) == 4 // n
        for shard in k.addressable_shards:
            path = folder / f"{name}-{shard.device.id}"
            np.save(f"{path}.npy", np.asarray(shard.data))
            at = [s.indices(size)[:2] for s, size in zip(shard.index, k.shape, strict=True)]
            path.with_suffix(".json").write_text(json.dumps(at))
    jax.distributed.shutdown()


if __name__ == "__main__":
    main()
