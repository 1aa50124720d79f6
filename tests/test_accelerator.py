"""Whole networks on the simulated accelerator, and what can go wrong on the way."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from shiftcore.compiler.network import compile_network
from shiftcore.estimate.accelerator import predict
from shiftcore.examples.digits import data, model
from shiftcore.examples.zoo.cifar import cifar10
from shiftcore.examples.zoo.resnet20 import resnet20
from shiftcore.golden.compare import same_numbers
from shiftcore.golden.config import HardwareConfig
from shiftcore.golden.isa import Error, Region
from shiftcore.golden.machine import Machine
from shiftcore.golden.network import QuantizedNetwork
from shiftcore.golden.program import Program, scores_of
from shiftcore.golden.registers import register
from shiftcore.host.driver import Accelerator, AcceleratorError
from shiftcore.quant.convert import QuantConfig, quantize
from shiftcore.quant.hardware import HardwareNetwork
from shiftcore.sim.accelerate import memory_bytes, run_program
from shiftcore.sim.runner import Simulator
from shiftcore.sim.system import SimulatedSystem
from shiftcore.tests.compiler.random_networks import random_network
from shiftcore.tests.networks import CONFIG


@pytest.fixture(scope="module")
def digits() -> tuple[QuantizedNetwork, Program]:
    network = quantize(model.load(), data.load()[0].x[:256], QuantConfig(4, 4, 16))
    return network, compile_network(network, CONFIG)


def inputs(network: QuantizedNetwork, program: Program, images: NDArray) -> NDArray[np.uint8]:
    return program.encode_input(network.encode_input(images))


@pytest.mark.parametrize(("simulator", "images"), [("verilator", 6), ("icarus", 1)])
def test_digits(digits, simulator: Simulator, images: int):
    network, program = digits
    x = data.load()[1].x[:images]
    run = run_program(program, inputs(network, program, x), simulator=simulator)
    assert (run.mismatches, run.first) == (0, None)
    # Every word of every layer: 16 codes and an exponent, or 4 raw numbers.
    words = sum(
        drain.rows * drain.pixels * (17 if drain.form else 4) for drain, _ in program.drains
    )
    assert run.compared == images * words
    found = program.decode_output(run.outputs)
    expected = HardwareNetwork(network).compute(x)["linear"]
    assert isinstance(found, np.ndarray)
    assert isinstance(expected, np.ndarray)
    assert np.array_equal(found.view(np.uint32), expected.view(np.uint32))
    assert len(set(run.cycles)) == 1


def test_resnet20(data_folder: Path):
    network = quantize(resnet20(data_folder), cifar10(data_folder, 64, "train-20k")[0])
    program = compile_network(network, CONFIG)
    images, labels = cifar10(data_folder, 1)
    run = run_program(program, inputs(network, program, images))
    assert (run.mismatches, run.first) == (0, None)
    assert run.compared > 190_000
    assert scores_of(program.decode_output(run.outputs)).argmax(1).tolist() == labels.tolist()
    utilization = program.macs / (run.cycles[0] * CONFIG.rows * CONFIG.cols)
    assert utilization > 0.9


@pytest.mark.parametrize("seed", range(4))
def test_fixed_point_accumulators(seed: int):
    """Random layers, with limits in some, whose accumulators of more than 32 bits saturate."""
    config = HardwareConfig(
        2, 4, accumulator="fixed33", accumulator_depth=64, buffer_depth=1024, bus_bits=64
    )
    network = random_network(np.random.default_rng(seed), config)
    layers = []
    for layer in network.layers:
        assert layer.grid is not None
        grid = replace(layer.grid, exponent=layer.grid.exponent - 9)
        limits = grid.constants([-0.001, 0.002]).tolist() if seed % 2 else None
        layers.append(
            replace(
                layer,
                grid=grid,
                bias=grid.constants(layer.bias),
                limits=None if limits is None else (limits[0], limits[1]),
            )
        )
    network = replace(network, layers=tuple(layers))
    program = compile_network(network, config)
    images = np.random.default_rng(1).normal(size=(2, *network.input_shape)).astype(np.float32)
    content = inputs(network, program, images)
    run = run_program(program, content)
    assert (run.mismatches, run.first) == (0, None)
    golden = Machine(program).run(content)
    assert np.array_equal(run.outputs, golden.outputs)
    assert run.saturated == tuple(golden.saturated.tolist())
    assert sum(run.saturated) > 0
    assert run.counters == (predict(program).counters(),) * 2
    last = network.compute(images)[program.output]
    assert same_numbers(program.decode_output(run.outputs), last)


def test_images_of_one_start(digits):
    network, program = digits
    content = inputs(network, program, data.load()[1].x[:3])
    golden = Machine(program).run(content).outputs
    with SimulatedSystem(CONFIG, memory_bytes(program, 3)) as system:
        accelerator = Accelerator(system, base=8192)
        accelerator.load(program)
        assert np.array_equal(accelerator.run(content), golden)
        counters = accelerator.counters()
        assert counters["instructions"] == 3 * len(program.instructions)
        assert np.array_equal(accelerator.run(content[1:2]), golden[1:2])
        once = accelerator.counters()
        assert counters["pixels"] == 3 * once["pixels"]
        assert once["cycles"] < counters["cycles"] <= 3 * once["cycles"]


def test_memory_timing_changes_cycles_and_nothing_else(digits):
    network, program = digits
    content = inputs(network, program, data.load()[1].x[:1])
    golden = Machine(program).run(content).outputs
    cycles = []
    with SimulatedSystem(CONFIG, memory_bytes(program)) as system:
        accelerator = Accelerator(system)
        accelerator.load(program)
        for latency, gap in ((1, 0), (20, 0), (150, 0), (20, 3), (3, 9)):
            system.set_timing(latency, gap)
            assert np.array_equal(accelerator.run(content), golden)
            cycles.append(accelerator.counters()["cycles"])
    assert cycles[0] < cycles[1] < cycles[2]
    assert cycles[1] < cycles[3]


def test_a_difference_stops_the_run_and_is_named(digits, monkeypatch):
    network, program = digits
    content = inputs(network, program, data.load()[1].x[:3])
    execute = Machine.run

    def altered(self, images, **options):
        run = execute(self, images, **options)
        run.trace[2].codes[0, 7, 3] ^= 1
        return run

    monkeypatch.setattr(Machine, "run", altered)
    run = run_program(program, content)
    assert run.mismatches == 1
    assert len(run.outputs) == 0  # of images that came to their end
    assert run.first is not None
    drain, place = program.drains[2]
    assert (run.first.layer, run.first.what) == (place.layer, "code")
    assert run.first.channel == place.channel + 3
    assert run.first.row == place.row + 7 // drain.pixels
    assert abs(run.first.expected - run.first.found) == 1


def test_errors_of_the_driver(digits):
    _, program = digits
    other = replace(program, config=replace(CONFIG, queue_depth=9))
    with SimulatedSystem(CONFIG, memory_bytes(program)) as system:
        accelerator = Accelerator(system)
        content = np.zeros((1, program.sizes[Region.INPUT] * 8), np.uint8)
        with pytest.raises(AcceleratorError, match=r"^load a program first$"):
            accelerator.run(content)
        with pytest.raises(AcceleratorError, match=r"compile with its hardware.toml$"):
            accelerator.load(other)
        accelerator.load(replace(program, config=replace(CONFIG, multiplier="ecp5-carry")))
        accelerator.load(program)
        with pytest.raises(
            AcceleratorError, match=r"^the accelerator halted with TIMEOUT"
        ) as error:
            accelerator.run(content, timeout=500)
        assert error.value.code is Error.TIMEOUT
        assert accelerator.run(content).shape == (1, program.sizes[Region.OUTPUT] * 8)
        accelerator.write("CONTROL", register("CONTROL").field("START").mask)
        with pytest.raises(AcceleratorError, match=r"^a run is under way, .*: reset it first$"):
            accelerator.run(content)
        accelerator.reset()
        assert accelerator.run(content).shape == (1, program.sizes[Region.OUTPUT] * 8)
        accelerator.base = (1 << 32) - 4096
        message = r"^2 images need memory up to byte \d+, and address_bits = 32 ends at 4294967295"
        with pytest.raises(AcceleratorError, match=message + ": run fewer at a time$"):
            accelerator.run(np.concatenate([content, content]))
        with pytest.raises(ValueError, match=r"^base must be a multiple of 4096, not 8$"):
            Accelerator(system, base=8)


def test_soft_reset_in_the_middle_of_a_run(digits):
    network, program = digits
    content = inputs(network, program, data.load()[1].x[:1])
    golden = Machine(program).run(content).outputs
    status = register("STATUS")
    with SimulatedSystem(CONFIG, memory_bytes(program)) as system:
        accelerator = Accelerator(system)
        accelerator.load(program)
        assert np.array_equal(accelerator.run(content), golden)
        control = register("CONTROL")
        for cycles in (1, 40, 300, 1500, 4000):
            accelerator.write("CONTROL", control.field("CLEAR_INTERRUPT").mask)
            accelerator.write("CONTROL", control.field("START").mask)
            assert not system.wait_at_most(cycles)
            assert status.field("BUSY").of(accelerator.read("STATUS"))
            accelerator.reset()
            assert not system.wait_at_most(200)
            assert accelerator.read("STATUS") == 0
            assert np.array_equal(accelerator.run(content), golden)
