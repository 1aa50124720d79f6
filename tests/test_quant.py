"""Lowering, calibration, conversion and the hardware mode, on networks small enough to look at."""

import math
from dataclasses import replace
from fractions import Fraction
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

from shiftcore.frontend.archive import read
from shiftcore.frontend.graph import (
    Add,
    AvgPool,
    BatchNorm,
    Conv2d,
    Flatten,
    Graph,
    Input,
    Linear,
    MaxPool,
    Node,
    Output,
    ReLU,
)
from shiftcore.golden.bfp import BlockFloat, BlockTensor, FixedPoint, Rounding
from shiftcore.golden.compare import different_tensors
from shiftcore.golden.floats import BF16, FLOAT32, SCALE_FORMATS
from shiftcore.golden.fold import Fold
from shiftcore.golden.layers import Layer, Term
from shiftcore.golden.network import QuantizedNetwork
from shiftcore.golden.vqk import VariableQuantizedKernel
from shiftcore.quant import hardware
from shiftcore.quant.calibrate import float_tensors, input_exponent, signed_tensors
from shiftcore.quant.compiled import Accumulated, CompiledLayer, workers
from shiftcore.quant.convert import QuantConfig, constant_code, quantize
from shiftcore.quant.fold import fold_input
from shiftcore.quant.hardware import HardwareNetwork, evaluate
from shiftcore.quant.lower import lower
from shiftcore.quant.report import measure


class Builder:
    """Graph nodes with random weights."""

    def __init__(self, channels: int = 3, size: tuple[int, int] = (6, 6), seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[Node] = [Input("input", (), (channels, *size))]

    def _normal(self, *shape: int, spread: float = 1) -> NDArray[np.float32]:
        return self.random.normal(scale=spread, size=shape).astype(np.float32)

    def shape(self, name: str) -> tuple[int, ...]:
        return Graph((*self.nodes, Output("output", (name,)))).shapes[name]

    def add(self, node: Node) -> str:
        self.nodes.append(node)
        return node.name

    def conv(self, name: str, source: str, filters: int, size: int = 3, **options) -> str:
        options.setdefault("padding", (size // 2,) * 4)
        depth = self.shape(source)[0] // options.get("groups", 1)
        weight = self._normal(filters, depth, size, size, spread=(depth * size * size) ** -0.5)
        bias = self._normal(filters, spread=0.25)
        return self.add(Conv2d(name, (source,), weight, bias, **options))

    def norm(self, name: str, source: str) -> str:
        weight, bias, mean, variance = self._normal(4, self.shape(source)[0])
        return self.add(BatchNorm(name, (source,), weight, bias, mean, variance**2 + 0.1, 1e-5))

    def linear(self, name: str, source: str, filters: int) -> str:
        features = self.shape(source)[0]
        weight = self._normal(filters, features, spread=features**-0.5)
        return self.add(Linear(name, (source,), weight, self._normal(filters)))

    def graph(self, result: str) -> Graph:
        return Graph((*self.nodes, Output("output", (result,))))

    def images(self, count: int) -> np.ndarray:
        return self._normal(count, *self.shape("input"))


def layer_terms(graph: Graph) -> list[tuple[str, list[str], bool]]:
    """Name, sources and ReLU of every lowered layer."""
    return [(layer.name, [t.source for t in layer.terms], layer.relu) for layer in lower(graph)]


def small_network() -> Builder:
    """A residual block with a projection and one without, pools, and an odd width; ends at "fc"."""
    net = Builder()
    net.add(ReLU("relu", (net.norm("bn", net.conv("conv", "input", 5)),)))
    net.norm("bn1", net.conv("conv1", "relu", 10, stride=(2, 2)))
    net.add(ReLU("relu1", ("bn1",)))
    net.norm("bn2", net.conv("conv2", "relu1", 10))
    net.norm("bn3", net.conv("shortcut", "relu", 10, 1, stride=(2, 2)))
    net.add(ReLU("relu2", (net.add(Add("add", ("bn2", "bn3"))),)))
    net.add(Add("add1", (net.conv("conv4", "relu2", 10, groups=2), "relu2")))
    net.add(MaxPool("max", ("add1",), (2, 2), (1, 1)))
    net.add(AvgPool("mean", ("max",), (2, 2), (2, 2)))
    net.linear("fc", net.add(Flatten("flatten", ("mean",))), 4)
    return net


# Lowering


def test_lowering_folds_fuses_and_joins() -> None:
    assert layer_terms(small_network().graph("fc")) == [
        ("conv", ["input"], True),
        ("conv1", ["conv"], True),
        ("conv2", ["conv1", "conv"], True),
        ("conv4", ["conv2", "conv2"], False),
        ("max", ["conv4"], False),
        ("mean", ["max"], False),
        ("fc", ["mean"], False),
    ]
    layers = {layer.name: layer for layer in lower(small_network().graph("fc"))}
    convolution, identity = layers["conv4"].terms
    assert (convolution.constant, identity.constant) == (False, True)
    assert (identity.groups, identity.weight.shape) == (10, (10, 1, 1, 1))
    assert (layers["max"].reduce, layers["mean"].reduce) == ("max", "add")


def batches_of_one(graph: Graph, images: np.ndarray) -> dict[str, torch.Tensor]:
    (tensors,) = float_tensors(lower(graph), images)
    return tensors


class TorchNetwork(nn.Module):
    """Most of what the importer reads, with shapes that catch transposed axes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, (3, 2), (1, 2), (2, 0), (1, 2))
        self.norm = nn.BatchNorm2d(6)
        self.depthwise = nn.Conv2d(6, 12, 3, padding="same", groups=6, bias=False)
        self.before = nn.BatchNorm2d(12)
        self.pool = nn.MaxPool2d((3, 2), (2, 1), (1, 0))
        self.average = nn.AvgPool2d(3, 2, 1)
        self.linear = nn.Linear(12 * 2, 7)
        self.last = nn.BatchNorm1d(7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.conv(x))
        x = self.pool(torch.relu(self.before(self.depthwise(x))))
        return self.last(self.linear(torch.flatten(self.average(x), 1)))


def test_lowering_computes_what_the_module_does() -> None:
    torch.manual_seed(0)
    model = TorchNetwork()
    images = torch.randn(8, 3, 5, 8)
    model.train()(images)  # statistics that are not 0 and 1
    model.eval()
    for norm in (model.norm, model.before, model.last):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    with torch.inference_mode():
        expected = model(images)
    result = list(batches_of_one(read(model, images), images.numpy()).values())[-1]
    # Folding reorders float32 operations; this compares structure, not rounding.
    torch.testing.assert_close(result.flatten(1), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("block", [1, 4, 32])
def test_hardware_mode_is_the_expanded_convolution(block: int, compiled: bool) -> None:
    """Of any real numbers, to 1e-6 of the sum of all magnitudes: float32 adds up the blocks."""
    torch.manual_seed(0)
    images = torch.randn(6, 40, 9, 8)
    model = nn.Sequential(
        nn.Conv2d(40, 24, 3, 2, 1), nn.ReLU(),
        nn.Conv2d(24, 36, 3, dilation=2, padding=2, groups=3), nn.ReLU(),
        nn.Conv2d(36, 10, 1, bias=False),
    ).eval()  # fmt: skip
    config = QuantConfig(4, 8, block, "fp32", input_bits=16, method="l2")
    network = quantize(model, images.numpy(), config)
    results = HardwareNetwork(network, compiled=compiled).results(images)
    farthest = 0.0
    for layer in network.layers:
        (term,) = layer.terms
        scales = term.kernel.scales
        assert (BF16.round(scales) != scales).mean() > 0.9
        source = results[term.source].stored
        assert source is not None
        top, bottom, left, right = term.padding
        x = nn.functional.pad(source.decode().transpose(0, 1), (left, right, top, bottom))
        weight = torch.from_numpy(term.kernel.reconstruct())
        bias = torch.from_numpy(layer.bias).double()
        options = (term.stride, 0, term.dilation, term.kernel.groups)
        expected = nn.functional.conv2d(x, weight, bias, *options)
        magnitudes = nn.functional.conv2d(x.abs(), weight.abs(), bias.abs(), *options)
        found = results[layer.name].raw.transpose(0, 1).double()
        farthest = max(farthest, float(((found - expected).abs() / magnitudes).max()))
    assert 0 < farthest < 1e-6


def test_batch_norm_is_folded_before_rounding_to_float32() -> None:
    net = Builder()
    graph = net.graph(net.norm("bn", net.conv("conv", "input", 4)))
    conv, norm = graph.nodes[1], graph.nodes[2]
    assert isinstance(conv, Conv2d)
    assert isinstance(norm, BatchNorm)
    scale = norm.weight / np.sqrt(norm.variance.astype(np.float64) + norm.epsilon)
    (layer,) = lower(graph)
    weight = (conv.weight * scale[:, None, None, None]).astype(np.float32)
    bias = (conv.bias * scale + (norm.bias - norm.mean * scale)).astype(np.float32)
    assert np.array_equal(layer.terms[0].weight, weight)
    assert np.array_equal(layer.bias, bias)


def test_batch_norm_with_nothing_to_fold_into_is_a_depthwise_layer() -> None:
    net = Builder()
    net.conv("conv", "input", 4)
    net.norm("bn", "conv")  # the convolution is read twice
    net.add(Add("add", ("conv", "bn")))
    graph = net.graph(net.conv("last", net.norm("bn1", "add"), 2))
    assert layer_terms(graph) == [
        ("conv", ["input"], False),
        ("bn", ["conv", "conv"], False),
        ("bn1", ["bn"], False),
        ("last", ["bn1"], False),
    ]


def test_relu_merges_where_it_can_and_copies_where_it_must() -> None:
    net = Builder()
    net.conv("conv", "input", 4)
    net.add(ReLU("relu", ("conv",)))  # something else reads the convolution
    net.add(Add("add", ("relu", "conv")))
    net.add(ReLU("relu1", (net.add(MaxPool("max", ("add",), (2, 2), (2, 2))),)))
    graph = net.graph(net.conv("last", "relu1", 2))
    assert layer_terms(graph) == [
        ("conv", ["input"], False),
        ("relu", ["conv"], True),
        ("add", ["relu", "conv"], False),
        ("max", ["add"], True),
        ("last", ["max"], False),
    ]
    images = net.images(4)
    tensors = batches_of_one(graph, images)
    assert torch.equal(tensors["relu"], tensors["conv"].relu())
    assert torch.equal(tensors["add"], tensors["relu"] + tensors["conv"])


def test_a_sum_of_one_tensor_with_itself_reads_it_twice() -> None:
    net = Builder()
    net.add(Add("add", (net.conv("conv", "input", 4), "conv")))
    assert layer_terms(net.graph("add")) == [
        ("conv", ["input"], False),
        ("add", ["conv", "conv"], False),
    ]


def test_nested_sums_join_in_one_layer() -> None:
    net = Builder()
    net.add(Add("add", (net.conv("a", "input", 4), net.conv("b", "input", 4))))
    net.add(Add("add1", ("add", net.conv("c", "input", 4))))
    graph = net.graph("add1")
    assert layer_terms(graph) == [("a", ["input", "input", "input"], False)]
    (layer,) = lower(graph)
    biases = [node.bias.astype(np.float64) for node in graph.nodes if isinstance(node, Conv2d)]
    assert np.array_equal(layer.bias, np.sum(biases, axis=0).astype(np.float32))


def test_a_max_pool_of_the_images_reads_a_copy() -> None:
    net = Builder()
    net.add(MaxPool("max", ("input",), (2, 2), (2, 2)))
    graph = net.graph(net.conv("conv", "max", 4))
    assert layer_terms(graph) == [
        ("max.input", ["input"], False),
        ("max", ["max.input"], False),
        ("conv", ["max"], False),
    ]
    images = net.images(4)
    stored = quantize(graph, images, QuantConfig(act_bits=8)).compute(images)
    copy, result = stored["max.input"], stored["max"]
    assert isinstance(copy, BlockTensor)
    assert isinstance(result, BlockTensor)
    windows = copy.values().reshape(4, 3, 3, 2, 3, 2)
    assert np.array_equal(result.values(), windows.max((3, 5)))


def test_a_linear_layer_covers_the_image_that_was_flattened() -> None:
    net = Builder(channels=3, size=(2, 5))
    graph = net.graph(net.linear("fc", net.add(Flatten("flatten", ("input",))), 4))
    (layer,) = lower(graph)
    assert layer.terms[0].weight.shape == (4, 3, 2, 5)


def test_a_result_that_cannot_leave_as_it_is_is_copied() -> None:
    net = Builder()
    net.conv("last", net.conv("conv", "input", 4), 2)
    for name in ("input", "conv"):
        layers = layer_terms(net.graph(name))
        assert layers[-1] == ("output", [name], False)
    assert layer_terms(net.graph("last")) == [("conv", ["input"], False), ("last", ["conv"], False)]


def test_a_relu_at_the_output_clamps_the_raw_result() -> None:
    net = Builder()
    graph = net.graph(net.add(ReLU("relu", (net.conv("conv", "input", 4),))))
    assert layer_terms(graph) == [("conv", ["input"], True)]
    images = net.images(4)
    network = quantize(graph, images)
    (layer,) = network.layers
    assert (layer.output, layer.limits) == (None, (0, FLOAT32.largest))
    stored = {"input": network.encode_input(images)}
    result = network.compute(images)["conv"]
    assert isinstance(result, np.ndarray)
    assert np.array_equal(result, layer.accumulate(stored).clip(0))
    assert not different_tensors(HardwareNetwork(network).compute(images), network.compute(images))


def test_batch_norm_after_a_real_flatten_is_refused() -> None:
    net = Builder(channels=2, size=(2, 2))
    net.norm("bn", net.add(Flatten("flatten", (net.conv("conv", "input", 2),))))
    with pytest.raises(ValueError, match="layer 'bn': batch norm of 8 features after a flatten"):
        lower(net.graph(net.linear("fc", "bn", 2)))


def test_adding_what_only_a_flatten_makes_alike_is_refused() -> None:
    net = Builder(channels=2, size=(2, 2))
    net.add(Flatten("flatten", (net.conv("conv", "input", 2),)))
    net.add(Add("add", (net.linear("fc", "flatten", 8), "flatten")))
    with pytest.raises(ValueError, match=r"layer 'add': adding \(8, 1, 1\) to \(2, 2, 2\) after a"):
        lower(net.graph("add"))


def test_folding_that_overflows_is_refused_by_name() -> None:
    net = Builder()
    net.conv("conv", "input", 4)
    big, zero = np.full(4, 3e38, np.float32), np.zeros(4, np.float32)
    net.add(BatchNorm("bn", ("conv",), big, zero, zero, zero, 1e-5))
    with pytest.raises(ValueError, match="layer 'conv': its folded weights or biases are not fin"):
        lower(net.graph("bn"))


# Calibration and conversion


def test_signs_come_from_relus_and_from_negative_values() -> None:
    net = small_network()
    layers, images = lower(net.graph("fc")), net.images(20)
    assert signed_tensors(layers, images) == {"input", "conv4", "max", "mean", "fc"}
    network = quantize(net.graph("fc"), images, QuantConfig(block=4))
    stored = [layer.output for layer in network.layers]
    assert stored[-1] is None
    assert [output.signed for output in stored if output] == [False] * 3 + [True] * 3


def test_an_average_of_unsigned_values_is_unsigned() -> None:
    net = Builder()
    net.add(ReLU("relu", (net.conv("conv", "input", 4),)))
    net.add(AvgPool("mean", ("relu",), (6, 6), (6, 6)))
    graph = net.graph(net.linear("fc", net.add(Flatten("flatten", ("mean",))), 2))
    network = quantize(graph, net.images(4))
    assert [layer.output.signed for layer in network.layers if layer.output] == [False, False]


@given(
    st.integers(2, 16),
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=5),
    st.integers(-40, 20),
)
def test_the_input_grid_is_the_finest_that_clips_nothing(
    bits: int, values: list[float], scale: int
) -> None:
    images = np.ldexp(np.array(values, np.float32), scale).reshape(1, 1, 1, -1)
    exponent = input_exponent(images, bits)

    def clips(exponent: int) -> bool:
        q = [round(Fraction(float(x)) / Fraction(2) ** exponent) for x in images.flat]
        return min(q) < -(2 ** (bits - 1)) or max(q) > 2 ** (bits - 1) - 1

    assert not clips(exponent)
    if np.abs(images).max() > 2.0**-60:
        assert clips(exponent - 1)


def test_black_images_have_a_grid() -> None:
    spec = FixedPoint(input_exponent(np.zeros((1, 1, 2, 2), np.float32), 8), 16, 4)
    assert not spec.integers(np.zeros((1, 1, 2, 2), np.float32)).any()


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("name", SCALE_FORMATS)
def test_a_constant_gets_the_nearest_code_and_scale(bits: int, name: str) -> None:
    scale_format = SCALE_FORMATS[name]
    assert constant_code(1.0, bits, scale_format) == (1, 1.0)
    assert constant_code(1 / 64, bits, scale_format) == (1, 1 / 64)
    for taps in range(1, 65):
        code, scale = constant_code(1 / taps, bits, scale_format)
        assert scale_format.round(scale) == np.float32(scale)
        error = abs(code * scale - 1 / taps)
        for other in range(1, 1 << (bits - 1)):
            around = scale_format.round(1 / taps / other * np.array([0.5, 0.995, 1, 1.005, 2]))
            assert (np.abs(other * around.astype(np.float64) - 1 / taps) >= error).all()


def test_pools_and_identities_are_exact_where_they_can_be() -> None:
    net = small_network()
    layers = {layer.name: layer for layer in quantize(net.graph("fc"), net.images(4)).layers}
    assert np.array_equal(layers["conv4"].terms[1].kernel.reconstruct(), np.ones((10, 1, 1, 1)))
    assert np.array_equal(layers["max"].terms[0].kernel.reconstruct(), np.ones((10, 1, 2, 2)))
    quarter = np.full((10, 1, 2, 2), 0.25)
    assert np.array_equal(layers["mean"].terms[0].kernel.reconstruct(), quarter)


def test_conversion_encodes_with_the_golden_quantizer() -> None:
    net = small_network()
    config = QuantConfig(3, 5, 4, "fp16", "l2", "P", "truncate", 9)
    network = quantize(net.graph("fc"), net.images(4), config)
    assert network.input == FixedPoint(network.input.exponent, 4, 5, 9)
    fold, folded = fold_input(lower(net.graph("fc")), 4)
    assert network.fold == fold == Fold((3, 3), padding=(1, 1, 1, 1))
    for layer, reference in zip(network.layers, folded, strict=True):
        assert layer.output in (None, BlockFloat(4, 5, layer.name in signed(net), "truncate"))
        for term, source in zip(layer.terms, reference.terms, strict=True):
            if source.constant or source.source == "input":  # what reads the fold is compensated
                continue
            kernel = VariableQuantizedKernel.quantize(
                source.weight, weight_bits=3, block=4, groups=source.groups, recipe="P",
                scale_format=SCALE_FORMATS["fp16"],
            )  # fmt: skip
            assert np.array_equal(term.kernel.codes, kernel.codes)
            assert np.array_equal(term.kernel.scales, kernel.scales)


def signed(net: Builder) -> frozenset[str]:
    return signed_tensors(lower(net.graph("fc")), net.images(4))


def test_overrides_reach_one_layer() -> None:
    net = small_network()
    overrides = {"conv1": {"weight_bits": 7, "rounding": "truncate", "scale": "fp32"}}
    network = quantize(net.graph("fc"), net.images(4), QuantConfig(overrides=overrides))
    for layer in network.layers:
        kernel, changed = layer.terms[0].kernel, layer.name == "conv1"
        assert kernel.weight_bits == (7 if changed else 4)
        assert kernel.scale_format.name == ("fp32" if changed else "bf16")
        rounding = "truncate" if changed else "nearest"
        assert layer.output is None or layer.output.rounding == rounding


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block": 0}, "block must be 1 to 1024, not 0"),
        ({"block": 2.5}, "block must be a whole number from 1 to 1024, not 2.5"),
        ({"block": "16"}, "block must be a whole number from 1 to 1024, not '16'"),
        ({"weight_bits": 4.0}, r"weight_bits must be a whole number from 2 to 8, not 4\.0"),
        ({"weight_bits": 1}, "weight_bits must be 2 to 8, not 1"),
        ({"act_bits": 9}, "act_bits must be 2 to 8, not 9"),
        ({"act_bits": True}, "act_bits must be a whole number from 2 to 8, not True"),
        ({"input_bits": 17}, "input_bits must be 2 to 16, not 17"),
        ({"scale": "bf15"}, "scale must be bf16 or fp16 or fp32 or e8m0, not 'bf15'"),
        ({"recipe": "Q"}, "recipe must be R or P or O, not 'Q'"),
        ({"rounding": "up"}, "rounding must be nearest or truncate, not 'up'"),
        ({"overrides": {"a": {"block": 8}}}, "overrides of layer 'a': 'block' is not one of"),
        ({"overrides": {"a": {"weight_bits": 9}}}, "weight_bits must be 2 to 8, not 9"),
    ],
)
def test_a_wrong_configuration_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        QuantConfig(**options)


def test_wrong_calls_are_refused() -> None:
    net = small_network()
    graph, images = net.graph("fc"), net.images(4)
    with pytest.raises(ValueError, match="overrides name 'bn', which is no layer; layers are conv"):
        quantize(graph, images, QuantConfig(overrides={"bn": {"weight_bits": 3}}))
    with pytest.raises(ValueError, match=r"images must be \(N, 3, 6, 6\), not \(4, 3, 6, 5\)"):
        quantize(graph, images[..., :5])
    with pytest.raises(ValueError, match=r"images must be \(N, 3, 6, 6\), not \(0, 3, 6, 6\)"):
        quantize(graph, images[:0])
    with pytest.raises(ValueError, match=r"images must be \(N, C, H, W\), not \(3, 6, 6\)"):
        quantize(nn.Conv2d(3, 4, 1).eval(), images[0])
    images[1, 2, 3, 4] = np.nan
    with pytest.raises(ValueError, match="images hold NaN or infinities"):
        quantize(graph, images)
    network = quantize(graph, net.images(4))
    with pytest.raises(ValueError, match="images hold NaN or infinities"):
        HardwareNetwork(network).compute(images)
    with pytest.raises(ValueError, match=r"labels must be \(4,\), not \(3,\)"):
        evaluate(network, net.images(4), np.zeros(3, int))
    other = Builder()
    unlike = other.graph(other.conv("conv", "input", 4))
    with pytest.raises(ValueError, match="was not made from this model: layers differ"):
        measure(unlike, network, net.images(4))


# Hardware mode


@st.composite
def random_networks(draw: st.DrawFn) -> tuple[QuantizedNetwork, np.ndarray]:
    """A network of any configuration with arbitrary codes, scales and biases, and images for it."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    block, m = draw(st.sampled_from([1, 2, 3, 4, 8, 16])), draw(st.integers(2, 8))
    scale_format = SCALE_FORMATS[draw(st.sampled_from(sorted(SCALE_FORMATS)))]
    # Ordinary values, values about the smallest and the largest of float32, and all together.
    spread, centre = draw(st.sampled_from([(4, 0), (4, -126), (4, 112), (60, 0)]))

    def kernel(filters: int, channels: int, groups: int, taps: tuple[int, int]):
        bits = draw(st.integers(2, 8))
        depth = channels // groups
        codes = random.integers(-(1 << (bits - 1)), 1 << (bits - 1), (filters, depth, *taps))
        empty = VariableQuantizedKernel.quantize(
            np.zeros(codes.shape), weight_bits=bits, block=block, groups=groups,
            scale_format=scale_format,
        )  # fmt: skip
        signs = random.choice([-1.0, 1.0] if scale_format.signed else [1.0], empty.scales.shape)
        scales = signs * random.uniform(1, 2, signs.shape)
        scales *= 2.0 ** random.integers(-spread, spread, signs.shape)
        scales[random.random(signs.shape) < 0.1] = 0
        # Scales past the blocks of a group stay 0.
        used = np.zeros(signs.shape, bool)
        for group in range(groups):
            used[empty.group_filters(group), : len(empty.group_blocks(group))] = True
        return replace(
            empty, codes=codes.astype(np.int8), scales=scale_format.round(np.where(used, scales, 0))
        )

    def term(source: str, channels: int, filters: int, groups: int) -> Term:
        threes, twos = (st.tuples(st.integers(1, n), st.integers(1, n)) for n in (3, 2))
        taps, stride, dilation = draw(threes), draw(threes), draw(twos)
        top, left, bottom, right = draw(st.tuples(*[st.integers(0, 2)] * 4))
        # Both layers fit whatever is drawn: what they read has at least one pixel, an image two.
        if source == "input":
            top, left = top - 1, left - 1
        bottom += dilation[0] * (taps[0] - 1)
        right += dilation[1] * (taps[1] - 1)
        padding = (top, bottom, left, right)
        return Term(source, kernel(filters, channels, groups, taps), stride, padding, dilation)

    def layer(name: str, terms: tuple[Term, ...], reduce, last: bool = False) -> Layer:
        filters = terms[0].kernel.out_channels
        bias = random.normal(size=filters) * 2.0 ** (
            centre + random.integers(-spread, spread, filters)
        )
        rounding = draw(st.sampled_from(get_args(Rounding)))
        output = None if last else BlockFloat(block, m, draw(st.booleans()), rounding)
        ends = FLOAT32.round(np.sort(random.normal(size=2)) * 2.0**centre)
        limits = (float(ends[0]), float(ends[1])) if draw(st.booleans()) else None
        return Layer(name, terms, FLOAT32.round(bias), reduce, output, limits)

    groups = draw(st.integers(1, 3))
    channels = [groups * draw(st.integers(1, 7)), groups * draw(st.integers(1, 7))]
    exponent = draw(st.integers(-12, 2) if spread == 4 else st.integers(-95, 95)) + centre
    exponent = max(exponent, -126)
    size = draw(st.tuples(st.integers(2, 6), st.integers(2, 6)))
    first = layer("first", (term("input", channels[0], channels[1], groups),), "add")
    width, depthwise = channels[1], draw(st.booleans())
    second = (
        term("first", width, width, width)
        if depthwise
        else term("first", width, groups * draw(st.integers(1, 3)), groups)
    )
    reduce = draw(st.sampled_from(["add", "max"]))
    terms = [second]
    if reduce == "add" and draw(st.booleans()):
        twin = kernel(second.kernel.out_channels, width, 1, second.kernel_size)
        terms.append(replace(second, kernel=twin))
    layers = (first, layer("second", tuple(terms), reduce))
    last = kernel(3, layers[1].bias.size, 1, (1, 1))
    layers = (*layers, layer("last", (Term("second", last),), "add", last=True))
    bits = draw(st.integers(2, 12))
    images = np.ldexp(random.normal(size=(3, channels[0], *size)) * (1 << (bits - 2)), exponent)
    images[:, :, :2] *= random.random((3, channels[0], 2, size[1])) < 0.5
    network = QuantizedNetwork(FixedPoint(exponent, block, m, bits), (channels[0], *size), layers)
    return network, images.astype(np.float32)


@given(random_networks())
@settings(max_examples=150)
def test_hardware_mode_equals_golden_on_random_networks(
    case: tuple[QuantizedNetwork, np.ndarray],
) -> None:
    network, images = case
    golden = network.compute(images)
    for compiled in (True, False):
        mode = HardwareNetwork(network, compiled=compiled)
        assert not different_tensors(mode.compute(images), golden)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("scale", sorted(SCALE_FORMATS))
@pytest.mark.parametrize(("bits", "block"), [(2, 4), (4, 16), (8, 3)])
def test_hardware_mode_equals_golden_on_a_converted_network(
    scale: str, bits: int, block: int, compiled: bool
) -> None:
    net = small_network()
    images = net.images(5)
    network = quantize(net.graph("fc"), images, QuantConfig(bits, bits, block, scale))
    mode = HardwareNetwork(network, compiled=compiled)
    golden = network.compute(images)
    assert not different_tensors(mode.compute(images), golden)
    stored = {name: t for name, t in golden.items() if isinstance(t, BlockTensor)}
    for layer in network.layers:
        raw = mode.results(torch.from_numpy(images))[layer.name].raw.transpose(0, 1).numpy()
        assert np.array_equal(raw.view(np.uint32), layer.accumulate(stored).view(np.uint32))


@pytest.mark.parametrize(("fast", "compiled"), [(False, True), (True, True), (True, False)])
def test_all_ways_to_compute_give_the_same(
    fast: bool, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen, ran = [], []

    def plain(self: hardware.HardwareLayer, sources: list[hardware.Stored]) -> bool:
        chosen.append(original(self, sources))
        return fast

    def kernel(layer: CompiledLayer, *arguments) -> Accumulated:
        ran.append(layer)
        return loops(layer, *arguments)

    net = small_network()
    images = net.images(5)
    network = quantize(net.graph("fc"), images, QuantConfig(block=4))
    original, loops = hardware.HardwareLayer._plain, CompiledLayer.accumulate
    monkeypatch.setattr(hardware.HardwareLayer, "_plain", plain)
    monkeypatch.setattr(CompiledLayer, "accumulate", kernel)
    mode = HardwareNetwork(network, compiled=compiled)
    assert not different_tensors(mode.compute(images), network.compute(images))
    assert all(chosen)  # an ordinary network takes the fast way
    assert len(ran) == (len(network.layers) if fast and compiled else 0)


def test_wide_sums_and_far_exponents_leave_the_fast_way() -> None:
    def plain(block: int, scale: float, exponent: int, blocks: int = 1) -> bool:
        channels = block * blocks
        codes = np.full((1, channels, 1, 1), -128, np.int8)
        scales = BF16.round(np.full((1, blocks, 1, 1), scale))
        kernel = VariableQuantizedKernel(codes, scales, 8, block)
        network = QuantizedNetwork(
            FixedPoint(exponent, block, 8),
            (channels, 1, 1),
            (Layer("conv", (Term("input", kernel),), np.zeros(1, np.float32)),),
        )
        images = np.ldexp(np.full((1, channels, 1, 1), -128, np.float32), exponent)
        mode = HardwareNetwork(network)
        assert not different_tensors(mode.compute(images), network.compute(images))
        source = mode.results(torch.from_numpy(images))["input"].stored
        assert source is not None
        return mode._layers[0]._plain([source])

    assert plain(16, 1.0, 0)
    assert plain(512, 1.0, 0)
    assert not plain(513, 1.0, 0)
    assert not plain(16, 2.0**-60, -60)
    assert not plain(16, 2.0**60, 60)
    # Scaled sums that are ordinary, of sums that are not.
    assert not plain(16, 2.0**-60, 110)
    assert not plain(16, 2.0**60, -130)
    # One product fits, and the sum of four does not.
    assert plain(16, 2.0**53, 54)
    assert not plain(16, 2.0**53, 54, blocks=4)


def test_rounding_equals_golden_at_the_ends_of_the_range() -> None:
    random = np.random.default_rng(0)
    edges = np.ldexp(1.0, [-127, -126, -125, -1, 0, 126, 127, 128])
    # Midpoints between float32 numbers, and what lies closest to them.
    steps = np.arange(-3, 4) * 0.5
    values = edges[:, None] * (1 + steps * 2.0**-23)
    values = np.concatenate([values, edges[:, None] * (1 + steps * 2.0**-24)], axis=1)
    near = np.concatenate([values, np.nextafter(values, 0), np.nextafter(values, np.inf)], axis=1)
    many = random.normal(size=10_000) * 2.0 ** random.integers(-160, 140, 10_000)
    exact = np.concatenate([near.ravel(), -near.ravel(), many, [0.0, -0.0]])
    rounded = hardware._round(torch.from_numpy(exact)).numpy()
    assert np.array_equal(rounded.view(np.uint32), FLOAT32.round(exact).view(np.uint32))


@pytest.mark.parametrize("exponent", [-130, -100, -8, 0, 9, 108])
@pytest.mark.parametrize(("bits", "act_bits"), [(8, 8), (8, 4), (11, 3)])
def test_the_input_is_quantized_as_golden_does(exponent: int, bits: int, act_bits: int) -> None:
    if exponent == -130 and act_bits < 8:
        exponent = -126  # the last plane's exponent field ends here
    random = np.random.default_rng(0)
    images = np.ldexp(random.normal(size=(2, 5, 3, 4)) * 100, exponent).astype(np.float32)
    images[0, 0, 0] = 0
    images[0, 0, 1] = np.ldexp([0.5, 1.5, -2.5, 127.5], exponent)  # halfway between codes
    spec = FixedPoint(exponent, 4, act_bits, bits)
    stored = hardware.fixed_point(spec, torch.from_numpy(images)).to_golden()
    assert not different_tensors({"x": stored}, {"x": spec.compute(images)})


def test_a_maximum_is_never_minus_zero() -> None:
    for scale_format in (SCALE_FORMATS["bf16"], SCALE_FORMATS["fp32"]):
        codes = np.array([-3, 0, 3], np.int8).reshape(3, 1, 1, 1)
        scales = np.full((3, 1, 1, 1), -1, np.float32)
        kernel = VariableQuantizedKernel(codes, scales, 4, 4, 3, scale_format)
        layer = Layer("max", (Term("input", kernel),), np.full(3, -1, np.float32), "max")
        network = QuantizedNetwork(FixedPoint(0, 4, 8), (3, 1, 1), (layer,))
        images = np.zeros((1, 3, 1, 1), np.float32)
        in_torch = HardwareNetwork(network).compute(images)
        assert not different_tensors(in_torch, network.compute(images))


def test_results_do_not_depend_on_the_callers_precision_or_batch() -> None:
    net = small_network()
    images = net.images(7)
    network = quantize(net.graph("fc"), images, QuantConfig(8, 8, 4, "fp32"))
    mode, golden = HardwareNetwork(network), network.compute(images)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu"):
            assert not different_tensors(mode.compute(images), golden)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    whole = mode(torch.from_numpy(images))
    parts = [mode(torch.from_numpy(images[i : i + 1])) for i in range(7)]
    assert torch.equal(whole, torch.cat(parts))


def test_results_do_not_depend_on_threads_or_batch() -> None:
    net = small_network()
    images = net.images(34)
    network = quantize(net.graph("fc"), images, QuantConfig(block=4, scale="fp32"))
    mode, golden = HardwareNetwork(network), network.compute(images)
    before = torch.get_num_threads()
    try:
        # Fewer and more threads than rows, images that fill vectors and that do not.
        for threads, batch in ((1, 34), (2, 1), (3, 16), (7, 17), (11, 2)):
            torch.set_num_threads(threads)
            for first in range(0, len(images), batch):
                some = slice(first, first + batch)
                expected = {name: tensor[some] for name, tensor in golden.items()}
                assert not different_tensors(mode.compute(images[some]), expected)
    finally:
        torch.set_num_threads(before)


def test_the_parts_of_a_piece_of_work_cover_it_once() -> None:
    for threads, size, parts in ((1, (5, 3), 1), (3, (2, 7), 4), (4, (9, 2), 4), (2, (1, 1), 8)):
        with workers(threads) as run:
            done = run(lambda rows, columns: (rows, columns), size, parts)
        cells = [(y, x) for rows, columns in done for y in range(*rows) for x in range(*columns)]
        assert sorted(cells) == [(y, x) for y in range(size[0]) for x in range(size[1])]
        assert len(done) >= min(size[0] * size[1], max(threads, parts))


def test_hardware_mode_on_a_gpu_equals_golden() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    net = small_network()
    images = net.images(50)
    for config in (QuantConfig(block=4), QuantConfig(8, 8, 4, "fp32")):
        network = quantize(net.graph("fc"), images, config)
        mode = HardwareNetwork(network, "cuda")
        assert not different_tensors(mode.compute(images), network.compute(images))


def test_evaluation_counts_what_is_right() -> None:
    net = small_network()
    images = net.images(11)
    network = quantize(net.graph("fc"), images)
    scores = network.compute(images)["fc"]
    assert isinstance(scores, np.ndarray)
    labels = scores.reshape(11, 4).argmax(1)
    labels[:3] = (labels[:3] + 1) % 4
    result = evaluate(network, images, labels, batch=4)
    assert (result.images, result.top1) == (11, 100 * 8 / 11)
    assert result.images_per_s > 0


# Report


def test_the_report_measures_every_layer() -> None:
    net = small_network()
    graph, images = net.graph("fc"), net.images(60)
    fine = measure(graph, quantize(graph, images, QuantConfig(8, 8)), images)
    coarse = measure(graph, quantize(graph, images, QuantConfig(3, 3)), images)
    names = ["input", "conv", "conv1", "conv2", "conv4", "max", "mean", "fc"]
    assert [layer.name for layer in fine.layers] == names
    for low, high in zip(coarse.layers[1:], fine.layers[1:], strict=True):
        assert low.output_sqnr_db < high.output_sqnr_db
        if low.weight_sqnr_db is None:
            assert high.weight_sqnr_db is None
            assert low.name in ("max", "mean")
        else:
            assert high.weight_sqnr_db is not None
            assert low.weight_sqnr_db < high.weight_sqnr_db
    assert fine.layers[0].saturated == 0
    assert coarse.layers[1].values == 60 * 5 * 6 * 6
    assert coarse.layers[1].saturated > 0
    assert coarse.sqnr_db == coarse.layers[-1].output_sqnr_db
    assert coarse.layers[-2].average_error == 0
    assert coarse.weight_bytes < fine.weight_bytes < fine.float_bytes


def test_the_report_agrees_with_a_direct_computation() -> None:
    net = small_network()
    graph, images = net.graph("fc"), net.images(10)
    bright = images * 2  # beyond the calibrated range
    network = quantize(graph, images, QuantConfig(block=4))
    report = {layer.name: layer for layer in measure(graph, network, bright).layers}
    integers = np.rint(np.ldexp(bright.astype(np.float64), -network.input.exponent))
    assert report["input"].saturated == ((integers < -128) | (integers > 127)).sum() > 0
    stored = network.compute(bright)
    sources = {name: t for name, t in stored.items() if isinstance(t, BlockTensor)}
    conv = network.layers[0]
    raw = np.maximum(conv.accumulate(sources), 0).astype(np.float64)
    lost = raw - sources["conv"].values()
    units = np.repeat(np.ldexp(1.0, sources["conv"].unit_exponents), 4, axis=1)[:, :5]
    assert report["conv"].saturated == (lost > units / 2).sum() > 0
    reference = batches_of_one(graph, bright)["conv"].double()
    kept = torch.from_numpy(sources["conv"].values()).contiguous()
    noise = (kept - reference).square().sum().item()
    expected = 10 * math.log10(reference.square().sum().item() / noise)
    assert report["conv"].output_sqnr_db == expected


def test_the_report_states_the_error_of_an_average() -> None:
    net = Builder()
    net.add(AvgPool("mean", (net.conv("conv", "input", 4),), (3, 3), (3, 3)))
    graph, images = net.graph(net.conv("last", "mean", 2, 1)), net.images(4)
    layer = measure(graph, quantize(graph, images), images).layers[2]
    code, scale = constant_code(1 / 9, 4, BF16)
    assert layer.average_error == code * scale / np.float32(1 / 9).item() - 1
    assert layer.average_error is not None
    assert abs(layer.average_error) < 2.0**-9
