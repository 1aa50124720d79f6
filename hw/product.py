"""The product of a block sum, its scale and its exponent."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ..golden.scale_unit import BlockProductSpec, ProductSpec
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

    **Latency**: ``spec.latency`` cycles: magnitude, coarse shift, fine shift, multiplication,
    normalization (5); where the exact product can be wider than a significand, rounding and
    saturation (2 more).
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

        def register(name, value):
            held = Signal(value.shape(), name=name, reset_less=True)
            m.d.sync += held.eq(value)
            return held

        # Cycle 0: sign and magnitude; from here on the stationary scale may change.
        negative = self.i_sum[-1]
        magnitude = (self.i_sum ^ negative.replicate(spec.sum_bits)) + negative
        magnitude_1 = register("magnitude_1", magnitude[: spec.magnitude_bits])
        sign_1 = register("sign_1", negative ^ self.i_scale.sign)
        field_1 = register("field_1", self.i_exponent + self.i_scale.exponent)
        signed_1 = register("signed_1", self.i_signed)
        zero_1 = register("zero_1", ~self.i_scale.exponent.any())
        factor_1 = register(
            "factor_1", Cat(self.i_scale.as_value()[: spec.scale_bits - 1], Const(1, 1))
        )

        # Cycles 1 and 2: shift out the leading zeros of the magnitude.
        shifted, leading = left_justify(m, magnitude_1, coarse, "coarse")
        offset = spec.field_offset(signed=False)
        shifted_2 = register("shifted_2", shifted)
        leading_2 = register("leading_2", leading)
        field_2 = register("field_2", (field_1 + offset + signed_1)[:11].as_signed())
        sign_2, zero_2 = register("sign_2", sign_1), register("zero_2", zero_1)
        factor_2 = register("factor_2", factor_1)

        shifted, leading = left_justify(m, shifted_2, fine, "fine")
        shifted_3 = register("shifted_3", shifted)
        leading_3 = register("leading_3", Cat(leading, leading_2))
        field_3, sign_3 = register("field_3", field_2), register("sign_3", sign_2)
        zero_3 = register("zero_3", zero_2 | ~shifted[-1])
        factor_3 = register("factor_3", factor_2)

        # Cycle 3: multiply; the leading one is now in one of the two top bits.
        if spec.multiplier == "dsp":
            product = shifted_3 * factor_3
        else:
            value, carry = booth_product(
                m, Cat(factor_3, Const(0, 1)).as_signed(), Cat(shifted_3, Const(0, 1)).as_signed()
            )
            product = value + carry
        product_4 = register("product_4", product[: spec.exact_bits])
        field_4 = register("field_4", (field_3 - leading_3)[:11].as_signed())
        sign_4, zero_4 = register("sign_4", sign_3), register("zero_4", zero_3)

        # Cycle 4: normalize.
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
            m.d.sync += result.sign.eq(sign_4)
            m.d.sync += result.fraction.eq(fraction | over.replicate(form.fraction_bits))
            m.d.sync += result.exponent.eq(Mux(over, form.max_exponent, field))
            with m.If(under | zero_4):
                m.d.sync += result.eq(0)
            m.d.comb += self.o.eq(result)
            return m

        fraction_5 = register("fraction_5", normal[tail:-1])
        sticky = normal[: tail - 1].any() if tail > 1 else Const(0, 1)
        up_5 = register("up_5", normal[tail - 1] & (sticky | normal[tail]))
        field_5, sign_5 = register("field_5", field), register("sign_5", sign_4)
        zero_5 = register("zero_5", zero_4)

        # Cycle 5: round; a carry out of the fraction raises the exponent.
        rounded = Signal(signed(form.fraction_bits + 11))
        m.d.comb += rounded.eq(Cat(fraction_5, field_5).as_signed() + up_5)
        fraction_6 = register("fraction_6", rounded[: form.fraction_bits])
        field_6 = register("field_6", rounded[form.fraction_bits :].as_signed())
        sign_6, zero_6 = register("sign_6", sign_5), register("zero_6", zero_5)

        # Cycle 6: saturate and flush.
        result = Signal(float_layout(form), reset_less=True)
        over = field_6 > form.max_exponent
        m.d.sync += [
            result.sign.eq(sign_6),
            result.exponent.eq(Mux(over, form.max_exponent, field_6)),
            result.fraction.eq(fraction_6 | over.replicate(form.fraction_bits)),
        ]
        with m.If((field_6 < 1) | zero_6):
            m.d.sync += result.eq(0)
        m.d.comb += self.o.eq(result)
        return m
