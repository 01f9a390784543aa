"""The record of one reference model: all that the main job has to know about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class ReferenceModel:
    """A network of this folder. Its file holds one of these under the name ``MODEL``.

    Attributes:
        name: name of its file, and of the ONNX file that is made from it.
        title: what a person calls it.
        summary: one or two sentences on what it is for, shown in the report.
        factory: makes the untrained network; the caller seeds torch before.
        norms: the normalizations that it has, as a person would name them, with what they follow.
        norms_left: how many normalization operators the optimized file must hold: 0 where all fold into weights, one
            for each layer where none can. A rule that stops firing leaves the numbers right, so this catches it.
        nodes_left: how many nodes the optimized file must hold; given where what normalizes, a weight or the input, is
            no operator of its own in any file, so that ``norms_left`` cannot tell whether it is gone.
        fit_input: fits the network's input normalization on the training images, before it is trained. Such a network
            takes raw pixel values, 0 to 16, every other one standardized ones.
        input_shape: shape of an example input, (N, C, H, W).
        dynamic_axes: axes of the input whose size the exported file leaves open, with their names.
        epochs: passes over the training images. It and the learning rate are chosen on a held-out part of the training
            images, never on the test images.
        learning_rate: the peak of the one-cycle schedule.

    """

    name: str
    title: str
    summary: str
    factory: Callable[[], nn.Module]
    norms: tuple[str, ...]
    norms_left: int
    nodes_left: int | None = None
    fit_input: Callable[[Any, Tensor], object] | None = None
    input_shape: tuple[int, int, int, int] = (4, 1, 8, 8)
    dynamic_axes: Mapping[int, str] = field(default_factory=lambda: {0: "batch"})
    epochs: int = 8
    learning_rate: float = 4e-3

    @property
    def raw_pixels(self) -> bool:
        """Whether the network takes raw pixel values."""
        return self.fit_input is not None

    @property
    def any_image_size(self) -> bool:
        """Whether the network takes images of other sizes than the digits' own."""
        return {2, 3} <= set(self.dynamic_axes)
