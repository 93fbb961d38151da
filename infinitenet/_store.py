"""Kernel matrices on disk, as groups of Zarr arrays. Nothing in them is executed."""

import contextlib
import errno
import itertools as it
import json
import os
import pathlib
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._covariance import Covariance
from ._entries import Pair
from ._manifest import check_manifest, FORMAT
from ._matrices import Gram
from ._symmetry import mirrored
from ._tiles import cover, Tile, Tiling


# The attribute of the group that tells what it is of.
_MANIFEST = "infinitenet"

# Seconds after which a file that is not yet whole belongs to a process that has died.
_STALE = 3600.0


class StoredGram:
    """Kernel matrices on disk: what [`infinitenet.store_gram`][] writes.

    It is a group of Zarr arrays that any program can read that reads Zarr. Entries which
    are not computed yet are NaN there.

    - `path`: where it is.
    - `manifest`: what it is of, as JSON.
    - `nngp`, `ntk`: arrays of Zarr, of which slices are read when they are asked for.
        `ntk` is `None` if it was not asked for.
    """

    def __init__(self, path: pathlib.Path, manifest: dict[str, Any], mode: str = "r"):
        self.path = path
        self.manifest = manifest
        self.tiling = _tiling(manifest)
        names = ["nngp", "ntk"] if manifest["ntk"] else ["nngp"]
        self._arrays = {name: _open(path, name, manifest, mode) for name in names}

    @property
    def nngp(self) -> Any:
        return self._arrays["nngp"]

    @property
    def ntk(self) -> Any:
        return self._arrays.get("ntk")

    @property
    def is_complete(self) -> bool:
        """Whether all chunks are there. Their checksums are compared by `load`."""
        return next(self._missing(), None) is None

    def load(self) -> Gram:
        """The matrices in memory.

        **Raises:** `ValueError` if entries are missing, or are damaged on the disk.
        """
        missing = len(list(self._missing()))
        again = "Call `infinitenet.store_gram` with the same arguments to compute them."
        if missing:
            raise ValueError(f"The store {self.path} lacks {missing} chunks. {again}")
        dtype = self.manifest["dtype"]
        if jax.dtypes.canonicalize_dtype(dtype) != dtype:
            raise ValueError(
                f"The store {self.path} is of {dtype}, which JAX has not enabled: use "
                '`jax.config.update("jax_enable_x64", True)`, or read slices of its arrays.'
            )
        try:
            nngp, *ntk = (jnp.asarray(array[...]) for array in self._arrays.values())
        except ValueError as error:
            raise ValueError(
                f"The store {self.path} has damaged chunks ({error}) {again}"
            ) from error
        return Gram(nngp, ntk[0] if ntk else None)

    def has(self, tile: Tile) -> bool:
        """Whether a tile is there, all of it, and as it was written."""
        return all(
            _is_whole(self.path / name, array, index)
            for name, array in self._arrays.items()
            for index in self._indices(tile)
        )

    def write(self, tile: Tile, values: Pair) -> None:
        """Writes a tile: others never see a part of a chunk.

        **Raises:** `OSError` if it cannot be written, such as when the disk is full.
        """
        index, *mirror = self._indices(tile)
        try:
            self._write(index, tile, values)
            for other in mirror:
                self._write(other, Tile(tile.column, tile.row), mirrored(values))
        except OSError as error:
            raise OSError(
                error.errno or errno.EIO,
                f"A tile could not be written ({error.strerror or error}). All tiles "
                "written before are good: mend this, such as by making room on the disk, "
                "and call again to go on",
                str(self.path),
            ) from error

    def _write(self, index: tuple[int, int], tile: Tile, values: Pair) -> None:
        # The last tiles begin before their chunks, as all tiles are of the same shape.
        sizes = self.tiling.rows, self.tiling.columns
        begins = [i * size for i, size in zip(index, sizes, strict=True)]
        where = tuple(slice(b, b + size) for b, size in zip(begins, sizes, strict=True))
        part = tuple(slice(b - t, None) for b, t in zip(begins, tile, strict=True))
        for array, cov in zip(self._arrays.values(), values, strict=False):
            assert isinstance(cov, Covariance)
            array[where] = np.asarray(cov.array)[part]

    def _indices(self, tile: Tile) -> list[tuple[int, int]]:
        """The chunks that a tile fills: of a symmetric matrix two, but on its diagonal."""
        i, j = -(-tile.row // self.tiling.rows), -(-tile.column // self.tiling.columns)
        both = self.manifest["symmetric"] and i != j
        return [(i, j), (j, i)] if both else [(i, j)]

    def _missing(self) -> Iterator[pathlib.Path]:
        for name, array in self._arrays.items():
            for index in it.product(*map(range, array.cdata_shape[:2])):
                file = _file(self.path / name, array, index)
                if not file.is_file():
                    yield file


def open_gram(path: str | os.PathLike) -> StoredGram:
    """Kernel matrices that [`infinitenet.store_gram`][] has written, or is writing.

    Neither the network nor the inputs are needed.

    **Arguments:**

    - `path`: the folder that was given as `store`.

    **Returns:** A [`infinitenet.StoredGram`][].

    **Raises:** `ValueError` if it is no such store.
    """
    path = pathlib.Path(path)
    manifest = _read_manifest(path)
    if manifest is None:
        raise ValueError(f"There is no store at {path}: `infinitenet.store_gram` makes it.")
    return StoredGram(path, manifest)


def open_or_create(
    path: str | os.PathLike, manifest: dict[str, Any], tiling: Tiling
) -> StoredGram:
    """A store to write to.

    **Arguments:**

    - `path`: of a folder, which may exist.
    - `manifest`: what it must be of.
    - `tiling`: the tiles of a new one. One that exists has its own.

    **Raises:** `ValueError` if there is something else.
    """
    path = pathlib.Path(path).resolve()
    found = _read_manifest(path)
    if found is None:
        _create(path, manifest | {"tile": [tiling.rows, tiling.columns]})
        found = _read_manifest(path)
        assert found is not None
    check_manifest(path, found, manifest)
    _remove_stale(path)
    return StoredGram(path, found, "r+")


#
# Zarr
#


def _zarr() -> Any:
    try:
        import zarr
    except ImportError as error:
        raise ImportError('Stores need Zarr: pip install "infinitenet[store]".') from error
    return zarr


def _create(path: pathlib.Path, manifest: dict[str, Any]) -> None:
    """Makes an empty store at once. If another process was faster, its store remains."""
    zarr = _zarr()
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        group = zarr.create_group(new, attributes={_MANIFEST: manifest})
        shape, tile = manifest["shape"], manifest["tile"]
        axes = [f"position_{i}" for i in range(len(shape) - 2)]
        for name in ["nngp", "ntk"] if manifest["ntk"] else ["nngp"]:
            group.create_array(
                name,
                shape=shape,
                chunks=(*tile, *shape[2:]),
                dtype=manifest["dtype"],
                fill_value=float("nan"),
                # Digits of kernels are like random ones: compression would save little.
                compressors=zarr.codecs.Crc32cCodec(),
                dimension_names=["x1", "x2", *axes],
            )
        with contextlib.suppress(OSError):
            path.rmdir()  # Only if it is empty. On Windows nothing can be renamed to it.
        os.rename(new, path)
    except OSError:
        if not (path / "zarr.json").is_file():
            raise
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _open(path: pathlib.Path, name: str, manifest: Mapping[str, Any], mode: str) -> Any:
    zarr = _zarr()
    # Otherwise chunks of nothing but NaN would not be written.
    with zarr.config.set({"array.write_empty_chunks": True}):
        try:
            array = zarr.open_array(path / name, mode=mode)
            shape, tile = manifest["shape"], manifest["tile"]
            found = list(array.shape), list(array.chunks), str(array.dtype)
            known = found == (shape, [*tile, *shape[2:]], manifest["dtype"])
        # Damaged bytes may raise anything.
        except Exception as error:
            raise _foreign(path, f"{type(error).__name__}: {error}") from error
    if not known:
        raise _foreign(path, f"its array `{name}` is not what it should be")
    return array


def _file(folder: pathlib.Path, array: Any, index: tuple[int, ...]) -> pathlib.Path:
    """Of a chunk, which holds all positions."""
    rest = (0,) * (array.ndim - len(index))
    return folder / array.metadata.encode_chunk_key((*index, *rest))


def _is_whole(folder: pathlib.Path, array: Any, index: tuple[int, int]) -> bool:
    if not _file(folder, array, index).is_file():
        return False
    try:
        array.blocks[index]
    # Damaged bytes may raise anything. What cannot be read is computed anew.
    except Exception:
        return False
    return True


#
# What is at a path
#


def _foreign(path: pathlib.Path, why: str) -> ValueError:
    return ValueError(
        f"There is something at {path} that is no store of kernels, or a damaged one "
        f"({why}). Give another path, or delete it to begin anew."
    )


def _read_manifest(path: pathlib.Path) -> dict[str, Any] | None:
    """What a store is of, or `None` if there is nothing."""
    if path.is_dir():
        if not any(path.iterdir()):
            return None
    elif path.exists():
        raise _foreign(path, "it is a file")
    else:
        return None
    try:
        manifest = json.loads((path / "zarr.json").read_bytes())["attributes"][_MANIFEST]
        known = manifest["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _foreign(path, f"{type(error).__name__}: {error}") from error
    if not known:
        raise _foreign(path, f"it is of format {manifest['format']}, by another version")
    return manifest


def _tiling(manifest: Mapping[str, Any]) -> Tiling:
    n1, n2, *_ = manifest["shape"]
    return cover(n1, n2, *manifest["tile"], symmetric=manifest["symmetric"])


def _remove_stale(path: pathlib.Path) -> None:
    """Removes what processes that were killed have left of chunks."""
    for file in path.rglob("*.partial"):
        # Another process may write it, or have removed it.
        with contextlib.suppress(OSError):
            if time.time() - file.stat().st_mtime > _STALE:
                file.unlink()
