"""Runs compiled programs on the simulated accelerator and compares every word that it stores."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..golden.isa import Form, Region
from ..golden.machine import Machine, Mismatch, Written, first_mismatch
from ..golden.passes import BlockRows
from ..golden.program import Program, unpack_words
from ..host.driver import Accelerator
from .runner import Simulator
from .system import SimulatedSystem

__all__ = ["AcceleratorRun", "compare_runs", "run_program"]


@dataclass(frozen=True, eq=False)
class AcceleratorRun:
    """What the simulated accelerator did.

    Parameters
    ----------
    outputs : (N, bytes), the OUTPUT region of each image that was run
    compared, mismatches : numbers (codes, exponents, raw values) stored, and how many differ from
        golden
    first : where; no image after it was run
    counters : of each image, by name
    seconds : of simulation
    """

    outputs: NDArray[np.uint8]
    compared: int
    mismatches: int
    first: Mismatch | None
    counters: tuple[dict[str, int], ...]
    seconds: float

    @property
    def cycles(self) -> list[int]:
        return [each["cycles"] for each in self.counters]


def memory_bytes(program: Program, images: int = 1) -> int:
    """Memory for a run of so many images, generously."""
    size = program.config.accelerator.beat_bytes
    model, source, scratch, output = program.sizes
    return (model + scratch + images * (source + output)) * size + 6 * 4096


def traced(program: Program, system: SimulatedSystem) -> tuple[Written, ...]:
    """The trace of one image, drain by drain, with a leading axis of one image.

    Raises ``ValueError`` if the number of words is not the program's.
    """
    config = program.config
    raw, content = system.trace()
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
    return tuple(found)


def compare_runs(expected: Written, found: Written) -> tuple[int, int]:
    """Numbers in two results of a drain, and how many of them differ."""
    if isinstance(expected, BlockRows) and isinstance(found, BlockRows):
        pairs = [(expected.codes, found.codes), (expected.exponents, found.exponents)]
    else:
        assert isinstance(expected, np.ndarray)
        assert isinstance(found, np.ndarray)
        pairs = [(expected.view(np.uint32), found.view(np.uint32))]
    return sum(a.size for a, _ in pairs), sum(int((a != b).sum()) for a, b in pairs)


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
    waves : leave a waveform there
    progress : told how many images are done
    """
    machine = Machine(program)
    outputs, counters = [], []
    compared = mismatches = 0
    first: Mismatch | None = None
    seconds = 0.0
    with SimulatedSystem(
        program.config, memory_bytes(program), latency=latency, gap=gap, simulator=simulator,
        waves=waves,
    ) as system:  # fmt: skip
        accelerator = Accelerator(system)
        accelerator.load(program)
        for index in range(len(images)):
            golden = machine.run(images[index : index + 1], trace=True)
            system.start_trace()
            begin = time.perf_counter()
            outputs.append(accelerator.run(images[index : index + 1])[0])
            seconds += time.perf_counter() - begin
            counters.append(accelerator.counters())
            found = traced(program, system)
            for ours, theirs in zip(golden.trace, found, strict=True):
                numbers, wrong = compare_runs(ours, theirs)
                compared, mismatches = compared + numbers, mismatches + wrong
            stored = golden.outputs[0]
            mismatches += int((stored != outputs[-1]).sum())
            progress(index + 1)
            if mismatches:
                first = first_mismatch(program, golden.trace, found)
                break
    size = program.sizes[Region.OUTPUT] * program.config.accelerator.beat_bytes
    result = np.stack(outputs) if outputs else np.zeros((0, size), np.uint8)
    return AcceleratorRun(result, compared, mismatches, first, tuple(counters), seconds)
