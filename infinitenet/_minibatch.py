"""Which examples a network is trained on in each step."""

import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
import jax.random as jr
from jax.typing import ArrayLike
from jaxtyping import Array, Int, PRNGKeyArray


class Batches(eqx.Module):
    """Mini-batches: in each epoch all examples, in an order of its own for each network.

    What is left at the end of an epoch, fewer examples than `size`, is dropped: other ones
    in each epoch.

    !!! example

        ```python no-run
        batches = inn.Batches(32, key)
        inn.train_ensemble(ensemble, x, y, optax.sgd(0.1), 1000, batches=batches)
        batches.indices(len(x), member=0, step=7)  # What network 0 was given in step 7.
        ```

    **Arguments:**

    - `size`: the number of examples of a batch, at least 1.
    - `key`: a random key.

    **Raises:** `ValueError` if `size` is below 1.
    """

    size: int = eqx.field(static=True)
    key: PRNGKeyArray

    def __check_init__(self):
        if self.size < 1:
            raise ValueError(f"`size` must be at least 1 example, but it is {self.size}.")

    def steps_per_epoch(self, n: int) -> int:
        """The number of batches of `n` examples.

        **Raises:** `ValueError` if there are fewer than `size` examples.
        """
        if self.size > n:
            raise ValueError(
                f"`size` of the batches must be at most the number of examples, {n}, but "
                f"it is {self.size}."
            )
        return n // self.size

    def order(self, n: int, member: ArrayLike, epoch: ArrayLike) -> Int[Array, " n"]:
        """The order of `n` examples that a network sees in an epoch, both from 0 on."""
        key = jr.fold_in(jr.fold_in(self.key, member), epoch)
        return jr.permutation(key, n)

    def indices(self, n: int, member: ArrayLike, step: ArrayLike) -> Int[Array, " size"]:
        """Which of `n` examples a network is given in a step, both from 0 on.

        It depends on nothing else: not on how networks are trained together, nor on
        interruptions.

        **Raises:** `ValueError` if there are fewer than `size` examples.
        """
        length = self.steps_per_epoch(n)
        epoch, place = jnp.divmod(jnp.asarray(step), length)
        order = self.order(n, member, epoch)
        return lax.dynamic_slice_in_dim(order, place * self.size, self.size)
