"""Neural networks of finite and infinite width."""

from . import plot as plot
from ._affine import AbstractAffine as AbstractAffine, AffineWeights as AffineWeights
from ._architectures import (
    ConvOnly as ConvOnly,
    FullyConnected as FullyConnected,
    LeNet as LeNet,
    Myrtle as Myrtle,
    TransformerEncoderBlock as TransformerEncoderBlock,
    WideResNet as WideResNet,
)
from ._beam import beam_gram as beam_gram
from ._comparison import (
    compare as compare,
    Comparison as Comparison,
    expected_loss as expected_loss,
)
from ._covariance import Covariance as Covariance, Pairs as Pairs
from ._empirical.kernels import (
    empirical_kernel as empirical_kernel,
    empirical_nngp as empirical_nngp,
    empirical_ntk as empirical_ntk,
)
from ._empirical.methods import (
    AbstractNTKMethod as AbstractNTKMethod,
    JacobianContraction as JacobianContraction,
    NTKVectorProducts as NTKVectorProducts,
    StructuredDerivatives as StructuredDerivatives,
)
from ._empirical.model import (
    BatchFunction as BatchFunction,
    CoupledFunction as CoupledFunction,
)
from ._empirical.taylor import (
    linearize as linearize,
    taylor_expand as taylor_expand,
    TaylorFunction as TaylorFunction,
    TaylorModel as TaylorModel,
)
from ._empirical.vector_product import (
    ntk_vector_product as ntk_vector_product,
    NTKVectorProduct as NTKVectorProduct,
)
from ._ensemble import (
    draw_ensemble as draw_ensemble,
    train_ensemble as train_ensemble,
)
from ._flow_time import flow_time as flow_time
from ._gram import gram as gram, gram_diagonal as gram_diagonal
from ._inference.calibration import (
    accuracy as accuracy,
    brier_score as brier_score,
    calibration_curve as calibration_curve,
    CalibrationCurve as CalibrationCurve,
    expected_calibration_error as expected_calibration_error,
    negative_log_likelihood as negative_log_likelihood,
)
from ._inference.diagnostics import (
    diagnose as diagnose,
    KernelDiagnostics as KernelDiagnostics,
)
from ._inference.dirichlet import (
    dirichlet_classifier as dirichlet_classifier,
    DirichletClassifier as DirichletClassifier,
    DirichletPrediction as DirichletPrediction,
)
from ._inference.dynamics import FlowState as FlowState
from ._inference.fit import Fit as Fit, fit as fit, FitStatus as FitStatus
from ._inference.flow import (
    gradient_flow as gradient_flow,
    GradientFlow as GradientFlow,
    max_learning_rate as max_learning_rate,
)
from ._inference.gp import condition as condition, Posterior as Posterior
from ._inference.hyperparameters import hyperparameters as hyperparameters
from ._inference.infinite_ensemble import (
    AbstractTrained as AbstractTrained,
    AllLayers as AllLayers,
    infinite_ensemble as infinite_ensemble,
    InfiniteEnsemble as InfiniteEnsemble,
    LastLayer as LastLayer,
)
from ._inference.integration import (
    loss_below as loss_below,
    steady_state as steady_state,
)
from ._inference.learning_curve import (
    learning_curve as learning_curve,
    learning_curve_of_spectrum as learning_curve_of_spectrum,
)
from ._inference.leave_one_out import (
    leave_one_out as leave_one_out,
    leave_one_out_log_density as leave_one_out_log_density,
    LeaveOneOut as LeaveOneOut,
)
from ._inference.loss_flow import loss_flow as loss_flow, LossFlow as LossFlow
from ._inference.losses import (
    half_mse as half_mse,
    huber as huber,
    sigmoid_cross_entropy as sigmoid_cross_entropy,
    softmax_cross_entropy as softmax_cross_entropy,
)
from ._inference.network import (
    network_ensemble as network_ensemble,
    network_posterior as network_posterior,
    NetworkEnsemble as NetworkEnsemble,
    NetworkPosterior as NetworkPosterior,
)
from ._inference.optimisers import (
    AbstractOptimiser as AbstractOptimiser,
    GradientDescent as GradientDescent,
    HeavyBall as HeavyBall,
    Nesterov as Nesterov,
)
from ._inference.softmax import (
    ClassProbabilities as ClassProbabilities,
    monte_carlo_probabilities as monte_carlo_probabilities,
    sigmoid_probabilities as sigmoid_probabilities,
    softmax_probabilities as softmax_probabilities,
)
from ._inference.solution import Prediction as Prediction
from ._inference.time import Steps as Steps
from ._inference.trajectory import Trajectory as Trajectory
from ._inputs import Inputs as Inputs, Positions as Positions
from ._kernel import Demand as Demand, Kernel as Kernel
from ._layer import (
    AbstractCombinator as AbstractCombinator,
    AbstractLayer as AbstractLayer,
)
from ._layers.affine import Conv as Conv, Dense as Dense
from ._layers.attention import (
    AttentionWeights as AttentionWeights,
    SelfAttention as SelfAttention,
)
from ._layers.branches import (
    Concatenate as Concatenate,
    FanOut as FanOut,
    Identity as Identity,
    Parallel as Parallel,
    Product as Product,
    Residual as Residual,
    Sum as Sum,
)
from ._layers.convolution import (
    ConvLocal as ConvLocal,
    ConvTranspose as ConvTranspose,
)
from ._layers.custom import Pointwise as Pointwise
from ._layers.dropout import Dropout as Dropout
from ._layers.exponential import (
    Exp as Exp,
    ExpNormalized as ExpNormalized,
    Gaussian as Gaussian,
)
from ._layers.fan_in import (
    FanInConcat as FanInConcat,
    FanInProd as FanInProd,
    FanInSum as FanInSum,
)
from ._layers.finite_only import (
    BatchNorm as BatchNorm,
    LogSoftmax as LogSoftmax,
    MaxPool as MaxPool,
    Softmax as Softmax,
)
from ._layers.flatten import Flatten as Flatten
from ._layers.graph import (
    Aggregate as Aggregate,
    SparseAggregate as SparseAggregate,
)
from ._layers.index import Index as Index, Slice as Slice
from ._layers.linear_maps import (
    DotGeneral as DotGeneral,
    ImageResize as ImageResize,
)
from ._layers.normalisation import LayerNorm as LayerNorm
from ._layers.pointwise import (
    ABRelu as ABRelu,
    Abs as Abs,
    Erf as Erf,
    LeakyRelu as LeakyRelu,
    Relu as Relu,
    SigmoidLike as SigmoidLike,
)
from ._layers.polynomial import (
    Hermite as Hermite,
    Monomial as Monomial,
    Polynomial as Polynomial,
)
from ._layers.pooling import (
    AvgPool as AvgPool,
    GlobalAvgPool as GlobalAvgPool,
    GlobalSumPool as GlobalSumPool,
    SumPool as SumPool,
)
from ._layers.quadrature import (
    AbstractQuadrature as AbstractQuadrature,
    Elementwise as Elementwise,
    Elu as Elu,
    HardTanh as HardTanh,
    Mish as Mish,
    Selu as Selu,
    Sigmoid as Sigmoid,
    Silu as Silu,
    Softplus as Softplus,
    Swish as Swish,
    Tanh as Tanh,
)
from ._layers.rectified import (
    Gelu as Gelu,
    RectifiedMonomial as RectifiedMonomial,
    Sign as Sign,
)
from ._layers.repeat import Repeat as Repeat
from ._layers.sequential import Sequential as Sequential
from ._layers.waves import (
    Cos as Cos,
    Gabor as Gabor,
    Rbf as Rbf,
    Sin as Sin,
)
from ._matrices import Gram as Gram, GramDiagonal as GramDiagonal
from ._members import evaluate_ensemble as evaluate_ensemble
from ._minibatch import Batches as Batches
from ._monte_carlo.convergence import (
    monte_carlo_convergence as monte_carlo_convergence,
    MonteCarloConvergence as MonteCarloConvergence,
)
from ._monte_carlo.deviation import (
    KernelComparison as KernelComparison,
    KernelDeviation as KernelDeviation,
)
from ._monte_carlo.estimate import MonteCarloGram as MonteCarloGram
from ._monte_carlo.gram import monte_carlo_gram as monte_carlo_gram
from ._ntk_rates import (
    ntk_learning_rates as ntk_learning_rates,
    ntk_parameterized as ntk_parameterized,
)
from ._parameterization import (
    AbstractParameterization as AbstractParameterization,
    NTKParameterization as NTKParameterization,
    StandardParameterization as StandardParameterization,
)
from ._path import LayerError as LayerError
from ._phase_diagram import (
    edge_of_chaos as edge_of_chaos,
    EdgeOfChaos as EdgeOfChaos,
    phase_diagram as phase_diagram,
)
from ._pointwise import AbstractPointwise as AbstractPointwise
from ._propagation import (
    Phase as Phase,
    signal_propagation as signal_propagation,
    SignalPropagation as SignalPropagation,
)
from ._signal import Signal as Signal
from ._store import open_gram as open_gram, StoredGram as StoredGram
from ._storing import store_gram as store_gram
from ._trained import (
    TrainedEnsemble as TrainedEnsemble,
    TrainingDiverged as TrainingDiverged,
)
from ._vector_maps import (
    correlation_map as correlation_map,
    variance_map as variance_map,
)
from ._weights import AbstractWeights as AbstractWeights, trainable as trainable
