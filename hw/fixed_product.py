"""The product of a block sum, its scale and its exponent as a whole number."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import Out

from ..golden.fixed import FixedFormat
from ..golden.scale_unit import FixedProductSpec
from .cuts import cuts
from .dsp_block import block_product
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

    **Latency**: ``spec.latency`` cycles, a cut each. The steps: sum of the exponents, fine shift,
    multiply, deliver, coarse shift, round.
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
        summed, fine, multiplied, delivered, coarse, rounded = cuts(m, spec)

        # The scale is stationary until the first cut; all that is made of it goes through the cuts.
        total_1 = summed("total_1", (self.i_exponent + self.i_scale.exponent + self.i_signed)[:9])
        negative, sum_bits = self.i_scale.sign, spec.sum_bits
        scaled = spec.scale_bits > 1
        block_sum = self.i_sum
        if not scaled:
            block_sum = Mux(negative, -block_sum, block_sum)[:sum_bits].as_signed()
        sum_1 = summed.signal("sum_1", block_sum)
        with m.If(~self.i_scale.exponent.any()):
            summed.assign(sum_1.eq(0))
        significand = Cat(self.i_scale.as_value()[: spec.scale_bits - 1], Const(1, 1))
        factor = Mux(negative, -significand, significand)[: spec.scale_bits + 1].as_signed()

        # One operand is shifted by the rest, the scale's if that is multiplied in a DSP block.
        rest, bytes_2 = total_1[:3], fine("bytes_2", total_1[3:])
        live_2 = fine("live_2", sum_1.any())
        block = scaled and spec.multiplier == "ecp5-dsp"
        if not scaled:
            product = fine("sum_2", sum_1 << rest)
        elif block:
            factor_1 = summed("factor_1", factor)
            product = block_product(m, sum_1, factor_1 << rest, fine, multiplied, delivered)
        elif spec.multiplier == "dsp":
            factor_1 = summed("factor_1", factor)
            product = fine("sum_2", sum_1) * fine("factor_2", factor_1 << rest)
        else:
            value, carry = booth_product(
                m,
                fine("factor_2", summed("factor_1", factor)),
                fine("sum_2", sum_1 << rest),
            )
            product = value + carry

        # A product of `highest` bytes has the largest shift to the left of one that may be in
        # range, one of fewer than `lowest` is less than a half whatever it is.
        highest = (bits - 1 - spec.offset) // 8
        lowest = (-width - spec.offset) // 8 + 1
        left = 8 * highest + spec.offset
        count = highest - lowest + 1
        small = bytes_2 < lowest
        index = (highest - bytes_2)[: (count - 1).bit_length()]
        if block and count < 1 << len(index):
            # Shifted by more than any other, nothing but signs is left, which round to zero.
            index |= small.replicate(len(index))
            product_3 = Signal(signed(width), name="product_delivered")
            m.d.comb += product_3.eq(product[:width])
        elif block:
            small_3 = delivered("small_delivered", multiplied("small_3", small))
            product_3 = Signal(signed(width), name="product_delivered")
            m.d.comb += product_3.eq(Mux(small_3, 0, product[:width]))
        else:
            product_3 = multiplied.signal("product_3", product[:width].as_signed())
            with m.If(small):
                multiplied.assign(product_3.eq(0))
            product_3 = delivered("product_delivered", product_3)
        huge_3 = multiplied("huge_3", live_2 & (bytes_2 > highest))
        shift_3 = delivered("shift_delivered", multiplied("shift_3", index))
        huge_3, sign_3 = delivered("huge_delivered", huge_3), product_3[-1]

        # Shift right by whole bytes. What is left has a bit below the whole numbers; what
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
        value_4 = coarse("value_4", value[1:].as_signed())
        half_4 = coarse("half_4", value[0])
        over_4, sign_4 = coarse("over_4", Cat(*over)), coarse("sign_4", sign_3)

        result = Signal(self.o.shape(), reset_less=True)
        rounded.assign(
            result.value.eq(value_4 + half_4),
            result.above.eq(over_4.any() & ~sign_4),
            result.below.eq(over_4.any() & sign_4),
        )
        m.d.comb += self.o.eq(result)
        return m
