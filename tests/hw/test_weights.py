"""The WEIGHTS engine, alone and, with LOAD, behind the read manager."""

from typing import Any

import numpy as np
import pytest
from amaranth.hdl import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from shiftcore.golden.accelerator import AcceleratorSpec
from shiftcore.golden.config import HardwareConfig
from shiftcore.golden.isa import Load, Opcode, Region, Weights, encode
from shiftcore.hw.axi import forward, read_ports, region_layout
from shiftcore.hw.buffer import write_layout
from shiftcore.hw.instruction import instruction_layout
from shiftcore.hw.load import LoadEngine
from shiftcore.hw.read_dma import ReadDma
from shiftcore.hw.weights import WeightsEngine, tile_layout
from shiftcore.sim.axi_bench import AxiJob, MemoryModel
from shiftcore.sim.runner import simulate
from shiftcore.tests.hw.regions import Regions, Run
from shiftcore.tests.hw.test_load import number

CONFIGS = [
    HardwareConfig(4, 3, bus_bits=32, address_bits=20),
    HardwareConfig(1, 1, bus_bits=256, weight_fifo=32, address_bits=40),
    HardwareConfig(3, 20, weight_bits=8, scale="fp32", weight_fifo=64),
]


def random_weights(rng: np.random.Generator, count: int) -> list[Weights]:
    tiles = rng.integers(1, 5, count)
    return [
        Weights(offset=int(rng.integers(0, 1 << 32)), tiles=int(k), biased=int(rng.integers(0, 2)))
        for k in tiles
    ]


def shape(config: HardwareConfig, instructions: list[Weights]) -> list[tuple[int, int]]:
    """(last, biased) of every beat."""
    found = []
    for each in instructions:
        for tile in range(each.tiles):
            biased = int(bool(each.biased and tile == 0))
            beats = config.tile.beats(bool(biased))
            found += [(int(beat == beats - 1), biased) for beat in range(beats)]
    return found


def expected_tiles(config: HardwareConfig, instructions: list[Weights], beats: list[int]):
    bits = config.bus_bits
    flags = shape(config, instructions)
    return [
        beat | last << bits | biased << bits + 1
        for beat, (last, biased) in zip(beats, flags, strict=True)
    ]


@pytest.mark.parametrize("stall", [0.0, 0.35])
@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.rows}x{c.cols}-{c.bus_bits}")
def test_weights(config, stall, simulator):
    rng = np.random.default_rng(1)
    instructions = random_weights(rng, 25)
    # As many tiles as the field holds only show in the run.
    count = len(shape(config, instructions))
    beats = [int.from_bytes(rng.bytes(config.bus_bits // 8), "little") for _ in range(count)]
    most = Weights(offset=5, tiles=(1 << 20) - 1, biased=1)
    last = 1 << config.accelerator.offset_bits
    runs = [Run(w.offset % last, 0, len(shape(config, [w]))) for w in instructions]
    size = most.tiles * config.tile.beats(False) + config.tile.bias_beats
    runs.append(Run(5, 0, min(size, 2 * last - 1)))
    answer = simulate(
        WeightsEngine,
        config.accelerator,
        bench="axi_bench",
        job=AxiJob(
            None,
            {"i": list(map(number, encode([*instructions, most]))), "i_beats": beats},
            {"o_run": len(runs), "o_tile": count},
            watch=("o_busy",),
            stall=stall,
        ),
        simulator=simulator,
    )
    assert answer.held == 0
    assert answer.payloads["o_run"] == [run.payload(config.accelerator) for run in runs]
    assert answer.payloads["o_tile"] == expected_tiles(config, instructions, beats)
    assert answer.cycles["o_tile"] == answer.cycles["i_beats"]
    if stall == 0:
        assert answer.cycles["i"][:4] == [0, 2, 4, 6]
        assert answer.cycles["o_run"][:4] == [1, 3, 5, 7]
        assert answer.cycles["i_beats"] == list(range(1, 1 + count))
        assert answer.watched["o_busy"][0] == 1


def stream_of(shape: Any) -> stream.Signature:
    return stream.Signature(shape)


class Reader(wiring.Component):
    """LOAD and WEIGHTS engines behind the read manager."""

    def __init__(self, spec: AcceleratorSpec):
        self.spec = spec
        super().__init__(
            {
                **read_ports(spec.bus_bits, spec.address_bits),
                "i_regions": In(region_layout(spec)),
                "i_weights": In(stream_of(instruction_layout(Opcode.WEIGHTS, spec))),
                "i_load": In(stream_of(instruction_layout(Opcode.LOAD, spec))),
                "o_tile": Out(stream_of(tile_layout(spec))),
                "o_write": Out(stream_of(write_layout(spec))),
                "o_beat": Out(1),
                "o_memory_range": Out(1),
                "o_completed": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.dma = dma = ReadDma(self.spec)
        m.submodules.load = load = LoadEngine(self.spec)
        m.submodules.weights = weights = WeightsEngine(self.spec)
        forward(m, dma, self)
        wiring.connect(m, weights.o_run, dma.i_weights)
        wiring.connect(m, load.o_run, dma.i_loads)
        wiring.connect(m, dma.o_weights, weights.i_beats)
        wiring.connect(m, dma.o_loads, load.i_beats)
        wiring.connect(m, wiring.flipped(self.i_weights), weights.i)
        wiring.connect(m, wiring.flipped(self.i_load), load.i)
        wiring.connect(m, weights.o_tile, wiring.flipped(self.o_tile))
        wiring.connect(m, load.o_write, wiring.flipped(self.o_write))
        m.d.comb += [
            dma.i_regions.eq(self.i_regions),
            self.o_beat.eq(dma.o_beat),
            self.o_memory_range.eq(dma.o_memory_range),
            self.o_completed.eq(load.o_completed),
        ]
        return m


@pytest.mark.parametrize("stall", [0.0, 0.35])
@pytest.mark.parametrize("work", ["weights", "loads", "both"])
def test_from_memory(work, stall, simulator):
    """Tiles and words from memory; alone, each engine leaves no gap at 20 cycles of latency."""
    config = HardwareConfig(4, 5, weight_bits=8, act_bits=8, bus_bits=32)
    spec = config.accelerator
    rng = np.random.default_rng(3)
    regions = Regions.random(spec, rng)
    weights, loads, tiles, writes = [], [], [], []
    if work != "loads":
        for each in random_weights(rng, 12):
            beats = len(shape(config, [each]))
            offset = int(rng.integers(0, regions.sizes[Region.MODEL] - beats))
            weights.append(Weights(offset=offset, tiles=each.tiles, biased=each.biased))
            data = regions.beats(Run(offset, Region.MODEL, beats))
            tiles += expected_tiles(config, weights[-1:], data)
    if work != "weights":
        for _ in range(12):
            fixed, words, rows = (
                int(rng.integers(low, high)) for low, high in ((0, 2), (2, 7), (1, 4))
            )
            beats = 2 - fixed
            region = int(rng.integers(0, 4))
            step = int(rng.integers(0, 90))
            room = regions.sizes[region] - (rows - 1) * step - words * beats
            load = Load(
                offset=int(rng.integers(0, room)),
                region=region,
                buffer=int(rng.integers(0, 4000)),
                fixed=fixed,
                exponent=77,
                words=words,
                rows=rows,
                row_step=step,
                buffer_row_step=10,
            )
            loads.append(load)
            for row in range(rows):
                data = regions.beats(Run(load.offset + row * step, region, words * beats))
                for k in range(words):
                    codes = data[k * beats]
                    exponent = 77 if fixed else data[k * beats + 1] & 255
                    address = load.buffer + 10 * row + k
                    writes.append(address | (codes | exponent << 32) << spec.space_bits("buffer"))
    answer = simulate(
        Reader,
        spec,
        bench="axi_bench",
        job=AxiJob(
            MemoryModel(
                regions.origin,
                regions.content,
                readable=regions.ranges(*range(4)),
                latency=(20, 20) if stall == 0 else (1, 50),
                stall=stall,
                longest=config.burst_beats,
            ),
            {
                "i_weights": list(map(number, encode(weights))),
                "i_load": list(map(number, encode(loads))),
            },
            {"o_tile": len(tiles), "o_write": len(writes)},
            {"i_regions": regions.port},
            ("o_beat", "o_memory_range", "o_completed"),
            stall,
        ),
        simulator=simulator,
    )
    assert answer.violations == answer.watched["o_memory_range"] == []
    assert answer.held == 0
    assert answer.payloads["o_tile"] == tiles
    assert answer.payloads["o_write"] == writes
    assert len(answer.watched["o_completed"]) == len(loads)
    if stall == 0 and work == "weights":
        beats = answer.watched["o_beat"]
        assert np.array_equal(beats, beats[0] + np.arange(len(tiles)))
