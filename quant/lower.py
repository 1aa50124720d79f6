"""From the network graph to the layers that the machine has, still in floating point.

Every layer of the machine is a sum (or a maximum) of convolutions that starts from a bias:

* batch norm is folded into the convolution before it, in float64; where there is none it becomes a
  depthwise 1x1 convolution;
* ReLU is part of the layer whose result it takes; where something else reads that result too, the
  ReLU becomes an identity layer of its own;
* an addition becomes one layer. Operands that nothing else reads, such as the two branches of a
  block with a projection, accumulate in it without being stored first; others are read back through
  a depthwise identity. Terms follow the order of the operands, and the layer is named after the
  first operand that accumulates, or after the addition if none does;
* pools are depthwise convolutions, a linear layer is a convolution as large as the image.
"""

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..frontend.graph import (
    Add,
    AvgPool,
    BatchNorm,
    Conv2d,
    Flatten,
    Graph,
    Input,
    Linear,
    MaxPool,
    Node,
    Output,
    Padding,
    ReLU,
    Shape,
)
from ..golden.layers import Reduce
from ..golden.network import INPUT

__all__ = ["FloatLayer", "FloatTerm", "lower"]


@dataclass(frozen=True, eq=False)
class FloatTerm:
    """One convolution of a layer, as :class:`..golden.layers.Term` but in floating point.

    Parameters
    ----------
    source : tensor that it reads
    weight : (Co, Ci / groups, Kh, Kw)
    stride, padding, dilation, groups : as of the convolution
    constant : the weights are one constant by construction (identity, pool), not learnt
    """

    source: str
    weight: NDArray[np.floating]
    stride: tuple[int, int] = (1, 1)
    padding: Padding = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    constant: bool = False


@dataclass(frozen=True, eq=False)
class FloatLayer:
    """A layer of the machine in floating point: ``relu(bias + sum of terms)`` or their maximum."""

    name: str
    terms: tuple[FloatTerm, ...]
    bias: NDArray[np.floating]
    reduce: Reduce = "add"
    relu: bool = False

    @property
    def foldable(self) -> bool:
        """Whether a channel-wise affine map of the result can move into the weights."""
        learnt = not any(term.constant for term in self.terms)
        return learnt and not self.relu and self.reduce == "add"

    def scaled(self, scale: NDArray[np.float64], shift: NDArray[np.float64]) -> "FloatLayer":
        """The layer followed by ``scale * y + shift``, channel by channel."""
        terms = tuple(
            replace(term, weight=term.weight * scale[:, None, None, None]) for term in self.terms
        )
        return replace(self, terms=terms, bias=self.bias * scale + shift)

    def single(self) -> "FloatLayer":
        """The layer in float32. Raises ``ValueError`` if folding overflowed."""
        with np.errstate(over="ignore"):
            terms = tuple(replace(t, weight=t.weight.astype(np.float32)) for t in self.terms)
            bias = self.bias.astype(np.float32)
        if not all(np.isfinite(values).all() for values in (bias, *(t.weight for t in terms))):
            raise ValueError(f"layer {self.name!r}: its folded weights or biases are not finite")
        return replace(self, terms=terms, bias=bias)


def lower(graph: Graph) -> tuple[FloatLayer, ...]:
    """The layers of `graph` in execution order; the last one is the network's output.

    Raises ``ValueError``, naming the layer, at what the machine cannot compute.
    """
    return _Lowering(graph).layers()


def _depthwise(source: str, channels: int, value: float, kernel: tuple[int, int]) -> FloatTerm:
    weight = np.full((channels, 1, *kernel), value)
    return FloatTerm(source, weight, groups=channels, constant=True)


class _Lowering:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.stored: list[FloatLayer] = []
        self.values: dict[str, FloatLayer | str] = {}
        """what a node's result is: a stored tensor, or a layer that may still grow"""
        self.alias: dict[str, str] = {}
        """the node behind a flatten"""
        for node in graph.nodes:
            if isinstance(node, Flatten):
                self.alias[node.name] = self._behind(node.inputs[0])
        readers = (node for node in graph.nodes if not isinstance(node, Flatten))
        self.uses = Counter(self._behind(name) for node in readers for name in node.inputs)

    def layers(self) -> tuple[FloatLayer, ...]:
        for node in self.graph.nodes:
            if isinstance(node, Output):
                self._finish(node)
            elif not isinstance(node, Flatten):
                self.values[node.name] = self._value(node)
        return tuple(self.stored)

    def _behind(self, name: str) -> str:
        return self.alias.get(name, name)

    def _shape(self, name: str) -> Shape:
        """Shape of a node's result before any flatten; vectors are (C, 1, 1)."""
        shape = self.graph.shapes[self._behind(name)]
        return shape if len(shape) == 3 else (*shape, 1, 1)

    def _growing(self, name: str) -> FloatLayer | None:
        """The layer that computes a node, if its result is not stored and nothing else reads it."""
        value = self.values[self._behind(name)]
        if isinstance(value, FloatLayer) and self.uses[self._behind(name)] == 1:
            return value
        return None

    def _store(self, name: str) -> str:
        """The tensor that holds a node's result."""
        name = self._behind(name)
        value = self.values[name]
        if isinstance(value, str):
            return value
        self.stored.append(value.single())
        self.values[name] = value.name
        return value.name

    def _identity(self, name: str, result: str) -> FloatLayer:
        """A layer `result` that copies a node's result."""
        channels = self._shape(name)[0]
        term = _depthwise(self._store(name), channels, 1.0, (1, 1))
        return FloatLayer(result, (term,), np.zeros(channels))

    def _value(self, node: Node) -> FloatLayer | str:
        match node:
            case Input():
                return INPUT
            case Conv2d():
                term = FloatTerm(
                    self._store(node.inputs[0]),
                    node.weight.astype(np.float64),
                    node.stride,
                    node.padding,
                    node.dilation,
                    node.groups,
                )
                return FloatLayer(node.name, (term,), node.bias.astype(np.float64))
            case Linear():
                shape = self._shape(node.inputs[0])
                weight = node.weight.astype(np.float64).reshape(-1, *shape)  # (Co, C, H, W)
                term = FloatTerm(self._store(node.inputs[0]), weight)
                return FloatLayer(node.name, (term,), node.bias.astype(np.float64))
            case BatchNorm():
                return self._batch_norm(node)
            case ReLU():
                layer = self._growing(node.inputs[0])
                return replace(layer or self._identity(node.inputs[0], node.name), relu=True)
            case Add():
                return self._add(node)
            case MaxPool():
                return self._max_pool(node)
            case AvgPool():
                channels = self._shape(node.inputs[0])[0]
                average = 1 / (node.kernel[0] * node.kernel[1])
                term = replace(
                    _depthwise(self._store(node.inputs[0]), channels, average, node.kernel),
                    stride=node.stride,
                    padding=node.padding,
                )
                return FloatLayer(node.name, (term,), np.zeros(channels))
        raise ValueError(f"layer {node.name!r}: {type(node).__name__} is not supported")

    def _batch_norm(self, node: BatchNorm) -> FloatLayer:
        channels = self._shape(node.inputs[0])[0]
        if channels != node.scale.size:
            raise ValueError(
                f"layer {node.name!r}: batch norm of {node.scale.size} features after a flatten of "
                f"{channels} channels is not supported; normalise before the flatten"
            )
        layer = self._growing(node.inputs[0])
        if layer is None or not layer.foldable:
            term = replace(
                _depthwise(self._store(node.inputs[0]), channels, 1.0, (1, 1)), constant=False
            )
            layer = FloatLayer(node.name, (term,), np.zeros(channels))
        return layer.scaled(node.scale, node.shift)

    def _add(self, node: Add) -> FloatLayer:
        shapes = [self._shape(name) for name in node.inputs]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"layer {node.name!r}: adding {shapes[0]} to {shapes[1]} after a flatten is not "
                "supported; add tensors of the same channels, height and width"
            )
        operands = []
        for name in node.inputs:
            layer = self._growing(name)
            joins = layer is not None and layer.reduce == "add" and not layer.relu
            operands.append((layer, True) if joins else (self._identity(name, node.name), False))
        joined = [layer.name for layer, joins in operands if joins]
        return FloatLayer(
            joined[0] if joined else node.name,
            tuple(term for layer, _ in operands for term in layer.terms),
            np.sum([layer.bias for layer, _ in operands], axis=0),
        )

    def _max_pool(self, node: MaxPool) -> FloatLayer:
        source = self._store(node.inputs[0])
        channels = self._shape(node.inputs[0])[0]
        if source == INPUT:
            # The maximum of a pixel's digit planes is not the maximum of the pixels.
            copy = self._identity(node.inputs[0], f"{node.name}.{INPUT}")
            self.stored.append(copy.single())
            source = copy.name
        term = replace(
            _depthwise(source, channels, 1.0, node.kernel),
            stride=node.stride,
            padding=node.padding,
            dilation=node.dilation,
        )
        lowest = np.full(channels, np.finfo(np.float32).min, np.float64)
        return FloatLayer(node.name, (term,), lowest, reduce="max")

    def _finish(self, node: Output) -> None:
        layer = self._growing(node.inputs[0])
        name = self._behind(node.inputs[0])
        if layer is None:
            raise ValueError(
                f"layer {name!r}: the network's result must be computed by a layer of its own that "
                "nothing else reads"
            )
        if layer.relu:
            raise ValueError(
                f"layer {name!r}: a ReLU at the network's output is not supported, because results "
                "leave as raw float32; leave it out"
            )
        self._store(name)
