"""Specs of what is at the foot of a column: product, sum, accumulator memory."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .array import family_of
from .bfp import unit_exponent
from .fixed import AccumulatorFormat, FixedFormat
from .floats import FLOAT32, FloatFormat
from .pipeline import BALANCED, AccumulatorMemory, Pipeline, Pipelined, check_cuts

__all__ = [
    "MULTIPLIERS",
    "AddSpec",
    "BlockProductSpec",
    "FixedAddSpec",
    "FixedProductSpec",
    "Multiplier",
    "ProductSpec",
    "ScaleUnitSpec",
    "add_spec",
    "block_ram_bits",
    "product_spec",
]

Multiplier = Literal["lut", "dsp", "ecp5-dsp"]

MULTIPLIERS: tuple[Multiplier, ...] = get_args(Multiplier)
"""Forms of the multiplication by a scale."""
BLOCK_BITS = 18
"""Widest operand of MULT18X18D, the multiplier of ECP5's DSP blocks."""
BLOCK_RAM_WIDTHS = {512: 36, 1024: 18, 2048: 9, 4096: 4, 8192: 2, 16384: 1}
"""Words of DP16KD, ECP5's block RAM, and their bits."""


def block_ram_bits(depth: int) -> int:
    """Of the widest words of which a DP16KD has `depth`."""
    return max(bits for words, bits in BLOCK_RAM_WIDTHS.items() if words >= depth)


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
        if multiplier not in MULTIPLIERS:
            listed = ", ".join(map(repr, MULTIPLIERS))
            raise ValueError(f"multiplier must be one of {listed}, not {multiplier!r}")
        if multiplier == "ecp5-dsp" and max(self.operand_bits) > BLOCK_BITS:
            raise ValueError(
                f"multiplier 'ecp5-dsp' of scale units takes {BLOCK_BITS} bits at most, "
                f"not {max(self.operand_bits)}"
            )

    @property
    def operand_bits(self) -> tuple[int, int]:
        """Widths of what is multiplied, made of the block sum and of the scale's significand."""
        return self.sum_bits, self.scale_bits

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
class ProductSpec(Pipelined, BlockProductSpec):
    """A block product rounded to a float.

    Its steps: magnitude of the sum, shift out leading zeros, coarse and fine; multiply, deliver
    (nothing: a second register for the multiplication), normalize; where it rounds, round and
    saturate.

    Parameters
    ----------
    sum_bits, scale_bits, act_bits : as of every block product
    form : format of the result
    multiplier : "lut" never becomes a DSP block, "dsp" leaves the choice to the synthesizer,
        "ecp5-dsp" instantiates one of ECP5 with the registers around the multiplication inside
    cuts : steps after which there are registers
    """

    STEPS = (
        "magnitude", "coarse", "fine", "multiply", "deliver", "normalize", "round", "saturate",
    )  # fmt: skip

    form: FloatFormat = FLOAT32
    multiplier: Multiplier = "dsp"
    cuts: tuple[str, ...] = BALANCED.product

    def __post_init__(self) -> None:
        self.check(self.multiplier)
        check_cuts(self.cuts, self.STEPS)

    @property
    def steps(self) -> tuple[str, ...]:
        return self.STEPS if self.rounds else self.STEPS[:-2]

    @property
    def operand_bits(self) -> tuple[int, int]:
        """Of magnitude and significand, both unsigned."""
        return self.magnitude_bits, self.scale_bits

    @property
    def family(self) -> str | None:
        """The FPGA family whose cells are instantiated; None if no vendor's are."""
        return family_of(self.multiplier)

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

    def compute(
        self, sums: ArrayLike, scales: ArrayLike, exponents: ArrayLike, signed: ArrayLike
    ) -> NDArray[np.float32]:
        """The rounded product of what :meth:`exact` takes."""
        return self.form.round(self.exact(sums, scales, exponents, signed))


@dataclass(frozen=True)
class FixedProductSpec(Pipelined, BlockProductSpec):
    """A block product rounded to whole numbers, halves up.

    An operand is shifted by the lowest bits of the exponent before the multiplication, the product
    by whole bytes after it. The steps: sum of the exponents, fine shift, multiply, deliver (as of
    :class:`ProductSpec`), coarse shift, round.

    Parameters
    ----------
    sum_bits, scale_bits, act_bits, multiplier, cuts : as of :class:`ProductSpec`
    form : of the accumulator
    """

    STEPS = ("exponents", "fine", "multiply", "deliver", "coarse", "round")

    form: FixedFormat
    multiplier: Multiplier = "dsp"
    cuts: tuple[str, ...] = BALANCED.fixed_product

    def __post_init__(self) -> None:
        self.check(self.multiplier)
        check_cuts(self.cuts, self.STEPS)

    @property
    def operand_bits(self) -> tuple[int, int]:
        """Of the sum and of the significand with its sign, shifted by 7 at most; signed."""
        return self.sum_bits, self.scale_bits + 8

    @property
    def family(self) -> str | None:
        """The FPGA family whose cells are instantiated; None if no vendor's are."""
        return family_of(self.multiplier)

    @property
    def product_bits(self) -> int:
        """Width of the signed product, shifted by 7 at most."""
        return self.sum_bits + self.scale_bits + 7

    @property
    def offset(self) -> int:
        """Power of two of the product where both exponent fields are 0 in an unsigned block."""
        return unit_exponent(self.act_bits, False) - 127 - (self.scale_bits - 1)

    def compute(
        self, sums: ArrayLike, scales: ArrayLike, exponents: ArrayLike, signed: ArrayLike
    ) -> NDArray[np.float64]:
        """The product of what :meth:`exact` takes, as :meth:`FixedFormat.product` gives it."""
        return self.form.product(self.exact(sums, scales, exponents, signed))


@dataclass(frozen=True)
class AddSpec(Pipelined):
    """``round(a + b)`` or ``max(a, b)`` of two numbers of `form`, with the `cuts` of the steps."""

    STEPS = BALANCED.add

    form: FloatFormat = FLOAT32
    cuts: tuple[str, ...] = BALANCED.add

    def __post_init__(self) -> None:
        check_cuts(self.cuts, self.STEPS)

    @property
    def guard_bits(self) -> int:
        """Bits below the larger significand: guard, round and sticky."""
        return 3

    @property
    def width(self) -> int:
        """Bits of the sum before normalization, the carry included."""
        return self.form.significand_bits + self.guard_bits + 1

    def compute(
        self, a: ArrayLike, b: ArrayLike, maximum: ArrayLike = False, keep: ArrayLike = False
    ) -> NDArray[np.float32]:
        """Sums of `a` and `b`; where `maximum` is set their maxima, or `a` if `keep` is set too."""
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        largest = np.where(keep, a, np.maximum(a, b))
        return np.where(maximum, largest, self.form.add(a, b))


@dataclass(frozen=True)
class FixedAddSpec(Pipelined):
    """``a + b`` or ``max(a, b)`` of an accumulator and a product, saturated, with the `cuts`."""

    STEPS = BALANCED.fixed_add

    form: FixedFormat
    cuts: tuple[str, ...] = BALANCED.fixed_add

    def __post_init__(self) -> None:
        check_cuts(self.cuts, self.STEPS)

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
    block: BlockProductSpec,
    form: AccumulatorFormat,
    multiplier: Multiplier,
    pipeline: Pipeline = BALANCED,
) -> ProductSpec | FixedProductSpec:
    """The block product in the format of the accumulators."""
    widths = block.sum_bits, block.scale_bits, block.act_bits
    if isinstance(form, FixedFormat):
        return FixedProductSpec(*widths, form, multiplier, pipeline.fixed_product)
    return ProductSpec(*widths, form, multiplier, pipeline.product)


def add_spec(form: AccumulatorFormat, pipeline: Pipeline = BALANCED) -> AddSpec | FixedAddSpec:
    """The sum in the format of the accumulators."""
    if isinstance(form, FixedFormat):
        return FixedAddSpec(form, pipeline.fixed_add)
    return AddSpec(form, pipeline.add)


@dataclass(frozen=True)
class ScaleUnitSpec:
    """One column's scale unit: product, adder and a memory of ``depth`` accumulators.

    An accumulator is fetched in two steps: read from the memory, which takes a cycle, and choose
    between it and the bias.

    Parameters
    ----------
    product, add : the two arithmetic units; both in the accumulator's format
    depth : accumulators of the column, 2 or more
    cuts : steps of the fetch after which there are registers; after "read" the drain has one, too
    memory : the FPGA family whose block RAMs are instantiated, with the registers after "read"
        inside; None leaves the memory to the synthesizer
    shared : one read port serves pixels and the drain: none of the former from a read of the latter
        until what it found was used; not with registers after "read"
    """

    product: ProductSpec | FixedProductSpec
    add: AddSpec | FixedAddSpec
    depth: int = 512
    cuts: tuple[str, ...] = BALANCED.fetch
    memory: AccumulatorMemory = None
    shared: bool = False

    def __post_init__(self) -> None:
        if self.depth < 2:
            raise ValueError(f"depth must be at least 2, not {self.depth!r}")
        if self.product.form != self.add.form:
            raise ValueError("product and adder must have one format")
        check_cuts(self.cuts, ("read", "choose"))
        if self.memory == "ecp5" and "read" not in self.cuts:
            raise ValueError(f"memory 'ecp5' needs the cut 'read', not {self.cuts!r}")
        if self.shared and "read" in self.cuts:
            raise ValueError(f"a shared port needs cuts without 'read', not {self.cuts!r}")
        if self.memory == "ecp5" and self.depth > max(BLOCK_RAM_WIDTHS):
            raise ValueError(
                f"block RAMs of ECP5 hold {max(BLOCK_RAM_WIDTHS)} accumulators at most, "
                f"not {self.depth}"
            )
        if self.read_stage < 0:
            raise ValueError(
                f"the product must take the {self.fetch_cycles} cycles of a fetch or more, "
                f"not {self.product.latency}"
            )

    @property
    def form(self) -> AccumulatorFormat:
        return self.add.form

    @property
    def family(self) -> str | None:
        """The FPGA family whose cells are instantiated; None if no vendor's are."""
        return self.memory or self.product.family

    @property
    def address_bits(self) -> int:
        return (self.depth - 1).bit_length()

    @property
    def fetch_cycles(self) -> int:
        """Cycles from the read of an accumulator to the adder."""
        return 1 + len(self.cuts)

    @property
    def drain_cycles(self) -> int:
        """Cycles that a read for the drain takes."""
        return 1 + ("read" in self.cuts)

    @property
    def read_stage(self) -> int:
        """Cycles from a block sum to the read of its accumulator, which joins the product."""
        return self.product.latency - self.fetch_cycles

    @property
    def bias_stage(self) -> int:
        """Cycles from a block sum to the cycle in which a bias is taken: it is needed after it."""
        return self.read_stage + ("read" in self.cuts)

    @property
    def write_stage(self) -> int:
        """Cycles from a block sum to the write of its accumulator."""
        return self.product.latency + self.add.latency

    @property
    def revisit(self) -> int:
        """Least cycles between two updates of one accumulator."""
        return self.write_stage - self.read_stage + 1
