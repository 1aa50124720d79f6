"""The DRAIN engine: accumulators to the activation buffer and to memory."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from ..golden.accelerator import AcceleratorSpec
from ..golden.fixed import FixedFormat
from ..golden.floats import FLOAT32
from ..golden.isa import LAYOUTS, Form, Opcode
from .axi import run_beats, run_layout, times
from .buffer import write_layout
from .engine import drain_layout, limits_layout
from .floats import ordered
from .instruction import held_instruction, instruction_layout
from .requantizer import block_layout

__all__ = ["DrainEngine", "trace_layout"]


def _limit(bits, form):
    """A limit of an instruction as the engine takes it."""
    if isinstance(form, FixedFormat):
        kept = bits[: form.kept_bits]
        return Cat(kept, kept[-1].replicate(32 - len(kept)))
    return Mux(bits[FLOAT32.fraction_bits : -1].any(), bits, 0)


_BITS = {field.name: field.bits for field in LAYOUTS[Opcode.DRAIN]}


def trace_layout(spec: AcceleratorSpec) -> data.StructLayout:
    """What a DRAIN wrote: a word, exponent above the codes, or a ``raw`` row."""
    width = max(spec.word_bits, 32 * spec.engine.array.cols)
    return data.StructLayout({"valid": 1, "raw": 1, "bits": width})


class DrainEngine(wiring.Component):
    """Executes DRAIN instructions one after the other.

    Reading runs ahead of writing by what the requantizer holds; an instruction is completed when
    its last word is written and memory has confirmed the last burst.

    **Latency**: ``spec.engine.drain_cycles + requantizer.latency + 2`` cycles from the acceptance
    of an instruction to the write of the first word of one row.
    **Throughput**: a row of accumulators a cycle; a word in memory takes ``spec.word_beats``
    cycles, a raw row ``spec.raw_beats``.

    Members
    -------
    i : instructions that may begin; under serial control each stays until it is completed
    o_drain, o_limits, i_raw, i_block : the engine's drain
    o_field : the exponent field of the number 1, with fixed-point accumulators
    o_write : words for the activation buffer
    o_run : places in memory, one for each row of the output
    o_data : beats for them
    i_stored : a run is in memory
    i_halt : begin nothing more
    o_active, o_completed : an instruction is being executed; it is completed
    o_accumulator_range : an address beyond the accumulators
    o_trace : see :func:`trace_layout`
    """

    def __init__(self, spec: AcceleratorSpec):
        self.spec = spec
        engine = spec.engine
        row = data.ArrayLayout(32, engine.array.cols)
        blocks = data.ArrayLayout(
            block_layout(engine.requantizer), engine.requantizer.blocks_per_beat
        )
        fixed = isinstance(engine.scale_unit.form, FixedFormat)
        super().__init__(
            ({"o_field": Out(8)} if fixed else {})
            | {
                "i": In(stream.Signature(instruction_layout(Opcode.DRAIN, spec))),
                "o_drain": Out(stream.Signature(drain_layout(engine))),
                "o_limits": Out(limits_layout()),
                "i_raw": In(stream.Signature(row)),
                "i_block": In(stream.Signature(blocks)),
                "o_write": Out(stream.Signature(write_layout(spec))),
                "o_run": Out(stream.Signature(run_layout(spec))),
                "o_data": Out(stream.Signature(spec.bus_bits)),
                "i_stored": In(1),
                "i_halt": In(1),
                "o_active": Out(1),
                "o_completed": Out(1),
                "o_accumulator_range": Out(1),
                "o_trace": Out(trace_layout(spec)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        active, accept = Signal(), Signal()
        current = held_instruction(m, self.spec, self.i.payload, accept)
        lower, upper = Signal(32, reset_less=True), Signal(32, reset_less=True)
        m.d.comb += [
            self.i.ready.eq(~active & ~self.i_halt),
            accept.eq(self.i.valid & self.i.ready),
            self.o_active.eq(active),
            self.o_limits.enable.eq(current.limited),
            self.o_limits.low.eq(lower),
            self.o_limits.high.eq(upper),
        ]
        if isinstance(self.spec.engine.scale_unit.form, FixedFormat):
            m.d.comb += self.o_field.eq(current.exponent)
        with m.If(accept):
            m.d.sync += active.eq(1)
            if self.spec.engine.clamp:
                # The engine takes no zero but +0, and no lower limit above the upper one.
                form, given = self.spec.engine.scale_unit.form, self.i.payload
                low, high = (_limit(limit, form) for limit in (given.low, given.high))
                crossed = ordered(low, form) > ordered(high, form)
                m.d.sync += [lower.eq(Mux(crossed, high, low)), upper.eq(high)]
        self._read(m, accept, current)
        written = self._write(m, accept, current)
        stored = self._announce(m, accept, current, active)
        m.d.comb += self.o_completed.eq(active & written & stored)
        with m.If(self.o_completed):
            m.d.sync += active.eq(0)
        return m

    def _read(self, m, accept, current):
        """Addresses of accumulators: pixels in order, all rows of a block before the next pixel."""
        begin = self.i.payload
        beats = self.spec.engine.requantizer.beats_per_block
        base = Signal(self.spec.space_bits("accumulators"), reset_less=True)
        address = Signal(self.spec.space_bits("accumulators"), reset_less=True)
        rows = Signal(_BITS["rows"], reset_less=True)
        pixels = Signal(_BITS["pixels"], reset_less=True)
        beat = Signal(range(max(beats, 2)), reset_less=True)
        reading = Signal()
        raw = current.form == Form.RAW
        last_beat = raw | (beat == beats - 1)
        depth = self.spec.engine.scale_unit.depth
        m.d.comb += [
            self.o_drain.valid.eq(reading & ~self.i_halt),
            self.o_drain.payload.address.eq(address),
            self.o_drain.payload.last.eq(last_beat),
            self.o_drain.payload.signed.eq(current.form == Form.SIGNED),
            self.o_drain.payload.raw.eq(raw),
            self.o_accumulator_range.eq(self.o_drain.valid & (address >= depth)),
        ]
        with m.If(accept):
            m.d.sync += [reading.eq(1), base.eq(begin.accumulator), address.eq(begin.accumulator)]
            m.d.sync += [rows.eq(begin.rows - 1), pixels.eq(begin.pixels - 1), beat.eq(0)]
        with m.Elif(self.o_drain.valid & self.o_drain.ready):
            with m.If(last_beat):
                m.d.sync += [base.eq(base + 1), address.eq(base + 1), beat.eq(0)]
                m.d.sync += pixels.eq(Mux(pixels.any(), pixels, current.pixels) - 1)
                with m.If(~pixels.any()):
                    m.d.sync += [rows.eq(rows - 1), reading.eq(rows.any())]
            with m.Else():
                m.d.sync += [address.eq(address + current.beat_step), beat.eq(beat + 1)]

    def _write(self, m, accept, current):
        """Words and raw rows to the buffer and to memory; whether all are written."""
        spec = self.spec
        begin = self.i.payload
        raw = Signal()
        m.d.comb += raw.eq(current.form == Form.RAW)
        word = Signal(self.o_write.payload.word.shape())
        block = self.i_block.payload[current.select]
        m.d.comb += [word.codes.eq(block.codes), word.exponent.eq(block.exponent)]
        row = self.i_raw.payload.as_value()
        item = Signal(spec.bus_bits * max(spec.word_beats, spec.raw_beats))
        m.d.comb += item.eq(Mux(raw, row, word.as_value()))

        address = Signal(spec.space_bits("buffer"), reset_less=True)
        row_address = Signal(spec.space_bits("buffer"), reset_less=True)
        rows = Signal(_BITS["rows"], reset_less=True)
        pixels = Signal(_BITS["pixels"], reset_less=True)
        writing = Signal()

        available = Signal()
        m.d.comb += available.eq(
            writing & ~self.i_halt & Mux(raw, self.i_raw.valid, self.i_block.valid)
        )
        buffered, stored = Signal(), Signal()
        beats = max(spec.word_beats, spec.raw_beats)
        beat = Signal(range(max(beats, 2)))
        last = beat == Mux(raw, spec.raw_beats - 1, spec.word_beats - 1)
        to_buffer, to_memory = current.to_buffer & ~buffered, current.to_memory & ~stored
        done = Signal()
        m.d.comb += [
            self.o_write.valid.eq(available & to_buffer),
            self.o_write.payload.address.eq(address),
            self.o_write.payload.word.eq(word),
            self.o_data.valid.eq(available & to_memory),
            self.o_data.payload.eq(item.word_select(beat, spec.bus_bits)),
        ]
        in_buffer = ~to_buffer | self.o_write.ready
        in_memory = ~to_memory | (self.o_data.ready & last)
        m.d.comb += [
            done.eq(available & in_buffer & in_memory),
            self.i_raw.ready.eq(done & raw),
            self.i_block.ready.eq(done & ~raw),
            self.o_trace.valid.eq(done),
            self.o_trace.raw.eq(raw),
            self.o_trace.bits.eq(item),
        ]
        with m.If(available):
            m.d.sync += [buffered.eq(in_buffer & ~done), stored.eq(in_memory & ~done)]
            with m.If(done):
                m.d.sync += beat.eq(0)
            with m.Elif(self.o_data.valid & self.o_data.ready):
                m.d.sync += beat.eq(beat + 1)
        with m.If(accept):
            m.d.sync += [writing.eq(1), address.eq(begin.buffer), row_address.eq(begin.buffer)]
            m.d.sync += [rows.eq(begin.rows - 1), pixels.eq(begin.pixels - 1)]
        with m.Elif(done):
            m.d.sync += [address.eq(address + 1), pixels.eq(pixels - 1)]
            with m.If(~pixels.any()):
                following = (row_address + current.buffer_row_step)[: len(address)]
                m.d.sync += [address.eq(following), row_address.eq(following)]
                m.d.sync += [pixels.eq(current.pixels - 1), rows.eq(rows - 1)]
                m.d.sync += writing.eq(rows.any())
        return ~writing

    def _announce(self, m, accept, current, active):
        """Runs of memory, one for each row of the output; whether all are confirmed."""
        spec = self.spec
        begin = self.i.payload
        offset = Signal(spec.offset_bits, reset_less=True)
        to_announce = Signal(_BITS["rows"])
        to_confirm = Signal(_BITS["rows"])
        raw = current.form == Form.RAW
        beats = Mux(
            raw,
            run_beats(spec, times(current.pixels, spec.raw_beats)),
            run_beats(spec, times(current.pixels, spec.word_beats)),
        )
        m.d.comb += [
            self.o_run.valid.eq(active & to_announce.any() & ~self.i_halt),
            self.o_run.payload.region.eq(current.region),
            self.o_run.payload.offset.eq(offset),
            self.o_run.payload.beats.eq(beats),
        ]
        with m.If(accept):
            rows = Mux(begin.to_memory, begin.rows, 0)
            m.d.sync += [to_announce.eq(rows), to_confirm.eq(rows), offset.eq(begin.offset)]
        with m.Else():
            with m.If(self.o_run.valid & self.o_run.ready):
                m.d.sync += [to_announce.eq(to_announce - 1), offset.eq(offset + current.row_step)]
            with m.If(self.i_stored):
                m.d.sync += to_confirm.eq(to_confirm - 1)
        return ~to_confirm.any()
