"""The network, about 0.6 million multiply-accumulates an image."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

__all__ = ["CHECKPOINT", "DigitsNet", "Residual", "load"]

CHECKPOINT = Path(__file__).with_name("digits.safetensors")


def _conv3x3(channels: int, filters: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, filters, 3, stride, 1, bias=False)


class Residual(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is projected where the width changes."""

    def __init__(self, channels: int, filters: int, relu: bool = True) -> None:
        super().__init__()
        self.conv1 = _conv3x3(channels, filters)
        self.bn1 = nn.BatchNorm2d(filters)
        self.conv2 = _conv3x3(filters, filters)
        self.bn2 = nn.BatchNorm2d(filters)
        self.shortcut = nn.Identity()
        if channels != filters:
            projection = nn.Conv2d(channels, filters, 1, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(filters))
        self.relu = nn.ReLU() if relu else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, channels, H, W) to (N, filters, H, W)."""
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return self.relu(y + self.shortcut(x))


class DigitsNet(nn.Module):
    """(N, 1, 8, 8) to (N, 10).

    It has one of everything: a convolution with stride, a width of 24 that leaves a block of 16
    ragged, a residual block with a projection and one without, a tensor that keeps its sign, a max
    pool whose windows overlap and reach over the border, an average pool and a linear layer.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = _conv3x3(1, 16)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = _conv3x3(16, 24, stride=2)
        self.bn2 = nn.BatchNorm2d(24)
        self.block1 = Residual(24, 32)
        self.block2 = Residual(32, 32, relu=False)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 1, 8, 8) to the scores of the ten digits (N, 10)."""
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        x = self.maxpool(self.block2(self.block1(x)))
        return self.linear(torch.flatten(self.avgpool(x), 1))


def load(path: Path | str = CHECKPOINT) -> DigitsNet:
    """The trained network, in evaluation mode."""
    network = DigitsNet()
    network.load_state_dict(load_file(path))
    return network.eval()
