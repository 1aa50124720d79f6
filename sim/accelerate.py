"""Runs compiled programs on the simulated accelerator and compares every word that it stores."""

import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..golden.compare import Mismatch, count_mismatches, first_mismatch
from ..golden.config import HardwareConfig
from ..golden.isa import Drain, Form, Region
from ..golden.machine import Machine, Written
from ..golden.passes import BlockRows
from ..golden.program import Place, Program, raw_numbers, unpack_words
from ..host.driver import Accelerator, AcceleratorError
from .runner import SimulationError, Simulator
from .system import CYCLE, SimulatedSystem, Trace

__all__ = ["SLICE", "WINDOW", "AcceleratorRun", "StoreError", "memory_bytes", "run_program"]

SLICE = 100_000
"""Cycles of a run, after each of which what was stored by then is compared."""

WINDOW = (500, 20)
"""Cycles of a waveform, before and after the word that it is about."""


@dataclass(frozen=True, eq=False)
class AcceleratorRun:
    """What the simulated accelerator did.

    Parameters
    ----------
    outputs : (N, bytes), the OUTPUT region of each image that was run to its end
    stored : numbers (codes, exponents, raw values) that each layer stored, all of them compared
    wrong : how many of them differ from golden
    wrong_bytes : of OUTPUT
    first : the first number that differs, at which the run was stopped
    time : when its word was stored, in ns of the simulation and of its waveform; if only OUTPUT is
        wrong, the end of the run
    counters : of each image, by name; of the one with `first`, when it was stopped
    saturated : pixels of each image that saturated a fixed-point accumulator, as golden says
    seconds : of simulation
    """

    outputs: NDArray[np.uint8]
    stored: Counter[str]
    wrong: Counter[str]
    wrong_bytes: int
    first: Mismatch | None
    time: int | None
    counters: tuple[dict[str, int], ...]
    saturated: tuple[int, ...]
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
            "saturated": sum(self.saturated),
            "macs": program.macs,
            "utilization": len(self.outputs) * program.macs / (cycles * config.rows * config.cols),
            "sim_cycles_per_s": cycles / self.seconds,
        }


def memory_bytes(program: Program, images: int = 1) -> int:
    """Memory for a run of so many images, generously."""
    size = program.config.accelerator.beat_bytes
    model, source, scratch, output = program.sizes
    return (model + scratch + images * (source + output)) * size + 6 * 4096


class StoreError(SimulationError):
    """The accelerator stored what cannot be compared with golden, or not all of it.

    Parameters
    ----------
    message : what is wrong
    time : when, in ns of the simulation
    """

    def __init__(self, message: str, time: int):
        super().__init__(f"{message} (at {time} ns)")
        self.time = time


class _Stopped(Exception):
    """A number differs."""


class _WatchedSystem(SimulatedSystem):
    """Calls `watch` every :data:`SLICE` cycles of a run, and at its end."""

    watch: Callable[[], None] | None = None
    seconds = 0.0
    """of simulation"""

    def wait(self) -> None:
        done = False
        while not done:
            begin = time.perf_counter()
            done = self.wait_at_most(SLICE)
            self.seconds += time.perf_counter() - begin
            if self.watch:
                self.watch()


class _Comparison:
    """Compares what the accelerator stores of one image with golden, DRAIN by DRAIN.

    Parameters
    ----------
    golden : what the DRAINs write, see :class:`~shiftcore.golden.machine.MachineRun`
    progress : see :func:`run_program`
    """

    def __init__(
        self,
        program: Program,
        image: int,
        golden: tuple[Written, ...],
        system: SimulatedSystem,
        progress: Callable[[float], None],
    ):
        self.program, self.image, self.golden = program, image, golden
        self.system, self.progress = system, progress
        self.stored, self.wrong = Counter[str](), Counter[str]()
        self.first: Mismatch | None = None
        self.time: int | None = None
        """of `first`"""
        self._drains = program.drains
        self._words = sum(drain.rows * drain.pixels for drain, _ in self._drains)
        self._seen = 0
        self._found: list[Written] = []
        self._rest: Trace | None = None

    def look(self) -> None:
        """Compare what is new in the trace.

        Raises :class:`_Stopped` at the first number that differs, and :class:`StoreError`.
        """
        new = self.system.trace()
        self._seen += len(new.raw)
        if self._rest is not None:
            new = self._rest.joined(new)
        for drain, place in self._drains[len(self._found) :]:
            count = drain.rows * drain.pixels
            if len(new.raw) < count:
                break
            self._compare(drain, place, new.part(slice(count)))
            new = new.part(slice(count, None))
        self._rest = new
        if self._seen > self._words:
            what = f"the hardware stored more than the program's {self._words} words"
            raise StoreError(f"image {self.image}: {what}", int(new.times[0]))
        self.progress(self.image + self._seen / self._words)

    def _compare(self, drain: Drain, place: Place, words: Trace) -> None:
        """Compare the words of one DRAIN."""
        raw = drain.form == Form.RAW
        kinds = ("a word of codes", "a raw row")
        for wrong, what in (
            (~words.defined, "a word with undefined bits"),
            (words.raw != raw, f"{kinds[not raw]} instead of {kinds[raw]}"),
        ):
            if wrong.any():
                where = f"image {self.image}, layer {place.layer!r}"
                time = int(words.times[wrong.argmax()])
                raise StoreError(f"{where}: the hardware stored {what}", time)
        expected = self.golden[len(self._found)]
        found = _decoded(self.program.config, drain, words.content)
        self._found.append(found)
        numbers, differ = count_mismatches([expected], [found])
        self.stored[place.layer] += numbers
        self.wrong[place.layer] += differ
        first = first_mismatch(self.program, self.golden, self._found) if differ else None
        if first:
            word = (first.row - place.row) * drain.pixels + first.column - place.column
            self.first, self.time = replace(first, image=self.image), int(words.times[word])
            raise _Stopped

    def finish(self) -> None:
        """The run is over. Raises :class:`StoreError` if words are missing."""
        if self._seen < self._words:
            layer = self._drains[len(self._found)][1].layer
            what = f"the hardware stored {self._seen} words, the program stores {self._words}"
            raise StoreError(f"image {self.image}, layer {layer!r}: {what}", self.system.time)


def _decoded(config: HardwareConfig, drain: Drain, content: NDArray[np.uint8]) -> Written:
    """What one DRAIN wrote, with a leading axis of one image."""
    if drain.form == Form.RAW:
        bits = np.ascontiguousarray(content[:, : 4 * config.cols]).view("<u4")
        return raw_numbers(config, drain, bits)[None]
    signed = drain.form == Form.SIGNED
    codes, exponents = unpack_words(content, config.rows, config.act_bits, signed)
    return BlockRows(codes[None], exponents[None])


def run_program(
    program: Program,
    images: NDArray[np.uint8],
    *,
    simulator: Simulator = "verilator",
    latency: int = 20,
    gap: int = 0,
    waves: Path | None = None,
    netlist: str | None = None,
    progress: Callable[[float], None] = lambda done: None,
) -> AcceleratorRun:
    """Run images one after the other; stop within :data:`SLICE` cycles after the first number that
    differs from golden.

    Parameters
    ----------
    images : (N, bytes), from ``Program.encode_input``
    latency, gap : of the memory, see :class:`~shiftcore.sim.system.SimulatedSystem`
    waves : leave a waveform (VCD) of :data:`WINDOW` there: around the first number that differs or
        an error, or else from the beginning on; for that the run is repeated
    netlist : simulate what yosys makes of the accelerator for a family, see
        :func:`~shiftcore.sim.system.build_system`
    progress : told every :data:`SLICE` cycles how many images are done, the last one in part, by
        the words that it stored

    Raises ``AcceleratorError`` if the accelerator halts, and :class:`StoreError`.
    """

    start = partial(
        _WatchedSystem, program.config, memory_bytes(program), latency=latency, gap=gap,
        simulator=simulator, waves=waves is not None, netlist=netlist,
    )  # fmt: skip
    with start() as system:
        try:
            run = _compared(program, images, system, progress)
        except (AcceleratorError, StoreError) as error:
            if waves is not None:
                around = error.time if isinstance(error, StoreError) else system.time
                _record(program, images, start, waves, around)
            raise
    if waves is not None:
        _record(program, images, start, waves, run.time)
    return run


def _compared(
    program: Program,
    images: NDArray[np.uint8],
    system: _WatchedSystem,
    progress: Callable[[float], None],
) -> AcceleratorRun:
    machine, accelerator = Machine(program), Accelerator(system)
    accelerator.load(program)
    outputs, counters, saturated = [], [], []
    stored, wrong = Counter[str](), Counter[str]()
    wrong_bytes, first, moment = 0, None, None
    for index in range(len(images)):
        image = images[index : index + 1]
        golden = machine.run(image, trace=True)
        comparison = _Comparison(program, index, golden.trace, system, progress)
        system.start_trace()
        system.watch = comparison.look
        with suppress(_Stopped):
            outputs.append(accelerator.run(image)[0])
        counters.append(accelerator.counters())
        counted = accelerator.saturated()
        saturated.append(int(golden.saturated[0]))
        stored.update(comparison.stored)
        wrong.update(comparison.wrong)
        first, moment = comparison.first, comparison.time
        if first:
            break
        comparison.finish()
        if counted is not None and counted != saturated[-1]:
            raise StoreError(
                f"image {index}: the hardware counted {counted} pixels that saturated an "
                f"accumulator, golden {saturated[-1]}",
                system.time,
            )
        wrong_bytes = int((golden.outputs[0] != outputs[-1]).sum())
        if wrong_bytes:
            moment = system.time
            break
    size = program.sizes[Region.OUTPUT] * program.config.accelerator.beat_bytes
    result = np.stack(outputs) if outputs else np.zeros((0, size), np.uint8)
    return AcceleratorRun(
        result, stored, wrong, wrong_bytes, first, moment,
        tuple(counters), tuple(saturated), system.seconds,
    )  # fmt: skip


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
        accelerator = Accelerator(system)
        accelerator.load(program)
        for index in range(len(images)):
            accelerator.run(images[index : index + 1])
            accelerator.counters()  # which takes time too
            accelerator.saturated()
