"""Operands for floating-point units: random numbers of a format and adversarial pairs."""

import numpy as np
from numpy.typing import NDArray

from shiftcore.golden.floats import FLOAT32, FloatFormat


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
