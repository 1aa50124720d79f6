"""What the networks are made of, and how a network without training gets real statistics."""

import torch
from torch import nn

__all__ = ["calibrated", "conv_norm", "scaled"]


def scaled(channels: int, width: float, multiple: int = 1) -> int:
    """`channels` times `width`, at least one multiple of `multiple`."""
    return max(multiple, round(channels * width / multiple) * multiple)


def conv_norm(
    channels: int,
    filters: int,
    kernel: int | tuple[int, int],
    stride: int = 1,
    padding: int | tuple[int, int] | None = None,
    groups: int = 1,
    act: type[nn.Module] | None = nn.ReLU,
) -> nn.Sequential:
    """Convolution, batch norm, activation."""
    if padding is None:
        padding = kernel // 2 if isinstance(kernel, int) else (kernel[0] // 2, kernel[1] // 2)
    conv = nn.Conv2d(channels, filters, kernel, stride, padding, groups=groups, bias=False)
    parts: list[nn.Module] = [conv, nn.BatchNorm2d(filters)]
    if act is not None:
        parts.append(act(inplace=True))
    return nn.Sequential(*parts)


def calibrated(network: nn.Module, size: int, seed: int = 0, images: int = 8) -> nn.Module:
    """The network in evaluation mode, with random batch norms whose statistics are real.

    `size` is that of its images (3, size, size). The statistics are those of a few random batches.
    """
    generator = torch.Generator().manual_seed(seed)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            with torch.no_grad():
                part.weight.uniform_(0.5, 1.5, generator=generator)
                part.bias.normal_(0, 0.3, generator=generator)
            part.momentum = None  # the average of all batches
    network.train()
    with torch.no_grad():
        for _ in range(2):
            network(torch.randn(images, 3, size, size, generator=generator))
    return network.eval()
