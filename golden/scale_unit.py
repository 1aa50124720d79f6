"""Specs of what is at the foot of a column: product, sum, accumulator memory."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .array import Multiplier
from .bfp import unit_exponent
from .fixed import AccumulatorFormat, FixedFormat
from .floats import FLOAT32, FloatFormat

__all__ = [
    "AddSpec",
    "BlockProductSpec",
    "FixedAddSpec",
    "FixedProductSpec",
    "ProductSpec",
    "ScaleUnitSpec",
    "add_spec",
    "product_spec",
]


@dataclass(frozen=True)
class BlockProductSpec:
    """``S * scale * 2**e`` of an integer block sum S, whatever it is rounded to.

    The scale arrives as sign, 8-bit exponent field (biased by 127; 0 reads as zero) and fraction;
    e is that of code 1 in the activation block, from its exponent field and signedness.

    Parameters
    ----------
    sum_bits : width of S, signed
    scale_bits : significand bits of the scale with the hidden one, 1 to 24
    act_bits : m
    """

    sum_bits: int
    scale_bits: int
    act_bits: int

    def check(self, multiplier: str) -> None:
        """Raise ``ValueError`` for what does not exist."""
        if self.sum_bits not in range(2, 33):
            raise ValueError(f"sum_bits must be 2 to 32, not {self.sum_bits!r}")
        if self.scale_bits not in range(1, 25):
            raise ValueError(f"scale_bits must be 1 to 24, not {self.scale_bits!r}")
        if self.sum_bits - 1 + self.scale_bits > 52:
            raise ValueError(
                f"sum_bits - 1 + scale_bits must be 52 or less, not "
                f"{self.sum_bits - 1 + self.scale_bits}"
            )
        if multiplier not in ("lut", "dsp"):
            raise ValueError(f"multiplier must be 'lut' or 'dsp', not {multiplier!r}")

    def exact(
        self, sums: ArrayLike, scales: ArrayLike, exponents: ArrayLike, signed: ArrayLike
    ) -> NDArray[np.float64]:
        """Products of block sums, scale values, activation exponent fields and signedness.

        Raises ``ValueError`` if a sum does not fit ``sum_bits`` or a field 8 bits.
        """
        whole = np.asarray(sums, np.int64)
        limit = 1 << (self.sum_bits - 1)
        if (np.abs(whole) >= limit).any():
            raise ValueError(f"block sums must fit {self.sum_bits} bits")
        fields = np.asarray(exponents, np.int64)
        if ((fields < 0) | (fields > 255)).any():
            raise ValueError("exponent fields must fit 8 bits")
        units = (
            np.where(
                np.asarray(signed, bool),
                unit_exponent(self.act_bits, True),
                unit_exponent(self.act_bits, False),
            )
            + fields
        )
        return np.ldexp(whole * np.asarray(scales, np.float64), units)


@dataclass(frozen=True)
class ProductSpec(BlockProductSpec):
    """A block product rounded to a float.

    Parameters
    ----------
    sum_bits, scale_bits, act_bits : as of every block product
    form : format of the result
    multiplier : "lut" never becomes a DSP block
    """

    form: FloatFormat = FLOAT32
    multiplier: Multiplier = "dsp"

    def __post_init__(self) -> None:
        self.check(self.multiplier)

    @property
    def magnitude_bits(self) -> int:
        return self.sum_bits - 1

    @property
    def exact_bits(self) -> int:
        """Width of |S| times the scale's significand."""
        return self.magnitude_bits + self.scale_bits

    @property
    def rounds(self) -> bool:
        """Whether an exact product can have more bits than the result's significand."""
        return self.exact_bits > self.form.significand_bits

    def field_offset(self, signed: bool) -> int:
        """What to add to the two exponent fields for a product whose top bit is set."""
        return self.magnitude_bits - 127 + unit_exponent(self.act_bits, signed) + self.form.bias

    @property
    def latency(self) -> int:
        """Magnitude, two shifts, multiplication, normalization; two more where it rounds."""
        return 5 + 2 * self.rounds

    def compute(
        self, sums: ArrayLike, scales: ArrayLike, exponents: ArrayLike, signed: ArrayLike
    ) -> NDArray[np.float32]:
        """The rounded product of what :meth:`exact` takes."""
        return self.form.round(self.exact(sums, scales, exponents, signed))


@dataclass(frozen=True)
class FixedProductSpec(BlockProductSpec):
    """A block product rounded to whole numbers, halves up.

    The operand without a scale's width is shifted by the lowest bits of the exponent before the
    multiplication, the product by whole bytes after it.

    Parameters
    ----------
    sum_bits, scale_bits, act_bits, multiplier : as of :class:`ProductSpec`
    form : of the accumulator
    """

    form: FixedFormat
    multiplier: Multiplier = "dsp"

    def __post_init__(self) -> None:
        self.check(self.multiplier)

    @property
    def product_bits(self) -> int:
        """Width of the signed product, shifted by 7 at most."""
        return self.sum_bits + self.scale_bits + 7

    @property
    def offset(self) -> int:
        """Power of two of the product where both exponent fields are 0 in an unsigned block."""
        return unit_exponent(self.act_bits, False) - 127 - (self.scale_bits - 1)

    @property
    def latency(self) -> int:
        """Exponents, fine shift, multiplication, coarse shift, rounding."""
        return 5

    def compute(
        self, sums: ArrayLike, scales: ArrayLike, exponents: ArrayLike, signed: ArrayLike
    ) -> NDArray[np.float64]:
        """The product of what :meth:`exact` takes, as :meth:`FixedFormat.product` gives it."""
        return self.form.product(self.exact(sums, scales, exponents, signed))


@dataclass(frozen=True)
class AddSpec:
    """``round(a + b)`` or ``max(a, b)`` of two numbers of `form`."""

    form: FloatFormat = FLOAT32

    @property
    def guard_bits(self) -> int:
        """Bits below the larger significand: guard, round and sticky."""
        return 3

    @property
    def width(self) -> int:
        """Bits of the sum before normalization, the carry included."""
        return self.form.significand_bits + self.guard_bits + 1

    @property
    def latency(self) -> int:
        """Compare, swap, align coarse, align fine, add, normalize coarse, fine, round, saturate."""
        return 9

    def compute(
        self, a: ArrayLike, b: ArrayLike, maximum: ArrayLike = False, keep: ArrayLike = False
    ) -> NDArray[np.float32]:
        """Sums of `a` and `b`; where `maximum` is set their maxima, or `a` if `keep` is set too."""
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        largest = np.where(keep, a, np.maximum(a, b))
        return np.where(maximum, largest, self.form.add(a, b))


@dataclass(frozen=True)
class FixedAddSpec:
    """``a + b`` or ``max(a, b)`` of an accumulator and a product, saturated."""

    form: FixedFormat

    @property
    def latency(self) -> int:
        """Compare, choose, add, saturate."""
        return 4

    def compute(
        self, a: ArrayLike, b: ArrayLike, maximum: ArrayLike = False, keep: ArrayLike = False
    ) -> NDArray[np.float64]:
        """Sums of `a` and `b`; where `maximum` is set their maxima, or `a` if `keep` is set too."""
        return self.form.saturate(self._exact(a, b, maximum, keep))

    def saturated(
        self, a: ArrayLike, b: ArrayLike, maximum: ArrayLike = False, keep: ArrayLike = False
    ) -> NDArray[np.bool_]:
        """Whether :meth:`compute` would give another number without limits of the range."""
        exact = self._exact(a, b, maximum, keep)
        return exact != self.form.saturate(exact)

    def _exact(
        self, a: ArrayLike, b: ArrayLike, maximum: ArrayLike, keep: ArrayLike
    ) -> NDArray[np.float64]:
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        return np.where(maximum, np.where(keep, a, np.maximum(a, b)), a + b)


def product_spec(
    block: BlockProductSpec, form: AccumulatorFormat, multiplier: Multiplier
) -> ProductSpec | FixedProductSpec:
    """The block product in the format of the accumulators."""
    widths = block.sum_bits, block.scale_bits, block.act_bits
    if isinstance(form, FixedFormat):
        return FixedProductSpec(*widths, form, multiplier)
    return ProductSpec(*widths, form, multiplier)


def add_spec(form: AccumulatorFormat) -> AddSpec | FixedAddSpec:
    """The sum in the format of the accumulators."""
    return FixedAddSpec(form) if isinstance(form, FixedFormat) else AddSpec(form)


@dataclass(frozen=True)
class ScaleUnitSpec:
    """One column's scale unit: product, adder and a memory of ``depth`` accumulators.

    Parameters
    ----------
    product, add : the two arithmetic units; both in the accumulator's format
    depth : accumulators of the column, 2 or more
    """

    product: ProductSpec | FixedProductSpec
    add: AddSpec | FixedAddSpec
    depth: int = 512

    def __post_init__(self) -> None:
        if self.depth < 2:
            raise ValueError(f"depth must be at least 2, not {self.depth!r}")
        if self.product.form != self.add.form:
            raise ValueError("product and adder must have one format")

    @property
    def form(self) -> AccumulatorFormat:
        return self.add.form

    @property
    def address_bits(self) -> int:
        return (self.depth - 1).bit_length()

    @property
    def read_stage(self) -> int:
        """Cycles from a block sum to the read of its accumulator."""
        return self.product.latency - 2

    @property
    def write_stage(self) -> int:
        """Cycles from a block sum to the write of its accumulator."""
        return self.product.latency + self.add.latency

    @property
    def revisit(self) -> int:
        """Least cycles between two updates of one accumulator."""
        return self.write_stage - self.read_stage + 1
