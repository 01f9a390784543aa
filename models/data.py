"""The data of the reference models: scikit-learn's digits, 1797 real scans of 8x8 pixels, no download needed."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

#: The split is part of what a stranger reproduces, so its seed is fixed here and not an option.
SPLIT_SEED = 0
TEST_SHARE = 0.25


@dataclass(frozen=True)
class Digits:
    """Images (N, 1, 8, 8) in float32 and their classes (N,), cut into training and test part."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


@functools.cache
def load(*, raw: bool = False) -> Digits:
    """The digits, every class with the same share in both parts.

    Mean and deviation are those of the training part: the test part must not tell the model anything.

    Args:
        raw: the pixel values as they are, 0 to 16, instead of brought to mean 0 and variance 1.

    """
    images, labels = load_digits(return_X_y=True)
    split = train_test_split(images, labels, test_size=TEST_SHARE, stratify=labels, random_state=SPLIT_SEED)
    train_images, test_images, train_labels, test_labels = split
    mean, deviation = (0.0, 1.0) if raw else (train_images.mean(), train_images.std())

    def as_images(pixels: object) -> Tensor:
        scaled: Tensor = (torch.as_tensor(pixels) - mean) / deviation
        return scaled.float().reshape(-1, 1, 8, 8)

    return Digits(
        train_images=as_images(train_images),
        train_labels=torch.as_tensor(train_labels).long(),
        test_images=as_images(test_images),
        test_labels=torch.as_tensor(test_labels).long(),
    )
