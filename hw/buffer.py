"""The activation buffer: one block of one pixel a word."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from ..golden.accelerator import AcceleratorSpec

__all__ = ["ActivationBuffer", "word_layout", "write_layout"]


def word_layout(spec: AcceleratorSpec) -> data.StructLayout:
    """Codes, lowest channel lowest, and the exponent field, as in memory."""
    array = spec.engine.array
    return data.StructLayout({"codes": data.ArrayLayout(array.act_bits, array.rows), "exponent": 8})


def write_layout(spec: AcceleratorSpec) -> data.StructLayout:
    """A word and where it goes."""
    return data.StructLayout({"address": spec.space_bits("buffer"), "word": word_layout(spec)})


class ActivationBuffer(wiring.Component):
    """``spec.buffer_depth`` words, written by two engines and read by one.

    **Latency**: a word can be read two cycles after it was accepted; a read takes one cycle.
    **Throughput**: one write a cycle, DRAIN before LOAD; it reads in every cycle.

    Members
    -------
    i_drain, i_load : writes, see :func:`write_layout`
    i_address, o_word : the read port
    o_range : a write beyond the buffer, a cycle ago; it is not carried out (pulse)
    """

    def __init__(self, spec: AcceleratorSpec):
        self.spec = spec
        super().__init__(
            {
                "i_drain": In(stream.Signature(write_layout(spec))),
                "i_load": In(stream.Signature(write_layout(spec))),
                "i_address": In(range(spec.buffer_depth)),
                "o_word": Out(word_layout(spec)),
                "o_range": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        depth = self.spec.buffer_depth
        # A word that is read in the cycle of its write is not used: tickets keep them apart.
        m.submodules.memory = memory = Memory(
            shape=self.spec.word_bits, depth=depth, init=[], attrs={"no_rw_check": True}
        )
        read, write = memory.read_port(), memory.write_port()
        m.d.comb += [
            read.addr.eq(self.i_address),
            self.o_word.as_value().eq(read.data),
            self.i_drain.ready.eq(1),
            self.i_load.ready.eq(~self.i_drain.valid),
        ]
        # The memory may fill the device: a register is between it and who writes.
        given = Signal(self.i_load.payload.shape(), reset_less=True)
        valid = Signal()
        chosen = Mux(
            self.i_drain.valid,
            self.i_drain.payload.as_value(),
            self.i_load.payload.as_value(),
        )
        m.d.sync += [given.eq(chosen), valid.eq(self.i_drain.valid | self.i_load.valid)]
        m.d.comb += [
            write.addr.eq(given.address),
            write.data.eq(given.word),
            write.en.eq(valid & (given.address < depth)),
            self.o_range.eq(valid & (given.address >= depth)),
        ]
        return m
