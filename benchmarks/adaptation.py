"""What adaptation gains, in the form of tables 1 and 5 of DSConv (arXiv 1901.01928 v1).

``shifters`` is table 1: the CIFAR-10 ResNet-20 with DSConv convolutions of few bits, each scale by
L2, before and after one epoch in which only the shifters train, on the 20,000 training images with
labels. ``transfer`` is table 5: the same network learns handwritten digits, 8x8 pixels scaled up to
32x32, with a new classifier alone and with the shifters too, on the same schedule.

All top-1 figures are hardware mode's, of the network as it is exported: scales rounded to bf16,
8-bit activations, 8-bit images and an 8-bit classifier. A row fails if training does not raise the
accuracy (transfer: if the shifters do not), or if anything changes that is frozen.
"""

from collections.abc import Sequence

import click
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch import nn
from torch.nn import functional

from shiftcore.benchmarks.models import data_folder
from shiftcore.benchmarks.report import Row, show
from shiftcore.examples.digits import data as digits
from shiftcore.examples.zoo.cifar import cifar10, crop_and_flip, normalised
from shiftcore.examples.zoo.resnet20 import resnet20
from shiftcore.quant.adapt import transfer, tune_shifters
from shiftcore.quant.convert import QuantConfig, quantize
from shiftcore.quant.dsconv import DSConvConfig, quantize_, shifters
from shiftcore.quant.hardware import HardwareNetwork
from shiftcore.quant.training import TrainingConfig, fingerprint, process_device

BATCH = 250
CALIBRATION = 256
TRAINING, TEST = 20_000, 10_000
CLASSES = 10
SHIFTERS_HEADINGS = (
    "weight bits", "block", "training images", "test images", "top-1 float", "before", "after",
    "gain", "frozen tensors", "changed", "images/s",
)  # fmt: skip
TRANSFER_HEADINGS = (
    "weight bits", "block", "training images", "epochs", "test images", "top-1 classifier only",
    "classifier + shifters", "gain", "frozen tensors", "changed",
)  # fmt: skip

Images = NDArray[np.float32]
Labels = NDArray[np.int64]


def coded(weight_bits: int, block: int) -> nn.Module:
    """The trained ResNet-20, its convolutions DSConv layers by plain L2, its classifier float."""
    network = resnet20(data_folder("resnet20"))
    config = DSConvConfig(weight_bits, block)
    quantize_(network, config, lambda module, _: isinstance(module, nn.Conv2d))
    return network.to(process_device())


def top1(network: nn.Module, calibration: Images, images: Images, labels: Labels) -> float:
    """Top-1 in percent of the exported network in hardware mode."""
    block = next(module.block for module in network.modules() if hasattr(module, "block"))
    stored = quantize(network.cpu(), calibration, QuantConfig(8, 8, block))
    compute, right = HardwareNetwork(stored), 0
    starts = track(
        range(0, len(images), BATCH), "hardware mode", console=Console(stderr=True), transient=True
    )
    for first in starts:
        scores = compute(torch.from_numpy(images[first : first + BATCH])).flatten(1)
        right += int((scores.argmax(1).numpy() == labels[first : first + BATCH]).sum())
    network.to(process_device())
    return 100 * right / len(images)


def float_top1(images: Images, labels: Labels) -> float:
    """Top-1 in percent of the network as it was trained."""
    network = resnet20(data_folder("resnet20"))
    with torch.inference_mode():
        parts = [network(part).argmax(1) for part in torch.from_numpy(images).split(BATCH)]
    return 100 * float((torch.cat(parts).numpy() == labels).mean())


def frozen(network: nn.Module, trained: Sequence[str] = ()) -> dict[str, str]:
    """Hashes of what must not change: all but the shifters and the parameters `trained`."""
    moved = {name for name, _ in shifters(network)} | set(trained)
    state = network.state_dict()
    return {name: fingerprint({name: state[name]}) for name in state if name not in moved}


def differing(before: dict[str, str], after: dict[str, str]) -> int:
    """How many hashes are not the same."""
    return sum(before[name] != after.get(name) for name in before)
