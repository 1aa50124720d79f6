"""Top-1 of the CIFAR-10 ResNet-20 in hardware mode, against the float network on the same images.

The figures of all test images are those of ``benchmarks/accuracy.py``; here are enough of them to
tell the formats apart.
"""

from functools import cache
from pathlib import Path

import pytest

from shiftcore.benchmarks.models import float_classes
from shiftcore.examples.zoo.cifar import cifar10
from shiftcore.examples.zoo.resnet20 import resnet20
from shiftcore.quant.convert import QuantConfig, quantize
from shiftcore.quant.hardware import evaluate

IMAGES = 600
MORE_IMAGES = 2000
"""where a limit is a few images: of 600 it would be two"""


@cache
def float_top1(folder: Path, images: int) -> float:
    x, labels = cifar10(folder, images)
    return 100 * float((float_classes(resnet20(folder), x) == labels).mean())


@cache
def loss(folder: Path, config: tuple, images: int = IMAGES) -> float:
    """Points of top-1 that a configuration costs."""
    x, labels = cifar10(folder, images)
    calibration, _ = cifar10(folder, 64, "train-20k")
    network = quantize(resnet20(folder), calibration, QuantConfig(*config))
    return float_top1(folder, images) - evaluate(network, x, labels, batch=100).top1


@pytest.mark.parametrize("block", [8, 32, 128])
@pytest.mark.parametrize(("bits", "most"), [(4, 2.0), (3, 5.0)])
def test_weights_alone_cost_little(data_folder: Path, bits: int, block: int, most: float) -> None:
    assert loss(data_folder, (bits, 8, block, "bf16", "l2")) < most


@pytest.mark.parametrize("block", [8, 32, 64])
def test_eight_bits_cost_next_to_nothing(data_folder: Path, block: int) -> None:
    assert abs(loss(data_folder, (8, 8, block, "bf16", "l2"), MORE_IMAGES)) < 0.3


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_symmetric_recipe_is_worse(data_folder: Path, bits: int) -> None:
    plain = loss(data_folder, (bits, 8, 32, "bf16", "l2"))
    assert loss(data_folder, (bits, 8, 32, "bf16", "l2", "P")) > plain


@pytest.mark.parametrize(("bits", "act_bits", "most"), [(4, 4, 1.5), (4, 3, 5.0), (5, 5, 1.0)])
def test_weights_and_activations(data_folder: Path, bits: int, act_bits: int, most: float) -> None:
    assert loss(data_folder, (bits, act_bits, 32, "bf16", "l2")) < most


@pytest.mark.parametrize("act_bits", [3, 4])
def test_truncated_activations_are_worse(data_folder: Path, act_bits: int) -> None:
    rounded = loss(data_folder, (4, act_bits, 32, "bf16", "l2"))
    truncated = loss(data_folder, (4, act_bits, 32, "bf16", "l2", "R", "truncate"))
    assert truncated > rounded + 1


def test_compensation_is_better_than_plain_rounding(data_folder: Path) -> None:
    compensated = loss(data_folder, (2, 4, 32))
    assert compensated < 4
    assert loss(data_folder, (2, 4, 32, "bf16", "l2")) > compensated + 5
