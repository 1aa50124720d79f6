"""Fixed-point accumulators in quantization and in the hardware mode."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shiftcore.golden.bfp import BlockFloat, BlockTensor, FixedPoint
from shiftcore.golden.compare import different_tensors
from shiftcore.golden.fixed import FixedFormat, Grid
from shiftcore.golden.floats import FLOAT32, SCALE_FORMATS
from shiftcore.golden.layers import Layer, Reduce, Term
from shiftcore.golden.network import QuantizedNetwork
from shiftcore.golden.vqk import VariableQuantizedKernel
from shiftcore.quant import hardware
from shiftcore.quant.accumulators import choose_grid, fix_accumulators
from shiftcore.quant.compiled import CompiledLayer, workers
from shiftcore.quant.convert import QuantConfig, quantize
from shiftcore.quant.fold import fold_input
from shiftcore.quant.hardware import HardwareNetwork, evaluate
from shiftcore.quant.lower import lower
from shiftcore.quant.report import measure
from shiftcore.quant.search import sensitivities
from shiftcore.quant.student import Student
from shiftcore.tests.golden.exact import nearest
from shiftcore.tests.golden.test_layers import on_grid, scalar_fixed_layer, scalar_products
from shiftcore.tests.test_quant import random_networks, small_network

WIDTHS = (20, 24, 32, 40)


def stored_tensors(network: QuantizedNetwork, images: np.ndarray) -> dict[str, BlockTensor]:
    tensors = network.compute(images)
    return {name: x for name, x in tensors.items() if isinstance(x, BlockTensor)}


def with_room(
    network: QuantizedNetwork, images: np.ndarray, bits: int, room: int
) -> QuantizedNetwork:
    """Fixed-point accumulators whose ranges are 2**room times the largest magnitudes at the end of
    float32 accumulation; a negative `room` makes them saturate."""
    stored, layers = stored_tensors(network, images), []
    for layer in network.layers:
        acc = layer.accumulate(stored)
        largest = np.abs(acc[acc > -FLOAT32.largest]).max(initial=0)
        exponent = int(np.frexp(largest)[1]) - (bits - 1) + room
        layers.append(on_grid(layer, FixedFormat(bits), exponent))
    return replace(network, layers=tuple(layers))


# The hardware mode


@given(random_networks(), st.sampled_from(WIDTHS), st.integers(-5, 8))
@settings(max_examples=150)
def test_hardware_mode_equals_golden_on_random_networks(
    case: tuple[QuantizedNetwork, np.ndarray], bits: int, room: int
) -> None:
    network, images = case
    network = with_room(network, images, bits, room)
    golden = network.compute(images)
    saturated = []
    for compiled in (True, False):
        mode = HardwareNetwork(network, compiled=compiled)
        assert not different_tensors(mode.compute(images), golden)
        results = mode.results(torch.from_numpy(images))
        saturated.append([results[layer.name].saturated for layer in network.layers])
    assert saturated[0] == saturated[1]


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("room", [-4, -1, 3])
def test_saturated_steps_are_counted(bits: int, room: int, compiled: bool) -> None:
    """Every one, by a scalar model, and none of numbers that only fill up vectors."""
    net = small_network()
    images = net.images(3)
    network = quantize(net.graph("fc"), images, QuantConfig(block=4, method="l2"))
    network = with_room(network, images, bits, room)
    golden, sizes = stored_tensors(network, images), network.sizes()
    results = HardwareNetwork(network, compiled=compiled).results(torch.from_numpy(images))
    total = 0
    for layer in network.layers:
        numbers, saturated = scalar_fixed_layer(layer, golden, sizes[layer.name])
        assert np.array_equal(layer.accumulate(golden), numbers)
        assert results[layer.name].saturated == saturated
        raw = results[layer.name].raw.transpose(0, 1).numpy()
        expected = replace(layer, output=None).finish(numbers)
        assert np.array_equal(raw.view(np.uint32), expected.view(np.uint32))
        total += saturated
    assert (total > 100) == (room < 0)
    labels = np.zeros(3, int)
    assert (
        evaluate(HardwareNetwork(network, compiled=compiled), images, labels).saturated_sums
        == total
    )
    report = measure(net.graph("fc"), network, images)
    assert report.saturated_sums == total
    assert sum(layer.saturated_sums > 0 for layer in report.layers) > 1 or room > 0


@pytest.mark.parametrize("reduce", ["add", "max"])
@pytest.mark.parametrize("bits", [20, 24])
def test_products_at_the_ends_of_the_range(bits: int, reduce: Reduce) -> None:
    """Halves, and what rounds to the end of the range or past it, before and after a small step."""
    form = FixedFormat(bits)
    near = [form.high + n / 2 for n in range(-3, 4)] + [form.low - n / 2 for n in range(-3, 4)]
    edges = np.array([*near, 0.5, -0.5, 1.5, -1.5, 0.0, 2.0**60, -(2.0**60)], np.float32)
    others = np.array([0.0, -1.0, 1.0, form.low, form.high], np.float32)
    first, second = (x.ravel() for x in np.meshgrid(edges, others))
    scales = np.stack([np.r_[first, second], np.r_[second, first]], 1)[:, :, None, None]
    kernel = VariableQuantizedKernel(
        np.ones(scales.shape, np.int8), scales, 4, 1, scale_format=SCALE_FORMATS["fp32"]
    )
    start = np.full(len(scales), form.low if reduce == "max" else 0, np.float32)
    layer = Layer("layer", (Term("input", kernel),), start, reduce, grid=Grid(form, 0))
    network = QuantizedNetwork(FixedPoint(0, 1, 4, 4), (2, 1, 1), (layer,))
    images = np.ones((1, 2, 1, 1), np.float32)
    golden = network.compute(images)
    source = stored_tensors(network, images)
    numbers, saturated = scalar_fixed_layer(layer, source, (1, 1))
    assert np.array_equal(layer.accumulate(source), numbers)
    assert saturated > 20
    for compiled in (True, False):
        mode = HardwareNetwork(network, compiled=compiled)
        assert not different_tensors(mode.compute(images), golden)
        assert mode.results(torch.from_numpy(images))["layer"].saturated == saturated


def test_an_ordinary_network_takes_the_compiled_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    ran, loops = [], CompiledLayer.accumulate

    def kernel(layer: CompiledLayer, *arguments):
        ran.append(layer)
        return loops(layer, *arguments)

    monkeypatch.setattr(CompiledLayer, "accumulate", kernel)
    net = small_network()
    images = net.images(5)
    config = QuantConfig(block=4, method="l2", accumulator="fixed32")
    network = quantize(net.graph("fc"), images, config)
    ran.clear()
    HardwareNetwork(network).compute(images)
    assert len(ran) == len(network.layers)


def test_results_do_not_depend_on_threads_or_batch() -> None:
    net = small_network()
    images = net.images(34)
    network = quantize(net.graph("fc"), images, QuantConfig(block=4, method="l2"))
    network = with_room(network, images, 24, -2)
    mode, golden = HardwareNetwork(network), network.compute(images)
    before, counts = torch.get_num_threads(), set()
    try:
        for threads, batch in ((1, 34), (2, 1), (3, 16), (7, 17)):
            torch.set_num_threads(threads)
            for first in range(0, len(images), batch):
                some = slice(first, first + batch)
                expected = {name: tensor[some] for name, tensor in golden.items()}
                assert not different_tensors(mode.compute(images[some]), expected)
            counts.add(evaluate(mode, images, np.zeros(34, int), batch).saturated_sums)
    finally:
        torch.set_num_threads(before)
    assert len(counts) == 1
    assert counts.pop() > 0


def test_hardware_mode_on_a_gpu_equals_golden() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    net = small_network()
    images = net.images(50)
    network = quantize(net.graph("fc"), images, QuantConfig(block=4, method="l2"))
    for bits in WIDTHS:
        for room in (-2, 3):
            fixed = with_room(network, images, bits, room)
            mode = HardwareNetwork(fixed, "cuda")
            assert not different_tensors(mode.compute(images), fixed.compute(images))
            x = torch.from_numpy(images)
            results = HardwareNetwork(fixed).results(x)
            found = mode.results(x)
            assert all(found[name].saturated == results[name].saturated for name in results)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("rounding", ["nearest", "truncate"])
def test_blocks_of_wide_numbers_are_rounded_once(signed: bool, rounding) -> None:
    """Numbers of up to 40 bits, many of them next to a half or to a power of two."""
    random = np.random.default_rng(0)
    spec = BlockFloat(3, 4, signed, rounding)
    top = random.integers(1 << 5, 1 << 7, (7, 2, 5, 6)).astype(np.float64)
    x = np.ldexp(top, 33) + random.integers(-2, 3, top.shape)
    x = np.ldexp(x * random.choice([-1, 1], x.shape), random.integers(-60, -30, top.shape))
    x[0, 0] = 0
    assert (x.astype(np.float32) != x).mean() > 0.5
    golden = spec.compute(x.transpose(1, 0, 2, 3))
    assert different_tensors(
        {"x": golden}, {"x": spec.compute(x.astype(np.float32).transpose(1, 0, 2, 3))}
    )
    values = torch.from_numpy(x)
    with workers(1) as pool:
        for threads in (None, pool):
            stored = hardware._block_float(spec, values, threads)
            assert not different_tensors({"x": stored.to_golden()}, {"x": golden})


# Exponents


@given(
    st.floats(2.0**-60, 2.0**60) | st.integers(-60, 60).map(lambda n: 2.0**n),
    st.sampled_from(WIDTHS),
    st.integers(0, 8),
)
def test_the_grid_is_the_finest_that_leaves_the_margin(peak: float, bits: int, margin: int) -> None:
    exponent = choose_grid(peak, FixedFormat(bits), margin).exponent
    assert 2.0 ** (exponent - 1 + bits - 1) <= peak * 2.0**margin < 2.0 ** (exponent + bits - 1)


def test_grids_stay_within_the_exponents_of_float32() -> None:
    form = FixedFormat(32)
    assert choose_grid(0.0, form, 3) == Grid(form, 3 - 31)
    assert choose_grid(2.0**-120, form, 0).exponent == -126
    assert choose_grid(2.0**127, form, 8).exponent == 127 - 31


def largest_sum(layer: Layer, sources: dict[str, BlockTensor], size: tuple[int, int]) -> float:
    """The largest magnitude of the biases and of every partial sum, one number at a time; of a max
    layer, of its results."""
    peak, images = 0.0, len(sources[layer.terms[0].source].codes)
    if layer.reduce == "max":
        return float(np.abs(layer.accumulate(sources)).max())
    for image, o, row, column in np.ndindex(images, layer.bias.size, *size):
        value = layer.bias[o]
        peak = max(peak, abs(float(value)))
        for term in layer.terms:
            for exact in scalar_products(term, sources[term.source], image, o, row, column):
                if exact is not None:
                    value = FLOAT32.add(value, np.float32(float(nearest(exact))))
                    peak = max(peak, abs(float(value)))
    return peak


@pytest.mark.parametrize(("bits", "margin"), [(20, 0), (24, 3), (40, 8)])
def test_the_largest_partial_sum_on_the_images_decides(bits: int, margin: int) -> None:
    net = small_network()
    images = net.images(3)
    options = {"block": 4, "method": "l2"}
    plain = quantize(net.graph("fc"), images, QuantConfig(**options))
    stored, sizes = stored_tensors(plain, images), plain.sizes()
    peaks = {x.name: largest_sum(x, stored, sizes[x.name]) for x in plain.layers}
    for compiled in (True, False):
        mode = HardwareNetwork(plain, compiled=compiled)
        found = mode.results(torch.from_numpy(images), watch=True)
        assert {name: found[name].peak for name in peaks} == peaks
        assert all(result.peak == 0 for result in mode.results(torch.from_numpy(images)).values())
    config = QuantConfig(**options, accumulator=f"fixed{bits}", margin_bits=margin)
    network = quantize(net.graph("fc"), images, config)
    assert network.accumulator == f"fixed{bits}"
    assert "max" in [layer.reduce for layer in network.layers]
    for layer, before in zip(network.layers, plain.layers, strict=True):
        grid = choose_grid(peaks[layer.name], FixedFormat(bits), margin)
        assert layer.grid == grid
        assert np.array_equal(layer.bias, grid.constants(before.bias))
        assert np.array_equal(layer.terms[0].kernel.codes, before.terms[0].kernel.codes)
    assert evaluate(network, images, np.zeros(3, int)).saturated_sums == 0


def test_grids_can_be_chosen_again() -> None:
    net = small_network()
    images = net.images(12)
    config = QuantConfig(block=4, method="l2", accumulator="fixed24")
    network = quantize(net.graph("fc"), images[:2], config)
    again = fix_accumulators(network, 4 * images, FixedFormat(32), margin_bits=1)
    assert again.accumulator == "fixed32"
    ours, theirs = ([each.grid.exponent for each in x.layers] for x in (again, network))  # pyright: ignore[reportOptionalMemberAccess]
    assert ours != [exponent - 8 - 2 for exponent in theirs]
    assert evaluate(again, 4 * images, np.zeros(12, int)).saturated_sums == 0


def test_clamped_layers_keep_their_limits_on_the_grid() -> None:
    net = small_network()
    images = net.images(2)
    plain = quantize(net.graph("fc"), images, QuantConfig(block=4, method="l2"))
    high = float(np.float32(0.73))
    first = replace(plain.layers[0], limits=(-(2.0**-99), high))
    plain = replace(plain, layers=(first, *plain.layers[1:]))
    network = fix_accumulators(plain, images, FixedFormat(20))
    limits, grid = network.layers[0].limits, network.layers[0].grid
    assert limits is not None
    assert grid is not None
    assert limits == (0.0, round(high / 2.0**grid.exponent) * 2.0**grid.exponent)
    assert not math.copysign(1, limits[0]) < 0
    assert not different_tensors(HardwareNetwork(network).compute(images), network.compute(images))


def test_what_trains_or_mixes_layers_keeps_their_grids() -> None:
    net = small_network()
    images = net.images(6)
    graph, config = net.graph("fc"), QuantConfig(block=4, accumulator="fixed24")
    network = quantize(graph, images, config)
    layers = lower(graph)
    student = Student(network, fold_input(layers, network.block)[1])
    with torch.no_grad():
        for name, value in student.named_parameters():
            if name.endswith("change"):
                value.add_(0.1234)
    trained = student.network()
    grids = [layer.grid for layer in network.layers]
    assert [layer.grid for layer in trained.layers] == grids
    assert any(
        not np.array_equal(a.bias, b.bias)
        for a, b in zip(trained.layers, network.layers, strict=True)
    )
    assert not different_tensors(HardwareNetwork(trained).compute(images), trained.compute(images))
    other = quantize(graph, images, replace(config, weight_bits=8))
    assert sensitivities([other, network], layers, images).shape == (len(grids), 2)


# Refusals


def refusal(message: str):
    return pytest.raises(ValueError, match=f"^{message}$")


def test_bad_options_are_refused() -> None:
    allowed = "one of 'float32', 'fixed20' to 'fixed40'"
    with refusal(f"accumulator must be {allowed}, not 'fixed19'"):
        QuantConfig(accumulator="fixed19")
    with refusal("margin_bits must be 0 to 8, not 9"):
        QuantConfig(margin_bits=9)
    wide = "scale must be bf16 or fp32 or e8m0 with fixed-point accumulators, not 'fp16', "
    wide += "whose exponents are too few for their grids"
    with refusal(wide):
        QuantConfig(scale="fp16", accumulator="fixed32")
    with refusal(wide):
        QuantConfig(accumulator="fixed32", overrides={"conv": {"scale": "fp16"}})
    with refusal(
        "overrides of layer 'conv': 'accumulator' is not one of method, recipe, rounding, scale, "
        "weight_bits"
    ):
        QuantConfig(overrides={"conv": {"accumulator": "fixed32"}})
    net = small_network()
    images = net.images(2)
    network = quantize(net.graph("fc"), images, QuantConfig(scale="fp16", block=4, method="l2"))
    with refusal(f"layer 'conv': {wide}"):
        fix_accumulators(network, images, FixedFormat(24))
    with refusal(r"images must be \(N, 3, 6, 6\), not \(2, 3, 6, 5\)"):
        fix_accumulators(network, images[..., :5], FixedFormat(24))
