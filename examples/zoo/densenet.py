"""DenseNet-121 (Huang et al., arXiv 1608.06993)."""

import torch
from torch import nn

from .blocks import scaled

__all__ = ["DenseNet"]


class Dense(nn.Module):
    """Norm, ReLU, 1x1, norm, ReLU, 3x3; the result is added to the channels."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(4 * growth)
        self.conv1 = nn.Conv2d(channels, 4 * growth, 1, bias=False)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        x = torch.relu(self.norm1(torch.cat(features, 1)))
        return self.conv2(torch.relu(self.norm2(self.conv1(x))))


class DenseBlock(nn.Module):
    """Every layer reads what all layers before it gave."""

    def __init__(self, channels: int, growth: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Dense(channels + n * growth, growth) for n in range(depth))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = [x]
        for layer in self.layers:
            features.append(layer(features))
        return torch.cat(features, 1)


class DenseNet(nn.Module):
    """Images (N, 3, H, W) to scores (N, classes); `width` scales the channels of every layer."""

    def __init__(
        self,
        width: float = 1,
        depths: tuple[int, ...] = (6, 12, 24, 16),
        classes: int = 1000,
    ) -> None:
        super().__init__()
        growth, channels = scaled(32, width), scaled(64, width)
        parts: list[nn.Module] = [
            nn.Conv2d(3, channels, 7, 2, 3, bias=False), nn.BatchNorm2d(channels), nn.ReLU(),
            nn.MaxPool2d(3, 2, 1),
        ]  # fmt: skip
        for number, depth in enumerate(depths):
            if number:
                parts += [
                    nn.BatchNorm2d(channels), nn.ReLU(),
                    nn.Conv2d(channels, channels // 2, 1, bias=False), nn.AvgPool2d(2, 2),
                ]  # fmt: skip
                channels //= 2
            parts.append(DenseBlock(channels, growth, depth))
            channels += depth * growth
        self.features = nn.Sequential(*parts, nn.BatchNorm2d(channels))
        self.linear = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.relu(self.features(x), inplace=True)
        x = nn.functional.adaptive_avg_pool2d(x, (1, 1))
        return self.linear(torch.flatten(x, 1))
