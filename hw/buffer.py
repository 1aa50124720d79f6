"""The activation buffer: one block of one pixel a word."""

from amaranth.hdl import Module
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from ..golden.accelerator import AcceleratorSpec
from ..golden.isa import LAYOUTS, Opcode

__all__ = ["ActivationBuffer", "word_layout", "write_layout"]

_ADDRESS_BITS = next(f.bits for f in LAYOUTS[Opcode.DRAIN] if f.name == "buffer")


def word_layout(spec: AcceleratorSpec) -> data.StructLayout:
    """Codes, lowest channel lowest, and the exponent field, as in memory."""
    array = spec.engine.array
    return data.StructLayout({"codes": data.ArrayLayout(array.act_bits, array.rows), "exponent": 8})


def write_layout(spec: AcceleratorSpec) -> data.StructLayout:
    """A word and where it goes."""
    return data.StructLayout({"address": _ADDRESS_BITS, "word": word_layout(spec)})


class ActivationBuffer(wiring.Component):
    """``spec.buffer_depth`` words, written by two engines and read by one.

    **Latency**: a word can be read in the cycle after it was accepted; a read takes one cycle.
    **Throughput**: one write and one read a cycle. DRAIN goes before LOAD.

    Members
    -------
    i_drain, i_load : writes, see :func:`write_layout`
    i_enable, i_address, o_word : the read port; ``o_word`` stays until the next read
    o_range : a write beyond the buffer; it is not carried out
    """

    def __init__(self, spec: AcceleratorSpec):
        self.spec = spec
        super().__init__(
            {
                "i_drain": In(stream.Signature(write_layout(spec))),
                "i_load": In(stream.Signature(write_layout(spec))),
                "i_enable": In(1),
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
            read.en.eq(self.i_enable),
            read.addr.eq(self.i_address),
            self.o_word.as_value().eq(read.data),
            self.i_drain.ready.eq(1),
            self.i_load.ready.eq(~self.i_drain.valid),
        ]
        chosen = self.i_load.payload
        any_write = self.i_drain.valid | self.i_load.valid
        address = write.addr
        with m.If(self.i_drain.valid):
            m.d.comb += [
                address.eq(self.i_drain.payload.address),
                write.data.eq(self.i_drain.payload.word),
                self.o_range.eq(self.i_drain.payload.address >= depth),
            ]
        with m.Else():
            m.d.comb += [
                address.eq(chosen.address),
                write.data.eq(chosen.word),
                self.o_range.eq(self.i_load.valid & (chosen.address >= depth)),
            ]
        m.d.comb += write.en.eq(any_write & ~self.o_range)
        return m
