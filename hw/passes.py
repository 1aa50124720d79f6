"""The PASS engine: walks over the activation buffer and sends pixels to the array."""

from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from ..golden.accelerator import AcceleratorSpec
from ..golden.isa import LAYOUTS, LEVELS, Opcode
from .buffer import word_layout
from .instruction import held_instruction, instruction_layout
from .issue import pixel_layout

__all__ = ["PassEngine"]

_BITS = {field.name: field.bits for field in LAYOUTS[Opcode.PASS]}


def _position(spec: AcceleratorSpec) -> data.StructLayout:
    return data.StructLayout(
        {
            "buffer": spec.space_bits("buffer"),
            "accumulator": spec.space_bits("accumulators"),
            "y": signed(_BITS["y"]),
            "x": signed(_BITS["x"]),
        }
    )


class PassEngine(wiring.Component):
    """Executes PASS instructions: five nested loops over pixels.

    A counter and a position for every loop; the position of loop k is where its current turn began.
    When a loop advances, its step is added to its position, and the loops inside begin there.

    **Latency**: the first pixel is at ``o`` two cycles after its instruction is accepted.
    **Throughput**: a pixel a cycle, without a bubble between instructions.

    Members
    -------
    i : instructions that may begin; under serial control each stays until it is completed
    o : pixels, see :func:`~shiftcore.hw.issue.pixel_layout`; ``final`` marks the last of an
        instruction
    o_address, i_word : read port of the activation buffer; the word comes a cycle later
    i_halt : send nothing more
    o_active : an instruction is being executed
    o_buffer_range, o_accumulator_range : an address beyond the memory
    """

    def __init__(self, spec: AcceleratorSpec):
        self.spec = spec
        super().__init__(
            {
                "i": In(stream.Signature(instruction_layout(Opcode.PASS, spec))),
                "o": Out(stream.Signature(pixel_layout(spec.engine))),
                "o_address": Out(range(spec.buffer_depth)),
                "i_word": In(word_layout(spec)),
                "i_halt": In(1),
                "o_active": Out(1),
                "o_buffer_range": Out(1),
                "o_accumulator_range": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        spec = self.spec
        begin, accept = self.i.payload, Signal()
        current = held_instruction(m, spec, begin, accept)
        active = Signal()
        position = [
            Signal(_position(spec), name=f"position_{k}", reset_less=True) for k in range(LEVELS)
        ]
        left = [Signal(_BITS["count_0"], name=f"left_{k}", reset_less=True) for k in range(LEVELS)]
        # Whether a loop has no turns left, and whether it has none at its start: in registers, as
        # all loops wait for them.
        exhausted, single = Signal(LEVELS, reset_less=True), Signal(LEVELS, reset_less=True)
        later = Signal(reset_less=True)  # a loop within start_level has advanced
        first = Signal(reset_less=True)

        move = Signal()
        m.d.comb += move.eq((~self.o.valid | self.o.ready) & ~self.i_halt)
        final = exhausted.all()
        m.d.comb += self.i.ready.eq(~self.i_halt & (~active | (move & final)))
        m.d.comb += [accept.eq(self.i.valid & self.i.ready), self.o_active.eq(active)]

        def counted(source, k):
            return source[f"count_{k}"] - 1

        # The innermost loop with turns left advances.
        here = position[-1]
        with m.If(accept):
            m.d.sync += [active.eq(1), later.eq(0), first.eq(1)]
            for k in range(LEVELS):
                once = begin[f"count_{k}"] == 1
                m.d.sync += left[k].eq(counted(begin, k))
                m.d.sync += [exhausted[k].eq(once), single[k].eq(once)]
                for name in ("buffer", "accumulator", "y", "x"):
                    m.d.sync += position[k][name].eq(begin[name])
        with m.Elif(active & move):
            m.d.sync += active.eq(~final)
            moved = Signal(_position(spec))
            for k in range(LEVELS):
                advances = ~exhausted[k] & exhausted[k + 1 :].all()
                with m.If(advances):
                    for name in ("buffer", "accumulator", "y", "x"):
                        step = current[f"{name}_step_{k}"]
                        m.d.comb += moved[name].eq(position[k][name] + step)
                    m.d.sync += [left[k].eq(left[k] - 1), exhausted[k].eq(left[k] == 1)]
                    with m.If(current.start_level > k):
                        m.d.sync += later.eq(1)
                    m.d.sync += first.eq(current.tile_level > k)
                    for inner in range(k, LEVELS):
                        m.d.sync += position[inner].eq(moved)
                        if inner > k:
                            m.d.sync += left[inner].eq(counted(current, inner))
                            m.d.sync += exhausted[inner].eq(single[inner])

        inside = Signal()
        m.d.comb += inside.eq(
            ~here.y[-1] & (here.y.as_unsigned() < current.height)
            & ~here.x[-1] & (here.x.as_unsigned() < current.width)
        )  # fmt: skip
        emit = Signal()
        m.d.comb += [
            emit.eq(active & move),
            self.o_address.eq(here.buffer),
            self.o_buffer_range.eq(emit & inside & (here.buffer >= spec.buffer_depth)),
            self.o_accumulator_range.eq(emit & (here.accumulator >= spec.engine.scale_unit.depth)),
        ]
        sent = Signal(reset_less=True)
        flags = {
            "final": final,
            "first": first,
            "start": current.start & ~later,
            "maximum": current.maximum,
            "keep": current.maximum & ~inside,
            "signed": current.signed,
            "address": here.accumulator,
        }
        # The buffer reads in every cycle: whether a pixel moves is known too late for block RAMs
        # all over a device. A pixel that waits keeps its word, while that of the next one is read.
        waits, kept = Signal(), Signal.like(self.i_word, reset_less=True)
        word = Signal.like(self.i_word)
        m.d.comb += word.eq(Mux(waits, kept.as_value(), self.i_word.as_value()))
        m.d.sync += [waits.eq(~move), kept.eq(word)]
        with m.If(move):
            m.d.sync += [self.o.valid.eq(active), sent.eq(inside)]
        with m.Elif(self.o.ready):
            m.d.sync += self.o.valid.eq(0)
        for name, value in flags.items():
            held = Signal(value.shape(), name=f"sent_{name}", reset_less=True)
            with m.If(move):
                m.d.sync += held.eq(value)
            m.d.comb += self.o.payload[name].eq(held)
        m.d.comb += [
            self.o.payload.lanes.eq(Mux(sent, word.codes.as_value(), 0)),
            self.o.payload.exponent.eq(Mux(sent, word.exponent, 0)),
        ]
        return m
