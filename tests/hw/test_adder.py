"""The floating-point adder against numpy and against the golden model."""

import numpy as np

from shiftcore.golden.floats import FLOAT32, FloatFormat
from shiftcore.golden.pipeline import PIPELINES
from shiftcore.golden.scale_unit import AddSpec
from shiftcore.hw.adder import FloatAdder
from shiftcore.sim.runner import Simulator
from shiftcore.tests.hw.bank import run_bank, run_forms
from shiftcore.tests.hw.operands import (
    adversarial_pairs,
    as_float,
    every_number,
    ieee_sum,
    machine_number,
)


def hardware(
    spec: AddSpec, a, b, maximum, keep, simulator: Simulator, lanes: int = 8
) -> np.ndarray:
    """What the adder makes of (n,) bit patterns and flags."""
    bits = spec.form.storage_bits
    inputs = {
        "i_a": (a, bits),
        "i_b": (b, bits),
        "i_maximum": (maximum, 1),
        "i_keep": (keep, 1),
    }
    return run_bank(FloatAdder, spec, inputs, bits, spec.latency, simulator, lanes)


def golden(spec: AddSpec, a, b, maximum, keep) -> np.ndarray:
    form = spec.form
    return form.encode(spec.compute(form.decode(a), form.decode(b), maximum, keep)).astype(np.int64)


def test_latency():
    assert AddSpec().latency == 9
    assert AddSpec(cuts=PIPELINES["short"].add).latency == 4


def test_every_form(simulator):
    """Presets of cuts, and any cuts, change the latency only."""
    rng, count = np.random.default_rng(33), 6_000
    specs = [AddSpec(cuts=pipeline.add) for pipeline in PIPELINES.values()]
    for _ in range(5):
        specs.append(AddSpec(cuts=tuple(step for step in AddSpec.STEPS if rng.random() < 0.5)))
    a, b = adversarial_pairs(rng, count)
    maximum, keep = rng.random(count) < 0.1, rng.random(count) < 0.3
    inputs = {"i_a": (a, 32), "i_b": (b, 32), "i_maximum": (maximum, 1), "i_keep": (keep, 1)}
    right = golden(AddSpec(), a, b, maximum, keep)
    found = run_forms(FloatAdder, specs, inputs, 32, simulator)
    assert [form for form, got in zip(specs, found, strict=True) if (got != right).any()] == []


def test_float32_pairs(simulator):
    """More than a million sums equal numpy's own float32 sums; the maxima are equal too."""
    rng = np.random.default_rng(32)
    count = 1_150_000
    a, b = adversarial_pairs(rng, count)
    maximum, keep = rng.random(count) < 0.1, rng.random(count) < 0.3
    found = hardware(AddSpec(), a, b, maximum, keep, simulator)
    wrong = found != golden(AddSpec(), a, b, maximum, keep)
    assert not wrong.any(), [hex(v[wrong][0]) for v in (a, b, found)]
    sums = ~maximum
    assert sums.sum() >= 1_000_000
    assert np.array_equal(found[sums], ieee_sum(a[sums], b[sums]))
    largest = np.where(keep, as_float(a), np.maximum(as_float(a), as_float(b)))
    assert np.array_equal(found[maximum], machine_number(largest[maximum]))
    # The corners were really met: cancellation to zero, saturation, flush, far operands.
    exact = as_float(a).astype(float) + as_float(b)
    assert (exact[sums] == 0).sum() > 1000
    assert (np.abs(exact[sums]) > FLOAT32.largest).sum() > 1000
    assert ((np.abs(exact[sums]) < FLOAT32.smallest) & (exact[sums] != 0)).sum() > 1000
    inside = sums & (np.abs(exact) < FLOAT32.largest / 2)
    units = exact[inside] / np.spacing(np.abs(exact[inside]).astype(np.float32)).astype(float)
    assert (np.abs(units % 1) == 0.5).sum() > 1000


def test_every_pair_of_a_narrow_format(simulator):
    """All sums and all maxima of the numbers of an 8-bit float: 2 x 50,625 pairs."""
    spec = AddSpec(FloatFormat(4, 3))
    numbers = every_number(spec.form)
    a, b = (x.ravel() for x in np.meshgrid(numbers, numbers))
    assert len(a) == 225**2
    a, b = np.tile(a, 2), np.tile(b, 2)
    maximum = np.arange(len(a)) >= len(a) // 2
    keep = np.random.default_rng(4).random(len(a)) < 0.25
    found = hardware(spec, a, b, maximum, keep, simulator)
    wrong = found != golden(spec, a, b, maximum, keep)
    assert not wrong.any(), [hex(v[wrong][0]) for v in (a, b, found)]


def test_every_sum_of_a_short_exponent(simulator):
    """A format whose exponents reach no further than the adder's shifters."""
    spec = AddSpec(FloatFormat(3, 4))
    a, b = (x.ravel() for x in np.meshgrid(*[every_number(spec.form)] * 2))
    never = np.zeros(len(a), bool)
    found = hardware(spec, a, b, never, never, simulator)
    assert np.array_equal(found, golden(spec, a, b, never, never))
