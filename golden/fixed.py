"""Fixed-point accumulators: whole numbers of one grid for each layer.

An accumulator of W bits holds ``value / 2**E`` where E is its layer's. The compiler moves E into
scales and biases (``scale * 2**-E``), so that the machine knows whole numbers only; E comes back
where a block gets its exponent. Products are rounded to the grid, halves up; sums are exact, and
independent of their order, until one leaves the range, where it stays at the end that it passed.
"""

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .floats import FLOAT32, FloatFormat, ScaleFormat

__all__ = ["ACCUMULATORS", "AccumulatorFormat", "FixedFormat", "Grid", "accumulator_format"]

WIDTHS = range(20, 41)
"""of an accumulator, in bits"""
CONSTANT_BITS = 32
"""of a bias, a limit or a raw result in memory"""


@dataclass(frozen=True)
class FixedFormat:
    """Two's complement whole numbers of W bits, carried in float64.

    In memory a number has 32 bits: it is sign-extended, or its lowest ``W - 32`` bits are left out.

    Parameters
    ----------
    bits : W, 20 to 40
    """

    bits: int

    def __post_init__(self) -> None:
        if self.bits not in WIDTHS:
            raise ValueError(f"bits must be {WIDTHS[0]} to {WIDTHS[-1]}, not {self.bits!r}")

    @property
    def dtype(self) -> type[np.floating]:
        """numpy's type that carries its numbers."""
        return np.float64

    @property
    def storage_bits(self) -> int:
        return self.bits

    @property
    def low(self) -> int:
        """Most negative number."""
        return -(1 << (self.bits - 1))

    @property
    def high(self) -> int:
        """Largest number."""
        return (1 << (self.bits - 1)) - 1

    @property
    def exponents(self) -> range:
        """Of its grids: there the exponent fields of all numbers but 0 are 1 to 254."""
        return range(-126, self.highest_field - 127 + 1)

    @property
    def highest_field(self) -> int:
        """The largest exponent field that the number 1 can have."""
        return 254 - (self.bits - 1)

    @property
    def dropped_bits(self) -> int:
        """Lowest bits that are left out in memory."""
        return max(0, self.bits - CONSTANT_BITS)

    @property
    def kept_bits(self) -> int:
        """Bits of a number in memory, without what extends its sign."""
        return min(self.bits, CONSTANT_BITS)

    def product(self, values: ArrayLike) -> NDArray[np.float64]:
        """The nearest whole numbers to exact products, halves up.

        One whose whole part (rounded down) is out of range becomes an infinity of its sign; the
        largest result otherwise is ``high + 1``.
        """
        exact = np.asarray(values, np.float64)
        whole = np.floor(exact)
        # Exact: a product of 52 bits or fewer that is less than a half away from a whole number and
        # a half is a number of float64 with the half added, too.
        nearest = np.floor(exact + 0.5)
        nearest = np.where(whole > self.high, np.inf, nearest)
        return np.where(whole < self.low, -np.inf, nearest)

    def add(self, a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
        """``a + b``, of a number and a product; at the end of the range where it leaves it."""
        return self.saturate(np.asarray(a, np.float64) + np.asarray(b, np.float64))

    def saturate(self, values: ArrayLike) -> NDArray[np.float64]:
        """Whole numbers, at the end of the range where they leave it."""
        return np.clip(np.asarray(values, np.float64), self.low, self.high)

    def encode(self, values: ArrayLike) -> NDArray[np.uint32]:
        """The 32 bits of numbers in memory; what is left out is lost.

        Raises ``ValueError`` for what is no whole number in range.
        """
        exact = np.asarray(values, np.float64)
        if not np.array_equal(self.saturate(np.floor(exact)), exact):
            raise ValueError(f"values must be whole numbers of {self.bits} bits")
        return (exact.astype(np.int64) >> self.dropped_bits).astype(np.uint32)

    def decode(self, bits: ArrayLike) -> NDArray[np.float64]:
        """Numbers of 32 bits in memory; bits above the sign are not looked at."""
        kept = np.asarray(bits, np.int64) & ((1 << self.kept_bits) - 1)
        sign = 1 << (self.kept_bits - 1)
        return np.ldexp(((kept ^ sign) - sign).astype(np.float64), self.dropped_bits)


AccumulatorFormat = FloatFormat | FixedFormat

ACCUMULATORS = ("float32", *(f"fixed{bits}" for bits in WIDTHS))
"""Names of the accumulators' formats."""


def accumulator_format(name: str) -> AccumulatorFormat:
    """The format of one of :data:`ACCUMULATORS`."""
    if name not in ACCUMULATORS:
        listed = f"{ACCUMULATORS[0]!r}, {ACCUMULATORS[1]!r} to {ACCUMULATORS[-1]!r}"
        raise ValueError(f"accumulator must be one of {listed}, not {name!r}")
    found = re.fullmatch(r"fixed(\d+)", name)
    return FixedFormat(int(found[1])) if found else FLOAT32


@dataclass(frozen=True)
class Grid:
    """The fixed-point accumulators of a layer: whole numbers of ``2**exponent``.

    Parameters
    ----------
    form : their format
    exponent : E, one of ``form.exponents``
    """

    form: FixedFormat
    exponent: int

    def __post_init__(self) -> None:
        allowed = self.form.exponents
        if self.exponent not in allowed:
            raise ValueError(
                f"the exponent of {self.form.bits}-bit accumulators must be {allowed[0]} to "
                f"{allowed[-1]}, not {self.exponent!r}"
            )

    @property
    def name(self) -> str:
        return f"fixed{self.form.bits}"

    @property
    def unit(self) -> float:
        """What biases and limits are multiples of."""
        return 2.0 ** (self.exponent + self.form.dropped_bits)

    @property
    def field(self) -> int:
        """Exponent field of the number 1."""
        return self.exponent + 127

    def whole(self, values: ArrayLike) -> NDArray[np.float64]:
        """Values in units of the grid; of biases and limits."""
        return np.ldexp(np.asarray(values, np.float64), -self.exponent)

    def constants(self, values: ArrayLike) -> NDArray[np.float32]:
        """The nearest `values` that biases and limits can have, halves to even, within range."""
        unit = self.exponent + self.form.dropped_bits
        whole = np.rint(np.ldexp(np.asarray(values, np.float64), -unit))
        limit = 1 << (self.form.kept_bits - 1)
        # The largest number has more bits than a float32: the next lower one that fits is taken.
        most = limit - max(1, limit >> 24)
        return np.ldexp(np.clip(whole, -limit, most) + 0.0, unit).astype(np.float32)

    def holds(self, scales: NDArray[np.float32], form: ScaleFormat) -> bool:
        """Whether `form` has these scales in units of the grid, too."""
        whole = self.whole(scales)
        return bool((np.abs(whole) <= FLOAT32.largest).all()) and np.array_equal(
            form.round(whole), whole
        )

    def values(self, numbers: NDArray[np.floating]) -> NDArray[np.float64]:
        """What accumulators stand for."""
        return np.ldexp(numbers, self.exponent)

    def decode(self, bits: ArrayLike) -> NDArray[np.float64]:
        """What numbers of 32 bits in memory stand for."""
        return self.values(self.form.decode(bits))

    def raw(self, numbers: NDArray[np.floating]) -> NDArray[np.float32]:
        """What accumulators stand for after they went through memory, as the nearest float32."""
        kept = np.floor(np.ldexp(numbers, -self.form.dropped_bits))
        return FLOAT32.round(np.ldexp(kept, self.form.dropped_bits + self.exponent))
