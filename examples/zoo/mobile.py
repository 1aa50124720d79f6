"""MobileNetV2 (arXiv 1801.04381) and ShuffleNetV2 (arXiv 1807.11164)."""

import torch
from torch import nn

from .blocks import conv_norm, scaled

__all__ = ["MobileNetV2", "ShuffleNetV2"]


class InvertedResidual(nn.Module):
    """1x1 to `expansion` times the channels, depthwise 3x3, and 1x1 without activation."""

    def __init__(self, channels: int, filters: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = channels * expansion
        widen = [conv_norm(channels, hidden, 1, act=nn.ReLU6)] if expansion > 1 else []
        self.main = nn.Sequential(
            *widen,
            conv_norm(hidden, hidden, 3, stride, groups=hidden, act=nn.ReLU6),
            conv_norm(hidden, filters, 1, act=None),
        )
        self.residual = stride == 1 and channels == filters

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.main(x) if self.residual else self.main(x)


MOBILE_STAGES = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
    (6, 320, 1, 1),
)  # fmt: skip
"""expansion, channels, blocks, stride"""


class MobileNetV2(nn.Module):
    """Images (N, 3, H, W) to scores (N, classes); no stage has more than `deepest` blocks."""

    def __init__(self, width: float = 1, deepest: int = 4, classes: int = 1000) -> None:
        super().__init__()
        channels, last = scaled(32, width), scaled(1280, width)
        parts: list[nn.Module] = [conv_norm(3, channels, 3, 2, act=nn.ReLU6)]
        for expansion, filters, depth, stride in MOBILE_STAGES:
            for position in range(min(depth, deepest)):
                width_ = scaled(filters, width)
                step = 1 if position else stride
                parts.append(InvertedResidual(channels, width_, step, expansion))
                channels = width_
        self.features = nn.Sequential(*parts, conv_norm(channels, last, 1, act=nn.ReLU6))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x).mean([2, 3]))


def channel_shuffle(x: torch.Tensor, groups: int) -> torch.Tensor:
    """The channels of the groups in turn: (N, groups * C, H, W), of the same shape."""
    batch, channels, height, width = x.size()
    x = x.view(batch, groups, channels // groups, height, width)
    return torch.transpose(x, 1, 2).contiguous().view(batch, -1, height, width)


class ShuffleUnit(nn.Module):
    """Half of the channels go past the convolutions; with a stride all of them go through both."""

    def __init__(self, channels: int, filters: int, stride: int) -> None:
        super().__init__()
        half = filters // 2
        self.stride = stride
        inner = channels if stride > 1 else half
        self.branch1 = nn.Sequential()
        if stride > 1:
            self.branch1 = nn.Sequential(
                conv_norm(channels, channels, 3, stride, groups=channels, act=None),
                conv_norm(channels, half, 1),
            )
        self.branch2 = nn.Sequential(
            conv_norm(inner, half, 1),
            conv_norm(half, half, 3, stride, groups=half, act=None),
            conv_norm(half, half, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.stride == 1:
            x1, x2 = x.chunk(2, dim=1)
            out = torch.cat((x1, self.branch2(x2)), dim=1)
        else:
            out = torch.cat((self.branch1(x), self.branch2(x)), dim=1)
        return channel_shuffle(out, 2)


class ShuffleNetV2(nn.Module):
    """Images (N, 3, H, W) to scores (N, classes); `depths` are the units of each stage."""

    def __init__(
        self, width: float = 1, depths: tuple[int, ...] = (4, 8, 4), classes: int = 1000
    ) -> None:
        super().__init__()
        channels = scaled(24, width, 2)
        parts: list[nn.Module] = [conv_norm(3, channels, 3, 2), nn.MaxPool2d(3, 2, 1)]
        for filters, depth in zip((116, 232, 464), depths, strict=True):
            for position in range(depth):
                width_ = scaled(filters, width, 2)
                parts.append(ShuffleUnit(channels, width_, 1 if position else 2))
                channels = width_
        last = scaled(1024, width)
        self.features = nn.Sequential(*parts, conv_norm(channels, last, 1))
        self.linear = nn.Linear(last, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.features(x).mean((2, 3)))
