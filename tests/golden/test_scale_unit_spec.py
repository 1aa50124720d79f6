"""`ProductSpec`, `AddSpec` and `ScaleUnitSpec`: tight widths, exact products, sums and maxima."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shiftcore.golden.config import HardwareConfig
from shiftcore.golden.fixed import FixedFormat
from shiftcore.golden.floats import FLOAT32, SCALE_FORMATS, FloatFormat
from shiftcore.golden.scale_unit import (
    AddSpec,
    FixedAddSpec,
    FixedProductSpec,
    ProductSpec,
    ScaleUnitSpec,
)
from shiftcore.tests.golden.exact import nearest, pattern, power
from shiftcore.tests.hw.operands import (
    adversarial_pairs,
    as_float,
    ieee_product,
    ieee_sum,
    random_products,
    scale_values,
)

FORMS = [FLOAT32, FloatFormat(8, 7), FloatFormat(5, 4)]


def product_of(rows: int, weight_bits: int, act_bits: int, scale: str) -> ProductSpec:
    """The float32 product of a configuration."""
    product = HardwareConfig(rows, 1, weight_bits, act_bits, scale).scale_unit.product
    assert isinstance(product, ProductSpec)
    return product


def every_product() -> list[ProductSpec]:
    """The product of configurations of all widths and scale formats, the largest included."""
    return [
        product_of(rows, b, m, scale)
        for rows in (1, 3, 16, 128)
        for b in (2, 4, 8)
        for m in (2, 4, 8)
        for scale in SCALE_FORMATS
    ]


def test_product_widths_are_tight():
    rounding = set()
    for spec in every_product():
        largest = (1 << spec.magnitude_bits) - 1
        spec.compute(largest, 1.0, 127, False)
        spec.compute(-largest, 1.0, 127, False)
        significand = (1 << spec.scale_bits) - 1
        held = spec.exact_bits - (spec.scale_bits == 1)
        assert (largest * significand).bit_length() == held
        assert spec.rounds == (held > 24)
        rounding.add(spec.rounds)
        # It does round where it says so, and not where it does not.
        exact = Fraction(largest * significand)
        value = np.ldexp(significand, 1 - spec.scale_bits)
        unit = power(-(spec.act_bits - 1) + 1 - spec.scale_bits)
        got = Fraction(spec.compute(largest, value, 127, False).item())
        assert (got != exact * unit) == spec.rounds
    assert rounding == {False, True}


@pytest.mark.parametrize("total", [8, -8, 1 << 20])
def test_a_sum_that_does_not_fit_is_refused(total: int):
    spec = ProductSpec(4, 8, 4)
    assert spec.compute([7, -7], 1.0, 130, False).tolist() == [7.0, -7.0]
    with pytest.raises(ValueError, match=r"^block sums must fit 4 bits$"):
        spec.compute([0, total], 1.0, 130, False)


@pytest.mark.parametrize("field", [-1, 256])
def test_an_exponent_field_that_does_not_fit_is_refused(field: int):
    with pytest.raises(ValueError, match=r"^exponent fields must fit 8 bits$"):
        ProductSpec(4, 8, 4).compute([1, 1], 1.0, [0, field], False)


@given(
    st.sampled_from(FORMS),
    st.sampled_from(list(SCALE_FORMATS.values())),
    st.integers(2, 24),
    st.integers(2, 8),
    st.integers(0, 2**32),
)
def test_product_is_exact_rounding(form: FloatFormat, scale, sum_bits: int, m: int, seed: int):
    rng = np.random.default_rng(seed)
    spec = ProductSpec(sum_bits, scale.significand_bits, m, form)
    count = 20
    limit = 1 << (sum_bits - 1)
    sums = rng.integers(1 - limit, limit, count)
    codes = rng.integers(0, 1 << scale.storage_bits, count)
    top = (1 << scale.exponent_bits) - 1
    codes[(codes >> scale.fraction_bits) & top == top] = 0
    scales = scale.decode(codes)
    # Exponents of which the product is not far outside the format, if there are any.
    centre = 127 - np.log2(np.abs(scales) + 1e-40).astype(int)
    exponents = np.clip(centre + rng.integers(-40, 40, count), 0, 255)
    signed = rng.integers(0, 2, count).astype(bool)
    expected = [
        pattern(
            nearest(
                int(s) * Fraction(float(x)) * power(int(e) - 127 - (m - 2 if sign else m - 1)),
                form.exponent_bits,
                form.fraction_bits,
            )
        )
        for s, x, e, sign in zip(sums, scales, exponents, signed, strict=True)
    ]
    got = spec.compute(sums, scales, exponents, signed)
    assert got.view(np.uint32).tolist() == expected


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_field_offset(form: FloatFormat, signed: bool):
    for sum_bits, scale_bits, m in ((2, 1, 2), (6, 8, 4), (13, 11, 3), (20, 24, 8)):
        spec = ProductSpec(sum_bits, scale_bits, m, form)
        # The largest operands have a product whose top bit is set.
        total, significand = (1 << spec.magnitude_bits) - 1, (1 << scale_bits) - 1
        if (total * significand).bit_length() != spec.exact_bits:
            continue
        for scale_field in (120, 127, 135):
            wanted = form.bias + 2
            field = wanted - scale_field - spec.field_offset(signed)
            scale = np.ldexp(significand, scale_field - 127 - (scale_bits - 1))
            # One less significand bit than would round up into the next field.
            value = Fraction(total) * Fraction(float(scale))
            value *= power(field - 127 - (m - 2 if signed else m - 1))
            floor = value.numerator.bit_length() - value.denominator.bit_length()
            floor -= power(floor) > value
            assert floor + form.bias == wanted


@given(st.sampled_from(FORMS), st.integers(0, 2**32))
def test_sum_maximum_and_keep(form: FloatFormat, seed: int):
    rng = np.random.default_rng(seed)
    count = 30
    fields = rng.integers(0, form.max_exponent + 1, (2, count))
    near = fields[0] + rng.integers(-3, 4, count)
    fields[1] = np.where(rng.random(count) < 0.7, np.clip(near, 0, form.max_exponent), fields[1])
    fractions = rng.integers(0, 1 << form.fraction_bits, (2, count))
    signs = rng.integers(0, 2, (2, count)) << (form.storage_bits - 1)
    a, b = form.decode(signs | fields << form.fraction_bits | fractions)
    b[:3] = 0 - a[:3]
    maximum, keep = rng.integers(0, 2, (2, count)).astype(bool)
    expected = []
    for x, y, is_max, kept in zip(a.tolist(), b.tolist(), maximum, keep, strict=True):
        if is_max:
            value = Fraction(x if kept else max(x, y))
        else:
            value = nearest(Fraction(x) + Fraction(y), form.exponent_bits, form.fraction_bits)
        expected.append(pattern(value))
    got = AddSpec(form).compute(a, b, maximum, keep)
    assert got.view(np.uint32).tolist() == expected


@pytest.mark.parametrize("scale", SCALE_FORMATS)
def test_products_equal_numpys(scale: str):
    """1.3 million products of each scale format against numpy's own float32 multiplication."""
    spec = product_of(128, 8, 8, scale)
    operands = random_products(spec, np.random.default_rng(5), 1_300_000)
    sums, scales, fields, signed = operands
    expected, sure = ieee_product(spec, *operands)
    got = spec.compute(sums, scale_values(spec, scales), fields, signed).view(np.uint32)
    compared = np.count_nonzero(sure)
    assert compared >= 1_000_000
    assert np.array_equal(got[sure], expected[sure])
    # Not all of them are at the ends of the range.
    assert ((expected != 0) & (expected & 0x7FFFFFFF != 0x7F7FFFFF)).sum() > 500_000


def test_sums_equal_numpys():
    """1.3 million sums against numpy's own float32 addition."""
    a, b = adversarial_pairs(np.random.default_rng(6), 1_300_000)
    expected = ieee_sum(a, b)
    got = AddSpec().compute(as_float(a), as_float(b)).view(np.uint32)
    compared = len(got)
    assert compared >= 1_000_000
    assert np.array_equal(got, expected)


@pytest.mark.parametrize("form", FORMS)
def test_adder_widths(form: FloatFormat):
    spec = AddSpec(form)
    kept = form.significand_bits + spec.guard_bits
    # The largest sum of two significands with their guard bits just fits.
    assert (2 * ((1 << kept) - 1)).bit_length() == spec.width


@pytest.mark.parametrize("depth", [2, 3, 4, 5, 512, 513, 65536])
def test_addresses_are_no_wider_than_the_depth_needs(depth: int):
    spec = ScaleUnitSpec(ProductSpec(10, 8, 4), AddSpec(), depth)
    assert 1 << (spec.address_bits - 1) < depth <= 1 << spec.address_bits


@pytest.mark.parametrize(("rows", "bits", "latency"), [(16, 4, 5), (16, 8, 7)])
def test_latencies(rows: int, bits: int, latency: int):
    spec = HardwareConfig(rows, 4, bits, bits).scale_unit
    assert spec.product.latency == latency
    assert spec.write_stage == latency + spec.add.latency
    # The value written is read no earlier than one cycle after its write.
    assert spec.read_stage + spec.revisit == spec.write_stage + 1
    assert spec.form == FLOAT32


@pytest.mark.parametrize(
    ("pipeline", "accumulator", "stages"),
    [
        ("short", "float32", (2, 4, 1, 6, 6)),
        ("short", "fixed32", (1, 1, 0, 2, 3)),
        ("fast", "float32", (6, 9, 3, 15, 13)),
        ("fast", "fixed32", (6, 4, 3, 10, 8)),
    ],
)
def test_latencies_follow_from_the_cuts(pipeline: str, accumulator: str, stages: tuple[int, ...]):
    config = HardwareConfig(16, 4, accumulator=accumulator, pipeline=pipeline)
    spec, engine = config.scale_unit, config.engine
    found = spec.product.latency, spec.add.latency, spec.read_stage, spec.write_stage, spec.revisit
    assert found == stages
    assert engine.retire_cycles == 16 + 4 + spec.write_stage + 3


PRODUCT = ProductSpec(10, 8, 4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ProductSpec(1, 8, 4), r"sum_bits must be 2 to 32, not 1"),
        (lambda: ProductSpec(33, 8, 4), r"sum_bits must be 2 to 32, not 33"),
        (lambda: ProductSpec(10, 0, 4), r"scale_bits must be 1 to 24, not 0"),
        (lambda: ProductSpec(10, 25, 4), r"scale_bits must be 1 to 24, not 25"),
        (
            lambda: ProductSpec(10, 8, 4, FLOAT32, "gate"),  # pyright: ignore[reportArgumentType]
            r"multiplier must be one of 'lut', 'dsp', 'ecp5-dsp', not 'gate'",
        ),
        (
            lambda: ProductSpec(20, 8, 4, multiplier="ecp5-dsp"),
            r"multiplier 'ecp5-dsp' of scale units takes 18 bits at most, not 19",
        ),
        (
            lambda: FixedProductSpec(12, 11, 4, FixedFormat(24), "ecp5-dsp"),
            r"multiplier 'ecp5-dsp' of scale units takes 18 bits at most, not 19",
        ),
        (
            lambda: FixedAddSpec(FixedFormat(24), ("add", "choose")),
            r"cuts must be some of 'compare', 'choose', 'add', 'saturate', in this order, "
            r"not \('add', 'choose'\)",
        ),
        (
            lambda: ScaleUnitSpec(PRODUCT, AddSpec(), cuts=("write",)),
            r"cuts must be some of 'read', 'choose', in this order, not \('write',\)",
        ),
        (
            lambda: ScaleUnitSpec(replace(PRODUCT, cuts=("fine", "round")), AddSpec()),
            r"the product must take the 2 cycles of a fetch or more, not 1",
        ),
        (
            lambda: ScaleUnitSpec(PRODUCT, AddSpec(), memory="ecp5"),
            r"memory 'ecp5' needs the cut 'read', not \('choose',\)",
        ),
        (lambda: ScaleUnitSpec(PRODUCT, AddSpec(), 1), r"depth must be at least 2, not 1"),
        (
            lambda: ScaleUnitSpec(PRODUCT, AddSpec(FloatFormat(8, 7))),
            r"product and adder must have one format",
        ),
    ],
)
def test_parameters_are_checked(make, message: str):
    with pytest.raises(ValueError, match=f"^{message}$"):
        make()
