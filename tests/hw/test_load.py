"""The LOAD engine: every word at its address, runs ahead of it, nothing lost between rows."""

from dataclasses import dataclass

import numpy as np
import pytest

from shiftcore.golden.config import HardwareConfig
from shiftcore.golden.isa import Load, encode
from shiftcore.golden.program import pack_words
from shiftcore.hw.load import LoadEngine
from shiftcore.sim.axi_bench import AxiAnswer, AxiJob
from shiftcore.sim.runner import simulate
from shiftcore.tests.hw.regions import Run

# The exponent in a beat of its own or not; words of one beat and of several.
CONFIGS = [
    HardwareConfig(4, 4, act_bits=4, address_bits=40, buffer_depth=1 << 20),
    HardwareConfig(4, 4, act_bits=8, bus_bits=32),
    HardwareConfig(16, 4, act_bits=8, bus_bits=32, address_bits=16, buffer_depth=37),
    HardwareConfig(7, 4, act_bits=6, bus_bits=32),
]


def number(words) -> int:
    return sum(int(word) << 64 * k for k, word in enumerate(words))


@dataclass
class Loads:
    """Instructions, the beats that their runs read, and the writes that follow."""

    config: HardwareConfig
    instructions: list[Load]
    beats: list[int]
    writes: list[int]
    ends: list[int]
    """for every instruction how many writes there are when it is completed"""

    @classmethod
    def random(
        cls, config: HardwareConfig, rng: np.random.Generator, count: int, words: int = 1
    ) -> "Loads":
        """Rows have at least so many `words`."""
        spec = config.accelerator
        place = spec.space_bits("buffer")
        found = cls(config, [], [], [], [])
        for _ in range(count):
            load = Load(
                offset=int(rng.integers(0, 1 << 32)),
                region=int(rng.integers(0, 4)),
                buffer=int(rng.integers(0, 1 << 20)),
                fixed=int(rng.integers(0, 2)),
                exponent=int(rng.integers(0, 256)),
                words=int(rng.integers(words, 6)),
                rows=int(rng.integers(1, 4)),
                blocks=int(rng.integers(1, 4)),
                row_step=int(rng.integers(0, 1 << 24)),
                block_step=int(rng.integers(0, 1 << 32)),
                buffer_row_step=int(rng.integers(0, 1 << 20)),
                buffer_block_step=int(rng.integers(0, 1 << 20)),
            )
            found.instructions.append(load)
            for block in range(load.blocks):
                for row in range(load.rows):
                    codes = rng.integers(0, 1 << config.act_bits, (load.words, config.rows))
                    exponents = rng.integers(0, 256, load.words)
                    data = pack_words(
                        codes,
                        None if load.fixed else exponents,
                        config.act_bits,
                        spec.beat_bytes,
                    )
                    # What is above a word in its last beat is no part of it.
                    bits = spec.code_bits + 8 * (not load.fixed)
                    for k, line in enumerate(data):
                        value = int.from_bytes(line.tobytes(), "little")
                        value |= int(rng.integers(0, 1 << 20)) << bits
                        value &= (1 << 8 * len(line)) - 1
                        found.beats += [
                            value >> spec.bus_bits * beat & ((1 << spec.bus_bits) - 1)
                            for beat in range(len(line) // spec.beat_bytes)
                        ]
                        exponent = load.exponent if load.fixed else int(exponents[k])
                        word = value & ((1 << spec.code_bits) - 1) | exponent << spec.code_bits
                        address = load.buffer + row * load.buffer_row_step
                        address += block * load.buffer_block_step + k
                        found.writes.append(address % (1 << place) | word << place)
            found.ends.append(len(found.writes))
        return found

    def runs(self) -> list[int]:
        spec = self.config.accelerator
        found = []
        for load in self.instructions:
            beats = load.words * (spec.code_beats if load.fixed else spec.word_beats)
            for block in range(load.blocks):
                for row in range(load.rows):
                    offset = load.offset + row * load.row_step + block * load.block_step
                    offset %= 1 << spec.offset_bits
                    found.append(Run(offset, load.region, beats).payload(spec))
        return found

    @property
    def beats_of_words(self) -> list[int]:
        spec = self.config.accelerator
        return [
            spec.code_beats if load.fixed else spec.word_beats
            for load in self.instructions
            for _ in range(load.words * load.rows * load.blocks)
        ]

    def simulate(self, stall: float, simulator) -> AxiAnswer:
        runs = self.runs()
        answer = simulate(
            LoadEngine,
            self.config.accelerator,
            bench="axi_bench",
            job=AxiJob(
                None,
                {"i": list(map(number, encode(self.instructions))), "i_beats": self.beats},
                {"o_run": len(runs), "o_write": len(self.writes)},
                watch=("o_completed", "o_busy"),
                stall=stall,
            ),
            simulator=simulator,
        )
        assert answer.held == 0
        assert answer.payloads["o_run"] == runs
        assert answer.payloads["o_write"] == self.writes
        ends = np.array(answer.cycles["o_write"])[np.array(self.ends) - 1]
        assert answer.watched["o_completed"] == ends.tolist()
        assert answer.watched["o_busy"][-1] == ends[-1]
        return answer


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.rows}x{c.act_bits}-{c.bus_bits}")
def test_loads(config, simulator):
    rng = np.random.default_rng(1)
    for stall in (0.35, 0.7):
        loads = Loads.random(config, rng, 30)
        answer = loads.simulate(stall, simulator)
        beats = loads.beats_of_words
        came = answer.cycles["i_beats"]
        whole = np.array(came)[np.cumsum(beats) - 1]
        waited = zip(whole, answer.cycles["o_write"], strict=True)
        # Beats of the next word are taken while a word waits.
        waiting = {cycle for a, b in waited for cycle in range(a + 1, b)}
        assert bool(waiting & set(came)) == (max(beats) > 1)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.rows}x{c.act_bits}-{c.bus_bits}")
def test_latency_and_throughput(config, simulator):
    loads = Loads.random(config, np.random.default_rng(2), 25, words=3)
    answer = loads.simulate(0.0, simulator)
    assert answer.cycles["i"][0] == 0
    assert answer.cycles["o_run"][0] == 1
    assert answer.cycles["i_beats"] == list(range(3, 3 + len(loads.beats)))
    assert np.array_equal(answer.cycles["o_write"], 3 + np.cumsum(loads.beats_of_words))
    # Runs are asked for ahead of their beats, one every 2 cycles.
    assert np.array_equal(answer.cycles["o_run"][:5], 1 + 2 * np.arange(5))
