"""The processing element (PE) of the systolic array."""

from amaranth.hdl import Cat, Const, Module, Mux, ShapeLike, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ..golden.array import ArraySpec
from .carry_chain import carry_chain_product, ternary_sum

__all__ = ["ProcessingElement", "booth_product", "moving_members"]


def booth_product(m: Module, w: Value, a: Value) -> tuple[Value, Value]:
    """Radix-4 Booth product without a multiplication operator: ``w * a == value + carry``.

    `value` has ``len(w) + len(a) - 1`` bits, which hold the product unless both operands are the
    most negative number of their shape. The lowest digit's two's complement correction is left to
    the caller as `carry`, because an adder that follows takes it as its carry-in for nothing.
    """
    width = len(w) + len(a) - 1
    bits = Cat(Const(0, 1), w, w[-1])
    total = Const(0)
    for k in range(0, len(w), 2):
        low, middle, high = bits[k], bits[k + 1], bits[k + 2]
        one, two = middle ^ low, (high ^ middle) & ~(middle ^ low)
        multiple = Signal(signed(len(a) + 1), name=f"multiple_{k}")
        m.d.comb += multiple.eq(Mux(one, a, Mux(two, a << 1, 0)) ^ high.replicate(len(a) + 1))
        if k == 0:
            total = multiple
            continue
        # Below five bits yosys turns a carry chain into a tree of LUTs; the carry-in as one more
        # bit of the chain avoids it.
        if width - k > 4:
            upper = Signal(signed(width - k), name=f"upper_{k}")
            m.d.comb += upper.eq((total >> k) + multiple + high)
        else:
            chain = Signal(signed(max(width - k + 1, 5)), name=f"upper_{k}")
            m.d.comb += chain.eq(
                Cat(Const(1, 1), total >> k).as_signed() + Cat(high, multiple).as_signed()
            )
            upper = (chain >> 1)[: width - k]
        total = Cat(total[:k], upper).as_signed()
    return total, bits[2]


def moving_members(spec: ArraySpec, code: ShapeLike) -> dict[str, wiring.Member]:
    """What moves right, and the weights of shape `code`, which move down."""
    act = signed(spec.operand_bits)
    return {
        "i_act": In(act),
        "o_act": Out(act),
        "i_swap": In(1),
        "o_swap": Out(1),
        "i_enable": In(1),
        "o_enable": Out(1),
        "i_code": In(code),
        "o_code": Out(code),
    }


class ProcessingElement(wiring.Component):
    """Multiplies the passing activation by its stationary weight, adds to the passing sum.

    The weight is double-buffered. While ``i_enable`` is set the next weight moves down the column,
    from ``i_code`` into the shadow register that drives ``o_code``; ``i_swap`` makes the shadow the
    active weight for the activation of the following cycle.

    **Latency**: 2 cycles from ``i_act`` to ``o_sum``, 1 from ``i_sum``; 1 from left to right.
    **Throughput**: one product a cycle.

    Parameters
    ----------
    spec : the array it belongs to
    row : its row, which sets the width of the partial sum

    Members
    -------
    i_act, o_act : activation operand, moving right
    i_swap, o_swap : activate the shadow weight, one cycle ahead of the activation
    i_enable, o_enable : shift the shadow weights, moving right
    i_code, o_code : next weight, moving down
    i_sum, o_sum : partial sum, moving down; row 0 has no ``i_sum``
    """

    def __init__(self, spec: ArraySpec, row: int):
        self.spec, self.row = spec, row
        members = moving_members(spec, signed(spec.weight_bits))
        members["o_sum"] = Out(signed(spec.partial_sum_bits(row)))
        if row:
            members["i_sum"] = In(signed(spec.partial_sum_bits(row - 1)))
        super().__init__(members)

    def elaborate(self, platform):
        m = Module()
        shadow = Signal(self.o_code.shape(), reset_less=True)
        weight = Signal(self.o_code.shape(), reset_less=True)
        act = Signal(self.o_act.shape(), reset_less=True)
        m.d.sync += [act.eq(self.i_act), self.o_swap.eq(self.i_swap)]
        m.d.sync += self.o_enable.eq(self.i_enable)
        m.d.comb += [self.o_act.eq(act), self.o_code.eq(shadow)]
        with m.If(self.i_enable):
            m.d.sync += shadow.eq(self.i_code)
        with m.If(self.i_swap):
            m.d.sync += weight.eq(shadow)

        total = Signal(self.o_sum.shape(), reset_less=True)
        m.d.comb += self.o_sum.eq(total)
        if self.spec.multiplier == "ecp5-ternary":
            # The product needs no register of its own: the operand, which moves on, has one.
            held = Signal(self.o_code.shape(), reset_less=True)
            m.d.sync += held.eq(weight)
            above = self.i_sum if self.row else Const(0, 1)
            m.d.sync += total.eq(ternary_sum(m, above, act, held, len(total)))
            return m

        # In row 0 another register follows. yosys would pack both into a DSP block of iCE40 and
        # lose the block's output; a register that it must keep is not packed with another.
        block = self.spec.multiplier not in ("lut", "ecp5-carry")
        keep = {"keep": True} if block and self.row == 0 else {}
        product = Signal(signed(self.spec.product_bits), reset_less=True, attrs=keep)
        carry = Signal(reset_less=True)
        if self.spec.multiplier == "lut":
            value, low = booth_product(m, weight, self.i_act)
            m.d.sync += [product.eq(value), carry.eq(low)]
        elif self.spec.multiplier == "ecp5-carry":
            m.d.sync += product.eq(carry_chain_product(m, weight, self.i_act))
        else:
            m.d.sync += product.eq(weight * self.i_act)

        # One expression, so that synthesis takes the carry as the adder's carry-in.
        m.d.sync += total.eq(product + carry if self.row == 0 else self.i_sum + product + carry)
        return m
