"""The sequencer: fetches a program, checks and dispatches its instructions, lets them begin."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from ..golden.accelerator import AcceleratorSpec
from ..golden.isa import COUNT_BITS, LAYOUTS, LEVELS, WORDS, Error, Form, Opcode, Region
from .axi import run_layout
from .fifo import Queue
from .instruction import instruction_layout, reserved_bits

__all__ = ["ENGINES", "Sequencer"]

ENGINES = (Opcode.LOAD, Opcode.WEIGHTS, Opcode.PASS, Opcode.DRAIN)
_COUNTED = (Opcode.LOAD, Opcode.PASS, Opcode.DRAIN)


class Sequencer(wiring.Component):
    """Runs the program of the model region once for every image.

    Instructions are fetched ahead, checked, and dispatched in program order into a queue for each
    engine. The head of a queue is offered to its engine when as many LOAD, PASS and DRAIN
    instructions are completed as its tickets say.

    **Latency**: two cycles from the last beat of an instruction to its engine.
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
                "i_model_beats": In(32),
                "o_run": Out(stream.Signature(run_layout())),
                "i_beat": In(stream.Signature(spec.bus_bits)),
                "o_load": Out(stream.Signature(instruction_layout(Opcode.LOAD))),
                "o_weights": Out(stream.Signature(instruction_layout(Opcode.WEIGHTS))),
                "o_pass": Out(stream.Signature(instruction_layout(Opcode.PASS))),
                "o_drain": Out(stream.Signature(instruction_layout(Opcode.DRAIN))),
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
        instruction, full, fetching = self._fetch(m, restart, ended)
        opcode = instruction[:4]
        bad = self._bad_field(instruction)
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
        accepted = []
        for op in ENGINES:
            name = op.name.lower()
            # What is known here, and bits that are reserved or never used, take no room.
            dropped = {"opcode"} if self.spec.engine.clamp else {"opcode", "limited", "low", "high"}
            stored = {field.name: field.bits for field in LAYOUTS[op] if field.name not in dropped}
            queue = Queue(width=sum(stored.values()), depth=self.spec.queue_depth)
            m.submodules[f"queue_{name}"] = queue
            offer = getattr(self, f"o_{name}")
            wanted = allowed & (opcode == op)
            ready = Signal(name=f"ready_{name}")
            head = offer.payload
            given = data.View(head.shape(), instruction)
            m.d.comb += [
                queue.w_en.eq(wanted),
                queue.w_data.eq(Cat(given[name] for name in stored)),
                head.opcode.eq(op),
                Cat(head[name] for name in stored).eq(queue.r_data),
                ready.eq(
                    Cat(
                        completed[other] >= head[f"after_{other.name.lower()}"]
                        for other in _COUNTED
                    ).all()
                ),
                offer.valid.eq(queue.r_rdy & ready & ~self.i_halt),
                queue.r_en.eq(offer.valid & offer.ready),
            ]
            accepted.append(wanted & queue.w_rdy)
            if op is Opcode.PASS:
                m.d.comb += [
                    self.o_none.eq(~queue.r_rdy),
                    self.o_waiting.eq(queue.r_rdy & ~ready),
                ]
            if op in completed:
                count = Signal(COUNT_BITS, name=f"dispatched_{name}")
                m.d.sync += count.eq(Mux(restart, 0, count + accepted[-1]))
                begun[op] = count
                idle.append(completed[op] == count)
            else:
                idle.append(~queue.r_rdy & ~self.i_weights_active & (queue.level == 0))
        m.d.comb += [
            dispatch.eq(Cat(*accepted).any() | (allowed & end)),
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

    def _fetch(self, m, restart, ended):
        """The instruction fetched, whether there is one, and whether more may come."""
        spec = self.spec
        beats = spec.instruction_beats
        ahead = 4
        offset = Signal(33)
        flying = Signal(range(ahead + 1))
        words = Signal(64 * WORDS, reset_less=True)
        beat = Signal(range(beats))
        full = Signal()
        room = offset + beats <= self.i_model_beats
        m.d.comb += [
            self.o_run.valid.eq(
                self.o_busy & ~ended & room & (flying != ahead) & ~restart & ~self.i_halt
            ),
            self.o_run.payload.region.eq(Region.MODEL),
            self.o_run.payload.offset.eq(offset),
            self.o_run.payload.beats.eq(beats),
            self.i_beat.ready.eq(~full | ended),
        ]
        requested = self.o_run.valid & self.o_run.ready
        taken = self.i_beat.valid & self.i_beat.ready
        arrived = taken & (beat == beats - 1)
        m.d.sync += flying.eq(flying + requested - arrived)
        with m.If(requested):
            m.d.sync += offset.eq(offset + beats)
        with m.If(taken):
            m.d.sync += words.eq(Cat(words, self.i_beat.payload)[spec.bus_bits :])
            m.d.sync += beat.eq(Mux(arrived, 0, beat + 1))
        with m.If(arrived & ~ended):
            m.d.sync += full.eq(1)
        with m.If(restart):
            m.d.sync += offset.eq(0)
        return words, full, Mux(ended, flying.any(), flying.any() | full | room)

    def _bad_field(self, instruction):
        """Whether a field of the instruction has a value that does not exist."""
        views = {op: data.View(instruction_layout(op), instruction) for op in Opcode}
        load, weights, walk, drain = (views[op] for op in ENGINES)
        groups = self.spec.engine.requantizer.blocks_per_beat
        raw = drain.form == Form.RAW
        wrong = {
            Opcode.END: [],
            Opcode.LOAD: [
                ~load.words.any(), ~load.rows.any(), ~load.blocks.any(),
                load.region == Region.OUTPUT,
            ],
            Opcode.WEIGHTS: [~weights.tiles.any()],
            Opcode.PASS: [
                *(~walk[f"count_{k}"].any() for k in range(LEVELS)),
                walk.tile_level > LEVELS, walk.start_level > LEVELS,
            ],
            Opcode.DRAIN: [
                ~drain.rows.any(), ~drain.pixels.any(), drain.form == 3,
                raw & drain.to_buffer, ~drain.to_buffer & ~drain.to_memory,
                Mux(raw, drain.select.any(), drain.select >= groups),
                drain.to_memory & (drain.region < Region.SCRATCH),
                *([] if self.spec.engine.clamp else [drain.limited]),
            ],
        }  # fmt: skip
        return Cat(
            (instruction[:4] == op)
            & Cat(*wrong[op], *(bits.any() for bits in reserved_bits(views[op]))).any()
            for op in Opcode
        ).any()
