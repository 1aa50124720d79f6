"""The CIFAR-10 ResNet-20, on real weights and images: needs SHIFTCORE_DATA."""

from pathlib import Path

import numpy as np
import pytest

from shiftcore.benchmarks.models import float_classes
from shiftcore.examples.zoo.cifar import cifar10
from shiftcore.examples.zoo.resnet20 import ResNet20, resnet20
from shiftcore.golden.compare import different_tensors
from shiftcore.golden.network import QuantizedNetwork
from shiftcore.quant.convert import QuantConfig, quantize
from shiftcore.quant.hardware import HardwareNetwork, evaluate
from shiftcore.quant.report import measure


@pytest.fixture(scope="module")
def model(data_folder: Path) -> ResNet20:
    return resnet20(data_folder)


@pytest.fixture(scope="module")
def calibration(data_folder: Path) -> np.ndarray:
    return cifar10(data_folder, 128, "train-20k")[0]


@pytest.fixture(scope="module")
def network(model: ResNet20, calibration: np.ndarray) -> QuantizedNetwork:
    return quantize(model, calibration)


def test_every_block_is_two_layers(network: QuantizedNetwork) -> None:
    blocks = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(3)]
    names = [f"{block}.conv{number}" for block in blocks for number in (1, 2)]
    assert [layer.name for layer in network.layers] == ["conv1", *names, "mean", "linear"]
    assert {layer.output.signed for layer in network.layers if layer.output} == {False}
    # The convolutions and the classifier; shortcuts and the average have none.
    assert sum(network.macs().values()) == 40_551_040
    assert network.macs()["mean"] == 0


@pytest.mark.parametrize(
    "config", [QuantConfig(), QuantConfig(8, 8, 32), QuantConfig(3, 5, 16, "e8m0")]
)
def test_hardware_mode_equals_golden(
    data_folder: Path, model: ResNet20, calibration: np.ndarray, config: QuantConfig
) -> None:
    images, _ = cifar10(data_folder, 2)
    network = quantize(model, calibration[:32], config)
    golden = network.compute(images)
    for compiled in (True, False):
        mode = HardwareNetwork(network, compiled=compiled)
        assert not different_tensors(mode.compute(images), golden)


def test_accuracy_of_four_bits(
    data_folder: Path, model: ResNet20, network: QuantizedNetwork
) -> None:
    images, labels = cifar10(data_folder, 1500)
    floating = 100 * float((float_classes(model, images) == labels).mean())
    assert floating >= 90  # 91.73 on all 10,000 images
    # About half a point lower on all images; of 1,500 that scatters by as much.
    assert evaluate(network, images, labels).top1 >= floating - 1.5


def test_the_report(model: ResNet20, calibration: np.ndarray) -> None:
    network = quantize(model, calibration[:50], QuantConfig(method="l2"))
    report = measure(model, network, calibration[:50])
    assert report.layers[0].saturated == 0
    assert report.layers[0].output_sqnr_db > 35  # 8-bit images
    learnt = [x.weight_sqnr_db for x in report.layers if x.weight_sqnr_db is not None]
    assert min(learnt) > 18
    assert report.sqnr_db > 10
