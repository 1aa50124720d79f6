"""The product of a block sum, its scale and its exponent."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ..golden.scale_unit import BlockProductSpec, ProductSpec
from .cuts import Cut, cuts
from .dsp_block import block_product
from .floats import float_layout, left_justify, scale_layout, shift_distances
from .pe import booth_product

__all__ = ["FloatProduct", "operand_members"]


def operand_members(spec: BlockProductSpec) -> dict[str, wiring.Member]:
    """The inputs of a unit that multiplies a block sum, whatever it rounds to."""
    return {
        "i_sum": In(signed(spec.sum_bits)),
        "i_scale": In(scale_layout(spec.scale_bits)),
        "i_exponent": In(8),
        "i_signed": In(1),
    }


class FloatProduct(wiring.Component):
    """``round(S * scale * 2**e)``, pipelined.

    **Latency**: ``spec.latency`` cycles, a cut each. The steps: magnitude, coarse shift, fine
    shift, multiply, deliver, normalize; where the exact product can be wider than a significand,
    round and saturate.
    **Throughput**: one product a cycle.

    Members
    -------
    i_sum : block sum S
    i_scale : see :func:`scale_layout`
    i_exponent : exponent field of the activation block
    i_signed : whether the activation block is signed
    o : the product
    """

    def __init__(self, spec: ProductSpec):
        self.spec = spec
        super().__init__(operand_members(spec) | {"o": Out(float_layout(spec.form))})

    def elaborate(self, platform):
        m = Module()
        spec, form = self.spec, self.spec.form
        coarse, fine = shift_distances(spec.magnitude_bits)

        (
            magnified, justified_coarse, justified_fine, multiplied, delivered,
            normalized, rounding, saturated,
        ) = cuts(m, spec)  # fmt: skip

        # The scale is stationary until the first cut; all that is made of it goes through the cuts.
        negative = self.i_sum[-1]
        magnitude = (self.i_sum ^ negative.replicate(spec.sum_bits)) + negative
        magnitude_1 = magnified("magnitude_1", magnitude[: spec.magnitude_bits])
        sign_1 = magnified("sign_1", negative ^ self.i_scale.sign)
        field_1 = magnified("field_1", self.i_exponent + self.i_scale.exponent)
        signed_1 = magnified("signed_1", self.i_signed)
        zero_1 = magnified("zero_1", ~self.i_scale.exponent.any())
        factor_1 = magnified(
            "factor_1", Cat(self.i_scale.as_value()[: spec.scale_bits - 1], Const(1, 1))
        )

        # Shift out the leading zeros of the magnitude.
        shifted, leading = left_justify(m, magnitude_1, coarse, "coarse")
        offset = spec.field_offset(signed=False)
        shifted_2 = justified_coarse("shifted_2", shifted)
        leading_2 = justified_coarse("leading_2", leading)
        field_2 = justified_coarse("field_2", (field_1 + offset + signed_1)[:11].as_signed())
        sign_2, zero_2 = justified_coarse("sign_2", sign_1), justified_coarse("zero_2", zero_1)
        factor_2 = justified_coarse("factor_2", factor_1)

        shifted, leading = left_justify(m, shifted_2, fine, "fine")
        # Registers around the multiplication in a block are inside of it.
        block = spec.multiplier == "ecp5-dsp" and spec.scale_bits > 1
        around = Cut(m, registered=False) if block else justified_fine
        shifted_3 = around("shifted_3", shifted)
        leading_3 = justified_fine("leading_3", Cat(leading, leading_2))
        field_3, sign_3 = justified_fine("field_3", field_2), justified_fine("sign_3", sign_2)
        zero_3 = justified_fine("zero_3", zero_2 | ~shifted[-1])
        factor_3 = around("factor_3", factor_2)

        if block:
            product = block_product(m, shifted_3, factor_3, justified_fine, multiplied, delivered)
            product_4 = product[: spec.exact_bits]
        else:
            if spec.multiplier == "lut":
                unsigned = (
                    Cat(operand, Const(0, 1)).as_signed() for operand in (factor_3, shifted_3)
                )
                value, carry = booth_product(m, *unsigned)
                product = value + carry
            else:
                product = shifted_3 * factor_3
            product_4 = multiplied("product_4", product[: spec.exact_bits])
            product_4 = delivered("product_delivered", product_4)
        field_4 = multiplied("field_4", (field_3 - leading_3)[:11].as_signed())
        field_4 = delivered("field_delivered", field_4)
        sign_4 = delivered("sign_delivered", multiplied("sign_4", sign_3))
        zero_4 = delivered("zero_delivered", multiplied("zero_4", zero_3))

        # The leading one of the product is in one of the two top bits.
        top = product_4[-1]
        normal = Signal(spec.exact_bits)
        m.d.comb += normal.eq(Mux(top, product_4, product_4 << 1))
        field = Signal(signed(11))
        m.d.comb += field.eq(field_4 + top - 1)
        tail = spec.exact_bits - form.significand_bits
        if not spec.rounds:
            over = Mux(top, field_4 > form.max_exponent, field_4 > form.max_exponent + 1)
            under = Mux(top, field_4 < 1, field_4 < 2)
            fraction = normal[:-1] << -tail
            result = Signal(float_layout(form), reset_less=True)
            normalized.assign(
                result.sign.eq(sign_4),
                result.fraction.eq(fraction | over.replicate(form.fraction_bits)),
                result.exponent.eq(Mux(over, form.max_exponent, field)),
            )
            with m.If(under | zero_4):
                normalized.assign(result.eq(0))
            m.d.comb += self.o.eq(result)
            return m

        fraction_5 = normalized("fraction_5", normal[tail:-1])
        sticky = normal[: tail - 1].any() if tail > 1 else Const(0, 1)
        up_5 = normalized("up_5", normal[tail - 1] & (sticky | normal[tail]))
        field_5, sign_5 = normalized("field_5", field), normalized("sign_5", sign_4)
        zero_5 = normalized("zero_5", zero_4)

        # Round; a carry out of the fraction raises the exponent.
        rounded = Signal(signed(form.fraction_bits + 11))
        m.d.comb += rounded.eq(Cat(fraction_5, field_5).as_signed() + up_5)
        fraction_6 = rounding("fraction_6", rounded[: form.fraction_bits])
        field_6 = rounding("field_6", rounded[form.fraction_bits :].as_signed())
        sign_6, zero_6 = rounding("sign_6", sign_5), rounding("zero_6", zero_5)

        # Saturate and flush.
        result = Signal(float_layout(form), reset_less=True)
        over = field_6 > form.max_exponent
        saturated.assign(
            result.sign.eq(sign_6),
            result.exponent.eq(Mux(over, form.max_exponent, field_6)),
            result.fraction.eq(fraction_6 | over.replicate(form.fraction_bits)),
        )
        with m.If((field_6 < 1) | zero_6):
            saturated.assign(result.eq(0))
        m.d.comb += self.o.eq(result)
        return m
