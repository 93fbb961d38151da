"""All nonlinearities, each with its function and the derivative of that, in NumPy.

`closed_forms[name]` is `(layer, f, derivative)`, and so is `quadrature[name]` for those of
which the dual is computed by quadrature.
"""

import jax.numpy as jnp
import numpy as np
import scipy.special
from numpy.polynomial import polynomial

import infinitenet as inn


def _slopes(a, b):
    return lambda x: np.where(x > 0, b * x, a * x), lambda x: np.where(x > 0, b, a)


def _erf(a, b, c):
    derivative = lambda x: a * b * 2 / np.sqrt(np.pi) * np.exp(-((b * x) ** 2))
    return lambda x: a * scipy.special.erf(b * x) + c, derivative


def _gelu():
    cdf, density = scipy.special.ndtr, lambda x: np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)
    return lambda x: x * cdf(x), lambda x: cdf(x) + x * density(x)


def _sin(a, b, c):
    return lambda x: a * np.sin(b * x + c), lambda x: a * b * np.cos(b * x + c)


def _gabor(x):
    return np.exp(-(x**2)) * (np.cos(x) - 2 * x * np.sin(x))


def _gaussian(a, b):
    f = lambda x: a * np.exp(b * x**2)
    return f, lambda x: 2 * b * x * f(x)


def _polynomial(*coef):
    slopes = polynomial.polyder(coef)
    return lambda x: polynomial.polyval(x, coef), lambda x: polynomial.polyval(x, slopes)


def _monomial(degree):
    return _polynomial(*degree * [0], 1)


def _rectified(degree):
    f, derivative = _monomial(degree)
    return lambda x: np.where(x >= 0, f(x), 0), lambda x: np.where(x > 0, derivative(x), 0)


def _hermite(degree):
    coef = np.polynomial.hermite_e.herme2poly(degree * [0] + [1])
    return _polynomial(*coef / np.sqrt(scipy.special.factorial(degree)))


_zeros = lambda x: 0 * x
_rbf = _sin(np.sqrt(2), np.sqrt(0.7), np.pi / 4)
# The user's own, with its dual.
_cubic = inn.Pointwise(lambda x: x**3 + 1, lambda q1, k, q2: 6 * k**3 + 9 * q1 * k * q2 + 1)
_sine = inn.Pointwise(jnp.sin, lambda q1, k, q2: inn.Sin().dual(q1, k, q2))

closed_forms = {
    "relu": (inn.Relu(), *_slopes(0.0, 1.0)),
    "leaky_relu": (inn.LeakyRelu(0.3), *_slopes(0.3, 1.0)),
    "leaky_relu_down": (inn.LeakyRelu(-0.4), *_slopes(-0.4, 1.0)),
    "abs": (inn.Abs(), *_slopes(-1.0, 1.0)),
    "ab_relu": (inn.ABRelu(-0.5, 0.9), *_slopes(-0.5, 0.9)),
    "ab_relu_line": (inn.ABRelu(1.3, 1.3), *_slopes(1.3, 1.3)),
    "erf": (inn.Erf(), *_erf(1.0, 1.0, 0.0)),
    "erf_abc": (inn.Erf(1.2, 0.7, -0.4), *_erf(1.2, 0.7, -0.4)),
    "erf_steep": (inn.Erf(-0.8, 2.5, 0.3), *_erf(-0.8, 2.5, 0.3)),
    "sigmoid_like": (inn.SigmoidLike(), *_erf(0.5, 1 / 2.4020563531719796, 0.5)),
    "gelu": (inn.Gelu(), *_gelu()),
    "sin": (inn.Sin(), *_sin(1, 1, 0)),
    "sin_abc": (inn.Sin(1.2, 1.7, -0.4), *_sin(1.2, 1.7, -0.4)),
    "cos": (inn.Cos(0.8), *_sin(0.8, 1, np.pi / 2)),
    "cos_abc": (inn.Cos(-0.9, 0.7, 0.3), *_sin(-0.9, 0.7, 0.3 + np.pi / 2)),
    "rbf": (inn.Rbf(0.35), *_rbf),
    "gabor": (inn.Gabor(), lambda x: np.exp(-(x**2)) * np.sin(x), _gabor),
    "gaussian": (inn.Gaussian(), *_gaussian(1, -1)),
    "gaussian_ab": (inn.Gaussian(1.3, -0.2), *_gaussian(1.3, -0.2)),
    "exp": (
        inn.Exp(0.9, -0.6),
        lambda x: 0.9 * np.exp(-0.6 * x),
        lambda x: -0.54 * np.exp(-0.6 * x),
    ),
    "sign": (inn.Sign(), np.sign, _zeros),
    "step": (inn.RectifiedMonomial(0), *_rectified(0)),
    "rectified_1": (inn.RectifiedMonomial(1), *_rectified(1)),
    "rectified_2": (inn.RectifiedMonomial(2), *_rectified(2)),
    "rectified_3": (inn.RectifiedMonomial(3), *_rectified(3)),
    "rectified_6": (inn.RectifiedMonomial(6), *_rectified(6)),
    "monomial_0": (inn.Monomial(0), *_monomial(0)),
    "monomial_1": (inn.Monomial(1), *_monomial(1)),
    "monomial_2": (inn.Monomial(2), *_monomial(2)),
    "monomial_7": (inn.Monomial(7), *_monomial(7)),
    "hermite_0": (inn.Hermite(0), *_hermite(0)),
    "hermite_3": (inn.Hermite(3), *_hermite(3)),
    "hermite_6": (inn.Hermite(6), *_hermite(6)),
    "polynomial": (inn.Polynomial([0.5, -1.0, 0.3, 0.2]), *_polynomial(0.5, -1, 0.3, 0.2)),
    "polynomial_odd": (inn.Polynomial([0, 1, 0, -0.1]), *_polynomial(0, 1, 0, -0.1)),
    "pointwise": (_cubic, *_polynomial(1, 0, 0, 1)),
    "pointwise_sin": (_sine, *_sin(1, 1, 0)),
}


def _softplus(x):
    return np.logaddexp(0, x)


def _sigmoid(x):
    return scipy.special.expit(x)


def _slope_of_sigmoid(x):
    return _sigmoid(x) * _sigmoid(-x)


def _slope_of_tanh(x):
    return 1 / np.cosh(np.clip(x, -300, 300)) ** 2


def _slope_of_mish(x):
    t = np.tanh(_softplus(x))
    return t + x * _sigmoid(x) * (1 - t**2)


def _elu(scale, alpha):
    negative = lambda x: np.minimum(x, 0)
    return (
        lambda x: scale * np.where(x > 0, x, alpha * np.expm1(negative(x))),
        lambda x: scale * np.where(x > 0, 1, alpha * np.exp(negative(x))),
    )


quadrature = {
    "tanh": (inn.Tanh(), np.tanh, _slope_of_tanh),
    "sigmoid": (inn.Sigmoid(), _sigmoid, _slope_of_sigmoid),
    "softplus": (inn.Softplus(), _softplus, _sigmoid),
    "silu": (
        inn.Silu(),
        lambda x: x * _sigmoid(x),
        lambda x: _sigmoid(x) + x * _slope_of_sigmoid(x),
    ),
    "mish": (inn.Mish(), lambda x: x * np.tanh(_softplus(x)), _slope_of_mish),
    "elu": (inn.Elu(), *_elu(1, 1)),
    "elu_alpha": (inn.Elu(1.7), *_elu(1, 1.7)),
    "selu": (inn.Selu(), *_elu(1.0507009873554805, 1.6732632423543772)),
    "hard_tanh": (
        inn.HardTanh(),
        lambda x: np.clip(x, -1, 1),
        lambda x: np.where(np.abs(x) < 1, 1.0, 0.0),
    ),
    "elementwise": (inn.Elementwise(jnp.arctan), np.arctan, lambda x: 1 / (1 + x**2)),
}
