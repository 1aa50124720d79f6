"""The issue stage: what waits, for how long, and what never does."""

from dataclasses import dataclass

import numpy as np
import pytest

from shiftcore.golden.bfp import code_limits
from shiftcore.golden.config import HardwareConfig
from shiftcore.golden.engine import EngineSpec
from shiftcore.hw.issue import PixelIssue
from shiftcore.sim.pipeline_bench import PipelineJob
from shiftcore.sim.runner import simulate
from shiftcore.tests.hw.bank import SideBySide, pack, signed, unpack

CONFIGS = [
    HardwareConfig(3, 5, 4, 3, accumulator_depth=16),
    HardwareConfig(2, 1, 4, 4, "fp32", accumulator_depth=5),
    HardwareConfig(1, 20, 4, 2, accumulator_depth=9),
]
WAVE = ("first", "start", "maximum", "keep", "signed")
FLAGS = ("final", *WAVE)
OUTPUTS = (
    "i__ready", "o_take", "o_lanes", "o_wave", "o_busy", "o_retired", "o_held", "o_start",
    "o_starved", "o_hazard",
)  # fmt: skip


@dataclass
class Pixels:
    """(n,) fields of pixels, and from which cycle on each is offered."""

    spec: EngineSpec
    fields: dict[str, np.ndarray]
    lanes: np.ndarray
    offered: np.ndarray

    @property
    def count(self) -> int:
        return len(self.offered)

    def payloads(self) -> list[int]:
        low = sum(self.fields[name] << k for k, name in enumerate(FLAGS))
        low = low | self.fields["exponent"] << len(FLAGS)
        low = low | self.fields["address"] << len(FLAGS) + 8
        lanes = pack(self.lanes, self.spec.array.act_bits)
        above = len(FLAGS) + 8 + self.spec.scale_unit.address_bits
        return [a | b << above for a, b in zip(low.tolist(), lanes, strict=True)]

    def times(self, loaded: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Cycles in which each pixel is accepted and issued, by the rules of the docstring."""
        accepted, issued = [], []
        last_use: dict[int, int] = {}
        take = -(10**6)
        for k in range(self.count):
            pixel = {name: int(values[k]) for name, values in self.fields.items()}
            # There is place for one pixel, which is free in the cycle in which that is issued.
            accept = max(
                int(self.offered[k]), *(issued[-1:] or [0]), *[a + 1 for a in accepted[-1:]]
            )
            issue = accept + 1
            if not pixel["start"] and pixel["address"] in last_use:
                issue = max(issue, last_use[pixel["address"]] + self.spec.scale_unit.revisit)
            if pixel["first"]:
                issue = max(issue, take + self.spec.pass_cycles)
                issue += int(np.argmax(loaded[issue:]))
                assert loaded[issue]
                take = issue
            last_use[pixel["address"]] = issue
            accepted.append(accept)
            issued.append(issue)
        return np.array(accepted), np.array(issued)


def random_pixels(spec: EngineSpec, rng: np.random.Generator, count: int) -> Pixels:
    """Pixels of random passes; addresses come again after a random number of pixels."""
    depth = spec.scale_unit.depth
    address = rng.integers(0, depth, count)
    for k in range(count):
        if rng.random() < 0.5:
            address[k] = address[max(k - int(rng.integers(1, spec.scale_unit.revisit + 3)), 0)]
    fields = {name: (rng.random(count) < 0.3).astype(np.int64) for name in FLAGS}
    fields["first"] = (rng.random(count) < 0.15).astype(np.int64)
    # Runs without a revisit are issued back to back.
    runs = np.arange(count) // 50 % 2 == 0
    address = np.where(runs, np.arange(count) % depth, address)
    fields["start"] = np.where(runs, 1, fields["start"])
    fields |= {"address": address, "exponent": rng.integers(0, 256, count)}
    lanes = np.empty((count, spec.array.rows), np.int64)
    for flag in (0, 1):
        low, high = code_limits(spec.array.act_bits, bool(flag))
        chosen = fields["signed"] == flag
        lanes[chosen] = rng.integers(low, high + 1, (chosen.sum(), spec.array.rows))
    # Offered at once, or with pauses.
    pause = np.where(np.arange(count) // 100 % 2, rng.integers(0, 6, count), 0)
    return Pixels(spec, fields, lanes, 3 + np.cumsum(pause))


def same_address(spec: EngineSpec) -> Pixels:
    """For every d up to `revisit` + 1 two pixels of one address, offered d cycles apart.

    Between them others, of other addresses, come back to back or not at all.
    """
    rows, offered = [], []
    now = 20
    for busy in (False, True):
        for d in range(1, spec.scale_unit.revisit + 2):
            rows.append((0, 0))
            offered.append(now)
            for k in range(1, d if busy else 1):
                rows.append((1 + k % (spec.scale_unit.depth - 1), 1))
                offered.append(now + k)
            rows.append((0, 0))
            offered.append(now + d)
            now += d + 3 * spec.scale_unit.revisit
    address, start = np.array(rows).T
    zero = np.zeros(len(rows), np.int64)
    fields = dict.fromkeys((*FLAGS, "exponent"), zero) | {"address": address, "start": start}
    lanes = np.zeros((len(rows), spec.array.rows), np.int64)
    return Pixels(spec, fields, lanes, np.array(offered))


def run(pixels: list[Pixels], loaded: np.ndarray, simulator) -> list[dict[str, np.ndarray]]:
    """The ports in each cycle, when pixels are offered and held as their model says."""
    length = len(loaded)
    inputs, outputs = {}, []
    for k, each in enumerate(pixels):
        accepted, _ = each.times(loaded)
        begin = np.maximum(each.offered, np.r_[0, accepted[:-1] + 1])
        valid, payload = [0] * length, [0] * length
        words = each.payloads()
        for index in range(each.count):
            for t in range(begin[index], accepted[index] + 1):
                valid[t], payload[t] = 1, words[index]
        inputs |= {f"u{k}__i__valid": valid, f"u{k}__i__payload": payload}
        inputs[f"u{k}__i_loaded"] = loaded.astype(np.int64).tolist()
        outputs += [f"u{k}__{port}" for port in OUTPUTS]
    answer = simulate(
        SideBySide,
        PixelIssue,
        [(each.spec,) for each in pixels],
        bench="pipeline_bench",
        job=PipelineJob(inputs, tuple(outputs)),
        simulator=simulator,
    )
    return [
        {port: np.array(answer[f"u{k}__{port}"], object) for port in OUTPUTS}
        for k in range(len(pixels))
    ]


def check(pixels: Pixels, loaded: np.ndarray, found: dict[str, np.ndarray]) -> None:
    """Compare every port in every cycle with what the model says."""
    spec, fields = pixels.spec, pixels.fields
    accepted, issued = pixels.times(loaded)
    length = len(loaded)
    cycles = np.arange(length)
    is_held = np.zeros(length, bool)
    for a, i in zip(accepted, issued, strict=True):
        is_held[a + 1 : i + 1] = True
    issues = np.zeros(length, bool)
    issues[issued] = True
    assert np.array_equal(found["i__ready"] == 1, ~is_held | issues)
    assert np.array_equal(np.flatnonzero(found["o_take"] == 1), issued[fields["first"] == 1])

    wave = found["o_wave"].astype(np.int64)
    assert np.array_equal(np.flatnonzero(wave & 1), issued + 1)
    at = wave[issued + 1] >> 1
    for position, name in enumerate(WAVE):
        assert np.array_equal(at >> position & 1, fields[name]), name
    assert np.array_equal(at >> len(WAVE) & 255, fields["exponent"])
    assert np.array_equal(at >> len(WAVE) + 8, fields["address"])
    assert not (wave[~np.r_[False, issues[:-1]]] >> 1 & 1).any(), "first without a pixel"
    width = spec.array.operand_bits
    lanes = unpack(found["o_lanes"][issued + 1].tolist(), width, spec.array.rows)
    assert np.array_equal(signed(lanes, width), pixels.lanes)

    assert np.array_equal(found["o_held"] == 1, is_held)
    starved = np.zeros(length, bool)
    for k, (a, i) in enumerate(zip(accepted, issued, strict=True)):
        assert (found["o_start"][a + 1 : i + 1] == fields["start"][k]).all(), k
        if fields["first"][k]:
            starved[a + 1 : i + 1] = ~loaded[a + 1 : i + 1]
    assert np.array_equal(found["o_starved"] == 1, starved)
    assert np.array_equal(found["o_hazard"] == 1, is_held & ~issues & ~starved)
    retired = issued[fields["final"] == 1] + spec.retire_cycles
    assert np.array_equal(np.flatnonzero(found["o_retired"] == 1), retired[retired < length])

    latest = np.maximum.accumulate(np.where(issues, cycles, -(10**6)))
    assert np.array_equal(found["o_busy"] == 1, is_held | (cycles - latest < spec.retire_cycles))


def test_random_passes(simulator):
    """Hazards, waits for tiles and for the end of the scales, pauses: every cycle as the model."""
    rng = np.random.default_rng(8)
    pixels = [random_pixels(config.engine, rng, 600) for config in CONFIGS]
    loaded = np.r_[rng.random(6000) < 0.4, np.ones(6000, bool)]
    ends = [each.times(loaded)[1][-1] + each.spec.retire_cycles + 5 for each in pixels]
    loaded = loaded[: max(ends)]
    for each, found in zip(pixels, run(pixels, loaded, simulator), strict=True):
        check(each, loaded, found)
        accepted, issued = each.times(loaded)
        # Everything that can delay a pixel did, and most were not delayed.
        waits = issued - accepted - 1
        assert (waits == 0).sum() > 200
        first = each.fields["first"] == 1
        assert (waits[first] > 0).any()
        assert (waits[~first] > 0).any()
        assert (np.diff(issued) == 1).sum() > 100
        takes = np.diff(issued[first])
        assert takes.min() == each.spec.pass_cycles or each.spec.pass_cycles == 1


def test_one_address_at_every_distance(simulator):
    """A revisit waits for exactly the missing cycles, whatever is issued in between."""
    pixels = [same_address(config.engine) for config in CONFIGS]
    length = max(int(each.offered[-1]) for each in pixels) + 150
    loaded = np.zeros(length, bool)
    for each, found in zip(pixels, run(pixels, loaded, simulator), strict=True):
        check(each, loaded, found)
        issued = np.flatnonzero(found["o_wave"].astype(np.int64) & 1)
        issued = issued[each.fields["start"] == 0]
        revisit = each.spec.scale_unit.revisit
        expected = [max(d, revisit) for d in range(1, revisit + 2)] * 2
        assert np.diff(issued)[::2].tolist() == expected


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.rows}x{c.cols}")
def test_formulas(config):
    spec = config.engine
    assert spec.pass_cycles == config.cols
    feet = config.rows + 2 + config.cols - 1
    assert spec.retire_cycles == 1 + feet + spec.scale_unit.write_stage + 1
