"""Float layouts and the shifters that the floating-point units share."""

from collections.abc import Iterable

from amaranth.hdl import Cat, Module, Mux, ShapeLike, Signal, Value, signed
from amaranth.lib import data

from ..golden.fixed import AccumulatorFormat, FixedFormat
from ..golden.floats import FloatFormat

__all__ = [
    "accumulator_shape",
    "float_layout",
    "left_justify",
    "ordered",
    "scale_layout",
    "shift_distances",
]


def accumulator_shape(form: AccumulatorFormat) -> ShapeLike:
    """A float or a whole number."""
    return signed(form.bits) if isinstance(form, FixedFormat) else float_layout(form)


def float_layout(form: FloatFormat) -> data.StructLayout:
    """A float as a struct, fraction lowest."""
    return data.StructLayout(
        {"fraction": form.fraction_bits, "exponent": form.exponent_bits, "sign": 1}
    )


def ordered(bits: Value, form: AccumulatorFormat) -> Value:
    """A number's bits as an integer; these are in the order of the numbers."""
    if isinstance(form, FixedFormat):
        return bits.as_signed()
    return Cat(bits[:-1] ^ bits[-1].replicate(len(bits) - 1), ~bits[-1])


def scale_layout(significand_bits: int) -> data.StructLayout:
    """A normalized scale: 8-bit exponent field biased by 127, 0 for zero.

    The fraction, if the format has one, is lowest.
    """
    fraction = {"fraction": significand_bits - 1} if significand_bits > 1 else {}
    return data.StructLayout({**fraction, "exponent": 8, "sign": 1})


def shift_distances(width: int) -> tuple[list[int], list[int]]:
    """The powers of two that shift a `width`-bit number by any distance, coarse ones and fine."""
    count = (width - 1).bit_length()
    distances = [1 << k for k in reversed(range(count))]
    return distances[: count // 2], distances[count // 2 :]


def left_justify(
    m: Module, value: Value, distances: Iterable[int], name: str
) -> tuple[Value, Value]:
    """Shift out leading zeros by the given distances, largest first.

    Returns the shifted value and, as a number, the total distance in units of the smallest one.
    """
    taken = []
    for distance in distances:
        empty = Signal(name=f"{name}_empty_{distance}")
        shifted = Signal(len(value), name=f"{name}_by_{distance}")
        m.d.comb += empty.eq(~value[-distance:].any())
        m.d.comb += shifted.eq(Mux(empty, value << distance, value))
        value, taken = shifted, [empty, *taken]
    return value, Cat(*taken)
