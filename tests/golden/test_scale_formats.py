"""`ScaleFormat`: every code against ml_dtypes, rounding against exact arithmetic."""

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shiftcore.golden.floats import BF16, E8M0, FP16, FP32, SCALE_FORMATS, ScaleFormat
from shiftcore.tests.golden.exact import nearest, power, round_half_even

SIGNED = [BF16, FP16, FP32]
DTYPES = {"bf16": ml_dtypes.bfloat16, "fp16": np.float16, "fp32": np.float32}


def bits(x: np.ndarray) -> np.ndarray:
    assert x.dtype == np.float32
    return x.view(np.uint32)


def codes_of(form: ScaleFormat) -> np.ndarray:
    """Every code; of 32-bit ones a sample with all exponents and the ends of the fraction."""
    if form.storage_bits < 32:
        return np.arange(1 << form.storage_bits)
    rng = np.random.default_rng(0)
    fractions = np.r_[0, 1, 0x7FFFFF, rng.integers(0, 1 << 23, 50)]
    return (np.arange(512)[:, None] << 23 | fractions).reshape(-1)


def reference(x: Fraction, form: ScaleFormat) -> Fraction:
    if form is FP16 and abs(x) < power(-14):
        return round_half_even(x, -24) * power(-24)
    return nearest(x, form.exponent_bits, form.fraction_bits)


def scales(form: ScaleFormat) -> st.SearchStrategy[float]:
    """Float64 values of all sizes, ties and near-ties of `form` among them."""
    kept = form.fraction_bits + 2  # one bit more than the format holds
    ties = st.builds(
        lambda head, off, exponent: (head + off * 2.0**-20) * 2.0**exponent,
        st.integers(1 << (kept - 1), (1 << kept) - 1),
        st.sampled_from([0, 0, 1, -1]),
        st.sampled_from([-150, -127, -25, -15, 0, 15, 127]).flatmap(
            lambda e: st.integers(e - kept - 2, e - kept + 3)
        ),
    )
    anything = st.floats(min_value=0, allow_nan=False, allow_infinity=False)
    sign = st.sampled_from([1, -1] if form.signed else [1])
    return st.builds(lambda s, x: s * x, sign, st.one_of(ties, anything))


@pytest.mark.parametrize("form", SCALE_FORMATS.values(), ids=SCALE_FORMATS)
def test_rounding_is_exact(form: ScaleFormat):
    @given(st.lists(scales(form), min_size=1, max_size=40))
    @example([0.0, -0.0, 5e-324, 2.0**-126, 2.0**-127, 2.0**-25, 1.7976931348623157e308])
    def check(values: list[float]) -> None:
        expected = [float(reference(Fraction(value), form)) for value in values]
        got = form.round(values)
        assert np.array_equal(bits(got), bits(np.array(expected, np.float32)))
        assert np.array_equal(bits(form.decode(form.encode(got))), bits(got))

    check()


@pytest.mark.parametrize("form", SIGNED, ids=lambda form: form.name)
def test_every_code_against_ml_dtypes(form: ScaleFormat):
    codes = codes_of(form)
    dtype = np.dtype(DTYPES[form.name])
    with np.errstate(invalid="ignore"):
        theirs = codes.astype(f"uint{8 * dtype.itemsize}").view(dtype).astype(np.float32)
    finite = np.isfinite(theirs)
    # Only fp16 keeps its subnormal numbers, and no format has a negative zero.
    least = 2.0**-24 if form is FP16 else 2.0**-126
    held = finite & (np.abs(theirs) >= least)
    assert np.array_equal(bits(form.decode(codes[held])), bits(theirs[held]))
    assert np.array_equal(form.encode(theirs[held]), codes[held])
    lost = codes[finite & ~held]
    assert lost.size == 2 if form is FP16 else lost.size > 2
    assert not bits(form.decode(lost)).any()
    assert form.encode([0.0, -0.0]).tolist() == [0, 0]
    refused = codes[~finite]
    assert refused.size
    for code in refused[::7]:
        with pytest.raises(
            ValueError, match=f"^an all-ones exponent field is no {form.name} scale$"
        ):
            form.decode([0, code])


def test_every_e8m0_code():
    codes = np.arange(255)
    theirs = codes.astype(np.uint8).view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    ours = E8M0.decode(codes)
    assert np.array_equal(bits(ours[1:]), bits(theirs[1:]))
    assert ours[1:].tolist() == [2.0 ** (code - 127) for code in range(1, 255)]
    # OCP gives code 0 the value 2^-127, for which we have no use; ours is zero.
    assert theirs[0] == 2.0**-127
    assert bits(ours)[0] == 0
    assert np.array_equal(E8M0.encode(ours), codes)
    with pytest.raises(ValueError, match=r"^an all-ones exponent field is no e8m0 scale$"):
        E8M0.decode([255])


@pytest.mark.parametrize(
    ("form", "value", "rounded"),
    [
        (BF16, 1e39, (2 - 2.0**-7) * 2.0**127),
        (BF16, 2.0**-127, 0.0),
        (FP16, -65520.0, -65504.0),
        (FP16, 1e6, 65504.0),
        (FP16, 2.0**-24, 2.0**-24),
        (FP16, 2.0**-25, 0.0),
        (FP16, -3 * 2.0**-25, -(2.0**-23)),
        (FP16, 2.0**-14 - 2.0**-25, 2.0**-14),
        (FP32, 1e-38, 0.0),
        (E8M0, 1.5, 2.0),
        (E8M0, float(np.nextafter(1.5, 0)), 1.0),
        (E8M0, 0.75 * 2.0**-126, 2.0**-126),
        (E8M0, 0.7499 * 2.0**-126, 0.0),
        (E8M0, 1e300, 2.0**127),
    ],
)
def test_rounding_by_hand(form: ScaleFormat, value: float, rounded: float):
    assert bits(form.round([value]))[0] == bits(np.array([rounded], np.float32))[0]


@pytest.mark.parametrize("form", SCALE_FORMATS.values(), ids=SCALE_FORMATS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_is_refused(form: ScaleFormat, value: float):
    for refused in (form.round, form.encode):
        with pytest.raises(ValueError, match=r"^a non-finite value has no encoding$"):
            refused([1.0, value])


def test_e8m0_refuses_negative_scales():
    for refused in (E8M0.round, E8M0.encode):
        with pytest.raises(ValueError, match=r"^scales stored as e8m0 must not be negative$"):
            refused([1.0, -1.0])


@pytest.mark.parametrize(
    ("form", "value"),
    [(BF16, 1 + 2.0**-8), (FP16, 1 + 2.0**-11), (FP16, 2.0**-25), (FP32, 2.0**-127), (E8M0, 3.0)],
)
def test_encode_refuses_what_the_format_does_not_hold(form: ScaleFormat, value: float):
    message = f"^scales must be representable as {form.name}; round them first$"
    with pytest.raises(ValueError, match=message):
        form.encode([1.0, value])


def test_widths():
    widths = {f.name: (f.storage_bits, f.significand_bits) for f in SCALE_FORMATS.values()}
    assert widths == {"bf16": (16, 8), "fp16": (16, 11), "fp32": (32, 24), "e8m0": (8, 1)}
