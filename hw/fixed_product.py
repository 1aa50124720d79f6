"""The product of a block sum, its scale and its exponent as a whole number."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import Out

from ..golden.fixed import FixedFormat
from ..golden.scale_unit import FixedProductSpec
from .pe import booth_product
from .product import operand_members

__all__ = ["FixedProduct", "product_layout"]


def product_layout(form: FixedFormat) -> data.StructLayout:
    """A product: its ``value``, or that it is ``above`` or ``below`` all numbers of the format."""
    return data.StructLayout({"value": signed(form.bits + 1), "above": 1, "below": 1})


class FixedProduct(wiring.Component):
    """``S * scale * 2**e`` rounded to whole numbers, halves up, pipelined.

    The exponents' sum is split into whole bytes, by which the product is shifted, and the rest, by
    which an operand was shifted before.

    **Latency**: ``spec.latency`` cycles: exponents, fine shift, multiplication, coarse shift,
    rounding.
    **Throughput**: one product a cycle.

    Members
    -------
    i_sum : block sum S
    i_scale : see :func:`~shiftcore.hw.floats.scale_layout`
    i_exponent : exponent field of the activation block
    i_signed : whether the activation block is signed
    o : see :func:`product_layout`
    """

    def __init__(self, spec: FixedProductSpec):
        self.spec = spec
        super().__init__(operand_members(spec) | {"o": Out(product_layout(spec.form))})

    def elaborate(self, platform):
        m = Module()
        spec, bits = self.spec, self.spec.form.bits
        width = spec.product_bits

        def register(name, value):
            held = Signal(value.shape(), name=name, reset_less=True)
            m.d.sync += held.eq(value)
            return held

        # Cycle 0: the sum of the exponents; from here on the stationary scale may change.
        total_1 = register("total_1", (self.i_exponent + self.i_scale.exponent + self.i_signed)[:9])
        negative, sum_bits = self.i_scale.sign, spec.sum_bits
        scaled = spec.scale_bits > 1
        block_sum = self.i_sum
        if not scaled:
            block_sum = Mux(negative, -block_sum, block_sum)[:sum_bits].as_signed()
        sum_1 = register("sum_1", block_sum)
        with m.If(~self.i_scale.exponent.any()):
            m.d.sync += sum_1.eq(0)
        significand = Cat(self.i_scale.as_value()[: spec.scale_bits - 1], Const(1, 1))
        factor = Mux(negative, -significand, significand)[: spec.scale_bits + 1].as_signed()

        # Cycle 1: shift one operand by the rest, the scale's if that is multiplied in a DSP block.
        rest, bytes_2 = total_1[:3], register("bytes_2", total_1[3:])
        live_2 = register("live_2", sum_1.any())
        if not scaled:
            product = register("sum_2", sum_1 << rest)
        elif spec.multiplier == "dsp":
            factor_1 = register("factor_1", factor)
            product = register("sum_2", sum_1) * register("factor_2", factor_1 << rest)
        else:
            value, carry = booth_product(
                m,
                register("factor_2", register("factor_1", factor)),
                register("sum_2", sum_1 << rest),
            )
            product = value + carry

        # Cycle 2: multiply. A product of `highest` bytes has the largest shift to the left of one
        # that may be in range, one of fewer than `lowest` is less than a half whatever it is.
        highest = (bits - 1 - spec.offset) // 8
        lowest = (-width - spec.offset) // 8 + 1
        left = 8 * highest + spec.offset
        count = highest - lowest + 1
        product_3 = register("product_3", product[:width].as_signed())
        with m.If(bytes_2 < lowest):
            m.d.sync += product_3.eq(0)
        huge_3 = register("huge_3", live_2 & (bytes_2 > highest))
        index = (highest - bytes_2)[: (count - 1).bit_length()]
        shift_3 = register("shift_3", index)
        sign_3 = product_3[-1]

        # Cycle 3: shift right by whole bytes. What is left has a bit below the whole numbers; what
        # falls off above must repeat the sign.
        value = Cat(Const(0, 1 + left), product_3)
        over = [huge_3]
        for level in reversed(range(len(shift_3))):
            distance, kept = 8 << level, bits + 1 + 8 * ((1 << level) - 1)
            shifted = Mux(shift_3[level], Cat(value[distance:], sign_3.replicate(distance)), value)
            kept = min(kept, len(value))
            value = Signal(kept, name=f"shifted_by_{distance}")
            m.d.comb += value.eq(shifted)
            if kept < len(shifted):
                over.append((shifted[kept:] ^ sign_3.replicate(len(shifted) - kept)).any())
        over.append(value[-1] ^ sign_3)
        value_4 = register("value_4", value[1:].as_signed())
        half_4 = register("half_4", value[0])
        over_4, sign_4 = register("over_4", Cat(*over)), register("sign_4", sign_3)

        # Cycle 4: round.
        result = Signal(self.o.shape(), reset_less=True)
        m.d.sync += [
            result.value.eq(value_4 + half_4),
            result.above.eq(over_4.any() & ~sign_4),
            result.below.eq(over_4.any() & sign_4),
        ]
        m.d.comb += self.o.eq(result)
        return m
