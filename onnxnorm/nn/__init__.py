"""PyTorch modules for the normalizations that ``torch.nn`` lacks. Importing this package imports torch."""

from onnxnorm.nn import training as _training  # noqa: F401  (defines operators)
from onnxnorm.nn.batch_instance_norm import BatchInstanceNorm1d, BatchInstanceNorm2d, BatchInstanceNorm3d
from onnxnorm.nn.batch_renorm import BatchRenorm1d, BatchRenorm2d, BatchRenorm3d
from onnxnorm.nn.evo_norm import EvoNorm1dS0, EvoNorm2dS0, EvoNorm3dS0
from onnxnorm.nn.filter_response_norm import FilterResponseNorm1d, FilterResponseNorm2d, FilterResponseNorm3d
from onnxnorm.nn.global_response_norm import GlobalResponseNorm
from onnxnorm.nn.input_norm import (
    Centering,
    MeanNormalization,
    MinMaxScaling,
    PCADecorrelation,
    PCAWhitening,
    Standardization,
    UnitLength,
    ZCAWhitening,
    prepend,
)
from onnxnorm.nn.l1_batch_norm import L1BatchNorm1d, L1BatchNorm2d, L1BatchNorm3d
from onnxnorm.nn.l2_norm import L2Norm1d, L2Norm2d, L2Norm3d
from onnxnorm.nn.layer_norm import LayerNorm1d, LayerNorm2d, LayerNorm3d
from onnxnorm.nn.mean_only_batch_norm import MeanOnlyBatchNorm1d, MeanOnlyBatchNorm2d, MeanOnlyBatchNorm3d
from onnxnorm.nn.rms_norm import RMSNorm1d, RMSNorm2d, RMSNorm3d
from onnxnorm.nn.switchable_norm import SwitchableNorm1d, SwitchableNorm2d, SwitchableNorm3d

__all__ = [
    "BatchInstanceNorm1d",
    "BatchInstanceNorm2d",
    "BatchInstanceNorm3d",
    "BatchRenorm1d",
    "BatchRenorm2d",
    "BatchRenorm3d",
    "Centering",
    "EvoNorm1dS0",
    "EvoNorm2dS0",
    "EvoNorm3dS0",
    "FilterResponseNorm1d",
    "FilterResponseNorm2d",
    "FilterResponseNorm3d",
    "GlobalResponseNorm",
    "L1BatchNorm1d",
    "L1BatchNorm2d",
    "L1BatchNorm3d",
    "L2Norm1d",
    "L2Norm2d",
    "L2Norm3d",
    "LayerNorm1d",
    "LayerNorm2d",
    "LayerNorm3d",
    "MeanNormalization",
    "MeanOnlyBatchNorm1d",
    "MeanOnlyBatchNorm2d",
    "MeanOnlyBatchNorm3d",
    "MinMaxScaling",
    "PCADecorrelation",
    "PCAWhitening",
    "RMSNorm1d",
    "RMSNorm2d",
    "RMSNorm3d",
    "Standardization",
    "SwitchableNorm1d",
    "SwitchableNorm2d",
    "SwitchableNorm3d",
    "UnitLength",
    "ZCAWhitening",
    "prepend",
]
