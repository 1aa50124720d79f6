"""The two ends of an asynchronous serial line."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.cdc import FFSynchronizer
from amaranth.lib.wiring import In, Out

from ..golden.uart import UartSpec

__all__ = ["UartReceiver", "UartTransmitter"]


class UartReceiver(wiring.Component):
    """Bytes from a line that knows no clock, each bit looked at in its middle.

    A byte that comes while the one before still waits is lost. After a low stop bit the receiver
    waits until the line is high.

    **Latency**: ``spec.receive_latency`` cycles from the first one of the start bit to the byte.
    **Throughput**: a byte every ``spec.byte_cycles`` cycles.

    Members
    -------
    i_line : the pin
    o : bytes
    o_broken : the stop bit of a byte was low (pulse); the byte is dropped
    """

    def __init__(self, spec: UartSpec):
        self.spec = spec
        super().__init__(
            {"i_line": In(1, init=1), "o": Out(stream.Signature(8)), "o_broken": Out(1)}
        )

    def elaborate(self, platform):
        m = Module()
        divisor = self.spec.divisor
        line = Signal(init=1)
        m.submodules.synchronizer = FFSynchronizer(
            self.i_line, line, init=1, stages=self.spec.SYNCHRONIZER
        )
        left = Signal(range(divisor))
        middle = Signal()
        bit = Signal(range(self.spec.BITS))
        shift = Signal(8, reset_less=True)
        m.d.comb += middle.eq(left == 0)
        m.d.sync += [left.eq(Mux(middle, divisor - 1, left - 1)), self.o_broken.eq(0)]
        with m.If(self.o.ready):
            m.d.sync += self.o.valid.eq(0)
        with m.FSM(name="state"):
            with m.State("IDLE"):
                m.d.sync += [left.eq(divisor // 2 - 1), bit.eq(0)]
                with m.If(~line):
                    m.next = "BITS"
            with m.State("BITS"):
                with m.If(middle):
                    m.d.sync += [bit.eq(bit + 1), shift.eq(Cat(shift[1:], line))]
                    with m.If((bit == 0) & line):
                        m.next = "IDLE"
                    with m.Elif(bit == self.spec.BITS - 1):
                        m.d.sync += self.o_broken.eq(~line)
                        with m.If(line & (~self.o.valid | self.o.ready)):
                            m.d.sync += [self.o.valid.eq(1), self.o.payload.eq(shift)]
                        with m.If(line):
                            m.next = "IDLE"
                        with m.Else():
                            m.next = "LOW"
            with m.State("LOW"):
                with m.If(line):
                    m.next = "IDLE"
        return m


class UartTransmitter(wiring.Component):
    """Bytes to a line, which is high between them.

    **Latency**: the start bit begins one cycle after a byte is accepted.
    **Throughput**: a byte every ``spec.byte_cycles`` cycles.

    Members
    -------
    i : bytes
    o_line : the pin
    """

    def __init__(self, spec: UartSpec):
        self.spec = spec
        super().__init__({"i": In(stream.Signature(8)), "o_line": Out(1, init=1)})

    def elaborate(self, platform):
        m = Module()
        divisor = self.spec.divisor
        left = Signal(range(divisor))
        bits = Signal(range(self.spec.BITS))
        shift = Signal(self.spec.BITS - 1, reset_less=True)
        ends = Signal()
        m.d.comb += [ends.eq(left == 0), self.i.ready.eq(ends & (bits == 0))]
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += [
                self.o_line.eq(0),
                shift.eq(Cat(self.i.payload, Const(1, 1))),
                bits.eq(self.spec.BITS - 1),
                left.eq(divisor - 1),
            ]
        with m.Elif(~ends):
            m.d.sync += left.eq(left - 1)
        with m.Elif(bits != 0):
            m.d.sync += [
                self.o_line.eq(shift[0]),
                shift.eq(shift[1:]),
                bits.eq(bits - 1),
                left.eq(divisor - 1),
            ]
        return m
