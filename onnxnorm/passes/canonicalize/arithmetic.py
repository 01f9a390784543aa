"""Elementwise operators and reductions in float64 NumPy, by operator name.

``BINARY``'s Add, Mul and Sub are for integers too: NumPy and ONNX both let those wrap.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]


def _erf(x: Array) -> Array:
    return np.asarray(np.vectorize(math.erf, otypes=[np.float64])(x)) if x.size else x


def _sum(x: Array, **over: Any) -> Array:
    return np.asarray(np.sum(x, **over))


def _log_sum_exp(x: Array, axis: Any, keepdims: bool) -> Array:
    shift = x.max(axis=axis, keepdims=True)
    total = np.log(np.exp(x - shift).sum(axis=axis, keepdims=True)) + shift
    return np.asarray(total if keepdims else total.squeeze(axis))


UNARY: dict[str, Callable[[Array], Array]] = {
    "Abs": np.abs,
    "Acos": np.arccos,
    "Acosh": np.arccosh,
    "Asin": np.arcsin,
    "Asinh": np.arcsinh,
    "Atan": np.arctan,
    "Atanh": np.arctanh,
    "Cos": np.cos,
    "Cosh": np.cosh,
    "Erf": _erf,
    "Exp": np.exp,
    "Log": np.log,
    "Neg": np.negative,
    "Reciprocal": np.reciprocal,
    "Relu": lambda x: np.maximum(x, 0.0),
    "Round": np.rint,
    "Sigmoid": lambda x: 1.0 / (1.0 + np.exp(-x)),
    "Sign": np.sign,
    "Sin": np.sin,
    "Sinh": np.sinh,
    "Softplus": lambda x: np.logaddexp(x, 0.0),
    "Softsign": lambda x: x / (1.0 + np.abs(x)),
    "Sqrt": np.sqrt,
    "Tan": np.tan,
    "Tanh": np.tanh,
}
BINARY: dict[str, Callable[[Array, Array], Array]] = {
    "Add": np.add,
    "Div": np.divide,
    "Mul": np.multiply,
    "Pow": np.power,
    "Sub": np.subtract,
}
#: reduce(x, axis=axes or None, keepdims=...).
REDUCE: dict[str, Callable[..., Array]] = {
    "ReduceL1": lambda x, **over: _sum(np.abs(x), **over),
    "ReduceL2": lambda x, **over: np.sqrt(_sum(np.square(x), **over)),
    "ReduceLogSum": lambda x, **over: np.log(_sum(x, **over)),
    "ReduceLogSumExp": _log_sum_exp,
    "ReduceMean": np.mean,
    "ReduceSum": np.sum,
    "ReduceSumSquare": lambda x, **over: _sum(np.square(x), **over),
}
