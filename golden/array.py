"""Specs of the integer part: processing element, systolic array, and the tile it holds."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from .fixed import AccumulatorFormat
from .floats import FLOAT32, ScaleFormat

__all__ = ["CELLS_OF", "STYLES", "ArraySpec", "Style", "TileFormat", "family_of"]

Style = Literal[
    "lut", "dsp", "ecp5-carry", "ecp5-ternary", "packed16", "packed18", "packed25", "packed27",
    "ice40-dual",
]  # fmt: skip

STYLES: tuple[Style, ...] = get_args(Style)
"""Forms of the processing elements."""


CELLS_OF = ("ecp5", "ice40")
"""FPGA families whose cells some forms of units instantiate; the names of these forms begin so."""


def family_of(form: str) -> str | None:
    """The FPGA family whose cells a form of a unit instantiates; None if no vendor's are."""
    family = form.partition("-")[0]
    return family if family in CELLS_OF else None


@dataclass(frozen=True)
class ArraySpec:
    """A weight-stationary array of ``rows`` x ``cols`` processing elements.

    Parameters
    ----------
    rows, cols : 1 or more; a column sums over ``rows`` lanes
    weight_bits : b, 2 to 8, two's complement
    act_bits : m, 2 to 8; a lane carries m bits, signed or unsigned, as m + 1 signed bits
    multiplier : "lut" never becomes a DSP block, "dsp" leaves the choice to the synthesizer;
        "ecp5-carry" instantiates carry cells of ECP5, "ecp5-ternary" too, for b = 2 and the codes
        -1, 0 and 1; "packed18" and its like multiply the weights of as many columns at once as an
        operand of 18 bits holds, of two at least; "ice40-dual" instantiates the block of iCE40 that
        multiplies twice, for two columns and m of at most 7

    Raises ``ValueError`` with the parameter and what it may be.
    """

    rows: int
    cols: int
    weight_bits: int
    act_bits: int
    multiplier: Style = "lut"

    def __post_init__(self) -> None:
        for name in ("rows", "cols"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)!r}")
        for name in ("weight_bits", "act_bits"):
            if getattr(self, name) not in range(2, 9):
                raise ValueError(f"{name} must be 2 to 8, not {getattr(self, name)!r}")
        if self.multiplier not in STYLES:
            listed = ", ".join(map(repr, STYLES))
            raise ValueError(f"multiplier must be one of {listed}, not {self.multiplier!r}")
        if self.multiplier == "ecp5-ternary" and self.weight_bits != 2:
            raise ValueError(
                f"multiplier 'ecp5-ternary' needs weight_bits = 2, not {self.weight_bits}"
            )
        if self.operand_limit and self.packed_bits(2) > self.operand_limit:
            raise ValueError(
                f"multiplier {self.multiplier!r} needs 2 * weight_bits + act_bits + 1 of at most "
                f"{self.operand_limit}, not {self.packed_bits(2)}"
            )
        if self.dual and self.act_bits > 7:
            raise ValueError(
                f"multiplier 'ice40-dual' needs act_bits of at most 7, not {self.act_bits}"
            )

    @property
    def family(self) -> str | None:
        """The FPGA family whose cells are instantiated; None if no vendor's are."""
        return family_of(self.multiplier)

    @property
    def dual(self) -> bool:
        """Whether a block has two multipliers, for two columns."""
        return self.multiplier == "ice40-dual"

    @property
    def least_code(self) -> int:
        """The most negative weight."""
        return -1 if self.multiplier == "ecp5-ternary" else -(1 << (self.weight_bits - 1))

    @property
    def operand_bits(self) -> int:
        """Width of the signed operand that holds both a signed and an unsigned lane."""
        return self.act_bits + 1

    @property
    def product_bits(self) -> int:
        return self.weight_bits + self.act_bits

    @property
    def operand_limit(self) -> int:
        """Bits of the operand that holds several weights; 0 where each has its own product."""
        return int(self.multiplier.removeprefix("packed")) if "packed" in self.multiplier else 0

    def packed_bits(self, columns: int) -> int:
        """Width of the weights of `columns` in one signed number, a product apart."""
        borrow = columns > 1
        return (columns - 1) * self.product_bits + self.weight_bits + borrow

    def field_bits(self, columns: int) -> int:
        """Bits of these weights without what repeats their signs."""
        borrows = 0 if self.dual else columns - 1
        return columns * self.weight_bits + borrows

    @property
    def groups(self) -> list[int]:
        """How many columns share a block, from left to right; all but the last as many."""
        size = 1 + self.dual
        while self.packed_bits(size + 1) <= self.operand_limit:
            size += 1
        whole, rest = divmod(self.cols, size)
        return [size] * whole + [rest] * (rest > 0)

    def partial_sum_bits(self, row: int) -> int:
        """Width of the signed partial sum that leaves `row`."""
        largest = (row + 1) * (1 << (self.weight_bits - 1)) * ((1 << self.act_bits) - 1)
        return largest.bit_length() + 1

    @property
    def sum_bits(self) -> int:
        """Width of a signed block sum."""
        return self.partial_sum_bits(self.rows - 1)

    @property
    def latency(self) -> int:
        """Cycles from a pixel at the array's input to its sum at the foot of column 0."""
        return self.rows + 2

    def check_codes(self, codes: NDArray[np.int8]) -> None:
        """Raise ``ValueError`` if PEs cannot multiply by one of `codes`, which fit their bits."""
        if codes.min(initial=0) < self.least_code:
            raise ValueError(
                f"multiplier {self.multiplier!r} takes weight codes from {self.least_code}, "
                f"not {codes.min()}"
            )

    def compute(self, weights: NDArray[np.int8], lanes: NDArray[np.int16]) -> NDArray[np.int64]:
        """Block sums (P, cols) of `lanes` (P, rows) with stationary `weights` (rows, cols).

        Raises ``ValueError`` if an operand does not fit its width.
        """
        limit = 1 << (self.weight_bits - 1)
        if weights.min() < -limit or weights.max() >= limit:
            raise ValueError(f"weight codes must fit {self.weight_bits} bits")
        self.check_codes(weights)
        limit = 1 << self.act_bits
        if lanes.size and (lanes.min() < -(limit >> 1) or lanes.max() >= limit):
            raise ValueError(f"lanes must fit {self.act_bits} bits, signed or unsigned")
        return lanes.astype(np.int64) @ weights.astype(np.int64)


@dataclass(frozen=True)
class TileFormat:
    """A stationary tile as a stream of beats: codes, then scales, then biases.

    Codes come a row at a time, the last row first; a row starts a new beat and takes
    ``ceil(cols * b / W)`` of them. The scales of all columns follow, then, for a pass that starts
    from the bias, the biases; each of the two sections starts a new beat. Column 0 is lowest.

    Parameters
    ----------
    array : shape and code width
    scale : storage format of the scales
    bus_bits : W, bits of a beat: 32, 64, 128 or 256
    bias : format of the biases, that of the accumulators
    """

    array: ArraySpec
    scale: ScaleFormat
    bus_bits: int
    bias: AccumulatorFormat = FLOAT32

    def __post_init__(self) -> None:
        if self.bus_bits not in (32, 64, 128, 256):
            raise ValueError(f"bus_bits must be 32, 64, 128 or 256, not {self.bus_bits!r}")

    @property
    def row_beats(self) -> int:
        return -(-self.array.cols * self.array.weight_bits // self.bus_bits)

    @property
    def scale_beats(self) -> int:
        return -(-self.array.cols * self.scale.storage_bits // self.bus_bits)

    @property
    def bias_beats(self) -> int:
        return -(-self.array.cols * 32 // self.bus_bits)

    def beats(self, start: bool) -> int:
        """Beats of a tile; `start` says whether it carries biases."""
        codes = self.array.rows * self.row_beats
        return codes + self.scale_beats + (self.bias_beats if start else 0)

    def pack(
        self,
        codes: NDArray[np.int8],
        scales: NDArray[np.float32],
        biases: NDArray[np.floating] | None = None,
    ) -> list[int]:
        """The beats of codes (rows, cols), scales (cols,) and, for a starting pass, biases."""
        beats: list[int] = []
        for row in codes[::-1]:
            beats += self._section(row.astype(np.int64), self.array.weight_bits)
        beats += self._section(self.scale.encode(scales), self.scale.storage_bits)
        if biases is not None:
            beats += self._section(self.bias.encode(biases), 32)
        return beats

    def unpack(
        self, data: NDArray[np.uint8], start: bool
    ) -> tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.floating] | None]:
        """Codes (n, rows, cols), scales (n, cols) and biases (n, cols) of n tiles.

        The inverse of :meth:`pack`: `data` has the beats of a tile in a row, (n, bytes). Raises
        ``ValueError`` at a scale or bias that is no number, or a code that no PE takes.
        """
        size = self.beats(start) * self.bus_bits // 8
        if data.ndim != 2 or data.shape[1] != size:
            raise ValueError(f"tiles must have (n, {size}) bytes, not {data.shape}")
        bits = np.unpackbits(data, axis=1, bitorder="little").reshape(len(data), -1, self.bus_bits)
        rows, b = self.array.rows, self.array.weight_bits
        scales_at = rows * self.row_beats
        codes = bits[:, :scales_at].reshape(len(data) * rows, 1, -1)
        sign = 1 << (b - 1)
        codes = (self._fields(codes, b).reshape(len(data), rows, -1)[:, ::-1] ^ sign) - sign
        self.array.check_codes(codes)
        biases_at = scales_at + self.scale_beats
        scales = self._fields(bits[:, scales_at:biases_at], self.scale.storage_bits)
        biases = self.bias.decode(self._fields(bits[:, biases_at:], 32)) if start else None
        return codes.astype(np.int8), self.scale.decode(scales), biases

    def _fields(self, section: NDArray[np.uint8], bits: int) -> NDArray[np.int64]:
        """One field per column (n, cols) of bits (n, beats, W)."""
        n, cols = len(section), self.array.cols
        flat = section.reshape(n, -1)[:, : cols * bits].reshape(n, cols, bits)
        return flat.astype(np.int64) @ (1 << np.arange(bits, dtype=np.int64))

    def _section(self, fields: NDArray, bits: int) -> list[int]:
        word = 0
        for index, field in enumerate(fields.tolist()):
            word |= (field & ((1 << bits) - 1)) << (index * bits)
        count = -(-len(fields) * bits // self.bus_bits)
        mask = (1 << self.bus_bits) - 1
        return [(word >> (index * self.bus_bits)) & mask for index in range(count)]
