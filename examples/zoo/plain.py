"""AlexNet (Krizhevsky et al., 2012; arXiv 1404.5997) and VGG-11 (arXiv 1409.1556)."""

import torch
from torch import nn

from .blocks import conv_norm, scaled

__all__ = ["VGG11", "AlexNet"]


class _Classifier(nn.Module):
    features: nn.Sequential
    average: nn.Module
    classifier: nn.Sequential

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.average(self.features(x))
        return self.classifier(x.reshape(x.size(0), -1))


class AlexNet(_Classifier):
    """11x11 windows, overlapping pools, biases; `groups` are those of the second convolution."""

    def __init__(self, width: float = 1, classes: int = 1000, groups: int = 2) -> None:
        super().__init__()
        a, b, c, d, hidden = (scaled(n, width, 2) for n in (64, 192, 384, 256, 4096))
        relu = nn.ReLU(inplace=True)
        self.features = nn.Sequential(
            nn.Conv2d(3, a, 11, 4, 2), relu, nn.MaxPool2d(3, 2),
            nn.Conv2d(a, b, 5, 1, 2, groups=groups), relu, nn.MaxPool2d(3, 2),
            nn.Conv2d(b, c, 3, 1, 1), relu, nn.Conv2d(c, d, 3, 1, 1), relu,
            nn.Conv2d(d, d, 3, 1, 1), relu, nn.MaxPool2d(3, 2, ceil_mode=True),
        )  # fmt: skip
        self.average = nn.AdaptiveAvgPool2d(6)
        self.classifier = nn.Sequential(
            nn.Dropout(), nn.Linear(d * 36, hidden), nn.ReLU(), nn.Dropout(),
            nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, classes),
        )  # fmt: skip


class VGG11(_Classifier):
    """3x3 convolutions with batch norm, five pools, three linear layers."""

    def __init__(self, width: float = 1, classes: int = 1000) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        channels = 3
        for filters in (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0):
            if not filters:
                parts.append(nn.MaxPool2d(2, 2))
                continue
            parts.append(conv_norm(channels, scaled(filters, width), 3))
            channels = scaled(filters, width)
        hidden = scaled(4096, width)
        self.features = nn.Sequential(*parts)
        self.average = nn.AdaptiveAvgPool2d(7)
        self.classifier = nn.Sequential(
            nn.Linear(channels * 49, hidden), nn.ReLU(True), nn.Dropout(),
            nn.Linear(hidden, hidden), nn.ReLU(True), nn.Dropout(), nn.Linear(hidden, classes),
        )  # fmt: skip
