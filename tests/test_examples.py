"""The examples run."""

import os
import pathlib
import re
import subprocess
import sys

import infinitenet


_examples = pathlib.Path(__file__).resolve().parents[1] / "examples"


def _run(name, tmp_path):
    """What an example prints, which draws a figure of its own name and nothing else."""
    # The same `infinitenet` as this process: installed, or the one of the repository.
    package = pathlib.Path(infinitenet.__file__).resolve().parents[1]
    output = tmp_path / "new" / "folder"
    done = subprocess.run(
        [
            sys.executable,
            "-P",
            str(_examples / f"{name}.py"),
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
    figure = (output / f"{name}.png").read_bytes()
    assert figure.startswith(b"\x89PNG") and len(figure) > 10_000
    assert [p.name for p in tmp_path.rglob("*.*")] == [f"{name}.png"]
    assert "nan" not in done.stdout
    return done.stdout


def test_quickstart(tmp_path):
    out = _run("quickstart", tmp_path)
    # The z-scores at eight times and of all, and the accuracies at two sizes.
    assert len(re.findall(r"^ +[\d.]+( +[-\d.]+){5}$", out, re.MULTILINE)) == 8
    rows = re.findall(r"^.*(?:SVM|NNGP|NTK)(?: +\d+\.\d){2}$", out, re.MULTILINE)
    assert len(rows) == 7


def test_phase_diagram(tmp_path):
    out = _run("phase_diagram", tmp_path)
    # The edge of chaos, and the correlation in a deep network.
    assert re.search(r"^Erf +0\.8862( +\d\.\d{4}){3}$", out, re.MULTILINE)
    assert "0.091175 in the limit" in out


def test_learn_hyperparameters(tmp_path):
    out = _run("learn_hyperparameters", tmp_path)
    # Before, after, and the baseline, of three data sets.
    rows = re.findall(r"^  (.*[a-z]) +(-?[\d.]+)(?: +-?[\d.]+){2}$", out, re.MULTILINE)
    assert len(rows) == 9
    likelihoods = [float(likelihood) for _, likelihood in rows]
    assert all(a < b for a, b in zip(likelihoods[::3], likelihoods[1::3], strict=True))


def test_monte_carlo_convergence(tmp_path):
    out = _run("monte_carlo_convergence", tmp_path)
    # Two widths of each kernel, which are more exact with more networks.
    rows = re.findall(
        r"^ +[18]((?: +\d\.\d{4}){3}) +-\d\.\d\d +\d\.\d{4}$", out, re.MULTILINE
    )
    assert len(rows) == 4
    assert all(float(row.split()[2]) < float(row.split()[0]) for row in rows)


def test_weight_space(tmp_path):
    out = _run("weight_space", tmp_path)
    number = r"[\d.]+(?:e-\d+|e\+\d+)?"
    rows = re.findall(rf"^ +\d+((?: +{number}){{5}})$", out, re.MULTILINE)
    rows = [[float(x) for x in row.split()] for row in rows]
    assert len(rows) == 12
    # Weights and functions agree: to rounding, or as far as steps are small.
    squared, entropy = rows[:6], rows[6:]
    assert all(row[1] == row[2] and row[4] < 1e-12 for row in squared)
    assert all(abs(row[1] - row[2]) < 0.1 for row in entropy)
    # Losses decrease, and the network is not its linearisation.
    for each in (squared, entropy):
        assert all(
            last < first for first, last in zip(each[0][:3], each[-1][:3], strict=True)
        )
    assert squared[-1][3] > 1e-3


def test_empirical_ntk(tmp_path):
    out = _run("empirical_ntk", tmp_path)
    errors = re.findall(r"differs by (\S+)$", out, re.MULTILINE)
    assert len(errors) == 6 and all(float(error) < 1e-5 for error in errors)
    rows = re.findall(r"^(?:before|after) training +([\d.]+) +[\d.]+ +[\d.]+$", out, re.M)
    assert len(rows) == 2 and float(rows[0]) < float(rows[1])


def test_finite_vs_infinite(tmp_path):
    out = _run("finite_vs_infinite", tmp_path)
    rows = re.findall(r"^ +\d+((?: +\d+\.\d+){6})$", out, re.MULTILINE)
    rows = [[float(x) for x in row.split()] for row in rows]
    assert len(rows) == 2
    # Kernels of wider networks move less.
    assert rows[1][-1] < rows[0][-1]
