"""The product of a block sum, a scale and an exponent, against numpy and the golden model."""

from dataclasses import replace

import numpy as np
import pytest

from shiftcore.golden.floats import FloatFormat
from shiftcore.golden.pipeline import PIPELINES
from shiftcore.golden.scale_unit import MULTIPLIERS, ProductSpec
from shiftcore.hw.product import FloatProduct
from shiftcore.sim.runner import Simulator
from shiftcore.tests.hw.bank import run_bank, run_forms, simulated
from shiftcore.tests.hw.operands import ieee_product, random_products, scale_values


def hardware(
    spec: ProductSpec, sums, scales, fields, signed, simulator: Simulator, lanes: int = 8
) -> np.ndarray:
    """What the product unit makes of sums, scale layouts, exponent fields and signedness."""
    inputs = {
        "i_sum": (sums, spec.sum_bits),
        "i_scale": (scales, spec.scale_bits + 8),
        "i_exponent": (fields, 8),
        "i_signed": (signed, 1),
    }
    bits = spec.form.storage_bits
    return run_bank(FloatProduct, spec, inputs, bits, spec.latency, simulator, lanes)


def golden(spec: ProductSpec, sums, scales, fields, signed) -> np.ndarray:
    exact = spec.compute(sums, scale_values(spec, scales), fields, signed)
    return spec.form.encode(exact).astype(np.int64)


@pytest.mark.parametrize(
    ("spec", "count"),
    [
        (ProductSpec(16, 8, 4), 250_000),
        (ProductSpec(22, 24, 8), 1_050_000),
        (ProductSpec(12, 1, 4, multiplier="lut"), 20_000),
    ],
    ids=["bf16", "fp32", "e8m0"],
)
def test_float32_products(spec, count, simulator):
    """Products that are exact (bf16, e8m0) and products that have to be rounded (fp32).

    Of the latter more than a million are compared with numpy's own float32 product.
    """
    assert spec.rounds == (spec.scale_bits == 24)
    assert spec.latency == (7 if spec.rounds else 5)
    operands = random_products(spec, np.random.default_rng(spec.sum_bits), count)
    found = hardware(spec, *operands, simulator)
    wrong = found != golden(spec, *operands)
    assert not wrong.any(), [hex(v[wrong][0]) for v in (*operands[:3], found)]
    numbers, sure = ieee_product(spec, *operands)
    assert np.array_equal(found[sure], numbers[sure])
    assert sure.sum() >= (1_000_000 if spec.rounds else 0.95 * count)
    # Both ends of the range were met.
    magnitude = found & 0x7FFFFFFF
    assert (magnitude == 0x7F7FFFFF).mean() > 0.02
    zero = (operands[0] == 0) | (scale_values(spec, operands[1]) == 0)
    assert (magnitude[~zero] == 0).mean() > 0.02
    assert (magnitude >> 23 == 1).mean() > 0.01


@pytest.mark.parametrize("multiplier", ["dsp", "lut"])
def test_every_narrow_product(multiplier, simulator):
    """All sums of 6 bits with all scales of 4 significant bits, from underflow to overflow."""
    spec = ProductSpec(6, 4, 3, FloatFormat(4, 3), multiplier)
    assert spec.rounds
    sums, significands, exponents, signed = (
        x.ravel()
        for x in np.meshgrid(
            np.arange(-31, 32), np.arange(16), np.arange(-16, 12), [False, True], indexing="ij"
        )
    )
    # The exponent is split between the scale and the block; a field of 0 makes the scale zero.
    field = 120 + (sums * 7 + significands) % 13
    scales = significands >> 3 << 11 | field << 3 | significands & 7
    fields = exponents + 254 - field + 1
    zeros = np.arange(0, len(sums), 17)
    scales[zeros] &= ~(255 << 3)
    found = hardware(spec, sums, scales, fields, signed, simulator)
    wrong = found != golden(spec, sums, scales, fields, signed)
    assert not wrong.any(), [int(v[wrong][0]) for v in (sums, scales, fields, signed, found)]
    live = np.ones(len(sums), bool)
    live[zeros] = False
    magnitude = found & 127
    assert len(np.unique(magnitude[live])) == 14 * 8 + 1
    for signed_too in (False, True):
        part = live & (signed == signed_too)
        assert (magnitude[part] == 0b1110111).sum() > 100
        assert (magnitude[part & (sums != 0)] == 0).sum() > 100


@pytest.mark.parametrize(
    "spec",
    [ProductSpec(12, 8, 4), ProductSpec(18, 11, 8), ProductSpec(10, 1, 4)],
    ids=["exact", "rounding", "e8m0"],
)
def test_every_form(spec, simulator):
    """Presets of cuts, and any cuts, change the latency, and multipliers nothing."""
    specs = [
        replace(spec, multiplier=multiplier, cuts=pipeline.product)
        for multiplier in MULTIPLIERS
        for pipeline in PIPELINES.values()
    ]
    rng = np.random.default_rng(spec.scale_bits)
    for multiplier in MULTIPLIERS * 2:
        some = tuple(step for step in spec.STEPS if rng.random() < 0.5)
        specs.append(replace(spec, multiplier=multiplier, cuts=some))
    specs = [form for form in specs if simulated(form)]
    operands = random_products(spec, rng, 4_000)
    widths = {
        "i_sum": spec.sum_bits,
        "i_scale": spec.scale_bits + 8,
        "i_exponent": 8,
        "i_signed": 1,
    }
    inputs: dict[str, tuple[np.ndarray, int]] = {
        name: (values, width)
        for (name, width), values in zip(widths.items(), operands, strict=True)
    }
    right = golden(spec, *operands)
    assert len(np.unique(right)) > 1_000
    assert len({form.latency for form in specs}) >= 4
    found = run_forms(FloatProduct, specs, inputs, spec.form.storage_bits, simulator)
    assert [form for form, got in zip(specs, found, strict=True) if (got != right).any()] == []


def test_sum_that_does_not_fit():
    with pytest.raises(ValueError, match=r"^block sums must fit 6 bits$"):
        ProductSpec(6, 4, 3).compute([32], [1.0], [127], [False])
