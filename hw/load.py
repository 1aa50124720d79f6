"""The LOAD engine: words from memory to the activation buffer."""

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.wiring import In, Out

from ..golden.accelerator import AcceleratorSpec
from ..golden.isa import Opcode
from .axi import run_beats, run_layout, times
from .buffer import write_layout
from .instruction import held_instruction, instruction_layout

__all__ = ["LoadEngine"]


class LoadEngine(wiring.Component):
    """Runs LOAD instructions whose tickets are there; counts in them must not be 0.

    Reads of an instruction are asked for while words of those before it still come, except
    under serial control. Whether a word is inside the buffer, the buffer judges.

    **Latency**: the first run is offered one cycle after an instruction is accepted, a word one
    cycle after its last beat.
    **Throughput**: a beat a cycle, and a run every 2 cycles, also across instructions.

    Members
    -------
    i : instructions; under serial control each stays until it is completed
    o_run, i_beats : to and from memory, one run for each row of words
    o_write : words for the buffer, see :func:`~shiftcore.hw.buffer.write_layout`
    o_completed : the last word of the oldest instruction was taken by the buffer (pulse)
    o_busy : an instruction is not completed
    """

    def __init__(self, spec: AcceleratorSpec):
        self.spec = spec
        super().__init__(
            {
                "i": In(stream.Signature(instruction_layout(Opcode.LOAD, spec))),
                "o_run": Out(stream.Signature(run_layout(spec))),
                "i_beats": In(stream.Signature(spec.bus_bits)),
                "o_write": Out(stream.Signature(write_layout(spec))),
                "o_completed": Out(1),
                "o_busy": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        address = self.spec.space_bits("buffer")
        # What all rows of an instruction have goes with each of them, or stays where it is.
        form = {"words": 12, "fixed": 1, "exponent": 8}
        row = data.StructLayout({"buffer": address, "last": 1} | ({} if self.spec.serial else form))
        m.submodules.rows = rows = SyncFIFO(width=row.size, depth=self.spec.load_rows)
        entry, head = data.View(row, rows.w_data), data.View(row, rows.r_data)
        reading, current = self._read(m, rows, entry)
        if self.spec.serial:
            self._write(m, rows, head, current)
        else:
            m.d.comb += [entry[name].eq(current[name]) for name in form]
            self._write(m, rows, head, head)
        m.d.comb += self.o_busy.eq(reading | rows.r_rdy | self.o_write.valid)
        return m

    def _read(self, m: Module, rows: SyncFIFO, row: data.View) -> tuple[Signal, data.View]:
        """Offer the run of every row; the row goes to `rows`. Returns whether some are left,
        and the instruction."""
        spec = self.spec
        active, accept = Signal(), Signal()
        current = held_instruction(m, spec, self.i.payload, accept)
        # `offset` and `buffer` of the current row, and of the first one of its block.
        offset = Signal(spec.offset_bits, reset_less=True)
        first_offset, next_offset = Signal.like(offset), Signal.like(offset)
        buffer = Signal(spec.space_bits("buffer"), reset_less=True)
        first_buffer, next_buffer = Signal.like(buffer), Signal.like(buffer)
        beats = Signal(spec.offset_bits + 1, reset_less=True)
        row_index, block_index = Signal(12), Signal(12)
        last_row, last_block = Signal(), Signal()
        # A run is offered, and in the cycle after it was taken comes the step to the next one: what
        # takes it decides late in a cycle.
        asking, step = Signal(), Signal()
        m.d.comb += [
            self.o_run.valid.eq(asking & rows.w_rdy),
            step.eq(active & ~asking),
            last_row.eq(row_index == current.rows - 1),
            last_block.eq(block_index == current.blocks - 1),
            self.i.ready.eq(~active | (step & last_row & last_block)),
            accept.eq(self.i.valid & self.i.ready),
            self.o_run.payload.offset.eq(offset),
            self.o_run.payload.region.eq(current.region),
            self.o_run.payload.beats.eq(beats),
            rows.w_en.eq(step),
            row.buffer.eq(buffer),
            row.last.eq(last_row & last_block),
        ]
        m.d.comb += [
            next_offset.eq(first_offset + current.block_step),
            next_buffer.eq(first_buffer + current.buffer_block_step),
        ]
        with m.If(self.o_run.valid & self.o_run.ready):
            m.d.sync += asking.eq(0)
        with m.If(step):
            m.d.sync += asking.eq(~last_row | ~last_block)
            with m.If(~last_row):
                m.d.sync += [
                    row_index.eq(row_index + 1),
                    offset.eq(offset + current.row_step),
                    buffer.eq(buffer + current.buffer_row_step),
                ]
            with m.Else():
                m.d.sync += [
                    row_index.eq(0),
                    block_index.eq(block_index + 1),
                    offset.eq(next_offset),
                    first_offset.eq(next_offset),
                    buffer.eq(next_buffer),
                    first_buffer.eq(next_buffer),
                    active.eq(~last_block),
                ]
        i = self.i.payload
        with m.If(accept):
            m.d.sync += [
                active.eq(1),
                asking.eq(1),
                block_index.eq(0),
                offset.eq(i.offset),
                first_offset.eq(i.offset),
                buffer.eq(i.buffer),
                first_buffer.eq(i.buffer),
                beats.eq(
                    Mux(
                        i.fixed,
                        run_beats(spec, times(i.words, spec.code_beats)),
                        run_beats(spec, times(i.words, spec.word_beats)),
                    )
                ),
            ]
        return active, current

    def _write(self, m: Module, rows: SyncFIFO, row: data.View, form: data.View) -> None:
        """Make words of the beats of every row in `rows`; `form` is what all of one share."""
        spec = self.spec
        o = self.o_write.payload
        word, beat = Signal(12), Signal(range(max(spec.word_beats, 2)))
        last_beat, last_word, complete = Signal(), Signal(), Signal()
        accept, completes = Signal(), Signal()
        m.d.comb += [
            last_beat.eq(beat == Mux(form.fixed, spec.code_beats - 1, spec.word_beats - 1)),
            last_word.eq(word == form.words - 1),
            self.i_beats.ready.eq(
                rows.r_rdy & (~last_beat | ~self.o_write.valid | self.o_write.ready)
            ),
            accept.eq(self.i_beats.valid & self.i_beats.ready),
            complete.eq(accept & last_beat),
            rows.r_en.eq(complete & last_word),
            self.o_completed.eq(self.o_write.valid & self.o_write.ready & completes),
        ]
        with m.If(accept):
            m.d.sync += beat.eq(Mux(last_beat, 0, beat + 1))
        # The beats of a word up to the last one; where only the exponent is in that, all codes.
        earlier = Signal(max(spec.word_beats - 1, 1) * spec.bus_bits, reset_less=True)
        for index in range(spec.word_beats - 1):
            with m.If(accept & (beat == index)):
                m.d.sync += earlier.word_select(index, spec.bus_bits).eq(self.i_beats.payload)

        def joined(beats: int) -> Value:
            return Cat(earlier[: (beats - 1) * spec.bus_bits], self.i_beats.payload)

        whole, codes = joined(spec.word_beats), joined(spec.code_beats)
        with m.If(complete):
            m.d.sync += [
                self.o_write.valid.eq(1),
                completes.eq(last_word & row.last),
                word.eq(Mux(last_word, 0, word + 1)),
                o.address.eq(row.buffer + word),
            ]
            with m.If(form.fixed):
                m.d.sync += [
                    o.word.codes.as_value().eq(codes[: spec.code_bits]),
                    o.word.exponent.eq(form.exponent),
                ]
            with m.Else():
                m.d.sync += o.word.as_value().eq(whole[: spec.word_bits])
        with m.Elif(self.o_write.ready):
            m.d.sync += self.o_write.valid.eq(0)
