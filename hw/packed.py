"""Several columns' products in one multiplication."""

from amaranth.hdl import Cat, Module, Signal, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from ..golden.array import ArraySpec
from .delay import delayed
from .pe import moving_members

__all__ = ["PackedElements", "WeightPacker"]


class WeightPacker(wiring.Component):
    """The weights of neighbouring columns as one number, the sum of ``code[c] << c * k``.

    k are the bits of a product. A negative weight borrows from the one above it, so a *field* of
    the packed number, but the lowest, is a bit wider than its code. What lies between two fields
    repeats the sign of the lower one and is left out here.

    Members
    -------
    i_codes : weights of the columns
    o_code : their fields
    """

    def __init__(self, spec: ArraySpec, columns: int):
        self.spec, self.columns = spec, columns
        super().__init__(
            {
                "i_codes": In(data.ArrayLayout(signed(spec.weight_bits), columns)),
                "o_code": Out(spec.field_bits(columns)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        fields = [self.i_codes[0]]
        for c in range(1, self.columns):
            field = Signal(signed(self.spec.weight_bits + 1), name=f"field_{c}")
            m.d.comb += field.eq(self.i_codes[c] - fields[-1][-1])
            fields.append(field)
        m.d.comb += self.o_code.eq(Cat(*fields))
        return m


class PackedElements(wiring.Component):
    """PEs of one row and neighbouring columns, whose products come from one multiplication.

    As :class:`~shiftcore.hw.pe.ProcessingElement`, but all columns see an activation in the same
    cycle, which then moves right by as many cycles as there are columns. Of the product, a column's
    part is one less where what lies below is negative: the sign below is the carry-in of its sum.

    **Latency**: 2 cycles from ``i_act`` to ``o_sum_*``, 1 from ``i_sum_*``; one a column from
    left to right.
    **Throughput**: a product for each column a cycle.

    Parameters
    ----------
    spec : the array it belongs to
    row : its row, which sets the width of the partial sums
    columns : 2 or more

    Members
    -------
    i_act, o_act, i_swap, o_swap, i_enable, o_enable : as of a processing element
    i_code, o_code : next weights as :class:`WeightPacker` makes them, moving down
    i_sum_*, o_sum_* : partial sums of the columns, moving down; row 0 has no ``i_sum_*``
    """

    def __init__(self, spec: ArraySpec, row: int, columns: int):
        self.spec, self.row, self.columns = spec, row, columns
        members = moving_members(spec, unsigned(spec.field_bits(columns)))
        for c in range(columns):
            members[f"o_sum_{c}"] = Out(signed(spec.partial_sum_bits(row)))
            if row:
                members[f"i_sum_{c}"] = In(signed(spec.partial_sum_bits(row - 1)))
        super().__init__(members)

    def moved(self, m: Module) -> Signal:
        """Add what moves on; the next weights, which ``i_swap`` makes active."""
        columns = self.columns
        m.d.comb += [
            self.o_act.eq(delayed(m, self.i_act, columns, "act")),
            self.o_swap.eq(delayed(m, self.i_swap, columns, "swap", reset=True)),
            self.o_enable.eq(delayed(m, self.i_enable, columns, "enable", reset=True)),
        ]
        shadow = Signal(self.o_code.shape(), reset_less=True)
        m.d.comb += self.o_code.eq(shadow)
        with m.If(self.i_enable):
            m.d.sync += shadow.eq(self.i_code)
        return shadow

    def elaborate(self, platform):
        m = Module()
        b, k, columns = self.spec.weight_bits, self.spec.product_bits, self.columns
        shadow = self.moved(m)
        weight = Signal(self.o_code.shape(), reset_less=True)
        with m.If(self.i_swap):
            m.d.sync += weight.eq(shadow)

        # Below the highest field each is extended to the width of a product.
        fields, at = [], 0
        for c in range(columns):
            field = weight[at : at + b + (c > 0)]
            at += len(field)
            gap = k - len(field) if c < columns - 1 else 0
            fields.append(Cat(field, field[-1].replicate(gap)))
        factor = Signal(signed(self.spec.packed_bits(columns)))
        m.d.comb += factor.eq(Cat(*fields))

        # As in row 0 of a processing element.
        keep = {"keep": True} if self.row == 0 else {}
        product = Signal(signed(columns * k), reset_less=True, attrs=keep)
        m.d.sync += product.eq(factor * self.i_act)
        for c in range(columns):
            part = product[c * k : (c + 1) * k].as_signed()
            borrow = product[c * k - 1] if c else 0
            above = getattr(self, f"i_sum_{c}") if self.row else 0
            shape = signed(self.spec.partial_sum_bits(self.row))
            total = Signal(shape, name=f"total_{c}", reset_less=True)
            # One expression, so that synthesis takes the borrow as the adder's carry-in.
            m.d.sync += total.eq(above + part + borrow if self.row else part + borrow)
            m.d.comb += getattr(self, f"o_sum_{c}").eq(total)
        return m
