"""The multiplier of ECP5's DSP blocks, with the registers inside."""

from amaranth.hdl import ClockSignal, Const, Instance, Module, Shape, Signal, Value

from ..golden.scale_unit import BLOCK_BITS
from .cuts import Cut

__all__ = ["block_product"]


def block_product(m: Module, a: Value, b: Value, before: Cut, *after: Cut) -> Signal:
    """``a * b`` in a MULT18X18D, whose registers are those `before` and `after` it.

    The operands have at most 18 bits and are both signed or both unsigned, the product 36. One
    register after the multiplication is that of the output, the first of two is in the middle.
    """
    sign = a.shape().signed
    product = Signal(Shape(2 * BLOCK_BITS, sign), name="block_product")
    pins: dict = {"i_SIGNEDA": Const(sign, 1), "i_SIGNEDB": Const(sign, 1)}
    for letter, operand in (("A", a), ("B", b), ("C", Const(0, 1))):
        wide = Signal(Shape(BLOCK_BITS, sign), name=f"block_{letter.lower()}")
        m.d.comb += wide.eq(operand)
        pins |= {f"i_{letter}{k}": bit for k, bit in enumerate(wide)}
    pins |= {f"o_P{k}": bit for k, bit in enumerate(product)}
    registers = sum(cut.registered for cut in after)
    clocks = {
        "INPUTA": before.registered,
        "INPUTB": before.registered,
        "PIPELINE": registers > 1,
        "OUTPUT": registers > 0,
    }
    m.submodules.block = Instance(
        "MULT18X18D",
        **{f"p_REG_{at}_CLK": "CLK0" if clocked else "NONE" for at, clocked in clocks.items()},
        p_GSR="DISABLED",
        i_CLK0=ClockSignal(),
        i_CE0=Const(1, 1),
        i_RST0=Const(0, 1),
        i_SOURCEA=Const(0, 1),
        i_SOURCEB=Const(0, 1),
        **pins,
    )
    return product
