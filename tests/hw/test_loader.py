"""The tile loader and its constant players, in every cycle."""

from dataclasses import dataclass

import numpy as np
import pytest
from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from shiftcore.golden.config import HardwareConfig
from shiftcore.golden.floats import FLOAT32, FP16, SCALE_FORMATS, ScaleFormat
from shiftcore.hw.floats import scale_layout
from shiftcore.hw.loader import ConstantPlayer, TileLoader, normalized_scale
from shiftcore.sim.pipeline_bench import PipelineJob
from shiftcore.sim.runner import simulate
from shiftcore.tests.hw.bank import SideBySide, pack, run_bank, unpack
from shiftcore.tests.hw.test_product import scale_values

# Rows of one beat and of several; scales and biases that fill beats or leave some of one.
CONFIGS = [
    HardwareConfig(4, 3, 4, 4, "bf16", bus_bits=32),
    HardwareConfig(3, 20, 8, 4, "fp16", bus_bits=64),
    HardwareConfig(2, 9, 5, 4, "e8m0", bus_bits=32),
    HardwareConfig(5, 2, 3, 4, "fp32", bus_bits=256),
    HardwareConfig(1, 7, 6, 4, "fp16", bus_bits=32),
    HardwareConfig(2, 1, 4, 4, "fp32", bus_bits=32),
    HardwareConfig(2, 9, 5, 4, "e8m0", bus_bits=32, control="serial"),
    HardwareConfig(4, 4, 2, 2, "fp16", bus_bits=64, control="serial"),
]
OUTPUTS = ("i__ready", "o_codes", "o_enable", "o_loaded", "o_biased", "o_empty",
           "o_scale", "o_bias")  # fmt: skip


class Normalizer(wiring.Component):
    """The stored code of a scale in the scale units' layout, one cycle later."""

    def __init__(self, form: ScaleFormat):
        self.form = form
        super().__init__(
            {"i_code": In(form.storage_bits), "o": Out(scale_layout(form.significand_bits))}
        )

    def elaborate(self, platform):
        m = Module()
        code = Signal(self.form.storage_bits)
        m.d.comb += code.eq(self.i_code)
        m.d.sync += self.o.eq(normalized_scale(m, code, self.form))
        return m


def test_every_fp16_scale(simulator):
    codes = np.arange(1 << 16)
    codes = codes[codes >> 10 & 31 != 31]
    found = run_bank(Normalizer, FP16, {"i_code": (codes, 16)}, 19, 1, simulator, lanes=16)
    zero = found >> 10 & 255 == 0
    assert np.array_equal(zero, codes & 0x7FFF == 0)
    spec = CONFIGS[1].scale_unit.product
    assert np.array_equal(scale_values(spec, found), FP16.decode(codes).astype(float))


@dataclass
class Tiles:
    """Random tiles, when their beats are offered, and when they are swapped in."""

    config: HardwareConfig
    codes: np.ndarray
    scales: np.ndarray
    biases: np.ndarray
    start: np.ndarray
    accepted: list[np.ndarray]
    begin: list[int]
    takes: np.ndarray

    @classmethod
    def random(cls, config: HardwareConfig, rng: np.random.Generator, prompt: int, slow: int):
        """`prompt` tiles offered and taken as early as possible, then `slow` ones with pauses."""
        count, spec = prompt + slow, config.engine
        limit = 1 << (config.weight_bits - 1)
        form = SCALE_FORMATS[config.scale]
        stored = rng.integers(0, 1 << form.storage_bits, (count, config.cols))
        top = (1 << form.exponent_bits) - 1
        stored[stored >> form.fraction_bits & top == top] = 0
        if not form.subnormals:
            stored[stored >> form.fraction_bits & top == 0] = 0
        start = rng.random(count) < 0.5
        accepted, begin, takes = [], [], []
        free = 4
        for k in range(count):
            beats = spec.load_cycles(bool(start[k]))
            pauses = rng.integers(0, 3, beats) if k >= prompt else np.zeros(beats, np.int64)
            times = free + np.cumsum(pauses) + np.arange(beats)
            # A first beat may be offered early; it goes in when the tile before is swapped in.
            early = int(rng.integers(0, 5)) if pauses[0] == 0 else 0
            begin.append(max(int(times[0]) - early, int(accepted[-1][-1]) + 1) if k else free)
            accepted.append(times)
            take = int(times[-1]) + 1 + (int(rng.integers(0, 20)) if k >= prompt else 0)
            if takes:
                take = max(take, takes[-1] + spec.pass_cycles)
            takes.append(take)
            free = take
        return cls(
            config,
            rng.integers(-limit, limit, (count, config.rows, config.cols)).astype(np.int8),
            form.decode(stored),
            FLOAT32.round(rng.normal(size=(count, config.cols)) * 2.0 ** rng.integers(-100, 100)),
            start,
            accepted,
            begin,
            np.array(takes),
        )

    @property
    def plays(self) -> tuple[np.ndarray, np.ndarray]:
        """When the scales of each tile, and the biases of those that have them, are played."""
        spec = self.config.engine
        port = self.takes + 1
        return port + spec.scale_play, (port + spec.bias_play)[self.start]

    @property
    def length(self) -> int:
        return int(self.takes[-1]) + self.config.rows + self.config.cols + 30

    def inputs(self, prefix: str, length: int) -> dict[str, list[int]]:
        valid, payload = [0] * length, [0] * length
        for k, accepted in enumerate(self.accepted):
            words = self.config.tile.pack(
                self.codes[k], self.scales[k], self.biases[k] if self.start[k] else None
            )
            words[-1] |= 1 << self.config.bus_bits
            assert len(words) == self.config.engine.load_cycles(bool(self.start[k]))
            for word, t in zip(words, accepted.tolist(), strict=True):
                valid[t], payload[t] = 1, word
            for t in range(self.begin[k], int(accepted[0])):
                valid[t], payload[t] = 1, words[0]
        moments = {
            "i_take": self.takes,
            "i_play_scale": self.plays[0],
            "i_play_bias": self.plays[1],
        }
        pulses = {name: np.zeros(length, np.int64) for name in moments}
        for name, times in moments.items():
            pulses[name][times] = 1
        return {
            f"{prefix}i__valid": valid,
            f"{prefix}i__payload": payload,
            **{prefix + name: values.tolist() for name, values in pulses.items()},
        }


def check(tiles: Tiles, found: dict[str, np.ndarray]) -> None:
    config, spec = tiles.config, tiles.config.engine
    length = len(found["o_loaded"])
    loaded, enable = np.zeros(length, bool), np.zeros(length, np.int64)
    empty = np.ones(length, bool)
    for k, accepted in enumerate(tiles.accepted):
        loaded[accepted[-1] + 1 : tiles.takes[k] + 1] = True
        empty[accepted[0] + 1 : tiles.takes[k] + 1] = False
        biased = found["o_biased"][accepted[-1] + 1 : tiles.takes[k] + 1]
        assert (biased == tiles.start[k]).all()
        ends = accepted[config.tile.row_beats - 1 :: config.tile.row_beats][: config.rows]
        for index, t in enumerate(ends):
            enable[t + 1] = (1 << (config.rows - index)) - 1
        rows = unpack(found["o_codes"][ends + 1].tolist(), config.weight_bits, config.cols)
        mask = (1 << config.weight_bits) - 1
        assert np.array_equal(rows, tiles.codes[k][::-1].astype(np.int64) & mask), k
    assert np.array_equal(found["o_loaded"] == 1, loaded)
    assert np.array_equal(found["o_empty"] == 1, empty)
    assert np.array_equal(found["o_enable"].astype(np.int64), enable)
    # A tile waits only for the one before; there is always room for its constants.
    take = np.zeros(length, bool)
    take[tiles.takes] = True
    assert np.array_equal(found["i__ready"] == 1, ~loaded | take)

    scale_plays, bias_plays = tiles.plays
    column = np.arange(config.cols)
    scales = found["o_scale"][scale_plays[:, None] + 1 + column].astype(np.int64)
    assert np.array_equal(scale_values(spec.scale_unit.product, scales), tiles.scales.astype(float))
    biases = found["o_bias"][bias_plays[:, None] + 1 + column].astype(np.int64)
    assert np.array_equal(biases, FLOAT32.encode(tiles.biases[tiles.start]).astype(np.int64))


def test_tiles(simulator):
    """A beat a cycle: a tile costs its beats or the players' turn, and only pauses add to it."""
    rng = np.random.default_rng(6)
    prompt = 30
    every = [Tiles.random(config, rng, prompt, 30) for config in CONFIGS]
    length = max(tiles.length for tiles in every)
    inputs, outputs = {}, []
    for k, tiles in enumerate(every):
        inputs |= tiles.inputs(f"u{k}__", length)
        outputs += [f"u{k}__{port}" for port in OUTPUTS]
        costs = [
            max(tiles.config.engine.load_cycles(bool(s)), tiles.config.cols)
            for s in tiles.start[1:prompt]
        ]
        assert np.diff(tiles.takes[:prompt]).tolist() == costs
    answer = simulate(
        SideBySide,
        TileLoader,
        [(config.engine,) for config in CONFIGS],
        bench="pipeline_bench",
        job=PipelineJob(inputs, tuple(outputs)),
        simulator=simulator,
    )
    for k, tiles in enumerate(every):
        check(tiles, {port: np.array(answer[f"u{k}__{port}"], object) for port in OUTPUTS})


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.rows}x{c.cols}-{c.scale}")
def test_load_cycles(config):
    """Beats of a tile: every row, the scales and the biases each start a new one."""
    bits = config.bus_bits
    scale_bits = SCALE_FORMATS[config.scale].storage_bits
    codes = config.rows * -(-config.cols * config.weight_bits // bits)
    scales, biases = -(-config.cols * scale_bits // bits), -(-config.cols * 32 // bits)
    assert config.engine.load_cycles(False) == codes + scales
    assert config.engine.load_cycles(True) == codes + scales + biases


PLAYERS = [
    (5, 16, 32, 2, False), (3, 32, 32, 1, False), (8, 8, 64, 3, False), (1, 32, 64, 2, False),
    (9, 8, 32, 2, False), (4, 8, 32, 3, True), (9, 8, 32, 2, True), (1, 32, 32, 2, True),
]  # fmt: skip


def test_constant_players(simulator):
    """Constants in column order from the cycle after a play; room for as many tiles as promised."""
    rng = np.random.default_rng(7)
    count = 60
    inputs, outputs, expected = {}, [], []
    length = 4000
    for k, (cols, bits, bus_bits, tiles, block) in enumerate(PLAYERS):
        beats = -(-cols // (bus_bits // bits))
        values = rng.integers(0, 1 << bits, (count, cols))
        words = pack(values, bits)
        write, beat, play = (
            [0] * length,
            rng.integers(0, 1 << bus_bits - 1, length).tolist(),
            [0] * length,
        )
        begun, written, ended = np.zeros((3, length), np.int64)
        plays, ends, now = [], [], 3
        for index in range(count):
            # A tile begins when there is room for it, and is played some time after it is complete.
            if index >= tiles:
                now = max(now, ends[index - tiles] + 1)
            now += int(rng.integers(0, 4)) * (index % 3 == 0)
            for part in range(beats):
                write[now], beat[now] = 1, words[index] >> (part * bus_bits) & ((1 << bus_bits) - 1)
                begun[now + 1] += part == 0
                written[now + 1] += 1
                now += 1 + int(rng.integers(0, 2)) * (index % 2)
            turn = max(now + block, plays[-1] + cols if plays else 0) + int(rng.integers(0, 12)) * (
                index % 4 > 1
            )
            play[turn] = 1
            plays.append(turn)
            ends.append(turn + cols - 1)
            ended[turn + cols] += 1
        assert ends[-1] < length - 2
        held = np.cumsum(begun) - np.cumsum(ended)
        space = (held != tiles) | (np.cumsum(written) % beats != 0)
        assert not space.all()
        inputs |= {f"u{k}__i_beat": beat, f"u{k}__i_write": write, f"u{k}__i_play": play}
        outputs += [f"u{k}__o", f"u{k}__o_space"]
        expected.append((values, np.array(plays), space))
    answer = simulate(
        SideBySide,
        ConstantPlayer,
        PLAYERS,
        bench="pipeline_bench",
        job=PipelineJob(inputs, tuple(outputs)),
        simulator=simulator,
    )
    for k, (values, plays, space) in enumerate(expected):
        played = np.array(answer[f"u{k}__o"])[plays[:, None] + 1 + np.arange(values.shape[1])]
        assert np.array_equal(played, values), PLAYERS[k]
        assert np.array_equal(np.array(answer[f"u{k}__o_space"]) == 1, space), PLAYERS[k]
