"""Normalizations of inputs: fitted on data, prepended to a model, folded into its first layer by an export."""

from onnxnorm.nn.input_norm.prepend import Prepended, prepend
from onnxnorm.nn.input_norm.rescaling import MeanNormalization, MinMaxScaling
from onnxnorm.nn.input_norm.standardization import Centering, Standardization
from onnxnorm.nn.input_norm.unit_length import UnitLength
from onnxnorm.nn.input_norm.whitening import PCADecorrelation, PCAWhitening, ZCAWhitening

__all__ = [
    "Centering",
    "MeanNormalization",
    "MinMaxScaling",
    "PCADecorrelation",
    "PCAWhitening",
    "Prepended",
    "Standardization",
    "UnitLength",
    "ZCAWhitening",
    "prepend",
]
