"""What all results are written in: Markdown."""

import contextlib
import datetime
import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def spread(values: list[float]) -> str:
    """Returns the median and, in brackets, the range."""
    median = statistics.median(values)
    return f"{median:.2f} ({min(values):.2f}–{max(values):.2f})"


def markdown(rows: Iterable[Iterable[str]], columns: Sequence[str]) -> list[str]:
    """Returns the lines of a table."""
    lines = ["| " + " | ".join(row) + " |" for row in ([*columns], *rows)]
    return [lines[0], "|" + " --- |" * len(columns), *lines[1:]]


def machine(infos: dict[str, dict[str, Any]], runs: str) -> list[str]:
    """Returns the lines that say what was measured, and where."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(x for x in cpuinfo if x.startswith("model name")).split(": ")[1]
    lines = [
        f"- Date: {datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
        f"- Processor: {model}, {os.cpu_count()} cores, {platform.system()}",
        f"- Runs: {runs}",
    ]
    for library, info in infos.items():
        lines.append(
            f"- `{library}` {info['library']}: Python {info['python']}, "
            f"JAX {info['jax']}, {info['device']}, {info['dtype']}"
        )
    return lines


def publish(text: str, output: Path | None) -> None:
    """Prints the results, and writes them to a file if there is one."""
    print(text, end="")
    if output is not None:
        output.write_text(text)
