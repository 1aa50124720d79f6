"""The PASS engine against the positions that the machine model computes."""

import numpy as np
import pytest
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import Out

from shiftcore.golden.config import HardwareConfig
from shiftcore.golden.isa import Loop, Pass, encode
from shiftcore.golden.tickets import positions, sizes_of
from shiftcore.hw.buffer import ActivationBuffer
from shiftcore.hw.passes import PassEngine
from shiftcore.sim.pipeline_bench import PipelineJob
from shiftcore.sim.runner import simulate
from shiftcore.sim.stream_bench import StreamJob
from shiftcore.tests.hw.bank import pack

CONFIG = HardwareConfig(3, 2, 4, 5, accumulator_depth=40, buffer_depth=50)


class PassesAndBuffer(wiring.Component):
    """The PASS engine reading an activation buffer that is written from outside."""

    def __init__(self, config: HardwareConfig):
        self.spec = config.accelerator
        self.passes, self.buffer = PassEngine(self.spec), ActivationBuffer(self.spec)
        passes, buffer = self.passes.signature.members, self.buffer.signature.members
        super().__init__(
            {
                "i": passes["i"],
                "i_write": buffer["i_load"],
                "i_halt": passes["i_halt"],
                "o": passes["o"],
                "o_wrong": Out(2),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.passes = passes = self.passes
        m.submodules.buffer = buffer = self.buffer
        wiring.connect(m, wiring.flipped(self.i), passes.i)
        wiring.connect(m, passes.o, wiring.flipped(self.o))
        wiring.connect(m, wiring.flipped(self.i_write), buffer.i_load)
        m.d.comb += [
            buffer.i_address.eq(passes.o_address),
            passes.i_word.eq(buffer.o_word),
            passes.i_halt.eq(self.i_halt),
            self.o_wrong[0].eq(passes.o_buffer_range),
            self.o_wrong[1].eq(passes.o_accumulator_range),
        ]
        return m


def random_pass(rng: np.random.Generator) -> Pass:
    """Loops whose addresses and coordinates wrap, and are within the memories where they count."""
    while True:
        loops = tuple(
            Loop(
                int(rng.choice([1, 1, 2, 3, 4])),
                *(int(rng.integers(0, 1 << bits)) for bits in (20, 16)),
                *(int(step) for step in rng.integers(-3, 4, 2)),
            )
            if rng.random() < 0.1
            else Loop(
                int(rng.choice([1, 2, 3, 4])),
                *(
                    (int(step) % (1 << bits))
                    for step, bits in zip(rng.integers(-3, 9, 2), (20, 16), strict=True)
                ),
                *(int(step) for step in rng.integers(-2, 3, 2)),
            )
            for _ in range(5)
        )
        item = Pass(
            buffer=int(rng.integers(-9, 40)) % (1 << 20),
            accumulator=int(rng.integers(0, 40)),
            start=int(rng.integers(2)),
            maximum=int(rng.integers(2)),
            signed=int(rng.integers(2)),
            tile_level=int(rng.integers(6)),
            start_level=int(rng.integers(6)),
            y=int(rng.integers(-3, 3)),
            x=int(rng.choice([-2048, 2047, -1, 0, 0, 1])),
            height=int(rng.integers(1, 6)),
            width=int(rng.integers(1, 6)),
            loops=loops,
        )
        where = positions(item, sizes_of(CONFIG))
        fits = where.accumulator.max() < CONFIG.accumulator_depth
        if fits and not (where.buffer[where.inside] >= CONFIG.buffer_depth).any():
            return item


def expected(items: list[Pass], words: np.ndarray) -> list[int]:
    """Payloads of all pixels; `words` (depth, rows + 1) holds codes and the exponent."""
    fields = []
    for item in items:
        where = positions(item, sizes_of(CONFIG))
        turns = np.indices([loop.count for loop in item.loops]).reshape(5, -1)
        inner = turns[item.tile_level :]
        outer = turns[: item.start_level]
        last = np.arange(item.pixels) == item.pixels - 1
        read = np.where(where.inside[:, None], words[np.where(where.inside, where.buffer, 0)], 0)
        flags = (
            last, ~inner.any(axis=0), item.start & ~outer.any(axis=0),
            np.full(item.pixels, item.maximum), item.maximum & ~where.inside,
            np.full(item.pixels, item.signed),
        )  # fmt: skip
        low = sum(np.asarray(flag, np.int64) << k for k, flag in enumerate(flags))
        low = low | read[:, -1] << 6 | where.accumulator << 14
        above = 14 + CONFIG.scale_unit.address_bits
        lanes = pack(read[:, :-1], CONFIG.act_bits)
        fields += [a | b << above for a, b in zip(low.tolist(), lanes, strict=True)]
    return fields


@pytest.mark.parametrize(("stall", "shy"), [(0.0, False), (0.4, False), (0.4, True)])
def test_walks(simulator, stall, shy):
    rng = np.random.default_rng(7)
    items = [random_pass(rng) for _ in range(60)]
    depth = CONFIG.buffer_depth
    words = rng.integers(0, 1 << CONFIG.act_bits, (depth, CONFIG.rows + 1))
    words[:, -1] = rng.integers(0, 256, depth)
    codes = pack(words[:, :-1], CONFIG.act_bits)
    bits = CONFIG.accelerator.space_bits("buffer")
    shift = bits + CONFIG.rows * CONFIG.act_bits
    exponents = words[:, -1].tolist()
    writes = [a | codes[a] << bits | exponents[a] << shift for a in range(depth)]
    instructions = [int.from_bytes(row.tobytes(), "little") for row in encode(items)]
    pixels = expected(items, words)
    assert sum(item.pixels for item in items) == len(pixels) > 2000
    answer = simulate(
        PassesAndBuffer,
        CONFIG,
        bench="stream_bench",
        job=StreamJob(
            {"i_write": writes, "i": instructions},
            {"o": len(pixels)},
            {"i": {0: {"i_write": depth}}},
            stall,
            constants={"i_halt": 0},
            shy=shy,
        ),
        simulator=simulator,
        seed=3,
    )
    assert answer.payloads["o"] == pixels
    assert answer.held == {"o": 0}
    if not stall:
        # Two cycles to the first pixel, then one a cycle, across instructions too.
        sent = np.array(answer.cycles["o"])
        assert sent[0] == answer.cycles["i"][0] + 2
        assert (np.diff(sent) == 1).all()


def watched(simulator, item: Pass, port: str, halt: list[int]) -> list[int]:
    """What `port` is in every cycle, from that on in which `item` is accepted; `halt` by cycle."""
    (payload,) = [int.from_bytes(row.tobytes(), "little") for row in encode([item])]
    cycles = len(halt)
    job = PipelineJob(
        {
            "i__valid": [1] + [0] * (cycles - 1),
            "i__payload": [payload] * cycles,
            "o__ready": [1] * cycles,
            "i_halt": halt,
            "i_write__valid": [0] * cycles,
            "i_write__payload": [0] * cycles,
        },
        (port,),
    )
    answer = simulate(PassesAndBuffer, CONFIG, bench="pipeline_bench", job=job, simulator=simulator)
    return [int(value) for value in answer[port]]


def test_nothing_is_sent_after_a_halt(simulator):
    item = Pass(buffer=0, height=1, width=1, loops=(Loop(3),) * 5)
    # Two cycles to the first pixel; one is on its way when the halt comes.
    found = watched(simulator, item, "o__valid", [0] * 6 + [1] * 6)
    assert found == [0] * 2 + [1] * 5 + [0] * 5


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({}, 0),
        ({"buffer": 49, "x": 0}, 0),
        ({"buffer": 50}, 1),
        ({"buffer": 50, "x": -1}, 0),
        ({"accumulator": 39}, 0),
        ({"accumulator": 40}, 2),
        ({"buffer": (1 << 20) - 1, "accumulator": 65535}, 3),
    ],
)
def test_addresses_beyond_the_memories_are_reported(simulator, change, wrong):
    item = Pass(**({"buffer": 0, "height": 1, "width": 1, "loops": (Loop(),) * 5} | change))
    assert watched(simulator, item, "o_wrong", [0] * 4) == [0, wrong, 0, 0]
