"""Neural networks of finite and infinite width."""

from ._covariance import Covariance as Covariance, Pairs as Pairs
from ._gram import gram as gram
from ._kernel import Demand as Demand, Kernel as Kernel
from ._layer import (
    AbstractCombinator as AbstractCombinator,
    AbstractLayer as AbstractLayer,
)
from ._layers.affine import (
    AbstractAffine as AbstractAffine,
    AffineWeights as AffineWeights,
    Conv as Conv,
    Dense as Dense,
)
from ._layers.attention import (
    AttentionWeights as AttentionWeights,
    SelfAttention as SelfAttention,
)
from ._layers.branches import (
    FanInSum as FanInSum,
    FanOut as FanOut,
    Identity as Identity,
    Parallel as Parallel,
    Residual as Residual,
    Sum as Sum,
)
from ._layers.flatten import Flatten as Flatten
from ._layers.pointwise import (
    ABRelu as ABRelu,
    Abs as Abs,
    AbstractPointwise as AbstractPointwise,
    Erf as Erf,
    LeakyRelu as LeakyRelu,
    Relu as Relu,
)
from ._layers.pooling import AvgPool as AvgPool, GlobalAvgPool as GlobalAvgPool
from ._layers.repeat import Repeat as Repeat
from ._layers.sequential import Sequential as Sequential
from ._matrices import Gram as Gram
from ._parameterization import (
    AbstractParameterization as AbstractParameterization,
    NTKParameterization as NTKParameterization,
    StandardParameterization as StandardParameterization,
)
from ._path import LayerError as LayerError
from ._signal import Signal as Signal
from ._weights import AbstractWeights as AbstractWeights, trainable as trainable
