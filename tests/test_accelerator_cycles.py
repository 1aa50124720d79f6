"""The predicted counters of whole programs are those of the simulated accelerator, every one."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from shiftcore.compiler.network import compile_network
from shiftcore.estimate.accelerator import Prediction, predict
from shiftcore.golden.config import HardwareConfig
from shiftcore.golden.isa import Error, Pass, Region, Weights
from shiftcore.golden.machine import Machine
from shiftcore.golden.program import Program
from shiftcore.golden.registers import TIMED, counters
from shiftcore.golden.tickets import MachineError
from shiftcore.host.driver import Accelerator
from shiftcore.sim.system import SimulatedSystem
from shiftcore.tests.compiler.random_networks import random_network
from shiftcore.tests.golden.machine_cases import random_program

# Fewer and more columns than rows, every kind of bus, and FIFOs of two short bursts.
CONFIGS = (
    HardwareConfig(4, 4, accumulator_depth=64, buffer_depth=256),
    HardwareConfig(
        *(8, 3), accumulator_depth=24, buffer_depth=64, bus_bits=32, queue_depth=2, burst_beats=4,
        weight_fifo=8, load_fifo=8, store_fifo=8, clamp=False, outstanding=2,
    ),
    HardwareConfig(
        *(2, 9, 8, 8, "fp32"), accumulator_depth=40, buffer_depth=128, bus_bits=128, queue_depth=3,
        burst_beats=8, weight_fifo=16, load_fifo=33, store_fifo=17, outstanding=3,
    ),
    HardwareConfig(
        *(7, 2, 8, 8, "fp16"), accumulator_depth=64, buffer_depth=64, bus_bits=256, burst_beats=3,
        weight_fifo=6, load_fifo=6, store_fifo=6, outstanding=32,
    ),
    HardwareConfig(
        *(4, 4, 2, 2, "e8m0"), accumulator="fixed20", accumulator_depth=64, bus_bits=32,
        scale_multiplier="lut", pipeline="short", buffer_depth=128, control="serial",
        weight_fifo=16, load_fifo=16, store_fifo=16, burst_beats=8, outstanding=2, address_bits=20,
    ),
    HardwareConfig(
        *(3, 7, 4, 5), accumulator_depth=64, buffer_depth=128, control="serial", burst_beats=4,
        weight_fifo=8, load_fifo=9, store_fifo=10, outstanding=3, pipeline="fast",
    ),
)  # fmt: skip
MEMORY_BYTES = 1 << 19
RUNS = 5
LONGEST = 1500
SPILLS = 6000  # of which few are shorter


def small_program(rng: np.random.Generator, config: HardwareConfig, spills: bool) -> Program:
    """A compiled network, which `spills` tensors, now and then what no compiler would write."""
    longest = SPILLS if spills or config.control == "serial" else LONGEST
    while True:
        if config.clamp and not spills and rng.random() < 0.1:
            program = random_program(rng, config, 20)
        else:
            network = random_network(rng, config)
            if sum(network.macs().values()) > longest * config.rows * config.cols:
                continue
            try:
                program = compile_network(network, config)
            except ValueError:
                continue  # too large for these memories
        if spills and not program.sizes[Region.SCRATCH]:
            continue
        if predict(program).cycles <= longest:
            return program


def measure(
    program: Program, content: NDArray[np.uint8], latency: int, gap: int
) -> tuple[dict[str, int], NDArray[np.uint8]]:
    """Counters and outputs of a run of the RTL."""
    with SimulatedSystem(
        program.config, MEMORY_BYTES, latency=latency, gap=gap, simulator="icarus"
    ) as system:
        driver = Accelerator(system)
        driver.load(program)
        outputs = driver.run(content)
        return driver.counters(), outputs


@pytest.mark.parametrize("index", range(len(CONFIGS)))
def test_every_counter_of_random_networks_and_memories(index: int) -> None:
    config = CONFIGS[index]
    rng = np.random.default_rng(index)
    for run in range(RUNS):
        program = small_program(rng, config, spills=run == RUNS - 1)
        latency = int(rng.integers(1, 201)) if run % 2 else int(rng.integers(0, 30))
        gap = int(rng.integers(8)) if run % 3 else 0
        images = 1 if run % 3 else 3
        expected = predict(program, latency=latency, gap=gap, images=images)
        print(f"seed {index}, run {run}: latency {latency}, gap {gap}, {images} images, {expected}")
        size = program.sizes[Region.INPUT] * config.accelerator.beat_bytes
        content = rng.integers(0, 256, (images, size)).astype(np.uint8)
        found, outputs = measure(program, content, latency, gap)
        names = [name.lower() for name in counters(config.accelerator) if name in TIMED]
        assert found == {name: getattr(expected, name) for name in names}
        if program.shapes:  # the others may depend on what memories hold at the start
            assert np.array_equal(outputs, Machine(program).run(content).outputs)


@pytest.fixture(scope="module")
def program() -> Program:
    rng = np.random.default_rng(3)
    return compile_network(random_network(rng, CONFIGS[0]), CONFIGS[0])


def test_counters_are_those_of_the_registers(program: Program) -> None:
    assert list(Prediction.__dataclass_fields__) == [name.lower() for name in TIMED]
    found = predict(program, images=3)
    once = predict(program)
    assert found.counters()["cycles"] == found.cycles
    assert found.pixels == 3 * once.pixels
    assert found.pixels == 3 * sum(i.pixels for i in program.instructions if isinstance(i, Pass))
    assert found.instructions == 3 * len(program.instructions)


def test_slower_memory_costs_cycles(program: Program) -> None:
    cycles = [predict(program, latency=latency).cycles for latency in (1, 100, 1000)]
    assert cycles == sorted(set(cycles))
    cycles = [predict(program, gap=gap).cycles for gap in (0, 3, 30)]
    assert cycles == sorted(set(cycles))


def test_programs_that_do_not_end(program: Program) -> None:
    def error(*instructions: object) -> Error:
        with pytest.raises(MachineError) as caught:
            predict(replace(program, instructions=instructions))
        return caught.value.code

    items = program.instructions
    first = next(k for k, item in enumerate(items) if isinstance(item, Pass))
    late = replace(items[first], after_drain=1000)
    assert error(*items[:first], late, *items[first + 1 :]) == Error.DEADLOCK
    assert error(*(item for item in items if not isinstance(item, Pass))) == Error.WEIGHTS_LEFT
    tiles = next(k for k, item in enumerate(items) if isinstance(item, Weights))
    unbiased = replace(items[tiles], biased=0)
    assert error(*items[:tiles], unbiased, *items[tiles + 1 :]) == Error.TILE_MISMATCH
    sizes = (program.sizes[0], 0, *program.sizes[2:])
    with pytest.raises(MachineError, match="MEMORY_RANGE"):
        predict(replace(program, sizes=sizes))


def test_refuses_other_memories(program: Program) -> None:
    for wrong in ({"latency": -1}, {"gap": -1}, {"images": 0}):
        with pytest.raises(ValueError, match="at least"):
            predict(program, **wrong)
