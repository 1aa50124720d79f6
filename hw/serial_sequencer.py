"""The sequencer of serial control: fetches a program, and executes one instruction at a time."""

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import wiring

from ..golden.accelerator import AcceleratorSpec
from ..golden.isa import ENGINES, Error, Opcode
from .fetch import fetch, sequencer_signature

__all__ = ["SerialSequencer"]


class SerialSequencer(wiring.Component):
    """Does what :class:`~shiftcore.hw.sequencer.Sequencer` does, without queues and tickets.

    An instruction stays in one register until it is completed, a WEIGHTS until it is taken, and
    the beats of the next one wait in the FIFO of the program. So every ticket is there when its
    instruction begins, and units need no copies of instructions.

    **Latency**: an instruction is offered to its unit a cycle after its last beat.
    **Throughput**: an instruction every ``spec.instruction_beats + 1`` cycles, and what the unit
    takes from its beginning to its completion.

    Members
    -------
    See :class:`~shiftcore.hw.sequencer.Sequencer`. Payloads of ``o_load``, ``o_pass`` and
    ``o_drain`` stay until the instruction is completed. ``i_images`` is ignored, and
    ``o_instructions``, ``o_next_image`` and ``o_waiting`` are never set.
    """

    def __init__(self, spec: AcceleratorSpec):
        self.spec = spec
        super().__init__(sequencer_signature(spec))

    def elaborate(self, platform):
        m = Module()
        spec = self.spec
        busy, ended, restart, begun = Signal(), Signal(), Signal(), Signal()
        m.d.comb += self.o_busy.eq(busy)
        check, full, right, fetching = fetch(m, self, restart, ended)
        opcode = check.o_opcode
        allowed = right & ~begun

        # Beats without fields are dropped.
        bits = spec.bus_bits
        beats = max(spec.field_beats(op) for op in ENGINES)
        words = Signal(bits * beats, reset_less=True)
        taken = self.i_beat.valid & self.i_beat.ready
        for k in range(beats):
            with m.If(taken & ~ended & (check.i_index == k)):
                m.d.sync += words.word_select(k, bits).eq(self.i_beat.payload)

        begins = {}
        for op in ENGINES:
            offer = getattr(self, f"o_{op.name.lower()}")
            begins[op] = offer.valid & offer.ready
            m.d.comb += [
                offer.valid.eq(allowed & (opcode == op)),
                offer.payload.as_value().eq(words),
            ]
        m.d.comb += self.o_none.eq(~self.o_pass.valid)
        completed = self.i_load_completed | self.i_pass_completed | self.i_drain_completed
        begin, end = Signal(), Signal()
        m.d.comb += [
            begin.eq(Cat(*begins.values()).any()),
            end.eq(allowed & (opcode == Opcode.END)),
            self.o_dispatched.eq(begin | end),
        ]
        m.d.sync += begun.eq((begun | (begin & ~begins[Opcode.WEIGHTS])) & ~completed)
        with m.If(begins[Opcode.WEIGHTS] | completed | end):
            m.d.sync += full.eq(0)
        with m.If(end):
            m.d.sync += ended.eq(1)

        # The image is finished when nothing that was fetched is on its way, and every tile taken.
        unused = ended & self.i_tiles_left
        with m.If(unused):
            m.d.comb += self.o_error.eq(Error.WEIGHTS_LEFT)
        with m.If(self.i_start & ~busy):
            m.d.sync += busy.eq(1)
            m.d.comb += restart.eq(1)
        with m.Elif(busy & ended & ~fetching & ~self.i_weights_active & ~unused & ~self.i_halt):
            m.d.comb += [restart.eq(1), self.o_finished.eq(1)]
            m.d.sync += busy.eq(0)
        with m.If(restart):
            m.d.sync += ended.eq(0)
        return m
