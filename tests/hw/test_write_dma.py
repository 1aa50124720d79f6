# amaranth: UnusedElaboratable=no
"""The write manager: every beat of every run in its place, and word when it is there."""

from dataclasses import replace

import numpy as np
import pytest

from shiftcore.golden.config import HardwareConfig
from shiftcore.hw.write_dma import WriteDma
from shiftcore.sim.axi_bench import AxiAnswer, AxiJob, MemoryModel
from shiftcore.sim.runner import simulate
from shiftcore.tests.hw.regions import Regions, Run

WATCHED = ("o_idle", "o_beat", "o_done", "o_memory_range", "o_write_failed")
CONFIGS = [
    HardwareConfig(2, 2, store_fifo=40, outstanding=4, address_bits=40),
    HardwareConfig(2, 2, bus_bits=32, store_fifo=14, burst_beats=7, outstanding=2),
    HardwareConfig(
        *(2, 2),
        bus_bits=256,
        weight_fifo=512,
        load_fifo=512,
        store_fifo=512,
        burst_beats=256,
        outstanding=2,
    ),
    HardwareConfig(2, 2, bus_bits=128, store_fifo=4, burst_beats=2, outstanding=5, address_bits=17),
]


def write(
    config: HardwareConfig,
    regions: Regions,
    runs: list[Run],
    beats: list[int],
    simulator,
    seed: int = 0,
    halt: int | None = None,
    stall: float = 0.0,
    **memory,
) -> AxiAnswer:
    model = MemoryModel(
        regions.origin,
        regions.content,
        writable=regions.ranges(*range(4)),
        longest=config.burst_beats,
        **memory,
    )
    answer = simulate(
        WriteDma,
        config.accelerator,
        bench="axi_bench",
        job=AxiJob(
            model,
            {"i_run": [run.payload(config.accelerator) for run in runs], "i": beats},
            {},
            {"i_regions": regions.port, "i_halt": 0},
            WATCHED,
            stall,
            halt,
        ),
        simulator=simulator,
        seed=seed,
    )
    assert answer.violations == []
    assert answer.pending[1] <= config.outstanding
    return answer


def random_beats(config: HardwareConfig, rng: np.random.Generator, count: int) -> list[int]:
    step = config.accelerator.beat_bytes
    return [int.from_bytes(rng.bytes(step), "little") for _ in range(count)]


def stored(regions: Regions, runs: list[Run], beats: list[int]) -> bytes:
    """Memory after `runs` were written one after the other."""
    content, step, left = bytearray(regions.content), regions.spec.beat_bytes, iter(beats)
    for run in runs:
        at = regions.bases[run.region] - regions.origin + run.offset * step
        for _ in range(run.beats):
            content[at : at + step] = next(left).to_bytes(step, "little")
            at += step
    return bytes(content)


@pytest.mark.parametrize("stall", [0.0, 0.35, 0.8])
@pytest.mark.parametrize("number", range(len(CONFIGS)))
def test_runs(number, stall, simulator):
    config = CONFIGS[number]
    rng = np.random.default_rng([number, int(10 * stall)])
    regions = Regions.random(config.accelerator, rng)
    runs = [regions.run(rng, 3 * config.burst_beats) for _ in range(25)]
    beats = random_beats(config, rng, sum(run.beats for run in runs))
    answer = write(
        config,
        regions,
        runs,
        beats,
        simulator,
        stall=stall,
        latency=(1, 40) if stall else (30, 30),
    )
    assert answer.content == stored(regions, runs, beats)
    cut = [burst for run in runs for burst in regions.bursts(run)]
    assert [burst[1:] for burst in answer.writes] == cut
    step = config.accelerator.beat_bytes
    assert any(count == min(config.burst_beats, 4096 // step) for _, count in cut)
    assert any((at + count * step) % 4096 == 0 for at, count in cut)
    assert len(answer.watched["o_done"]) == len(runs)
    assert len(answer.watched["o_beat"]) == len(beats)
    assert answer.watched["o_memory_range"] == answer.watched["o_write_failed"] == []
    assert answer.pending[1] == config.outstanding or stall > 0.5


def test_latency_and_throughput(simulator):
    config = CONFIGS[0]
    rng = np.random.default_rng(1)
    spec = config.accelerator
    regions = Regions(spec, 0, bytes(1 << 14), (0, 0, 0, 0), (2048,) * 4)
    beats = random_beats(config, rng, 300)
    one = write(config, regions, [Run(7, 2, 1)], beats[:1], simulator)
    assert one.cycles["i_run"] == one.cycles["i"] == [0]
    assert [cycle for cycle, _, _ in one.writes] == one.watched["o_beat"] == [4]
    assert one.watched["o_done"] == [5]
    runs = [Run(0, 2, 256), Run(256, 2, 44)]
    many = write(config, regions, runs, beats, simulator, latency=(9, 9))
    # The burst's last beat goes into the FIFO in cycle 15.
    assert many.cycles["i"] == list(range(300))
    assert many.writes[0][0] == many.watched["o_beat"][0] == 17
    assert np.array_equal(np.diff([cycle for cycle, _, _ in many.writes[:16]]), [16] * 15)
    assert np.array_equal(many.watched["o_beat"][:256], 17 + np.arange(256))


def test_bursts_of_one_beat(simulator):
    config = replace(CONFIGS[0], outstanding=8)
    rng = np.random.default_rng(2)
    regions = Regions.random(config.accelerator, rng)
    runs = [regions.run(rng, 1) for _ in range(40)]
    beats = random_beats(config, rng, 40)
    answer = write(config, regions, runs, beats, simulator)
    assert np.array_equal([cycle for cycle, _, _ in answer.writes], 4 + 2 * np.arange(40))
    assert answer.content == stored(regions, runs, beats)


def test_runs_out_of_range_write_nothing(simulator):
    rng = np.random.default_rng(3)
    for config in CONFIGS[:3]:
        regions = Regions.random(config.accelerator, rng)
        bad = [regions.outside(rng) for _ in range(25)]
        good = [regions.run(rng, 9) for _ in range(25)]
        runs = [run for pair in zip(bad, good, strict=True) for run in pair]
        beats = random_beats(config, rng, sum(run.beats for run in good))
        answer = write(config, regions, runs, beats, simulator)
        assert answer.content == stored(regions, good, beats)
        assert len(answer.watched["o_memory_range"]) == 25
        assert len(answer.watched["o_done"]) == 25


def test_failing_beats(simulator):
    config = CONFIGS[3]
    rng = np.random.default_rng(4)
    regions = Regions.random(config.accelerator, rng)
    runs = [regions.run(rng, 20) for _ in range(20)]
    cut = [regions.bursts(run) for run in runs]
    touched = [
        address + k * 16 for bursts in cut for address, beats in bursts for k in range(beats)
    ]
    failing = frozenset(rng.choice(touched, 9).tolist())

    def fails(burst: tuple[int, int]) -> bool:
        return any(burst[0] + 16 * k in failing for k in range(burst[1]))

    beats = random_beats(config, rng, len(touched))
    answer = write(
        config,
        regions,
        runs,
        beats,
        simulator,
        stall=0.3,
        failing_writes=failing,
    )
    failed = sum(fails(burst) for bursts in cut for burst in bursts)
    assert len(answer.watched["o_write_failed"]) == failed >= 9
    assert len(answer.watched["o_done"]) == sum(not fails(bursts[-1]) for bursts in cut)


@pytest.mark.parametrize("stall", [0.0, 0.5])
def test_halt(stall, simulator):
    """What was announced is finished; then the port rests."""
    config = CONFIGS[0]
    rng = np.random.default_rng(5)
    regions = Regions.random(config.accelerator, rng)
    late = 0
    for halt in (0, 5, 18, 25, 30, 47, 80):
        runs = [regions.run(rng, 40) for _ in range(8)]
        beats = random_beats(config, rng, sum(run.beats for run in runs))
        answer = write(
            config,
            regions,
            runs,
            beats,
            simulator,
            seed=halt,
            halt=halt,
            stall=stall,
            latency=(1, 30),
        )
        assert answer.left_idle == 0
        assert sum(cycle > halt for cycle, _, _ in answer.writes) <= 1
        assert len(answer.watched["o_beat"]) == sum(beats for _, _, beats in answer.writes)
        late += sum(cycle > halt for cycle in answer.watched["o_beat"])
    assert late > 5
