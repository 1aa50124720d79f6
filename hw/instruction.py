"""The instruction formats of :mod:`shiftcore.golden.isa` as Amaranth layouts."""

from amaranth.hdl import Module, Signal, Value, signed, unsigned
from amaranth.lib import data

from ..golden.accelerator import AcceleratorSpec
from ..golden.isa import LAYOUTS, WORDS, Opcode

__all__ = ["held_instruction", "instruction_layout"]


def instruction_layout(opcode: Opcode, spec: AcceleratorSpec) -> data.StructLayout:
    """The 512 bits of an instruction, word 0 lowest, with the fields of ``LAYOUTS[opcode]``, of
    addresses and steps the bits that count.

    What the fields leave is in members ``reserved_0``, ``reserved_1``, ...
    """
    members = {}
    end = 0

    def reserve(bits: int) -> None:
        if bits:
            count = sum(name.startswith("reserved_") for name in members)
            members[f"reserved_{count}"] = unsigned(bits)

    for field in LAYOUTS[opcode]:
        position = 64 * field.word + field.offset
        reserve(position - end)
        bits = spec.field_bits(field)
        members[field.name] = signed(bits) if field.signed else unsigned(bits)
        end = position + bits
    reserve(64 * WORDS - end)
    return data.StructLayout(members)


def held_instruction(
    m: Module, spec: AcceleratorSpec, given: data.View, accept: Value
) -> data.View:
    """The instruction that a unit executes, from the cycle after that in which it is accepted: in
    registers, or as it is `given`, where it stays there until it is completed."""
    if spec.serial:
        return given
    current = Signal(given.shape(), name="current", reset_less=True)
    with m.If(accept):
        m.d.sync += current.eq(given)
    return current
