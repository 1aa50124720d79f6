"""CIFAR-10 images (Krizhevsky, 2009), as the trained networks take them."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["cifar10", "raw_cifar10"]

MEAN = np.array([0.485, 0.456, 0.406], np.float32)[:, None, None]
STD = np.array([0.229, 0.224, 0.225], np.float32)[:, None, None]


def raw_cifar10(
    folder: Path, count: int, split: str = "test"
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The first `count` images (N, 3, 32, 32) as they are, 0 to 255, and their labels.

    `folder` holds ``cifar10-<split>.npz`` with pixels `x` (N, 32, 32, 3) and labels `y`.
    """
    with np.load(folder / f"cifar10-{split}.npz") as archive:
        pixels, labels = archive["x"][:count], archive["y"][:count]
    images = pixels.astype(np.float32).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(images), labels.astype(np.int64)


def cifar10(
    folder: Path, count: int, split: str = "test"
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The images of :func:`raw_cifar10`, normalised with the channel means of ImageNet."""
    images, labels = raw_cifar10(folder, count, split)
    return (images / np.float32(255) - MEAN) / STD, labels
