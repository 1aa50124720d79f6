"""The accelerator as a model: executes a compiled program, bit for bit.

Every image begins with zeros in the activation buffer, the accumulators, SCRATCH and OUTPUT;
:func:`check_written` tells whether a program depends on that. Instructions are executed one after
the other in an order that tickets, tiles and queues allow; :func:`check_order` tells whether every
such order gives the same result.
"""

from collections.abc import Iterator, Sequence
from math import prod

import numpy as np
from numpy.typing import NDArray

from .config import HardwareConfig
from .isa import LEVELS, Drain, End, Error, Form, Instruction, Load, Pass, Region, Weights, decode
from .tickets import (
    Accesses,
    MachineError,
    accesses,
    accesses_at,
    check_order,
    check_written,
    place,
    schedule,
    sizes_of,
    tickets,
)

__all__ = [
    "Accesses",
    "MachineError",
    "accesses",
    "check_order",
    "check_written",
    "decode_program",
    "schedule",
    "tickets",
    "validate",
]


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
        if item.limited and not getattr(config, "clamp", True):
            yield "limited must be 0 where the configuration says clamp = false, not 1"


def _memory(item: Instruction, config: HardwareConfig) -> tuple[Region, int] | None:
    """The region that an instruction touches, and the end of what it touches in beats."""
    known = sizes_of(config)
    if isinstance(item, Load):
        beats = known.code_beats if item.fixed else known.word_beats
        steps = (item.blocks - 1) * item.block_step + (item.rows - 1) * item.row_step
        return Region(item.region), item.offset + steps + item.words * beats
    if isinstance(item, Weights):
        tile = config.tile
        size = item.tiles * tile.beats(False) + (tile.bias_beats if item.biased else 0)
        return Region.MODEL, item.offset + size
    if isinstance(item, Drain) and item.to_memory:
        beats = known.raw_beats if item.form == Form.RAW else known.word_beats
        steps = (item.rows - 1) * item.row_step
        return Region(item.region), item.offset + steps + item.pixels * beats
    return None


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
        levels = slice(min(item.start_level, item.tile_level), item.tile_level)
        starting = prod(loop.count for loop in item.loops[levels]) if item.start else 0
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
        where = place(index, instructions)
        for message in _bad_fields(item, config):
            raise MachineError(Error.BAD_FIELD, f"{where}: {message}", index)
        touched = _memory(item, config)
        if touched and touched[1] > sizes[touched[0]]:
            region, end = touched
            raise MachineError(
                Error.MEMORY_RANGE,
                f"{where}: beats of {region.name} must be 0 to {sizes[region] - 1}, not {end - 1}",
                index,
            )
        accesses_at(index, instructions, config)
    _check_tiles(instructions)
    schedule(instructions, config)
