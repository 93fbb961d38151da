"""Every Python block of the documentation runs.

The blocks of a file run in order, in one namespace, in one new process and an empty
directory. A block that must not run opens with ```` ```python no-run ````; in pages of
the website, whose Markdown knows no bare words there, ```` ```{.python .no-run} ````.
"""

import os
import pathlib
import re
import subprocess
import sys

import pytest

import infinitenet


_root = pathlib.Path(__file__).resolve().parents[1]
_files = [_root / "README.md", _root / "CONTRIBUTING.md"]
_files += sorted((_root / "docs").rglob("*.md"))
_fence = re.compile(r"(?P<indent>\s*)(?P<ticks>`{3,})\s*(?P<info>.*?)\s*$")


def _python(markdown: str) -> str:
    """Blanks all lines but those of the blocks that run, so line numbers stay true."""
    out, fence, runs = [], None, False
    for line in markdown.splitlines():
        match = _fence.match(line)
        text = ""
        if fence is None and match is not None:
            fence, words = match, set(re.findall(r"[\w-]+", match["info"]))
            runs = "python" in words and "no-run" not in words
        elif fence is not None and line.strip() == fence["ticks"]:
            fence = None
        elif fence is not None and runs:
            text = line.removeprefix(fence["indent"])
        out.append(text)
    return "\n".join(out)


def test_python_of_markdown():
    markdown = "a\n```python\nx = 1\n```\n```python no-run\nno\n```\n```text\nno\n```\n"
    markdown += "- b\n\n    ```python\n    y = 2\n    ```\n````md\n```python\nno\n```\n````"
    lines = _python(markdown).splitlines()
    assert {i: line for i, line in enumerate(lines) if line} == {
        2: "x = 1",
        13: "y = 2",
    }


_runnable = [f for f in _files if f.exists() and _python(f.read_text("utf-8")).strip()]


@pytest.mark.parametrize("file", _runnable, ids=lambda f: str(f.relative_to(_root)))
def test_blocks_run(file, tmp_path):
    script = tmp_path / f"{file.stem}.py"
    script.write_text(_python(file.read_text("utf-8")), "utf-8")
    cwd = tmp_path / "cwd"
    cwd.mkdir()
    # The same `infinitenet` as this process: installed, or the one of the repository.
    package = pathlib.Path(infinitenet.__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-P", str(script)],
        cwd=cwd,
        env=os.environ | {"MPLBACKEND": "Agg", "PYTHONPATH": str(package)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (
        f"A block of {file.relative_to(_root)} failed; the line number is the file's.\n"
        f"{done.stdout}\n{done.stderr}"
    )
