"""PyTorch modules for the normalizations that ``torch.nn`` lacks. Importing this package imports torch."""

from onnxnorm.nn.switchable_norm import SwitchableNorm1d, SwitchableNorm2d, SwitchableNorm3d

__all__ = ["SwitchableNorm1d", "SwitchableNorm2d", "SwitchableNorm3d"]
