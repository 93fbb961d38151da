"""Files to go on from: whole or refused, whatever happens to them."""

# What is missing fails a test in any case.
# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false

import json
import os
import pathlib
import signal
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import infinitenet as inn
from infinitenet import _checkpoint as checkpoint


@pytest.fixture
def tree():
    return {
        "float": jr.normal(jr.key(0), (3, 4), jnp.float32),
        "double": jnp.asarray(1 / 3),
        "half": [jnp.full((2, 3), 1.5, jnp.bfloat16), jnp.ones(2, jnp.float16)],
        "eight": jnp.arange(4.0).astype(jnp.float8_e4m3fn),
        "four": jnp.arange(3).astype(jnp.int4),
        "whole": (jnp.arange(3), jnp.array([True, False])),
        "complex": jnp.asarray([1 + 2j]),
        "empty": jnp.zeros((0, 2)),
        "numpy": np.arange(3.0),
        "keys": jr.split(jr.key(1), 2),
        "other keys": jr.key(1, impl="rbg"),
        "nothing": None,
    }


_fingerprint = {"steps": [1, 2], "rate": 0.1, "key": None}


def _identical(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert type(x) is type(y) and x.dtype == y.dtype and x.shape == y.shape
        assert np.array_equal(np.asarray(x == y), np.ones(x.shape, bool))


def test_there_and_back(tree, tmp_path):
    path = tmp_path / "new" / "run.npz"
    checkpoint.save(path, tree, _fingerprint)
    _identical(checkpoint.load(path, tree, _fingerprint), tree)
    # No array needs to exist.
    arrays, numpy = eqx.partition(tree, lambda x: isinstance(x, jax.Array))
    like = eqx.combine(jax.eval_shape(lambda: arrays), numpy)
    _identical(checkpoint.load(str(path), like, _fingerprint), tree)
    # NaN is a number here.
    checkpoint.save(path, jnp.asarray(jnp.nan), {})
    assert jnp.isnan(checkpoint.load(path, jnp.zeros(()), {}))
    assert os.listdir(path.parent) == ["run.npz"]


def test_each_flipped_bit_is_seen(tree, tmp_path):
    path = tmp_path / "run.npz"
    checkpoint.save(path, tree, _fingerprint)
    whole = path.read_bytes()
    seen = 0
    for i in range(0, len(whole), 29):
        bytes_ = bytearray(whole)
        bytes_[i] ^= 1 << (i % 8)
        path.write_bytes(bytes_)
        try:
            # Not all bytes of an archive matter.
            _identical(checkpoint.load(path, tree, _fingerprint), tree)
        except ValueError as error:
            assert "truncated or corrupt" in str(error)
            seen += 1
    assert seen > len(whole) / 29 / 2


def test_truncated(tree, tmp_path):
    path = tmp_path / "run.npz"
    checkpoint.save(path, tree, _fingerprint)
    whole = path.read_bytes()
    for n in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:n])
        with pytest.raises(ValueError, match="run.npz is truncated or corrupt.*Delete"):
            checkpoint.load(path, tree, _fingerprint)
    with pytest.raises(FileNotFoundError):
        checkpoint.load(tmp_path / "none.npz", tree, _fingerprint)


def test_nothing_is_unpickled(tmp_path):
    path = tmp_path / "run.npz"

    class Bomb:
        def __reduce__(self):
            return pytest.fail, ("unpickled",)

    np.savez(path, metadata=np.array([Bomb()], object), allow_pickle=True)
    with pytest.raises(ValueError, match="corrupt"):
        checkpoint.load(path, {}, {})
    with pytest.raises(ValueError, match=r"Only arrays can be saved, but \['a'\]"):
        checkpoint.save(path, {"a": np.array([None])}, {})
    with pytest.raises(ValueError, match="Only arrays"):
        checkpoint.save(path, {"a": "text"}, {})


@pytest.mark.parametrize(
    "change, match",
    [
        ({"rate": 0.2}, "its rate is 0.1, but here it is 0.2. Repeat the arguments"),
        ({"steps": [1, 3]}, r"its steps is \[1, 2\], but here it is \[1, 3\]"),
        ({"loss": "huber"}, 'its loss is absent, but here it is "huber"'),
        ({"steps": list(range(1000))}, r"\[0, 1, 2.* \.\.\. .*998, 999\]"),
    ],
)
def test_another_run(change, match, tmp_path):
    checkpoint.save(tmp_path / "run.npz", jnp.zeros(2), _fingerprint)
    with pytest.raises(ValueError, match=match):
        checkpoint.load(tmp_path / "run.npz", jnp.zeros(2), {**_fingerprint, **change})


def test_other_arrays(tree, tmp_path):
    path = tmp_path / "run.npz"
    checkpoint.save(path, tree, {})
    others = {
        r"its \['float'\] has shape \(3, 4\) .* here it has shape \(2, 4\)": {
            "float": tree["float"][:2]
        },
        "dtype float32, but here .* dtype float64": {"float": jnp.zeros((3, 4))},
        r"of which others are \['more'\]": {"more": jnp.zeros(1)},
        r"key<fry>, but here .* key<rbg>": {"keys": jr.split(jr.key(1, impl="rbg"), 2)},
    }
    for match, other in others.items():
        with pytest.raises(ValueError, match=match):
            checkpoint.load(path, {**tree, **other}, {})


@pytest.mark.parametrize("stage", ["savez", "replace"])
def test_failure_leaves_the_old_one(stage, tree, tmp_path, monkeypatch):
    path = tmp_path / "run.npz"
    checkpoint.save(path, tree, {})

    def fail(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(*{"savez": (np, "savez"), "replace": (os, "replace")}[stage], fail)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(path, jax.tree.map(jnp.zeros_like, tree["float"]), {})
    monkeypatch.undo()
    _identical(checkpoint.load(path, tree, {}), tree)
    assert os.listdir(tmp_path) == ["run.npz"]


def test_fingerprints(tree):
    prints = [
        checkpoint.fingerprint_of(x)
        for x in (
            tree,
            {**tree, "double": jnp.nextafter(tree["double"], 1)},
            {**tree, "float": tree["float"].T},
            {**tree, "nothing": jnp.zeros(0)},
            {**tree, "keys": tree["keys"][::-1]},
            [jnp.zeros(2)],
            (jnp.zeros(2), jnp.zeros(0)),
            [jnp.zeros(2, int)],
            [jnp.zeros((2, 1))],
            [0.0],
            [1.0],
            "text",
        )
    ]
    assert len(set(prints)) == len(prints)
    same = {**tree, "float": jnp.array(tree["float"]), "other": lambda x: x}
    assert checkpoint.fingerprint_of(same) == prints[0]


def test_fingerprints_of_programs():
    x = jax.ShapeDtypeStruct((3,), jnp.float32)
    functions = [
        lambda x: jax.nn.relu(x),  # With a derivative of its own.
        lambda x: jax.nn.gelu(x),
        lambda x: 0.1 * x,
        lambda x: 0.1000001 * x,
        lambda x: jnp.arange(3.0) * x,
        lambda x: jnp.arange(3.0)[::-1] * x,
    ]
    prints = [checkpoint.fingerprint_of_program(fn, x) for fn in functions]
    assert len(set(prints)) == len(prints)
    again = checkpoint.fingerprint_of_program(lambda x: jax.nn.relu(x), x)
    assert again == prints[0]


#
# Training
#


_x = jnp.asarray([[-2.0], [-0.4], [0.7], [2.2]])
_y = jnp.sin(_x)


def _net(nonlinearity):
    return inn.Sequential([inn.Dense(8, 1.5, 0.05), nonlinearity, inn.Dense(1, 1.5, 0.05)])


def _train(path, steps=(0, 3, 20, 60), **options):
    arguments = {
        "ensemble": inn.draw_ensemble(_net(inn.Erf()), jr.key(0), _x[0], 4),
        "x_train": _x,
        "y_train": _y,
        "optimiser": optax.adam(1e-2),
        "steps": steps,
        "x_test": _x[:2] + 0.1,
        "y_test": _y[:2],
        "ntk_drift": _x[1:],
        "batches": inn.Batches(3, jr.key(1)),
        "members_at_once": 2,
        "save_every": 0.0,
        "progress": False,
        "checkpoint": path,
    }
    return inn.train_ensemble(**{**arguments, **options})


def _arrays(path):
    """All that is in a file, and its bytes."""
    with np.load(path) as arrays:
        return {name: arrays[name].tobytes() for name in arrays}


def _place(path):
    """The part and the step that a file is at."""
    with np.load(path) as arrays:
        leaves = json.loads(arrays["metadata"].tobytes())["leaves"]
        index = [place for place, *_ in leaves].index
        return tuple(int(arrays[str(index(f"['{n}']"))]) for n in ("part", "step"))


def _same(a, b):
    a, b = eqx.filter((a, b), eqx.is_array)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "run.npz"
    trained = _train(path)
    _same(trained, _train(None))
    return trained, path


# Hangs in the act of saving, in the second part of the networks; or after a step.
_child = """
import os, sys, time
import jax
jax.config.update("jax_enable_x64", True)
import test_checkpoint

path, where = sys.argv[1:]

def hang(*args):
    print("hangs", flush=True)
    time.sleep(600)

def replace(new, old, replace=os.replace):
    if os.path.exists(old) and test_checkpoint._place(old) > (1, 3):
        hang()
    return replace(new, old)

if where == "saving":
    os.replace = replace
report = lambda done, total: hang() if where == "training" and done > 150 else None
test_checkpoint._train(path, progress=report)
"""


@pytest.mark.parametrize("where", ["saving", "training"])
def test_killed(where, uninterrupted, tmp_path):
    path = tmp_path / "run.npz"
    folders = [pathlib.Path(__file__).parent, pathlib.Path(inn.__file__).parents[1]]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, folders))}
    child = subprocess.Popen(
        [sys.executable, "-c", _child, str(path), where],
        env=env,
        stdout=subprocess.PIPE,
        text=True,
    )
    with child:
        assert child.stdout.readline() == "hangs\n"
        child.send_signal(signal.SIGKILL)
    # Some of the second part is done, but not all.
    assert _place(path)[0] == 1 and 0 < _place(path)[1] < 60
    assert _place(uninterrupted[1]) == (1, 60)
    whole = _arrays(uninterrupted[1])
    assert _arrays(path).keys() == whole.keys()
    calls = []
    trained = _train(path, progress=lambda *call: calls.append(call))
    assert calls[0][0] > 120 and calls[-1] == (240, 240)
    _same(trained, uninterrupted[0])
    assert _arrays(path) == whole


def test_interrupted(uninterrupted, tmp_path):
    path = tmp_path / "run.npz"

    def interrupt(done, total):
        if done > 60:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _train(path, progress=interrupt, save_every=1e9)
    trained = _train(path, save_every=1e9)
    _same(trained, uninterrupted[0])
    assert _arrays(path) == _arrays(uninterrupted[1])


def test_finished(uninterrupted):
    trained, path = uninterrupted
    before, calls = path.stat(), []
    _same(_train(path, progress=lambda *call: calls.append(call)), trained)
    assert not calls and path.stat().st_mtime_ns == before.st_mtime_ns


def test_diverged(tmp_path):
    path = tmp_path / "run.npz"
    for _ in range(2):
        with pytest.raises(inn.TrainingDiverged) as error:
            _train(path, 5000, optimiser=optax.sgd(1e3), batches=None)
        assert error.value.step > 1
        assert error.value.trained.steps[-1] == error.value.step - 1


_changes = {
    "recorded steps": {"steps": [0, 3, 20, 61]},
    "members_at_once": {"members_at_once": 4},
    "keep_outputs": {"keep_outputs": False},
    "batch size": {"batches": None},
    "key of batches": {"batches": inn.Batches(3, jr.key(2))},
    "x_train": {"x_train": _x + 1e-9},
    "y_train": {"y_train": _y + 1e-9},
    "x_test": {"x_test": None, "y_test": None},
    "y_test": {"y_test": -_y[:2]},
    "ntk_drift": {"ntk_drift": _x},
    "network": {"ensemble": inn.draw_ensemble(_net(inn.Relu()), jr.key(0), _x[0], 4)},
    "loss": {"loss": inn.huber(0.5)},
    "optimiser": {"optimiser": optax.adam(1.01e-2)},
    "initial weights": {
        "ensemble": inn.draw_ensemble(_net(inn.Erf()), jr.key(1), _x[0], 4)
    },
    "number of networks": {
        "ensemble": inn.draw_ensemble(_net(inn.Erf()), jr.key(0), _x[0], 2)
    },
}


@pytest.mark.parametrize("name", list(_changes))
def test_other_arguments(name, uninterrupted):
    with pytest.raises(ValueError, match=f"of another run: its {name} is .* but here"):
        _train(uninterrupted[1], **_changes[name])


def test_under_jit(tmp_path):
    with pytest.raises(ValueError, match="`checkpoint` needs arrays of known values"):
        jax.jit(lambda x: _train(tmp_path / "run.npz", x_train=x).train_loss)(_x)
    with pytest.raises(ValueError, match="`checkpoint` needs arrays of known values"):
        jax.jit(lambda r: _train(tmp_path / "a.npz", optimiser=optax.sgd(r)).train_loss)(
            1.0
        )
