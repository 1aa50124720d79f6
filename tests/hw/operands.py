"""Operands for floating-point units, and what IEEE 754 makes of them in numpy."""

import numpy as np
from numpy.typing import NDArray

from shiftcore.golden.bfp import unit_exponent
from shiftcore.golden.floats import FLOAT32, FloatFormat
from shiftcore.golden.scale_unit import BlockProductSpec, FixedProductSpec, ProductSpec


def every_number(form: FloatFormat) -> NDArray[np.int64]:
    """The bit patterns of all numbers of a narrow format, +0 first."""
    codes = np.arange(1 << form.storage_bits)
    field = codes >> form.fraction_bits & ((1 << form.exponent_bits) - 1)
    return np.r_[0, codes[(field >= 1) & (field <= form.max_exponent)]]


def random_numbers(rng: np.random.Generator, count: int) -> NDArray[np.int64]:
    """Bit patterns of float32 numbers: zero, the ends of the range, few and many fraction bits."""
    field = np.where(
        rng.random(count) < 0.6, rng.integers(110, 140, count), rng.integers(1, 255, count)
    )
    edge = rng.random(count)
    field = np.where(edge < 0.05, rng.integers(1, 4, count), field)
    field = np.where(edge > 0.95, rng.integers(252, 255, count), field)
    fraction = rng.integers(0, 1 << 23, count)
    kind = rng.random(count)
    fraction = np.where(kind < 0.1, 0, fraction)
    fraction = np.where(kind > 0.9, (1 << 23) - 1, fraction)
    sparse = (kind > 0.7) & (kind < 0.9)
    fraction = np.where(sparse, fraction >> 16 << rng.integers(0, 17, count), fraction)
    bits = rng.integers(0, 2, count) << 31 | field << 23 | fraction
    return np.where(rng.random(count) < 0.02, 0, bits)


def adversarial_pairs(
    rng: np.random.Generator, count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of float32 numbers that meet every corner of an adder.

    Cancellation down to the last bits, exponents 0 to 30 apart, sums halfway between two numbers or
    a little beside, overflow by rounding, results below the smallest number.
    """
    a = random_numbers(rng, count)
    b = random_numbers(rng, count)
    kind = rng.integers(0, 6, count)
    near = a ^ (1 << 31) ^ rng.integers(0, 8, count)
    b = np.where(kind == 1, near, b)

    # b is half a unit of a's last place, or that and one bit more or less, or a quarter.
    field = a >> 23 & 255
    sign = rng.integers(0, 2, count) << 31
    small = np.maximum(field - 24 - rng.integers(0, 2, count), 1)
    wobble = rng.choice([0, 1, (1 << 23) - 1], count)
    b = np.where((kind == 2) & (field > 30), sign | small << 23 | wobble, b)

    distance = rng.integers(-30, 31, count)
    other = np.clip(field + distance, 1, 254)
    b = np.where(kind == 3, sign | other << 23 | (b & ((1 << 23) - 1)), b)

    huge = 254 << 23 | (1 << 23) - 1 - rng.integers(0, 3, count)
    a = np.where(kind == 4, huge | (a & 1 << 31), a)
    b = np.where(kind == 4, (a & 1 << 31) | rng.integers(225, 255, count) << 23, b)

    tiny = rng.integers(1, 4, count) << 23 | (b & 15)
    a = np.where(kind == 5, tiny ^ rng.integers(0, 8, count) ^ 1 << 31, a)
    b = np.where(kind == 5, tiny, b)
    return legal(a), legal(b)


def legal(bits: NDArray[np.int64]) -> NDArray[np.int64]:
    """The bit patterns with those that are no float32 number of the machine made zero."""
    field = bits >> 23 & 255
    return np.where((field == 0) | (field == 255), 0, bits)


def ieee_sum(a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.int64]:
    """numpy's own float32 sum, then the machine's rules: no subnormals, no infinity, no -0."""
    with np.errstate(over="ignore"):
        total = as_float(a) + as_float(b)
    return machine_number(total)


def as_float(bits: NDArray[np.int64]) -> NDArray[np.float32]:
    return bits.astype(np.uint32).view(np.float32)


def machine_number(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """Bit patterns of IEEE results: subnormals and -0 become +0, infinity the largest number."""
    largest = np.float32(FLOAT32.largest)
    kept = np.where(np.abs(values) < np.float32(FLOAT32.smallest), np.float32(0), values)
    return np.clip(kept, -largest, largest).astype(np.float32).view(np.uint32).astype(np.int64)


def scale_values(spec: BlockProductSpec, scales: NDArray[np.int64]) -> NDArray[np.float64]:
    """What scale layouts (sign, 8-bit exponent field, fraction) stand for."""
    fraction_bits = spec.scale_bits - 1
    fraction = scales & ((1 << fraction_bits) - 1)
    field = scales >> fraction_bits & 255
    value = np.ldexp((fraction + (1 << fraction_bits)).astype(float), field - 127 - fraction_bits)
    return np.where(field == 0, 0, np.where(scales >> (fraction_bits + 8), -value, value))


def random_products(
    spec: BlockProductSpec, rng: np.random.Generator, count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Sums, scale layouts, exponent fields and signedness whose product is anywhere.

    Sums of every magnitude and the extremes; most results are numbers, many lie at an end of the
    range.
    """
    limit = (1 << (spec.sum_bits - 1)) - 1
    sums = rng.integers(-limit, limit + 1, count) >> rng.integers(0, spec.sum_bits, count)
    kind = rng.random(count)
    sums = np.where(kind < 0.05, limit, np.where(kind < 0.1, -limit, sums))
    sums = np.where(kind > 0.97, 0, sums)

    fraction_bits = spec.scale_bits - 1
    fraction = rng.integers(0, 1 << fraction_bits, count)
    kind = rng.random(count)
    fraction = np.where(kind < 0.1, 0, np.where(kind > 0.9, (1 << fraction_bits) - 1, fraction))
    field = rng.integers(0, 255, count)
    fields = rng.integers(0, 256, count)
    aim = rng.choice([-127, -126, 0, 0, 0, 127, 128], count) + rng.integers(-2, 3, count)
    magnitude = np.frexp(np.abs(sums).astype(float))[1]
    near = np.clip(aim + 254 + spec.act_bits - 1 - field - magnitude, 0, 255)
    fields = np.where(rng.random(count) < 0.8, near, fields)
    scales = rng.integers(0, 2, count) << (fraction_bits + 8) | field << fraction_bits | fraction
    return sums, scales, fields, rng.random(count) < 0.5


def fixed_products(
    spec: FixedProductSpec, rng: np.random.Generator, count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """As :func:`random_products`, but most of them near the grid's two ends."""
    sums, scales, fields, is_signed = random_products(spec, rng, count)
    fraction_bits = spec.scale_bits - 1
    scale_field = scales >> fraction_bits & 255
    magnitude = np.frexp(np.abs(sums).astype(float))[1]
    aim = np.where(
        rng.random(count) < 0.5,
        rng.integers(-4, 4, count),
        rng.integers(spec.form.bits - 5, spec.form.bits + 3, count),
    )
    aim = np.where(rng.random(count) < 0.5, rng.integers(-10, spec.form.bits + 9, count), aim)
    # The power of two of the product's highest bit.
    near = aim - magnitude - spec.offset - fraction_bits - scale_field
    fields = np.where(rng.random(count) < 0.95, np.clip(near, 0, 255), fields)
    return sums, scales, fields, is_signed


def ieee_product(
    spec: ProductSpec,
    sums: NDArray[np.int64],
    scales: NDArray[np.int64],
    fields: NDArray[np.int64],
    signed: NDArray[np.bool_],
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """numpy's own float32 product under the machine's rules, and where the two must agree.

    IEEE rounds below the smallest normal number to fewer bits than the machine does; what becomes
    that number by either rounding may be zero by the other.
    """
    units = np.where(
        signed, unit_exponent(spec.act_bits, True), unit_exponent(spec.act_bits, False)
    )
    significand, exponent = np.frexp(scale_values(spec, scales))
    exponent = exponent + fields + units
    # The power of two goes to the scale as far as float32 holds it. The rest scales the sum, which
    # is exact unless the product lies far outside the range.
    own = np.clip(exponent, -125, 128)
    integers = sums.astype(np.float32)
    assert (integers == sums).all()
    with np.errstate(over="ignore", under="ignore"):
        left = np.ldexp(integers, exponent - own)
        right = np.ldexp(significand.astype(np.float32), own)
        product = left * np.where(significand == 0, np.float32(0), right)
    product = np.where(significand == 0, np.float32(0), product)
    return machine_number(product), np.abs(product) != np.float32(FLOAT32.smallest)
