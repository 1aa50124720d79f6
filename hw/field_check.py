"""What an instruction may not say, found while its beats come in."""

from collections.abc import Iterator

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from ..golden.accelerator import AcceleratorSpec
from ..golden.fixed import FixedFormat
from ..golden.isa import LAYOUTS, LEVELS, WORDS, Form, Opcode, Region
from .instruction import instruction_layout

__all__ = ["FieldCheck"]


class FieldCheck(wiring.Component):
    """Judges the fields of instructions; each condition when the last of its fields has come.

    **Latency**: ``o_bad`` is right in the cycle after the last beat.
    **Throughput**: a beat a cycle.

    Members
    -------
    i_take, i_index, i_beat : beat `i_index` of an instruction comes
    o_opcode : of the instruction of which a beat comes, or came last
    o_bad : a field of it has a value that does not exist; nothing is said of unknown opcodes
    """

    def __init__(self, spec: AcceleratorSpec):
        self.spec = spec
        super().__init__(
            {
                "i_take": In(1),
                "i_index": In(range(spec.instruction_beats)),
                "i_beat": In(spec.bus_bits),
                "o_opcode": Out(4),
                "o_bad": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        bits = self.spec.bus_bits
        first = self.i_index == 0
        opcode = Signal(4, reset_less=True)
        # No condition looks back further than to the word before that of its last field.
        earlier = Signal(max(bits, 2 * 64 - bits), reset_less=True)
        window = Cat(earlier, self.i_beat)
        m.d.comb += self.o_opcode.eq(Mux(self.i_take & first, self.i_beat[:4], opcode))
        with m.If(self.i_take):
            m.d.sync += [
                opcode.eq(self.o_opcode),
                earlier.eq(window[bits:]),
                self.o_bad.eq((self.o_bad & ~first) | self._wrong(window)),
            ]
        return m

    def _wrong(self, window: Value) -> Value:
        """Whether a field that ends in the beat at the end of `window` is bad."""
        bits, size = self.spec.bus_bits, 64 * WORDS
        found = []
        for op in Opcode:
            begins = {each.name: 64 * each.word + each.offset for each in LAYOUTS[op]}
            ends = {each.name: begins[each.name] + each.bits for each in LAYOUTS[op]}
            used = sum((1 << ends[name]) - (1 << begins[name]) for name in begins)
            for index in range(self.spec.instruction_beats):
                end = (index + 1) * bits
                seen = window[max(len(window) - end, 0) :]
                known = Cat(Const(0, end - len(seen)), seen, Const(0, size - end))
                reserved = ~(used >> (end - bits)) & ((1 << bits) - 1)
                wrong = [(window[-bits:] & reserved).any()]
                wrong += [
                    condition
                    for name, condition in self._conditions(op, known)
                    if end - bits < ends[name] <= end
                ]
                here = (self.o_opcode == op) & (self.i_index == index)
                found.append(here & Cat(*wrong).any())
        return Cat(*found).any()

    def _conditions(self, op: Opcode, bits: Value) -> Iterator[tuple[str, Value]]:
        """What must not be, and the last of the fields on which it depends."""
        instruction = data.View(instruction_layout(op, self.spec), bits)
        if op is Opcode.LOAD:
            for name in ("words", "rows", "blocks"):
                yield name, ~instruction[name].any()
            yield "region", instruction.region == Region.OUTPUT
        elif op is Opcode.WEIGHTS:
            yield "tiles", ~instruction.tiles.any()
        elif op is Opcode.PASS:
            for k in range(LEVELS):
                yield f"count_{k}", ~instruction[f"count_{k}"].any()
            for name in ("tile_level", "start_level"):
                yield name, instruction[name] > LEVELS
        elif op is Opcode.DRAIN:
            raw = instruction.form == Form.RAW
            groups = self.spec.engine.requantizer.blocks_per_beat
            for name in ("rows", "pixels"):
                yield name, ~instruction[name].any()
            yield "form", instruction.form == 3
            yield "to_buffer", raw & instruction.to_buffer
            yield "to_memory", ~instruction.to_buffer & ~instruction.to_memory
            form, field = self.spec.engine.scale_unit.form, instruction.exponent
            none = ~field.any()
            if isinstance(form, FixedFormat):
                yield "exponent", none | (field > form.highest_field)
            else:
                yield "exponent", ~none
            if not self.spec.engine.clamp:
                yield "limited", instruction.limited
            select, region = instruction.select, instruction.region
            yield "select", Mux(raw, select.any(), select >= groups)
            yield "region", instruction.to_memory & (region < Region.SCRATCH)
