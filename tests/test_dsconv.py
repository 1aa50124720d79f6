"""DSConv layers: the data flow of training, the conversion, and the way to the network file."""

import copy
import io
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from shiftcore.examples.zoo.blocks import calibrated
from shiftcore.examples.zoo.catalogue import CATALOGUE
from shiftcore.frontend.archive import read
from shiftcore.frontend.coded import expand
from shiftcore.frontend.coverage import survey
from shiftcore.frontend.graph import BatchNorm, Graph
from shiftcore.golden.bfp import BlockFloat
from shiftcore.golden.compare import different_tensors
from shiftcore.golden.floats import BF16, FP32, SCALE_FORMATS, ScaleFormat
from shiftcore.golden.network import QuantizedNetwork
from shiftcore.golden.vqk import weight_blocks
from shiftcore.quant.activation import BlockFloatActivation
from shiftcore.quant.calibrate import float_tensors
from shiftcore.quant.convert import QuantConfig, quantize
from shiftcore.quant.dsconv import (
    DSConv2d,
    DSConvConfig,
    DSLinear,
    freeze_,
    quantize_,
    restore_,
    shifters,
)
from shiftcore.quant.hardware import HardwareNetwork
from shiftcore.quant.lower import lower

Network = TypeVar("Network", bound=nn.Module)


def moved(model: Network, seed: int = 0) -> Network:
    """The model with every shifter moved, as training does."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in shifters(model):
            step = 0.1 * parameter.abs().mean() + 0.01 * (parameter.count_nonzero() == 0)
            parameter += step * torch.randn(parameter.shape, generator=generator)
    return model


def naive_weight(layer: DSConv2d) -> np.ndarray:
    """The spec: ``phi * (xi * w_q + xi_s)``, weight by weight."""
    codes = layer.codes.numpy().astype(np.float64)
    scale, channel = layer.scale.detach().numpy(), layer.channel_scale.detach().numpy()
    bias = np.zeros_like(scale) if layer.scale_bias is None else layer.scale_bias.detach().numpy()
    weight = np.zeros(codes.shape)
    for o, _, ky, kx in np.ndindex(codes.shape[0], 1, *codes.shape[2:]):
        group = o // (len(codes) // layer.groups)
        for number, part in enumerate(weight_blocks(codes.shape[1], group, layer.block)):
            for c in range(part.channel, part.channel + part.size):
                inner = scale[o, number, ky, kx] * codes[o, c, ky, kx] + bias[o, number, ky, kx]
                weight[o, c, ky, kx] = channel[o] * inner
    return weight


@st.composite
def convolutions(draw: st.DrawFn) -> nn.Conv2d:
    groups = draw(st.sampled_from([1, 1, 2, 3, 4]))
    padding = draw(st.sampled_from([0, 1, (0, 2), "valid", "same"]))
    torch.manual_seed(draw(st.integers(0, 1 << 20)))
    return nn.Conv2d(
        groups * draw(st.integers(1, 7)),
        groups * draw(st.integers(1, 3)),
        draw(st.sampled_from([(1, 1), (3, 3), (1, 3)])),
        1 if padding == "same" else draw(st.sampled_from([1, 2, (2, 1)])),
        padding,
        draw(st.sampled_from([1, 2])),
        groups,
        draw(st.booleans()),
    )


@given(convolutions(), st.integers(2, 8), st.integers(1, 9), st.booleans())
def test_the_forward_is_a_convolution_with_the_expanded_weight(
    conv: nn.Conv2d, bits: int, block: int, scale_bias: bool
):
    config = DSConvConfig(bits, block, scale_bias=scale_bias)
    before = copy.deepcopy(conv.state_dict())
    layer = moved(DSConv2d.from_conv(conv, config)).double()
    weight = torch.from_numpy(naive_weight(layer))
    torch.testing.assert_close(layer.weight, weight)
    x = torch.randn(2, conv.in_channels, 7, 6, dtype=torch.float64)
    bias = layer.channel_bias if layer.bias is None else layer.bias + layer.channel_bias
    options: Any = (conv.stride, conv.padding, conv.dilation, conv.groups)
    expected = functional.conv2d(x, weight, bias, *options)
    torch.testing.assert_close(layer(x), expected)
    assert conv.state_dict().keys() == before.keys()
    assert all(torch.equal(conv.state_dict()[name], before[name]) for name in before)
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    assert low <= layer.codes.min() <= layer.codes.max() <= high


@pytest.mark.parametrize(
    ("channels", "filters", "groups", "block"),
    [(7, 4, 1, 3), (6, 4, 2, 2), (9, 6, 3, 4), (5, 5, 5, 4)],
)
def test_gradients(channels: int, filters: int, groups: int, block: int):
    torch.manual_seed(0)
    conv = nn.Conv2d(channels, filters, 2, groups=groups).double()
    layer = moved(DSConv2d.from_conv(conv, DSConvConfig(3, block, scale_bias=True)))
    names = ("scale", "scale_bias", "channel_scale", "channel_bias", "bias")
    x = torch.randn(2, channels, 3, 4, dtype=torch.float64, requires_grad=True)

    def call(x: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    inputs = (x, *(getattr(layer, name) for name in names))
    assert torch.autograd.gradcheck(call, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, inputs, fast_mode=True)
    assert "codes" not in dict(layer.named_parameters())
    assert "codes" in dict(layer.named_buffers())


def test_gradients_are_those_of_the_paper():
    torch.manual_seed(0)
    conv = nn.Conv2d(5, 3, 1, bias=False).double()
    layer = moved(DSConv2d.from_conv(conv, DSConvConfig(4, 2, scale_bias=True)))
    gradient = torch.randn(3, 5, 1, 1, dtype=torch.float64)
    layer.weight.backward(gradient)
    scale: Any = layer.scale
    scale_bias: Any = layer.scale_bias
    phi = layer.channel_scale.detach()[:, None]
    g, q = gradient[:, :, 0, 0], layer.codes[:, :, 0, 0]
    for number, channels in enumerate((slice(0, 2), slice(2, 4), slice(4, 5))):
        by_scale = (phi * g * q)[:, channels].sum(1)
        torch.testing.assert_close(scale.grad[:, number, 0, 0], by_scale)
        by_bias = (phi * g)[:, channels].sum(1)
        torch.testing.assert_close(scale_bias.grad[:, number, 0, 0], by_bias)


def test_the_operator_is_registered_as_torch_wants_it():
    torch.manual_seed(0)
    layer = DSConv2d.from_conv(nn.Conv2d(6, 4, 3, groups=2), DSConvConfig(4, 2, scale_bias=True))
    assert layer.scale_bias is not None
    arguments = (layer.codes, layer.scale, layer.scale_bias, layer.channel_scale, 4, 2, 2)
    assert set(torch.library.opcheck(expand, arguments).values()) == {"SUCCESS"}


def small() -> Any:
    """Groups, depthwise, a bias, no bias, a ragged block, a linear layer over four pixels."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 10, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(10, 12, 3, 1, 1, groups=2, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 12, 3, 2, 2, 2, groups=12),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(48, 5),
    ).eval()


CONFIG = DSConvConfig(4, 4, overrides={"8": {"pixels": 4, "weight_bits": 8}})
IMAGES = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def converted() -> Any:
    model = small()
    quantize_(model, CONFIG)
    return model


def test_conversion_in_place_and_back():
    model, names = small(), [name for name, _ in small().named_modules()]
    sources, expected = list(model), model(IMAGES)
    assert quantize_(model, CONFIG) is None
    assert [name for name, _ in model.named_modules()] == names
    assert [type(part).__name__ for part in model] == [
        "DSConv2d", "ReLU", "DSConv2d", "BatchNorm2d", "ReLU", "DSConv2d", "ReLU", "Flatten",
        "DSLinear",
    ]  # fmt: skip
    assert [model[n].weight_bits for n in (0, 2, 5, 8)] == [4, 4, 4, 8]
    assert model[8].codes.shape == (5, 12, 4, 1)
    assert torch.equal(model[5].bias, sources[5].bias)
    assert model[2].bias is None
    assert not any(part.training for part in model.modules())
    moved(model)
    restore_(model)
    assert list(model) == sources
    assert torch.equal(model(IMAGES), expected)
    quantize_(model, CONFIG)
    before = model(IMAGES)
    freeze_(model)
    assert torch.equal(model(IMAGES), before)
    with pytest.raises(ValueError, match=r"^layer '0': it has no source weights to go back to$"):
        restore_(model)


def test_eight_bits_change_little():
    model = small()
    expected = model(IMAGES)
    quantize_(model, DSConvConfig(8, 8, method="joint"))
    assert (model(IMAGES) - expected).norm() < 0.01 * expected.norm()


def test_shared_modules_stay_shared():
    conv = nn.Conv2d(3, 3, 3, 1, 1)
    model = nn.Sequential(conv, nn.ReLU(), conv)
    quantize_(model, DSConvConfig())
    assert model[0] is model[2]
    assert isinstance(model[0], DSConv2d)
    restore_(model)
    assert model[0] is model[2] is conv


def test_a_filter_chooses():
    model = small()
    quantize_(model, CONFIG.layer("none"), lambda module, name: name in ("2", "5"))
    kinds = [type(part) for part in model]
    assert [n for n, kind in enumerate(kinds) if kind is DSConv2d] == [2, 5]
    assert DSLinear not in kinds


def test_shifters_are_named():
    names = [name for name, _ in shifters(converted())]
    parts = ("scale", "channel_scale", "channel_bias")
    assert names == [f"{layer}.{part}" for layer in (0, 2, 5, 8) for part in parts]
    assert names == [n for n, _ in converted().named_parameters() if n in set(names)]
    layer = DSConv2d(2, 2, 1, scale_bias=True)
    assert [name for name, _ in shifters(layer)] == ["scale", "scale_bias", *parts[1:]]


def test_states_load_into_a_new_network():
    model = moved(converted())
    fresh = small()
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.zero_()
    quantize_(fresh, CONFIG)
    fresh.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(fresh(IMAGES), model(IMAGES))
    layer = DSConv2d(10, 12, 3, 1, 1, groups=2, bias=False, weight_bits=4, block=4)
    assert not layer.weight.any()
    layer.load_state_dict(model[2].state_dict(), strict=True)
    assert torch.equal(layer.weight, model[2].weight)


def test_a_state_of_other_blocks_or_bits_is_refused():
    def layer(bits: int, block: int, groups: int = 1) -> DSConv2d:
        torch.manual_seed(0)
        conv = nn.Conv2d(6, 4, 1, groups=groups)
        return DSConv2d.from_conv(conv, DSConvConfig(bits, block))

    for source, message in [
        (layer(4, 3), "codes: block is 3 in the state, 4 here"),
        (layer(8, 4), "codes: weight_bits is 8 in the state, 4 here"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            layer(4, 4).load_state_dict(source.state_dict())
    state = layer(4, 4).state_dict()
    state["codes"] = state["codes"].clone().fill_(8)
    with pytest.raises(RuntimeError, match="codes: do not fit 4 bits"):
        layer(4, 4).load_state_dict(state)


def test_what_does_not_train_does_not_train_afterwards():
    model = pair()
    model[0].requires_grad_(False)
    model[2].bias.requires_grad_(False)
    quantize_(model, DSConvConfig())
    assert not any(parameter.requires_grad for parameter in model[0].parameters())
    trained = {name for name, parameter in model[2].named_parameters() if parameter.requires_grad}
    assert trained == {"scale", "channel_scale", "channel_bias"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_network_of_another_type_is_quantized_in_float32(dtype: torch.dtype):
    model = small().to(dtype)
    network = quantize(model, IMAGES.numpy(), QuantConfig(8, 8, 4, "fp32"))
    assert model[0].weight.dtype is dtype
    same = quantize(copy.deepcopy(model).float(), IMAGES.numpy(), QuantConfig(8, 8, 4, "fp32"))
    for found, expected in zip(network.layers, same.layers, strict=True):
        assert np.array_equal(found.terms[0].kernel.codes, expected.terms[0].kernel.codes)
        assert np.array_equal(found.bias, expected.bias)


def test_copies_pickles_and_archives_of_modules():
    model = moved(converted())
    expected = model(IMAGES)
    for same in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(same(IMAGES), expected)
        restore_(same)
        assert torch.equal(same(IMAGES), small()(IMAGES))
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert state["0.codes"].dtype is torch.int8
    assert not any("source" in name for name in state)


def test_types_and_devices():
    model = moved(converted())
    expected = model(IMAGES)
    double = copy.deepcopy(model).double()
    assert double[0].codes.dtype is torch.int8
    assert double[0].scale.dtype is torch.float64
    torch.testing.assert_close(double(IMAGES.double()).float(), expected)
    assert model.bfloat16()(IMAGES.bfloat16()).dtype is torch.bfloat16
    meta = converted().to("meta")
    assert meta(IMAGES.to("meta")).shape == expected.shape
    assert {part.device.type for part in (*meta.parameters(), *meta.buffers())} == {"meta"}


@pytest.mark.parametrize("to", [{"dtype": torch.float64}, {"device": "meta"}])
def test_restored_layers_have_the_type_and_the_device_of_the_model(to: dict):
    model = converted().to(**to)
    restore_(model)
    expected = small().to(**to).state_dict()
    for name, tensor in model.state_dict().items():
        assert (tensor.dtype, tensor.device) == (expected[name].dtype, expected[name].device)
        assert tensor.is_meta or torch.equal(tensor, expected[name])


def test_autocast_is_that_of_any_convolution():
    model, ordinary = converted(), small()
    with torch.no_grad():
        for n in (0, 2, 5, 8):  # convolutions of the weights that the codes stand for
            ordinary[n].weight.copy_(model[n].weight)
    with torch.autocast("cpu", torch.bfloat16):
        result = model(IMAGES)
        assert torch.equal(result, ordinary(IMAGES))
        assert model[0].weight.dtype is torch.float32
    assert result.dtype is torch.bfloat16
    result.sum().backward()
    assert model[0].scale.grad.dtype is torch.float32


def test_compiled():
    model = moved(converted())
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    expected = model(IMAGES)
    torch.testing.assert_close(compiled(IMAGES), expected)
    expected.sum().backward()
    gradients = [parameter.grad for _, parameter in shifters(model)]
    model.zero_grad()
    compiled(IMAGES).sum().backward()
    for (_, parameter), gradient in zip(shifters(model), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_compiled_training_is_that_of_the_network():
    """By the default compiler, channels last and depthwise, activations requantized."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU()),
        nn.Conv2d(8, 4, 3, groups=2),
    )
    quantize_(model, DSConvConfig(4, 4, act_bits=4))
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    images = torch.randn(2, 6, 12, 12).to(memory_format=torch.channels_last)
    results, gradients = [], []
    compiled: Any = torch.compile(model)
    for network in (model, compiled):
        results.append(network(images))
        gradients.append(torch.autograd.grad(results[-1].square().sum(), list(model.parameters())))
    torch.testing.assert_close(*results)
    torch.testing.assert_close(*gradients)


def test_only_the_shifters_learn():
    model = converted()
    codes = [part.codes.clone() for part in model if isinstance(part, DSConv2d | DSLinear)]
    before = {name: value.detach().clone() for name, value in shifters(model)}
    optimizer = torch.optim.Adam([value for _, value in shifters(model)], 1e-3)
    model(IMAGES).square().sum().backward()
    optimizer.step()
    assert all(not torch.equal(value, before[name]) for name, value in shifters(model))
    after = [part.codes for part in model if isinstance(part, DSConv2d | DSLinear)]
    assert all(map(torch.equal, codes, after))


def test_a_network_that_diverges_names_the_layer():
    model = small()
    with torch.no_grad():
        model[5].weight[3, 0, 1, 1] = torch.nan
    sources = list(model)
    with pytest.raises(ValueError, match=r"^layer '5': a non-finite weight cannot be quantized$"):
        quantize_(model, DSConvConfig())
    assert list(model) == sources


def pair() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1))


def tiny_weights() -> nn.Sequential:
    model = pair()
    nn.init.normal_(model[0].get_parameter("weight"), std=1e-6)
    return model


def hooked() -> nn.Sequential:
    model = pair()
    model[0].register_forward_hook(lambda module, inputs, output: None)
    return model


def tied() -> nn.Sequential:
    model = pair()
    model[2].weight = model[0].weight
    return model


def weight_normed() -> nn.Sequential:
    model = pair()
    nn.utils.parametrizations.weight_norm(model[0])
    return model


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DSConvConfig(1), r"weight_bits must be 2 to 8, not 1"),
        (lambda: DSConvConfig(block=0), r"block must be 1 to 1024, not 0"),
        (
            lambda: DSConvConfig(method="mse"),  # pyright: ignore[reportArgumentType]
            r"method must be l2 or kl or joint, not 'mse'",
        ),
        (lambda: DSConvConfig(act_bits=9), r"act_bits must be 2 to 8, not 9"),
        (
            lambda: DSConvConfig(overrides={"0": {"act_bits": 4}}),
            r"overrides of layer '0': 'act_bits' is not one of block, method, pixels, .*",
        ),
        (lambda: DSConvConfig(overrides={"0": {"block": 0}}), r"block must be .*, not 0"),
        (
            lambda: quantize_(small(), DSConvConfig(overrides={"1": {"block": 2}})),
            r"overrides name '1', which is not changed; layers are 0, 2, 5, 8",
        ),
        (
            lambda: quantize_(nn.Conv2d(1, 1, 1), DSConvConfig()),
            r"quantize_ changes the layers inside of a network; make a single one .*",
        ),
        (
            lambda: quantize_(small(), DSConvConfig(), lambda module, name: name == "3"),
            r"layer '3': only Conv2d and Linear become DSConv layers, not BatchNorm2d, .*",
        ),
        (
            lambda: quantize_(small(), DSConvConfig(overrides={"8": {"pixels": 5}})),
            r"layer '8': pixels must divide the 48 features, not 5",
        ),
        (
            lambda: DSConv2d(3, 4, 3, padding_mode="reflect"),
            r"padding_mode must be 'zeros', which the accelerator has, not 'reflect'",
        ),
        (lambda: DSConv2d(3, 4, 3, groups=2), r"groups must divide 3 and 4 channels, not 2"),
        (lambda: DSConv2d(0, 4, 3), r"in_channels must be from 1, a whole number .*, not 0"),
        (
            lambda: DSConv2d(3, 4, (3,)),  # pyright: ignore[reportArgumentType]
            r"kernel_size must be .* or a pair, not \(3,\)",
        ),
        (
            lambda: DSConv2d(3, 4, 3, padding="foo"),  # pyright: ignore[reportArgumentType]
            r"Invalid padding string 'foo', .*",
        ),
        (
            lambda: DSConv2d(3, 4, 3, 2, padding="same"),
            r"padding='same' is not supported for strided convolutions",
        ),
        (lambda: DSLinear(0, 3), r"in_features must be from 1, .*, not 0"),
        (
            lambda: DSConvConfig(scale_bias="no"),  # pyright: ignore[reportArgumentType]
            r"scale_bias must be True or False, not 'no'",
        ),
        (
            lambda: DSConvConfig(overrides=[1]),  # pyright: ignore[reportArgumentType]
            r"overrides must be values by layer and name, not \[1\]",
        ),
        (
            lambda: DSConvConfig(overrides={"0": 3}),  # pyright: ignore[reportArgumentType]
            r"overrides of layer '0' must be by name, not 3",
        ),
        (
            lambda: DSConv2d.from_conv(nn.Conv2d(3, 4, 3, device="meta"), DSConvConfig()),
            r"its weights are on the meta device, where they have no values",
        ),
        (
            lambda: quantize_(tiny_weights().half(), DSConvConfig(8)),
            r"layer '0': its scales do not fit torch.float16; convert it in float32",
        ),
        (
            lambda: quantize_(hooked(), DSConvConfig()),
            r"layer '0': it has hooks, which its DSConv form would lose; remove them first",
        ),
        (
            lambda: quantize_(tied(), DSConvConfig()),
            r"layer '0': 0\.weight and 2\.weight are one parameter, .*",
        ),
        (
            lambda: quantize_(weight_normed(), DSConvConfig()),
            r"layer '0': only Conv2d and Linear .*, not ParametrizedConv2d, which may compute .*",
        ),
    ],
)
def test_mistakes_are_one_clear_line(call, message: str):
    with pytest.raises(ValueError, match=f"^{message}$"):
        call()


def test_the_kernel_is_rounded_once():
    torch.manual_seed(0)
    layer = moved(DSConv2d.from_conv(nn.Conv2d(6, 4, 3), DSConvConfig(3, 4)))
    kernel = layer.kernel(BF16)
    exact = (
        layer.scale.detach().double() * layer.channel_scale.detach().double()[:, None, None, None]
    )
    assert np.array_equal(kernel.scales, BF16.round(exact.numpy()))
    assert np.array_equal(kernel.codes, layer.codes.numpy())
    torch.testing.assert_close(
        torch.from_numpy(layer.kernel(FP32).reconstruct()).float(), layer.weight
    )


# To the network file


CHANGES = {"vgg11": ["classifier.0"], "alexnet": ["classifier.1"]}
"""linear layers that read pixels twice, because the images of the tests are small"""


def structure(name: str) -> tuple[nn.Module, torch.Tensor]:
    """A small network of the catalogue as trained DSConv layers, and images."""
    torch.manual_seed(0)
    entry = CATALOGUE[name]
    model = calibrated(entry.small(), entry.size)
    source = copy.deepcopy(model.state_dict())
    left = CHANGES.get(name, [])
    quantize_(
        model,
        DSConvConfig(3, 8),
        lambda module, path: type(module) in (nn.Conv2d, nn.Linear) and path not in left,
    )
    restored = copy.deepcopy(model)
    restore_(restored)
    state = restored.state_dict()
    assert state.keys() == source.keys()
    assert all(torch.equal(state[key], source[key]) for key in source)
    return moved(model), torch.randn(2, 3, entry.size, entry.size)


def stored_weights(
    model: nn.Module, graph: Graph, network: QuantizedNetwork, form: ScaleFormat
) -> dict[str, tuple[DSConv2d | DSLinear, NDArray[np.float64]]]:
    """Every DSConv layer and its weight in the file: ``code * round(scale * phi * norm)``."""
    # A batch norm that could not be folded is layers of its own.
    layers = [f"{layer.name}." for layer in network.layers]
    norms = {
        node.inputs[0]: node.scale
        for node in graph.nodes
        if isinstance(node, BatchNorm)
        and not any(layer.startswith(f"{node.name}.") for layer in layers)
    }
    found = {}
    for name, layer in model.named_modules():
        if isinstance(layer, DSConv2d | DSLinear):
            factor = layer.channel_scale.detach().double().numpy() * norms.get(name, 1)
            steps = layer.scale.detach().double().numpy() * factor[:, None, None, None]
            blocks = layer.kernel(FP32).blocks
            found[name] = layer, layer.codes.numpy() * blocks.expand(form.round(steps))
    return found


def nonzero(weight: NDArray) -> list[float]:
    """The weights in an order of their own: concatenations spread them over terms."""
    return sorted(weight[weight != 0].tolist())


@pytest.mark.parametrize("name", CATALOGUE)
def test_training_ends_in_the_network_file_unchanged(name: str):
    model, images = structure(name)
    with torch.inference_mode():
        expected = model(images)
    graph = read(model, images[:1])
    (tensors,) = float_tensors(lower(graph), images.numpy())
    result = list(tensors.values())[-1].flatten(1)
    torch.testing.assert_close(result, expected, rtol=1e-3, atol=1e-4)
    network = quantize(graph, images.numpy(), QuantConfig(8, 8, 8))
    assert network.fold is None
    # Three bits: only these layers have them.
    kernels = {
        layer.name: [t.kernel for t in layer.terms if t.kernel.weight_bits == 3]
        for layer in network.layers
    }
    everything = [kernel for layer in kernels.values() for kernel in layer]
    for path, (layer, weight) in stored_weights(model, graph, network, BF16).items():
        # By its own name, inside of the layer of an addition, or as the parts of a concatenation.
        own = [k for n, part in kernels.items() if f"{n}.".startswith(f"{path}.") for k in part]
        candidates = [kernel for kernel in (*own, *everything) if kernel.codes.size == weight.size]
        codes, values = layer.codes.numpy().ravel(), weight.ravel()
        assert any(
            np.array_equal(kernel.codes.ravel(), codes)
            and np.array_equal(kernel.reconstruct().ravel(), values)
            for kernel in candidates
        ) or nonzero(np.concatenate([k.reconstruct().ravel() for k in own])) == nonzero(weight)


def test_a_saved_program_is_quantized_in_another_process(tmp_path: Path):
    model = moved(converted())
    model[3].weight.data.uniform_(-1, 1)  # a negative factor turns scales, not codes
    program = torch.export.export(model, (IMAGES[:1],))
    torch.export.save(program, tmp_path / "model.pt2")
    np.savez(tmp_path / "images.npz", x=IMAGES.numpy())
    command = [sys.executable, "-P", "-m", "shiftcore.cli", "quantize", "model.pt2"]
    options = ["--calib", "images.npz", "-o", "net.safetensors", "--block", "4", "--scale", "fp16"]
    done = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    network = QuantizedNetwork.load(tmp_path / "net.safetensors")
    assert [layer.name for layer in network.layers] == ["0", "2", "5", "8"]
    kernels = {layer.name: layer.terms[0].kernel for layer in network.layers}
    assert [kernel.weight_bits for kernel in kernels.values()] == [4, 4, 4, 8]
    for name, (layer, weight) in stored_weights(
        model, read(program), network, SCALE_FORMATS["fp16"]
    ).items():
        assert np.array_equal(kernels[name].codes.reshape(layer.codes.shape), layer.codes)
        assert np.array_equal(kernels[name].reconstruct().reshape(weight.shape), weight)
    biases = {layer.name: layer.bias for layer in network.layers}
    assert np.array_equal(biases["0"], (model[0].bias + model[0].channel_bias).detach().numpy())


def test_channel_shifters_of_any_sign_pass_through_the_file(tmp_path: Path):
    """phi zero and negative, and a bias of its own, folded with a batch norm of both signs."""
    model = small()
    quantize_(model, CONFIG)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        model[3].weight.uniform_(-2, 2, generator=generator)
        for part in (model[3].bias, model[3].running_mean):
            part.normal_(generator=generator)
        model[3].running_var.uniform_(0.5, 2, generator=generator)
        for layer in (model[n] for n in (0, 2, 5, 8)):
            layer.channel_scale.normal_(generator=generator)
            layer.channel_scale[::3] = 0
            layer.channel_bias.normal_(generator=generator)
            assert layer.channel_scale.min() < 0
        expected = model(IMAGES)
        exact = copy.deepcopy(model).double()(IMAGES.double())
    graph = read(model, IMAGES[:1])
    (tensors,) = float_tensors(lower(graph), IMAGES.numpy())
    difference = (tensors["8"].flatten(1).double() - exact).abs().max()
    assert difference < 1e-6 * exact.abs().max()
    quantize(graph, IMAGES.numpy(), QuantConfig(4, 8, 4)).save(tmp_path / "net.safetensors")
    network = QuantizedNetwork.load(tmp_path / "net.safetensors")
    biases = {layer.name: layer.bias for layer in network.layers}
    kernels = {layer.name: layer.terms[0].kernel for layer in network.layers}
    (norm,) = (node for node in graph.nodes if isinstance(node, BatchNorm))
    for name, (layer, weight) in stored_weights(model, graph, network, BF16).items():
        kernel = kernels[name]
        assert np.array_equal(kernel.codes.reshape(layer.codes.shape), layer.codes)
        assert np.array_equal(kernel.reconstruct().reshape(weight.shape), weight)
        assert not kernel.reconstruct()[::3].any()
        bias = layer.channel_bias if layer.bias is None else layer.bias + layer.channel_bias
        bias = bias.detach().double().numpy()
        if name == "2":
            bias = bias * norm.scale + norm.shift
        assert np.array_equal(biases[name], bias.astype(np.float32))
    result = HardwareNetwork(network)(IMAGES).flatten(1)
    assert (result - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("bits", range(2, 9))
def test_odd_counts_of_every_width_pass_through_the_file(bits: int, tmp_path: Path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 7, 1)).eval()
    quantize_(model, DSConvConfig(bits, 4))
    network = quantize(moved(model), IMAGES.numpy(), QuantConfig(4, 8, 4))
    network.save(tmp_path / "net.safetensors")
    loaded = QuantizedNetwork.load(tmp_path / "net.safetensors")
    for n, layer in zip(("0", "2"), loaded.layers, strict=True):
        assert np.array_equal(layer.terms[0].kernel.codes, model.state_dict()[f"{n}.codes"])
        assert layer.terms[0].kernel.weight_bits == bits
    images = IMAGES.numpy()
    assert not different_tensors(HardwareNetwork(loaded).compute(images), network.compute(images))


def test_activations_of_training_reach_the_network():
    model = small()
    quantize_(model, DSConvConfig(8, 4, act_bits=8, overrides=CONFIG.overrides))
    network = quantize(model, IMAGES.numpy(), QuantConfig(8, 8, 4, "fp32"))
    assert [layer.name for layer in network.layers] == ["0", "2", "5", "8"]
    with torch.inference_mode():
        expected = model(IMAGES)
    # The image alone is rounded otherwise.
    result = HardwareNetwork(network)(IMAGES).flatten(1)
    assert (result - expected).norm() < 0.02 * expected.norm()
    for config, message in [
        (QuantConfig(8, 4, 4), r"layer '1\.1': it was trained with act_bits 8, not 4; .* with 8"),
        (QuantConfig(8, 8, 8), r"layer '1\.1': it was trained with block 4, not 8; .* with 4"),
        (
            QuantConfig(8, 8, 4, rounding="truncate"),
            r"layer '1\.1': it was trained with rounding 'nearest', not 'truncate'; .*",
        ),
    ]:
        with pytest.raises(ValueError, match=f"^{message}$"):
            quantize(model, IMAGES.numpy(), config)


def stored_after(*before: nn.Module, signed: bool, after: nn.Module) -> QuantizedNetwork:
    """The network of these layers with block floating point between `before` and `after`."""
    activation = BlockFloatActivation(BlockFloat(4, 8, signed))
    model = nn.Sequential(*before, activation, after).eval()
    with torch.inference_mode():
        expected = model(IMAGES)
    network = quantize(model, IMAGES.numpy(), QuantConfig(8, 8, 4, "fp32", input_bits=16))
    found = HardwareNetwork(network)(IMAGES)
    assert (found - expected).norm() < 0.02 * expected.norm()
    return network


@pytest.mark.parametrize("signed", [False, True])
def test_activations_are_stored_with_the_sign_of_training(signed: bool):
    torch.manual_seed(0)
    conv, after = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)
    network = stored_after(conv, signed=signed, after=after)
    assert [layer.name for layer in network.layers] == ["0", "2"]
    assert network.layers[0].output == BlockFloat(4, 8, signed)
    stored_after(conv, nn.MaxPool2d(2), signed=signed, after=after)
    first = stored_after(signed=signed, after=nn.Conv2d(3, 4, 3)).layers
    assert [layer.name for layer in first] == ["0", "1"]


def test_a_sign_of_training_stays_where_no_image_needs_it():
    torch.manual_seed(0)
    conv, after = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)
    nn.init.constant_(conv.get_parameter("bias"), 100)
    network = stored_after(conv, signed=True, after=after)
    assert network.layers[0].output == BlockFloat(4, 8, True)
    assert not (network.compute(IMAGES.numpy())["0"].codes < 0).any()


@pytest.mark.parametrize("signed", [False, True])
def test_activations_are_stored_before_what_comes_after(signed: bool):
    """Rounding and then clamping is not clamping and then rounding."""
    torch.manual_seed(0)
    conv, spec = nn.Conv2d(3, 8, 3), BlockFloat(4, 3, signed)
    for after in (nn.Hardtanh(-0.3, 0.3), nn.ReLU()):
        model = nn.Sequential(conv, BlockFloatActivation(spec), after, nn.Flatten()).eval()
        network = quantize(model, IMAGES.numpy(), QuantConfig(8, 3, 4, "fp32", input_bits=16))
        assert [layer.name for layer in network.layers][:2] == ["0", "2"]
        assert network.layers[0].output == spec
        hardware = HardwareNetwork(network)
        stored = hardware.results(IMAGES)["0"].stored
        assert stored is not None
        with torch.inference_mode():
            assert torch.equal(hardware(IMAGES), model[2](stored.decode_images()))


@pytest.mark.parametrize("signed", [False, True])
def test_a_result_that_was_trained_as_stored_is_stored(signed: bool):
    torch.manual_seed(0)
    spec = BlockFloat(4, 3, signed)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), BlockFloatActivation(spec)).eval()
    network = quantize(model, IMAGES.numpy(), QuantConfig(8, 3, 4, "fp32"))
    assert [layer.output for layer in network.layers] == [spec, None]
    result = HardwareNetwork(network)(IMAGES)
    with torch.inference_mode():
        assert torch.equal(model[1](result), result)


def test_after_a_relu_a_sign_is_refused_and_its_lack_changes_nothing():
    torch.manual_seed(0)
    conv, after = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)
    pool = nn.MaxPool2d(2)
    network = stored_after(conv, nn.ReLU(), signed=False, after=after)
    assert [layer.name for layer in network.layers] == ["0", "3"]
    network = stored_after(conv, nn.ReLU(), pool, signed=False, after=after)
    assert [layer.limits for layer in network.layers] == [None] * 3
    message = (
        "it was trained with a sign, but what cannot be negative is stored without one; train with "
        "signed=False"
    )
    for number, before in [(2, [nn.ReLU()]), (3, [nn.ReLU(), pool]), (2, [nn.Hardtanh(0, 6)])]:
        with pytest.raises(ValueError, match=f"^layer '{number}': {message}$"):
            stored_after(conv, *before, signed=True, after=after)


def test_what_no_accelerator_computes_is_refused():
    model = small()
    quantize_(model, DSConvConfig(4, 4, overrides={"2": {"scale_bias": True}, "8": {"pixels": 4}}))
    message = (
        r"its weight blocks have a bias, for which the accelerator would have to add up "
        r"activations; train with scale_bias=False$"
    )
    with pytest.raises(ValueError, match=rf"^layer '2' \(shiftcore\.expand\.default\): {message}"):
        quantize(model, IMAGES.numpy(), QuantConfig(block=4))
    (problem,) = survey(model, IMAGES[:1]).unsupported
    assert (problem.name, problem.remedy) == ("2", "train with scale_bias=False")
    with pytest.raises(ValueError, match=r"^a bias of weight blocks cannot be stored: .*"):
        model[2].kernel()
    with torch.no_grad():
        model[2].scale_bias.zero_()
    quantize(model, IMAGES.numpy(), QuantConfig(block=4))
    model[2].kernel()


def test_blocks_that_do_not_fit_are_refused():
    model = converted()
    message = (
        r"^layer '2': blocks of 8 channels would hold codes of several scales; quantize with the "
        r"layer's own block, 4 \(and make a linear layer with its pixels\)$"
    )
    with pytest.raises(ValueError, match=message):
        quantize(model, IMAGES.numpy(), QuantConfig(block=8))
    quantize_(plain := small(), DSConvConfig(4, 4))  # without pixels
    with pytest.raises(ValueError, match=r"^layer '8': blocks of 4 channels would hold .*"):
        quantize(plain, IMAGES.numpy(), QuantConfig(block=4))


def test_a_smaller_block_of_the_machine_fits():
    network = quantize(converted(), IMAGES.numpy(), QuantConfig(block=2, act_bits=8))
    assert network.layers[1].terms[0].kernel.block == 2


def test_a_negative_scale_is_no_power_of_two():
    with pytest.raises(ValueError, match=r"^layer '0': scales stored as e8m0 must not be negative"):
        quantize(converted(), IMAGES.numpy(), QuantConfig(block=4, scale="e8m0"))
    model = small()
    del model[3]
    quantize_(model, DSConvConfig(4, 4, scale="e8m0", overrides={"7": {"pixels": 4}}))
    network = quantize(model, IMAGES.numpy(), QuantConfig(block=4, scale="e8m0"))
    for name, layer in zip((0, 2, 4, 7), network.layers, strict=True):
        stored = layer.terms[0].kernel
        assert np.array_equal(stored.scales.ravel(), model[name].scale.detach().numpy().ravel())


def test_computing_with_a_weight_of_codes_is_refused():
    class Doubled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = DSConv2d.from_conv(nn.Conv2d(3, 4, 1), DSConvConfig())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return functional.conv2d(x, 2 * self.layer.weight)

    message = (
        r"^layer 'mul' \(aten\.mul\.Tensor\): it computes with a weight of codes; only "
        r"convolutions and linear layers may read it$"
    )
    with pytest.raises(ValueError, match=message):
        read(Doubled().eval(), IMAGES[:1])


def test_core_operators_keep_the_codes():
    model = moved(converted())
    program = torch.export.export(model, (IMAGES[:1],))
    with warnings.catch_warnings():
        # torch 2.13 warns about its own use of a deprecated class when it copies a program.
        warnings.simplefilter("ignore", FutureWarning)
        program = program.run_decompositions()
    network = quantize(program, IMAGES.numpy(), QuantConfig(block=4))
    same = quantize(model, IMAGES.numpy(), QuantConfig(block=4))
    for a, b in zip(network.layers, same.layers, strict=True):
        assert np.array_equal(a.terms[0].kernel.codes, b.terms[0].kernel.codes)
        assert np.array_equal(a.terms[0].kernel.scales, b.terms[0].kernel.scales)
