"""What a layer is."""

import abc
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from ._checks import check_finite
from ._compiler import apart
from ._custom_types import Arrays
from ._hyperparameters import check_scalars
from ._inputs import alike, Inputs, unwrap, wrap
from ._kernel import Demand, Demands, Kernel, Kernels
from ._path import LayerError
from ._show import show
from ._signal import Examples, Signal, signal_of, Signals
from ._tracing import is_traced
from ._weights import AbstractModel, without_weights


_NOT_FINITE = "Replace missing values before computing kernels."


class AbstractLayer(AbstractModel):
    """A random function of one example, and its limit at infinite width.

    - [`init`][infinitenet.AbstractLayer.init] draws its weights.
    - [`__call__`][infinitenet.AbstractLayer.__call__] evaluates it then.
    - [`infinite`][infinitenet.AbstractLayer.infinite] maps kernels. It works before `init`
        as well as after it.

    Batches are made by `jax.vmap`. To write a layer, define `__call__` and `infinite`, and
    whatever of `check`, `requires`, `mask`, `carry` and `draw` differs from a layer
    without weights that may be given anything and keeps its positions.
    """

    @abc.abstractmethod
    def __call__(self, x: Any, *, key: PRNGKeyArray | None = None) -> Any:
        """Evaluates the layer.

        **Arguments:**

        - `x`: one example, of shape `(*spatial, channels)`.
        - `key`: a random key, for those layers that need one.
        """

    @abc.abstractmethod
    def infinite(self, kernel: Any) -> Any:
        """The kernel of the outputs on a pair of inputs, given the kernel of these."""

    def check(self, signal: Any) -> Any:
        """Refuses a signal that the layer cannot take, and tells what it passes on."""
        return signal

    def requires(self, demand: Any) -> Any:
        """What the layer must be given, for its outputs to meet a demand."""
        return demand

    def step(self, signal: Any) -> tuple[int, ...] | None:
        """How far apart inputs are whose outputs are neighbours, along each dimension.

        For layers whose covariances of outputs at one distance depend on those of inputs at
        one distance, and on variances: then networks with pooling take less memory, as
        distances are evaluated a few at a time. `None`, the default, for all others.
        """
        del signal
        return None

    def mask(self, missing: Bool[Array, "*spatial"]) -> Bool[Array, "*out"]:
        """Which positions of the outputs are missing, given those of the inputs."""
        return missing

    def carry(self, inputs: Any, *, key: PRNGKeyArray | None = None) -> Any:
        """Evaluates the layer on [`infinitenet.Inputs`][], with their mask and graph."""
        return inputs.through(self(inputs.array, key=key), self.mask)

    def as_pointwise(self) -> Any:
        """This layer as an [`infinitenet.AbstractPointwise`][], `None` if it is not one.

        A sum or product of such branches is one nonlinearity.
        """
        return None

    def draw(self, key: PRNGKeyArray, signal: Any) -> Any:
        """This layer with weights for inputs such as this one."""
        del key, signal
        return self

    def init(self, key: PRNGKeyArray, x: Examples) -> Any:
        """Draws a finite network.

        **Arguments:**

        - `key`: a random key.
        - `x`: an example (not a batch) or a `jax.ShapeDtypeStruct` of one. Only its shape
            and its dtype matter: numbers of input channels are inferred, and weights are
            of the same dtype.

        **Returns:**

        This network with weights. Draw an ensemble by `eqx.filter_vmap` over keys.

        **Raises:** `ValueError`, naming the layer, if it cannot take such an input.
        """
        signal = signal_of(x)
        check(self, signal)
        return self.draw(key, signal)

    def kernel(
        self,
        x1: Arrays,
        x2: Arrays | None = None,
        *,
        ntk: bool = True,
        demand: Demand = Demand(),
        variance: Float[Array, ""] | None = None,
    ) -> Any:
        """The kernel of the infinitely wide network on one pair of inputs.

        Kernel matrices are better computed by [`infinitenet.gram`][]; they are what
        `jax.vmap` over this gives.

        **Arguments:**

        - `x1`, `x2`: one example each, of shape `(*spatial, channels)`. Without `x2`, the
            pair is `x1` with itself.
        - `ntk`: whether to compute the NTK too.
        - `demand`: what is wanted of the result: by default, if positions remain, only
            covariances between equal positions, and no marginals.
        - `variance`: of inputs without positions that all have the same `x . x / channels`,
            such as normalised ones. Then networks with nonlinearities that need
            quadrature, such as `Tanh`, are much faster.

        **Returns:** a [`infinitenet.Kernel`][], with `.nngp.array` and `.ntk.array`.

        **Raises:** `ValueError`, naming the layer, if the network cannot work.
        """
        first, second, signal = to_pair(x1, x2)
        check(self, signal)
        for name, x in (("x1", first), ("x2", second)):
            for array in jax.tree.leaves(unwrap(x)):
                if not is_traced(array):
                    check_finite(name, jnp.asarray(array), _NOT_FINITE)
        demands = self.requires(demand)
        if variance is None:
            kernel = kernel_of_inputs(first, second, demands, ntk=ntk)
        else:
            kernel = _of_inputs(first, second, demands, ntk, variance)
        out = infinite(without_weights(self), kernel)
        is_kernel = lambda node: isinstance(node, Kernel)
        return jax.tree.map(lambda k: k.restrict(demand), out, is_leaf=is_kernel)

    def __repr__(self) -> str:
        return show(self)


def uninitialised(layer: AbstractLayer) -> LayerError:
    """For layers which are called before `init`."""
    return LayerError(
        layer,
        "has no weights yet: draw them by `net = net.init(key, x)` with one example `x`, "
        "then call `net(x)`.",
    )


class AbstractCombinator(AbstractLayer):
    """A layer made of layers, or one that takes a tuple of inputs.

    It defines `carry`, in which masks and graphs go along, and not `__call__`.
    """

    def __call__(self, x, *, key=None):
        return unwrap(self.carry(wrap(x), key=key))


def check(layer: AbstractLayer, signal: Signals) -> Any:
    """`layer.check(signal)`, where simple layers take single arrays only."""
    check_scalars(layer)
    if isinstance(layer, AbstractCombinator):
        return layer.check(signal)
    if not isinstance(signal, Signal):
        raise LayerError(
            layer,
            f"takes a single array, but its input is a tuple of {len(signal)}. Put it "
            "into `Parallel`, or `FanInSum` before it.",
        )
    out = layer.check(signal)
    if signal.masked and isinstance(out, Signal):
        missing = jax.ShapeDtypeStruct(signal.spatial, bool)
        if jax.eval_shape(layer.mask, missing).shape != out.spatial:
            raise LayerError(
                layer,
                "cannot be given inputs with a mask, as it does not tell which of its "
                "outputs are missing: define its method `mask`.",
            )
    return out


def to_layer(value: object, name: str = "layer") -> AbstractLayer:
    """Refuses what is not a layer."""
    if not isinstance(value, AbstractLayer):
        raise ValueError(
            f"`{name}` must be a layer, but it is {value!r}. (Is it a class, without the "
            "`()` that makes a layer of it?)"
        )
    return value


def to_layers(values: Any) -> tuple[AbstractLayer, ...]:
    """Any iterable of layers, such as a generator."""
    if isinstance(values, AbstractLayer):
        raise ValueError("`layers` must be a list of layers, but it is a single layer.")
    return tuple(to_layer(v, f"layers[{i}]") for i, v in enumerate(values))


def split_key(key: PRNGKeyArray | None, n: int) -> list:
    """A key for each of `n` layers, if there is one."""
    return [None] * n if key is None else list(jax.random.split(key, n))


def to_pair(
    x1: Arrays, x2: Arrays | None
) -> tuple[PyTree[Inputs], PyTree[Inputs] | None, Signals]:
    """Two inputs, which must be alike, and the signal of both."""
    first, signal = wrap(x1), signal_of(x1)
    if x2 is None:
        return first, None, signal
    second, other = wrap(x2), signal_of(x2)
    if jax.tree.structure(signal) != jax.tree.structure(other):
        raise ValueError("`x1` and `x2` must be tuples of the same structure.")
    shapes = [jax.tree.map(np.shape, unwrap(x)) for x in (first, second)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            "`x1` and `x2` must be examples of the same shape, but these are of "
            f"shapes {shapes[0]} and {shapes[1]}."
        )
    for a, b in zip(jax.tree.leaves(signal), jax.tree.leaves(other), strict=True):
        if (a.pattern is None) != (b.pattern is None):
            raise ValueError("`x1` and `x2` must both have a `pattern`, or neither.")
    first, second = alike(first, second)
    return first, second, signal_of(first)


def kernel_of_inputs(
    x1: PyTree[Inputs], x2: PyTree[Inputs] | None, demand: Demands, *, ntk: bool
) -> Kernels:
    """The kernel that a network starts from."""
    if isinstance(x1, tuple):
        others = (None,) * len(x1) if x2 is None else x2
        each = (demand,) * len(x1) if isinstance(demand, Demand) else demand
        zipped = zip(x1, others, each, strict=True)
        return tuple(kernel_of_inputs(a, b, d, ntk=ntk) for a, b, d in zipped)
    return _of_inputs(x1, x2, demand, ntk, None)


_of_inputs = eqx.filter_jit(
    lambda x1, x2, demand, ntk, variance: Kernel.of_inputs(
        x1, x2, demand, ntk=ntk, variance=variance
    )
)


def infinite(layer: AbstractLayer, kernel: Kernels) -> Any:
    """`layer.infinite(kernel)`, where each simple layer is compiled by itself.

    XLA on CPU would fuse the layers of a network, such that a convolution evaluates
    whatever comes before it once for each of its taps. It also takes less time to compile,
    as equal layers are compiled once.
    """
    if isinstance(layer, AbstractCombinator):
        return layer.infinite(kernel)
    return infinite_all((layer,), kernel)


def infinite_all(layers: Sequence[AbstractLayer], kernel: Kernels) -> Any:
    """The same of simple layers one after the other, which are compiled together."""
    return _infinite(tuple(layers), kernel) if layers else kernel


@apart
def _infinite(layers: tuple[AbstractLayer, ...], kernel: Kernels) -> Any:
    for layer in layers:
        kernel = layer.infinite(kernel)
    return kernel
