"""Errors that say which layer of a network they come from."""

import contextlib
import contextvars
from collections.abc import Iterator


_path: contextvars.ContextVar[tuple[str, ...]] = contextvars.ContextVar("path", default=())


@contextlib.contextmanager
def inside(name: str) -> Iterator[None]:
    """Names what is being looked at, such as `layers[3]`, within its parent."""
    token = _path.set((*_path.get(), name))
    try:
        yield
    finally:
        _path.reset(token)


class LayerError(ValueError):
    """A network that cannot work: says which layer, why, and the remedy."""

    def __init__(self, layer: object, message: str):
        name = type(layer).__name__
        path = ".".join(_path.get())
        super().__init__(f"{path} ({name}): {message}" if path else f"{name}: {message}")
