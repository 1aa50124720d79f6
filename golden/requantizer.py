"""Spec of the requantizer: accumulators in, blocks of activation codes out."""

from dataclasses import dataclass
from math import ceil, log2

import numpy as np
from numpy.typing import NDArray

from .bfp import BlockFloat, Rounding

__all__ = ["RequantizerSpec"]


@dataclass(frozen=True)
class RequantizerSpec:
    """Turns rows of ``cols`` float32 accumulators into blocks of ``block`` codes.

    Where the array has fewer columns than a block has channels, ``beats_per_block`` rows make one
    block; where it has more, one row makes ``blocks_per_beat``. Lanes that are left over carry
    zeros or are not used.

    Parameters
    ----------
    block : B
    cols : lanes of an input row
    act_bits : m
    rounding : how MASK rounds
    """

    block: int
    cols: int
    act_bits: int
    rounding: Rounding = "nearest"

    def __post_init__(self) -> None:
        BlockFloat(self.block, self.act_bits, rounding=self.rounding)
        if self.cols < 1:
            raise ValueError(f"cols must be at least 1, not {self.cols!r}")

    @property
    def beats_per_block(self) -> int:
        return -(-self.block // self.cols)

    @property
    def blocks_per_beat(self) -> int:
        return max(1, self.cols // self.block)

    @property
    def lanes(self) -> int:
        """Lanes of one block that arrive in one row."""
        return min(self.block, self.cols)

    @property
    def tree_levels(self) -> int:
        """Registered levels of the tree that finds the largest exponent of a row."""
        return ceil(log2(self.lanes)) if self.lanes > 1 else 0

    @property
    def latency(self) -> int:
        """Cycles from the last row of a block to the block, when nothing stalls."""
        tree, queue, steps = 1 + self.tree_levels, 2, 4
        return tree + queue + steps + self.beats_per_block - 1

    def compute(
        self, rows: NDArray[np.float32], signed: bool
    ) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
        """Codes (n, B) and exponent fields (n,) of rows (n * beats_per_block / k, cols).

        k is ``blocks_per_beat``; the blocks of one row come lowest lanes first. Lanes past the last
        channel of a block that takes several rows are part of its maximum: raises ``ValueError`` if
        one is not zero.
        """
        if self.cols >= self.block:
            used = self.blocks_per_beat * self.block
            lanes = rows[:, :used].reshape(-1, self.block)
        else:
            lanes = rows.reshape(-1, self.beats_per_block * self.cols)
            if lanes[:, self.block :].any():
                raise ValueError(f"lanes past channel {self.block} of a block must be zero")
            lanes = lanes[:, : self.block]
        form = BlockFloat(self.block, self.act_bits, signed, self.rounding)
        tensor = form.compute(lanes[:, :, None, None])
        return tensor.codes[:, 0, :, 0, 0], tensor.exponents[:, 0, 0, 0]
