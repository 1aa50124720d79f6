"""What an instruction touches, the tickets that follow from it, and the check that they suffice.

LOAD, PASS and DRAIN run beside each other, each in its own order. Two accesses of different engines
to one place, not both of them reads, must be ordered by tickets, directly or through other
instructions. All places are shared by writers and readers only: every two engines that touch one
conflict there.

======== ================= ============== ======
engine   activation buffer accumulators   memory
======== ================= ============== ======
LOAD     writes                           reads
PASS     reads             reads, writes
DRAIN    writes            reads          writes
======== ================= ============== ======
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from math import prod
from typing import NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from .config import HardwareConfig
from .isa import (
    Drain,
    End,
    Error,
    Form,
    Instruction,
    Load,
    Loop,
    Opcode,
    Pass,
    Region,
    Space,
    Weights,
)
from .program import Program

__all__ = [
    "Accesses",
    "MachineError",
    "Positions",
    "accesses",
    "check_order",
    "check_written",
    "positions",
    "schedule",
    "tickets",
]

_LONGEST_PASS = 1 << 28
_LONGEST_MOVE = 1 << 24
_CHUNK = 1 << 20

Indices = NDArray[np.int64]
_NONE = np.zeros(0, np.int64)
_NONE.setflags(write=False)

_ENGINES = (Opcode.LOAD, Opcode.PASS, Opcode.DRAIN)


class MachineError(ValueError):
    """A program that the accelerator halts at, with the `code` it then reports.

    ``Error.NONE`` is the code of programs that the accelerator executes, but whose result is not
    defined: accesses without an order, reads of what nothing wrote, numbers that are none.
    """

    def __init__(self, code: Error, message: str, instruction: int | None = None):
        super().__init__(message)
        self.code = code
        self.instruction = instruction


class Accesses(NamedTuple):
    """Places that one instruction touches, each sorted and without repetition.

    Words of the activation buffer, accumulator addresses (of all columns), beats of SCRATCH.
    """

    buffer_reads: Indices = _NONE
    buffer_writes: Indices = _NONE
    accumulator_reads: Indices = _NONE
    """accumulators whose earlier value counts"""
    accumulator_writes: Indices = _NONE
    scratch_reads: Indices = _NONE
    scratch_writes: Indices = _NONE


class Positions(NamedTuple):
    """The pixels of a PASS in their order: addresses, and which lie inside the picture."""

    buffer: Indices
    accumulator: Indices
    inside: NDArray[np.bool_]


class Sizes(NamedTuple):
    """Numbers of a configuration that instructions are judged by."""

    buffer_depth: int
    accumulator_depth: int
    beats_per_block: int
    blocks_per_beat: int
    code_beats: int
    word_beats: int
    raw_beats: int
    buffer_mask: int
    accumulator_mask: int
    offset_mask: int
    """of the bits in which addresses count"""


@lru_cache(maxsize=64)
def sizes_of(config: HardwareConfig) -> Sizes:
    """The :class:`Sizes` of `config`."""
    spec = config.accelerator
    requantizer = config.requantizer
    return Sizes(
        config.buffer_depth,
        config.accumulator_depth,
        requantizer.beats_per_block,
        requantizer.blocks_per_beat,
        spec.code_beats,
        spec.word_beats,
        spec.raw_beats,
        *((1 << spec.space_bits(space)) - 1 for space in get_args(Space)),
    )


def _outer(start: int, counts: Sequence[int], steps: Sequence[int]) -> Indices:
    """`start` plus the steps of all turns, the last loop fastest."""
    found = np.array([start], np.int64)
    for count, step in zip(counts, steps, strict=True):
        if count == 1:
            continue
        found = (found[:, None] + np.arange(count, dtype=np.int64) * step).reshape(-1)
    return found


def _coordinate(value: int) -> int:
    """12 signed bits."""
    return ((value + 2048) & 0xFFF) - 2048


def _coordinates(start: int, counts: Sequence[int], steps: Sequence[int]) -> Indices:
    """:func:`_outer` in 12 signed bits."""
    return ((_outer(start, counts, steps) + 2048) & 0xFFF) - 2048


def positions(item: Pass, sizes: Sizes) -> Positions:
    """All pixels of a PASS; (pixels,) each."""
    counts = [loop.count for loop in item.loops]
    y = _coordinates(item.y, counts, [loop.y_step for loop in item.loops])
    x = _coordinates(item.x, counts, [loop.x_step for loop in item.loops])
    return Positions(
        _outer(item.buffer, counts, [loop.buffer_step for loop in item.loops]) & sizes.buffer_mask,
        _outer(item.accumulator, counts, [loop.accumulator_step for loop in item.loops])
        & sizes.accumulator_mask,
        (y >= 0) & (y < item.height) & (x >= 0) & (x < item.width),
    )


def _parts(item: Pass, sizes: Sizes) -> Iterator[tuple[Positions, int]]:
    """The pixels of a PASS in parts of bearable size, and how many of each start: its first."""
    counts = [loop.count for loop in item.loops]
    level = 0
    while prod(counts[level:]) > _CHUNK:
        level += 1
    for turn in np.ndindex(*counts[:level]):
        part = item
        if level:
            steps = list(zip(turn, item.loops, strict=False))
            buffer = item.buffer + sum(n * loop.buffer_step for n, loop in steps)
            accumulator = item.accumulator + sum(n * loop.accumulator_step for n, loop in steps)
            part = replace(
                item,
                buffer=buffer & sizes.buffer_mask,
                accumulator=accumulator & sizes.accumulator_mask,
                y=_coordinate(item.y + sum(n * loop.y_step for n, loop in steps)),
                x=_coordinate(item.x + sum(n * loop.x_step for n, loop in steps)),
                loops=(Loop(),) * level + item.loops[level:],
            )
        starts = item.start and not any(turn[: item.start_level])
        yield positions(part, sizes), prod(counts[max(level, item.start_level) :]) if starts else 0


def _checked(code: Error, what: str, found: Indices, depth: int) -> Indices:
    if found.size and found.max() >= depth:
        first = found[found >= depth][0]
        raise MachineError(code, f"{what} must be 0 to {depth - 1}, not {first}")
    return found


def _buffer(found: Indices, sizes: Sizes) -> Indices:
    return _checked(Error.BUFFER_RANGE, "buffer addresses", found, sizes.buffer_depth)


def _accumulators(found: Indices, sizes: Sizes) -> Indices:
    depth = sizes.accumulator_depth
    return _checked(Error.ACCUMULATOR_RANGE, "accumulator addresses", found, depth)


def _bounded(count: int, limit: int, what: str) -> None:
    """Refuse what takes too long to walk through."""
    if count > limit:
        raise MachineError(Error.TIMEOUT, f"{what} must be at most {limit}, not {count}")


def _pass_accesses(item: Pass, sizes: Sizes) -> Accesses:
    _bounded(item.pixels, _LONGEST_PASS, "pixels")
    read = np.zeros(sizes.buffer_depth, bool)
    started, continued = np.zeros((2, sizes.accumulator_depth), bool)
    for found, starts in _parts(item, sizes):
        read[_buffer(found.buffer[found.inside], sizes)] = True
        touched = _accumulators(found.accumulator, sizes)
        started[touched[:starts]] = True
        continued[touched[starts:]] = True
    return Accesses(
        buffer_reads=np.flatnonzero(read),
        accumulator_reads=np.flatnonzero(continued & ~started),
        accumulator_writes=np.flatnonzero(continued | started),
    )


def drain_accumulators(item: Drain, sizes: Sizes) -> Indices:
    """(rows * pixels, beats) accumulator addresses in the order in which they are read."""
    beats = 1 if item.form == Form.RAW else sizes.beats_per_block
    pixels = np.arange(item.rows * item.pixels, dtype=np.int64)
    found = item.accumulator + pixels[:, None] + np.arange(beats) * item.beat_step
    return found & sizes.accumulator_mask


def drain_buffer(item: Drain, sizes: Sizes) -> Indices:
    """(rows * pixels,) buffer addresses that a DRAIN writes."""
    found = _outer(item.buffer, (item.rows, item.pixels), (item.buffer_row_step, 1))
    return found & sizes.buffer_mask


def drain_memory(item: Drain, sizes: Sizes) -> Indices:
    """(rows * pixels,) offset in beats of each word or raw row that a DRAIN writes."""
    beats = sizes.raw_beats if item.form == Form.RAW else sizes.word_beats
    found = _outer(item.offset, (item.rows, item.pixels), (item.row_step, beats))
    return found & sizes.offset_mask


def load_buffer(item: Load, sizes: Sizes) -> Indices:
    """(words,) buffer addresses that a LOAD writes, in order."""
    counts = (item.blocks, item.rows, item.words)
    found = _outer(item.buffer, counts, (item.buffer_block_step, item.buffer_row_step, 1))
    return found & sizes.buffer_mask


def load_memory(item: Load, sizes: Sizes) -> Indices:
    """(words,) offset in beats of each word that a LOAD reads."""
    beats = sizes.code_beats if item.fixed else sizes.word_beats
    counts = (item.blocks, item.rows, item.words)
    found = _outer(item.offset, counts, (item.block_step, item.row_step, beats))
    return found & sizes.offset_mask


def _beats(words: Indices, beats: int) -> Indices:
    return np.unique(words[:, None] + np.arange(beats))


def accesses(instruction: Instruction, config: HardwareConfig) -> Accesses:
    """The places that `instruction` touches.

    The fields must be good (:func:`shiftcore.golden.machine.validate`). Raises ``MachineError`` if
    an address is past the end of the activation buffer or the accumulators (memory has no end
    here), and with TIMEOUT if there are more than 2**28 pixels, or 2**24 words
    or accumulators.
    """
    sizes = sizes_of(config)
    if isinstance(instruction, Pass):
        return _pass_accesses(instruction, sizes)
    if isinstance(instruction, Load):
        words = instruction.words * instruction.rows * instruction.blocks
        _bounded(words, _LONGEST_MOVE, "words")
        scratch = instruction.region == Region.SCRATCH
        beats = sizes.code_beats if instruction.fixed else sizes.word_beats
        return Accesses(
            buffer_writes=np.unique(_buffer(load_buffer(instruction, sizes), sizes)),
            scratch_reads=_beats(load_memory(instruction, sizes), beats) if scratch else _NONE,
        )
    if isinstance(instruction, Drain):
        beats = 1 if instruction.form == Form.RAW else sizes.beats_per_block
        rows = instruction.rows * instruction.pixels * beats
        _bounded(rows, _LONGEST_MOVE, "accumulators")
        scratch = instruction.to_memory and instruction.region == Region.SCRATCH
        beats = sizes.raw_beats if instruction.form == Form.RAW else sizes.word_beats
        written = (
            _buffer(drain_buffer(instruction, sizes), sizes) if instruction.to_buffer else _NONE
        )
        return Accesses(
            buffer_writes=np.unique(written),
            accumulator_reads=np.unique(
                _accumulators(drain_accumulators(instruction, sizes), sizes)
            ),
            scratch_writes=_beats(drain_memory(instruction, sizes), beats) if scratch else _NONE,
        )
    return Accesses()


def place(index: int, instructions: Sequence[Instruction]) -> str:
    """How errors name an instruction."""
    return f"instruction {index} ({instructions[index].opcode.name})"


def accesses_at(
    index: int, instructions: Sequence[Instruction], config: HardwareConfig
) -> Accesses:
    try:
        return accesses(instructions[index], config)
    except MachineError as error:
        where = place(index, instructions)
        raise MachineError(error.code, f"{where}: {error}", index) from None


def _waits(item: Instruction) -> tuple[int, int, int]:
    return item.after_load, item.after_pass, item.after_drain


class _Last:
    """Which instruction of each engine touched each place last, as a count; 0 is none."""

    spaces = ("buffer word", "accumulator", "SCRATCH beat")

    def __init__(self, config: HardwareConfig):
        self.tables = [
            np.zeros((3, config.buffer_depth), np.int32),
            np.zeros((3, config.accumulator_depth), np.int32),
            np.zeros((3, 0), np.int32),
        ]

    def touched(self, found: Accesses) -> list[tuple[int, Indices]]:
        """(space, addresses) of an instruction."""
        both = (
            (found.buffer_reads, found.buffer_writes),
            (found.accumulator_reads, found.accumulator_writes),
            (found.scratch_reads, found.scratch_writes),
        )
        # Where an instruction reads and writes, it reads a part of what it writes.
        merged = [(space, b if b.size else a) for space, (a, b) in enumerate(both)]
        self._reserve(merged[2][1])
        return [(space, where) for space, where in merged if where.size]

    def _reserve(self, scratch: Indices) -> None:
        if scratch.size and scratch[-1] >= self.tables[2].shape[1]:
            grown = np.zeros((3, max(2 * self.tables[2].shape[1], int(scratch[-1]) + 1)), np.int32)
            grown[:, : self.tables[2].shape[1]] = self.tables[2]
            self.tables[2] = grown

    def record(self, engine: int, count: int, touched: list[tuple[int, Indices]]) -> None:
        for space, where in touched:
            self.tables[space][engine, where] = count


class _Clocks:
    """Vector clocks: how much of each engine is complete when an instruction completes."""

    def __init__(self) -> None:
        self.done: tuple[list[list[int]], ...] = ([], [], [])

    def start(self, engine: int) -> list[int]:
        """What is complete when the next instruction of `engine` follows the one before."""
        return list(self.done[engine][-1]) if self.done[engine] else [0, 0, 0]

    def wait(self, clock: list[int], engine: int, count: int) -> None:
        """Let `clock` know `count` instructions of `engine` and what they knew."""
        if count > clock[engine]:
            known = self.done[engine][count - 1]
            clock[:] = [max(a, b) for a, b in zip(clock, known, strict=True)]

    def complete(self, engine: int, clock: list[int]) -> None:
        done = list(clock)
        done[engine] = len(self.done[engine]) + 1
        self.done[engine].append(done)


def tickets(instructions: Sequence[Instruction], config: HardwareConfig) -> list[Instruction]:
    """The program with the fewest waits that keep its order; waits that it has are replaced.

    Of each engine an instruction waits for the last one that touched a place it touches, unless it
    is known to be complete: because the instruction before it, or one that it waits for as well,
    came after it. WEIGHTS and END wait for nothing. :func:`check_order` accepts the result, and
    refuses it with any one wait removed. Raises ``MachineError`` as :func:`accesses` does.
    """
    last, clocks = _Last(config), _Clocks()
    result: list[Instruction] = []
    for index, item in enumerate(instructions):
        waits = [0, 0, 0]
        if item.opcode in _ENGINES:
            engine = _ENGINES.index(item.opcode)
            touched = last.touched(accesses_at(index, instructions, config))
            clock = clocks.start(engine)
            needed = [0, 0, 0]
            for space, where in touched:
                for other in range(3):
                    if other != engine:
                        latest = int(last.tables[space][other, where].max())
                        needed[other] = max(needed[other], latest)
            missing = [e for e in range(3) if needed[e] > clock[e]]
            for e in missing:
                others = (clocks.done[f][needed[f] - 1] for f in missing if f != e)
                if not any(known[e] >= needed[e] for known in others):
                    waits[e] = needed[e]
            for e in missing:
                clocks.wait(clock, e, needed[e])
            clocks.complete(engine, clock)
            last.record(engine, clocks.done[engine][-1][engine], touched)
        if tuple(waits) != _waits(item):
            load, passes, drain = waits
            item = replace(item, after_load=load, after_pass=passes, after_drain=drain)
        result.append(item)
    return result


def _waiting(item: Instruction, done: Sequence[int]) -> str:
    return " and ".join(
        f"{count} {engine.name}, {have} are complete"
        for engine, count, have in zip(_ENGINES, _waits(item), done, strict=True)
        if count > have
    )


def schedule(
    instructions: Sequence[Instruction],
    config: HardwareConfig,
    rng: np.random.Generator | None = None,
    *,
    queue_depth: int | None = None,
) -> list[int]:
    """Indices of the LOADs, PASSes and DRAINs in an order in which the accelerator may finish them.

    Without `rng` it is the program's own order, as far as tickets, tiles and queues allow; with it,
    a random one. Dispatch is in program order. Each engine has a queue of ``queue_depth``
    instructions, which one leaves when it is complete, and a WEIGHTS when all its tiles were taken:
    the accelerator, whose engines take an instruction from the queue when it begins, has a little
    more room; `queue_depth` stands for the configuration's. The tickets of the END are not looked
    at; it waits for all. Under serial control a LOAD, a PASS or a DRAIN is complete before the next
    instruction is dispatched, and tickets mean nothing.

    Raises ``MachineError``: PROGRAM_RANGE without an END, WEIGHTS_LEFT if tiles remain when
    everything is dispatched and every PASS complete, DEADLOCK if no engine can go on.
    """
    spec = config.accelerator
    if queue_depth is None:
        queue_depth = spec.dispatched_weights
    end = next((i for i, item in enumerate(instructions) if isinstance(item, End)), None)
    if end is None:
        raise MachineError(
            Error.PROGRAM_RANGE,
            f"a program must have an END, not {len(instructions)} other instructions",
        )
    queues: dict[Opcode, deque[int]] = {op: deque() for op in (*_ENGINES, Opcode.WEIGHTS)}
    weights = queues[Opcode.WEIGHTS]
    done = [0, 0, 0]
    wanted = [item.tiles if isinstance(item, Pass) else 0 for item in instructions[:end]]
    offered = [item.tiles if isinstance(item, Weights) else 0 for item in instructions[:end]]
    order: list[int] = []
    following = 0

    def ready(index: int) -> bool:
        item = instructions[index]
        return spec.serial or (
            item.after_load <= done[0]
            and item.after_pass <= done[1]
            and item.after_drain <= done[2]
        )

    def completable(op: Opcode) -> bool:
        if not queues[op] or not ready(queues[op][0]):
            return False
        index = queues[op][0]
        while wanted[index] and weights and ready(weights[0]):
            taken = min(wanted[index], offered[weights[0]])
            wanted[index] -= taken
            offered[weights[0]] -= taken
            if not offered[weights[0]]:
                weights.popleft()
        return not wanted[index]

    while True:
        able = [op for op in _ENGINES if completable(op)]
        room = following < end and (
            len(queues[instructions[following].opcode]) < queue_depth
            and not (spec.serial and any(queues[op] for op in _ENGINES))
        )
        if not able and not room:
            break
        if room and (rng is None or rng.integers(len(able) + 1) == 0):
            queues[instructions[following].opcode].append(following)
            following += 1
        elif able:
            if rng is None:
                chosen = min(able, key=lambda op: queues[op][0])
            else:
                chosen = able[int(rng.integers(len(able)))]
            order.append(queues[chosen].popleft())
            done[_ENGINES.index(chosen)] += 1
    stuck = [queues[op][0] for op in _ENGINES if queues[op]]
    if following == end and not queues[Opcode.PASS] and weights and ready(weights[0]):
        raise MachineError(
            Error.WEIGHTS_LEFT,
            f"{place(weights[0], instructions)}: every tile must be taken by a PASS; "
            f"{sum(offered)} were not when the program ended",
            weights[0],
        )
    stuck += [weights[0]] if weights and not ready(weights[0]) else []
    if following == end and not stuck:
        return order
    reasons = []
    for index in stuck or [following]:
        reason = "" if spec.serial else _waiting(instructions[index], done)
        if not reason:
            more = wanted[index]
            reason = f"{more} more tile{'s' * (more > 1)} of WEIGHTS" if more else "room in a queue"
        reasons.append(f"{place(index, instructions)} waits for {reason}")
    first = (stuck or [following])[0]
    raise MachineError(Error.DEADLOCK, f"no engine can go on: {'; '.join(reasons)}", first)


def check_order(program: Program) -> None:
    """Check that tickets order all accesses that must be ordered; under serial control all are.

    Raises ``MachineError`` with ``Error.NONE`` that names two instructions and the first address
    that both touch without an order, and as :func:`schedule` and :func:`accesses` do.
    """
    instructions, config = program.instructions, program.config
    last, clocks = _Last(config), _Clocks()
    indices: tuple[list[int], ...] = ([], [], [])
    for index in schedule(instructions, config):
        item = instructions[index]
        engine = _ENGINES.index(item.opcode)
        clock = clocks.start(engine)
        waits = map(len, indices) if config.accelerator.serial else _waits(item)
        for other, count in enumerate(waits):
            clocks.wait(clock, other, count)
        touched = last.touched(accesses_at(index, instructions, config))
        for space, where in touched:
            for other in range(3):
                if other == engine:
                    continue
                latest = last.tables[space][other, where]
                late = np.flatnonzero(latest > clock[other])
                if late.size:
                    first = late[0]
                    culprit = indices[other][latest[first] - 1]
                    raise MachineError(
                        Error.NONE,
                        f"{place(index, instructions)} must wait for "
                        f"{place(culprit, instructions)}: both touch "
                        f"{_Last.spaces[space]} {where[first]}; after_"
                        f"{_ENGINES[other].name.lower()} must be at least {latest[first]}",
                        index,
                    )
        clocks.complete(engine, clock)
        indices[engine].append(index)
        last.record(engine, len(indices[engine]), touched)


def check_written(program: Program) -> None:
    """Check that an image reads nothing that it did not write before.

    Raises ``MachineError`` with ``Error.NONE`` that names the instruction and the first address.
    """
    config = program.config
    last = _Last(config)
    for index in schedule(program.instructions, config):
        found = accesses_at(index, program.instructions, config)
        last.touched(found)
        reads = (found.buffer_reads, found.accumulator_reads, found.scratch_reads)
        for space, where in enumerate(reads):
            missing = np.flatnonzero(last.tables[space][0, where] == 0)
            if missing.size:
                raise MachineError(
                    Error.NONE,
                    f"{place(index, program.instructions)} reads {_Last.spaces[space]} "
                    f"{where[missing[0]]}, which nothing wrote before",
                    index,
                )
        writes = (found.buffer_writes, found.accumulator_writes, found.scratch_writes)
        last.record(0, 1, [touch for touch in enumerate(writes) if touch[1].size])
