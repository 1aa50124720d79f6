"""The systolic array: tiles exchanged under a stream of pixels that never pauses."""

from dataclasses import dataclass

import numpy as np
import pytest

from shiftcore.golden.array import ArraySpec
from shiftcore.golden.bfp import code_limits
from shiftcore.hw.array import SystolicArray
from shiftcore.sim.pipeline_bench import PipelineJob
from shiftcore.sim.runner import simulate
from shiftcore.tests.hw.bank import pack, signed, simulated, unpack

SPECS = [
    ArraySpec(4, 3, 4, 4),
    ArraySpec(3, 5, 3, 8, "dsp"),
    ArraySpec(1, 2, 8, 2),
    ArraySpec(4, 2, 4, 4, "ecp5-carry"),
    ArraySpec(4, 2, 2, 4, "ecp5-ternary"),
    ArraySpec(3, 7, 2, 4, "packed18"),  # 3, 3 and 1
    ArraySpec(2, 5, 8, 8, "packed25"),  # 2, 2 and 1
    ArraySpec(3, 5, 8, 7, "ice40-dual"),  # 2, 2 and 1; sums of the last row are too wide
]


@dataclass
class Schedule:
    """What the array gets in each cycle, and the tile that each pixel should meet."""

    lanes: np.ndarray
    swap: np.ndarray
    codes: np.ndarray
    enable: np.ndarray
    tile: np.ndarray
    tiles: np.ndarray


def schedule(spec: ArraySpec, rng: np.random.Generator, tiles: int, gaps: bool) -> Schedule:
    """Random pixels in every cycle and random tiles: a new one every R cycles, or with `gaps`."""
    rows, cols = spec.rows, spec.cols
    limit = 1 << (spec.weight_bits - 1)
    weights = rng.integers(spec.least_code, limit, (tiles, rows, cols))
    weights[rng.random(tiles) < 0.1] = spec.least_code
    moments, swaps, now = [], [], 0
    for _ in range(tiles):
        times = now + np.arange(rows)
        if gaps:
            times = times + np.cumsum(rng.integers(0, 3, rows))
        moments.append(times)
        now = int(times[-1]) + 1 + (int(rng.integers(0, 5)) if gaps else 0)
        # The next tile's first row may come in the cycle of the swap, not before.
        swaps.append(now)
    length = now + rows + cols + 4
    codes = rng.integers(-limit, limit, (length, cols))
    enable, swap = np.zeros(length, np.int64), np.zeros(length, np.int64)
    for index, times in enumerate(moments):
        for k, t in enumerate(times):
            codes[t] = weights[index, rows - 1 - k]
            enable[t] = (1 << (rows - k)) - 1
    swap[swaps] = 1
    is_signed = rng.random(length) < 0.5
    low, high = code_limits(spec.act_bits, True)
    lanes = np.where(
        is_signed[:, None],
        rng.integers(low, high + 1, (length, rows)),
        rng.integers(0, 1 << spec.act_bits, (length, rows)),
    )
    kind = rng.random(length)
    lanes[kind < 0.1] = (1 << spec.act_bits) - 1
    lanes[kind > 0.9] = low
    return Schedule(lanes, swap, codes, enable, np.cumsum(swap) - 1, weights)


@pytest.mark.parametrize(
    "spec", SPECS, ids=lambda s: f"{s.rows}x{s.cols}-b{s.weight_bits}m{s.act_bits}-{s.multiplier}"
)
def test_tiles_without_a_bubble(spec, simulator):
    if not simulated(spec):
        pytest.skip(f"no cells of {spec.family}")
    rng = np.random.default_rng(spec.rows)
    parts = [schedule(spec, rng, 60, gaps=False), schedule(spec, rng, 40, gaps=True)]
    # Without gaps a tile has just R pixels, and the rows of the next one come in the same cycles.
    starts = np.flatnonzero(parts[0].swap)
    assert np.array_equal(np.diff(starts), np.full(59, spec.rows))
    assert parts[0].enable[starts[:-1]].all()
    inputs = {
        "i_lanes": [w for p in parts for w in pack(p.lanes, spec.operand_bits)],
        "i_swap": [w for p in parts for w in p.swap.tolist()],
        "i_codes": [w for p in parts for w in pack(p.codes, spec.weight_bits)],
        "i_enable": [w for p in parts for w in p.enable.tolist()],
    }
    job = PipelineJob(inputs, ("o_sums",))
    answer = simulate(SystolicArray, spec, bench="pipeline_bench", job=job, simulator=simulator)
    sums = signed(unpack(answer["o_sums"], spec.sum_bits, spec.cols), spec.sum_bits)
    assert spec.latency == spec.rows + 2
    begin = 0
    for part in parts:
        pixels = np.flatnonzero(part.tile >= 0)
        pixels = pixels[pixels < len(part.swap) - spec.latency - spec.cols]
        exact = np.concatenate(
            [spec.compute(part.tiles[part.tile[t]], part.lanes[t][None]) for t in pixels]
        )
        assert len(exact) > 60 * spec.rows // 2
        for column in range(spec.cols):
            found = sums[begin + pixels + spec.latency + column, column]
            assert np.array_equal(found, exact[:, column]), column
        begin += len(part.swap)


def test_widest_sum_just_fits():
    spec = ArraySpec(16, 1, 4, 4)
    extreme = spec.compute(np.full((16, 1), -8, np.int8), np.full((1, 16), 15, np.int16))
    assert extreme == -16 * 8 * 15
    assert -(1 << (spec.sum_bits - 1)) <= extreme.item() < -(1 << (spec.sum_bits - 2))
