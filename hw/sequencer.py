"""The sequencer: fetches a program, checks and dispatches its instructions, lets them begin."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from ..golden.accelerator import AcceleratorSpec
from ..golden.isa import COUNT_BITS, Error, Opcode, Region
from .axi import run_layout
from .field_check import FieldCheck
from .instruction import instruction_layout
from .instruction_store import QUEUES, InstructionStore

__all__ = ["Sequencer"]

_COUNTED = (Opcode.LOAD, Opcode.PASS, Opcode.DRAIN)


class Sequencer(wiring.Component):
    """Runs the program of the model region once for every image.

    Instructions are fetched ahead, checked, and dispatched in program order into a queue for each
    engine (:class:`~shiftcore.hw.instruction_store.InstructionStore`). The head of a queue is
    offered to its engine when as many LOAD, PASS and DRAIN instructions are completed as its
    tickets say.

    **Latency**: three cycles, and one for each beat with fields, from the last beat of an
    instruction to its engine.
    **Throughput**: an instruction every ``spec.instruction_beats + 1`` cycles.

    Members
    -------
    i_start, i_images : begin a run of so many images
    i_model_beats : size of the model region
    o_run, i_beat : reads of instructions
    o_load, o_weights, o_pass, o_drain : instructions that may begin
    i_load_completed, i_pass_completed, i_drain_completed : an instruction is completed
    i_weights_active, i_tiles_left : WEIGHTS is at work; a tile, or a part of one, is not yet used
    i_halt : dispatch and offer nothing
    o_next_image : the image is finished and another one follows
    o_busy, o_finished : a run is going on; its last image is finished
    o_instructions : instructions dispatched since the start
    o_dispatched : one more
    o_waiting : the oldest PASS waits for its tickets
    o_none : no PASS is dispatched that has not begun
    o_error : why the program cannot go on, 0 if it can
    """

    def __init__(self, spec: AcceleratorSpec):
        self.spec = spec
        super().__init__(
            {
                "i_start": In(1),
                "i_images": In(32),
                "i_model_beats": In(spec.offset_bits),
                "o_run": Out(stream.Signature(run_layout(spec))),
                "i_beat": In(stream.Signature(spec.bus_bits)),
                "o_load": Out(stream.Signature(instruction_layout(Opcode.LOAD, spec))),
                "o_weights": Out(stream.Signature(instruction_layout(Opcode.WEIGHTS, spec))),
                "o_pass": Out(stream.Signature(instruction_layout(Opcode.PASS, spec))),
                "o_drain": Out(stream.Signature(instruction_layout(Opcode.DRAIN, spec))),
                "i_load_completed": In(1),
                "i_pass_completed": In(1),
                "i_drain_completed": In(1),
                "i_weights_active": In(1),
                "i_tiles_left": In(1),
                "i_halt": In(1),
                "o_next_image": Out(1),
                "o_busy": Out(1),
                "o_finished": Out(1),
                "o_instructions": Out(24),
                "o_dispatched": Out(1),
                "o_waiting": Out(1),
                "o_none": Out(1),
                "o_error": Out(Error),
            }
        )

    def elaborate(self, platform):
        m = Module()
        busy, ended = Signal(), Signal()
        restart = Signal()
        m.d.comb += self.o_busy.eq(busy)
        m.submodules.store = store = InstructionStore(self.spec)
        m.submodules.check = check = FieldCheck(self.spec)
        full, fetching = self._fetch(m, check, store, restart, ended)
        opcode, bad = check.o_opcode, check.o_bad
        known = Cat(opcode == op for op in Opcode).any()
        dispatch = Signal()
        end = Signal()
        m.d.comb += end.eq(full & (opcode == Opcode.END))
        with m.If(full & ~known):
            m.d.comb += self.o_error.eq(Error.BAD_OPCODE)
        with m.Elif(full & bad):
            m.d.comb += self.o_error.eq(Error.BAD_FIELD)
        with m.Elif(busy & ~ended & ~fetching):
            m.d.comb += self.o_error.eq(Error.PROGRAM_RANGE)
        # No other error comes with an instruction that is full.
        allowed = full & ~self.i_halt & known & ~bad

        completed, begun = {}, {}
        for op, pulse in zip(
            _COUNTED,
            (self.i_load_completed, self.i_pass_completed, self.i_drain_completed),
            strict=True,
        ):
            count = Signal(COUNT_BITS, name=f"completed_{op.name.lower()}")
            m.d.sync += count.eq(Mux(restart, 0, count + pulse))
            completed[op] = count
        idle = []
        for number, op in enumerate(QUEUES):
            name = op.name.lower()
            offer, head = getattr(self, f"o_{name}"), getattr(store, f"o_{name}")
            ready = Signal(name=f"ready_{name}")
            commit, held = store.i_commit[number], store.o_ready[number]
            m.d.comb += [
                commit.eq(allowed & (opcode == op) & store.o_room[number]),
                offer.payload.eq(head),
                ready.eq(
                    Cat(
                        completed[other] >= head[f"after_{other.name.lower()}"]
                        for other in _COUNTED
                    ).all()
                ),
                offer.valid.eq(held & ready & ~self.i_halt),
                store.i_begin[number].eq(offer.valid & offer.ready),
            ]
            if op is Opcode.PASS:
                m.d.comb += [self.o_none.eq(~held), self.o_waiting.eq(held & ~ready)]
            if op in completed:
                count = Signal(COUNT_BITS, name=f"dispatched_{name}")
                m.d.sync += count.eq(Mux(restart, 0, count + commit))
                begun[op] = count
                idle.append(completed[op] == count)
            else:
                idle.append(store.o_empty[number] & ~self.i_weights_active)
        m.d.comb += [
            dispatch.eq(store.i_commit.any() | (allowed & end)),
            self.o_dispatched.eq(dispatch),
        ]
        with m.If(dispatch):
            m.d.sync += full.eq(0)
            m.d.sync += self.o_instructions.eq(self.o_instructions + 1)
        with m.If(allowed & end):
            m.d.sync += ended.eq(1)

        # The image is finished when every engine is, and nothing that was fetched is on its way.
        image = Signal(32)
        last = image >= self.i_images
        engines_idle = Signal()
        m.d.comb += engines_idle.eq(Cat(*idle).all() & ended & ~fetching)
        unused = ended & (completed[Opcode.PASS] == begun[Opcode.PASS]) & self.i_tiles_left
        with m.If(unused):
            m.d.comb += self.o_error.eq(Error.WEIGHTS_LEFT)
        with m.If(self.i_start & ~busy):
            m.d.sync += [busy.eq(1), image.eq(1), self.o_instructions.eq(0)]
            m.d.comb += restart.eq(1)
        with m.Elif(busy & engines_idle & ~unused & ~self.i_halt):
            m.d.comb += restart.eq(1)
            m.d.sync += image.eq(image + 1)
            with m.If(last):
                m.d.sync += busy.eq(0)
                m.d.comb += self.o_finished.eq(1)
            with m.Else():
                m.d.comb += self.o_next_image.eq(1)
        with m.If(restart):
            m.d.sync += ended.eq(0)
        return m

    def _fetch(self, m, check, store, restart, ended):
        """Whether an instruction is complete, and whether more may come."""
        spec = self.spec
        beats = spec.instruction_beats
        ahead = 4
        offset = Signal(spec.offset_bits + 1)
        flying = Signal(range(ahead + 1))
        beat = Signal(range(beats))
        full = Signal()
        room = offset + beats <= self.i_model_beats
        asking, ask = Signal(), Signal()
        wanted = self.o_busy & ~ended & room & (flying != ahead) & ~asking
        m.d.comb += [
            ask.eq(wanted & ~restart & ~self.i_halt),
            self.o_run.valid.eq(asking & ~self.i_halt),
            self.o_run.payload.region.eq(Region.MODEL),
            self.o_run.payload.offset.eq(offset),
            self.o_run.payload.beats.eq(beats),
            self.i_beat.ready.eq(~full | ended),
        ]
        requested = self.o_run.valid & self.o_run.ready
        taken = self.i_beat.valid & self.i_beat.ready
        arrived = taken & (beat == beats - 1)
        m.d.sync += flying.eq(flying + ask - arrived)
        m.d.sync += asking.eq(ask | (asking & ~requested))
        with m.If(requested):
            m.d.sync += offset.eq(offset + beats)
        with m.If(taken):
            m.d.sync += beat.eq(Mux(arrived, 0, beat + 1))
        with m.If(arrived & ~ended):
            m.d.sync += full.eq(1)
        with m.If(restart):
            m.d.sync += offset.eq(0)

        m.d.comb += [
            check.i_take.eq(taken),
            check.i_index.eq(beat),
            check.i_beat.eq(self.i_beat.payload),
            store.i_write.eq(taken & ~ended),
            store.i_queue.eq(check.o_opcode[:2]),
            store.i_index.eq(beat),
            store.i_beat.eq(self.i_beat.payload),
        ]
        return full, Mux(ended, flying.any(), flying.any() | full | room)
