"""References in rational arithmetic and Python integers; nothing of golden/ is used here."""

from fractions import Fraction


def power(exponent: int) -> Fraction:
    return Fraction(1 << exponent) if exponent >= 0 else Fraction(1, 1 << -exponent)


def floor_log2(x: Fraction) -> int:
    """The largest e with 2^e <= x, for x > 0."""
    e = x.numerator.bit_length() - x.denominator.bit_length()
    return e if power(e) <= x else e - 1


def round_half_even(x: Fraction, unit: int) -> int:
    """x / 2**unit to the nearest integer, to an even one if there are two."""
    n, d = abs(x.numerator) << max(-unit, 0), x.denominator << max(unit, 0)
    whole, rest = divmod(n, d)
    whole += 2 * rest > d or (2 * rest == d and whole % 2)
    return whole if x > 0 else -whole


def nearest(x: Fraction, exponent_bits: int = 8, fraction_bits: int = 23) -> Fraction:
    """Nearest even with unbounded exponent, then flush to zero or saturate."""
    if x == 0:
        return x
    bias = 2 ** (exponent_bits - 1) - 1
    unit = floor_log2(abs(x)) - fraction_bits
    rounded = round_half_even(x, unit) * power(unit)
    if abs(rounded) < power(1 - bias):
        return Fraction(0)
    largest = (2 - power(-fraction_bits)) * power(bias)
    return min(max(rounded, -largest), largest)


def pattern(x: Fraction, exponent_bits: int = 8, fraction_bits: int = 23) -> int:
    """Bits of a normal number or zero."""
    if x == 0:
        return 0
    e = floor_log2(abs(x))
    fraction = (abs(x) / power(e) - 1) * 2**fraction_bits
    assert fraction.denominator == 1
    field = e + 2 ** (exponent_bits - 1) - 1
    assert 1 <= field <= 2**exponent_bits - 2
    sign = (x < 0) << (exponent_bits + fraction_bits)
    return sign | field << fraction_bits | fraction.numerator


def max_shift_mask(
    patterns: list[int], bits: int, signed: bool, rounding: str
) -> tuple[list[int], int]:
    """Codes and exponent field of one block of float32 bit patterns, in integers."""
    lanes = []
    for pattern in patterns:
        sign, field, fraction = pattern >> 31, pattern >> 23 & 0xFF, pattern & 0x7FFFFF
        if field == 0 or (sign and not signed):
            lanes.append((0, 0, 0))
        else:
            lanes.append((sign, field, 1 << 23 | fraction))
    shared = max(field for _, field, _ in lanes)  # MAX
    magnitude_bits = bits - 1 if signed else bits
    codes = []
    for sign, field, significand in lanes:
        distance = 24 - magnitude_bits + shared - field  # SHIFT, and what MASK drops
        code, lost = significand >> distance, significand & ((1 << distance) - 1)
        half = 1 << (distance - 1)
        if rounding == "nearest" and (lost > half or (lost == half and code & 1)):
            code += 1
        code = min(code, (1 << magnitude_bits) - 1)
        codes.append(-code if sign else code)
    return codes, shared
