"""What the accelerator halts at: the checks of a program, and the codes it may end with."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .config import HardwareConfig
from .fixed import FixedFormat
from .isa import (
    LEVELS,
    WORDS,
    Drain,
    End,
    Error,
    Form,
    Instruction,
    Load,
    Pass,
    Region,
    Weights,
    decode,
)  # fmt: skip
from .tickets import MachineError, accesses, accesses_at, place, schedule, sizes_of

__all__ = ["decode_program", "fetched", "outcomes", "validate"]


def decode_program(words: NDArray[np.uint64]) -> tuple[Instruction, ...]:
    """The instructions of (n, 8) words up to the first END.

    Raises ``MachineError``: BAD_OPCODE, BAD_FIELD for a reserved bit, PROGRAM_RANGE without an END.
    """
    found: list[Instruction] = []
    for index, row in enumerate(words):
        try:
            found.append(decode(row))
        except ValueError as error:
            code = Error.BAD_OPCODE if str(error).startswith("opcode") else Error.BAD_FIELD
            raise MachineError(code, f"instruction {index}: {error}", index) from None
        if found[-1].opcode.name == "END":
            return tuple(found)
    raise MachineError(
        Error.PROGRAM_RANGE, f"a program must have an END, not {len(found)} other instructions"
    )


def _at_least_one(**counts: int) -> Iterator[str]:
    for name, count in counts.items():
        if count < 1:
            yield f"{name} must be at least 1, not {count}"


def _bad_fields(item: Instruction, config: HardwareConfig) -> Iterator[str]:
    """What is wrong with the fields of an instruction, taken by themselves."""
    if isinstance(item, Load):
        yield from _at_least_one(words=item.words, rows=item.rows, blocks=item.blocks)
        if item.region == Region.OUTPUT:
            yield "region must be MODEL, INPUT or SCRATCH, not OUTPUT"
    elif isinstance(item, Weights):
        yield from _at_least_one(tiles=item.tiles)
    elif isinstance(item, Pass):
        counts = {f"count_{k}": loop.count for k, loop in enumerate(item.loops)}
        yield from _at_least_one(**counts)
        for name in ("tile_level", "start_level"):
            if getattr(item, name) > LEVELS:
                yield f"{name} must be 0 to {LEVELS}, not {getattr(item, name)}"
    elif isinstance(item, Drain):
        yield from _at_least_one(rows=item.rows, pixels=item.pixels)
        if item.form not in list(Form):
            yield f"form must be 0 to {max(Form)}, not {item.form}"
        if not item.to_buffer and not item.to_memory:
            yield "to_buffer or to_memory must be set"
        if item.to_memory and item.region not in (Region.SCRATCH, Region.OUTPUT):
            yield f"region must be SCRATCH or OUTPUT, not {Region(item.region).name}"
        if item.form == Form.RAW:
            if item.to_buffer:
                yield "to_buffer must be 0 for raw rows, which only go to memory"
            if item.select:
                yield f"select must be 0 for raw rows, not {item.select}"
        elif item.select >= sizes_of(config).blocks_per_beat:
            allowed = sizes_of(config).blocks_per_beat - 1
            yield f"select must be 0 to {allowed}, not {item.select}"
        form = config.accumulator_format
        if isinstance(form, FixedFormat):
            if not 1 <= item.exponent <= form.highest_field:
                yield f"exponent must be 1 to {form.highest_field}, not {item.exponent}"
        elif item.exponent:
            yield f"exponent must be 0 with float32 accumulators, not {item.exponent}"
        if item.limited and not config.clamp:
            yield "limited must be 0 where the configuration says clamp = false, not 1"


def _memory(item: Instruction, config: HardwareConfig) -> tuple[Region, int] | None:
    """The region that an instruction touches, and the end of what it touches in beats."""
    known = sizes_of(config)
    if isinstance(item, Load):
        beats = known.code_beats if item.fixed else known.word_beats
        turns = (item.blocks, item.block_step), (item.rows, item.row_step)
        return Region(item.region), _last_row(
            item.offset, known.offset_mask, *turns
        ) + item.words * beats
    if isinstance(item, Weights):
        tile = config.tile
        size = item.tiles * tile.beats(False) + (tile.bias_beats if item.biased else 0)
        return Region.MODEL, (item.offset & known.offset_mask) + size
    if isinstance(item, Drain) and item.to_memory:
        beats = known.raw_beats if item.form == Form.RAW else known.word_beats
        last = _last_row(item.offset, known.offset_mask, (item.rows, item.row_step))
        return Region(item.region), last + item.pixels * beats
    return None


def _last_row(offset: int, mask: int, *turns: tuple[int, int]) -> int:
    """The highest offset, of the bits of `mask`, at which a row begins: after any of `count` turns
    of each ``(count, step)``."""
    highest = offset + sum((count - 1) * step for count, step in turns)
    if highest <= mask:
        return highest
    rows = np.array(offset, np.int64)
    for count, step in turns:
        rows = rows[..., None] + np.arange(count) * step
    return int((rows & mask).max())


def _check_memory(
    index: int,
    instructions: Sequence[Instruction],
    config: HardwareConfig,
    sizes: tuple[int, int, int, int],
) -> None:
    touched = _memory(instructions[index], config)
    if touched and touched[1] > sizes[touched[0]]:
        region, end = touched
        raise MachineError(
            Error.MEMORY_RANGE,
            f"{place(index, instructions)}: beats of {region.name} must be 0 to "
            f"{sizes[region] - 1}, not {end - 1}",
            index,
        )


def _check_tiles(instructions: Sequence[Instruction]) -> None:
    """Check that a tile has biases where its first pixel starts, and only there."""
    offered: list[tuple[int, int, bool]] = []
    for index, item in enumerate(instructions):
        if isinstance(item, Weights):
            offered.append((index, 1, bool(item.biased)))
            if item.tiles > 1:
                offered.append((index, item.tiles - 1, False))
    following = iter(offered)
    source, left, biased = next(following, (0, 0, False))
    for index, item in enumerate(instructions):
        if not isinstance(item, Pass):
            continue
        levels = item.loops[item.start_level : item.tile_level]
        starting = prod(loop.count for loop in levels) if item.start else 0
        for count, starts in ((starting, True), (item.tiles - starting, False)):
            while count and left:
                if biased != starts:
                    need, have = ("biases", "none") if starts else ("no biases", "some")
                    raise MachineError(
                        Error.TILE_MISMATCH,
                        f"{place(index, instructions)} must get a tile with {need} when its first "
                        f"pixel {'starts' if starts else 'continues'}; the tile of "
                        f"{place(source, instructions)} has {have}",
                        index,
                    )
                taken = min(count, left)
                count, left = count - taken, left - taken
                if not left:
                    source, left, biased = next(following, (0, 0, False))


def validate(
    instructions: Sequence[Instruction],
    config: HardwareConfig,
    sizes: tuple[int, int, int, int],
) -> None:
    """Check everything at which the accelerator would halt.

    Parameters
    ----------
    sizes : beats of MODEL, INPUT, SCRATCH and OUTPUT

    Raises ``MachineError`` with the code that the accelerator reports, the instruction and what is
    allowed. Of several errors the code is that of one: fields and addresses in program order come
    first, then tiles, then what makes the program stop.
    """
    for index, item in enumerate(instructions):
        if isinstance(item, End):
            instructions = instructions[: index + 1]
            break
        for message in _bad_fields(item, config):
            where = place(index, instructions)
            raise MachineError(Error.BAD_FIELD, f"{where}: {message}", index)
        _check_memory(index, instructions, config, sizes)
        accesses_at(index, instructions, config)
    _check_tiles(instructions)
    schedule(instructions, config)


def fetched(
    model: NDArray[np.uint8], config: HardwareConfig, beats: int
) -> tuple[tuple[Instruction, ...], Error]:
    """The instructions that can be dispatched, and why there are no more.

    Parameters
    ----------
    model : bytes of the MODEL region, whatever they are
    beats : its size

    The reason is NONE after an END, BAD_OPCODE or BAD_FIELD at the next instruction, and
    PROGRAM_RANGE at the end of the region.
    """
    count = beats // config.accelerator.instruction_beats
    words = model[: count * 8 * WORDS].view(np.uint64).reshape(-1, WORDS)
    reason = Error.NONE
    try:
        instructions = decode_program(words)
    except MachineError as error:
        reason = error.code
        instructions = tuple(decode(row) for row in words[: error.instruction])
    for index, item in enumerate(instructions):
        if any(_bad_fields(item, config)):
            return instructions[:index], Error.BAD_FIELD
    return instructions, reason


def outcomes(
    model: NDArray[np.uint8], config: HardwareConfig, sizes: tuple[int, int, int, int]
) -> frozenset[Error]:
    """The codes of which a run ends with one, ``Error.NONE`` among them if it may finish.

    Engines work beside each other: of several errors that one comes first which memory lets come
    first, and how full queues get depends on it too. Where neither matters there is one code. An
    instruction that is too long for :func:`~shiftcore.golden.tickets.accesses` may end with TIMEOUT
    or be out of range.

    Parameters
    ----------
    model : bytes of the MODEL region, whatever they are
    sizes : beats of MODEL, INPUT, SCRATCH and OUTPUT
    """
    instructions, reason = fetched(model, config, sizes[Region.MODEL])
    if reason is not Error.NONE:
        instructions = (*instructions, End())

    def found(check: Callable[..., object], *arguments: Any, **options: Any) -> Error:
        try:
            check(*arguments, **options)
        except MachineError as error:
            return error.code
        return Error.NONE

    # In a memory as large as addresses are wide nothing is out of range: the other one's are left.
    wide = replace(config, buffer_depth=1 << 20), replace(config, accumulator_depth=1 << 16)
    codes = {reason, found(_check_tiles, instructions)}
    for index, item in enumerate(instructions):
        codes.add(found(_check_memory, index, instructions, config, sizes))
        codes |= {found(accesses, item, each) for each in wide}
    if Error.TIMEOUT in codes:
        codes |= {Error.BUFFER_RANGE, Error.ACCUMULATOR_RANGE}
    codes.discard(Error.NONE)
    ends = {found(schedule, instructions, config)}
    ends.add(found(schedule, instructions, config, queue_depth=len(instructions)))
    if reason is not Error.NONE:
        ends &= {Error.DEADLOCK}
    elif codes:
        ends.discard(Error.NONE)
    return frozenset(codes | ends)
