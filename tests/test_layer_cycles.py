"""Each layer's share of the cycles, and of every other counter, is what the accelerator counts."""

from collections.abc import Iterable, Sequence
from dataclasses import astuple
from itertools import accumulate

import numpy as np
import pytest

from shiftcore.compiler.network import compile_network
from shiftcore.estimate.accelerator import predict, predict_layers
from shiftcore.estimate.network import estimate
from shiftcore.examples.digits import data, model
from shiftcore.golden.config import HardwareConfig
from shiftcore.golden.isa import Region
from shiftcore.golden.layers import Term
from shiftcore.golden.network import INPUT, QuantizedNetwork
from shiftcore.golden.program import Program
from shiftcore.golden.registers import COUNTERS, register
from shiftcore.host.driver import Accelerator
from shiftcore.quant.convert import quantize
from shiftcore.sim.runner import Simulator
from shiftcore.sim.system import SimulatedSystem
from shiftcore.tests.compiler.random_networks import Builder
from shiftcore.tests.test_accelerator import CONFIG
from shiftcore.tests.test_accelerator_cycles import CONFIGS, MEMORY_BYTES


class Probe:
    """Reads counters while the accelerator runs, in the cycles that it is asked for.

    Between two reads one after the other `apart` cycles pass, and `begun` from the start to the
    first; both are measured, with the counter of cycles itself.
    """

    def __init__(self, program: Program, system: SimulatedSystem):
        self.system, self.driver = system, Accelerator(system)
        self.driver.load(program)
        size = program.sizes[Region.INPUT] * program.config.accelerator.beat_bytes
        self.driver.run(np.zeros((1, size), np.uint8))
        first, second = self._read("CYCLES", [1, 1])
        self.begun, self.apart = first - 1, second - first - 1

    def _read(self, name: str, pauses: Sequence[int]) -> list[int]:
        """Start, and read the low half of a counter after each of some pauses, in cycles."""
        control = register("CONTROL")
        self.driver.write("CONTROL", control.field("CLEAR_INTERRUPT").mask)
        self.driver.write("CONTROL", control.field("START").mask)
        found = []
        for pause in pauses:
            assert not self.system.wait_at_most(pause)
            found.append(self.driver.read(f"{name}_LO"))
        self.system.wait()
        return found

    def read(self, name: str, cycles: Sequence[int]) -> list[int]:
        """A counter after so many cycles of a run; each time of a run of its own if they are too
        close."""
        assert min(cycles) > self.begun
        found: dict[int, int] = {}
        while left := [cycle for cycle in cycles if cycle not in found]:
            now, times, pauses = self.begun, [], []
            for cycle in left:
                if cycle > now:
                    times.append(cycle)
                    pauses.append(cycle - now)
                    now = cycle + self.apart
            found |= dict(zip(times, self._read(name, pauses), strict=True))
        return [found[cycle] for cycle in cycles]


def ends(program: Program, latency: int, gap: int) -> list[dict[str, int]]:
    """All counters when each layer ends."""
    shares = predict_layers(program, latency=latency, gap=gap)
    sums = accumulate(np.array(astuple(share)) for share in shares.values())
    names = [name.lower() for name in COUNTERS]
    return [dict(zip(names, each.tolist(), strict=True)) for each in sums]


def assert_measured(
    program: Program, latency: int, gap: int, names: Iterable[str], simulator: Simulator
) -> None:
    *before, last = ends(program, latency, gap)
    assert last == predict(program, latency=latency, gap=gap).counters()
    cycles = [each["cycles"] for each in before]
    with SimulatedSystem(
        program.config, MEMORY_BYTES, latency=latency, gap=gap, simulator=simulator
    ) as system:
        probe = Probe(program, system)
        for name in names:
            expected = [each[name.lower()] for each in before]
            assert probe.read(name, cycles) == expected, name
        # A layer ends in the cycle of its last pixel, not one later.
        assert probe.read("PIXELS", [cycle - 1 for cycle in cycles]) == [
            each["pixels"] - 1 for each in before
        ]


@pytest.fixture(scope="module")
def digits() -> QuantizedNetwork:
    return quantize(model.load(), data.load()[0].x[:256])


@pytest.mark.parametrize(("latency", "gap"), [(20, 0), (90, 2)])
def test_every_counter_at_the_end_of_every_layer(
    digits: QuantizedNetwork, latency: int, gap: int
) -> None:
    program = compile_network(digits, CONFIG)
    assert_measured(program, latency, gap, COUNTERS, "verilator")


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
