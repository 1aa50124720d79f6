"""The sequencer: fetches a program, checks and dispatches its instructions, lets them begin."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import wiring

from ..golden.accelerator import AcceleratorSpec
from ..golden.isa import COUNT_BITS, Error, Opcode
from .fetch import fetch, sequencer_signature
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
        super().__init__(sequencer_signature(spec))

    def elaborate(self, platform):
        m = Module()
        busy, ended = Signal(), Signal()
        restart = Signal()
        m.d.comb += self.o_busy.eq(busy)
        m.submodules.store = store = InstructionStore(self.spec)
        check, full, allowed, fetching = fetch(m, self, restart, ended)
        m.d.comb += [
            store.i_write.eq(self.i_beat.valid & self.i_beat.ready & ~ended),
            store.i_queue.eq(check.o_opcode[:2]),
            store.i_index.eq(check.i_index),
            store.i_beat.eq(self.i_beat.payload),
        ]
        opcode = check.o_opcode
        dispatch = Signal()
        end = Signal()
        m.d.comb += end.eq(full & (opcode == Opcode.END))

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
