"""The CIFAR-10 ResNet-20 of akamaster/pytorch_resnet_cifar10, and what tests of networks share."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from shiftcore.golden.bfp import BlockTensor
from shiftcore.golden.config import HardwareConfig
from shiftcore.golden.network import Tensor

# Of all tests that simulate whole networks, which so share one build. Few columns: half of the time
# is the compilation of the simulator.
CONFIG = HardwareConfig(16, 4, buffer_depth=4096)

MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


class OptionA(nn.Module):
    """Every second pixel, with zero channels on both sides."""

    def __init__(self, planes: int) -> None:
        super().__init__()
        self.planes = planes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        side = self.planes // 4
        return nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, side, side), "constant", 0)


class BasicBlock(nn.Module):
    def __init__(self, channels: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut = nn.Identity() if stride == 1 else OptionA(planes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + self.shortcut(x))


class ResNet20(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, 1)
        self.layer2 = self._stage(16, 32, 2)
        self.layer3 = self._stage(32, 64, 2)
        self.linear = nn.Linear(64, 10)

    @staticmethod
    def _stage(channels: int, planes: int, stride: int) -> nn.Sequential:
        first = BasicBlock(channels, planes, stride)
        return nn.Sequential(first, *(BasicBlock(planes, planes, 1) for _ in range(2)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def resnet20(folder: Path) -> ResNet20:
    """The trained network, in evaluation mode."""
    # The archive holds more than tensors, and comes from the folder that the user names.
    archive = torch.load(folder / "resnet20-cifar10.th", "cpu", weights_only=False)
    state = {name.removeprefix("module."): value for name, value in archive["state_dict"].items()}
    network = ResNet20()
    network.load_state_dict(state)
    return network.eval()


def cifar10(
    folder: Path, count: int, split: str = "test"
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The first `count` images (N, 3, 32, 32), normalised, and their labels."""
    with np.load(folder / f"cifar10-{split}.npz") as archive:
        pixels, labels = archive["x"][:count], archive["y"][:count]
    images = (pixels.astype(np.float32) / 255 - MEAN) / STD
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)), labels.astype(np.int64)


def assert_same_tensors(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> None:
    """Both hold the same tensors, bit for bit."""
    assert a.keys() == b.keys()
    for name, left in a.items():
        right = b[name]
        if isinstance(left, BlockTensor) and isinstance(right, BlockTensor):
            assert np.array_equal(left.codes, right.codes), name
            assert np.array_equal(left.exponents, right.exponents), name
            layout = (left.signed, left.bits, left.channels, left.planes)
            assert layout == (right.signed, right.bits, right.channels, right.planes), name
        else:
            assert isinstance(left, np.ndarray)
            assert isinstance(right, np.ndarray)
            bits, expected = (np.ascontiguousarray(x).view(np.uint32) for x in (left, right))
            assert np.array_equal(bits, expected), name
