"""The floating-point units against Berkeley SoftFloat.

SoftFloat's results on fixed operands are recorded here as digests. The last test of this module
computes them, with SoftFloat's Python binding, softfloat 0.1.4.1; where that is not installed it is
skipped. ``make`` does not install it, because it fails to build by chance: PyPI has only C source,
whose setup.py runs ``make clean`` and ``make`` side by side. To compute the digests again, install
it, a second time if the linker misses softfloat.a, and run this module::

    .venv/bin/pip install softfloat==0.1.4.1
    .venv/bin/python -P -m pytest tests/hw/test_softfloat.py
"""

import hashlib

import numpy as np
import pytest

from shiftcore.golden.scale_unit import AddSpec, ProductSpec
from shiftcore.tests.hw import test_adder, test_product
from shiftcore.tests.hw.operands import as_float, legal, machine_number

COUNT = 100_000
PRODUCT = ProductSpec(22, 24, 8)
RECORDED = {
    "sums": "3a2130353c5028879cedfeb0fe3d1666524053d77dabe3464a587da2501b5cb8",
    "products": "3b06ac50743e3c21623cd5aa9f3ca87d8d90fee5c5ad419929026e638c41cdf8",
}


def raw(seed: int) -> np.ndarray:
    """(6, COUNT) random 31-bit numbers, the same with every version of numpy."""
    words = np.random.PCG64(seed).random_raw(6 * COUNT) >> np.uint64(33)
    return words.astype(np.int64).reshape(6, COUNT)


def sum_operands() -> tuple[np.ndarray, np.ndarray]:
    """Pairs with exponents 0 to 30 apart; every fourth cancels down to the last bits."""
    r = raw(1)
    a = legal((r[1] & 1) << 31 | r[0])
    field = np.clip((a >> 23 & 255) + r[2] % 61 - 30, 1, 254)
    b = (r[3] & 1) << 31 | field << 23 | r[4] & ((1 << 23) - 1)
    b = np.where(np.arange(COUNT) % 4 == 0, a ^ 1 << 31 ^ (r[5] & 7), b)
    return a, legal(b)


def product_operands() -> tuple[np.ndarray, np.ndarray]:
    """22-bit sums and bit patterns of float32 numbers that make a normal product or overflow."""
    r = raw(2)
    sums = ((r[0] & ((1 << 22) - 1)) - (1 << 21)) >> r[1] % 21
    sums = np.maximum(sums, -(1 << 21) + 1)
    return sums, (r[2] & 1) << 31 | (24 + r[3] % 231) << 23 | r[4] & ((1 << 23) - 1)


def digest(bits: np.ndarray) -> str:
    return hashlib.sha256(bits.astype("<u4").tobytes()).hexdigest()


def test_sums_equal_softfloat(simulator):
    a, b = sum_operands()
    never = np.zeros(COUNT, bool)
    found = test_adder.hardware(AddSpec(), a, b, never, never, simulator)
    assert digest(found) == RECORDED["sums"]


def test_products_equal_softfloat(simulator):
    sums, factors = product_operands()
    # The factor is the scale times the unit of the block, split in different ways.
    part = np.arange(COUNT) % 11
    scales = factors - (part << 23)
    fields = 127 + PRODUCT.act_bits - 1 + part
    never = np.zeros(COUNT, bool)
    found = test_product.hardware(PRODUCT, sums, scales, fields, never, simulator)
    assert digest(found) == RECORDED["products"]


def test_the_record_is_softfloats():
    softfloat = pytest.importorskip(
        "softfloat",
        reason="softfloat, with which the digests were recorded, is not installed; see above",
    )

    def results(function, left, right) -> np.ndarray:
        pairs = zip(left.tolist(), right.tolist(), strict=True)
        number = softfloat.float32
        bits = [function(number(bits=x), number(bits=y)).v.v for x, y in pairs]
        return machine_number(as_float(np.array(bits)))

    a, b = sum_operands()
    assert digest(results(lambda x, y: x + y, a, b)) == RECORDED["sums"]
    sums, factors = product_operands()
    integers = sums.astype(np.float32).view(np.uint32)
    assert digest(results(lambda x, y: x * y, integers, factors)) == RECORDED["products"]
