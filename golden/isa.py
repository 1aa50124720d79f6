"""The instruction set of the accelerator: fields, encoding, and the words of an instruction.

A program is a list of instructions of eight 64-bit words. They are dispatched in program order to
four units, which run beside each other: ``LOAD`` (memory to activation buffer), ``WEIGHTS``
(memory to the tile loader), ``PASS`` (activation buffer through the array to the accumulators) and
``DRAIN`` (accumulators to the activation buffer, to memory, or both). Each unit takes its
instructions in order. What orders them among each other are **tickets**: an instruction begins when
LOAD, PASS and DRAIN have each completed at least as many instructions, counted from the start of
the image, as its fields ``after_load``, ``after_pass`` and ``after_drain`` say.

Tiles come from the WEIGHTS unit in the order in which PASS takes them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import chain
from math import prod
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "COUNT_BITS",
    "ENGINES",
    "ISA_VERSION",
    "LAYOUTS",
    "LEVELS",
    "WORDS",
    "Drain",
    "End",
    "Error",
    "Field",
    "Form",
    "Instruction",
    "Load",
    "Loop",
    "Opcode",
    "Pass",
    "Region",
    "Space",
    "Weights",
    "decode",
    "encode",
]

ISA_VERSION = 1
WORDS = 8
"""64-bit words of an instruction"""
LEVELS = 5
"""nested loops of a PASS"""
COUNT_BITS = 20
"""width of a ticket"""


class Opcode(IntEnum):
    """0 is none, so that cleared memory is no program."""

    END = 1
    LOAD = 2
    WEIGHTS = 3
    PASS = 4
    DRAIN = 5


ENGINES = (Opcode.LOAD, Opcode.WEIGHTS, Opcode.PASS, Opcode.DRAIN)
"""The units that take instructions."""


class Region(IntEnum):
    """Memory regions; each has a base, a size and a stride from image to image.

    The program and the weights are in MODEL. DRAIN writes to SCRATCH and OUTPUT, LOAD and WEIGHTS
    read from the others.
    """

    MODEL = 0
    INPUT = 1
    SCRATCH = 2
    OUTPUT = 3


class Form(IntEnum):
    """What a DRAIN makes of a row of accumulators."""

    RAW = 0
    UNSIGNED = 1
    SIGNED = 2


class Error(IntEnum):
    """Why the accelerator halted; 0 means that it did not."""

    NONE = 0
    BAD_OPCODE = 1
    BAD_FIELD = 2
    """a count of 0, a level, form, region or selection that does not exist, a reserved bit"""
    PROGRAM_RANGE = 3
    """the program region ended without an END"""
    BUFFER_RANGE = 4
    ACCUMULATOR_RANGE = 5
    MEMORY_RANGE = 6
    TILE_MISMATCH = 7
    """a starting PASS met a tile without biases, or another one a tile with biases"""
    WEIGHTS_LEFT = 8
    """tiles that no PASS took when the program ended"""
    DEADLOCK = 9
    READ_FAILED = 10
    WRITE_FAILED = 11
    TIMEOUT = 12


Space = Literal["buffer", "accumulators", "memory"]
"""What has addresses. They count in as many bits as
:meth:`~shiftcore.golden.accelerator.AcceleratorSpec.space_bits` says; a field's others are ignored.
"""


class Field(NamedTuple):
    """Where a field of an instruction is: `bits` from `offset` on in `word`."""

    name: str
    word: int
    offset: int
    bits: int
    signed: bool

    @property
    def space(self) -> Space | None:
        """What it is an address of, or a step in, if anything."""
        if self.name in ("offset", "row_step", "block_step"):
            return "memory"
        if self.name == "beat_step" or self.name.startswith("accumulator"):
            return "accumulators"
        return "buffer" if self.name.startswith("buffer") else None


_HEADER = "opcode:4 after_load:20 after_pass:20 after_drain:20"
_LOOPS = tuple(
    f"count_{k}:12 buffer_step_{k}:20 accumulator_step_{k}:16 y_step_{k}:-8 x_step_{k}:-8"
    for k in range(LEVELS)
)
_WORDS: dict[Opcode, tuple[str, ...]] = {
    Opcode.END: (_HEADER,),
    Opcode.LOAD: (
        _HEADER,
        "offset:32 region:2 buffer:20 fixed:1 exponent:8",
        "words:12 rows:12 blocks:12 row_step:24",
        "block_step:32 buffer_row_step:20",
        "buffer_block_step:20",
    ),
    Opcode.WEIGHTS: (_HEADER, "offset:32 tiles:20 biased:1"),
    Opcode.PASS: (
        _HEADER,
        "buffer:20 accumulator:16 start:1 maximum:1 signed:1 tile_level:3 start_level:3",
        "y:-12 x:-12 height:12 width:12",
        *_LOOPS,
    ),
    Opcode.DRAIN: (
        _HEADER,
        "accumulator:16 beat_step:16 rows:12 pixels:12 form:2 to_buffer:1 to_memory:1 limited:1",
        "buffer:20 buffer_row_step:20 select:7 region:2 exponent:8",
        "offset:32 row_step:24",
        "low:32 high:32",
    ),
}


def _layout(words: Iterable[str]) -> tuple[Field, ...]:
    found = []
    for word, text in enumerate(words):
        offset = 0
        for part in text.split():
            name, width = part.split(":")
            found.append(Field(name, word, offset, abs(int(width)), int(width) < 0))
            offset += abs(int(width))
        assert offset <= 64
    return tuple(found)


LAYOUTS: dict[Opcode, tuple[Field, ...]] = {op: _layout(words) for op, words in _WORDS.items()}
"""The fields of each instruction; what they leave is reserved and must be 0."""


class Loop(NamedTuple):
    """One loop of a PASS: `count` turns, and what each adds to the position."""

    count: int = 1
    buffer_step: int = 0
    accumulator_step: int = 0
    y_step: int = 0
    x_step: int = 0


@dataclass(frozen=True, kw_only=True)
class _Ticketed:
    """Instructions that LOAD, PASS and DRAIN must have completed before this one begins."""

    opcode: ClassVar[Opcode]
    after_load: int = 0
    after_pass: int = 0
    after_drain: int = 0

    def __post_init__(self) -> None:
        for field, value in zip(LAYOUTS[self.opcode][1:], _values(self), strict=True):
            low = -(1 << (field.bits - 1)) if field.signed else 0
            if not low <= value < low + (1 << field.bits):
                raise ValueError(
                    f"{self.opcode.name} {field.name} must be {low} to "
                    f"{low + (1 << field.bits) - 1}, not {value}"
                )


@dataclass(frozen=True, kw_only=True)
class End(_Ticketed):
    """The image is finished when every engine is."""

    opcode: ClassVar[Opcode] = Opcode.END


@dataclass(frozen=True, kw_only=True)
class Load(_Ticketed):
    """Words from memory to the activation buffer.

    Parameters
    ----------
    offset, region : of the first word; offsets and steps in memory are in beats of the bus
    buffer : address of the first word there
    words, rows, blocks : counts; the words of a row are adjacent in memory and buffer
    row_step, block_step : in memory
    buffer_row_step, buffer_block_step : in the buffer
    fixed, exponent : the words in memory are codes only; all get this exponent field
    """

    opcode: ClassVar[Opcode] = Opcode.LOAD
    offset: int
    region: int
    buffer: int
    fixed: int = 0
    exponent: int = 0
    words: int
    rows: int = 1
    blocks: int = 1
    row_step: int = 0
    block_step: int = 0
    buffer_row_step: int = 0
    buffer_block_step: int = 0


@dataclass(frozen=True, kw_only=True)
class Weights(_Ticketed):
    """`tiles` adjacent tiles at `offset` of the model; if `biased`, the first has biases."""

    opcode: ClassVar[Opcode] = Opcode.WEIGHTS
    offset: int
    tiles: int
    biased: int = 0


@dataclass(frozen=True, kw_only=True)
class Pass(_Ticketed):
    """Pixels from the activation buffer through the array.

    Five nested loops, outermost first, walk over a position: buffer address, accumulator address,
    and the coordinates (y, x) of the input pixel. It begins at `buffer`, `accumulator`, `y`, `x`;
    when loop k advances, its steps are added to the position at which its current turn began, and
    the loops inside begin there. Addresses wrap as in :data:`Space`, coordinates at 12 bits.

    A pixel outside ``0 <= y < height, 0 <= x < width`` is zero and reads no buffer; under `maximum`
    it leaves the accumulator as it is.

    Parameters
    ----------
    start : accumulators start from the bias while all loops of a level below `start_level` are in
        their first turn
    maximum : maximum instead of sum
    signed : of the activation codes
    tile_level : the next tile is taken whenever a loop of a level below this one advances
    """

    opcode: ClassVar[Opcode] = Opcode.PASS
    buffer: int
    accumulator: int = 0
    start: int = 0
    maximum: int = 0
    signed: int = 0
    tile_level: int = 0
    start_level: int = 0
    y: int = 0
    x: int = 0
    height: int
    width: int
    loops: tuple[Loop, ...]

    @property
    def pixels(self) -> int:
        return prod([loop.count for loop in self.loops])

    @property
    def tiles(self) -> int:
        """Tiles that it takes."""
        return prod([loop.count for loop in self.loops[: self.tile_level]])


@dataclass(frozen=True, kw_only=True)
class Drain(_Ticketed):
    """Accumulators to the activation buffer or memory.

    ``rows * pixels`` pixels are read; pixel i of them is at ``accumulator + i`` and, where a block
    takes several rows of accumulators, ``accumulator + i + beat * beat_step``. A row of words goes
    to adjacent places.

    Parameters
    ----------
    form : :class:`Form`; raw rows only go to memory
    exponent : with fixed-point accumulators the exponent field of the number 1, at most 255 less
        their width; with float32 0
    limited, low, high : clamp the accumulators, ``min(max(number, low), high)``, with two numbers
        of their format, given as 32 bits; of float32 an exponent field of 0 reads as +0, and one
        of all ones is no number
    to_buffer, buffer, buffer_row_step : where words go in the buffer
    to_memory, region, offset, row_step : where words or raw rows go in memory, in beats
    select : which block, where a row of accumulators holds several
    """

    opcode: ClassVar[Opcode] = Opcode.DRAIN
    accumulator: int
    beat_step: int = 0
    rows: int = 1
    pixels: int
    form: int
    to_buffer: int = 0
    to_memory: int = 0
    limited: int = 0
    buffer: int = 0
    buffer_row_step: int = 0
    select: int = 0
    region: int = 0
    exponent: int = 0
    offset: int = 0
    row_step: int = 0
    low: int = 0
    high: int = 0


Instruction = End | Load | Weights | Pass | Drain
_LOOP_FIELDS = tuple(f"{name}_{k}" for k in range(LEVELS) for name in Loop._fields)
_CLASSES: dict[Opcode, type] = {c.opcode: c for c in (End, Load, Weights, Pass, Drain)}


def _values(instruction: _Ticketed) -> list[int]:
    """The values of all fields but the opcode, in the order of the layout."""
    by_name = dict(vars(instruction))
    if isinstance(instruction, Pass):
        loops = by_name.pop("loops")
        if len(loops) != LEVELS:
            raise ValueError(f"a PASS has {LEVELS} loops, not {len(loops)}")
        by_name.update(zip(_LOOP_FIELDS, chain.from_iterable(loops), strict=True))
    return [int(by_name[field.name]) for field in LAYOUTS[instruction.opcode][1:]]


def encode(program: Sequence[Instruction]) -> NDArray[np.uint64]:
    """The program as (instructions, 8) words."""
    words = np.zeros((len(program), WORDS), np.uint64)
    for row, instruction in zip(words, program, strict=True):
        layout = LAYOUTS[instruction.opcode]
        row[0] = instruction.opcode
        for field, value in zip(layout[1:], _values(instruction), strict=True):
            masked = value & ((1 << field.bits) - 1)
            row[field.word] |= np.uint64(masked << field.offset)
    return words


def decode(words: NDArray[np.uint64]) -> Instruction:
    """The instruction of 8 words.

    Raises ``ValueError`` for an unknown opcode or a reserved bit that is set. Counts and selections
    are not judged.
    """
    row = [int(word) for word in words]
    try:
        opcode = Opcode(row[0] & 0xF)
    except ValueError:
        raise ValueError(f"opcode {row[0] & 0xF} does not exist") from None
    values: dict[str, int] = {}
    for field in LAYOUTS[opcode]:
        value = (row[field.word] >> field.offset) & ((1 << field.bits) - 1)
        row[field.word] &= ~(((1 << field.bits) - 1) << field.offset)
        if field.signed and value >> (field.bits - 1):
            value -= 1 << field.bits
        values[field.name] = value
    if any(row):
        raise ValueError(f"a reserved bit of {opcode.name} is set")
    del values["opcode"]
    if opcode is Opcode.PASS:
        numbers = iter([values.pop(name) for name in _LOOP_FIELDS])
        loops = [Loop(*part) for part in zip(*[numbers] * len(Loop._fields), strict=True)]
        return Pass(**values, loops=tuple(loops))
    return _CLASSES[opcode](**values)
