"""What fails in the code that the authors of DSConv published, one test for each failure.

Where a test of a part shows it already, this is the place: blocks of zeros that become NaN
(``test_scales``, ``golden/test_vqk``), KL scales that barely move (``test_scales``), three bits and
odd counts that packing loses (``test_dsconv``), and the activation of a bottleneck
(``test_activation``).
"""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from shiftcore.examples.digits import data, model
from shiftcore.examples.zoo.catalogue import CATALOGUE
from shiftcore.golden.floats import FP32
from shiftcore.golden.vqk import VariableQuantizedKernel, weight_blocks
from shiftcore.quant.convert import QuantConfig, quantize
from shiftcore.quant.dsconv import DSConv2d, DSConvConfig, quantize_
from shiftcore.quant.hardware import HardwareNetwork

IMAGES = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def gaussian(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape)


def layer() -> Any:
    torch.manual_seed(0)
    return DSConv2d.from_conv(nn.Conv2d(3, 4, 3), DSConvConfig(4, 2))


@pytest.mark.parametrize(("bits", "percent"), [(2, 1.7), (3, 0.51), (4, 0.20)])
def test_codes_do_not_leave_their_range(bits: int, percent: float):
    """Without the clamp about so many percent of Gaussian weights would, in blocks of 128."""
    weight = gaussian(4000, 128, 1, 1)
    kernel = VariableQuantizedKernel.quantize(weight, weight_bits=bits, block=128)
    limit = 1 << (bits - 1)
    assert (kernel.codes.min(), kernel.codes.max()) == (-limit, limit - 1)
    extreme = np.take_along_axis(weight, np.abs(weight).argmax(1, keepdims=True), 1)
    outside = np.rint(-limit * weight / extreme) > limit - 1
    assert 100 * outside.mean() == pytest.approx(percent, rel=0.1)
    assert (kernel.codes[outside] == limit - 1).all()


def test_the_blocks_of_two_groups_have_the_size_asked_for():
    """Not 32 and 96 of the 128 channels of a group."""
    for group in range(2):
        assert [part.size for part in weight_blocks(128, group, 32)] == [32] * 4
    kernel = VariableQuantizedKernel.quantize(
        gaussian(4, 128, 1, 1), weight_bits=4, block=32, groups=2
    )
    assert kernel.scales.shape == (4, 4, 1, 1)


def test_a_ragged_last_block_keeps_its_own_scale():
    """Depth 192 in blocks of 128: equal parts of 96 are 60 % off where the halves differ."""
    weight = gaussian(8, 192, 1, 1)
    weight[:, 128:] *= 8
    kernel = VariableQuantizedKernel.quantize(weight, weight_bits=8, block=128, scale_format=FP32)
    assert [part.size for part in weight_blocks(192, 0, 128)] == [128, 64]

    def error(found: np.ndarray) -> float:
        return float(np.linalg.norm(found - weight) / np.linalg.norm(weight))

    assert error(kernel.reconstruct()) < 0.02
    assert error(kernel.codes * np.repeat(kernel.scales, 96, 1)) > 0.5


def test_the_source_weights_are_not_destroyed():
    conv = nn.Conv2d(3, 4, 3)
    before = conv.weight.detach().clone()
    made = DSConv2d.from_conv(conv, DSConvConfig(2))
    assert torch.equal(conv.weight, before)
    assert made.source is conv


@pytest.mark.parametrize("name", ["alexnet", "vgg11", "mobilenetv2"])
def test_whole_networks_keep_their_biases_and_statistics(name: str):
    """Biases of convolutions, counters of batch norm, and depthwise layers at all; they run."""
    entry = CATALOGUE[name]
    network = entry.small().eval()
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d) and part.num_batches_tracked is not None:
            part.num_batches_tracked.fill_(7)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    convolutions = [key for key, part in network.named_modules() if type(part) is nn.Conv2d]
    quantize_(network, DSConvConfig(4, 8, act_bits=4))
    after = network.state_dict()
    for key, value in before.items():
        prefix, _, last = key.rpartition(".")
        if last != "weight":
            assert torch.equal(after[key], value), key
        elif prefix in convolutions:
            assert after[f"{prefix}.codes"].shape == value.shape
    with torch.inference_mode():
        assert network(torch.zeros(1, 3, entry.size, entry.size)).isfinite().all()


def test_shifters_are_parameters_and_codes_are_what_is_computed_with():
    made = layer()
    form = {"_extra_state"}  # bits and blocks of the codes
    parts = {"codes", "scale", "channel_scale", "channel_bias", "bias"}
    assert set(made.state_dict()) == parts | form
    made(IMAGES).square().sum().backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
    made.codes.zero_()
    bias = (made.bias + made.channel_bias)[None, :, None, None]
    assert torch.equal(made(IMAGES), bias.expand(2, -1, 4, 4))


def test_channel_shifters_start_neutral_and_are_applied():
    made = layer()
    assert torch.equal(made.channel_scale, torch.ones(4))
    assert torch.equal(made.channel_bias, torch.zeros(4))
    with torch.no_grad():
        bias = made.bias[:, None, None]
        before = made(IMAGES) - bias
        made.channel_scale.fill_(-2)
        made.channel_bias.fill_(3)
        torch.testing.assert_close(made(IMAGES), -2 * before + bias + 3)


def test_activations_may_stay_float():
    network = model.load()
    quantize_(network, DSConvConfig(act_bits=None))
    assert not any("BlockFloat" in type(part).__name__ for part in network.modules())


def test_the_first_layer_survives_scales_in_half_precision():
    training, held_out = data.load()
    x, y = torch.from_numpy(held_out.x), held_out.y
    right, scales = [], []
    for form in ("fp16", "fp32"):
        config = QuantConfig(method="l2", overrides={"conv1": {"scale": form}})
        network = quantize(model.load(), training.x[:64], config)
        first = network.layers[0].terms[0].kernel
        assert first.scale_format.name == form
        scales.append(first.scales)
        right.append(int((HardwareNetwork(network)(x).flatten(1).argmax(1).numpy() == y).sum()))
    # Half a unit of the last of eleven bits.
    np.testing.assert_allclose(*scales, rtol=2**-11)
    assert abs(right[0] - right[1]) <= 1
