"""The network graph: what a trained network computes, free of any framework.

Shapes are those of one image: ``(C, H, W)``, or ``(features,)`` after a flatten.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..golden.bfp import BlockFloat
from ..golden.vqk import block_map

__all__ = [
    "Add",
    "Arrange",
    "AvgPool",
    "BatchNorm",
    "Clamp",
    "Coded",
    "Conv2d",
    "Flatten",
    "Graph",
    "Input",
    "Linear",
    "MaxPool",
    "Node",
    "Output",
    "Padding",
    "ReLU",
    "Requantize",
    "Shape",
    "Unknown",
    "result_shape",
    "same",
]

Shape = tuple[int, ...]
Padding = tuple[int, int, int, int]
"""(top, bottom, left, right)"""


def _window_shape(
    shape: Shape,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: Padding,
    dilation: tuple[int, int],
) -> tuple[int, int]:
    """(Ho, Wo) of a window that slides over (C, H, W)."""
    if len(shape) != 3:
        raise ValueError(f"takes (C, H, W), not {shape}")
    padded = shape[1] + padding[0] + padding[1], shape[2] + padding[2] + padding[3]
    height, width = (
        (padded[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in (0, 1)
    )
    if height < 1 or width < 1:
        raise ValueError(f"a {kernel} window does not fit {shape}")
    return height, width


@dataclass(frozen=True, eq=False)
class Coded:
    """A weight as codes: ``codes * steps``, element by element.

    Parameters
    ----------
    codes : (Co, Ci / groups, ...) int8
    steps : float64, of the same shape
    weight_bits : b
    block : B, channels of the blocks in which it has one step
    """

    codes: NDArray[np.int8]
    steps: NDArray[np.float64]
    weight_bits: int
    block: int

    @property
    def weight(self) -> NDArray[np.float64]:
        return self.codes * self.steps

    def map(self, move: Callable[[NDArray], NDArray]) -> "Coded":
        """The weight after `move`, which only moves elements and adds zeros."""
        return replace(self, codes=move(self.codes), steps=move(self.steps))

    def scaled(self, factors: NDArray[np.float64]) -> "Coded":
        """The weight times `factors`, which broadcast against it."""
        return replace(self, steps=self.steps * factors)

    def block_steps(self, groups: int = 1, block: int | None = None) -> NDArray[np.float64] | None:
        """(Co, blocks, Kh, Kw): the step of each block of `block` channels, 0 of one without codes.

        None if a block has codes of several steps. `block` is by default that of the weight.
        """
        blocks = block_map(self.codes.shape[1], groups, block or self.block)
        used, steps = blocks.lanes(self.codes) != 0, blocks.lanes(self.steps)
        found = np.where(used.any(0), np.where(used, steps, -np.inf).max(0), 0)
        return None if (used & (steps != found)).any() else found


@dataclass(frozen=True, eq=False)
class Node:
    """One operation; `name` is that of its result, `inputs` are the names of its operands."""

    name: str
    inputs: tuple[str, ...]

    def output_shape(self, *shapes: Shape) -> Shape:
        """Shape of the result. Raises ``ValueError`` if the operands do not fit."""
        return shapes[0]

    @property
    def macs_per_pixel(self) -> int:
        """Multiply-accumulates for one pixel of the result: the weights of a convolution or a
        linear layer, 0 for everything else."""
        return 0


@dataclass(frozen=True, eq=False)
class Input(Node):
    """The images, of a fixed shape (C, H, W)."""

    shape: Shape

    def output_shape(self, *shapes: Shape) -> Shape:
        return self.shape


@dataclass(frozen=True, eq=False)
class Conv2d(Node):
    """`weight` (Co, Ci / groups, Kh, Kw), `bias` (Co,); the padding is zeros.

    `coded` is the weight as codes, where it was made of codes.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    stride: tuple[int, int] = (1, 1)
    padding: Padding = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    coded: Coded | None = None

    def output_shape(self, *shapes: Shape) -> Shape:
        filters, depth, kh, kw = self.weight.shape
        size = _window_shape(shapes[0], (kh, kw), self.stride, self.padding, self.dilation)
        if shapes[0][0] != depth * self.groups:
            raise ValueError(f"takes {depth * self.groups} channels, not {shapes[0][0]}")
        return filters, *size

    @property
    def macs_per_pixel(self) -> int:
        return self.weight.size


@dataclass(frozen=True, eq=False)
class Linear(Node):
    """`weight` (Co, features), `bias` (Co,), `coded` as of :class:`Conv2d`."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    coded: Coded | None = None

    def output_shape(self, *shapes: Shape) -> Shape:
        if shapes[0] != self.weight.shape[1:]:
            raise ValueError(f"takes {self.weight.shape[1:]}, not {shapes[0]}; flatten its input")
        return self.weight.shape[:1]

    @property
    def macs_per_pixel(self) -> int:
        return self.weight.size


@dataclass(frozen=True, eq=False)
class BatchNorm(Node):
    """``(x - mean) / sqrt(variance + epsilon) * weight + bias``, all (C,)."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    mean: NDArray[np.float32]
    variance: NDArray[np.float32]
    epsilon: float

    @property
    def scale(self) -> NDArray[np.float64]:
        return self.weight / np.sqrt(self.variance.astype(np.float64) + self.epsilon)

    @property
    def shift(self) -> NDArray[np.float64]:
        return self.bias - self.mean * self.scale

    def output_shape(self, *shapes: Shape) -> Shape:
        if (self.variance.astype(np.float64) + self.epsilon <= 0).any():
            raise ValueError("has a variance that is not positive")
        if shapes[0][0] != self.weight.size:
            raise ValueError(f"takes {self.weight.size} channels, not {shapes[0][0]}")
        return shapes[0]


@dataclass(frozen=True, eq=False)
class ReLU(Node):
    """``max(x, 0)``."""


@dataclass(frozen=True, eq=False)
class Clamp(Node):
    """``min(max(x, low), high)``; either may be infinite."""

    low: float
    high: float

    def output_shape(self, *shapes: Shape) -> Shape:
        if not self.low <= self.high:
            raise ValueError(f"clamps to {self.low} ... {self.high}, which is no range")
        return shapes[0]


@dataclass(frozen=True, eq=False)
class Add(Node):
    """Sum of operands of the same shape."""

    def output_shape(self, *shapes: Shape) -> Shape:
        for shape in shapes[1:]:
            if shape != shapes[0]:
                raise ValueError(f"adds {shapes[0]} and {shape}; broadcasting is not supported")
        return shapes[0]


@dataclass(frozen=True, eq=False)
class Arrange(Node):
    """Moves data, computes nothing: concatenation, slice, channel pad, shuffle, subsampling::

        result[c, i, j] = inputs[k][channel[c], offset[k][0] + stride[k][0] * i,
                                                offset[k][1] + stride[k][1] * j]

    with k = source[c], and zero outside the operand and where k is -1. An operand that is read in
    two ways is there twice.

    Parameters
    ----------
    source, channel : (C,) int
    offset, stride : of every operand, (vertical, horizontal)
    size : (H, W) of the result
    """

    source: NDArray[np.int64]
    channel: NDArray[np.int64]
    offset: tuple[tuple[int, int], ...]
    stride: tuple[tuple[int, int], ...]
    size: tuple[int, int]

    def output_shape(self, *shapes: Shape) -> Shape:
        for k, shape in enumerate(shapes):
            if len(shape) not in (1, 3):
                raise ValueError(f"takes (C, H, W), not {shape}")
            channels = self.channel[self.source == k]
            if channels.size and not 0 <= channels.min() <= channels.max() < shape[0]:
                raise ValueError(f"reads channel {channels.max()} of {shape[0]}")
        return self.source.size, *self.size


@dataclass(frozen=True, eq=False)
class Unknown(Node):
    """What Shiftcore does not carry over; only coverage reports hold it.

    Parameters
    ----------
    op : the operator's name
    shape : of the result
    macs : its multiply-accumulates for one image, where they are known
    """

    op: str
    shape: Shape
    macs: int = 0

    def output_shape(self, *shapes: Shape) -> Shape:
        return self.shape


@dataclass(frozen=True, eq=False)
class MaxPool(Node):
    """Padding never is the maximum."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: Padding = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)

    def output_shape(self, *shapes: Shape) -> Shape:
        size = _window_shape(shapes[0], self.kernel, self.stride, self.padding, self.dilation)
        return shapes[0][0], *size


@dataclass(frozen=True, eq=False)
class AvgPool(Node):
    """Sum of the window, padding counting as zeros, divided by `divisor` (the kernel's size)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: Padding = (0, 0, 0, 0)
    divisor: int | None = None

    @property
    def weight(self) -> float:
        return 1 / (self.divisor or self.kernel[0] * self.kernel[1])

    def output_shape(self, *shapes: Shape) -> Shape:
        size = _window_shape(shapes[0], self.kernel, self.stride, self.padding, (1, 1))
        return shapes[0][0], *size


@dataclass(frozen=True, eq=False)
class Flatten(Node):
    """(C, H, W) to (C * H * W,)."""

    def output_shape(self, *shapes: Shape) -> Shape:
        return (int(np.prod(shapes[0])),)


@dataclass(frozen=True, eq=False)
class Requantize(Node):
    """The values that `spec` stores; the machine does that to every activation that it stores."""

    spec: BlockFloat


@dataclass(frozen=True, eq=False)
class Output(Node):
    """The network's result."""


def result_shape(node: Node, shapes: Mapping[str, Shape]) -> Shape:
    """Shape of what `node` computes from operands of known `shapes`.

    Raises ``ValueError``, naming the layer, if the operands do not fit or are not known.
    """
    missing = [name for name in node.inputs if name not in shapes]
    if missing:
        raise ValueError(f"layer {node.name!r} reads {missing[0]!r}, which no node before it gives")
    try:
        return node.output_shape(*(shapes[name] for name in node.inputs))
    except ValueError as error:
        raise ValueError(f"layer {node.name!r} {error}") from None


def same(one: Any, other: Any) -> bool:
    """Whether two nodes, or parts of them, are equal in everything."""
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if is_dataclass(one):
        return all(same(getattr(one, f.name), getattr(other, f.name)) for f in fields(one))
    return bool(one == other)


@dataclass(frozen=True, eq=False)
class Graph:
    """Nodes in execution order, from the one :class:`Input` to the one :class:`Output`.

    Raises ``ValueError``, naming the layer, at operands that do not fit and at weights that are not
    finite.
    """

    nodes: tuple[Node, ...]

    def __post_init__(self) -> None:
        kinds = [type(node) for node in self.nodes]
        if kinds.count(Input) != 1 or kinds.count(Output) != 1 or kinds[-1] is not Output:
            raise ValueError("a graph must have one input, and one output at its end")
        for node in self.nodes:
            for field in fields(node):
                value = getattr(node, field.name)
                if isinstance(value, np.ndarray) and not np.isfinite(value).all():
                    raise ValueError(f"layer {node.name!r}: its {field.name} has NaN or infinities")
        if len(self.shapes) != len(self.nodes):
            raise ValueError("node names must be unique")

    @cached_property
    def shapes(self) -> Mapping[str, Shape]:
        """Shape of every node's result."""
        shapes: dict[str, Shape] = {}
        for node in self.nodes:
            shapes[node.name] = result_shape(node, shapes)
        return shapes

    @cached_property
    def nonnegative(self) -> frozenset[str]:
        """The nodes whose results cannot be negative, by what they and those before them do."""
        found: set[str] = set()
        for node in self.nodes:
            match node:
                case ReLU() | Requantize(spec=BlockFloat(signed=False)):
                    never = True
                case Clamp():
                    never = min(node.low, node.high) >= 0
                case Add() | Arrange() | AvgPool() | Flatten() | MaxPool() | Requantize():
                    never = found.issuperset(node.inputs)
                case _:
                    never = False
            if never:
                found.add(node.name)
        return frozenset(found)
