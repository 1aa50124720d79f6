"""Two columns' processing elements in the DSP block of iCE40, which multiplies twice."""

from amaranth.hdl import Cat, ClockSignal, Const, Instance, Module, Signal, Value, signed

from .packed import PackedElements

__all__ = ["HALF", "DualElements"]

HALF = 16
"""Bits of a product in the block, and of its adders."""
_IDLE = (
    "BHOLD", "CHOLD", "DHOLD", "OHOLDTOP", "OHOLDBOT", "IRSTTOP", "IRSTBOT", "ORSTTOP", "ORSTBOT",
    "OLOADTOP", "OLOADBOT", "ADDSUBTOP", "ADDSUBBOT", "CI", "ACCUMCI", "SIGNEXTIN",
)  # fmt: skip
"""Pins that have no use."""


class DualElements(PackedElements):
    """PEs of one row and two columns in an SB_MAC16: weights, products and, up to 16 bits, sums.

    As :class:`~shiftcore.hw.packed.PackedElements`, but the columns' weights are side by side as
    they are. Column 0 is the lower half of the block.
    """

    def elaborate(self, platform):
        m = Module()
        shadow = self.moved(m)
        b, wide = self.spec.weight_bits, self.spec.partial_sum_bits(self.row) > HALF
        above = [getattr(self, f"i_sum_{c}") if self.row else Const(0, 1) for c in range(2)]

        def pin(name: str, bits: int, low: Value, high: Value) -> Value:
            """Two signed numbers side by side."""
            halves = [Signal(signed(bits), name=f"{name}_{c}") for c in range(2)]
            m.d.comb += [halves[0].eq(low.as_signed()), halves[1].eq(high.as_signed())]
            return Cat(*halves)

        added = pin("above", HALF, *([Const(0, 1)] * 2 if wide else above))
        found = Signal(2 * HALF)
        m.submodules.block = Instance(
            "SB_MAC16",
            p_MODE_8x8=Const(1, 1),
            p_A_SIGNED=Const(1, 1),
            p_B_SIGNED=Const(1, 1),
            # The weights are in its register A, the products in those after its multipliers.
            p_A_REG=Const(1, 1),
            p_TOP_8x8_MULT_REG=Const(1, 1),
            p_BOT_8x8_MULT_REG=Const(1, 1),
            # Its adders add C and D to the products; their registers are put out, or the products.
            p_TOPADDSUB_UPPERINPUT=Const(1, 1),
            p_BOTADDSUB_UPPERINPUT=Const(1, 1),
            p_TOPADDSUB_LOWERINPUT=Const(1, 2),
            p_BOTADDSUB_LOWERINPUT=Const(1, 2),
            p_TOPOUTPUT_SELECT=Const(2 if wide else 1, 2),
            p_BOTOUTPUT_SELECT=Const(2 if wide else 1, 2),
            i_CLK=ClockSignal(),
            i_CE=Const(1, 1),
            i_A=pin("weight", HALF // 2, shadow[:b], shadow[b:]),
            i_AHOLD=~self.i_swap,
            i_B=pin("operand", HALF // 2, self.i_act, self.i_act),
            i_C=added[HALF:],
            i_D=added[:HALF],
            **{f"i_{name}": Const(0, 1) for name in _IDLE},
            o_O=found,
        )
        for c, half in enumerate((found[:HALF], found[HALF:])):
            total = getattr(self, f"o_sum_{c}")
            if wide:
                held = Signal(total.shape(), name=f"total_{c}", reset_less=True)
                m.d.sync += held.eq(above[c] + half.as_signed())
                half = held
            m.d.comb += total.eq(half.as_signed())
        return m
