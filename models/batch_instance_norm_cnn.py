"""A residual CNN with batch-instance normalization, which learns for each channel how much of an image's own style to
take out: rho mixes batch statistics (1) and the image's own (0).

The image's own statistics depend on the input, so it cannot be folded; it becomes one operator.
"""

from __future__ import annotations

from models.record import ReferenceModel
from models.trunk import ResidualCNN
from onnxnorm.nn import BatchInstanceNorm2d


class BatchInstanceNormCNN(ResidualCNN):
    """The trunk with batch-instance norm after each convolution."""

    def __init__(self, width: int = 24) -> None:
        super().__init__(BatchInstanceNorm2d, width=width)


MODEL = ReferenceModel(
    name="batch_instance_norm_cnn",
    title="Batch-instance norm CNN",
    summary="A residual CNN with batch-instance normalization, a mix of batch and instance statistics that each "
    "channel learns for itself. Neither PyTorch nor ONNX has it; the file carries its definition with it.",
    factory=BatchInstanceNormCNN,
    norms=("BatchInstanceNorm2d + ReLU", "BatchInstanceNorm2d before a skip connection"),
    norms_left=4,
    dynamic_axes={0: "batch", 2: "height", 3: "width"},
    epochs=6,
    learning_rate=8e-3,
)
