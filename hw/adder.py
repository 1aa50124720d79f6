"""The floating-point adder, which also takes maxima."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ..golden.scale_unit import AddSpec
from .cuts import cuts
from .floats import float_layout, left_justify, shift_distances

__all__ = ["FloatAdder"]


class FloatAdder(wiring.Component):
    """``round(a + b)``, or the larger of the two; one path, operands ordered by magnitude.

    **Latency**: ``spec.latency`` cycles, a cut each. The steps: compare, order, align coarse, align
    fine, add, normalize coarse, normalize fine, round, saturate.
    **Throughput**: one sum a cycle.

    Members
    -------
    i_a, i_b : operands
    i_maximum : take the maximum instead of the sum
    i_keep : with ``i_maximum``, take `a`
    o : the result
    """

    def __init__(self, spec: AddSpec):
        self.spec = spec
        layout = float_layout(spec.form)
        super().__init__(
            {
                "i_a": In(layout),
                "i_b": In(layout),
                "i_maximum": In(1),
                "i_keep": In(1),
                "o": Out(layout),
            }
        )

    def elaborate(self, platform):
        m = Module()
        form, guard = self.spec.form, self.spec.guard_bits
        layout = float_layout(form)
        align_coarse, align_fine = shift_distances(form.significand_bits + guard)
        coarse, fine = shift_distances(self.spec.width)
        (
            compared, ordered, aligned_coarse, aligned_fine, added,
            normal_coarse, normal_fine, rounding, saturated,
        ) = cuts(m, self.spec)  # fmt: skip

        def magnitude(x):
            return Cat(x.fraction, x.exponent)

        def significand(x):
            return Cat(x.fraction, x.exponent.any())

        less_1 = compared("less_1", magnitude(self.i_a) < magnitude(self.i_b))
        a_1 = compared.signal("a_1", self.i_a, layout)
        b_1 = compared.signal("b_1", self.i_b, layout)
        maximum_1 = compared("maximum_1", self.i_maximum)
        keep_1 = compared("keep_1", self.i_keep)

        # The operands are ordered by magnitude to add and by value to take the maximum.
        b_is_greater = Mux(a_1.sign == b_1.sign, less_1 ^ a_1.sign, a_1.sign)
        swap = Signal()
        m.d.comb += swap.eq(Mux(maximum_1, b_is_greater & ~keep_1, less_1))
        large, small = Signal(layout), Signal(layout)
        m.d.comb += [
            large.eq(Mux(swap, b_1.as_value(), a_1.as_value())),
            small.eq(Mux(swap, a_1.as_value(), b_1.as_value())),
        ]
        sign_2 = ordered("sign_2", large.sign)
        exponent_2 = ordered("exponent_2", large.exponent)
        large_2 = ordered("large_2", significand(large))
        small_2 = ordered("small_2", significand(small))
        distance = (large.exponent - small.exponent)[: form.exponent_bits]
        distance_2 = ordered("distance_2", distance)
        maximum_2 = ordered("maximum_2", maximum_1)
        subtract_2 = ordered("subtract_2", (large.sign ^ small.sign) & ~maximum_1)

        # The smaller significand is shifted right; what falls off is sticky. A maximum is the
        # larger operand plus nothing.
        def shift_right(value, sticky, selects, distances, name):
            for distance, select in zip(distances, selects, strict=True):
                shifted = Signal(len(value), name=f"{name}_by_{distance}")
                m.d.comb += shifted.eq(Mux(select, value >> distance, value))
                sticky = sticky | (select & value[:distance].any())
                value = shifted
            return value, sticky

        selects = [
            distance_2[d.bit_length() - 1] if d.bit_length() <= form.exponent_bits else Const(0, 1)
            for d in [*align_coarse, *align_fine]
        ]
        beyond = len(align_coarse) + len(align_fine)
        far = maximum_2 | distance_2[beyond:].any() if form.exponent_bits > beyond else maximum_2
        aligned, sticky = shift_right(
            Cat(Const(0, guard), small_2),
            Const(0, 1),
            selects[: len(align_coarse)],
            align_coarse,
            "align",
        )
        aligned_3 = aligned_coarse.signal("aligned_3", aligned)
        with m.If(far):
            aligned_coarse.assign(aligned_3.eq(0))
        sticky_3 = aligned_coarse("sticky_3", Mux(far, small_2[-1], sticky))
        selects_3 = [
            aligned_coarse(f"select_3_{d}", s)
            for d, s in zip(align_fine, selects[len(align_coarse) :], strict=True)
        ]
        sign_3 = aligned_coarse("sign_3", sign_2)
        exponent_3 = aligned_coarse("exponent_3", exponent_2)
        large_3 = aligned_coarse("large_3", large_2)
        subtract_3 = aligned_coarse("subtract_3", subtract_2)

        aligned, sticky = shift_right(aligned_3, sticky_3, selects_3, align_fine, "align")
        operand = Cat(aligned[0] | sticky, aligned[1:]) ^ subtract_3.replicate(len(aligned))
        operand_4 = aligned_fine("operand_4", operand)
        sign_4, exponent_4 = aligned_fine("sign_4", sign_3), aligned_fine("exponent_4", exponent_3)
        large_4 = aligned_fine("large_4", large_3)
        subtract_4 = aligned_fine("subtract_4", subtract_3)

        # The order of the operands keeps the sum from being negative.
        total = Cat(Const(0, guard), large_4) + Cat(operand_4, subtract_4) + subtract_4
        total_5 = added.signal("total_5", total, self.spec.width)
        sign_5, exponent_5 = added("sign_5", sign_4), added("exponent_5", exponent_4)

        shifted, leading = left_justify(m, total_5, coarse, "coarse")
        shifted_6 = normal_coarse("shifted_6", shifted)
        leading_6 = normal_coarse("leading_6", leading)
        sign_6 = normal_coarse("sign_6", sign_5)
        exponent_6 = normal_coarse("exponent_6", exponent_5)

        shifted, leading = left_justify(m, shifted_6, fine, "fine")
        shifted_7 = normal_fine("shifted_7", shifted)
        field_bits = max(form.exponent_bits, len(coarse) + len(fine)) + 2
        field = Signal(signed(field_bits))
        m.d.comb += field.eq(exponent_6 + 1 - Cat(leading, leading_6))
        field_7 = normal_fine("field_7", field)
        sign_7 = normal_fine("sign_7", sign_6)

        # A result below the smallest normal number is exact and is flushed.
        up = shifted_7[guard] & (shifted_7[:guard].any() | shifted_7[guard + 1])
        rounded = Cat(shifted_7[guard + 1 : -1], field_7).as_signed() + up
        fraction_8 = Signal(form.fraction_bits, reset_less=True)
        field_8 = Signal(signed(field_bits), reset_less=True)
        sign_8 = Signal(reset_less=True)
        rounding.assign(Cat(fraction_8, field_8).eq(rounded))
        rounding.assign(sign_8.eq(sign_7))
        with m.If((field_7 < 1) | ~shifted_7[-1]):
            rounding.assign(Cat(fraction_8, field_8, sign_8).eq(0))

        result = Signal(layout, reset_less=True)
        saturated.assign(
            result.fraction.eq(fraction_8), result.exponent.eq(field_8), result.sign.eq(sign_8)
        )
        with m.If(field_8 > form.max_exponent):
            largest = ((form.max_exponent + 1) << form.fraction_bits) - 1
            saturated.assign(Cat(result.fraction, result.exponent).eq(largest))
        m.d.comb += self.o.eq(result)
        return m
