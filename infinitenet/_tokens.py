"""Tokens: how they attend to each other, and the embeddings of their positions."""

import functools as ft
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ._compiler import apart


# From scores of pairs of tokens, of which the last axis are those attended to.
MECHANISMS: dict[str, Callable[[Array], Array]] = {
    "SOFTMAX": ft.partial(jax.nn.softmax, axis=-1),
    "IDENTITY": lambda scores: scores,
    "ABS": jnp.abs,
    "RELU": jax.nn.relu,
}


def attend(
    mechanism: str, scores: Float[Array, "... n n"], missing: Bool[Array, "*spatial"] | None
) -> Float[Array, "... n n"]:
    """How much each token attends to each other, and not at all to missing ones."""
    if missing is None:
        return MECHANISMS[mechanism](scores)
    present = jnp.broadcast_to(~missing.reshape(-1), scores.shape)
    if mechanism == "SOFTMAX":
        # Not minus infinity, of which rows without any tokens would be NaN.
        scores = jnp.where(present, scores, jnp.finfo(scores.dtype).min)
    return jnp.where(present, MECHANISMS[mechanism](scores), 0)


#
# Positional embeddings
#


def distances_between(
    spatial: Sequence[int], p_norm: float | int
) -> Float[np.ndarray, "n n"]:
    """Between all positions, to the power of `p_norm`."""
    positions = np.indices(spatial, float).reshape(len(spatial), -1)
    differences = np.abs(positions[:, :, None] - positions[:, None, :])
    return np.sum(differences**p_norm, axis=0)


# Relative to the largest eigenvalue: well above rounding in float32.
_INDEFINITE = 1e-5


def root_of(correlations: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    """What turns independent embeddings into correlated ones.

    Slow decays give singular matrices, for which there is no Cholesky factor in floating
    point. Embeddings by any other root are of the same distribution.

    **Raises:** `ValueError` if there is no root.
    """
    values, vectors = np.linalg.eigh(correlations)
    if not values[0] >= -_INDEFINITE * values[-1]:
        raise ValueError(
            "`pos_emb_decay_fn` must give correlations, a positive semi-definite matrix, "
            f"but that of {len(values)} positions has the eigenvalue {values[0]:.3g}. "
            "Exponential decay does, for any rate and `pos_emb_p_norm` of 1 or 2."
        )
    return vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T


# By itself, as XLA may reshape `x` after the product in programs for several devices, and
# rounds otherwise then.
weighted = apart(lambda a, x, b, y: a * x + b * y)
