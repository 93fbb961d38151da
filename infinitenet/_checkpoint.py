"""Files to go on from: arrays, and what they are of. Nothing in them is executed."""

import hashlib
import io
import json
import os
import pathlib
import re
import uuid
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import PyTree


_FORMAT = 1
_METADATA = "metadata"


class _Leaf(NamedTuple):
    """What is told of an array, to be stored as JSON.

    - `place`: in the pytree.
    - `key`: the generator of random keys, if it is an array of these.
    """

    place: str
    shape: tuple[int, ...]
    dtype: str
    key: str | None


def save(
    path: str | os.PathLike, tree: PyTree[Any], fingerprint: Mapping[str, Any]
) -> None:
    """Replaces a file at once: whatever happens, it is the old one or the new one.

    **Arguments:**

    - `path`: of the file. Missing folders are made.
    - `tree`: a pytree of arrays of any dtype, random keys included.
    - `fingerprint`: JSON values, that tell of which run it is.

    **Raises:** `ValueError` for what is no array.
    """
    path = pathlib.Path(path)
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    metadata = {
        "format": _FORMAT,
        "fingerprint": fingerprint,
        "leaves": [_describe(place, leaf) for place, leaf in leaves],
    }
    arrays = {str(i): _to_stored(leaf) for i, (_, leaf) in enumerate(leaves)}
    arrays[_METADATA] = np.frombuffer(json.dumps(metadata).encode(), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, as files can only be renamed within a file system.
    new = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(new, "wb") as file:
            np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _sync_folder(folder: pathlib.Path) -> None:
    """Renames are only on disk when the folder is. Windows has no such thing."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def load(
    path: str | os.PathLike, like: PyTree[Any], fingerprint: Mapping[str, Any]
) -> PyTree[Any]:
    """What `save` has saved.

    **Arguments:**

    - `path`: of the file.
    - `like`: a pytree of arrays, or of `jax.ShapeDtypeStruct`s, as the saved one.
    - `fingerprint`: that of the run which is to go on.

    **Returns:** a pytree as `like`, of arrays of JAX, or of NumPy where `like` has these.

    **Raises:** `FileNotFoundError`; `ValueError` if the file is of another run, with what
        differs, or if it is truncated or corrupt.
    """
    metadata, stored = _read(pathlib.Path(path))
    _check_fingerprint(path, metadata["fingerprint"], fingerprint)
    places, structure = jax.tree_util.tree_flatten_with_path(like)
    found = [
        _Leaf(place, tuple(shape), *rest) for place, shape, *rest in metadata["leaves"]
    ]
    _check_leaves(path, found, [_describe(place, leaf) for place, leaf in places])
    leaves = [
        _from_stored(array, leaf, each)
        for array, leaf, (_, each) in zip(stored, found, places, strict=True)
    ]
    return jax.tree.unflatten(structure, leaves)


def shapes_in(path: str | os.PathLike) -> dict[str, tuple[int, ...]]:
    """The shapes of all arrays of a file, by their places in the pytree.

    **Raises:** as `load`.
    """
    metadata, _ = _read(pathlib.Path(path))
    return {place: tuple(shape) for place, shape, *_ in metadata["leaves"]}


#
# Arrays
#


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _describe(place: Any, leaf: Any) -> _Leaf:
    name = jax.tree_util.keystr(place)
    if not hasattr(leaf, "dtype") or leaf.dtype == object:
        raise ValueError(f"Only arrays can be saved, but {name} is {leaf!r}.")
    key = None
    if _is_key(leaf) and isinstance(leaf, jax.Array):
        key = str(jr.key_impl(leaf))
    return _Leaf(name, tuple(leaf.shape), str(leaf.dtype), key)


def _to_numpy(leaf: Any) -> np.ndarray:
    return np.asarray(jr.key_data(leaf) if _is_key(leaf) else leaf)


def _to_stored(leaf: Any) -> np.ndarray:
    out = _to_numpy(leaf)
    # Numbers that NumPy does not know, such as bfloat16: it would store them as `void`.
    return np.frombuffer(out.tobytes(), np.uint8) if out.dtype.isbuiltin == 2 else out


def _from_stored(stored: np.ndarray, leaf: _Leaf, like: Any) -> Any:
    if leaf.key is not None:
        return jr.wrap_key_data(jnp.asarray(stored), impl=leaf.key)
    dtype = np.dtype(like.dtype)
    if dtype.isbuiltin == 2:
        stored = np.frombuffer(stored.tobytes(), dtype).reshape(leaf.shape)
    return stored if isinstance(like, np.ndarray | np.generic) else jnp.asarray(stored)


#
# Reading, and what may be wrong
#


def _read(path: pathlib.Path) -> tuple[dict[str, Any], list[np.ndarray]]:
    with open(path, "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                metadata = json.loads(_member(archive, _METADATA).tobytes())
                count = len(metadata["leaves"])
                stored = [_member(archive, str(i)) for i in range(count)]
            known = metadata["format"] == _FORMAT
        # Damaged bytes may raise anything.
        except Exception as error:
            raise ValueError(
                f"The file {path} is truncated or corrupt, or no checkpoint "
                f"({type(error).__name__}: {error}). Delete it to begin anew."
            ) from error
    if not known:
        raise ValueError(
            f"The file {path} is a checkpoint of format {metadata['format']}, by another "
            "version of infinitenet. Use that version, or delete it to begin anew."
        )
    return metadata, stored


def _member(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    # All bytes first: only then is their check sum compared.
    data = io.BytesIO(archive.read(f"{name}.npy"))
    return np.lib.format.read_array(data, allow_pickle=False)


_REMEDY = (
    "Repeat the arguments of that run to go on with it, or give another path to begin a "
    "new one."
)


def _check_fingerprint(
    path: str | os.PathLike, found: Mapping[str, Any], expected: Mapping[str, Any]
) -> None:
    as_text = lambda x: json.dumps(x, sort_keys=True)
    names = [*expected, *(name for name in found if name not in expected)]
    absent = object()
    for name in names:
        ours, theirs = expected.get(name, absent), found.get(name, absent)
        if ours is absent or theirs is absent or as_text(ours) != as_text(theirs):
            show = lambda x: "absent" if x is absent else _shortened(as_text(x))
            raise ValueError(
                f"The checkpoint {path} is of another run: its {name} is {show(theirs)}, "
                f"but here it is {show(ours)}. {_REMEDY}"
            )


def _shortened(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:60]} ... {text[-30:]}"


def _check_leaves(
    path: str | os.PathLike, found: list[_Leaf], expected: list[_Leaf]
) -> None:
    text = f"The checkpoint {path} is of another run"
    theirs, ours = ([leaf.place for leaf in leaves] for leaves in (found, expected))
    if theirs != ours:
        other = sorted(set(theirs) ^ set(ours))[:3]
        raise ValueError(
            f"{text}: it has {len(theirs)} arrays and {len(ours)} are needed, of which "
            f"others are {', '.join(other)}. {_REMEDY}"
        )
    for a, b in zip(found, expected, strict=True):
        # That of an abstract key is not known.
        if a[:3] != b[:3] or (b.key is not None and a.key != b.key):
            raise ValueError(
                f"{text}: its {a.place} has shape {a.shape} and dtype {a.dtype}, but "
                f"here it has shape {b.shape} and dtype {b.dtype}. {_REMEDY}"
            )


#
# What a run is
#


def fingerprint_of(tree: PyTree[Any]) -> str:
    """A short hash of the arrays and numbers of a pytree, and of their places.

    Shapes, dtypes and bytes count. Functions do not, as their names tell little of them:
    for these there is `fingerprint_of_program`.
    """
    out = hashlib.sha256()
    for place, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if isinstance(leaf, bool | int | float | complex | str):
            leaf = np.asarray(leaf)
        if isinstance(leaf, jax.Array | np.ndarray | np.generic):
            out.update(f"{_describe(place, leaf)}".encode())
            out.update(_to_numpy(leaf).tobytes())
    return out.hexdigest()[:16]


_ADDRESS = re.compile(r" at 0x[0-9a-f]+|0x[0-9a-f]{6,}")


def fingerprint_of_program(fn: Callable[..., Any], *args: PyTree[Any]) -> str:
    """A short hash of what a function does to arguments of such shapes.

    It is the same in another process, and may differ between versions of JAX.

    **Arguments:**

    - `fn`: a function that JAX can trace.
    - `args`: pytrees of arrays, or of `jax.ShapeDtypeStruct`s.
    """
    program = jax.make_jaxpr(fn)(*args)
    text = _ADDRESS.sub("", str(program))
    return fingerprint_of((text, [x for x in program.consts if hasattr(x, "dtype")]))
