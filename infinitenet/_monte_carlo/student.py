"""Student's t distribution: of means of few samples, in units of their standard error."""

import numpy as np
from scipy.special import stdtr, stdtrit


def check_level(level: float) -> float:
    """**Raises:** `ValueError` if it is no probability between 0 and 1."""
    if not 0 < level < 1:
        raise ValueError(
            f"`level` must be a probability between 0 and 1, such as 0.95, not {level!r}."
        )
    return float(level)


def half_width(level: float, n_samples: int) -> float:
    """Half of an interval that covers the expectation with a probability of `level`."""
    return float(stdtrit(n_samples - 1, (1 + check_level(level)) / 2))


def tail(z: float, n_samples: int) -> float:
    """The probability to be further than `z` from the expectation, to either side."""
    return float(2 * stdtr(n_samples - 1, -np.abs(z)))
