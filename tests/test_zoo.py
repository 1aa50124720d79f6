"""Whole networks of every structure: the graph, the float path and the bits."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from shiftcore.frontend.archive import read
from shiftcore.golden.network import QuantizedNetwork
from shiftcore.quant.calibrate import float_tensors
from shiftcore.quant.convert import QuantConfig, quantize
from shiftcore.quant.coverage import coverage
from shiftcore.quant.hardware import HardwareNetwork, evaluate
from shiftcore.quant.lower import lower
from shiftcore.tests.networks import assert_same_tensors
from shiftcore.tests.zoo.blocks import calibrated
from shiftcore.tests.zoo.catalogue import CATALOGUE
from shiftcore.tests.zoo.resnet8 import raw_cifar10, resnet8


@pytest.fixture(scope="module", params=CATALOGUE)
def case(request: pytest.FixtureRequest) -> tuple[str, nn.Module, np.ndarray]:
    """A small network and images for it."""
    entry = CATALOGUE[request.param]
    torch.manual_seed(0)
    model = calibrated(entry.small(), entry.size)
    images = np.random.default_rng(0).normal(size=(4, 3, entry.size, entry.size))
    return request.param, model, images.astype(np.float32)


def test_the_float_path_computes_what_the_module_does(case: tuple) -> None:
    _, model, images = case
    with torch.inference_mode():
        expected = model(torch.from_numpy(images))
    (tensors,) = float_tensors(lower(read(model, torch.from_numpy(images[:1]))), images)
    result = list(tensors.values())[-1].flatten(1)
    # Folding reorders float32 operations; this compares structure, not rounding.
    torch.testing.assert_close(result, expected, rtol=1e-3, atol=1e-4)


def test_hardware_mode_equals_golden(case: tuple, tmp_path: Path) -> None:
    name, model, images = case
    batch = torch.export.Dim("batch")
    program = torch.export.export(
        model, (torch.from_numpy(images[:2]),), dynamic_shapes=({0: batch},)
    )
    torch.export.save(program, tmp_path / "model.pt2")
    network = quantize(tmp_path / "model.pt2", images, QuantConfig(block=8))
    assert network.fold is not None
    assert sum(network.macs().values()) == coverage(tmp_path / "model.pt2").macs
    network.save(tmp_path / "net.safetensors")
    loaded = QuantizedNetwork.load(tmp_path / "net.safetensors")
    golden = loaded.compute(images[:2])
    assert_same_tensors(HardwareNetwork(network).compute(images[:2]), golden)
    limited = [layer for layer in network.layers if layer.limits is not None]
    assert bool(limited) == (name == "mobilenetv2")


# The structures at full size: layers and multiply-accumulates as published.
PUBLISHED = {
    "resnet18": 1_814_073_344,
    "resnet50": 4_089_184_256,
    "vgg11": 7_609_090_048,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_full_size_networks_have_the_published_size(name: str) -> None:
    with torch.device("meta"):
        model = CATALOGUE[name].full().eval()
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, 224, 224, device="meta"))
    assert counter.get_total_flops() == 2 * PUBLISHED[name]


def test_resnet8_keeps_its_accuracy(data_folder: Path) -> None:
    model = resnet8(data_folder)
    images, labels = raw_cifar10(data_folder, 500)
    with torch.inference_mode():
        classes = model(torch.from_numpy(images)).argmax(1).numpy()
    floating = 100 * float((classes == labels).mean())
    assert floating >= 85  # 87.19 on all 10,000 images
    network = quantize(model, raw_cifar10(data_folder, 64, "train-20k")[0])
    assert network.fold is not None
    few = images[:2]
    assert_same_tensors(HardwareNetwork(network).compute(few), network.compute(few))
    # Rounding weights to four bits without retraining costs a network this small several points;
    # four bits of activation cost next to nothing.
    assert evaluate(network, images, labels).top1 >= floating - 10
    wide = quantize(model, raw_cifar10(data_folder, 64, "train-20k")[0], QuantConfig(8, 4))
    assert evaluate(wide, images, labels).top1 >= floating - 3
