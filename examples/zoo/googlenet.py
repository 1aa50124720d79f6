"""GoogLeNet with batch norm (Szegedy et al., arXiv 1409.4842)."""

import torch
from torch import nn

from .blocks import conv_norm, scaled

__all__ = ["GoogLeNet"]

STAGES = (
    ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
    (
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
    ),
    ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
)


class Inception(nn.Module):
    """Four branches, concatenated."""

    def __init__(self, channels: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        point, reduce3, three, reduce5, five, pooled = widths
        self.branches = nn.ModuleList(
            [
                conv_norm(channels, point, 1),
                nn.Sequential(conv_norm(channels, reduce3, 1), conv_norm(reduce3, three, 3)),
                nn.Sequential(conv_norm(channels, reduce5, 1), conv_norm(reduce5, five, 5)),
                nn.Sequential(nn.MaxPool2d(3, 1, 1), conv_norm(channels, pooled, 1)),
            ]
        )
        self.filters = point + three + five + pooled

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


class GoogLeNet(nn.Module):
    """Images (N, 3, H, W) to scores (N, classes); `depths` are the blocks of each stage."""

    def __init__(
        self,
        width: float = 1,
        depths: tuple[int, ...] = (2, 5, 2),
        classes: int = 1000,
        stem_stride: int = 2,
    ) -> None:
        super().__init__()
        a, b = scaled(64, width), scaled(192, width)
        parts: list[nn.Module] = [
            conv_norm(3, a, 7, stem_stride), nn.MaxPool2d(3, 2, ceil_mode=True),
            conv_norm(a, a, 1), conv_norm(a, b, 3), nn.MaxPool2d(3, 2, ceil_mode=True),
        ]  # fmt: skip
        channels = b
        for number, (stage, depth) in enumerate(zip(STAGES, depths, strict=True)):
            if number:
                parts.append(nn.MaxPool2d(3 if number == 1 else 2, 2, ceil_mode=True))
            for widths in stage[:depth]:
                block = Inception(channels, tuple(scaled(n, width) for n in widths))
                parts.append(block)
                channels = block.filters
        self.features = nn.Sequential(*parts)
        self.dropout = nn.Dropout(0.2)
        self.linear = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.features(x)
        x = nn.functional.avg_pool2d(x, x.shape[2:])
        return self.linear(self.dropout(x.squeeze(-1).squeeze(-1)))
