"""Which device computes which tile of a matrix."""

import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from infinitenet._schedule import balanced_half, own_blocks
from infinitenet._tiles import Cost


_sizes = st.integers(1, 40)
_shapes = st.tuples(st.integers(1, 5), st.integers(1, 5))
_areas = st.integers(1, 100)


def _count(schedule, n1, n2):
    """How often each entry is computed, and by which device last."""
    covered, owner = np.zeros((n1, n2), int), np.full((n1, n2), -1)
    for starts in schedule.starts:
        for device, (row, column) in enumerate(starts):
            assert row >= 0 and column >= 0
            tile = np.s_[row : row + schedule.rows, column : column + schedule.columns]
            covered[tile] += 1
            owner[tile] = device
    return covered, owner


@hypothesis.given(n1=_sizes, n2=_sizes, shape=_shapes, area=_areas)
def test_own_blocks(n1, n2, shape, area):
    """Every entry is computed, and by no device but the one that holds it."""
    schedule = own_blocks(n1, n2, shape, area)
    assert schedule.rows * schedule.columns <= area
    assert schedule.starts.shape[1:] == (math.prod(shape), 2)
    rows, columns = -(-n1 // shape[0]), -(-n2 // shape[1])
    covered, owner = _count(schedule, rows * shape[0], columns * shape[1])
    assert np.all(covered > 0)
    own = np.arange(math.prod(shape)).reshape(shape)
    assert np.array_equal(owner, own.repeat(rows, 0).repeat(columns, 1))
    assert 0 <= schedule.idle_share(n1, n2, symmetric=False) < 1


@hypothesis.given(n=_sizes, shape=_shapes, area=_areas)
def test_balanced_half(n, shape, area):
    """Every entry is computed, or the one on the other side of the diagonal."""
    schedule = balanced_half(n, shape, area, Cost(beginning=area // 8))
    assert schedule.rows == schedule.columns and schedule.rows**2 <= area
    assert schedule.starts.shape[1:] == (math.prod(shape), 2)
    row, column = schedule.starts[..., 0], schedule.starts[..., 1]
    assert np.all(row <= column) and np.all(column + schedule.columns <= n)
    covered, _ = _count(schedule, n, n)
    assert np.all(covered + covered.T > 0)
    assert 0 <= schedule.idle_share(n, n, symmetric=True) < 1


@hypothesis.given(n=st.integers(1, 200), shape=_shapes, area=_areas)
def test_all_devices_have_work(n, shape, area):
    """The same number of tiles, of which less than one for each is there twice."""
    starts = balanced_half(n, shape, area, Cost(beginning=area // 8)).starts
    tiles = {tuple(tile) for tile in starts.reshape(-1, 2)}
    devices = math.prod(shape)
    assert starts.shape[0] * devices - len(tiles) < devices


@pytest.mark.parametrize("devices", [(4, 2), (8, 8), (16, 16)])
@pytest.mark.parametrize("area", [8**2, 32**2])
def test_little_is_idle(devices, area):
    n = 8192
    half = balanced_half(n, devices, area, Cost(beginning=area // 8))
    all_ = own_blocks(n, n, devices, area)
    assert half.idle_share(n, n, symmetric=True) < 0.05
    assert all_.idle_share(n, n, symmetric=False) < 0.01


def test_small_matrices_are_spread():
    """By tiles smaller than there is room for."""
    n, devices = 64, (4, 2)
    schedule = balanced_half(n, devices, n**2)
    assert len(schedule.starts) >= 4
    assert schedule.idle_share(n, n, symmetric=True) < 0.3


def test_longest():
    """Tiles have no more rows or columns than there is memory for."""
    cost = Cost(longest=3)
    for schedule in (
        own_blocks(20, 20, (2, 1), 100, cost),
        balanced_half(20, (2, 1), 100, cost),
    ):
        assert max(schedule.rows, schedule.columns) <= 3
