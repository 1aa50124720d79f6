"""The CIFAR-10 ResNet-20 of akamaster/pytorch_resnet_cifar10 (He et al., arXiv 1512.03385)."""

from pathlib import Path

import torch
from torch import nn

__all__ = ["ResNet20", "resnet20"]


class OptionA(nn.Module):
    """Every second pixel, with zero channels on both sides."""

    def __init__(self, planes: int) -> None:
        super().__init__()
        self.planes = planes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        side = self.planes // 4
        return nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, side, side), "constant", 0)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without weights."""

    def __init__(self, channels: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut = nn.Identity() if stride == 1 else OptionA(planes)
        self.relu2 = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(y + self.shortcut(x))


class ResNet20(nn.Module):
    """Images (N, 3, 32, 32) to scores (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1 = self._stage(16, 16, 1)
        self.layer2 = self._stage(16, 32, 2)
        self.layer3 = self._stage(32, 64, 2)
        self.linear = nn.Linear(64, 10)

    @staticmethod
    def _stage(channels: int, planes: int, stride: int) -> nn.Sequential:
        first = BasicBlock(channels, planes, stride)
        return nn.Sequential(first, *(BasicBlock(planes, planes, 1) for _ in range(2)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def resnet20(folder: Path) -> ResNet20:
    """The trained network, in evaluation mode; `folder` holds ``resnet20-cifar10.th``."""
    # The archive holds more than tensors, and comes from the folder that the user names.
    archive = torch.load(folder / "resnet20-cifar10.th", "cpu", weights_only=False)
    state = {name.removeprefix("module."): value for name, value in archive["state_dict"].items()}
    network = ResNet20()
    network.load_state_dict(state)
    return network.eval()
