"""Spec and model of the unit that finds the class: the index of the largest score."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["ArgMaxSpec"]


@dataclass(frozen=True)
class ArgMaxSpec:
    """Of `count` numbers of 32 bits the index of the largest, of equal ones the first, as numpy's
    ``argmax``; of float32 +0 and -0 are equal.

    Parameters
    ----------
    count : numbers, 1 to 256
    whole : whether they are whole numbers, two's complement, and not float32
    """

    count: int
    whole: bool = False

    LATENCY = 1
    """cycles from the last number to the index"""

    def __post_init__(self):
        if not 1 <= self.count <= 256:
            raise ValueError(f"count must be 1 to 256 scores, not {self.count!r}")

    @property
    def index_bits(self) -> int:
        return max(1, (self.count - 1).bit_length())

    def compute(self, scores: NDArray[np.uint32]) -> NDArray[np.int64]:
        """The indices (N,) of the bit patterns of scores (N, count). Raises ``ValueError`` for a
        float32 that is not finite: the accelerator knows none."""
        if scores.ndim != 2 or scores.shape[1] != self.count or scores.dtype != np.uint32:
            raise ValueError(
                f"scores must be (N, {self.count}) uint32, not {scores.shape} {scores.dtype}"
            )
        numbers = scores.view(np.int32 if self.whole else np.float32)
        if not np.isfinite(numbers).all():
            raise ValueError("scores must be finite")
        return numbers.argmax(axis=1)
