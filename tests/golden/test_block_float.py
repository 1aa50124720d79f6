"""Block floating point and the fixed-point image, against bit-level references."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shiftcore.golden.bfp import (
    BlockFloat,
    BlockTensor,
    FixedPoint,
    Rounding,
    code_limits,
    unit_exponent,
)
from shiftcore.tests.golden.bit_patterns import MODES, patterns, pixel
from shiftcore.tests.golden.exact import max_shift_mask, power


@given(patterns(), st.integers(1, 9), st.sampled_from(MODES))
@example([0x7F7FFFFF, 0x00800000, 0xFF7FFFFF], 3, (8, True, "nearest"))
@example([0x00000001, 0x807FFFFF], 2, (4, False, "nearest"))
@example([0x80000000, 0xBF800000], 2, (4, False, "nearest"))
def test_bit_level_reference(words: list[int], block: int, mode: tuple):
    bits, signed, rounding = mode
    tensor = BlockFloat(block, bits, signed, rounding).compute(pixel(words))
    for index in range(-(-len(words) // block)):
        part = words[index * block : (index + 1) * block]
        codes, field = max_shift_mask(part, bits, signed, rounding)
        lanes = codes + [0] * (block - len(part))
        assert tensor.codes[0, index, :, 0, 0].tolist() == lanes
        assert tensor.exponents[0, index, 0, 0] == field


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: "-".join(map(str, mode)))
def test_bit_level_reference_on_a_whole_tensor(mode: tuple):
    bits, signed, rounding = mode
    rng = np.random.default_rng(bits)
    n, channels, h, w, block = 2, 10, 3, 4, 4
    fields = rng.integers(118, 130, (n, channels, h, w))
    fields[rng.random(fields.shape) < 0.1] = 0
    words = rng.integers(0, 2, fields.shape) << 31 | fields << 23
    words |= rng.integers(0, 1 << 23, fields.shape) & -(1 << rng.integers(0, 24, fields.shape))
    tensor = BlockFloat(block, bits, signed, rounding).compute(
        words.astype(np.uint32).view(np.float32)
    )
    assert tensor.codes.shape == (n, 3, block, h, w)
    assert tensor.codes.dtype == np.int16
    assert tensor.exponents.dtype == np.uint8
    assert tensor.signed == (signed,) * 3
    assert (tensor.bits, tensor.channels, tensor.planes) == (bits, channels, 1)
    assert not tensor.codes[:, 2, 2:].any()
    for image, index, y, x in np.ndindex(n, 3, h, w):
        part = words[image, index * block : (index + 1) * block, y, x].tolist()
        codes, field = max_shift_mask(part, bits, signed, rounding)
        assert tensor.codes[image, index, : len(part), y, x].tolist() == codes
        assert tensor.exponents[image, index, y, x] == field


@pytest.mark.parametrize(
    ("signed", "value", "code"),
    [
        (False, 1.99, 15),  # 15.92 rounds to 16, which does not fit
        (False, 1.96875, 15),  # 15.75
        (False, 1.0, 8),
        (False, -1.99, 0),
        (True, 1.99, 7),
        (True, -1.99, -7),
        (True, -1.0, -4),
    ],
)
def test_saturation_at_four_bits(signed: bool, value: float, code: int):
    tensor = BlockFloat(2, 4, signed).compute(
        np.array([value, 0.0], np.float32)[None, :, None, None]
    )
    assert tensor.codes[0, 0, :, 0, 0].tolist() == [code, 0]


def test_a_negative_number_does_not_raise_an_unsigned_exponent():
    x = np.array([-100.0, 1.5], np.float32)[None, :, None, None]
    tensor = BlockFloat(2, 4).compute(x)
    assert (tensor.codes[0, 0, :, 0, 0].tolist(), tensor.exponents[0, 0, 0, 0]) == ([0, 12], 127)
    tensor = BlockFloat(2, 4, signed=True).compute(x)
    # -100 = -1.5625 * 2^6: code -6.25 of unit 16; 1.5 is less than half a unit
    assert (tensor.codes[0, 0, :, 0, 0].tolist(), tensor.exponents[0, 0, 0, 0]) == ([-6, 0], 133)


@pytest.mark.parametrize("signed", [False, True])
def test_zero_block(signed: bool):
    tensor = BlockFloat(4, 5, signed).compute(np.zeros((1, 4, 2, 2), np.float32))
    assert not tensor.codes.any()
    assert not tensor.exponents.any()
    assert not tensor.values().any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("signed", [False, True])
def test_non_finite_is_refused(signed: bool, value: float):
    x = np.zeros((1, 3, 2, 2), np.float32)
    x[0, 1, 1, 0] = value
    message = "^a non-finite value has no block floating-point code$"
    with pytest.raises(ValueError, match=message):
        BlockFloat(2, 4, signed).compute(x)


@given(patterns(), st.integers(1, 9), st.integers(2, 8), st.booleans())
def test_values_are_exact(words: list[int], block: int, bits: int, signed: bool):
    tensor = BlockFloat(block, bits, signed).compute(pixel(words))
    values = tensor.values()
    assert values.shape == tensor.shape == (1, len(words), 1, 1)
    for channel in range(len(words)):
        index, lane = divmod(channel, block)
        code = int(tensor.codes[0, index, lane, 0, 0])
        field = int(tensor.exponents[0, index, 0, 0])
        unit = power(field - 127 - (bits - 2 if signed else bits - 1))
        assert Fraction(values[0, channel, 0, 0]) == code * unit
        assert power(int(tensor.unit_exponents[0, index, 0, 0])) == unit


@given(patterns(), st.integers(1, 9), st.sampled_from(MODES))
def test_stored_values_are_stored_unchanged(words: list[int], block: int, mode: tuple):
    form = BlockFloat(block, *mode)
    # Far enough from the smallest exponents that code 1 is a normal number.
    words = [word if word >> 23 & 0xFF > 9 else 0 for word in words]
    tensor = form.compute(pixel(words))
    again = form.compute(tensor.values().astype(np.float32))
    assert np.array_equal(again.codes, tensor.codes)
    assert np.array_equal(again.exponents, tensor.exponents)


def test_each_bit_buys_six_decibels():
    rng = np.random.default_rng(0)
    x = np.maximum(rng.normal(size=(1, 32, 40, 40)), 0).astype(np.float32)

    def decibels(bits: int, rounding: Rounding) -> float:
        error = BlockFloat(32, bits, rounding=rounding).compute(x).values() - x
        return 10 * np.log10((x**2).mean() / (error**2).mean())

    gains = np.diff([decibels(bits, "nearest") for bits in range(2, 9)])
    assert gains.min() > 5.5
    assert gains.max() < 6.5
    # Truncation costs about a bit.
    for bits in range(3, 9):
        assert (
            decibels(bits - 1, "nearest") - 1
            < decibels(bits, "truncate")
            < decibels(bits, "nearest")
        )


def test_one_image_of_a_tensor():
    x = np.random.default_rng(1).normal(size=(4, 5, 2, 3)).astype(np.float32)
    form = BlockFloat(2, 4, True)
    part, alone = form.compute(x)[1:3], form.compute(x[1:3])
    assert np.array_equal(part.codes, alone.codes)
    assert np.array_equal(part.exponents, alone.exponents)
    assert part.shape == alone.shape


@pytest.mark.parametrize("bits", range(2, 9))
def test_code_limits_are_what_m_bits_hold(bits: int):
    unsigned, signed = code_limits(bits, False), code_limits(bits, True)
    assert unsigned == (0, 2**bits - 1)
    assert signed == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    assert unit_exponent(bits, True) == unit_exponent(bits, False) + 1 == -125 - bits


@pytest.mark.parametrize("act_bits", range(2, 9))
@pytest.mark.parametrize("exponent", [-10, 0, 3])
def test_planes_make_up_every_pixel_value(act_bits: int, exponent: int):
    q = np.arange(-128, 128)
    x = np.ldexp(q.astype(np.float32), exponent).reshape(1, 8, 8, 4)
    form = FixedPoint(exponent, 3, act_bits)
    tensor = form.compute(x)
    planes = {2: 4, 3: 3, 4: 2, 5: 2, 6: 2, 7: 2, 8: 1}[act_bits]
    assert (form.planes, tensor.planes, tensor.blocks_per_plane) == (planes, planes, 3)
    assert tensor.codes.shape == (1, 3 * planes, 3, 8, 4)
    assert tensor.signed == (True,) * 3 + (False,) * 3 * (planes - 1)
    digits = tensor.codes.reshape(planes, 9, 8, 4).astype(int)
    assert not digits[:, 8].any()
    total = sum(digits[p, :8] << act_bits * (planes - 1 - p) for p in range(planes))
    assert np.array_equal(total.reshape(-1), q)
    assert np.array_equal(tensor.values(), x.astype(np.float64))
    for plane in range(planes):
        fields = tensor.exponents.reshape(planes, -1)[plane]
        magnitude = act_bits - 2 if plane == 0 else act_bits - 1
        weight = exponent + act_bits * (planes - 1 - plane)
        assert set(fields.tolist()) == {weight + 127 + magnitude}


@given(
    st.lists(st.floats(-300, 300, width=32), min_size=1, max_size=30),
    st.integers(-6, 4),
    st.integers(2, 16),
    st.integers(2, 8),
    st.integers(1, 5),
)
@example([0.5, 1.5, 2.5, -0.5, -1.5, 1e9, -1e9, -0.0], 0, 8, 4, 1)
def test_pixels_are_rounded_and_saturated(
    values: list, exponent: int, bits: int, act_bits: int, block: int
):
    form = FixedPoint(exponent, block, act_bits, bits)
    x = np.array(values, np.float32)[None, :, None, None]
    expected = []
    for value in x.reshape(-1).tolist():
        q = round(Fraction(value) / power(exponent))  # half to even
        expected.append(min(max(q, -(2 ** (bits - 1))), 2 ** (bits - 1) - 1))
    assert form.integers(x).reshape(-1).tolist() == expected
    read_back = form.compute(x).values().reshape(-1)
    assert [Fraction(v) / power(exponent) for v in read_back.tolist()] == expected


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_pixels_are_refused(value: float):
    with pytest.raises(ValueError, match=r"^a non-finite pixel has no fixed-point code$"):
        FixedPoint(0, 4, 4).compute(np.full((1, 1, 1, 1), value, np.float32))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BlockFloat(0, 4), r"block must be at least 1, not 0"),
        (lambda: BlockFloat(4, 1), r"bits must be 2 to 8, not 1"),
        (lambda: BlockFloat(4, 9), r"bits must be 2 to 8, not 9"),
        (
            lambda: BlockFloat(4, 4, rounding="up"),  # pyright: ignore[reportArgumentType]
            r"rounding must be 'nearest' or 'truncate', not 'up'",
        ),
        (
            lambda: BlockFloat(4, 4).compute(np.zeros((2, 3), np.float32)),
            r"x must be \(N, C, H, W\), not \(2, 3\)",
        ),
        (lambda: FixedPoint(0, 0, 4), r"block must be at least 1, not 0"),
        (lambda: FixedPoint(0, 4, 9), r"act_bits must be 2 to 8, not 9"),
        (lambda: FixedPoint(0, 4, 4, 1), r"bits must be 2 to 16, not 1"),
        (lambda: FixedPoint(-200, 4, 4), r"exponent -200 is out of the range of float32"),
        (lambda: FixedPoint(125, 4, 4), r"exponent 125 is out of the range of float32"),
    ],
)
def test_parameters_are_checked(make, message: str):
    with pytest.raises(ValueError, match=f"^{message}$"):
        make()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 1}, r"bits must be 2 to 8, not 1"),
        ({"codes": np.zeros((1, 2, 4, 3))}, r"codes must be \(N, blocks, B, H, W\), not .*"),
        ({"exponents": np.zeros((1, 2, 3, 4))}, r"exponents must be \(1, 2, 3, 3\), not .*"),
        ({"signed": (False,)}, r"signed must have one entry per block \(2\), not \(False,\)"),
        ({"channels": 9}, r"9 channels in 1 planes do not make 2 blocks"),
        ({"planes": 2}, r"7 channels in 2 planes do not make 2 blocks"),
        ({"codes": np.full((1, 2, 4, 3, 3), 16)}, r"codes of block 0 must lie in 0 to 15"),
        (
            {"codes": np.full((1, 2, 4, 3, 3), 8), "signed": (False, True)},
            r"codes of block 1 must lie in -8 to 7",
        ),
    ],
)
def test_a_tensor_is_checked(change: dict, message: str):
    good = {
        "codes": np.zeros((1, 2, 4, 3, 3), np.int16),
        "exponents": np.zeros((1, 2, 3, 3), np.uint8),
        "signed": (False, False),
        "bits": 4,
        "channels": 7,
    }
    BlockTensor(**good)
    with pytest.raises(ValueError, match=f"^{message}$"):
        BlockTensor(**(good | change))
