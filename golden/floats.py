"""Floating-point formats without infinities or NaN, and the one rounding rule of the project.

Every sum and product in the machine is rounded once, to nearest even with an unbounded exponent. A
result below the smallest normal number then becomes +0 and one above the largest finite number
becomes that number. Zero has one encoding, +0.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["BF16", "E8M0", "FLOAT32", "FP16", "FP32", "SCALE_FORMATS", "FloatFormat", "ScaleFormat"]


@dataclass(frozen=True)
class FloatFormat:
    """A binary float of sign, ``exponent_bits`` and ``fraction_bits``, biased as in IEEE 754.

    The all-ones exponent is never produced; there is no infinity and no NaN. The format must be a
    subset of float32, which carries its values in numpy.

    Parameters
    ----------
    exponent_bits : 2 to 8
    fraction_bits : 0 to 23, the stored bits of the significand
    """

    exponent_bits: int
    fraction_bits: int

    def __post_init__(self) -> None:
        if self.exponent_bits not in range(2, 9):
            raise ValueError(f"exponent_bits must be 2 to 8, not {self.exponent_bits!r}")
        if self.fraction_bits not in range(24):
            raise ValueError(f"fraction_bits must be 0 to 23, not {self.fraction_bits!r}")

    @property
    def dtype(self) -> type[np.floating]:
        """numpy's type that carries its numbers."""
        return np.float32

    @property
    def storage_bits(self) -> int:
        return 1 + self.exponent_bits + self.fraction_bits

    @property
    def significand_bits(self) -> int:
        """Bits of the significand with the hidden one."""
        return self.fraction_bits + 1

    @property
    def bias(self) -> int:
        return (1 << (self.exponent_bits - 1)) - 1

    @property
    def max_exponent(self) -> int:
        """Largest exponent field of a number; the next one would be IEEE's infinity."""
        return (1 << self.exponent_bits) - 2

    @property
    def smallest(self) -> float:
        """Smallest positive normal number."""
        return 2.0 ** (1 - self.bias)

    @property
    def largest(self) -> float:
        return (2.0 - 2.0**-self.fraction_bits) * 2.0 ** (self.max_exponent - self.bias)

    def round(self, values: ArrayLike) -> NDArray[np.float32]:
        """Round float64 `values` to the format, by the rule at the head of this module.

        Raises ``ValueError`` if a value is not finite.
        """
        exact = np.asarray(values, np.float64)
        if not np.isfinite(exact).all():
            raise ValueError("a non-finite value has no encoding")
        with np.errstate(over="ignore", under="ignore"):
            if self.fraction_bits == 23:
                rounded = exact.astype(np.float32).astype(np.float64)
            else:
                mantissa, exponent = np.frexp(exact)
                rounded = np.rint(np.ldexp(mantissa, self.significand_bits))
                rounded = np.ldexp(rounded, exponent - self.significand_bits)
        # The midpoint below the smallest normal number ties to that number, whose last bit is even.
        flush = np.abs(exact) < self.smallest * (1 - 2.0 ** -(self.fraction_bits + 2))
        rounded = np.clip(np.where(flush, 0.0, rounded), -self.largest, self.largest)
        return rounded.astype(np.float32) + np.float32(0)

    def add(self, a: ArrayLike, b: ArrayLike) -> NDArray[np.float32]:
        """``round(a + b)`` of two arrays of the format's values.

        Float64 holds the sum of two such numbers exactly, or to so many bits that rounding it again
        to 24 bits or fewer gives the same as rounding once.
        """
        return self.round(np.asarray(a, np.float64) + np.asarray(b, np.float64))

    def encode(self, values: ArrayLike) -> NDArray[np.uint32]:
        """Bit patterns of `values`, which must be values of the format."""
        exact = np.asarray(values, np.float32)
        if not np.array_equal(self.round(exact), exact):
            raise ValueError("values must be representable in the format; round them first")
        mantissa, exponent = np.frexp(np.abs(exact).astype(np.float64))
        fraction = np.ldexp(mantissa, self.significand_bits).astype(np.int64)
        fraction -= 1 << self.fraction_bits
        field = exponent.astype(np.int64) - 1 + self.bias
        bits = (field << self.fraction_bits) | fraction
        sign = np.signbit(exact).astype(np.int64) << (self.storage_bits - 1)
        return np.where(exact == 0, 0, sign | bits).astype(np.uint32)

    def decode(self, bits: ArrayLike) -> NDArray[np.float32]:
        """Values of bit patterns; an exponent field of 0 reads as +0 whatever the fraction.

        Raises ``ValueError`` at the all-ones exponent.
        """
        pattern = np.asarray(bits, np.int64)
        field = (pattern >> self.fraction_bits) & ((1 << self.exponent_bits) - 1)
        if (field > self.max_exponent).any():
            raise ValueError("an all-ones exponent field is no number of this format")
        significand = (pattern & ((1 << self.fraction_bits) - 1)) | (1 << self.fraction_bits)
        sign = 1 - 2 * ((pattern >> (self.storage_bits - 1)) & 1)
        value = np.ldexp(
            (sign * significand).astype(np.float64), field - self.bias - self.fraction_bits
        )
        return np.where(field == 0, 0.0, value).astype(np.float32)


FLOAT32 = FloatFormat(8, 23)


@dataclass(frozen=True)
class ScaleFormat:
    """How the scale of a weight block is stored.

    ``bf16`` and ``fp32`` hold normal numbers and zero. ``fp16`` also holds its subnormal numbers,
    because the scale of a block of small weights is often one. ``e8m0`` holds the positive powers
    of two from 2^-126 to 2^127, and zero under code 0.
    """

    name: str
    exponent_bits: int
    fraction_bits: int
    signed: bool = True
    subnormals: bool = False

    @property
    def storage_bits(self) -> int:
        return self.signed + self.exponent_bits + self.fraction_bits

    @property
    def significand_bits(self) -> int:
        return self.fraction_bits + 1

    @property
    def _bias(self) -> int:
        return (1 << (self.exponent_bits - 1)) - 1

    def round(self, values: ArrayLike) -> NDArray[np.float32]:
        """Nearest value of the format; too large a magnitude saturates, too small becomes 0.

        Raises ``ValueError`` if a value is not finite, or is negative in an unsigned format.
        """
        exact = np.asarray(values, np.float64)
        if not self.signed and (exact < 0).any():
            raise ValueError(f"scales stored as {self.name} must not be negative")
        normal = FloatFormat(self.exponent_bits, self.fraction_bits)
        rounded = normal.round(exact)
        if not self.subnormals:
            return rounded
        quantum = normal.smallest * 2.0**-self.fraction_bits
        is_low = np.abs(exact) < normal.smallest
        low = np.rint(np.where(is_low, exact, 0) / quantum) * quantum
        return np.where(is_low, low.astype(np.float32) + np.float32(0), rounded)

    def encode(self, values: ArrayLike) -> NDArray[np.uint32]:
        """Stored codes of `values`, which must be values of the format."""
        exact = np.asarray(values, np.float32)
        if not np.array_equal(self.round(exact), exact):
            raise ValueError(f"scales must be representable as {self.name}; round them first")
        mantissa, exponent = np.frexp(np.abs(exact).astype(np.float64))
        field = np.maximum(exponent.astype(np.int64) - 1 + self._bias, 0)
        shift = self.fraction_bits - np.where(field == 0, exponent - 1 + self._bias - 1, 0)
        significand = np.ldexp(np.ldexp(mantissa, 1), 2 * self.fraction_bits - shift)
        fraction = np.rint(significand).astype(np.int64) & ((1 << self.fraction_bits) - 1)
        code = (field << self.fraction_bits) | fraction
        code |= np.signbit(exact).astype(np.int64) << (self.storage_bits - 1)
        return np.where(exact == 0, 0, code).astype(np.uint32)

    def decode(self, codes: ArrayLike) -> NDArray[np.float32]:
        """Values of stored codes. Raises ``ValueError`` at a code of an infinity or NaN."""
        code = np.asarray(codes, np.int64)
        field = (code >> self.fraction_bits) & ((1 << self.exponent_bits) - 1)
        if (field == (1 << self.exponent_bits) - 1).any():
            raise ValueError(f"an all-ones exponent field is no {self.name} scale")
        fraction = code & ((1 << self.fraction_bits) - 1)
        negative = (code >> (self.storage_bits - 1)) & 1 if self.signed else np.zeros_like(code)
        if self.subnormals:
            significand = np.where(field == 0, fraction, fraction | (1 << self.fraction_bits))
        else:
            significand = np.where(field == 0, 0, fraction | (1 << self.fraction_bits))
        value = np.ldexp(
            significand.astype(np.float64), np.maximum(field, 1) - self._bias - self.fraction_bits
        )
        return np.where(negative == 1, -value, value).astype(np.float32) + np.float32(0)


BF16 = ScaleFormat("bf16", 8, 7)
FP16 = ScaleFormat("fp16", 5, 10, subnormals=True)
FP32 = ScaleFormat("fp32", 8, 23)
E8M0 = ScaleFormat("e8m0", 8, 0, signed=False)
SCALE_FORMATS = {f.name: f for f in (BF16, FP16, FP32, E8M0)}
