"""A small ConvNeXt V2: global response normalization between the two layers that mix the channels.

Inside a block the channels are last. The channels compete: each is weighed by its norm over the whole image, relative
to that of the others.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from models.layer_norm_convnext import EPSILON, LayerNormConvNeXt
from models.record import ReferenceModel
from onnxnorm.nn import GlobalResponseNorm


class Block(nn.Module):
    """Depthwise convolution, layer norm, then GELU and global response norm between two linear layers, plus the input.

    Global response norm takes the place of the scale that a block of the first ConvNeXt ends with.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=EPSILON)
        self.widen = nn.Linear(channels, 3 * channels)
        self.response = GlobalResponseNorm(3 * channels, channels_last=True)
        self.narrow = nn.Linear(3 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.narrow(self.response(F.gelu(self.widen(y))))
        return x + y.permute(0, 3, 1, 2)


class GlobalResponseNormConvNeXt(LayerNormConvNeXt):
    """The small ConvNeXt with blocks of the second version."""

    def __init__(self, width: int = 24) -> None:
        super().__init__(width, block=Block)


MODEL = ReferenceModel(
    name="global_response_norm_convnext",
    title="Global response norm ConvNeXt",
    summary="A small ConvNeXt V2, in which global response normalization lets the channels compete: each is weighed by "
    "its norm over the whole image relative to that of the others. It stays one operator.",
    factory=GlobalResponseNormConvNeXt,
    norms=("GlobalResponseNorm after GELU, channels last", "LayerNorm2d and LayerNorm"),
    norms_left=7,
    dynamic_axes={0: "batch", 2: "height", 3: "width"},
    epochs=8,
    learning_rate=8e-3,
)
