"""`FloatFormat`: the rounding rule, sums and encodings, against exact arithmetic and ml_dtypes."""

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shiftcore.golden.floats import FLOAT32, FloatFormat
from shiftcore.tests.golden.exact import nearest, pattern, power

NARROW = [(2, 1), (3, 0), (3, 2), (4, 3), (5, 1)]
STORED = [
    (8, 7, ml_dtypes.bfloat16),
    (5, 10, np.float16),
    (5, 2, ml_dtypes.float8_e5m2),
    (4, 3, ml_dtypes.float8_e4m3),
    (3, 4, ml_dtypes.float8_e3m4),
]


def bits(x: np.ndarray) -> np.ndarray:
    assert x.dtype == np.float32
    return x.view(np.uint32)


def random_float32(
    rng: np.random.Generator, count: int, low: int | np.ndarray, high: int | np.ndarray
) -> np.ndarray:
    """Float32 numbers with exponent fields `low` to `high`; many have few significant bits."""
    fields = rng.integers(low, high + 1, count)
    fractions = rng.integers(0, 1 << 23, count) & -(1 << rng.integers(0, 24, count))
    signs = rng.integers(0, 2, count)
    return (signs << 31 | fields << 23 | fractions).astype(np.uint32).view(np.float32)


def in_float32(x: Fraction) -> np.ndarray:
    return np.array(pattern(x), np.uint32).view(np.float32)


@st.composite
def doubles(draw: st.DrawFn) -> float:
    """Any float64, with ties, near-ties and the ends of the exponent range made likely."""
    if draw(st.booleans()):
        return draw(st.floats(allow_nan=False, allow_infinity=False))
    kept = draw(st.integers(1, 26))
    head = draw(st.integers(1 << (kept - 1), (1 << kept) - 1))
    tail = draw(st.sampled_from([0, 1, (1 << (52 - kept)) - 1, 1 << (51 - kept)]))
    significand = (head << (53 - kept)) + tail
    ends = draw(st.sampled_from([-149, -126, -14, 0, 15, 127]))
    exponent = ends + draw(st.integers(-3, 3))
    return draw(st.sampled_from([1, -1])) * float(significand) * 2.0 ** (exponent - 52)


@given(st.integers(2, 8), st.integers(0, 23), st.lists(doubles(), min_size=1, max_size=20))
@example(8, 23, [-0.0, 0.0, 5e-324, -1.7976931348623157e308, 2.0**1023])
@example(4, 3, [-0.0, 5e-324, 1.7976931348623157e308])
def test_round_is_exact_rounding(exponent_bits: int, fraction_bits: int, values: list[float]):
    form = FloatFormat(exponent_bits, fraction_bits)
    expected = [
        in_float32(nearest(Fraction(value), exponent_bits, fraction_bits)) for value in values
    ]
    assert np.array_equal(bits(form.round(values)), bits(np.array(expected)))


@given(st.lists(doubles(), min_size=1, max_size=50))
def test_float32_rounding_is_exact_rounding(values: list[float]):
    expected = [pattern(nearest(Fraction(value))) for value in values]
    assert bits(FLOAT32.round(values)).tolist() == expected


@pytest.mark.parametrize(
    ("first", "second"),
    [((1, 254), (1, 254)), ((100, 130),) * 2, ((1, 30),) * 2, ((230, 254),) * 2],
)
def test_float32_sum_is_exact_rounding(first: tuple[int, int], second: tuple[int, int]):
    rng = np.random.default_rng(first)
    a, b = random_float32(rng, 3000, *first), random_float32(rng, 3000, *second)
    b[::5] = (a.view(np.uint32)[::5] ^ 0x80000001).view(np.float32)  # all but one bit cancel
    expected = [
        pattern(nearest(Fraction(x) + Fraction(y)))
        for x, y in zip(a.tolist(), b.tolist(), strict=True)
    ]
    assert bits(FLOAT32.add(a, b)).tolist() == expected


def test_float32_sum_equals_numpy_where_it_is_normal():
    rng = np.random.default_rng(1)
    low = np.repeat([1, 90, 1, 252], 300_000)
    high = np.repeat([254, 160, 4, 254], 300_000)
    a, b = random_float32(rng, low.size, low, high), random_float32(rng, low.size, low, high)
    with np.errstate(over="ignore"):
        ieee = a + b
    normal = np.isfinite(ieee) & (np.abs(ieee) >= np.float32(2.0**-126))
    got = FLOAT32.add(a, b)
    assert np.array_equal(bits(got)[normal], bits(ieee)[normal])
    assert normal.sum() > 1_000_000
    # The rest is what the contract defines otherwise, and there is some of each.
    infinite, tiny = np.isinf(ieee), ~normal & np.isfinite(ieee)
    assert np.array_equal(got[infinite], np.copysign(np.float32(FLOAT32.largest), ieee[infinite]))
    assert not bits(got)[tiny].any()
    assert min(infinite.sum(), tiny.sum()) > 1000


def test_float32_product_equals_numpy_where_it_is_normal():
    rng = np.random.default_rng(2)
    low = np.repeat([1, 90, 50], 300_000)
    high = np.repeat([254, 160, 77], 300_000)
    a, b = random_float32(rng, low.size, low, high), random_float32(rng, low.size, low, high)
    with np.errstate(over="ignore", under="ignore"):
        ieee = a * b
    exact = a.astype(np.float64) * b.astype(np.float64)
    # Normal before IEEE's gradual underflow rounds a second time; see the differences below.
    normal = np.isfinite(ieee) & (np.abs(exact) >= 2.0**-126 * (1 - 2.0**-25))
    got = FLOAT32.round(exact)
    assert np.array_equal(bits(got)[normal], bits(ieee)[normal])
    assert normal.sum() > 500_000
    assert np.isinf(ieee).sum() > 1000
    assert not bits(got)[~normal & np.isfinite(ieee)].any()


MIN, MAX = 2.0**-126, (2 - 2.0**-23) * 2.0**127


@pytest.mark.parametrize(
    ("exact", "ours", "ieee"),
    [
        # Subnormal results become +0, of either sign.
        (2.0**-127, 0x00000000, 0x00400000),
        (-(2.0**-149), 0x00000000, 0x80000001),
        (MIN - 2.0**-149, 0x00000000, 0x007FFFFF),
        # What rounds to the smallest normal number only because subnormal numbers are coarser.
        (MIN - 2.0**-150, 0x00000000, 0x00800000),
        (float(np.nextafter(MIN - 2.0**-151, 0)), 0x00000000, 0x00800000),
        # The midpoint below the smallest normal number, in unbounded exponent, is a tie to even.
        (MIN - 2.0**-151, 0x00800000, 0x00800000),
        (-(MIN - 2.0**-151), 0x80800000, 0x80800000),
        # Overflow saturates.
        (2.0**128, 0x7F7FFFFF, 0x7F800000),
        (-1e300, 0xFF7FFFFF, 0xFF800000),
        (MAX + 2.0**103, 0x7F7FFFFF, 0x7F800000),
        (MAX + 2.0**102, 0x7F7FFFFF, 0x7F7FFFFF),
        # Zero has no sign.
        (-0.0, 0x00000000, 0x80000000),
        (-1e-300, 0x00000000, 0x80000000),
    ],
)
def test_documented_differences_from_ieee(exact: float, ours: int, ieee: int):
    with np.errstate(all="ignore"):
        assert bits(np.array(exact).astype(np.float32)) == ieee
    assert bits(FLOAT32.round(exact)) == ours


def test_no_sum_is_minus_zero():
    zeros = np.array([0.0, -0.0, 1.5, -1.5, MIN, -MIN], np.float32)
    assert not bits(FLOAT32.add(zeros, -zeros)).any()
    assert bits(FLOAT32.add(np.float32(-0.0), np.float32(-0.0))) == 0
    assert bits(zeros[1:2] + zeros[1:2]) == 0x80000000
    # -2^-126 + (2^-126 + 2^-149) is subnormal, and so is its negative.
    above = np.nextafter(np.float32(MIN), np.float32(1))
    assert bits(FLOAT32.add([-MIN, MIN], [above, -above])).tolist() == [0, 0]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("form", [FLOAT32, FloatFormat(4, 3)])
def test_non_finite_is_refused(form: FloatFormat, value: float):
    for refused in (form.round, form.encode, lambda x: form.add(x, [1.0, 1.0])):
        with pytest.raises(ValueError, match=r"^a non-finite value has no encoding$"):
            refused([1.0, value])


@pytest.mark.parametrize(("exponent_bits", "fraction_bits"), NARROW)
def test_every_sum_of_a_narrow_format(exponent_bits: int, fraction_bits: int):
    form = FloatFormat(exponent_bits, fraction_bits)
    codes = np.arange(1 << form.storage_bits)
    fields = codes >> fraction_bits & ((1 << exponent_bits) - 1)
    values = form.decode(codes[fields <= form.max_exponent])
    assert values.size == 2 * ((1 << exponent_bits) - 1) << fraction_bits
    a, b = (grid.reshape(-1) for grid in np.meshgrid(values, values))
    exact = a.astype(np.float64) + b.astype(np.float64)  # a few bits more than the format
    table = {
        s: pattern(nearest(Fraction(s), exponent_bits, fraction_bits), exponent_bits, fraction_bits)
        for s in set(exact.tolist())
    }
    got = form.encode(form.add(a, b)).tolist()
    assert got == [table[s] for s in exact.tolist()]


def test_e4m3_sums_against_ml_dtypes():
    form = FloatFormat(4, 3)
    codes = np.arange(256, dtype=np.uint8)
    values = codes.view(ml_dtypes.float8_e4m3)
    usable = np.isfinite(values) & (np.abs(values) >= 2.0**-6) | (values == 0)
    a, b = np.meshgrid(values[usable].astype(np.float32), values[usable].astype(np.float32))
    with np.errstate(over="ignore"):
        ieee = (a + b).astype(ml_dtypes.float8_e4m3)
    got = form.encode(form.add(a, b))
    normal = np.isfinite(ieee) & (np.abs(ieee) >= 2.0**-6)
    assert np.array_equal(got[normal], ieee.view(np.uint8)[normal])
    assert np.array_equal(np.unique(got[np.isinf(ieee)]), [0x77, 0xF7])
    assert not got[np.abs(ieee) < 2.0**-6].any()


@pytest.mark.parametrize(("exponent_bits", "fraction_bits", "dtype"), STORED)
def test_every_encoding(exponent_bits: int, fraction_bits: int, dtype: type):
    form = FloatFormat(exponent_bits, fraction_bits)
    assert form.storage_bits == 8 * np.dtype(dtype).itemsize
    unsigned = np.uint8 if form.storage_bits == 8 else np.uint16
    codes = np.arange(1 << form.storage_bits).astype(unsigned)
    with np.errstate(invalid="ignore"):
        values = codes.view(dtype).astype(np.float32)
    normal = np.isfinite(values) & (np.abs(values) >= form.smallest)
    assert np.array_equal(bits(form.decode(codes[normal])), bits(values[normal]))
    assert np.array_equal(form.encode(values[normal]), codes[normal])
    assert values[normal].max() == form.largest
    low = np.abs(values) < form.smallest
    assert not bits(form.decode(codes[low])).any()
    refused = codes[~np.isfinite(values)]
    assert refused.size == 2 << fraction_bits
    for code in refused[:300]:
        with pytest.raises(ValueError, match=r"^an all-ones exponent field is no number of this"):
            form.decode([0, code])


@pytest.mark.parametrize(("exponent_bits", "fraction_bits", "dtype"), STORED)
def test_rounding_against_ml_dtypes(exponent_bits: int, fraction_bits: int, dtype: type):
    form = FloatFormat(exponent_bits, fraction_bits)
    # Every float32 of 16 significant bits, the bits below set so that no tie is hidden.
    upper = np.arange(1 << 16, dtype=np.uint32) << 16
    for lower in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        values = (upper | lower).view(np.float32)
        values = values[np.isfinite(values) & (np.abs(values) >= form.smallest)]
        with np.errstate(over="ignore"):
            theirs = values.astype(dtype).astype(np.float32)
        theirs = np.clip(theirs, -form.largest, form.largest).astype(np.float32)
        assert np.array_equal(bits(form.round(values)), bits(theirs))


def test_float32_encoding_is_its_bit_pattern():
    values = random_float32(np.random.default_rng(3), 100_000, 1, 254)
    values[:2] = MIN, -MAX
    assert np.array_equal(FLOAT32.encode(values), bits(values))
    assert np.array_equal(bits(FLOAT32.decode(bits(values))), bits(values))
    assert FLOAT32.encode(-0.0) == 0
    assert not bits(FLOAT32.decode([0x80000000, 0x007FFFFF, 0x80000001])).any()


@pytest.mark.parametrize("value", [1 + 2.0**-4, 2.0**-7, 248.0, -1e9])
def test_encode_refuses_what_the_format_does_not_hold(value: float):
    with pytest.raises(
        ValueError, match=r"^values must be representable in the format; round them first$"
    ):
        FloatFormat(4, 3).encode([1.0, value])


def test_properties():
    form = FloatFormat(4, 3)
    assert (form.storage_bits, form.significand_bits, form.bias, form.max_exponent) == (8, 4, 7, 14)
    assert (form.smallest, form.largest) == (2.0**-6, 240.0)
    assert (FLOAT32.smallest, FLOAT32.largest) == (MIN, MAX)
    assert Fraction(FLOAT32.largest) == (2 - power(-23)) * power(127)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ((1, 3), "exponent_bits must be 2 to 8, not 1"),
        ((9, 3), "exponent_bits must be 2 to 8, not 9"),
        ((8, -1), "fraction_bits must be 0 to 23, not -1"),
        ((8, 24), "fraction_bits must be 0 to 23, not 24"),
    ],
)
def test_parameters_are_checked(parameters: tuple[int, int], message: str):
    with pytest.raises(ValueError, match=f"^{message}$"):
        FloatFormat(*parameters)
