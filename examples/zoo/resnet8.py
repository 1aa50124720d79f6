"""MLPerf Tiny's reference ResNet-8, batch norm folded; it takes raw 0...255 RGB."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

__all__ = ["ResNet8", "resnet8"]


class Same(nn.Conv2d):
    """TensorFlow's SAME padding: an odd total puts the larger half at the end."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        sides = []
        for size, kernel, stride in zip(
            x.shape[2:], self.weight.shape[2:], self.stride, strict=True
        ):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            sides.append((total // 2, total - total // 2))
        return super().forward(functional.pad(x, (*sides[1], *sides[0])))


class ResNet8(nn.Module):
    """Images (N, 3, 32, 32) to scores (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Same(3, 16, 3)
        widths, blocks = (16, 16, 32, 64), []
        for number, (channels, filters) in enumerate(pairwise(widths)):
            stride = 2 if number else 1
            block = {
                "conv1": Same(channels, filters, 3, stride),
                "conv2": Same(filters, filters, 3),
            }
            if number:
                block["shortcut"] = Same(channels, filters, 1, stride)
            blocks.append(nn.ModuleDict(block))
        self.blocks = nn.ModuleList(blocks)
        self.linear = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        for block in self.blocks:
            assert isinstance(block, nn.ModuleDict)
            y = block["conv2"](torch.relu(block["conv1"](x)))
            x = torch.relu(y + (block["shortcut"](x) if "shortcut" in block else x))
        return self.linear(torch.flatten(functional.avg_pool2d(x, 8), 1))


def resnet8(folder: Path) -> ResNet8:
    """The trained network, in evaluation mode; `folder` holds ``resnet8-mlperf-tiny.npz``."""
    network = ResNet8()
    with np.load(folder / "resnet8-mlperf-tiny.npz") as archive:
        arrays = [archive[name] for name in archive.files if archive[name].dtype == np.float32]
    layers = [part for part in network.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    for layer, weight, bias in zip(layers, arrays[::2], arrays[1::2], strict=True):
        if weight.ndim == 4:  # kernels are (Co, Kh, Kw, Ci)
            weight = weight.transpose(0, 3, 1, 2)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(np.ascontiguousarray(weight)))
            assert layer.bias is not None
            layer.bias.copy_(torch.from_numpy(bias))
    return network.eval()
