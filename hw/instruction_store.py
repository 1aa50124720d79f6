"""Instructions that are dispatched and have not begun, in one memory."""

from amaranth.hdl import Array, Cat, Const, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from ..golden.accelerator import AcceleratorSpec
from ..golden.isa import ENGINES
from .instruction import instruction_layout

__all__ = ["QUEUES", "InstructionStore"]

QUEUES = sorted(ENGINES, key=lambda opcode: opcode & 3)
"""The engines by the lowest two bits of their opcodes, which number their queues."""


class InstructionStore(wiring.Component):
    """A queue of instructions for each engine, and registers for the first one of each.

    An instruction is written beat after beat, and is in its queue when it is committed. When the
    one before it has begun, the beats with its fields are read into the registers, for one engine
    at a time, those first whose instructions are short.

    **Latency**: an instruction that need not wait is offered ``spec.field_beats(opcode) + 2``
    cycles after its commit.
    **Throughput**: one beat written and one read a cycle.

    Members
    -------
    i_write, i_queue, i_index, i_beat : a beat of the instruction that is to be committed
    i_commit : it is complete; only where there is room. One bit for each queue, as in what follows
    o_room : fewer than ``spec.queue_depth`` instructions are in the queue
    o_empty : none is
    o_ready, i_begin : the registers hold its first one, which begins
    o_load, o_weights, o_pass, o_drain : the registers
    """

    def __init__(self, spec: AcceleratorSpec):
        self.spec = spec
        queues = len(QUEUES)
        super().__init__(
            {
                "i_write": In(1),
                "i_queue": In(range(queues)),
                "i_index": In(range(spec.instruction_beats)),
                "i_beat": In(spec.bus_bits),
                "i_commit": In(queues),
                "o_room": Out(queues),
                "o_empty": Out(queues),
                "o_ready": Out(queues),
                "i_begin": In(queues),
                **{f"o_{op.name.lower()}": Out(instruction_layout(op, spec)) for op in QUEUES},
            }
        )

    def elaborate(self, platform):
        m = Module()
        spec = self.spec
        depth, bits = spec.queue_depth, spec.bus_bits
        index_type = range(spec.instruction_beats)
        m.submodules.memory = memory = Memory(
            shape=bits, depth=spec.stored_beats, init=[], attrs={"no_rw_check": True}
        )
        store, fetch = memory.write_port(), memory.read_port()
        # One place more than instructions: for the one that is being written.
        places = range(1 << depth.bit_length())
        heads = Array(Signal(places, name=f"head_{op.name.lower()}") for op in QUEUES)
        tails = Array(Signal(places, name=f"tail_{op.name.lower()}") for op in QUEUES)
        lasts = Array(Const(spec.field_beats(op) - 1, index_type) for op in QUEUES)
        claimed = Signal(len(QUEUES))

        # What is read, and what arrives a cycle later.
        reading, queue, index = Signal(), Signal(range(len(QUEUES))), Signal(index_type)
        engine, beat = Signal.like(queue), Signal.like(index)
        active, last = Signal(), Signal()
        arrives, completes = Signal(), Signal()
        arriving, arriving_beat = Signal.like(queue), Signal.like(index)
        waiting = ~self.o_empty & ~claimed
        m.d.comb += active.eq(reading | waiting.any())
        with m.If(reading):
            m.d.comb += [engine.eq(queue), beat.eq(index)]
        with m.Else():
            for number in range(len(QUEUES)):
                with m.If(waiting[number]):
                    m.d.comb += engine.eq(number)
                    m.d.sync += claimed.eq(claimed | (1 << number))  # the last one counts
        m.d.comb += [
            last.eq(beat == lasts[engine]),
            store.addr.eq(Cat(self.i_index, tails[self.i_queue], self.i_queue)),
            store.data.eq(self.i_beat),
            store.en.eq(self.i_write),
            fetch.addr.eq(Cat(beat, heads[engine], engine)),
            fetch.en.eq(1),
        ]
        m.d.sync += [
            reading.eq(active & ~last), queue.eq(engine), index.eq(beat + 1),
            arrives.eq(active), completes.eq(active & last),
            arriving.eq(engine), arriving_beat.eq(beat),
        ]  # fmt: skip

        for number, op in enumerate(QUEUES):
            name = op.name.lower()
            count = Signal(range(depth + 1), name=f"count_{name}")
            held = Signal(name=f"held_{name}")
            commit, begin = self.i_commit[number], self.i_begin[number]
            m.d.comb += [
                self.o_room[number].eq(count != depth),
                self.o_empty[number].eq(~count.any()),
                self.o_ready[number].eq(held),
            ]
            m.d.sync += [
                count.eq(count + commit - begin),
                tails[number].eq(tails[number] + commit),
                heads[number].eq(heads[number] + begin),
            ]
            with m.If(begin):
                m.d.sync += [held.eq(0), claimed[number].eq(0)]
            with m.Elif(completes & (arriving == number)):
                m.d.sync += held.eq(1)
            words = Signal(bits * spec.field_beats(op), name=f"words_{name}", reset_less=True)
            for k in range(spec.field_beats(op)):
                with m.If(arrives & (arriving == number) & (arriving_beat == k)):
                    m.d.sync += words.word_select(k, bits).eq(fetch.data)
            m.d.comb += getattr(self, f"o_{name}").as_value().eq(words)
        return m
