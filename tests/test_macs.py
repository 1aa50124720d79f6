"""Import, compile and torch count the same multiply-accumulates, whatever the layers become."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from shiftcore.compiler.network import compile_network
from shiftcore.examples.digits import model
from shiftcore.examples.zoo.resnet20 import ResNet20
from shiftcore.golden.config import HardwareConfig
from shiftcore.quant.convert import QuantConfig, quantize
from shiftcore.quant.coverage import coverage


class Mixed(nn.Module):
    """Grouped and depthwise convolutions, pools, additions, batch norms of their own; convolutions
    that read a concatenation, a channel twice, and channels that are only padding."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.grouped = nn.Conv2d(6, 12, 3, padding=1, groups=3)
        self.depthwise = nn.Conv2d(18, 36, 3, padding=1, groups=18)
        self.norm = nn.BatchNorm2d(6)
        self.twice = nn.Conv2d(12, 6, 1)
        self.padded = nn.Conv2d(10, 36, 3, stride=2)
        self.linear = nn.Linear(36 * 9, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = torch.relu(self.stem(x))
        b = self.norm(nn.functional.max_pool2d(a, 3, 1, 1))
        c = torch.relu(self.depthwise(torch.cat((b, self.grouped(a)), 1)))
        d = self.twice(torch.cat((b, b), 1)) + a
        e = self.padded(nn.functional.pad(d, (0, 0, 0, 0, 1, 3)))
        f = e + nn.functional.avg_pool2d(c, 2)[:, :, :3, :3]
        return self.linear(torch.flatten(f, 1))


NETWORKS = {
    "digits": (model.load, (1, 8, 8), 16),
    "resnet20": (ResNet20, (3, 32, 32), 16),
    "mixed": (Mixed, (3, 8, 8), 4),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_everything_counts_the_same(name: str) -> None:
    make, shape, block = NETWORKS[name]
    torch.manual_seed(0)
    network, image = make().eval(), torch.randn(1, *shape)
    with FlopCounterMode(display=False) as counter:
        network(image)
    expected = counter.get_total_flops() // 2
    assert coverage(network, image).macs == expected
    quantized = quantize(network, np.tile(image.numpy(), (2, 1, 1, 1)), QuantConfig(block=block))
    assert sum(quantized.macs().values()) == expected
    assert compile_network(quantized, HardwareConfig(block, 4)).macs == expected
