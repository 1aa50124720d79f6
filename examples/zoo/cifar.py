"""CIFAR-10 images (Krizhevsky, 2009), as the trained networks take them."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["cifar10", "crop_and_flip", "normalised", "raw_cifar10"]

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


def normalised(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Images (N, 3, H, W) of 0 to 1, with the channel means and deviations of ImageNet removed."""
    return (images - MEAN) / STD


def cifar10(
    folder: Path, count: int, split: str = "test"
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The images of :func:`raw_cifar10`, normalised."""
    images, labels = raw_cifar10(folder, count, split)
    return normalised(images / np.float32(255)), labels


def crop_and_flip(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Every normalised image moved by up to four pixels, black moving in, half of them mirrored."""
    count, channels, height, width = images.shape
    padded = torch.from_numpy(-MEAN / STD).repeat(count, 1, height + 8, width + 8)
    padded[:, :, 4:-4, 4:-4] = images
    y, x = torch.randint(0, 9, (2, count, 1), generator=generator)
    columns = torch.arange(width).expand(count, -1)
    mirrored = torch.rand(count, 1, generator=generator) < 0.5
    columns = x + torch.where(mirrored, columns.flip(1), columns)
    rows = y + torch.arange(height)
    image = torch.arange(count)[:, None, None, None]
    channel = torch.arange(channels)[:, None, None]
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]
