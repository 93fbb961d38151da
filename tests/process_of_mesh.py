"""One of several processes that compute kernel matrices together: see `test_mesh.py`.

`python process_of_mesh.py PORT PROCESSES ID FOLDER` saves the parts that it has of the
matrices of `mesh_checks.py`; with `COUNT NETWORKS...` behind, of those of `equality.py`.
"""

import pathlib
import sys

import jax


if __name__ == "__main__":
    port, n, process = map(int, sys.argv[1:4])
    folder = pathlib.Path(sys.argv[4])
    jax.config.update("jax_num_cpu_devices", 4 // n)
    jax.distributed.initialize(f"localhost:{port}", n, process, initialization_timeout=60)

import equality
import mesh_checks
from processes import save_parts


def _matrices():
    args = sys.argv[5:]
    if args:
        return equality.matrices(int(args[0]), args[1:])
    return mesh_checks.matrices(mesh_checks.mesh(2, 2)).items()


def main():
    assert jax.process_count() == n and jax.local_device_count() == 4 // n
    for name, k in _matrices():
        assert len(k.addressable_shards) == 4 // n
        save_parts(folder, name, k)
    jax.distributed.shutdown()


if __name__ == "__main__":
    main()
