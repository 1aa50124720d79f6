"""Fixed-point products and sums against the golden model."""

from dataclasses import replace

import numpy as np
import pytest

from shiftcore.golden.fixed import FixedFormat
from shiftcore.golden.pipeline import PIPELINES
from shiftcore.golden.scale_unit import MULTIPLIERS, FixedAddSpec, FixedProductSpec
from shiftcore.hw.fixed_adder import FixedAdder
from shiftcore.hw.fixed_product import FixedProduct
from shiftcore.tests.hw.bank import run_bank, run_forms, signed, simulated
from shiftcore.tests.hw.operands import fixed_products, scale_values

PRODUCTS = [
    FixedProductSpec(14, 8, 4, FixedFormat(20)),
    FixedProductSpec(16, 8, 4, FixedFormat(32)),
    FixedProductSpec(22, 24, 8, FixedFormat(40)),
    FixedProductSpec(13, 1, 4, FixedFormat(24), "lut"),
    FixedProductSpec(12, 11, 2, FixedFormat(28), "lut"),
]


def patterns(numbers: np.ndarray, form: FixedFormat) -> np.ndarray:
    """Products as ``product_layout`` packs them; the value of one out of range is left 0."""
    mask = (1 << form.bits + 1) - 1
    value = np.where(np.isinf(numbers), 0, numbers).astype(np.int64) & mask
    return (
        value
        | (numbers == np.inf) * (1 << form.bits + 1)
        | (numbers == -np.inf) * (1 << form.bits + 2)
    )


def rounded_up(spec: FixedProductSpec) -> tuple:
    """Operands of one product that is rounded to more than the largest number."""
    sums = np.arange(1, 1 << spec.sum_bits - 1)[:, None]
    significands = np.arange(1 << spec.scale_bits - 1, 1 << spec.scale_bits)[None]
    exact = sums * significands
    shift = np.maximum(np.frexp(exact.astype(float))[1] - (spec.form.bits - 1), 0)
    found = np.argwhere((exact >> shift == spec.form.high) & ((exact << 1 >> shift) & 1 == 1))
    row, column = found[0]
    field = 127 - spec.offset - int(shift[row, column])
    fraction = significands[0, column] & ((1 << spec.scale_bits - 1) - 1)
    return sums[row, 0], 127 << spec.scale_bits - 1 | fraction, field - 127 - 127, 0


@pytest.mark.parametrize("spec", PRODUCTS, ids=lambda s: f"{s.form.bits}-{s.multiplier}")
def test_products(spec: FixedProductSpec, simulator):
    form = spec.form
    rng = np.random.default_rng(form.bits)
    operands = fixed_products(spec, rng, 60_000)
    if spec.form.bits == 20:
        operands = tuple(np.r_[x, y] for x, y in zip(operands, rounded_up(spec), strict=True))
    sums, scales, fields, is_signed = operands
    right = spec.compute(sums, scale_values(spec, scales), fields, is_signed)
    inputs = {
        "i_sum": (sums, spec.sum_bits),
        "i_scale": (scales, spec.scale_bits + 8),
        "i_exponent": (fields, 8),
        "i_signed": (is_signed, 1),
    }
    found = run_bank(FixedProduct, spec, inputs, form.bits + 3, spec.latency, simulator)
    beyond = found >> form.bits + 1 != 0
    found = np.where(beyond, found & ~((1 << form.bits + 1) - 1), found)
    wrong = found != patterns(right, form)
    assert not wrong.any(), [int(v[wrong][0]) for v in (sums, scales, fields, is_signed, found)]
    # Both ends of the range, products that round to nothing, and halves.
    finite = right[np.isfinite(right)]
    for part in (right == np.inf, right == -np.inf):
        assert part.mean() > 0.02
    assert (np.abs(finite) <= 1).mean() > 0.05
    assert (np.abs(finite) >= 1 << form.bits - 2).mean() > 0.02
    exact = spec.exact(sums, scale_values(spec, scales), fields, is_signed)
    assert (np.abs(exact - np.floor(exact)) == 0.5).sum() > 100
    assert (form.high + 1 in right) == (form.bits == 20)


@pytest.mark.parametrize("scale_bits", [8, 1])
def test_every_form_of_products(scale_bits, simulator):
    """Presets of cuts, and any cuts, change the latency, and multipliers nothing."""
    spec = FixedProductSpec(12, scale_bits, 4, FixedFormat(24))
    form, rng = spec.form, np.random.default_rng(scale_bits)
    specs = [
        replace(spec, multiplier=multiplier, cuts=pipeline.fixed_product)
        for multiplier in MULTIPLIERS
        for pipeline in PIPELINES.values()
    ]
    for multiplier in MULTIPLIERS * 2:
        some = tuple(step for step in spec.STEPS if rng.random() < 0.5)
        specs.append(replace(spec, multiplier=multiplier, cuts=some))
    specs = [form for form in specs if simulated(form)]
    operands = fixed_products(spec, rng, 5_000)
    widths = {"i_sum": 12, "i_scale": scale_bits + 8, "i_exponent": 8, "i_signed": 1}
    inputs: dict[str, tuple[np.ndarray, int]] = {
        name: (values, width)
        for (name, width), values in zip(widths.items(), operands, strict=True)
    }
    sums, scales, fields, is_signed = operands
    right = patterns(spec.compute(sums, scale_values(spec, scales), fields, is_signed), form)
    assert len(np.unique(right)) > 500
    for one, got in zip(
        specs, run_forms(FixedProduct, specs, inputs, form.bits + 3, simulator), strict=True
    ):
        beyond = got >> form.bits + 1 != 0
        assert np.array_equal(np.where(beyond, got & ~((1 << form.bits + 1) - 1), got), right), one


def test_every_form_of_sums(simulator):
    """The same of sums."""
    form, rng, count = FixedFormat(20), np.random.default_rng(7), 5_000
    specs = [FixedAddSpec(form, pipeline.fixed_add) for pipeline in PIPELINES.values()]
    for _ in range(5):
        some = tuple(step for step in FixedAddSpec.STEPS if rng.random() < 0.5)
        specs.append(FixedAddSpec(form, some))
    a = rng.integers(form.low, form.high + 1, count) >> rng.integers(0, 8, count)
    b = rng.integers(form.low, form.high + 2, count).astype(float)
    b = np.where(rng.random(count) < 0.1, rng.choice([-np.inf, np.inf], count), b)
    maximum, keep = rng.random(count) < 0.4, rng.random(count) < 0.3
    inputs = {
        "i_a": (a, 20), "i_b": (patterns(b, form), 23), "i_maximum": (maximum, 1),
        "i_keep": (keep, 1),
    }  # fmt: skip
    right = specs[0].compute(a, b, maximum, keep)
    assert specs[0].saturated(a, b, maximum, keep).mean() > 0.05
    found = run_forms(FixedAdder, specs, inputs, 20, simulator)
    for one, got in zip(specs, found, strict=True):
        assert np.array_equal(signed(got, 20), right), one


@pytest.mark.parametrize("bits", [20, 32, 40])
def test_sums(bits: int, simulator):
    spec = FixedAddSpec(FixedFormat(bits))
    form, rng, count = spec.form, np.random.default_rng(bits), 40_000

    def numbers(high: int) -> np.ndarray:
        some = rng.integers(form.low, high + 1, count) >> rng.integers(0, bits, count)
        ends = rng.choice([form.low, high], count) + rng.choice([-1, 0, 0, 1], count)
        return np.where(rng.random(count) < 0.2, np.clip(ends, form.low, high), some)

    a, b = numbers(form.high).astype(float), numbers(form.high + 1).astype(float)
    b = np.where(rng.random(count) < 0.1, a + rng.integers(-1, 2, count), b)
    b = np.where(rng.random(count) < 0.05, rng.choice([-np.inf, np.inf], count), b)
    b = np.where(np.isfinite(b), np.clip(b, form.low, form.high + 1), b)
    maximum, keep = rng.random(count) < 0.4, rng.random(count) < 0.3
    inputs = {
        "i_a": (a.astype(np.int64), bits),
        "i_b": (patterns(b, form), bits + 3),
        "i_maximum": (maximum, 1),
        "i_keep": (keep, 1),
    }
    found = run_bank(FixedAdder, spec, inputs, bits, spec.latency, simulator)
    right = spec.compute(a, b, maximum, keep)
    wrong = signed(found, bits) != right
    assert not wrong.any(), [v[wrong][0] for v in (a, b, maximum, keep, signed(found, bits))]
    over = spec.saturated(a, b, maximum, keep)
    assert over[maximum].any()
    assert over[~maximum].mean() > 0.05
