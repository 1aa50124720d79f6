"""Spec of the accelerator around the engine: memory words, buffers, queues."""

from dataclasses import dataclass
from typing import Literal, get_args

from .bfp import BlockFloat
from .engine import EngineSpec
from .isa import ENGINES, LAYOUTS, WORDS, Field, Opcode, Space

__all__ = [
    "ADDRESS_BITS",
    "CONTROLS",
    "HALT_CYCLES",
    "PAGE_BYTES",
    "AcceleratorSpec",
    "Control",
    "longest_run",
]

ADDRESS_BITS = 40
"""most bits of a byte's address"""
Control = Literal["queued", "serial"]
CONTROLS: tuple[Control, ...] = get_args(Control)
PAGE_BYTES = 4096
"""no burst crosses a multiple of it, a rule of AXI; regions begin at one"""
HALT_CYCLES = 10
"""cycles that a run takes at most beside its time-out and what memory owes it then"""


def longest_run(timeout: int, memory: int) -> int:
    """Cycles that a run takes at most, whatever the program is, as the register CYCLES counts.

    Parameters
    ----------
    timeout : register TIMEOUT, not 0
    memory : cycles in which memory answers ``outstanding`` of the longest bursts in each direction
    """
    return timeout + memory + HALT_CYCLES


@dataclass(frozen=True)
class AcceleratorSpec:
    """The engine, an activation buffer, and what feeds them from memory.

    A **word** is one block of one pixel: its codes, lowest channel lowest, then its exponent field.
    In memory it begins with a beat of the bus. Words whose exponent is a constant of the tensor
    (the network's input) are stored without it.

    Parameters
    ----------
    engine : array, scale units, requantizer
    buffer_depth : words of the activation buffer, 16 to 2**20
    control : whether instructions overlap: "queued" for each unit, or "serial", one after the other
    queue_depth : instructions that wait in front of each unit, where they are queued
    weight_fifo, load_fifo, store_fifo : beats between memory and each unit
    burst_beats : longest burst; a FIFO holds at least two
    outstanding : bursts on their way at once, in each direction
    address_bits : of a byte in memory, 16 to :data:`ADDRESS_BITS`
    """

    engine: EngineSpec
    buffer_depth: int
    control: Control
    queue_depth: int
    weight_fifo: int
    load_fifo: int
    store_fifo: int
    burst_beats: int
    outstanding: int
    address_bits: int

    @property
    def serial(self) -> bool:
        """Whether instructions are executed one after the other."""
        return self.control == "serial"

    @property
    def bus_bits(self) -> int:
        return self.engine.tile.bus_bits

    @property
    def beat_bytes(self) -> int:
        return self.bus_bits // 8

    @property
    def storage(self) -> BlockFloat:
        """Format of stored blocks."""
        return BlockFloat(self.engine.array.rows, self.engine.array.act_bits)

    @property
    def code_bits(self) -> int:
        """Codes of a word."""
        return self.engine.array.rows * self.engine.array.act_bits

    @property
    def word_bits(self) -> int:
        return self.code_bits + 8

    @property
    def code_beats(self) -> int:
        """Beats of a word in memory without its exponent."""
        return -(-self.code_bits // self.bus_bits)

    @property
    def word_beats(self) -> int:
        """Beats of a word in memory."""
        return -(-self.word_bits // self.bus_bits)

    @property
    def raw_beats(self) -> int:
        """Beats of a raw row of accumulators in memory."""
        return -(-32 * self.engine.array.cols // self.bus_bits)

    def space_bits(self, space: Space) -> int:
        """Bits in which addresses count: of beats in memory as many as it has, at most 32; of words
        and accumulators the fewest that hold their number too, or all of the field."""
        if space == "memory":
            return min(32, self.address_bits - (self.beat_bytes - 1).bit_length())
        if space == "buffer":
            return min(20, self.buffer_depth.bit_length())
        return min(16, self.engine.scale_unit.depth.bit_length())

    def field_bits(self, field: Field) -> int:
        """Bits of a field that count."""
        return field.bits if field.space is None else min(field.bits, self.space_bits(field.space))

    @property
    def offset_bits(self) -> int:
        """Of a beat in a region."""
        return self.space_bits("memory")

    @property
    def load_rows(self) -> int:
        """Rows of words that LOAD has asked for and that have not all come, at most: short ones are
        a burst each, of which as many again may wait."""
        return min(16, 2 * self.outstanding)

    @property
    def weights_ahead(self) -> int:
        """WEIGHTS instructions whose tiles have not all left for the array, at most."""
        return 2 if self.serial else 4

    @property
    def dispatched_weights(self) -> int:
        """WEIGHTS instructions that can be dispatched before a PASS takes a tile, at least."""
        return self.weights_ahead if self.serial else self.queue_depth

    @property
    def instruction_beats(self) -> int:
        return WORDS * 64 // self.bus_bits

    def field_beats(self, opcode: Opcode) -> int:
        """Beats of an instruction that hold its fields, those that the hardware has."""
        absent = () if self.engine.clamp else ("low", "high")
        fields = [each for each in LAYOUTS[opcode] if each.name not in absent]
        return -(-max(64 * f.word + f.offset + f.bits for f in fields) // self.bus_bits)

    @property
    def stored_beats(self) -> int:
        """Beats for which there is a place: instructions that wait, and one more for each unit."""
        return len(ENGINES) * self.instruction_beats << self.queue_depth.bit_length()
