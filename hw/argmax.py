"""The class: which of several scores is the largest."""

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from ..golden.argmax import ArgMaxSpec

__all__ = ["ArgMax"]


def _ordered(bits: Value, whole: bool) -> Value:
    """An unsigned number that is larger for a larger score, and the same for both zeros."""
    sign, magnitude = bits[31], bits[:31]
    if whole:
        return Cat(magnitude, ~sign)
    return Mux(sign & magnitude.any(), ~bits, Cat(magnitude, 1))


class ArgMax(wiring.Component):
    """The index of the largest of ``spec.count`` numbers, of equal ones the first.

    **Latency**: ``spec.LATENCY`` cycle from the last number to the index.
    **Throughput**: a number a cycle; the next set begins when the index is taken.

    Members
    -------
    i : bit patterns of finite float32, or of whole numbers where ``spec.whole``
    o : their index, one for every ``spec.count`` numbers
    """

    def __init__(self, spec: ArgMaxSpec):
        self.spec = spec
        super().__init__(
            {"i": In(stream.Signature(32)), "o": Out(stream.Signature(spec.index_bits))}
        )

    def elaborate(self, platform):
        m = Module()
        index = Signal(self.spec.index_bits)
        largest = Signal(32, reset_less=True)
        given = Signal(32)
        m.d.comb += [
            given.eq(_ordered(self.i.payload, self.spec.whole)),
            self.i.ready.eq(~self.o.valid),
        ]
        with m.If(self.o.valid & self.o.ready):
            m.d.sync += self.o.valid.eq(0)
        with m.If(self.i.valid & self.i.ready):
            last = index == self.spec.count - 1
            m.d.sync += [index.eq(Mux(last, 0, index + 1)), self.o.valid.eq(last)]
            with m.If((index == 0) | (given > largest)):
                m.d.sync += [largest.eq(given), self.o.payload.eq(index)]
        return m
