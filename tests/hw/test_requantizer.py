"""The requantizer: every shape of block and row, numbers at every edge, with and without stalls."""

import numpy as np
import pytest

from shiftcore.golden.fixed import FixedFormat
from shiftcore.golden.floats import FLOAT32
from shiftcore.golden.requantizer import RequantizerSpec
from shiftcore.hw.requantizer import Requantizer
from shiftcore.sim.runner import simulate
from shiftcore.sim.stream_bench import StreamAnswer, StreamJob
from shiftcore.tests.hw.bank import SideBySide, signed, unpack

# Rows narrower than a block (dividing it or not), equal, wider (a multiple or not).
NARROW = [
    RequantizerSpec(8, 4, 4),
    RequantizerSpec(8, 3, 8, "truncate"),
    RequantizerSpec(5, 2, 2),
    RequantizerSpec(6, 1, 3),
]
WIDE = [
    RequantizerSpec(6, 6, 4),
    RequantizerSpec(3, 8, 8),
    RequantizerSpec(4, 8, 2, "truncate"),
    RequantizerSpec(1, 3, 5),
]
FIXED = [
    RequantizerSpec(8, 4, 4, form=FixedFormat(32)),
    RequantizerSpec(5, 2, 2, "truncate", FixedFormat(20)),
    RequantizerSpec(6, 6, 8, form=FixedFormat(40)),
    RequantizerSpec(3, 8, 3, form=FixedFormat(33)),
    RequantizerSpec(1, 3, 5, "truncate", FixedFormat(24)),
]
FIELD = 101
"""exponent field of the fixed-point number 1"""


def fixed_rows(spec: RequantizerSpec, rng: np.random.Generator, beats: int) -> np.ndarray:
    """(beats, cols) whole numbers: zeros, ties, powers of two, ends, wide and narrow spreads."""
    form, per_block = spec.form, spec.beats_per_block
    shape = (beats // per_block, per_block, spec.cols)
    one = (shape[0], 1, 1)
    rows = rng.integers(form.low, form.high + 1, shape) >> rng.integers(0, form.bits, one)
    kind = rng.integers(0, 6, one)
    sign = rng.choice([-1, 1], shape)
    place = rng.integers(0, form.bits - spec.act_bits - 3, one)
    ties = sign * rng.integers(0, 4 << spec.act_bits, shape) << place
    rows = np.where(kind == 1, ties, rows)
    rows = np.where(kind == 2, rows >> rng.integers(0, form.bits, shape), rows)
    powers = -(1 << rng.integers(0, form.bits, shape)) + rng.integers(0, 2, shape)
    rows = np.where(kind == 3, np.where(rng.random(shape) < 0.3, powers, rows >> 8), rows)
    rows = np.where(kind == 4, np.where(rng.random(shape) < 0.2, rows, 0), rows)
    rows = np.where(kind == 5, np.where(rng.random(one) < 0.5, 0, -np.abs(rows)), rows)
    ends = rng.random(shape)
    rows = np.where(ends < 0.01, form.low, np.where(ends > 0.99, form.high, rows))
    rows = np.clip(rows, form.low, form.high)
    if spec.cols < spec.block:
        flat = rows.reshape(shape[0], -1)
        flat[:, spec.block :] = 0
        rows = flat.reshape(shape)
    return rows.reshape(-1, spec.cols).astype(np.float64)


def adversarial_rows(spec: RequantizerSpec, rng: np.random.Generator, beats: int) -> np.ndarray:
    """(beats, cols) float32: zeros, ties, saturation, wide and narrow exponent spreads."""
    if isinstance(spec.form, FixedFormat):
        return fixed_rows(spec, rng, beats)
    per_block = spec.beats_per_block
    rows = np.empty((beats // per_block, per_block, spec.cols))
    shape = rows.shape
    kind = rng.integers(0, 7, (shape[0], 1, 1))
    sign = rng.choice([-1.0, 1.0], shape)
    rows[:] = rng.normal(size=shape) * 2.0 ** rng.integers(-20, 20, (shape[0], 1, 1))
    # Multiples of half a unit of the last place: ties, and the first value that saturates.
    steps = rng.integers(0, 4 << spec.act_bits, shape)
    rows = np.where(kind == 1, sign * steps * 2.0 ** rng.integers(-60, 60, (shape[0], 1, 1)), rows)
    spread = 2.0 ** rng.integers(-2 - spec.act_bits, 1, shape)
    rows = np.where(kind == 2, sign * rng.integers(1, 512, shape) * spread, rows)
    near = sign * (2 - 2.0 ** -rng.integers(1, 24, shape)) * 2.0 ** rng.integers(-3, 1, shape)
    rows = np.where(kind == 3, near, rows)
    rows = np.where(
        kind == 4, sign * (1 + rng.random(shape)) * 2.0 ** rng.integers(-126, 127, shape), rows
    )
    rows = np.where(kind == 5, np.where(rng.random(shape) < 0.2, rows, 0), rows)
    rows = np.where(kind == 6, np.where(rng.random((shape[0], 1, 1)) < 0.5, 0, -np.abs(rows)), rows)
    ends = rng.random(shape)
    rows = np.where(ends < 0.01, FLOAT32.largest * sign, rows)
    rows = np.where(ends > 0.99, FLOAT32.smallest * sign, rows)
    if spec.cols < spec.block:
        flat = rows.reshape(shape[0], -1)
        flat[:, spec.block :] = 0
        rows = flat.reshape(shape)
    return FLOAT32.round(rows.reshape(-1, spec.cols))


def payloads(spec: RequantizerSpec, rows: np.ndarray, is_signed: np.ndarray) -> list[int]:
    """Rows as the stream carries them; `is_signed` has one entry per row."""
    last = (np.arange(len(rows)) + 1) % spec.beats_per_block == 0
    words, width = [], spec.form.storage_bits
    if isinstance(spec.form, FixedFormat):
        fields = rows.astype(np.int64) & ((1 << width) - 1)
    else:
        fields = FLOAT32.encode(rows)
    for row, end, flag in zip(fields.tolist(), last, is_signed, strict=True):
        word = int(end) | int(flag) << 1
        for lane, value in enumerate(row):
            word |= value << (2 + width * lane)
        words.append(word)
    return words


def blocks(spec: RequantizerSpec, words: list[int], is_signed: np.ndarray):
    """Codes and exponent fields of what the stream carried."""
    width = 8 + spec.act_bits * spec.block
    single = [
        word >> (k * width) & ((1 << width) - 1)
        for word in words
        for k in range(spec.blocks_per_beat)
    ]
    exponents = np.array([word & 255 for word in single])
    codes = unpack([word >> 8 for word in single], spec.act_bits, spec.block)
    flag = np.repeat(is_signed, spec.blocks_per_beat)[:, None]
    return np.where(flag, signed(codes, spec.act_bits), codes), exponents


def run(specs, rows, flags, stall: float, simulator) -> StreamAnswer:
    job = StreamJob(
        {f"u{k}__i": payloads(s, rows[k], flags[k]) for k, s in enumerate(specs)},
        {f"u{k}__o": len(rows[k]) // s.beats_per_block for k, s in enumerate(specs)},
        stall=stall,
        constants={
            f"u{k}__i_field": FIELD for k, s in enumerate(specs) if isinstance(s.form, FixedFormat)
        },
    )
    return simulate(
        SideBySide,
        Requantizer,
        [(spec,) for spec in specs],
        bench="stream_bench",
        job=job,
        simulator=simulator,
    )


@pytest.mark.parametrize("stall", [0, 0.4])
@pytest.mark.parametrize("specs", [NARROW, WIDE, FIXED], ids=["narrow", "wide", "fixed"])
def test_blocks(specs, stall, simulator):
    """Bit for bit; without stalls a row goes in every cycle and the latency is the formula's."""
    rng = np.random.default_rng(int(stall * 10))
    rows, flags = [], []
    for spec in specs:
        rows.append(adversarial_rows(spec, rng, 840))
        flags.append(np.repeat(rng.random(840 // spec.beats_per_block) < 0.5, spec.beats_per_block))
    answer = run(specs, rows, flags, stall, simulator)
    for k, spec in enumerate(specs):
        ends = slice(spec.beats_per_block - 1, None, spec.beats_per_block)
        which = flags[k][ends]
        codes, exponents = blocks(spec, answer.payloads[f"u{k}__o"], which)
        per_block = np.repeat(which, spec.blocks_per_beat)
        beats = rows[k].reshape(len(which), -1, spec.cols)
        for flag in (False, True):
            chosen = beats[which == flag].reshape(-1, spec.cols)
            right_codes, right_exponents = spec.compute(
                chosen, flag, FIELD if isinstance(spec.form, FixedFormat) else 127
            )
            assert np.array_equal(codes[per_block == flag], right_codes), spec
            assert np.array_equal(exponents[per_block == flag], right_exponents), spec
        assert answer.held[f"u{k}__o"] == 0
        taken, given = (np.array(answer.cycles[f"u{k}__{port}"]) for port in ("i", "o"))
        if stall == 0:
            assert np.array_equal(np.diff(taken), np.ones(len(taken) - 1))
            assert np.array_equal(given - taken[ends], np.full(len(given), spec.latency)), spec
        else:
            assert (np.diff(taken) > 1).mean() > 0.3


def test_rows_with_something_past_the_block():
    spec = RequantizerSpec(5, 2, 4)
    rows = np.zeros((3, 2), np.float32)
    assert spec.compute(rows, True)[0].shape == (1, 5)
    rows[2, 1] = 1
    with pytest.raises(ValueError, match=r"^lanes past channel 5 of a block must be zero$"):
        spec.compute(rows, True)


def test_lanes_past_the_blocks_of_a_wide_row_are_free():
    spec = RequantizerSpec(3, 8, 4)
    rows = np.zeros((1, 8), np.float32)
    rows[0, 6:] = 1
    codes, exponents = spec.compute(rows, True)
    assert not codes.any()
    assert not exponents.any()
