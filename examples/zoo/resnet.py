"""ResNet-18, ResNet-34 and ResNet-50 (He et al., arXiv 1512.03385)."""

import torch
from torch import nn

from .blocks import conv_norm, scaled

__all__ = ["ResNet", "resnet18", "resnet34", "resnet50"]


class Basic(nn.Module):
    """Two 3x3 convolutions."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            conv_norm(channels, width, 3, stride), conv_norm(width, width, 3, act=None)
        )
        self.shortcut = _shortcut(channels, width, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.main(x)
        y += self.shortcut(x)
        return torch.relu_(y)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1, four times as wide at the end."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            conv_norm(channels, width, 1),
            conv_norm(width, width, 3, stride),
            conv_norm(width, 4 * width, 1, act=None),
        )
        self.shortcut = _shortcut(channels, 4 * width, stride)
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.main(x) + self.shortcut(x))


def _shortcut(channels: int, filters: int, stride: int) -> nn.Module:
    if stride == 1 and channels == filters:
        return nn.Identity()
    return conv_norm(channels, filters, 1, stride, act=None)


class ResNet(nn.Module):
    """Images (N, 3, H, W) to scores (N, classes); `depths` are the blocks of each stage."""

    def __init__(
        self, block: type, depths: tuple[int, ...], width: float = 1, classes: int = 1000
    ) -> None:
        super().__init__()
        channels = scaled(64, width)
        self.stem = conv_norm(3, channels, 7, 2)
        self.pool = nn.MaxPool2d(3, 2, 1)
        stages = []
        for number, depth in enumerate(depths):
            planes = scaled(64 * 2**number, width)
            for position in range(depth):
                stride = 2 if number and not position else 1
                stages.append(block(channels, planes, stride))
                channels = planes * block.expansion
        self.stages = nn.Sequential(*stages)
        self.average = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.average(self.stages(self.pool(self.stem(x))))
        return self.linear(torch.flatten(x, 1))


def resnet18(
    width: float = 1, depths: tuple[int, ...] = (2, 2, 2, 2), classes: int = 1000
) -> ResNet:
    """18 layers with weights."""
    return ResNet(Basic, depths, width, classes)


def resnet34(
    width: float = 1, depths: tuple[int, ...] = (3, 4, 6, 3), classes: int = 1000
) -> ResNet:
    """34 layers with weights."""
    return ResNet(Basic, depths, width, classes)


def resnet50(
    width: float = 1, depths: tuple[int, ...] = (3, 4, 6, 3), classes: int = 1000
) -> ResNet:
    """50 layers with weights, in bottlenecks."""
    return ResNet(Bottleneck, depths, width, classes)
