"""A residual CNN with L1 batch normalization: the mean absolute deviation, times a factor that makes it the standard
deviation of Gaussian data, takes the standard deviation's place. It needs neither squares nor roots.

In evaluation it is one multiplication and one addition per channel, and folds into the convolution before it.
"""

from __future__ import annotations

from models.record import ReferenceModel
from models.trunk import ResidualCNN
from onnxnorm.nn import L1BatchNorm2d


class L1BatchNormCNN(ResidualCNN):
    """The trunk with L1 batch norm after each convolution."""

    def __init__(self, width: int = 24) -> None:
        super().__init__(L1BatchNorm2d, width=width)


MODEL = ReferenceModel(
    name="l1_batch_norm_cnn",
    title="L1 batch norm CNN",
    summary="A residual CNN with L1 batch normalization, which divides by the mean absolute deviation. Trained, it is "
    "a plain scale and shift that goes into the convolution before it.",
    factory=L1BatchNormCNN,
    norms=("L1BatchNorm2d after Conv2d",),
    norms_left=0,
    dynamic_axes={0: "batch", 2: "height", 3: "width"},
    epochs=6,
    learning_rate=8e-3,
)
