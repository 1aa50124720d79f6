"""Hostile programs: whatever is in memory, a run ends in time, and the next valid one is right."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import click
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ..golden.config import HardwareConfig
from ..golden.isa import (
    LAYOUTS,
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
    Weights,
    encode,
)  # fmt: skip
from ..golden.machine import Machine, MachineError, decode_program
from ..golden.program import Place, Program
from ..golden.tickets import check_order, check_written, tickets
from ..host.driver import Accelerator, AcceleratorError
from .runner import Simulator
from .system import SimulatedSystem

__all__ = ["CONFIG", "Outcome", "hostile_cases", "valid_program"]

CONFIG = HardwareConfig(
    4, 4, accumulator_depth=64, buffer_depth=256, queue_depth=3, weight_fifo=32, load_fifo=32,
    store_fifo=32, burst_beats=8,
)  # fmt: skip
TIMEOUT = 6_000
"""cycles after which the accelerator halts by itself"""
BOUND = TIMEOUT + 500
"""cycles in which a run must end, with what memory still owes"""


def valid_program(rng: Generator) -> Program:
    """Two small layers: one stored on chip and in memory, one that reads it back from both."""
    spec, rows, cols = CONFIG.accelerator, CONFIG.rows, CONFIG.cols
    height, width = (int(n) for n in rng.integers(2, 5, 2))
    blocks, kernel = int(rng.integers(1, 3)), int(rng.choice([1, 3]))
    pixels = height * width
    words = blocks * pixels
    low, high = -(1 << (CONFIG.weight_bits - 1)), 1 << (CONFIG.weight_bits - 1)

    def tile(biased: bool) -> list[int]:
        codes = rng.integers(low, high, (rows, cols)).astype(np.int8)
        scales = CONFIG.tile.scale.round(rng.normal(size=cols))
        return CONFIG.tile.pack(
            codes, scales, rng.normal(size=cols).astype(np.float32) if biased else None
        )

    first = [tile(k == 0) for k in range(blocks * kernel * kernel)]
    second = [tile(True), tile(False)]
    border = kernel // 2
    row = width * spec.word_beats
    maximum = int(rng.integers(2))
    limits = np.array([-1, 1.5], np.float32).view(np.uint32)
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
            limited=1, low=int(limits[0]), high=int(limits[1]),
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
            accumulator=32, rows=height, pixels=width, form=Form.RAW, to_memory=1,
            region=Region.OUTPUT, offset=0, row_step=width * spec.raw_beats,
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
        CONFIG, tuple(tickets(program, CONFIG)), stream.view(np.uint8),
        (Place("first", 0, 0, 0), Place("second", 0, 0, 0)),
        (offset, words * spec.code_beats, pixels * spec.word_beats, pixels * spec.raw_beats),
        (1, blocks, height, width),
        {"first": (cols, height, width), "second": (cols, height, width)}, "second", 1,
    )  # fmt: skip


def _mutated(words: NDArray[np.uint64], rng: Generator) -> NDArray[np.uint64]:
    """The encoded program with one field of one instruction changed."""
    words = words.copy()
    valid = np.isin(words[:, 0] & np.uint64(0xF), list(Opcode))
    index = int(rng.choice(np.flatnonzero(valid)))
    layout = LAYOUTS[Opcode(int(words[index, 0]) & 0xF)]
    field = layout[int(rng.integers(len(layout)))]
    mask = (1 << field.bits) - 1
    before = int(words[index, field.word]) >> field.offset & mask
    value = {
        0: 0,
        1: mask,
        2: before + 1,
        3: before - 1,
        4: before ^ 1 << int(rng.integers(field.bits)),
        5: int(rng.integers(1 << min(field.bits, 62))),
        6: int(rng.integers(0, 8)),
    }[int(rng.integers(7))]
    cleared = int(words[index, field.word]) & ~(mask << field.offset)
    words[index, field.word] = np.uint64(cleared | (value & mask) << field.offset)
    return words


def _garbled(words: NDArray[np.uint64], rng: Generator) -> NDArray[np.uint64]:
    """The encoded program with something worse done to it."""
    words = words.copy()
    index = int(rng.integers(len(words)))
    kind = int(rng.integers(6))
    if kind == 0:
        words[index] = rng.integers(0, 1 << 63, 8, dtype=np.uint64)
    elif kind == 1:  # any bits of a valid opcode
        words[index] = rng.integers(0, 1 << 63, 8, dtype=np.uint64)
        opcode = int(rng.integers(1, 6))
        words[index, 0] = np.uint64(int(words[index, 0]) & ~0xF | opcode)
    elif kind == 2:
        words[index] = words[int(rng.integers(len(words)))]
    elif kind == 3:
        words = np.delete(words, index, axis=0)
        words = np.concatenate([words, np.zeros((1, 8), np.uint64)])
    elif kind == 4:
        other = int(rng.integers(len(words)))
        words[[index, other]] = words[[other, index]]
    else:
        for _ in range(3):
            words = _mutated(words, rng)
    return words


@dataclass(frozen=True)
class Outcome:
    """How a hostile program ended.

    Parameters
    ----------
    seed : of the case
    mutation : one field of a valid program was changed, no more
    code : why the run halted, NONE if it finished
    reached_pass : pixels went through the array
    cycles : of the run
    exact : finished, ordered and accepted by the model, with the model's output; None if the model
        does not accept it
    """

    seed: int
    mutation: bool
    code: Error
    reached_pass: bool
    cycles: int
    exact: bool | None


class _Misplaced(Accelerator):
    """A driver that may put a region where there is no memory."""

    away: Region | None = None

    def place(self, images: int) -> dict[Region, tuple[int, int]]:
        places = super().place(images)
        if self.away is not None:
            places[self.away] = (1 << 36, places[self.away][1])
        return places


class _Case(Program):
    """A program whose encoded instructions are given, valid or not."""

    words: NDArray[np.uint64]

    @property
    def model(self) -> NDArray[np.uint8]:
        return np.concatenate([self.words.view(np.uint8).ravel(), self.weights])


def _hostile(program: Program, words: NDArray[np.uint64], rng: Generator) -> _Case:
    sizes = list(program.sizes)
    if rng.random() < 0.05:  # a region that is too small
        region = int(rng.integers(4))
        sizes[region] = int(rng.integers(0, sizes[region] + 1))
    if rng.random() < 0.01:  # and a program that goes on to its end
        words[-1] = words[1]
        sizes[Region.MODEL] = len(words) * CONFIG.accelerator.instruction_beats
    model, source, scratch, output = sizes
    case = _Case(
        program.config, program.instructions, program.weights, program.places,
        (model, source, scratch, output), program.input_shape, program.shapes, program.output,
        program.macs,
    )  # fmt: skip
    object.__setattr__(case, "words", words)
    return case


def _expected(case: _Case, inputs: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
    """What the model computes, None if it does not accept the program."""
    try:
        program = Program(
            case.config, decode_program(case.words), case.weights, (), case.sizes,
            case.input_shape, case.shapes, case.output, case.macs,
        )  # fmt: skip
        check_order(program)
        check_written(program)
        return Machine(program).run(inputs).outputs
    except (MachineError, ValueError):
        return None


def hostile_cases(seeds: range, simulator: Simulator = "verilator") -> Iterator[Outcome]:
    """Run hostile programs one after the other on one accelerator, valid ones between them.

    Raises ``AssertionError``, naming the seed, if memory changes where nothing may be written, a
    program that the model accepts has another result, or a valid program after a hostile one is not
    computed; ``SimulationError`` if a run does not end within ``BOUND`` cycles.
    """
    size = 1 << 15
    base = 4096
    with SimulatedSystem(CONFIG, size, simulator=simulator) as system:
        accelerator = _Misplaced(system, base)
        system.limit = BOUND
        for seed in seeds:
            rng = np.random.default_rng([seed, 99])
            program = valid_program(rng)
            input_bytes = program.sizes[Region.INPUT] * CONFIG.accelerator.beat_bytes
            inputs = rng.integers(0, 256, (1, input_bytes)).astype(np.uint8)
            words = encode(program.instructions)
            mutation = bool(rng.random() < 0.65)
            words = _mutated(words, rng) if mutation else _garbled(words, rng)
            case = _hostile(program, words, rng)
            system.set_timing(int(rng.integers(1, 30)), int(rng.integers(0, 3)))
            memory = rng.integers(0, 256, size).astype(np.uint8)
            code, output = Error.NONE, None
            accelerator.load(case)
            start, stride = accelerator.place(1)[Region.OUTPUT]
            memory[start : start + stride * CONFIG.accelerator.beat_bytes] = 0
            system.write_memory(0, memory)
            accelerator.load(case)
            if rng.random() < 0.02:
                accelerator.away = Region(int(rng.integers(1, 4)))
            try:
                output = accelerator.run(inputs, timeout=TIMEOUT)
            except AcceleratorError as error:
                code = error.code
                if code == Error.NONE:
                    raise
            away, accelerator.away = accelerator.away, None
            counters = accelerator.counters()
            after = system.read_memory(0, size)
            writable = np.zeros(size, bool)
            for region, content in ((Region.MODEL, case.model), (Region.INPUT, inputs[0])):
                start = accelerator.place(1)[region][0]
                if region != away:
                    memory[start : start + content.size] = content
            for region in (Region.SCRATCH, Region.OUTPUT):
                start = accelerator.place(1)[region][0]
                beats = case.sizes[region]
                writable[start : start + beats * CONFIG.accelerator.beat_bytes] = True
            wrong = np.flatnonzero((after != memory) & ~writable)
            assert not wrong.size, f"seed {seed}: byte {wrong[0]} was written"
            exact = None
            if output is not None and away is None:
                expected = _expected(case, inputs)
                if expected is not None:
                    exact = bool(np.array_equal(expected, output))
                    assert exact, f"seed {seed}: finished with another result than the model's"
            yield Outcome(seed, mutation, code, counters["pixels"] > 0, counters["cycles"], exact)
            # After it, a valid program is computed as if nothing had been.
            if seed % 2:
                accelerator.reset()
            if seed % 5 == 0 or code is not Error.NONE:
                accelerator.load(program)
                found = accelerator.run(inputs, timeout=TIMEOUT)
                expected = Machine(program).run(inputs).outputs
                assert np.array_equal(found, expected), f"seed {seed}: what came after is wrong"


@click.command()
@click.option("--cases", default=10_000, show_default=True)
@click.option("--first", default=0, show_default=True, help="First seed.")
def main(cases: int, first: int) -> None:
    """Run hostile programs on a small accelerator in Verilator."""
    outcomes = list(track(hostile_cases(range(first, first + cases)), "programs", total=cases))
    table = Table(title=f"{cases} hostile programs", show_header=False)
    mutations = sum(outcome.mutation for outcome in outcomes)
    table.add_row("one field of a valid program", f"{mutations / cases:.1%}")
    table.add_row("reached a PASS", f"{sum(o.reached_pass for o in outcomes) / cases:.1%}")
    exact = sum(outcome.exact is True for outcome in outcomes)
    table.add_row("accepted by the model, same result", str(exact))
    table.add_row("longest run", f"{max(o.cycles for o in outcomes)} cycles, at most {BOUND}")
    counts = Counter(outcome.code for outcome in outcomes)
    for code in Error:
        table.add_row(f"ended with {code.name}", str(counts[code]))
    Console().print(table)


if __name__ == "__main__":
    main()
