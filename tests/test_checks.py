"""Each message names the argument, what is wrong with it, and the remedy."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infinitenet._checks import (
    are_finite,
    check_cross_kernel,
    check_diag_reg,
    check_finite,
    check_floating,
    check_kernel,
    check_not_negative,
    check_shape,
    check_targets,
    check_test_kernel,
    check_times,
    guard,
    indefinite,
)


_f64 = np.dtype(np.float64)
_k = np.array([[2.0, 1.0], [1.0, 2.0]])


def _with(k, index, value):
    k = k.copy()
    k[index] = value
    return k


_bad = {
    "integers": (
        lambda: check_kernel("k", np.eye(2, dtype=int)),
        ["`k`", "int64", "floating-point inputs"],
    ),
    "complex": (lambda: check_kernel("k", _k + 0j), ["`k`", "complex128"]),
    "half precision": (
        lambda: check_kernel("k", jnp.eye(2, dtype=jnp.bfloat16)),
        ["`k`", "bfloat16", "float32"],
    ),
    "not square": (
        lambda: check_kernel("k", np.ones((2, 3))),
        ["`k`", "square", "(2, 3)"],
    ),
    "positions": (
        lambda: check_kernel("k", np.ones((2, 2, 4, 4))),
        ["`k`", "(2, 2, 4, 4)", "Flatten", "vmap"],
    ),
    "nan in kernel": (
        lambda: check_kernel("k", _with(_k, (0, 1), np.nan)),
        ["`k`", "1 entries", "of 4", "nan at index (0, 1)", "inputs of the network"],
    ),
    "inf in kernel": (
        lambda: check_kernel("k", np.full((2, 2), np.inf)),
        ["`k`", "4 entries", "inf at index (0, 0)", "overflows"],
    ),
    "not symmetric": (
        lambda: check_kernel("k", _with(_k, (0, 1), 1.5)),
        ["`k`", "symmetric", "up to 5.0e-01", "up to 2.0e+00", "two different sets"],
    ),
    "transposed": (
        lambda: check_cross_kernel("k", np.ones((3, 2)), 3, _f64),
        ["`k`", "(n_test, 3)", "(3, 2)", "transposed"],
    ),
    "one test example": (
        lambda: check_cross_kernel("k", np.ones(3), 3, _f64),
        ["`k`", "(n_test, 3)", "`k[None, :]`"],
    ),
    "cross kernel of positions": (
        lambda: check_cross_kernel("k", np.ones((1, 3, 2, 2)), 3, _f64),
        ["`k`", "(1, 3, 2, 2)", "Flatten"],
    ),
    "other training set": (
        lambda: check_cross_kernel("k", np.ones((1, 4)), 3, _f64),
        ["`k`", "(n_test, 3)", "(1, 4)"],
    ),
    "nan in cross kernel": (
        lambda: check_cross_kernel("k", np.full((1, 3), np.nan), 3, _f64),
        ["`k`", "NaN", "inputs of the network"],
    ),
    "test kernel of other size": (
        lambda: check_test_kernel("k", _k, 3, _f64),
        ["`k`", "(3, 3)", "`k_test_train`", "(2, 2)"],
    ),
    "labels": (
        lambda: check_targets("y", np.array([0, 1]), 2, _f64),
        ["`y`", "int64", "`jax.nn.one_hot(y, n_classes)`", "`y.astype(float)`"],
    ),
    "too few targets": (
        lambda: check_targets("y", np.ones((3, 1)), 2, _f64),
        ["`y`", "(2, *outputs)", "(3, 1)"],
    ),
    "scalar target": (
        lambda: check_targets("y", np.array(1.0), 1, _f64),
        ["`y`", "(1, *outputs)", "()"],
    ),
    "no targets": (lambda: check_targets("y", np.ones((2, 0)), 2, _f64), ["(2, 0)"]),
    "nan in targets": (
        lambda: check_targets("y", np.array([1.0, np.nan]), 2, _f64),
        ["`y`", "nan at index (1,)", "Leave these examples out"],
    ),
    "negative time": (
        lambda: check_times(np.array([1.0, -2.0]), _f64),
        ["`t`", "-2.0", "learning rate times number of steps"],
    ),
    "time is nan": (lambda: check_times(np.nan, _f64), ["`t`", "nan"]),
    "negative diag_reg": (
        lambda: check_diag_reg(-0.5, 2, _f64),
        ["`diag_reg`", "-0.5", "diagonal"],
    ),
    "infinite diag_reg": (lambda: check_diag_reg(np.inf, 2, _f64), ["`diag_reg`", "inf"]),
    "diag_reg for each example": (
        lambda: check_diag_reg(np.ones(3), 2, _f64),
        ["`diag_reg`", "(3,)", "(2,)", "kernel's diagonal"],
    ),
    "negative": (
        lambda: check_not_negative("m", -1, _f64, "Do."),
        ["`m`", "-1.0", "Do."],
    ),
    "shape": (
        lambda: check_shape("x", jnp.ones(2), (3,), "as told"),
        ["`x`", "(3,)", "as told", "(2,)"],
    ),
    "scalar": (
        lambda: check_finite("x", jnp.array(jnp.nan), "Do."),
        ["`x`", "it is nan", "Do."],
    ),
}


@pytest.mark.parametrize("name", _bad)
def test_messages(name):
    call, parts = _bad[name]
    with pytest.raises(ValueError) as info:
        call()
    for part in parts:
        assert part in str(info.value)


def test_good_arguments_pass():
    assert eqx.tree_equal(check_kernel("k", _k), jnp.asarray(_k))
    assert check_cross_kernel("k", np.ones((0, 2)), 2, _f64).shape == (0, 2)
    assert check_test_kernel("k", np.ones((0, 0)), 0, _f64).shape == (0, 0)
    y = check_targets("y", np.ones(2, np.float32), 2, _f64)
    assert y.dtype == _f64
    assert check_times(None, _f64) == jnp.inf
    assert check_times(3, _f64) == 3
    assert check_floating("x", 1.0, "").shape == ()


def test_symmetric_up_to_rounding():
    # Half of the digits may differ; the mean is returned.
    out = check_kernel("k", _with(_k, (0, 1), 1 + 1e-9))
    np.testing.assert_allclose(out[0, 1], 1 + 5e-10, rtol=1e-15)
    np.testing.assert_array_equal(out, out.T)


@pytest.mark.parametrize("transform", [eqx.filter_jit, jax.vmap, "grad"])
def test_values_are_checked_under_transformations(transform):
    if transform == "grad":
        run = lambda x: jax.grad(lambda x: jnp.sum(check_finite("x", x, "Do.")))(x[0])
    else:
        run = transform(lambda x: check_finite("x", x, "Do."))
    run(jnp.ones((1, 3)))
    with pytest.raises(RuntimeError, match="`x` has entries which are NaN.*Do."):
        jax.block_until_ready(run(jnp.array([[1.0, jnp.nan, 1.0]])))


def test_constants_are_checked_while_tracing():
    x = jnp.array([1.0, jnp.nan])
    with pytest.raises(ValueError, match="`x` has 1 entries"):
        jax.jit(lambda y: y + check_finite("x", x, "Do."))(1.0)


def test_guard():
    args = (lambda x: x > 1, lambda x: f"{x} is large", "large")
    assert guard(jnp.array(0.5), *args) == 0.5
    with pytest.raises(ValueError, match="1.5 is large"):
        guard(jnp.array(1.5), *args)


@pytest.mark.parametrize("absolute", [False, True])
def test_advice_mends(absolute):
    k = jnp.array([[2.0, 3.0], [3.0, 2.0]])
    text = indefinite("k", k, "It is bad.")
    assert "`k`: It is bad. Its eigenvalues are from -1.0e+00 to 5.0e+00." in text
    pattern = r"by (\S+) with `absolute=True`" if absolute else r"or by (\S+), rel"
    found = re.search(pattern, text)
    assert found is not None
    reg = float(found[1]) * (1 if absolute else 2.0)
    assert np.linalg.eigvalsh(k + reg * np.eye(2))[0] > 0
    assert reg < 10
    assert "diag_reg" in indefinite("k", None, "It is bad.")
    # Nothing relative to the mean of a diagonal of zeros.
    assert "relative" not in indefinite("k", -jnp.eye(2), "It is bad.")


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(), (3,), (0, 4), (300, 300)])
def test_are_finite(shape, dtype):
    """Of arrays on a CPU without a program, of others with one."""
    x = np.ones(shape, dtype)
    assert are_finite([x, jnp.asarray(x)]) and are_finite([])
    for value in (np.nan, np.inf, -np.inf) if x.size else ():
        # The last one.
        x.reshape(-1)[-1] = value
        assert not are_finite([x])
        assert not are_finite([jnp.ones(2), jnp.asarray(x)])
        with pytest.raises(ValueError, match="1 entries"):
            check_finite("x", jnp.asarray(x), "Do.")
