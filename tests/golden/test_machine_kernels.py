"""The machine's compiled arithmetic against the specs, value for value."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shiftcore.golden import machine_kernels as kernels
from shiftcore.golden.array import ArraySpec, TileFormat
from shiftcore.golden.bfp import unit_exponent
from shiftcore.golden.floats import FLOAT32, SCALE_FORMATS
from shiftcore.golden.program import pack_words, unpack_words
from shiftcore.golden.requantizer import RequantizerSpec
from shiftcore.golden.scale_unit import AddSpec, ProductSpec


def numbers(rng: np.random.Generator, count: int) -> np.ndarray:
    """Float32 numbers, many of them at the ends of the range or near each other."""
    fields = rng.choice([0, 1, 2, 3, 24, 25, 126, 127, 128, 150, 151, 252, 253, 254], count)
    fields = np.where(rng.random(count) < 0.3, rng.integers(0, 255, count), fields)
    edges = [0, 1, 2, 0x3FFFFF, 0x400000, 0x400001, 0x7FFFFE, 0x7FFFFF]
    fractions = np.where(
        rng.random(count) < 0.5, rng.choice(edges, count), rng.integers(0, 1 << 23, count)
    )
    return FLOAT32.decode(rng.integers(0, 2, count) << 31 | fields << 23 | fractions)


@given(st.integers(0, 2**32))
def test_sums(seed: int):
    rng = np.random.default_rng(seed)
    a, b = numbers(rng, 2000), numbers(rng, 2000)
    near = rng.random(2000) < 0.3
    b = np.where(near, -a + rng.choice([-1, 0, 1], 2000) * np.abs(a) * np.float32(2.0**-22), b)
    b = FLOAT32.round(b)
    found, expected = kernels.sums(a, b), AddSpec().compute(a, b)
    assert np.array_equal(found.view(np.uint32), expected.view(np.uint32))


@given(st.integers(0, 2**32), st.sampled_from(list(SCALE_FORMATS)), st.booleans())
def test_products(seed: int, name: str, signed: bool):
    rng = np.random.default_rng(seed)
    form, count, m = SCALE_FORMATS[name], 2000, int(rng.integers(2, 9))
    bits = int(rng.integers(4, 25))
    limit = (1 << (bits - 1)) - 1
    sums = rng.integers(-limit, limit + 1, count)
    sums = np.where(rng.random(count) < 0.2, rng.choice([-limit, -1, 0, 1, limit], count), sums)
    codes = rng.integers(0, 1 << form.storage_bits, count)
    biased = codes >> form.fraction_bits & ((1 << form.exponent_bits) - 1)
    codes = np.where(biased == (1 << form.exponent_bits) - 1, 0, codes)
    scales = form.decode(codes)
    # Products around the smallest and the largest number, and anywhere.
    fields = rng.integers(0, 256, count)
    with np.errstate(divide="ignore"):
        size = np.log2(np.abs(sums * scales.astype(np.float64))) + unit_exponent(m, signed)
    edge = rng.choice([-127, -126, -125, 127, 128], count) - np.floor(
        np.where(np.isfinite(size), size, 0)
    )
    fields = np.where(rng.random(count) < 0.7, np.clip(edge, 0, 255), fields).astype(np.int64)
    spec = ProductSpec(bits, form.significand_bits, m)
    expected = spec.compute(sums, scales, fields, signed)
    units = np.ldexp(1.0, fields + unit_exponent(m, signed))
    found = kernels.products(sums.astype(np.float32), scales.astype(np.float64), units)
    assert np.array_equal(found.view(np.uint32), expected.view(np.uint32))


def test_products_at_the_midpoint_below_the_smallest_number():
    # 2^-126 (1 - 2^-25) = 31 * 1082401 * 2^-151 is a tie of unbounded rounding and goes to the even
    # 2^-126. What is below becomes 0, though IEEE would round it up to the same number.
    totals = np.array([31, -31, 31, -31, 2**24 - 1, 1, -1], np.float32)
    scales = np.array([1082401, 1082401, 8659207, 8659207, 1, 1, 1], np.float64)
    units = np.ldexp(1.0, [-151, -151, -154, -154, -150, -126, -127])
    expected = ProductSpec(25, 24, 4).form.round(totals.astype(np.float64) * scales * units)
    found = kernels.products(totals, scales, units)
    assert np.array_equal(found.view(np.uint32), expected.view(np.uint32))
    smallest = 2.0**-126
    assert found.tolist() == [smallest, -smallest, 0, 0, 0, smallest, 0]
    assert not np.signbit(found[3])


@given(st.integers(0, 2**32))
def test_requantize(seed: int):
    rng = np.random.default_rng(seed)
    block, cols, bits = int(rng.integers(1, 9)), int(rng.integers(1, 20)), int(rng.integers(2, 9))
    signed, truncate = bool(rng.integers(2)), bool(rng.integers(2))
    spec = RequantizerSpec(block, cols, bits, "truncate" if truncate else "nearest")
    beats, groups = spec.beats_per_block, spec.blocks_per_beat
    rows = numbers(rng, 12 * beats * cols).reshape(12, beats, cols)
    if rng.random() < 0.7:  # near each other, so that codes are not all 0
        shape = rows.shape
        rows = FLOAT32.round(rng.integers(-64, 65, shape) * 2.0 ** rng.integers(-4, 4, shape))
    if beats > 1:
        rows.reshape(12, -1)[:, block:] = 0
    accumulators = np.zeros((2, 12 * beats, cols), np.float32)
    order = rng.permutation(12 * beats).astype(np.int32).reshape(12, beats)
    accumulators[1, order] = rows
    codes, exponents = np.empty((2, 12, block), np.uint8), np.empty((2, 12), np.uint8)
    select = int(rng.integers(groups))
    low, high = np.float32(-FLOAT32.largest), np.float32(FLOAT32.largest)
    arguments = (select, low, high, signed, bits, truncate, 127, codes, exponents)
    assert kernels.requantize(accumulators, order, *arguments)
    expected = spec.compute(rows.reshape(12 * beats, cols), signed)
    assert np.array_equal(codes[1], (expected[0][select::groups] & ((1 << bits) - 1)))
    assert np.array_equal(exponents[1], expected[1][select::groups])
    assert not codes[0].any()
    assert not exponents[0].any()
    if beats > 1 and beats * cols > block:
        accumulators[1, order[5, -1], -1] = 1
        assert not kernels.requantize(accumulators, order, *arguments)


@given(st.integers(0, 2**32))
def test_words_in_memory(seed: int):
    rng = np.random.default_rng(seed)
    block, bits, beat = int(rng.integers(1, 20)), int(rng.integers(2, 9)), int(rng.choice([4, 8]))
    codes = rng.integers(0, 1 << bits, (2, 5, block)).astype(np.uint8)
    exponents = rng.integers(0, 256, (2, 5)).astype(np.uint8)
    expected = np.stack(
        [pack_words(c, e, bits, beat) for c, e in zip(codes, exponents, strict=True)]
    )
    size = expected.shape[2]
    memory = rng.integers(0, 256, (2, 6 * size)).astype(np.uint8)
    where = rng.permutation(6)[:5]
    before = memory.copy()
    kernels.pack(codes, exponents, bits, where.astype(np.int64) * size, memory, size)
    assert np.array_equal(memory.reshape(2, 6, size)[:, where], expected)
    (rest,) = set(range(6)) - set(where.tolist())
    assert np.array_equal(memory.reshape(2, 6, size)[:, rest], before.reshape(2, 6, size)[:, rest])

    to = rng.permutation(9)[:5].astype(np.int32)
    found, fields = np.zeros((2, 9, block), np.uint8), np.zeros((2, 9), np.uint8)
    kernels.unpack(memory, where.astype(np.int64) * size, bits, False, 0, to, found, fields)
    assert np.array_equal(found[:, to], codes)
    assert np.array_equal(fields[:, to], exponents)
    plain, _ = unpack_words(expected[0], block, bits, False)
    assert np.array_equal(plain, codes[0])

    # A constant's memory is there once for all images; the exponent is fixed.
    short = pack_words(codes[0], None, bits, beat)
    offsets = np.arange(5, dtype=np.int64) * short.shape[1]
    kernels.unpack(short.reshape(1, -1), offsets, bits, True, 77, to, found, fields)
    assert np.array_equal(found[:, to], np.stack([codes[0]] * 2))
    assert (fields[:, to] == 77).all()


@given(st.integers(0, 2**32), st.sampled_from(list(SCALE_FORMATS)), st.booleans())
def test_tiles_are_read_back(seed: int, name: str, start: bool):
    rng = np.random.default_rng(seed)
    rows, cols, b = (int(n) for n in rng.integers((1, 1, 2), (20, 20, 9)))
    form = SCALE_FORMATS[name]
    tile = TileFormat(ArraySpec(rows, cols, b, 4), form, int(rng.choice([32, 64, 128, 256])))
    limit = 1 << (b - 1)
    codes = rng.integers(-limit, limit, (3, rows, cols)).astype(np.int8)
    scales = form.round(rng.uniform(-form.signed, 1, (3, cols)) * 2.0 ** rng.integers(-30, 9))
    biases = FLOAT32.round(rng.normal(size=(3, cols)))
    data = [
        b"".join(
            beat.to_bytes(tile.bus_bits // 8, "little")
            for beat in tile.pack(codes[k], scales[k], biases[k] if start else None)
        )
        for k in range(3)
    ]
    found = tile.unpack(np.stack([np.frombuffer(each, np.uint8) for each in data]), start)
    assert np.array_equal(found[0], codes)
    assert np.array_equal(found[1], scales)
    if start:
        assert found[2] is not None
        assert np.array_equal(found[2], biases)
    else:
        assert found[2] is None


def test_what_is_no_tile_is_refused():
    tile = TileFormat(ArraySpec(2, 2, 4, 4), SCALE_FORMATS["bf16"], 32)
    with pytest.raises(ValueError, match=r"^tiles must have \(n, 12\) bytes, not \(1, 16\)$"):
        tile.unpack(np.zeros((1, 16), np.uint8), False)
    with pytest.raises(ValueError, match=r"^an all-ones exponent field is no bf16 scale$"):
        tile.unpack(np.full((1, 12), 255, np.uint8), False)
