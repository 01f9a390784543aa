"""A residual CNN with batch renormalization, which trains as batch normalization does and corrects each batch towards
the running statistics, so that training and evaluation compute the same.

In evaluation it is one multiplication and one addition per channel, and folds into the convolution before it.
"""

from __future__ import annotations

from torch import nn

from models.record import ReferenceModel
from models.trunk import ResidualCNN
from onnxnorm.nn import BatchRenorm2d

#: Batches with the limits of batch normalization, and the batch at which both limits are fully open.
WARM_UP, OPEN = 40, 120


class BatchRenormCNN(ResidualCNN):
    """The limits r_max 3 and d_max 5 of the paper, loosened in the course of the first epochs."""

    def __init__(self, width: int = 24) -> None:
        def norm(channels: int) -> nn.Module:
            return BatchRenorm2d(channels, warmup_steps=WARM_UP, r_max_steps=OPEN, d_max_steps=OPEN)

        super().__init__(norm, width=width)


MODEL = ReferenceModel(
    name="batch_renorm_cnn",
    title="Batch renorm CNN",
    summary="A residual CNN with batch renormalization, which corrects each training batch towards the running "
    "statistics. Trained, it is a plain scale and shift that goes into the convolution before it.",
    factory=BatchRenormCNN,
    norms=("BatchRenorm2d after Conv2d",),
    norms_left=0,
    dynamic_axes={0: "batch", 2: "height", 3: "width"},
    epochs=6,
    learning_rate=8e-3,
)
