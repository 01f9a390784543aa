"""A residual CNN with filter response normalization and its thresholded linear unit, which learns for each channel the
least value that passes, in the place of ReLU.

Its statistics are each image's own, so it cannot be folded; norm and threshold become one operator.
"""

from __future__ import annotations

from models.record import ReferenceModel
from models.trunk import ResidualCNN, identity
from onnxnorm.nn import FilterResponseNorm2d


class FilterResponseNormCNN(ResidualCNN):
    """The trunk with filter response norm after each convolution, and no other activation."""

    def __init__(self, width: int = 24) -> None:
        super().__init__(FilterResponseNorm2d, width=width, activation=identity)


MODEL = ReferenceModel(
    name="filter_response_norm_cnn",
    title="Filter response norm CNN",
    summary="A residual CNN with filter response normalization, which looks at one channel of one image at a time and "
    "takes no mean off, and a learned threshold in the place of ReLU. Both are one operator.",
    factory=FilterResponseNormCNN,
    norms=("FilterResponseNorm2d with its threshold",),
    norms_left=4,
    dynamic_axes={0: "batch", 2: "height", 3: "width"},
    epochs=10,
    learning_rate=1.2e-2,
)
