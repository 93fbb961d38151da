"""How long computations tell how far they are."""

import contextlib
import importlib.util
from collections.abc import Callable, Iterator
from typing import TypeAlias


# Called with the work done so far, and all of it.
Progress: TypeAlias = Callable[[int, int], None]

# Seconds before a bar is shown: short work needs none.
_DELAY = 2.0


def _silent(done: int, total: int) -> None:
    del done, total


@contextlib.contextmanager
def reporting(progress: Progress | bool, description: str, unit: str) -> Iterator[Progress]:
    """A function to report progress to: that of the user, or a bar of `tqdm`."""
    if callable(progress):
        yield progress
        return
    if not progress or importlib.util.find_spec("tqdm") is None:
        yield _silent
        return
    from tqdm.auto import tqdm  # An extra: without it there is no bar.

    with tqdm(desc=description, delay=_DELAY, leave=False, unit=f" {unit}") as bar:

        def show(done: int, total: int) -> None:
            if bar.total is None:
                # What was done before tells nothing of the time that is left.
                bar.initial = bar.n = done
            bar.total = total
            bar.update(done - bar.n)

        yield show


# Seconds until a program can be interrupted and shows how far it is, about.
_SECONDS = 1.0


class Pace:
    """How many steps of a program to go until the next look, whatever the machine."""

    def __init__(self, seconds: float = _SECONDS, least: int = 1):
        self.seconds, self.least, self.steps = seconds, least, least

    def heed(self, seconds: float) -> None:
        """Learns from how long so many steps took."""
        if seconds < self.seconds / 2:
            self.steps *= 2
        elif seconds > 2 * self.seconds:
            self.steps = max(self.steps // 2, self.least)
