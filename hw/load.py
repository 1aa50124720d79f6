"""The LOAD engine: words from memory to the activation buffer."""

from amaranth.hdl import Module
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from ..golden.accelerator import AcceleratorSpec
from ..golden.isa import Opcode
from .axi import run_layout
from .instruction import instruction_layout

__all__ = ["LoadEngine", "buffer_write_layout", "word_layout"]


def word_layout(spec: AcceleratorSpec) -> data.StructLayout:
    """A word of the activation buffer: the ``codes`` of a block and its ``exponent`` field."""
    return data.StructLayout({"codes": spec.code_bits, "exponent": 8})


def buffer_write_layout(spec: AcceleratorSpec) -> data.StructLayout:
    """A write to the activation buffer."""
    return data.StructLayout(
        {"address": ceil_log2(spec.buffer_depth), "word": word_layout(spec)}
    )


class LoadEngine(wiring.Component):
    """Runs LOAD instructions whose tickets are there; counts in them must not be 0.

    Reads of an instruction are asked for while words of those before it still come. A word outside
    the buffer, and all words after it, are dropped, and nothing completes any more.

    Members
    -------
    i : instructions
    o_run, i_beats : to and from memory, one run for each row of words
    o_write : words for the buffer, see :func:`buffer_write_layout`
    o_completed : the last word of the oldest instruction was taken by the buffer (pulse)
    o_busy : an instruction is not completed
    o_buffer_range : a word is outside the buffer (pulse)
    """

    def __init__(self, spec: AcceleratorSpec):
        self.spec = spec
        super().__init__(
            {
                "i": In(stream.Signature(instruction_layout(Opcode.LOAD))),
                "o_run": Out(stream.Signature(run_layout())),
                "i_beats": In(stream.Signature(spec.bus_bits)),
                "o_write": Out(stream.Signature(buffer_write_layout(spec))),
                "o_completed": Out(1),
                "o_busy": Out(1),
                "o_buffer_range": Out(1),
            }
        )

    def elaborate(self, platform):
        raise NotImplementedError
