"""The kinds of layers that a graph has, and a network of those that the structures lack."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from shiftcore.frontend.graph import Arrange, AvgPool, Conv2d, Graph, MaxPool, Node, Shape

__all__ = ["Leftovers", "kinds"]


class Leftovers(nn.Module):
    """(N, 3, H, W) to (N, classes): what the published structures have no use for."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 20, (1, 3), (1, 2), (0, 1))
        self.dilated = nn.Conv2d(20, 20, 3, padding=2, dilation=2)
        self.doubled = nn.Conv2d(20, 40, 3, 2, 1, groups=20)
        self.shuffle = nn.ChannelShuffle(4)
        self.linear = nn.Linear(4 * 17, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.pad(torch.relu(self.stem(x)), (2, 0, 1, -1))
        x = self.dilated(x).clamp(-0.5, 1)
        shortcut = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 8, 12))
        x = self.shuffle(torch.relu(self.doubled(x) + shortcut))[:, 3:37:2]
        x = torch.cat([functional.avg_pool2d(x, 3, 2, 1), functional.max_pool2d(x, 3, 2, 1)], 1)
        return self.linear(torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1))


def kinds(graph: Graph) -> set[str]:
    """Names of the node classes, and of what their attributes make of them."""
    return {kind for node in graph.nodes for kind in _kinds(node, graph)}


def _kinds(node: Node, graph: Graph) -> Iterator[str]:
    yield type(node).__name__
    shapes = [graph.shapes[name] for name in node.inputs]
    if isinstance(node, Conv2d):
        if node.groups > 1:
            yield "depthwise" if node.groups == shapes[0][0] else "grouped"
        if max(node.stride) > 1:
            yield "strided"
        if max(node.dilation) > 1:
            yield "dilated"
    elif isinstance(node, MaxPool | AvgPool):
        if node.kernel == shapes[0][1:] != (1, 1):
            yield f"global {type(node).__name__}"
    elif isinstance(node, Arrange):
        yield from _moves(node, shapes)


def _moves(node: Arrange, shapes: list[Shape]) -> Iterator[str]:
    if len(set(node.inputs)) > 1:
        yield "concatenation"
    if (node.source < 0).any():
        yield "channel pad"
    order = node.source[node.source >= 0]
    if (np.diff(order) < 0).any():
        yield "shuffle"
    for k, shape in enumerate(shapes):
        channels = node.channel[node.source == k]
        if (np.diff(channels) < 0).any():
            yield "shuffle"
        if len(set(channels)) < shape[0]:
            yield "slice"
        if max(node.stride[k]) > 1:
            yield "subsample"
        for extent, size, first, step in zip(
            shape[1:] or (1, 1), node.size, node.offset[k], node.stride[k], strict=True
        ):
            last = first + step * (size - 1)
            if first < 0 or last >= extent:
                yield "pad"
            if first > 0 or last < extent - step:
                yield "crop"
