"""The sum of an accumulator and a product as whole numbers."""

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ..golden.scale_unit import FixedAddSpec
from .fixed_product import product_layout

__all__ = ["FixedAdder"]


class FixedAdder(wiring.Component):
    """``a + b`` or ``max(a, b)``, saturated, pipelined.

    **Latency**: ``spec.latency`` cycles: compare; choose the operands, of which a maximum has one;
    add; saturate.
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

        def register(name, value):
            held = Signal(value.shape(), name=name, reset_less=True)
            m.d.sync += held.eq(value)
            return held

        # Cycle 0: compare.
        a_1, b_1 = register("a_1", self.i_a), Signal(self.i_b.shape(), reset_less=True)
        m.d.sync += b_1.eq(self.i_b)
        less_1 = register("less_1", self.i_a < self.i_b.value)
        maximum_1, keep_1 = register("maximum_1", self.i_maximum), register("keep_1", self.i_keep)

        # Cycle 1: a maximum is the larger operand plus nothing.
        larger = ~keep_1 & (b_1.above | (less_1 & ~b_1.below))
        a_2, b_2 = register("a_2", a_1), register("b_2", b_1.value)
        with m.If(maximum_1 & larger):
            m.d.sync += a_2.eq(0)
        with m.If(maximum_1 & ~larger):
            m.d.sync += b_2.eq(0)
        above_2 = register("above_2", b_1.above & ~(maximum_1 & keep_1))
        below_2 = register("below_2", b_1.below & ~maximum_1)

        # Cycle 2: add.
        total_3 = register("total_3", (a_2 + b_2)[: bits + 1])
        above_3, below_3 = register("above_3", above_2), register("below_3", below_2)

        # Cycle 3: saturate.
        over = above_3 | below_3 | (total_3[bits] ^ total_3[bits - 1])
        negative = below_3 | (total_3[bits] & ~above_3)
        end = Cat((~negative).replicate(bits - 1), negative)
        m.d.comb += [
            self.o.eq(register("result_4", Mux(over, end, total_3[:bits]))),
            self.o_saturated.eq(register("saturated_4", over)),
        ]
        return m
