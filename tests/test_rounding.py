"""Error-compensated rounding."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from shiftcore.examples.digits import data, model
from shiftcore.golden.bfp import FixedPoint
from shiftcore.golden.floats import BF16, SCALE_FORMATS
from shiftcore.golden.fold import Fold
from shiftcore.quant import rounding
from shiftcore.quant.convert import QuantConfig, quantize
from shiftcore.quant.dsconv import DSConv2d, DSConvConfig, quantize_
from shiftcore.quant.float_layer import FloatTerm
from shiftcore.quant.hardware import HardwareNetwork, Stored, fixed_point
from shiftcore.quant.report import measure
from shiftcore.quant.rounding import Moments, RoundedFilters, fitted
from shiftcore.tests.stored import contents


def problem(
    seed: int, filters: int = 5, features: int = 12, block: int = 4, bits: int = 3
) -> RoundedFilters:
    """Random weights on inputs that go along with each other, the codes rounded to nearest."""
    random = np.random.default_rng(seed)
    weight = random.normal(size=(filters, features))
    inputs = random.normal(size=(features, 3)) @ random.normal(size=(3, 200))
    inputs += 0.3 * random.normal(size=inputs.shape)
    blocks = np.split(random.permutation(features), range(block, features, block))
    scales = np.array([[np.abs(w[b]).max() / (1 << bits - 1) for b in blocks] for w in weight])
    found = RoundedFilters(
        weight, inputs @ inputs.T / 200, blocks, np.zeros_like(weight),
        BF16.round(scales).astype(np.float64), bits, BF16,
    )  # fmt: skip
    for number, own in enumerate(blocks):
        limit = 1 << (bits - 1)
        codes = np.rint(weight[:, own] / found.scales[:, number, None])
        found.codes[:, own] = np.clip(codes, -limit, limit - 1)
    return found


def in_range(found: RoundedFilters) -> bool:
    limit = 1 << (found.bits - 1)
    whole = np.array_equal(found.codes, np.rint(found.codes))
    held = np.array_equal(found.form.round(found.scales), found.scales.astype(np.float32))
    return whole and held and found.codes.min() >= -limit and found.codes.max() < limit


def test_error_is_passed_on_to_inputs_that_go_along() -> None:
    nearest, passed = [], []
    for seed in range(30):
        found = problem(seed)
        nearest.append(found.error())
        found.pass_on()
        assert in_range(found)
        passed.append(found.error())
    assert np.mean(passed) < 0.5 * np.mean(nearest)


def test_inputs_that_do_not_go_along_are_rounded_to_nearest() -> None:
    found = problem(1)
    nearest = found.codes.copy()
    found.metric = np.diag(np.arange(1.0, 13))
    found.pass_on()
    assert np.array_equal(found.codes, nearest)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1 << 32), st.sampled_from([2, 3, 5, 12]), st.integers(2, 8))
def test_improving_ends_where_no_single_code_lowers_the_error(seed, block, bits) -> None:
    found = problem(seed, block=block, bits=bits)
    found.pass_on()
    before = found.error()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounding, "SWEEPS", 1000)
        found.improve()
    best = found.error()
    assert in_range(found)
    assert best <= before * (1 + 1e-12)
    limit = 1 << (bits - 1)
    for row, column, step in itertools.product(range(5), range(12), (-1, 1)):
        code = found.codes[row, column]
        if -limit <= code + step < limit:
            found.codes[row, column] = code + step
            assert found.error() > best * (1 - 1e-9)
            found.codes[row, column] = code


def test_the_best_codes_of_all_are_rarely_missed() -> None:
    """Against every choice of codes, the scales as they are."""
    missed = 0
    for seed in range(20):
        found = problem(seed, filters=1, features=5, block=5, bits=2)
        scale = found.scales[0, 0]
        every = np.array(list(itertools.product(range(-2, 2), repeat=5)), float)
        left = found.weight - every * scale
        least = ((left @ found.metric) * left).sum(1).min()
        found.pass_on()
        found.improve()
        missed += found.error() > 1.5 * least
    assert missed <= 2


def test_an_unsigned_scale_stays_a_power_of_two() -> None:
    found = problem(3)
    found.form, found.scales = SCALE_FORMATS["e8m0"], np.exp2(np.rint(np.log2(found.scales)))
    scales = found.scales.copy()
    found.pass_on()
    found.improve()
    assert np.array_equal(found.scales, scales)
    assert in_range(found)


def test_a_block_without_a_scale_keeps_no_code() -> None:
    found = problem(4)
    found.scales[2, 1] = 0
    found.pass_on()
    found.improve()
    assert not found.codes[2, found.blocks[1]].any()


def test_weights_are_fitted_as_least_squares() -> None:
    random = np.random.default_rng(5)
    x, t = random.normal(size=(6, 50)) + 1, random.normal(size=(3, 50)) - 2
    weight = random.normal(size=(3, 6))
    moments = Moments.zero(6, 3)
    for part in np.split(np.arange(50), [7, 30]):
        moments.add(torch.from_numpy(x[:, part]), torch.from_numpy(t[:, part]))
    found, metric = fitted(weight, moments)
    centred, wanted = x - x.mean(1, keepdims=True), t - t.mean(1, keepdims=True)
    assert np.allclose(metric - np.diag(np.diag(metric)), _off_diagonal(centred), atol=1e-12)
    damping = (rounding.DAMPING + 6 / 50) * np.trace(centred @ centred.T / 50) / 6
    rows = np.concatenate([centred.T, np.eye(6) * np.sqrt(50 * damping)])
    columns = np.concatenate([wanted.T, weight.T * np.sqrt(50 * damping)])
    assert np.allclose(found, np.linalg.lstsq(rows, columns)[0].T, atol=1e-10)
    means = moments.means()
    assert np.allclose(means[0], x.mean(1))
    assert np.allclose(means[1], t.mean(1))


def _off_diagonal(centred: np.ndarray) -> np.ndarray:
    covariance = centred @ centred.T / centred.shape[1]
    return covariance - np.diag(np.diag(covariance))


def test_inputs_without_variance_keep_their_weights() -> None:
    weight = np.arange(6.0).reshape(2, 3)
    moments = Moments.zero(3, 2)
    moments.add(torch.ones(3, 4), torch.ones(2, 4))
    found, _ = fitted(weight, moments)
    assert np.allclose(found, weight)


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_moments_are_those_of_the_convolution(monkeypatch, groups) -> None:
    """The true weights come back from a convolution's own results."""
    monkeypatch.setattr(rounding, "CHUNK", 2000)  # several batches
    monkeypatch.setattr(rounding, "DAMPING", 1e-9)
    monkeypatch.setattr(rounding, "FLOOR", 0)
    random = torch.Generator().manual_seed(groups)
    x = torch.randn(30, 6, 9, 8, generator=random).relu()
    weight = torch.randn(6, 6 // groups, 3, 2, generator=random)
    term = FloatTerm("input", weight.numpy(), (2, 1), (1, 0, 2, 1), (1, 2), groups)
    padded = functional.pad(x, (2, 1, 1, 0))
    y = functional.conv2d(padded, weight, torch.arange(6.0), (2, 1), 0, (1, 2), groups)
    for group, moments in enumerate(rounding._moments(x, y, term)):
        own = slice(group * 6 // groups, (group + 1) * 6 // groups)
        # As many samples as make the share of inputs for every sample nothing.
        many = replace(moments, count=moments.count << 40)
        for name in ("inputs", "targets", "square", "cross"):
            setattr(many, name, getattr(moments, name) * 2.0**40)
        start = np.zeros((6 // groups, weight[0].numel()))
        found, _ = fitted(start, many)
        assert np.allclose(found, weight[own].flatten(1).numpy(), atol=1e-3)
        inputs, targets = moments.means()
        assert np.allclose(targets - found @ inputs, np.arange(6.0)[own], atol=1e-3)


ALIKE = {
    "one image": lambda random: random.normal(size=(1, 4, 8, 8)),
    "alike": lambda random: np.repeat(random.normal(size=(1, 4, 8, 8)), 32, 0),
    "nearly alike": lambda random: (
        random.normal(size=(1, 4, 8, 8)) + 1e-4 * random.normal(size=(32, 4, 8, 8))
    ),
    "constant": lambda random: np.full((32, 4, 8, 8), 3.7),
    "black": lambda random: np.zeros((32, 4, 8, 8)),
}


@pytest.mark.parametrize("kind", ALIKE)
def test_images_that_tell_little_change_little(kind: str) -> None:
    torch.manual_seed(1)
    random = np.random.default_rng(1)
    network = nn.Sequential(
        nn.Conv2d(4, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    ).eval()  # fmt: skip
    images = ALIKE[kind](random).astype(np.float32)
    others = torch.from_numpy(random.normal(size=(64, 4, 8, 8)).astype(np.float32))
    with torch.no_grad():
        wanted = network(others)

    def noise(method: str) -> float:
        config = QuantConfig(6, 8, 4, method=method, input_bits=12)  # type: ignore[arg-type]
        given = HardwareNetwork(quantize(network, images, config))(others).flatten(1)
        return float((given - wanted).square().mean() / wanted.square().mean())

    assert noise("compensated") < 2 * noise("l2") + 1e-2


def digits(count: int) -> np.ndarray:
    return data.load()[0].x[:count]


@pytest.mark.parametrize(("bits", "gain"), [(2, 5.0), (4, 1.0)])
def test_compensation_lowers_the_error_of_a_trained_network(bits, gain) -> None:
    network, held_out = model.load(), data.load()[1].x[:100]

    def decibels(method: str) -> float:
        config = QuantConfig(bits, 8, method=method)  # type: ignore[arg-type]
        return measure(network, quantize(network, digits(256), config), held_out).sqnr_db

    plain = max(map(decibels, ("l2", "kl", "joint")))
    assert decibels("compensated") > plain + gain


def test_only_the_layers_named_change() -> None:
    network, images = model.load(), digits(64)
    plain = quantize(network, images, QuantConfig(3, method="l2"))
    names = [layer.name for layer in plain.layers]
    overrides = {names[2]: {"method": "compensated"}}
    mixed = quantize(network, images, QuantConfig(3, method="l2", overrides=overrides))
    pairs = zip(contents(plain), contents(mixed), strict=True)
    assert [name for name, (a, b) in zip(names, pairs, strict=True) if a != b] == [names[2]]


def test_the_result_follows_from_the_images() -> None:
    network = model.load()
    first, again = (contents(quantize(network, digits(64), QuantConfig(3))) for _ in range(2))
    assert first == again
    assert first != contents(quantize(network, digits(65)[1:], QuantConfig(3)))


def test_of_large_images_fewer_are_used(monkeypatch) -> None:
    network = model.load()
    plain = quantize(network, digits(64), QuantConfig(method="l2"))
    sizes = plain.sizes()
    largest = max(layer.bias.size * np.prod(sizes[layer.name]) for layer in plain.layers)
    used = []

    def counted(spec: FixedPoint, x: torch.Tensor, fold: Fold | None) -> Stored:
        used.append(len(x))
        return fixed_point(spec, x, fold)

    monkeypatch.setattr(rounding, "VALUES", int(20 * largest + 1))
    monkeypatch.setattr(rounding, "fixed_point", counted)
    quantize(network, digits(64), QuantConfig(3))
    assert used == [20]


def test_codes_of_a_trained_layer_stay() -> None:
    network = nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(8 * 4 * 4, 5),
    ).eval()  # fmt: skip
    quantize_(network, DSConvConfig(block=4), lambda module, name: name == "2")
    images = np.random.default_rng(7).normal(size=(20, 4, 6, 6)).astype(np.float32)
    found = quantize(network, images, QuantConfig(block=4))
    plain = quantize(network, images, QuantConfig(block=4, method="l2"))
    trained = network[2]
    assert isinstance(trained, DSConv2d)
    assert np.array_equal(found.layers[1].terms[0].kernel.codes, trained.codes.numpy())
    changed = [a != b for a, b in zip(contents(found), contents(plain), strict=True)]
    assert changed == [True, False, True]
