"""Top-1 of the CIFAR-10 ResNet-20 in hardware mode, against the float network on the same images.

The figures of all test images are those of ``benchmarks/accuracy.py``; here are enough of them to
tell the formats apart.
"""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from shiftcore.examples.zoo.cifar import cifar10
from shiftcore.examples.zoo.resnet20 import resnet20
from shiftcore.quant.convert import QuantConfig, quantize
from shiftcore.quant.hardware import evaluate

IMAGES = 600


@cache
def loss(folder: Path, config: tuple) -> float:
    """Points of top-1 that a configuration costs."""
    model, (images, labels) = resnet20(folder), cifar10(folder, IMAGES)
    calibration, _ = cifar10(folder, 64, "train-20k")
    network = quantize(model, calibration, QuantConfig(*config))
    with torch.inference_mode():
        scores = [model(part).numpy() for part in torch.from_numpy(images).split(100)]
    wanted = 100 * float((np.concatenate(scores).argmax(1) == labels).mean())
    return wanted - evaluate(network, images, labels, batch=100).top1


@pytest.mark.parametrize("block", [8, 32, 128])
@pytest.mark.parametrize(("bits", "most"), [(4, 2.0), (3, 5.0)])
def test_weights_alone_cost_little(data_folder: Path, bits: int, block: int, most: float) -> None:
    assert loss(data_folder, (bits, 8, block, "bf16", "l2")) < most


def test_eight_bits_cost_next_to_nothing(data_folder: Path) -> None:
    assert abs(loss(data_folder, (8, 8, 32, "bf16", "l2"))) < 0.4


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
