"""Files to go on from: whole or refused, whatever happens to them."""

import os

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

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
