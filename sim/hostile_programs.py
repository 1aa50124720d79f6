"""Programs that no compiler writes: valid ones, and what is done to them."""

from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from ..golden.config import HardwareConfig
from ..golden.fixed import FixedFormat
from ..golden.isa import (
    LAYOUTS,
    WORDS,
    Drain,
    End,
    Form,
    Instruction,
    Load,
    Loop,
    Opcode,
    Pass,
    Region,
    Weights,
    encode,
)  # fmt: skip
from ..golden.program import Place, Program
from ..golden.tickets import tickets

__all__ = [
    "CONFIG",
    "CONFIGS",
    "TIMEOUT",
    "HostileCase",
    "Kind",
    "hostile_case",
    "valid_program",
]

CONFIG = HardwareConfig(
    4, 4, accumulator_depth=64, buffer_depth=256, queue_depth=3, weight_fifo=32, load_fifo=32,
    store_fifo=32, burst_beats=8,
)  # fmt: skip
CONFIGS = (
    CONFIG,
    replace(CONFIG, accumulator="fixed24"),
    replace(CONFIG, control="serial"),
)
"""of which each has its own cases"""
TIMEOUT = 6_000
"""cycles after which the accelerator halts by itself, or under serial control the host gives up;
valid programs take less than 2,000"""


class Kind(StrEnum):
    """What is done to a valid program."""

    FIELD = "one field changed"
    WORDS = "instructions garbled, doubled, swapped or missing"
    REGION = "a region too small"
    FAILING = "memory that fails"
    CUT = "no END"
    HASTE = "a short time-out"


_SHARES = {
    Kind.FIELD: 0.62,
    Kind.WORDS: 0.16,
    Kind.REGION: 0.06,
    Kind.FAILING: 0.06,
    Kind.CUT: 0.04,
    Kind.HASTE: 0.06,
}


@dataclass(frozen=True, eq=False)
class HostileCase:
    """A valid program, and what the accelerator gets instead of it.

    Parameters
    ----------
    kind : what was done
    valid : the program
    content : bytes of the MODEL region
    sizes : of all regions, in beats
    timeout : cycles
    failing : region, first beat and number of beats that memory answers with an error
    """

    kind: Kind
    valid: Program
    content: NDArray[np.uint8]
    sizes: tuple[int, int, int, int]
    timeout: int = TIMEOUT
    failing: tuple[Region, int, int] | None = None

    @cached_property
    def program(self) -> Program:
        """For the driver: everything is in the weights, which follow no instructions."""
        return self.with_instructions(())

    def with_instructions(self, instructions: tuple[Instruction, ...]) -> Program:
        """The program that begins with so many instructions, which are those of the content."""
        rest = self.content[8 * WORDS * len(instructions) :]
        return replace(
            self.valid, instructions=instructions, weights=rest, places=(), sizes=self.sizes
        )


def valid_program(rng: Generator, config: HardwareConfig = CONFIG) -> Program:
    """Two small layers: one stored on chip and in memory, one that reads it back from both."""
    spec, rows, cols = config.accelerator, config.rows, config.cols
    form = config.accumulator_format
    fixed = isinstance(form, FixedFormat)
    unit = 4096 if fixed else 1
    exponent = int(rng.integers(110, 130)) if fixed else 0
    height, width = (int(n) for n in rng.integers(2, 5, 2))
    blocks, kernel = int(rng.integers(1, 3)), int(rng.choice([1, 3]))
    pixels = height * width
    words = blocks * pixels
    low, high = -(1 << (config.weight_bits - 1)), 1 << (config.weight_bits - 1)

    def numbers(exact: NDArray[np.float64]) -> NDArray[np.floating]:
        return (np.rint(exact) if fixed else exact).astype(form.dtype)

    def tile(biased: bool) -> list[int]:
        codes = rng.integers(low, high, (rows, cols)).astype(np.int8)
        scales = config.tile.scale.round(unit * rng.normal(size=cols))
        return config.tile.pack(
            codes, scales, numbers(unit * rng.normal(size=cols)) if biased else None
        )

    first = [tile(k == 0) for k in range(blocks * kernel * kernel)]
    second = [tile(True), tile(False)]
    border = kernel // 2
    row = width * spec.word_beats
    maximum = int(rng.integers(2))
    limits = form.encode(numbers(np.array([-unit, 1.5 * unit])))
    program: list[Instruction] = [
        Load(
            offset=0, region=Region.INPUT, buffer=0, fixed=1, exponent=int(rng.integers(120, 130)),
            words=width, rows=height, blocks=blocks, row_step=width * spec.code_beats,
            block_step=pixels * spec.code_beats, buffer_row_step=width, buffer_block_step=pixels,
        ),
        Weights(offset=0, tiles=len(first), biased=1),
        Pass(
            buffer=(-border * (width + 1)) % (1 << 20), y=-border, x=-border, height=height,
            width=width, start=1, tile_level=3, start_level=3, signed=int(rng.integers(2)),
            loops=(
                Loop(blocks, pixels), Loop(kernel, width, 0, 1), Loop(kernel, 1, 0, 0, 1),
                Loop(height, width, width, 1), Loop(width, 1, 1, 0, 1),
            ),
        ),
        Drain(
            accumulator=0, rows=height, pixels=width, form=Form.UNSIGNED, to_buffer=1, to_memory=1,
            region=Region.SCRATCH, buffer=words, buffer_row_step=width, offset=0, row_step=row,
            exponent=exponent, limited=1, low=int(limits[0]), high=int(limits[1]),
        ),
        Load(
            offset=0, region=Region.SCRATCH, buffer=words + pixels, words=width, rows=height,
            row_step=row, buffer_row_step=width,
        ),
        Weights(offset=0, tiles=1, biased=1),
        Weights(offset=0, tiles=1),
        Pass(
            buffer=words, accumulator=32, height=height, width=width, start=1, tile_level=1,
            start_level=1, maximum=maximum,
            loops=(
                Loop(2, pixels), Loop(), Loop(), Loop(height, width, width, 1),
                Loop(width, 1, 1, 0, 1),
            ),
        ),
        Drain(
            accumulator=32, rows=height, pixels=width, form=Form.RAW, exponent=exponent,
            to_memory=1, region=Region.OUTPUT, offset=0, row_step=width * spec.raw_beats,
        ),
        End(),
    ]  # fmt: skip
    offset = len(program) * spec.instruction_beats
    for index, beats in ((1, sum(map(len, first))), (5, len(second[0])), (6, len(second[1]))):
        item = program[index]
        assert isinstance(item, Weights)
        program[index] = replace(item, offset=offset)
        offset += beats
    stream = np.array([beat for part in (*first, *second) for beat in part], np.uint64)
    return Program(
        config, tuple(tickets(program, config)), stream.view(np.uint8),
        (Place("first", 0, 0, 0), Place("second", 0, 0, 0)),
        (offset, words * spec.code_beats, pixels * spec.word_beats, pixels * spec.raw_beats),
        (1, blocks, height, width),
        {"first": (cols, height, width), "second": (cols, height, width)}, "second", 1,
    )  # fmt: skip


def _changed_field(words: NDArray[np.uint64], rng: Generator) -> NDArray[np.uint64]:
    """The encoded program with one field of one instruction changed."""
    words = words.copy()
    valid = np.isin(words[:, 0] & np.uint64(0xF), list(Opcode))
    index = int(rng.choice(np.flatnonzero(valid)))
    layout = LAYOUTS[Opcode(int(words[index, 0]) & 0xF)]
    field = layout[int(rng.integers(len(layout)))]
    mask = (1 << field.bits) - 1
    before = int(words[index, field.word]) >> field.offset & mask
    value = before
    while value == before:
        value = (
            mask
            & {
                0: 0,
                1: mask,
                2: before + 1,
                3: before - 1,
                4: before ^ 1 << int(rng.integers(field.bits)),
                5: int(rng.integers(1 << field.bits)),
                6: int(rng.integers(8)),
            }[int(rng.integers(7))]
        )
    cleared = int(words[index, field.word]) & ~(mask << field.offset)
    words[index, field.word] = np.uint64(cleared | value << field.offset)
    return words


def _garbled(words: NDArray[np.uint64], rng: Generator) -> NDArray[np.uint64]:
    """The encoded program with something worse done to it."""
    words = words.copy()
    index, other = (int(n) for n in rng.integers(len(words), size=2))
    kind = int(rng.integers(6))
    if kind < 2:
        words[index] = rng.integers(0, 1 << 64, WORDS, dtype=np.uint64)
        if kind:  # any bits of a valid opcode
            opcode = int(rng.choice(list(Opcode)))
            words[index, 0] = np.uint64(int(words[index, 0]) & ~0xF | opcode)
    elif kind == 2:
        words[index] = words[other]
    elif kind == 3:
        words = np.concatenate([np.delete(words, index, axis=0), np.zeros((1, WORDS), np.uint64)])
    elif kind == 4:
        words[[index, other]] = words[[other, index]]
    else:
        for _ in range(3):
            words = _changed_field(words, rng)
    return words


def hostile_case(rng: Generator, config: HardwareConfig = CONFIG) -> HostileCase:
    """A random one."""
    valid = valid_program(rng, config)
    kind = Kind(rng.choice(list(_SHARES), p=list(_SHARES.values())))
    words, sizes = encode(valid.instructions), list(valid.sizes)
    timeout, failing = TIMEOUT, None
    if kind is Kind.FIELD:
        words = _changed_field(words, rng)
    elif kind is Kind.WORDS:
        words = _garbled(words, rng)
    elif kind is Kind.REGION:
        region = int(rng.integers(4))
        sizes[region] = int(rng.integers(sizes[region]))
    elif kind is Kind.FAILING:
        region = Region(int(rng.integers(4)))
        first = int(rng.integers(sizes[region]))
        failing = region, first, int(rng.integers(1, sizes[region] - first + 1))
    elif kind is Kind.CUT:
        instructions = int(rng.integers(1, len(words)))
        sizes[Region.MODEL] = instructions * config.accelerator.instruction_beats
    else:
        timeout = int(rng.integers(1, 1200))
    model, source, scratch, output = sizes
    content = np.concatenate([words.view(np.uint8).ravel(), valid.weights])
    return HostileCase(
        kind,
        valid,
        content[: model * config.accelerator.beat_bytes],
        (model, source, scratch, output),
        timeout,
        failing,
    )
