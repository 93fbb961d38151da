"""Processes that time one library each, from the outside. `peer.py` is their inside."""

import argparse
import contextlib
import json
import os
import subprocess
import threading
from pathlib import Path
from types import TracebackType
from typing import Any


HERE = Path(__file__).resolve().parent


class WorkerError(RuntimeError):
    """A worker failed; the message is its traceback or what it last wrote."""


class Worker:
    """A process that times one library, as a context manager. See `peer.py`."""

    def __init__(
        self,
        python: str,
        library: str,
        mode: str,
        folder: Path,
        script: str = "peer.py",
    ):
        self.library = library
        # A file, not a pipe: nobody reads it while the worker is busy.
        self.log = folder / f"{library}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [python, str(HERE / script), "--library", library, "--mode", mode],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=_environment(),
            )

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Ends the process: gently, but at once if it is not waiting for a request."""
        del error, trace
        if kind is not None:
            self.process.kill()
        with contextlib.suppress(BrokenPipeError):
            self.process.communicate()

    def ask_within(self, seconds: float, do: str, **arguments: Any) -> dict[str, Any]:
        """Ends the process if it does not answer in time."""
        timer = threading.Timer(seconds, self.process.kill)
        timer.start()
        try:
            return self.ask(do, **arguments)
        finally:
            timer.cancel()

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Sends a request and waits for the answer to it."""
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None and stdout is not None
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps({"do": do, **arguments}), file=stdin, flush=True)
        line = stdout.readline()
        if not line:
            status = self.process.wait()
            tail = self.log.read_text(errors="replace")[-2000:]
            raise WorkerError(f"{self.library} ended with status {status}:\n{tail}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(f"{self.library}:\n{answer['error']}")
        return answer

    def seconds(self, symmetric: bool = False) -> float:
        """Returns the time of one evaluation of the kernel."""
        return self.ask("run", symmetric=symmetric)["seconds"]


def _environment() -> dict[str, str]:
    """Returns the variables that make the two processes alike, and alike each time."""
    paths = [os.environ.get("PYTHONPATH", ""), str(HERE.parent)]
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_X64": "0",
        # A cache would turn the time of compilation into that of a look-up.
        "JAX_ENABLE_COMPILATION_CACHE": "0",
        # TensorFlow, which `neural_tangents` imports, is talkative.
        "TF_CPP_MIN_LOG_LEVEL": "3",
        # The `infinitenet` of this checkout is timed, unless another one is named.
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
    }
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    return environment


def interpreters(args: argparse.Namespace) -> dict[str, str]:
    """Returns the interpreter of each library that is to be timed, ours first."""
    pythons = {"infinitenet": args.python, "neural_tangents": args.peer_python}
    return {library: python for library, python in pythons.items() if python is not None}
