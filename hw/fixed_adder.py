"""The sum of an accumulator and a product as whole numbers."""

from amaranth.hdl import Cat, Module, Mux, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ..golden.scale_unit import FixedAddSpec
from .cuts import cuts
from .fixed_product import product_layout

__all__ = ["FixedAdder"]


class FixedAdder(wiring.Component):
    """``a + b`` or ``max(a, b)``, saturated, pipelined.

    **Latency**: ``spec.latency`` cycles, a cut each. The steps: compare; choose the operands, of
    which a maximum has one; add; saturate.
    **Throughput**: one sum a cycle.

    Members
    -------
    i_a : accumulator
    i_b : see :func:`~shiftcore.hw.fixed_product.product_layout`
    i_maximum : take the maximum instead of the sum
    i_keep : with ``i_maximum``, take `a`
    o : the result
    o_saturated : it is an end of the range that was passed
    """

    def __init__(self, spec: FixedAddSpec):
        self.spec = spec
        super().__init__(
            {
                "i_a": In(signed(spec.form.bits)),
                "i_b": In(product_layout(spec.form)),
                "i_maximum": In(1),
                "i_keep": In(1),
                "o": Out(signed(spec.form.bits)),
                "o_saturated": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        bits = self.spec.form.bits
        compared, chosen, added, saturated = cuts(m, self.spec)

        a_1, b_1 = compared("a_1", self.i_a), compared.signal("b_1", self.i_b, self.i_b.shape())
        less_1 = compared("less_1", self.i_a < self.i_b.value)
        maximum_1, keep_1 = compared("maximum_1", self.i_maximum), compared("keep_1", self.i_keep)

        # A maximum is the larger operand plus nothing.
        larger = ~keep_1 & (b_1.above | (less_1 & ~b_1.below))
        a_2 = chosen.signal("a_2", a_1)
        b_2 = chosen.signal("b_2", b_1.value)
        with m.If(maximum_1 & larger):
            chosen.assign(a_2.eq(0))
        with m.If(maximum_1 & ~larger):
            chosen.assign(b_2.eq(0))
        above_2 = chosen("above_2", b_1.above & ~(maximum_1 & keep_1))
        below_2 = chosen("below_2", b_1.below & ~maximum_1)

        total_3 = added("total_3", (a_2 + b_2)[: bits + 1])
        above_3, below_3 = added("above_3", above_2), added("below_3", below_2)

        over = above_3 | below_3 | (total_3[bits] ^ total_3[bits - 1])
        negative = below_3 | (total_3[bits] & ~above_3)
        end = Cat((~negative).replicate(bits - 1), negative)
        m.d.comb += [
            self.o.eq(saturated("result_4", Mux(over, end, total_3[:bits]))),
            self.o_saturated.eq(saturated("saturated_4", over)),
        ]
        return m
