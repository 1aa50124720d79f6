"""Activations as blocks of integer codes: block floating point (BFP) and the fixed-point image.

A block is B consecutive channels of one pixel. Its codes share one exponent, stored as the 8-bit
exponent field of float32 (biased by 127), so that a code stands for
``code * 2**(field - 127 - (m - 1))`` in an unsigned block and
``code * 2**(field - 127 - (m - 2))`` in a signed one. An all-zero block has field 0.
(DSConv, ICCV 2019: MAX, SHIFT, MASK.)
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .floats import FLOAT32

__all__ = ["BlockFloat", "BlockTensor", "FixedPoint", "Rounding", "code_limits", "unit_exponent"]

Rounding = Literal["nearest", "truncate"]


def code_limits(bits: int, signed: bool) -> tuple[int, int]:
    """Smallest and largest code that a lane of `bits` storage bits can carry."""
    return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)


def unit_exponent(bits: int, signed: bool) -> int:
    """Power of two of code 1 in a block whose exponent field is 0."""
    return -127 - (bits - 2 if signed else bits - 1)


@dataclass(frozen=True, eq=False)
class BlockTensor:
    """An activation tensor as the accelerator stores it.

    Parameters
    ----------
    codes : (N, blocks, B, H, W) int16; lanes past the last channel of a plane are zero
    exponents : (N, blocks, H, W) uint8, the stored exponent fields
    signed : one bool per block
    bits : m, storage bits of a code, 2 to 8
    channels : channels of one plane
    planes : 1, or the number of digit planes of a fixed-point image; blocks are plane-major
    """

    codes: NDArray[np.int16]
    exponents: NDArray[np.uint8]
    signed: tuple[bool, ...]
    bits: int
    channels: int
    planes: int = 1

    def __post_init__(self) -> None:
        if self.bits not in range(2, 9):
            raise ValueError(f"bits must be 2 to 8, not {self.bits!r}")
        if self.codes.ndim != 5:
            raise ValueError(f"codes must be (N, blocks, B, H, W), not {self.codes.shape}")
        n, blocks, _, h, w = self.codes.shape
        if self.exponents.shape != (n, blocks, h, w):
            raise ValueError(f"exponents must be {(n, blocks, h, w)}, not {self.exponents.shape}")
        if len(self.signed) != blocks:
            raise ValueError(f"signed must have one entry per block ({blocks}), not {self.signed}")
        if blocks != self.planes * -(-self.channels // self.block):
            raise ValueError(
                f"{self.channels} channels in {self.planes} planes do not make {blocks} blocks"
            )
        for index, signed in enumerate(self.signed):
            low, high = code_limits(self.bits, signed)
            lanes = self.codes[:, index]
            if lanes.size and (lanes.min() < low or lanes.max() > high):
                raise ValueError(f"codes of block {index} must lie in {low} to {high}")

    @property
    def block(self) -> int:
        return self.codes.shape[2]

    @property
    def blocks_per_plane(self) -> int:
        return self.codes.shape[1] // self.planes

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, channels, H, W)."""
        n, _, _, h, w = self.codes.shape
        return n, self.channels, h, w

    @cached_property
    def unit_exponents(self) -> NDArray[np.int32]:
        """(N, blocks, H, W): the power of two that code 1 of each block stands for."""
        offset = [unit_exponent(self.bits, signed) for signed in self.signed]
        return self.exponents.astype(np.int32) + np.array(offset, np.int32)[:, None, None]

    def values(self) -> NDArray[np.float64]:
        """(N, C, H, W): what the codes stand for; the planes are summed."""
        n, blocks, lanes, h, w = self.codes.shape
        units = self.unit_exponents[:, :, None]
        exact = np.ldexp(self.codes.astype(np.float64), units)
        exact = exact.reshape(n, self.planes, blocks // self.planes * lanes, h, w).sum(1)
        return exact[:, : self.channels]

    def __getitem__(self, images: slice) -> "BlockTensor":
        """The same tensor of some images."""
        return BlockTensor(
            self.codes[images],
            self.exponents[images],
            self.signed,
            self.bits,
            self.channels,
            self.planes,
        )


def _blocks(x: NDArray, block: int) -> NDArray:
    """(N, C, H, W) to (N, blocks, B, H, W), the last block filled up with zeros."""
    n, channels, h, w = x.shape
    blocks = -(-channels // block)
    padded = np.zeros((n, blocks * block, h, w), x.dtype)
    padded[:, :channels] = x
    return padded.reshape(n, blocks, block, h, w)


@dataclass(frozen=True)
class BlockFloat:
    """Block floating point with `bits` storage bits a lane.

    MAX finds the largest exponent of the block, SHIFT aligns every significand to it, MASK keeps
    the top bits, rounded to nearest even (or truncated towards zero) and saturated: m magnitude
    bits when unsigned, m - 1 and a sign when signed. Negative inputs of an unsigned format become
    0 before MAX: unsigned is what follows a ReLU.

    Parameters
    ----------
    block : B >= 1
    bits : m, 2 to 8
    signed, rounding : as above
    """

    block: int
    bits: int
    signed: bool = False
    rounding: Rounding = "nearest"

    def __post_init__(self) -> None:
        if self.block < 1:
            raise ValueError(f"block must be at least 1, not {self.block!r}")
        if self.bits not in range(2, 9):
            raise ValueError(f"bits must be 2 to 8, not {self.bits!r}")
        if self.rounding not in ("nearest", "truncate"):
            raise ValueError(f"rounding must be 'nearest' or 'truncate', not {self.rounding!r}")

    @property
    def magnitude_bits(self) -> int:
        return self.bits - self.signed

    def compute(self, x: NDArray[np.floating]) -> BlockTensor:
        """Quantize (N, C, H, W) values; one below the normal numbers of float32 counts as 0.

        Raises ``ValueError`` if a value is not finite.
        """
        x = np.asarray(x, np.float64)
        if x.ndim != 4:
            raise ValueError(f"x must be (N, C, H, W), not {x.shape}")
        if not np.isfinite(x).all():
            raise ValueError("a non-finite value has no block floating-point code")
        if (np.abs(x) > FLOAT32.largest).any():
            raise ValueError("a value above the largest float32 number has no exponent field")
        lanes = _blocks(x, self.block)
        if not self.signed:
            lanes = np.maximum(lanes, 0)
        lanes = np.where(np.abs(lanes) < FLOAT32.smallest, 0.0, lanes)
        largest = np.abs(lanes).max(axis=2, keepdims=True)
        shared = np.where(largest == 0, 0, np.frexp(largest)[1] + 126)
        scaled = np.ldexp(lanes, 127 + self.magnitude_bits - 1 - shared)
        whole = np.rint(scaled) if self.rounding == "nearest" else np.trunc(scaled)
        limit = (1 << self.magnitude_bits) - 1
        codes = np.clip(whole, -limit, limit).astype(np.int16)
        exponents = shared[:, :, 0].astype(np.uint8)
        return BlockTensor(codes, exponents, (self.signed,) * codes.shape[1], self.bits, x.shape[1])


@dataclass(frozen=True)
class FixedPoint:
    """The network input: ``q = clip(rint(x / 2**exponent))``, a signed integer of `bits` bits.

    The integer is cut into digits of ``act_bits`` bits, one plane of blocks per digit, most
    significant first, so that 8-bit pixels pass narrow lanes. The top plane is signed, the others
    are not. All blocks of a plane have one exponent.

    Parameters
    ----------
    exponent : power of two of one unit
    block : B
    act_bits : m, the lane width that the planes are cut to
    bits : width of the integer
    """

    exponent: int
    block: int
    act_bits: int
    bits: int = 8

    def __post_init__(self) -> None:
        if self.block < 1:
            raise ValueError(f"block must be at least 1, not {self.block!r}")
        if self.act_bits not in range(2, 9):
            raise ValueError(f"act_bits must be 2 to 8, not {self.act_bits!r}")
        if self.bits not in range(2, 17):
            raise ValueError(f"bits must be 2 to 16, not {self.bits!r}")
        for plane in range(self.planes):
            if not 1 <= self._field(plane) <= 254:
                raise ValueError(f"exponent {self.exponent!r} is out of the range of float32")

    @property
    def planes(self) -> int:
        return -(-self.bits // self.act_bits)

    def _field(self, plane: int) -> int:
        digit = self.exponent + self.act_bits * (self.planes - 1 - plane)
        return digit - unit_exponent(self.act_bits, signed=plane == 0)

    def integers(self, x: NDArray[np.float32]) -> NDArray[np.int32]:
        """The integers q of `x`, saturated. Raises ``ValueError`` if a value is not finite."""
        if not np.isfinite(x).all():
            raise ValueError("a non-finite pixel has no fixed-point code")
        low, high = code_limits(self.bits, signed=True)
        scaled = np.ldexp(np.asarray(x, np.float64), -self.exponent)
        return np.clip(np.rint(scaled), low, high).astype(np.int32)

    def compute(self, x: NDArray[np.float32]) -> BlockTensor:
        """Quantize (N, C, H, W) to (planes * blocks) blocks."""
        return self.split(self.integers(x))

    def split(self, q: NDArray[np.int32]) -> BlockTensor:
        """The planes of integers (N, C, H, W) that :meth:`integers` gave."""
        planes = []
        for plane in range(self.planes):
            shifted = q >> (self.act_bits * (self.planes - 1 - plane))
            digit = shifted if plane == 0 else shifted & ((1 << self.act_bits) - 1)
            planes.append(_blocks(digit.astype(np.int16), self.block))
        codes = np.concatenate(planes, axis=1)
        n, blocks, _, h, w = codes.shape
        per_plane = blocks // self.planes
        fields = np.repeat([self._field(p) for p in range(self.planes)], per_plane)
        exponents = np.broadcast_to(fields.astype(np.uint8)[:, None, None], (n, blocks, h, w))
        signed = tuple(block < per_plane for block in range(blocks))
        return BlockTensor(codes, exponents, signed, self.act_bits, q.shape[1], self.planes)
