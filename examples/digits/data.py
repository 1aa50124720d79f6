"""The 1,797 handwritten digits of scikit-learn and a fixed held-out split."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

__all__ = ["SHAPE", "TEST_IMAGES", "Digits", "load"]

SHAPE = (1, 8, 8)
TEST_IMAGES = 360
_SEED = 2


class Digits(NamedTuple):
    """Images (N, 1, 8, 8) float32 from 0 to 1 in steps of 1/16, and labels (N,) int64."""

    x: NDArray[np.float32]
    y: NDArray[np.int64]


def load() -> tuple[Digits, Digits]:
    """The training images and the 360 held-out ones, of which each digit has its share."""
    pixels, labels = load_digits(return_X_y=True)
    training, held_out = train_test_split(
        np.arange(len(labels)), test_size=TEST_IMAGES, stratify=labels, random_state=_SEED
    )
    images = (pixels / 16).astype(np.float32).reshape(-1, *SHAPE)
    labels = labels.astype(np.int64)
    return (
        Digits(images[np.asarray(training)], labels[np.asarray(training)]),
        Digits(images[np.asarray(held_out)], labels[np.asarray(held_out)]),
    )
