"""A CNN behind standardization of its input: raw pixels are brought to mean 0 and variance 1 by what was measured on
the training images.

It is part of the network, so that the deployed model takes raw pixels. The first convolution has no padding, so scale
and shift go into its weights and bias: nothing is left of them. (With zero padding the shift would stay one addition,
since the padded zeros are not shifted.)
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from models.record import ReferenceModel
from onnxnorm.nn import Standardization


class InputStandardizationCNN(nn.Module):
    """Standardizes, then convolves from 8x8 to 6x6 and 3x3; maxima over the positions, classifier."""

    def __init__(self, width: int = 32, classes: int = 10) -> None:
        super().__init__()
        self.standardize = Standardization(axis=1)
        self.stem = nn.Conv2d(1, width, 3)
        self.middle = nn.Conv2d(width, width, 3, padding=1)
        self.reduce = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.classify = nn.Linear(2 * width, classes)

    def fit(self, images: Tensor) -> None:
        """Fits the standardization on raw images, (N, 1, 8, 8)."""
        self.standardize.fit(images)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(self.standardize(x)))
        x = F.relu(x + self.middle(x))
        x = F.relu(self.reduce(x))
        logits: Tensor = self.classify(x.amax(dim=(2, 3)))
        return logits


MODEL = ReferenceModel(
    name="input_standardization_cnn",
    title="Input standardization CNN",
    summary="A CNN that standardizes its input, raw pixels, by mean and deviation fitted on the training images. Both "
    "go into the first convolution.",
    factory=InputStandardizationCNN,
    norms=("Standardization before Conv2d",),
    norms_left=0,
    nodes_left=8,
    fit_input=InputStandardizationCNN.fit,
    dynamic_axes={0: "batch", 2: "height", 3: "width"},
    epochs=6,
    learning_rate=8e-3,
)
