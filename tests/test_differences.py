"""What a run of the accelerator leaves when something is wrong, and its waveform."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from shiftcore.compiler.network import compile_network
from shiftcore.estimate.accelerator import predict
from shiftcore.golden.config import HardwareConfig
from shiftcore.golden.isa import Drain, Error, Form, Pass
from shiftcore.golden.machine import Machine
from shiftcore.golden.passes import BlockRows
from shiftcore.golden.program import Program
from shiftcore.host.driver import Accelerator, AcceleratorError
from shiftcore.sim import accelerate
from shiftcore.sim.accelerate import WINDOW, StoreError, run_program
from shiftcore.sim.runner import Simulator
from shiftcore.sim.system import CYCLE, SimulatedSystem
from shiftcore.tests.compiler.random_networks import random_network

CONFIG = HardwareConfig(2, 2, accumulator_depth=64, buffer_depth=256)


@pytest.fixture(scope="module")
def program() -> Program:
    return compile_network(random_network(np.random.default_rng(11), CONFIG), CONFIG)


@pytest.fixture(scope="module")
def images(program: Program) -> NDArray[np.uint8]:
    size = program.sizes[1] * CONFIG.accelerator.beat_bytes
    return np.random.default_rng(0).integers(0, 256, (3, size)).astype(np.uint8)


@dataclass
class Waveform:
    """The times in a VCD, and the changes of the testbench's signal ``trace``."""

    times: list[int]
    trace: list[tuple[int, int]]

    @classmethod
    def load(cls, path: Path) -> "Waveform":
        header, _, body = path.read_text(encoding="utf-8").partition("$enddefinitions")
        (code,) = set(re.findall(r"\$var \w+ +\d+ (\S+) trace(?: \[\d+:0\])? \$end", header))
        times, trace = [], []
        for line in body.splitlines():
            if line.startswith("#"):
                times.append(int(line[1:]))
            elif line.startswith("b") and line.endswith(f" {code}"):
                trace.append((times[-1], int(line[1:].split()[0].replace("x", "0"), 2)))
        return cls(times, trace)

    def check(self, first: int, last: int) -> None:
        """The window begins and ends at these times, to the cycle."""
        assert self.times == sorted(self.times)
        assert first <= self.times[0] < first + CYCLE
        assert last - CYCLE < self.times[-1] <= last + CYCLE


def expect_another_code(monkeypatch: pytest.MonkeyPatch, which: int, at: tuple[int, ...]) -> None:
    """Of the second image, golden expects another code `at` a place of its DRAIN number `which`
    of those that write codes."""
    calls, execute = [], Machine.run

    def altered(self: Machine, *arguments, **options):
        calls.append(execute(self, *arguments, **options))
        if len(calls) == 2:
            blocks = [part for part in calls[1].trace if isinstance(part, BlockRows)]
            blocks[which].codes[at] ^= 1
        return calls[-1]

    monkeypatch.setattr(Machine, "run", altered)


@pytest.mark.parametrize("simulator", ["verilator", "icarus"])
def test_around_the_first_mismatch(
    simulator: Simulator,
    program: Program,
    images: NDArray[np.uint8],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second image of three is expected to store another code, deep in the network."""
    waves = tmp_path / "new" / "mismatch.vcd"
    expect_another_code(monkeypatch, -1, (0, -1, 1))
    run = run_program(program, images, simulator=simulator, waves=waves)
    assert (len(run.outputs), len(run.cycles), run.mismatches) == (1, 2, 1)
    assert run.first is not None
    assert run.time is not None
    assert (run.first.image, run.first.what) == (1, "code")
    assert run.difference == f"{run.first} (stored at {run.time} ns)"

    found = Waveform.load(waves)
    before, after = (cycles * CYCLE for cycles in WINDOW)
    found.check(run.time - before, run.time + after)
    # Just before that clock edge the port shows the word with the wrong code.
    word = [value for time, value in found.trace if time < run.time][-1]
    bits = CONFIG.act_bits
    lane = word >> (2 + 1 * bits) & (1 << bits) - 1
    assert word & 3 == 1  # valid, not raw
    assert lane == int(run.first.found) & (1 << bits) - 1


@pytest.mark.parametrize("simulator", ["verilator", "icarus"])
def test_an_early_mismatch_stops_the_run(
    simulator: Simulator,
    program: Program,
    images: NDArray[np.uint8],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The last code of the first DRAIN of the second image is expected to be another one."""
    waves = tmp_path / "early.vcd"
    expect_another_code(monkeypatch, 0, (0, -1, -1))
    monkeypatch.setattr(accelerate, "SLICE", 300)
    parts: list[float] = []
    run = run_program(
        program, images, simulator=simulator, waves=waves, progress=parts.append
    )  # fmt: skip
    drain, place = program.drains[0]
    assert drain.form != Form.RAW
    assert run.first is not None
    assert (run.first.image, run.first.layer, run.first.channel) == (1, place.layer, 1)
    assert (run.first.row, run.first.column) == (
        place.row + drain.rows - 1, place.column + drain.pixels - 1,
    )  # fmt: skip
    assert run.mismatches == 1
    predicted = predict(program).cycles
    assert run.cycles[0] == predicted
    assert run.cycles[1] < predicted / 2
    assert parts == sorted(parts)
    assert len([part for part in parts if 0 < part < 1]) > 5
    assert 1 <= parts[-1] < 1.5
    assert run.time is not None
    before, after = (cycles * CYCLE for cycles in WINDOW)
    Waveform.load(waves).check(run.time - before, run.time + after)


def with_last_drain(program: Program, **changes: object) -> Program:
    """The program with another last DRAIN."""
    items = program.instructions
    last = max(k for k, item in enumerate(items) if isinstance(item, Drain))
    changed = replace(items[last], **changes)
    return replace(program, instructions=(*items[:last], changed, *items[last + 1 :]))


@pytest.mark.parametrize("fault", ["missing", "extra", "raw"])
@pytest.mark.parametrize("simulator", ["verilator", "icarus"])
def test_of_wrong_stores(
    simulator: Simulator,
    fault: str,
    program: Program,
    images: NDArray[np.uint8],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The hardware executes a program whose last DRAIN is another one than golden's."""
    drain, place = program.drains[-1]
    fewer = with_last_drain(program, pixels=drain.pixels - 1)
    words = sum(drain.rows * drain.pixels for drain, _ in program.drains)
    less, layer = words - drain.rows, f", layer {place.layer!r}"
    executed, golden, message = {
        "missing": (
            fewer,
            program,
            f"{layer}: the hardware stored {less} words, the program stores {words}",
        ),
        "extra": (program, fewer, f": the hardware stored more than the program's {less} words"),
        "raw": (
            with_last_drain(program, form=Form.RAW),
            program,
            f"{layer}: the hardware stored a raw row instead of a word of codes",
        ),
    }[fault]
    waves, load = tmp_path / "stores.vcd", Accelerator.load
    monkeypatch.setattr(Accelerator, "load", lambda self, _: load(self, executed))
    pattern = rf"^image 0{re.escape(message)} \(at \d+ ns\)$"
    with pytest.raises(StoreError, match=pattern) as caught:
        run_program(golden, images, simulator=simulator, waves=waves)
    before, after = (cycles * CYCLE for cycles in WINDOW)
    found = Waveform.load(waves)
    found.check(caught.value.time - before, caught.value.time + after)
    assert [time for time, value in found.trace if value & 1 and time < caught.value.time]


def test_of_undefined_bits(
    program: Program, images: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the image is not in memory."""
    waves, write = tmp_path / "undefined.vcd", SimulatedSystem.write_memory

    def torn(self: SimulatedSystem, address: int, content: NDArray[np.uint8]) -> None:
        write(self, address, content[: len(content) // 2] if address else content)

    monkeypatch.setattr(SimulatedSystem, "write_memory", torn)
    message = (
        r"^image 0, layer 'layer0': the hardware stored a word with undefined bits \(at \d+ ns\)$"
    )
    with pytest.raises(StoreError, match=message) as caught:
        run_program(program, images, simulator="icarus", waves=waves)
    before, after = (cycles * CYCLE for cycles in WINDOW)
    Waveform.load(waves).check(max(0, caught.value.time - before), caught.value.time + after)


def test_right_words_in_the_wrong_place(
    program: Program, images: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is compared too, after what DRAIN wrote."""
    execute = Machine.run

    def altered(self: Machine, *arguments, **options):
        run = execute(self, *arguments, **options)
        run.outputs[0, 3] ^= 1
        return run

    monkeypatch.setattr(Machine, "run", altered)
    run = run_program(program, images, simulator="icarus")
    assert (len(run.outputs), run.mismatches, run.wrong_bytes, run.first) == (1, 1, 1, None)
    assert run.difference == ("image 0: 1 bytes of OUTPUT; every word that DRAIN wrote is right")


def test_of_a_good_run(program: Program, images: NDArray[np.uint8], tmp_path: Path) -> None:
    waves = tmp_path / "good.vcd"
    run = run_program(program, images[:1], simulator="icarus", waves=waves)
    assert (run.mismatches, run.time, run.difference) == (0, None, None)
    assert run.cycles[0] > sum(WINDOW)
    found = Waveform.load(waves)
    assert found.times[0] < 10 * CYCLE
    assert found.times[-1] - sum(WINDOW) * CYCLE in range(2 * CYCLE)


def test_of_a_halt(
    program: Program, images: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A PASS that waits for more than there is."""
    items, waves = program.instructions, tmp_path / "halt.vcd"
    first = next(k for k, item in enumerate(items) if isinstance(item, Pass))
    late = replace(items[first], after_drain=1000)
    broken = replace(program, instructions=(*items[:first], late, *items[first + 1 :]))
    # The machine would refuse the program.
    monkeypatch.setattr(accelerate, "Machine", lambda _: Machine(program))
    with pytest.raises(AcceleratorError) as caught:
        run_program(broken, images, simulator="icarus", waves=waves)
    assert caught.value.code is Error.DEADLOCK
    found = Waveform.load(waves)
    # The run ends there; what the driver reads afterwards takes the last cycles.
    assert WINDOW[0] * CYCLE < found.times[-1] - found.times[0] <= sum(WINDOW) * CYCLE
