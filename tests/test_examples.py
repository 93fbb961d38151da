"""The examples run."""

import os
import pathlib
import re
import subprocess
import sys

import infinitenet


_examples = pathlib.Path(__file__).resolve().parents[1] / "examples"


def test_quickstart(tmp_path):
    # The same `infinitenet` as this process: installed, or the one of the repository.
    package = pathlib.Path(infinitenet.__file__).resolve().parents[1]
    output = tmp_path / "new" / "folder"
    done = subprocess.run(
        [
            sys.executable,
            "-P",
            str(_examples / "quickstart.py"),
            "--quick",
            "--output",
            str(output),
        ],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(package)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    figure = (output / "quickstart.png").read_bytes()
    assert figure.startswith(b"\x89PNG") and len(figure) > 10_000
    assert [p.name for p in tmp_path.rglob("*.*")] == ["quickstart.png"]
    # The z-scores at eight times and of all, and the accuracies at two sizes.
    assert len(re.findall(r"^ +[\d.]+( +[-\d.]+){5}$", done.stdout, re.MULTILINE)) == 8
    rows = re.findall(r"^.*(?:SVM|NNGP|NTK)(?: +\d+\.\d){2}$", done.stdout, re.MULTILINE)
    assert len(rows) == 7
    assert "nan" not in done.stdout
