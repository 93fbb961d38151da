"""Attention between all positions of an input."""

import functools as ft
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float

from .._covariance import Covariance, Pairs
from .._hyperparameters import (
    check_scale,
    check_width,
    POSITIVE,
    to_optional_scalar,
    to_scalar,
)
from .._inputs import Inputs, Positions
from .._kernel import CovarianceMap, Demand, Kernel
from .._layer import AbstractLayer, uninitialised
from .._path import LayerError
from .._tokens import attend, distances_between, MECHANISMS, root_of, weighted
from .._weights import AbstractWeights


_matmul = ft.partial(jnp.matmul, precision=lax.Precision.HIGHEST)


class AttentionWeights(AbstractWeights):
    """Weights of all heads, the output projection, biases and positional embeddings.

    There are no weights of queries if they share those of the keys.
    """

    query: Float[Array, "heads channels n_key"] | None
    key: Float[Array, "heads channels n_key"]
    value: Float[Array, "heads value_channels n_val"]
    out: Float[Array, "heads n_val width"]
    b: Float[Array, " width"] | None
    embedding: Float[Array, "n size"] | None


class SelfAttention(AbstractLayer):
    r"""Attention of every position to every other, by many heads.

    All positions of an input are tokens $x_a$ of $N$ channels. Head $h$ gives

    $$
    z_h(a) = \sum_b \zeta\bigl(G_h(a, \cdot)\bigr)_b\, \frac{\sigma_V}{\sqrt N} V_h x_b,
    \qquad
    G_h(a, b) = \frac{\sigma_Q \sigma_K}{N s}\, (Q_h x_a) \cdot (K_h x_b),
    $$

    where $s$ is the size of the keys if `linear_scaling`, which also ties queries to keys,
    $Q_h = K_h$; otherwise it is the root of that size. The output of $H$ heads, of values
    of size $N_V$, is $\sigma_O / \sqrt{H N_V} \sum_h O_h z_h(a) + \sigma_b b$. Queries and
    keys, and perhaps values, are of tokens with an embedding of their position, which is
    trained and common to all inputs.

    At an infinite number of heads, and of channels of each, let $k$ be the covariance of
    tokens, and $\tilde k$ that of tokens with embeddings of correlations $R$ and standard
    deviation $\sigma_P$: $k + \sigma_P^2 R$ if they are added, the mean of $k$ and
    $\sigma_P^2 R$, weighted by channels, if they are concatenated. With linear scaling

    $$
    k'_{12} = \sigma_O^2 \sigma_V^2\, G_1 k_{12} G_2^\top + \sigma_b^2,
    \qquad G_i = \zeta(\sigma_Q \sigma_K \tilde k_{ii}):
    $$

    $\tilde k_{12}$ replaces $k_{12}$ if `val_pos_emb`. Attention $G_i$ is not random, and
    training does not change it. Otherwise, and for $\zeta(G) = G$ only,

    $$
    k'_{12} = \sigma_O^2 \sigma_V^2 \sigma_Q^2 \sigma_K^2\,
        \langle \tilde k_{12}, k_{12} \rangle\, \tilde k_{12} + \sigma_b^2.
    $$

    ??? cite "Reference"
        Hron, Bahri, Sohl-Dickstein & Novak, Infinite attention: NNGP and NTK for deep
        attention networks, ICML 2020.
    """

    width: int = eqx.field(static=True)
    n_chan_key: int = eqx.field(static=True)
    n_chan_val: int = eqx.field(static=True)
    n_heads: int = eqx.field(static=True)
    linear_scaling: bool = eqx.field(default=True, static=True)
    W_key_std: Float[Array, ""] = eqx.field(
        default=1.0, converter=to_scalar, metadata=POSITIVE
    )
    W_value_std: Float[Array, ""] = eqx.field(
        default=1.0, converter=to_scalar, metadata=POSITIVE
    )
    W_query_std: Float[Array, ""] = eqx.field(
        default=1.0, converter=to_scalar, metadata=POSITIVE
    )
    W_out_std: Float[Array, ""] = eqx.field(
        default=1.0, converter=to_scalar, metadata=POSITIVE
    )
    b_std: Float[Array, ""] | None = eqx.field(
        default=None, converter=to_optional_scalar, metadata=POSITIVE
    )
    attention_mechanism: Literal["SOFTMAX", "IDENTITY", "ABS", "RELU"] = eqx.field(
        default="SOFTMAX", static=True
    )
    pos_emb_type: Literal["NONE", "SUM", "CONCAT"] = eqx.field(default="NONE", static=True)
    pos_emb_p_norm: float | int = eqx.field(default=2, static=True)
    pos_emb_decay_fn: Callable[[Any], Any] | None = eqx.field(default=None, static=True)
    n_chan_pos_emb: int | None = eqx.field(default=None, static=True)
    W_pos_emb_std: Float[Array, ""] = eqx.field(
        default=1.0, converter=to_scalar, metadata=POSITIVE
    )
    val_pos_emb: bool = eqx.field(default=False, static=True)
    weights: AttentionWeights | None = eqx.field(default=None, kw_only=True)

    def __check_init__(self):
        for name in ("width", "n_chan_key", "n_chan_val", "n_heads"):
            check_width(self, name, getattr(self, name))
        for part in ("W_key", "W_value", "W_query", "W_out", "b", "W_pos_emb"):
            check_scale(self, f"{part}_std", getattr(self, f"{part}_std"))
        if self.n_chan_pos_emb is not None:
            check_width(self, "n_chan_pos_emb", self.n_chan_pos_emb)
        if not self.pos_emb_p_norm > 0:
            raise LayerError(
                self, f"`pos_emb_p_norm` must be positive, but is {self.pos_emb_p_norm}."
            )
        self._check_choice("attention_mechanism", tuple(MECHANISMS))
        self._check_choice("pos_emb_type", ("NONE", "SUM", "CONCAT"))

    def _check_choice(self, name: str, choices: tuple[str, ...]) -> None:
        value = getattr(self, name)
        if value not in choices:
            raise LayerError(self, f"`{name}` must be one of {choices}, but is {value!r}.")

    def _sizes(self, channels: int) -> tuple[int, int]:
        """Channels of embeddings, and of tokens with embeddings, for those of tokens."""
        if self.pos_emb_type == "NONE":
            return 0, channels
        if self.pos_emb_type == "SUM":
            return channels, channels
        size = channels if self.n_chan_pos_emb is None else self.n_chan_pos_emb
        return size, channels + size

    def _correlations(self, spatial: Sequence[int]) -> Float[np.ndarray, "n n"]:
        """Correlations between the embeddings of all positions."""
        if self.pos_emb_decay_fn is None:
            return np.eye(math.prod(spatial))
        distances = distances_between(spatial, self.pos_emb_p_norm)
        # Depends on shapes alone: a constant to whatever is compiled.
        with jax.ensure_compile_time_eval():
            out = np.asarray(self.pos_emb_decay_fn(distances), float)
        if out.shape != distances.shape or not np.all(np.isfinite(out)):
            raise LayerError(
                self,
                "`pos_emb_decay_fn` must turn an array of distances, some of them zero, "
                "into an array of as many finite correlations, such as `jnp.exp(-d)`.",
            )
        return out

    def check(self, signal):
        if not signal.spatial:
            raise LayerError(
                self,
                "must be given positions to attend to: inputs of shape `(*spatial, "
                f"channels)`, but the shape is {signal.shape}. Put it before `Flatten` or "
                "`GlobalAvgPool`, or use `Dense` if there is a single position.",
            )
        given, channels = self.n_chan_pos_emb, signal.channels
        if self.pos_emb_type == "SUM" and given not in (None, channels):
            raise LayerError(
                self,
                f"adds embeddings to inputs of {channels} channels, so `n_chan_pos_emb` "
                f'must not be {given}. Leave it out, or use `pos_emb_type="CONCAT"`.',
            )
        return signal.affine((*signal.spatial, self.width))

    def draw(self, key, signal):
        keys = iter(jr.split(key, 6))
        normal = lambda *shape: jr.normal(next(keys), shape, signal.dtype)
        n_in, tokens = signal.channels, math.prod(signal.spatial)
        size, n_embedded = self._sizes(n_in)
        heads, n_key, n_val = self.n_heads, self.n_chan_key, self.n_chan_val
        new = AttentionWeights(
            query=None if self.linear_scaling else normal(heads, n_embedded, n_key),
            key=normal(heads, n_embedded, n_key),
            value=normal(heads, n_embedded if self.val_pos_emb else n_in, n_val),
            out=normal(heads, n_val, self.width),
            b=None if self.b_std is None else normal(self.width),
            embedding=normal(tokens, size) if size else None,
        )
        return eqx.tree_at(lambda s: s.weights, self, new, is_leaf=lambda x: x is None)

    def __call__(self, x, *, key=None):
        return self.carry(Inputs(x), key=key).array

    def carry(self, inputs, *, key=None):
        del key
        out = self._attention(inputs.array, inputs.positions.missing)
        return inputs.through(out, self.mask)

    def _attention(
        self, x: Float[Array, "*spatial channels"], missing: Bool[Array, "*spatial"] | None
    ) -> Float[Array, "*spatial width"]:
        W = self.weights
        if W is None:
            raise uninitialised(self)
        tokens = x.reshape(-1, x.shape[-1])
        embedded = self._embed(tokens, W.embedding, x.shape[:-1])
        values = embedded if self.val_pos_emb else tokens
        queries = W.key if W.query is None else W.query
        size = self.n_chan_key if self.linear_scaling else math.sqrt(self.n_chan_key)
        scale = (self.W_query_std * self.W_key_std).astype(x.dtype)
        q = jnp.einsum("ac,hck->hak", embedded, queries)
        k = jnp.einsum("bc,hck->hbk", embedded, W.key)
        scores = scale / (embedded.shape[-1] * size) * jnp.einsum("hak,hbk->hab", q, k)
        G = attend(self.attention_mechanism, scores, missing)
        scale = (self.W_out_std * self.W_value_std).astype(x.dtype)
        v = jnp.einsum("bc,hcv->hbv", values, W.value)
        out = jnp.einsum("hab,hbv,hvw->aw", G, v, W.out)
        fan_ins = values.shape[-1] * self.n_heads * self.n_chan_val
        out = scale / math.sqrt(fan_ins) * out
        if self.b_std is not None and W.b is not None:
            out = out + self.b_std.astype(x.dtype) * W.b[None]
        return out.reshape(*x.shape[:-1], self.width)

    def _embed(
        self, x: Float[Array, "n c"], e: Array | None, spatial: Sequence[int]
    ) -> Float[Array, "n c_embedded"]:
        """Tokens with the embeddings of their positions."""
        if e is None:
            return x
        if len(e) != len(x):
            raise LayerError(
                self,
                f"has embeddings of {len(e)} positions, but its input has {len(x)}. Draw "
                "others by `net.init` for inputs of this shape.",
            )
        if self.pos_emb_decay_fn is not None:
            try:
                root = root_of(self._correlations(spatial))
            except ValueError as error:
                raise LayerError(self, str(error)) from None
            e = jnp.asarray(root, x.dtype) @ e
        e = self.W_pos_emb_std.astype(x.dtype) * e
        return x + e if self.pos_emb_type == "SUM" else jnp.concatenate([x, e], axis=1)

    def requires(self, demand):
        # With linear scaling, what is attended to depends on the marginals.
        marginal = self.linear_scaling or demand.marginal
        return Demand(Pairs.ALL, Pairs.ALL if marginal else Pairs.NONE)

    def infinite(self, kernel):
        return self._linear(kernel) if self.linear_scaling else self._square_root(kernel)

    @property
    def is_linear(self) -> bool:
        """Whether outputs are sums of inputs, times what each input alone attends to."""
        embedded_values = self.val_pos_emb and self.pos_emb_type != "NONE"
        return self.linear_scaling and not embedded_values

    def summed(self, kernel: Kernel, weights: float) -> Kernel:
        """The kernel of a sum of outputs, given that of this sum of what they attend to.

        For attention that `is_linear`, and `weights` is the sum of those of all outputs.
        """

        def attention(k11, k12, k22, value, out, embedding, bias):
            del k11, k22, embedding
            return k12.with_array(value * out * k12.array + weights**2 * bias)

        at = lambda p1, p2: attention
        return self._propagate(kernel, at, self.W_value_std, self.W_out_std)

    def attended(
        self, kernel: Kernel, k: Covariance, positions: Positions
    ) -> Float[Array, "n n"]:
        """What an input, of covariance `k` with itself, attends to with linear scaling."""
        scale = (self.W_query_std * self.W_key_std).astype(kernel.dtype)
        # Not one of the variances of a kernel: training does not move it.
        embedding = (self.W_pos_emb_std**2).astype(kernel.dtype)
        scores = scale * self._embedded(kernel)(k, embedding)
        return attend(self.attention_mechanism, scores, positions.missing)

    def _linear(self, kernel: Kernel) -> Kernel:
        embedded, attended = self._embedded(kernel), ft.partial(self.attended, kernel)

        def attention(p1, p2, k11, k12, k22, value, out, embedding, bias):
            G1, G2 = attended(k11, p1), attended(k22, p2)
            k = embedded(k12, embedding) if self.val_pos_emb else _tokens(k12)
            k = value * out * _matmul(_matmul(G1, k), G2.T) + bias
            return Covariance(k.reshape(k12.array.shape), Pairs.ALL)

        at = lambda p1, p2: ft.partial(attention, p1, p2)
        return self._propagate(kernel, at, self.W_value_std, self.W_out_std)

    def _square_root(self, kernel: Kernel) -> Kernel:
        if self.attention_mechanism != "IDENTITY":
            raise LayerError(
                self,
                "has no kernel in closed form for `linear_scaling=False` with "
                f'`attention_mechanism="{self.attention_mechanism}"`: use '
                '`linear_scaling=True`, or `attention_mechanism="IDENTITY"`.',
            )
        embedded = self._embedded(kernel)

        def attention(p1, p2, k11, k12, k22, query, key, value, out, embedding, bias):
            del k11, k22
            k = embedded(k12, embedding)
            if p1.missing is not None and p2.missing is not None:
                # Embeddings are of all positions.
                either = p1.missing.reshape(-1, 1) | p2.missing.reshape(1, -1)
                k = jnp.where(either, 0, k)
            values = k if self.val_pos_emb else _tokens(k12)
            total = jnp.vdot(k, values, precision=lax.Precision.HIGHEST)
            k = query * key * value * out * total * k + bias
            return Covariance(k.reshape(k12.array.shape), Pairs.ALL)

        at = lambda p1, p2: ft.partial(attention, p1, p2)
        stds = self.W_query_std, self.W_key_std, self.W_value_std, self.W_out_std
        return self._propagate(kernel, at, *stds)

    def _embedded(
        self, kernel: Kernel
    ) -> Callable[[Covariance, Float[Array, ""]], Float[Array, "n n"]]:
        """Covariances of tokens with embeddings, given the variance of the latter."""
        channels = kernel.channels
        if channels is None:
            if self.pos_emb_type == "CONCAT" and self.n_chan_pos_emb is not None:
                raise LayerError(
                    self,
                    "must know the number of its input channels, to compare it to "
                    "`n_chan_pos_emb`. Leave that out for as many of both, or put a layer "
                    "of weights such as `Dense` before.",
                )
            channels = 1  # Any number: embeddings have as many.
        size, total = self._sizes(channels)
        if size == 0:
            return lambda k, variance: _tokens(k)
        share, correlations = channels / total, self._correlations(kernel.nngp.spatial)
        R = jnp.asarray(size / total * correlations, kernel.dtype)
        return lambda k, variance: weighted(share, _tokens(k), variance, R)

    def _propagate(
        self,
        kernel: Kernel,
        fn_at: Callable[[Positions, Positions], CovarianceMap],
        *stds: Float[Array, ""],
    ) -> Kernel:
        """Weights of each group are standard normal, so variances are rates as well."""
        bias = jnp.zeros(()) if self.b_std is None else self.b_std**2
        variances = [*(std**2 for std in stds), self.W_pos_emb_std**2, bias]
        return kernel.propagate_at(
            fn_at, variances, variances, needs=Pairs.ALL, channels=self.width
        )


def _tokens(k: Covariance) -> Float[Array, "n n"]:
    size = math.prod(k.spatial)
    return k.array.reshape(size, size)


SelfAttention.__init__.__doc__ = """**Arguments:**

- `width`: number of output channels. It does not matter to the infinite network.
- `n_chan_key`, `n_chan_val`: number of channels of the keys and queries, and of the values
    of each head. They do not matter to the infinite network.
- `n_heads`: number of heads. It does not matter to the infinite network.
- `linear_scaling`: whether scores are divided by `n_chan_key`, and queries share the
    weights of the keys. Otherwise they are divided by its square root, and the infinite
    network needs `attention_mechanism="IDENTITY"`.
- `W_key_std`, `W_value_std`, `W_query_std`, `W_out_std`: standard deviations of the
    weights, times the square root of the fan-in. Scalars, differentiable.
- `b_std`: standard deviation of the biases, in units of the output; scalar,
    differentiable. `None` for no biases.
- `attention_mechanism`: `"SOFTMAX"`, or what is applied to each score: `"IDENTITY"`,
    `"ABS"` or `"RELU"`.
- `pos_emb_type`: `"NONE"` for no positional embeddings, `"SUM"` for ones which are added
    to inputs, `"CONCAT"` for ones which are further channels of them.
- `pos_emb_p_norm`: the power `p` of the distance `sum(abs(a - b) ** p)` between positions
    `a` and `b`, where the sum is over spatial dimensions.
- `pos_emb_decay_fn`: a function from an array of distances to the correlations of the
    embeddings, which must be a positive semi-definite matrix, such as
    `lambda d: jnp.exp(-d)`. Embeddings are independent by default.
- `n_chan_pos_emb`: number of channels of embeddings that are further channels. By default
    as many as the input has.
- `W_pos_emb_std`: standard deviation of the embeddings. Scalar, differentiable.
- `val_pos_emb`: whether values too are of inputs with embeddings, besides keys and queries.

**Raises:** `ValueError` for arguments that make no sense.
"""
