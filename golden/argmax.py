"""Spec and model of the unit that finds the class: the index of the largest score."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["ArgMaxSpec"]


@dataclass(frozen=True)
class ArgMaxSpec:
    """Of `count` float32 numbers the index of the largest, of equal ones the first, as numpy's
    ``argmax``; +0 and -0 are equal.

    Parameters
    ----------
    count : numbers, 1 to 256
    """

    count: int

    LATENCY = 1
    """cycles from the last number to the index"""

    def __post_init__(self):
        if not 1 <= self.count <= 256:
            raise ValueError(f"count must be 1 to 256 scores, not {self.count!r}")

    @property
    def index_bits(self) -> int:
        return max(1, (self.count - 1).bit_length())

    def compute(self, scores: NDArray[np.float32]) -> NDArray[np.int64]:
        """The indices (N,) of scores (N, count). Raises ``ValueError`` for a score that is not
        finite: the accelerator knows none."""
        if scores.ndim != 2 or scores.shape[1] != self.count or scores.dtype != np.float32:
            raise ValueError(
                f"scores must be (N, {self.count}) float32, not {scores.shape} {scores.dtype}"
            )
        if not np.isfinite(scores).all():
            raise ValueError("scores must be finite")
        return scores.argmax(axis=1)
