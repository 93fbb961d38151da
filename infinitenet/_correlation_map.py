"""Functions of the correlation of Gaussian variables of one variance, by interpolation."""

from collections.abc import Callable

import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


# Chebyshev nodes, and as many of the polynomials as are unrolled at once. Functions of the
# angle have singularities at distances of one standard deviation's inverse from zero.
_NODES, _BLOCK = 160, 16


def interpolate(
    fn: Callable[[Float[Array, " n"]], tuple[Float[Array, " n"], ...]],
    c: Float[Array, "*s"],
) -> tuple[Float[Array, "*s"], ...]:
    r"""Functions of correlations $c = \cos\theta$, by interpolation in $\theta$.

    They are smooth in $\theta$ on $[0, \pi]$, also if they are not in $c$ at $\pm 1$. `fn`
    is evaluated at nodes only, under `vmap` over correlations only once.
    """
    degrees = np.arange(_NODES)
    nodes = (degrees + 0.5) * np.pi / _NODES
    table = 2 / _NODES * np.cos(degrees[:, None] * nodes)
    table[0] /= 2
    at = jnp.stack(fn(jnp.asarray(np.cos(np.pi / 2 * (1 + np.cos(nodes))), c.dtype)))
    product = lambda a, b: jnp.tensordot(a, b, (-1, -1), precision=lax.Precision.HIGHEST)
    coefficients = product(jnp.asarray(table, c.dtype), at)  # Lowest degree first.
    tiny = jnp.finfo(c.dtype).eps / 4 * jnp.max(jnp.abs(coefficients), 0)
    needed = jnp.max(jnp.where(jnp.abs(coefficients) > tiny[None], degrees[:, None], 0))
    x = jnp.arccos(c) * (2 / np.pi) - 1
    last = needed // _BLOCK

    def clenshaw(i, sums):
        block = lax.dynamic_slice_in_dim(coefficients, _BLOCK * (last - i), _BLOCK)
        out = []
        for j, (b1, b2) in enumerate(sums):
            for n in reversed(range(_BLOCK)):
                b1, b2 = block[n, j] + (2 * x * b1 - b2), b1
            out.append((b1, b2))
        return tuple(out)

    zero = jnp.zeros_like(c)
    sums = lax.fori_loop(0, last + 1, clenshaw, ((zero, zero),) * len(at))
    # The recursion ends with a factor of `x` in place of `2 x`.
    return tuple(b1 - x * b2 for b1, b2 in sums)
