"""A residual CNN with instance normalization, as in style transfer: each image and channel has its own statistics.

One layer tracks running statistics (``track_running_stats=True``): in evaluation it uses these, is one multiplication
and one addition per channel like batch normalization, and folds. The others depend on the input and stay.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from models.record import ReferenceModel
from models.trunk import ResidualCNN


class InstanceNormCNN(ResidualCNN):
    """The trunk with instance norm after each convolution, the stem's with tracked statistics.

    Each channel of each image has mean 0 before the last bias, so their averages would tell little: the classifier
    gets their maxima.
    """

    def __init__(self, width: int = 24) -> None:
        super().__init__(partial(nn.InstanceNorm2d, affine=True), width=width)
        self.stem_norm = nn.InstanceNorm2d(width, affine=True, track_running_stats=True)

    def pool(self, x: Tensor) -> Tensor:
        return x.amax(dim=(2, 3))


MODEL = ReferenceModel(
    name="instance_norm_cnn",
    title="Instance norm CNN",
    summary="A residual CNN with instance normalization. The layer that tracks its statistics goes into the "
    "convolution before it; the three that take them from each image stay one operator each.",
    factory=InstanceNormCNN,
    norms=("InstanceNorm2d after Conv2d", "InstanceNorm2d with tracked statistics after Conv2d"),
    norms_left=3,
    dynamic_axes={0: "batch", 2: "height", 3: "width"},
    epochs=6,
    learning_rate=8e-3,
)
