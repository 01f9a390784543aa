"""A multi-layer perceptron behind PCA whitening: raw pixels become components of variance 1 without correlation.

The whitening, a shift and a matrix fitted on the training images, is part of the network, so that the deployed model
takes raw pixels. It goes into the weights and the bias of the first linear layer: nothing is left of it.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from models.record import ReferenceModel
from onnxnorm.nn import PCAWhitening


class InputWhiteningMLP(nn.Module):
    """Flattens the scan, whitens it to fewer components, then two hidden layers and the classifier."""

    def __init__(self, components: int = 32, width: int = 48, classes: int = 10) -> None:
        super().__init__()
        self.whiten = PCAWhitening(n_components=components)
        self.hidden1 = nn.Linear(components, width)
        self.hidden2 = nn.Linear(width, width)
        self.classify = nn.Linear(width, classes)

    def fit(self, images: Tensor) -> None:
        """Fits the whitening on raw images, (N, 1, 8, 8)."""
        self.whiten.fit(images.flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.hidden1(self.whiten(x.flatten(1))))
        x = F.relu(self.hidden2(x))
        logits: Tensor = self.classify(x)
        return logits


MODEL = ReferenceModel(
    name="input_whitening_mlp",
    title="Input whitening MLP",
    summary="A multi-layer perceptron that whitens its input, raw pixels, by a shift and a matrix fitted on the "
    "training images. Both go into the first linear layer.",
    factory=InputWhiteningMLP,
    norms=("PCAWhitening before Linear",),
    norms_left=0,
    nodes_left=10,
    fit_input=InputWhiteningMLP.fit,
    epochs=12,
    learning_rate=8e-3,
)
