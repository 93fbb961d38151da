"""Figures of kernels, predictions and training. Each function draws on Matplotlib axes.

Matplotlib is an extra, imported when something is drawn: `pip install "infinitenet[plot]"`.
"""

from ._convergence import convergence as convergence
from ._kernels import (
    kernel as kernel,
    learning_curve as learning_curve,
    spectrum as spectrum,
)
from ._phases import phases as phases
from ._predictions import calibration as calibration, predictive as predictive
from ._trace import trace as trace
from ._training import (
    comparison as comparison,
    finite_vs_infinite as finite_vs_infinite,
    losses as losses,
    training as training,
)
