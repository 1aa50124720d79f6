"""Runs compiled programs on the simulated accelerator and compares every word that it stores."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..golden.compare import Mismatch, count_mismatches, first_mismatch
from ..golden.isa import Form, Region
from ..golden.machine import Machine, Written
from ..golden.passes import BlockRows
from ..golden.program import Program, unpack_words
from ..host.driver import Accelerator, AcceleratorError
from .runner import SimulationError, Simulator
from .system import CYCLE, SimulatedSystem

__all__ = ["WINDOW", "AcceleratorRun", "run_program"]

WINDOW = (500, 20)
"""Cycles of a waveform, before and after the word that it is about."""


@dataclass(frozen=True, eq=False)
class AcceleratorRun:
    """What the simulated accelerator did.

    Parameters
    ----------
    outputs : (N, bytes), the OUTPUT region of each image that was run
    stored : numbers (codes, exponents, raw values) that each layer stored, all of them compared
    wrong : how many of them differ from golden
    wrong_bytes : of OUTPUT
    first : the first number that differs; no image after it was run
    time : when its word was stored, in ns of the simulation and of its waveform; if only OUTPUT is
        wrong, the end of the run
    counters : of each image, by name
    seconds : of simulation
    """

    outputs: NDArray[np.uint8]
    stored: Counter[str]
    wrong: Counter[str]
    wrong_bytes: int
    first: Mismatch | None
    time: int | None
    counters: tuple[dict[str, int], ...]
    seconds: float

    @property
    def cycles(self) -> list[int]:
        return [each["cycles"] for each in self.counters]

    @property
    def compared(self) -> int:
        return self.stored.total()

    @property
    def mismatches(self) -> int:
        return self.wrong.total() + self.wrong_bytes

    @property
    def difference(self) -> str | None:
        """The first number that differs, in words."""
        if self.first:
            return f"{self.first} (stored at {self.time} ns)"
        if self.wrong_bytes:
            return (
                f"image {len(self.outputs) - 1}: {self.wrong_bytes} bytes of OUTPUT; "
                f"every word that DRAIN wrote is right"
            )
        return None

    def figures(self, program: Program) -> dict[str, Any]:
        """By the names of ``shiftcore run --json``; of all images, `macs` of one."""
        cycles, config = sum(self.cycles), program.config
        return {
            "images": len(self.outputs),
            "bit_exact": self.mismatches == 0,
            "compared": self.compared,
            "mismatches": self.mismatches,
            "cycles": self.cycles,
            "macs": program.macs,
            "utilization": len(self.outputs) * program.macs / (cycles * config.rows * config.cols),
            "sim_cycles_per_s": cycles / self.seconds,
        }


def memory_bytes(program: Program, images: int = 1) -> int:
    """Memory for a run of so many images, generously."""
    size = program.config.accelerator.beat_bytes
    model, source, scratch, output = program.sizes
    return (model + scratch + images * (source + output)) * size + 6 * 4096


def traced(program: Program, system: SimulatedSystem) -> tuple[list[Written], NDArray[np.int64]]:
    """The trace of one image, drain by drain, with a leading axis of one image; when each word was
    stored, in ns.

    Raises ``ValueError`` if the number of words is not the program's.
    """
    config = program.config
    raw, times, content = system.trace()
    found: list[Written] = []
    first = 0
    for drain, _ in program.drains:
        part = slice(first, first + drain.rows * drain.pixels)
        first = part.stop
        if (raw[part] != (drain.form == Form.RAW)).any() or first > len(raw):
            raise ValueError(f"the hardware stored {len(raw)} words, and not the program's")
        if drain.form == Form.RAW:
            bits = np.ascontiguousarray(content[part, : 4 * config.cols]).view("<u4")
            found.append(bits.view(np.float32)[None])
        else:
            signed = drain.form == Form.SIGNED
            codes, exponents = unpack_words(content[part], config.rows, config.act_bits, signed)
            found.append(BlockRows(codes[None], exponents[None]))
    if first != len(raw):
        raise ValueError(f"the hardware stored {len(raw)} words, the program stores {first}")
    return found, times


def _word(program: Program, first: Mismatch) -> int:
    """Which word of an image a mismatch is in."""
    before = sum(drain.rows * drain.pixels for drain, _ in program.drains[: first.drain])
    drain, place = program.drains[first.drain]
    return before + (first.row - place.row) * drain.pixels + first.column - place.column


def _execute(
    program: Program, images: NDArray[np.uint8], system: SimulatedSystem
) -> Iterator[tuple[NDArray[np.uint8], dict[str, int], float]]:
    """Start the accelerator for each image; its output region, its counters, and the seconds."""
    accelerator = Accelerator(system)
    accelerator.load(program)
    for index in range(len(images)):
        system.start_trace()
        begin = time.perf_counter()
        output = accelerator.run(images[index : index + 1])[0]
        yield output, accelerator.counters(), time.perf_counter() - begin


def run_program(
    program: Program,
    images: NDArray[np.uint8],
    *,
    simulator: Simulator = "verilator",
    latency: int = 20,
    gap: int = 0,
    waves: Path | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> AcceleratorRun:
    """Run images one after the other; stop at the first number that differs from golden.

    Parameters
    ----------
    images : (N, bytes), from ``Program.encode_input``
    latency, gap : of the memory, see :class:`~shiftcore.sim.system.SimulatedSystem`
    waves : leave a waveform (VCD) of :data:`WINDOW` there: around the first number that differs, up
        to where the accelerator halted, or else from the beginning on; for that the run is repeated
    progress : told how many images are done
    """

    start = partial(
        SimulatedSystem, program.config, memory_bytes(program), latency=latency, gap=gap,
        simulator=simulator, waves=waves is not None,
    )  # fmt: skip
    with start() as system:
        try:
            run = _compared(program, images, system, progress)
        except AcceleratorError:
            if waves is not None:
                _record(program, images, start, waves, system.time)
            raise
    if waves is not None:
        _record(program, images, start, waves, run.time)
    return run


def _compared(
    program: Program,
    images: NDArray[np.uint8],
    system: SimulatedSystem,
    progress: Callable[[int], None],
) -> AcceleratorRun:
    machine = Machine(program)
    outputs, counters = [], []
    stored, wrong = Counter[str](), Counter[str]()
    wrong_bytes, seconds = 0, 0.0
    first, moment = None, None
    for index, (output, counts, spent) in enumerate(_execute(program, images, system)):
        outputs.append(output)
        counters.append(counts)
        seconds += spent
        golden = machine.run(images[index : index + 1], trace=True)
        found, times = traced(program, system)
        for ours, theirs, place in zip(golden.trace, found, program.places, strict=True):
            numbers, differ = count_mismatches([ours], [theirs])
            stored[place.layer] += numbers
            wrong[place.layer] += differ
        wrong_bytes = int((golden.outputs[0] != output).sum())
        progress(index + 1)
        if wrong.total() or wrong_bytes:
            first, moment = first_mismatch(program, golden.trace, found), system.time
            if first:
                first, moment = replace(first, image=index), int(times[_word(program, first)])
            break
    size = program.sizes[Region.OUTPUT] * program.config.accelerator.beat_bytes
    result = np.stack(outputs) if outputs else np.zeros((0, size), np.uint8)
    return AcceleratorRun(
        result, stored, wrong, wrong_bytes, first, moment, tuple(counters), seconds
    )


def _record(
    program: Program,
    images: NDArray[np.uint8],
    start: Callable[[], SimulatedSystem],
    path: Path,
    around: int | None,
) -> None:
    """Repeat a run, cycle for cycle, and leave a waveform of :data:`WINDOW` around a time."""
    before, after = (cycles * CYCLE for cycles in WINDOW)
    first = 0 if around is None else max(0, around - before)
    # The simulation ends with the window.
    with start() as system, suppress(SimulationError, AcceleratorError):
        system.dump(path, first, first + before + after)
        for _ in _execute(program, images, system):
            pass
