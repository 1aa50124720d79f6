"""Spec of the requantizer: accumulators in, blocks of activation codes out."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .bfp import BlockFloat, Rounding
from .fixed import AccumulatorFormat, FixedFormat
from .floats import FLOAT32

__all__ = ["RequantizerSpec"]


@dataclass(frozen=True)
class RequantizerSpec:
    """Turns rows of ``cols`` accumulators into blocks of ``block`` codes.

    Where the array has fewer columns than a block has channels, ``beats_per_block`` rows make one
    block; where it has more, one row makes ``blocks_per_beat``. Lanes that are left over carry
    zeros or are not used.

    Parameters
    ----------
    block : B
    cols : lanes of an input row
    act_bits : m
    rounding : how MASK rounds
    form : of the accumulators
    """

    block: int
    cols: int
    act_bits: int
    rounding: Rounding = "nearest"
    form: AccumulatorFormat = FLOAT32

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
        levels, nodes = 0, self.lanes
        while nodes > 1:
            levels, nodes = levels + 1, -(-nodes // self.tree_inputs)
        return levels

    @property
    def tree_inputs(self) -> int:
        """Inputs of a node: of fixed-point numbers one is an OR, of which a LUT has four."""
        return 4 if isinstance(self.form, FixedFormat) else 2

    @property
    def max_stages(self) -> int:
        """Cycles from the last row of a block to the largest exponent: registers in front of and in
        the tree, and one that finds the highest bit of fixed-point numbers."""
        return 1 + self.tree_levels + isinstance(self.form, FixedFormat)

    @property
    def waiting_rows(self) -> int:
        """Rows that can wait until their exponent is known."""
        return 2 * self.beats_per_block + self.max_stages + 3

    @property
    def latency(self) -> int:
        """Cycles from the last row of a block to the block, when nothing stalls."""
        tree, queue, steps = self.max_stages, 2, 4
        return tree + queue + steps + self.beats_per_block - 1

    def compute(
        self, rows: NDArray[np.floating], signed: bool, field: int = 127
    ) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
        """Codes (n, B) and exponent fields (n,) of rows (n * beats_per_block / k, cols).

        Fixed-point numbers are in units of which `field` is the exponent field.

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
        values = np.ldexp(lanes.astype(np.float64), field - 127)
        tensor = form.compute(values[:, :, None, None])
        return tensor.codes[:, 0, :, 0, 0], tensor.exponents[:, 0, 0, 0]
