"""The read manager: every beat of every run, whatever memory and clients do."""

from dataclasses import replace

import numpy as np
import pytest

from shiftcore.golden.config import HardwareConfig
from shiftcore.hw.read_dma import ReadDma
from shiftcore.sim.axi_bench import AxiAnswer, AxiJob, MemoryModel
from shiftcore.sim.runner import simulate
from shiftcore.tests.hw.regions import Regions, Run

CLIENTS = ("weights", "program", "loads")
WATCHED = ("o_idle", "o_beat", "o_memory_range", "o_read_failed")
# FIFOs of exactly two bursts and of more; bursts of a whole page; of a length that divides nothing.
CONFIGS = [
    HardwareConfig(
        2, 2, weight_fifo=32, load_fifo=41, burst_beats=16, outstanding=4, address_bits=40
    ),
    HardwareConfig(2, 2, bus_bits=32, weight_fifo=15, load_fifo=14, burst_beats=7, outstanding=3),
    HardwareConfig(
        2,
        2,
        bus_bits=256,
        weight_fifo=512,
        load_fifo=600,
        store_fifo=512,
        burst_beats=256,
        outstanding=2,
    ),
    HardwareConfig(
        2,
        2,
        bus_bits=128,
        weight_fifo=5,
        load_fifo=4,
        burst_beats=2,
        outstanding=5,
        address_bits=17,
    ),
]


def read(
    config: HardwareConfig,
    regions: Regions,
    runs: dict[str, list[Run]],
    wanted: dict[str, int],
    simulator,
    seed: int = 0,
    halt: int | None = None,
    stall: float = 0.0,
    **memory,
) -> AxiAnswer:
    model = MemoryModel(
        regions.origin,
        regions.content,
        readable=regions.ranges(*range(4)),
        longest=config.burst_beats,
        **memory,
    )
    answer = simulate(
        ReadDma,
        config.accelerator,
        bench="axi_bench",
        job=AxiJob(
            model,
            {
                f"i_{name}": [run.payload(config.accelerator) for run in runs.get(name, [])]
                for name in CLIENTS
            },
            {f"o_{name}": wanted.get(name, 0) for name in CLIENTS},
            {"i_regions": regions.port, "i_halt": 0},
            WATCHED,
            stall,
            halt,
        ),
        simulator=simulator,
        seed=seed,
    )
    assert answer.violations == []
    assert answer.held == 0
    assert answer.pending[0] <= config.outstanding
    return answer


@pytest.mark.parametrize("stall", [0.0, 0.35, 0.8])
@pytest.mark.parametrize("number", range(len(CONFIGS)))
def test_runs(number, stall, simulator):
    config = CONFIGS[number]
    rng = np.random.default_rng([number, int(10 * stall)])
    regions = Regions.random(config.accelerator, rng)
    longest = 3 * config.burst_beats
    runs = {name: [regions.run(rng, longest) for _ in range(12)] for name in CLIENTS}
    expected = {name: [b for run in runs[name] for b in regions.beats(run)] for name in CLIENTS}
    answer = read(
        config,
        regions,
        runs,
        {name: len(beats) for name, beats in expected.items()},
        simulator,
        stall=stall,
        latency=(1, 40) if stall else (20, 20),
    )
    for name in CLIENTS:
        assert answer.payloads[f"o_{name}"] == expected[name]
    cut = [burst for name in CLIENTS for run in runs[name] for burst in regions.bursts(run)]
    assert sorted(burst[1:] for burst in answer.reads) == sorted(cut)
    step = config.accelerator.beat_bytes
    assert any(beats == min(config.burst_beats, 4096 // step) for _, beats in cut)
    assert any((at + beats * step) % 4096 == 0 for at, beats in cut)
    assert len(answer.watched["o_beat"]) == sum(map(len, expected.values()))
    assert answer.watched["o_memory_range"] == answer.watched["o_read_failed"] == []
    assert answer.pending[0] == config.outstanding


def test_latency_and_throughput(simulator):
    """A long run arrives at a beat a cycle when enough bursts are on their way."""
    config = CONFIGS[0]
    rng = np.random.default_rng(1)
    regions = Regions(config.accelerator, 0, rng.bytes(1 << 14), (0, 0, 0, 0), (2048,) * 4)
    runs = {"weights": [Run(0, 0, 256), Run(512, 0, 564)], "loads": [Run(256, 1, 48)]}
    answer = read(
        config,
        regions,
        runs,
        {"weights": 820, "loads": 48},
        simulator,
        latency=(3, 3),
    )
    accepted = answer.cycles["i_weights"]
    asked = [cycle for cycle, address, _ in answer.reads if not 2048 <= address < 4096]
    assert accepted[0] == 0
    assert asked[:2] == [4, 6]
    came, out = answer.watched["o_beat"], answer.cycles["o_weights"]
    assert came[0] == 4 + 3
    assert out[0] == came[0] + 2
    # The bursts of the load go between those of the weights, which wait for room in their FIFO.
    assert answer.cycles["i_loads"] == [1]
    assert next(cycle for cycle, at, _ in answer.reads if 2048 <= at < 4096) == 8
    assert np.array_equal(came, came[0] + np.arange(868))


def test_bursts_of_one_beat(simulator):
    """Runs of one beat: every 4 cycles for one client, two in 5 cycles for two."""
    config = replace(CONFIGS[0], outstanding=8)
    rng = np.random.default_rng(2)
    regions = Regions(config.accelerator, 0, rng.bytes(1 << 12), (0, 0, 0, 0), (512,) * 4)
    runs = [Run(int(k), 0, 1) for k in rng.integers(0, 512, 40)]
    one = read(config, regions, {"loads": runs}, {"loads": 40}, simulator)
    assert np.array_equal([cycle for cycle, _, _ in one.reads], 4 + 4 * np.arange(40))
    assert one.payloads["o_loads"] == [beat for run in runs for beat in regions.beats(run)]
    both = {"loads": runs, "weights": runs[::-1]}
    two = read(config, regions, both, {"loads": 40, "weights": 40}, simulator)
    begins = np.repeat(4 + 5 * np.arange(40), 2) + np.tile([0, 2], 40)
    assert np.array_equal([cycle for cycle, _, _ in two.reads], begins)


def test_runs_out_of_range_read_nothing(simulator):
    rng = np.random.default_rng(3)
    for config in CONFIGS[:3]:
        regions = Regions.random(config.accelerator, rng)
        bad = {name: [regions.outside(rng) for _ in range(25)] for name in CLIENTS}
        good = {name: [regions.run(rng, 9) for _ in range(25)] for name in CLIENTS}
        runs, expected = {}, {}
        for name in CLIENTS:
            runs[name] = [run for pair in zip(bad[name], good[name], strict=True) for run in pair]
            expected[name] = [beat for run in good[name] for beat in regions.beats(run)]
        wanted = {name: len(beats) for name, beats in expected.items()}
        answer = read(config, regions, runs, wanted, simulator)
        assert {name: answer.payloads[f"o_{name}"] for name in CLIENTS} == expected
        # Clients may fail in the same cycle.
        assert 25 <= len(answer.watched["o_memory_range"]) <= 75


def test_failing_beats(simulator):
    config = CONFIGS[1]
    rng = np.random.default_rng(4)
    regions = Regions.random(config.accelerator, rng)
    runs = {"loads": [regions.run(rng, 40) for _ in range(20)]}
    touched = [
        address + k * 4
        for run in runs["loads"]
        for address, beats in regions.bursts(run)
        for k in range(beats)
    ]
    failing = frozenset(rng.choice(touched, 9).tolist())
    answer = read(
        config,
        regions,
        runs,
        {"loads": len(touched)},
        simulator,
        stall=0.3,
        failing_reads=failing,
    )
    assert len(answer.watched["o_read_failed"]) == sum(address in failing for address in touched)


@pytest.mark.parametrize("stall", [0.0, 0.5])
def test_halt(stall, simulator):
    """What is on its way comes and is dropped; then the port rests."""
    config = CONFIGS[0]
    rng = np.random.default_rng(5)
    regions = Regions.random(config.accelerator, rng)
    dropped = 0
    for halt in (0, 5, 9, 30, 47, 80):
        runs = {name: [regions.run(rng, 40) for _ in range(8)] for name in CLIENTS}
        answer = read(
            config,
            regions,
            runs,
            {},
            simulator,
            seed=halt,
            halt=halt,
            stall=stall,
            latency=(1, 30),
        )
        assert answer.left_idle == 0
        # One burst may have been offered before the halt.
        late = [cycle for cycle, _, _ in answer.reads if cycle > halt]
        assert len(late) <= 1
        assert len(answer.watched["o_beat"]) == sum(beats for _, _, beats in answer.reads)
        arrived = sum(len(answer.payloads[f"o_{name}"]) for name in CLIENTS)
        dropped += len(answer.watched["o_beat"]) - arrived
    assert dropped > 50
