"""Whole networks of every structure: the graph, the float path and the bits."""

from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from shiftcore.compiler.network import compile_network
from shiftcore.estimate.accelerator import predict
from shiftcore.examples.zoo.blocks import calibrated
from shiftcore.examples.zoo.catalogue import CATALOGUE
from shiftcore.examples.zoo.cifar import crop_and_flip, normalised, raw_cifar10
from shiftcore.examples.zoo.resnet8 import resnet8
from shiftcore.frontend import graph as nodes
from shiftcore.frontend.archive import read
from shiftcore.golden.compare import different_tensors
from shiftcore.golden.network import QuantizedNetwork
from shiftcore.quant.calibrate import float_tensors
from shiftcore.quant.convert import QuantConfig, quantize
from shiftcore.quant.coverage import coverage
from shiftcore.quant.hardware import HardwareNetwork, evaluate
from shiftcore.quant.lower import lower
from shiftcore.sim.accelerate import run_program
from shiftcore.tests.compiler.compare import assert_computes
from shiftcore.tests.networks import CONFIG
from shiftcore.tests.zoo.kinds import Leftovers, kinds

SMALL = {name: (entry.small, entry.size) for name, entry in CATALOGUE.items()}
SMALL["leftovers"] = (Leftovers, 20)


class Case(NamedTuple):
    """A small network, its graph, and images for it."""

    name: str
    model: nn.Module
    graph: nodes.Graph
    images: np.ndarray


@cache
def small(name: str) -> Case:
    build, size = SMALL[name]
    torch.manual_seed(0)
    model = calibrated(build(), size)
    images = np.random.default_rng(0).normal(size=(4, 3, size, size)).astype(np.float32)
    return Case(name, model, read(model, torch.from_numpy(images[:1])), images)


@pytest.fixture(params=SMALL)
def case(request: pytest.FixtureRequest) -> Case:
    return small(request.param)


def test_the_float_path_computes_what_the_module_does(case: Case) -> None:
    with torch.inference_mode():
        expected = case.model(torch.from_numpy(case.images))
    (tensors,) = float_tensors(lower(case.graph), case.images)
    result = list(tensors.values())[-1].flatten(1)
    # Folding reorders float32 operations; this compares structure, not rounding.
    torch.testing.assert_close(result, expected, rtol=1e-3, atol=1e-4)


def test_hardware_mode_equals_golden(case: Case, tmp_path: Path) -> None:
    batch = torch.export.Dim("batch")
    program = torch.export.export(
        case.model, (torch.from_numpy(case.images[:2]),), dynamic_shapes=({0: batch},)
    )
    torch.export.save(program, tmp_path / "model.pt2")
    network = quantize(tmp_path / "model.pt2", case.images, QuantConfig(block=8))
    assert network.fold is not None
    assert sum(network.macs().values()) == coverage(tmp_path / "model.pt2").macs
    network.save(tmp_path / "net.safetensors")
    loaded = QuantizedNetwork.load(tmp_path / "net.safetensors")
    golden = loaded.compute(case.images[:2])
    assert not different_tensors(HardwareNetwork(network).compute(case.images[:2]), golden)
    limited = [layer for layer in network.layers if layer.limits is not None]
    assert bool(limited) == (case.name in ("mobilenetv2", "leftovers"))


def test_layers_golden_machine_and_rtl_are_equal(case: Case) -> None:
    network = quantize(case.graph, case.images, QuantConfig(block=CONFIG.rows))
    program = compile_network(network, CONFIG)
    assert_computes(program, network)
    run = run_program(program, program.encode_input(network.encode_input(case.images[:1])))
    assert (run.mismatches, run.first) == (0, None)
    assert run.counters == (predict(program).counters(),)


def test_no_kind_of_layer_is_left_out() -> None:
    """Whatever the front end reads goes through the RTL, in the test above.

    But for `Requantize`, which tells how a network was trained: every layer stores like that.
    """
    classes = [item for item in vars(nodes).values() if isinstance(item, type)]
    supported = {item.__name__ for item in classes if issubclass(item, nodes.Node)}
    variants = {
        "strided", "dilated", "grouped", "depthwise", "global AvgPool", "global MaxPool",
        "concatenation", "slice", "shuffle", "channel pad", "pad", "crop", "subsample",
    }  # fmt: skip
    found = set().union(*(kinds(small(name).graph) for name in SMALL))
    assert found == supported - {"Node", "Unknown", "Requantize"} | variants


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
    assert not different_tensors(HardwareNetwork(network).compute(few), network.compute(few))
    # Four bits of activation cost this small network a point or two, however wide the weights.
    assert evaluate(network, images, labels).top1 >= floating - 4
    wide = quantize(model, raw_cifar10(data_folder, 64, "train-20k")[0], QuantConfig(8, 4))
    assert evaluate(wide, images, labels).top1 >= floating - 4


def test_augmented_images_are_moved_or_mirrored_ones():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(16, 3, 6, 5, generator=generator)
    moved = crop_and_flip(images, generator)
    black = torch.from_numpy(normalised(np.zeros((3, 14, 13), np.float32)))
    found = []
    for image, result in zip(images, moved, strict=True):
        wide = black.clone()
        wide[:, 4:-4, 4:-4] = image
        crops = {(y, x): wide[:, y : y + 6, x : x + 5] for y in range(9) for x in range(9)}
        found += [
            (*place, mirrored)
            for place, crop in crops.items()
            for mirrored in (False, True)
            if torch.equal(result, crop.flip(2) if mirrored else crop)
        ]
    assert len(found) == len(images)
    # Every direction, mirrored and not.
    assert {mirrored for *_, mirrored in found} == {False, True}
    for axis in (0, 1):
        assert {np.sign(place[axis] - 4) for place in found} >= {-1, 1}
