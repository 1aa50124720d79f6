"""Each layer's share of the cycles, and of every other counter, is what the accelerator counts."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from shiftcore.compiler.network import compile_network
from shiftcore.estimate.accelerator import predict, predict_layers
from shiftcore.estimate.network import estimate
from shiftcore.examples.digits import data, model
from shiftcore.golden.config import HardwareConfig
from shiftcore.golden.layers import Term
from shiftcore.golden.network import INPUT, QuantizedNetwork
from shiftcore.golden.program import Program
from shiftcore.golden.registers import TIMED
from shiftcore.quant.convert import quantize
from shiftcore.sim.probe import Probe, count_differences
from shiftcore.sim.runner import Simulator
from shiftcore.sim.system import SimulatedSystem
from shiftcore.tests.compiler.random_networks import Builder
from shiftcore.tests.test_accelerator import CONFIG
from shiftcore.tests.test_accelerator_cycles import CONFIGS, MEMORY_BYTES


def assert_measured(
    program: Program, latency: int, gap: int, names: Sequence[str], simulator: Simulator
) -> None:
    whole = predict(program, latency=latency, gap=gap)
    shares = predict_layers(program, latency=latency, gap=gap)
    with SimulatedSystem(
        program.config, MEMORY_BYTES, latency=latency, gap=gap, simulator=simulator
    ) as system:
        found = count_differences(program, system, whole, shares, names)
    assert found == dict.fromkeys(found, 0)


@pytest.fixture(scope="module")
def digits() -> QuantizedNetwork:
    return quantize(model.load(), data.load()[0].x[:256])


@pytest.mark.parametrize(("latency", "gap"), [(20, 0), (90, 2)])
def test_every_counter_at_the_end_of_every_layer(
    digits: QuantizedNetwork, latency: int, gap: int
) -> None:
    program = compile_network(digits, CONFIG)
    assert_measured(program, latency, gap, [*TIMED], "verilator")


def test_short_layers_on_a_small_array() -> None:
    config = CONFIGS[0]
    builder = Builder((3, 6, 6), config, np.random.default_rng(0))
    first = builder.convolution(INPUT, 8, (3, 3), stride=(2, 2))
    grouped = builder.convolution(first, 8, (3, 3), builder.identity(first), groups=2)
    pool = Term(grouped, builder.constant(8, (3, 3), 1 / 8))
    x = builder.add(pool, bias=np.zeros(8, np.float32))
    builder.convolution(x, 5, (1, 1), raw=True)
    program = compile_network(builder.network(), config)
    assert_measured(program, 9, 1, ["PIXELS", "STALL_TICKET"], "icarus")


def test_a_wrong_share_is_seen(digits: QuantizedNetwork) -> None:
    program = compile_network(digits, CONFIG)
    whole, shares = predict(program), predict_layers(program)
    second, third = list(shares)[1:3]
    shares[second] = replace(shares[second], read_beats=shares[second].read_beats - 2)
    shares[third] = replace(shares[third], read_beats=shares[third].read_beats + 2)
    with SimulatedSystem(CONFIG, MEMORY_BYTES) as system:
        found = count_differences(program, system, whole, shares, ["READ_BEATS"])
        assert found == dict.fromkeys(found, 0) | {"read_beats": 2}
        late = replace(whole, cycles=whole.cycles + 1)
        assert count_differences(program, system, late, predict_layers(program), [])["cycles"] == 1
        probe = Probe(program, system)
        with pytest.raises(ValueError, match="must be more than"):
            probe.read("PIXELS", [probe.begun])
        with pytest.raises(ValueError, match="ends before the counter PIXELS"):
            probe.read("PIXELS", [whole.cycles + 100])


def test_shares_add_up(digits: QuantizedNetwork) -> None:
    config = HardwareConfig(16, 16)
    program = compile_network(digits, config)
    found = estimate(program, digits.macs(), latency=33, gap=1)
    assert list(found.layers) == [layer.name for layer in digits.layers]
    assert found.total.cycles == predict(program, latency=33, gap=1).cycles
    assert found.total.macs == sum(digits.macs().values())
    for name in ("cycles", "macs", "pixels", "stall_tile", "stall_ticket", "stall_empty"):
        shares = [getattr(layer, name) for layer in found.layers.values()]
        assert sum(shares) == getattr(found.total, name)
    for layer in [*found.layers.values(), found.total]:
        assert layer.utilization == layer.macs / (layer.cycles * 256)
        assert layer.pixels * 256 >= layer.macs
        assert layer.pixels <= layer.cycles
