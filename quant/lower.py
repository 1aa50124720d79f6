"""From the network graph to the layers that the machine has, still in floating point.

Every layer of the machine is a sum (or a maximum) of convolutions that starts from a bias:

* batch norm is folded into the convolution before it, in float64; where there is none it becomes a
  depthwise 1x1 convolution;
* ReLU and clamps are part of the layer whose result they take; where something else reads that
  result too, they become an identity layer of their own;
* block floating point without a sign clamps at 0, as a ReLU;
* an addition becomes one layer. Operands that nothing else reads, such as the two branches of a
  block with a projection, accumulate in it without being stored first; others are read back through
  a depthwise identity. Terms follow the order of the operands, and the layer is named after the
  first operand that accumulates, or after the addition if none does;
* pools are depthwise convolutions, a linear layer is a convolution as large as the image;
* what only moves data is no layer (:mod:`.layout`). A convolution that reads a concatenation has a
  term for each tensor in it, with its weights at the places of the channels. What works channel by
  channel is done to each tensor. Where neither is possible, an identity layer gathers the channels.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..frontend.graph import (
    Add,
    Arrange,
    AvgPool,
    BatchNorm,
    Clamp,
    Coded,
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
    Requantize,
)
from ..golden.network import INPUT
from .float_layer import FloatLayer, FloatTerm
from .layout import NOTHING, Axis, Layout, Part, Window, plain, window

__all__ = ["FloatLayer", "FloatTerm", "lower"]

Windows = tuple[Window, Window]
Weight = NDArray[np.float64] | Coded
POINT = (Window(1), Window(1))
WASTE = 2
"""A tensor is worked on as a whole unless more than this times the channels wanted are there."""


def lower(graph: Graph) -> tuple[FloatLayer, ...]:
    """The layers of `graph` in execution order; the last one is the network's output.

    Raises ``ValueError``, naming the layer, at what the machine cannot compute.
    """
    return _Lowering(graph).layers()


def _windows(
    kernel: tuple[int, ...], stride: tuple[int, int], padding: Padding, dilation: tuple[int, int]
) -> Windows:
    vertical = Window(kernel[0], stride[0], padding[0], padding[1], dilation[0])
    return vertical, Window(kernel[1], stride[1], padding[2], padding[3], dilation[1])


def _map(weight: Weight, move: Callable[[NDArray], NDArray]) -> Weight:
    return weight.map(move) if isinstance(weight, Coded) else move(weight)


def _ungrouped(weight: NDArray, groups: int) -> NDArray:
    """(Co, Ci / groups, Kh, Kw) to (Co, Ci, Kh, Kw), with zeros for the other groups' channels."""
    filters, depth, *taps = weight.shape
    parts = weight.reshape(groups, filters // groups, depth, *taps)
    dense = np.zeros((groups, filters // groups, groups, depth, *taps), weight.dtype)
    for group, part in enumerate(parts):
        dense[group, :, group] = part
    return dense.reshape(filters, groups * depth, *taps)


def _weight(node: Conv2d | Linear) -> Weight:
    return node.weight.astype(np.float64) if node.coded is None else node.coded


def _with(term: FloatTerm, weight: Weight) -> FloatTerm:
    """The term with a learnt weight."""
    coded = weight if isinstance(weight, Coded) else None
    values = weight.weight if isinstance(weight, Coded) else weight
    return replace(term, weight=values, constant=False, coded=coded)


def _term(
    source: str, weight: Weight, windows: Windows, groups: int = 1, constant: bool = False
) -> FloatTerm:
    rows, columns = windows
    term = FloatTerm(
        source,
        np.zeros(()),
        (rows.stride, columns.stride),
        (rows.before, rows.after, columns.before, columns.after),
        (rows.dilation, columns.dilation),
        groups,
    )
    return replace(_with(term, weight), constant=constant)


class _Lowering:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes = {node.name: node for node in graph.nodes}
        self.stored: list[FloatLayer] = []
        self.open: dict[str, FloatLayer] = {}
        """layers that are not stored yet and may still grow, by the tensor they will write"""
        self.signed: set[str] = set()
        """tensors that were trained with a sign"""
        self.shapes: dict[str, tuple[int, int, int]] = {}
        """of every tensor"""
        self.layouts: dict[str, Layout] = {}
        """where the result of every node is"""
        self.alias: dict[str, str] = {}
        """the node behind one that is an alias"""
        for node in graph.nodes:
            if isinstance(node, Flatten):
                self.alias[node.name] = self._behind(node.inputs[0])
        readers = (node for node in graph.nodes if node.name not in self.alias)
        self.uses = Counter(self._behind(name) for node in readers for name in node.inputs)

    def layers(self) -> tuple[FloatLayer, ...]:
        for node in self.graph.nodes:
            if isinstance(node, Output):
                self._finish(node)
            elif node.name not in self.alias:
                self.layouts[node.name] = self._layout(node)
        return tuple(replace(each, signed=each.name in self.signed) for each in self.stored)

    def _behind(self, name: str) -> str:
        return self.alias.get(name, name)

    def _operand(self, node: Node, number: int = 0) -> Layout:
        return self.layouts[self._behind(node.inputs[number])]

    def _owned(self, name: str) -> bool:
        """Whether only one node reads a result, and what it was arranged from."""
        name = self._behind(name)
        node = self.nodes[name]
        moved = isinstance(node, Arrange)
        return self.uses[name] == 1 and not (moved and not all(map(self._owned, node.inputs)))

    def _growing(self, name: str) -> list[str] | None:
        """The open layers that compute a result, each as a whole, for nothing else to read."""
        layout = self.layouts[self._behind(name)]
        if not self._owned(name) or layout.repeats:
            return None
        for number, part in enumerate(layout.parts):
            if part.tensor not in self.open:
                return None
            shape = (layout.channels(number)[0].size, *layout.size)
            if part != Part(part.tensor) or shape != self.shapes[part.tensor]:
                return None
        return [part.tensor for part in layout.parts]

    def _open(self, layer: FloatLayer, size: tuple[int, int]) -> Layout:
        """The result of a new layer."""
        self.open[layer.name] = layer
        self.shapes[layer.name] = (layer.bias.size, *size)
        return plain(layer.name, self.shapes[layer.name])

    def _fresh(self, name: str) -> str:
        """A name that no node and no tensor has."""
        number, fresh = 1, name
        while fresh in self.nodes or fresh in self.shapes:
            fresh, number = f"{name}_{number}", number + 1
        return fresh

    def _store(self, tensor: str) -> str:
        """Make sure that a tensor is stored before it is read."""
        if tensor in self.open:
            self.stored.append(self.open.pop(tensor).single())
        return tensor

    def _on(self, layout: Layout, part: int, on: Windows, border: bool = False) -> Windows | None:
        """What a window on the activation is on the tensor of one of its parts."""
        tensor, rows, columns = layout.parts[part]
        _, height, width = self.shapes[tensor]
        vertical = window(on[0], rows, layout.size[0], height, border)
        horizontal = window(on[1], columns, layout.size[1], width, border)
        return None if vertical is None or horizontal is None else (vertical, horizontal)

    def _reach(self, layout: Layout, on: Windows, border: bool = False) -> list[Windows] | None:
        """The windows on all parts, if there are such."""
        found = [self._on(layout, part, on, border) for part in range(len(layout.parts))]
        return None if None in found else [windows for windows in found if windows is not None]

    def _is_plain(self, layout: Layout) -> bool:
        """Whether an activation has the channels of one tensor, all and in order."""
        return layout.whole is not None and self.shapes[layout.whole][0] == layout.shape[0]

    # Reading an activation

    def _copy(self, layout: Layout) -> tuple[FloatTerm, ...]:
        """Terms that add an activation as it is."""
        reached = self._reach(layout, POINT)
        assert reached is not None  # a window of one pixel never sees another
        terms = []
        for number, (part, windows) in enumerate(zip(layout.parts, reached, strict=True)):
            source = self._store(part.tensor)
            if self._is_plain(layout):
                weight, groups = np.ones((layout.shape[0], 1, 1, 1)), layout.shape[0]
            else:
                result, place = layout.channels(number)
                weight, groups = np.zeros((layout.shape[0], self.shapes[source][0], 1, 1)), 1
                weight[result, place] = 1
            terms.append(_term(source, weight, windows, groups, constant=True))
        return tuple(terms)

    def _gathered(self, layout: Layout, name: str) -> Layout:
        """The activation, stored in one tensor by a layer of its own."""
        layer = FloatLayer(name, self._copy(layout), np.zeros(layout.shape[0]))
        return self._open(layer, layout.size)

    def _convolution(
        self, name: str, layout: Layout, weight: Weight, on: Windows, groups: int = 1
    ) -> tuple[FloatTerm, ...]:
        """Terms that convolve an activation, wherever its channels are.

        Groups whose channels are scattered are gathered, once for all kernel positions. Where there
        is only one, the convolution itself takes them from where they are.
        """
        reached = self._reach(layout, on)
        pointwise = on[0].kernel == on[1].kernel == 1
        if reached is None or (groups > 1 and not pointwise and not self._is_plain(layout)):
            layout = self._gathered(layout, self._fresh(f"{name}.gather"))
            reached = [on]
        if self._is_plain(layout):
            return (_term(self._store(layout.parts[0].tensor), weight, reached[0], groups),)
        dense = _map(weight, lambda values: _ungrouped(values, groups))
        moved = [self._scattered(layout, number, dense) for number in range(len(layout.parts))]
        if isinstance(weight, Coded) and (
            layout.repeats
            or any(isinstance(each, Coded) and each.block_steps() is None for each in moved)
        ):
            # The scales of codes belong to blocks of the activation, not of what it is made of.
            layout = self._gathered(layout, self._fresh(f"{name}.gather"))
            return self._convolution(name, layout, weight, on, groups)
        return tuple(
            _term(self._store(part.tensor), each, windows)
            for part, each, windows in zip(layout.parts, moved, reached, strict=True)
        )

    def _scattered(self, layout: Layout, number: int, weight: Weight) -> Weight:
        """A weight on an activation as that on one of its parts."""
        result, place = layout.channels(number)
        depth = self.shapes[layout.parts[number].tensor][0]

        def scattered(values: NDArray) -> NDArray:
            moved = np.zeros((depth, len(values), *values.shape[2:]), values.dtype)
            np.add.at(moved, place, values[:, result].swapaxes(0, 1))
            return moved.swapaxes(0, 1)

        return _map(weight, scattered)

    def _channelwise(
        self,
        node: Node,
        layout: Layout,
        on: Windows,
        make: Callable[[str, FloatTerm, NDArray[np.int64]], FloatLayer],
        *,
        weight: float = 1.0,
        outputs: int = 1,
        keeps_zero: bool = True,
        repeats: bool = True,
        border: bool = False,
    ) -> Layout:
        """Do the same to every channel: to each tensor of the activation, as a whole.

        `make` completes a layer of a name from a depthwise term and, of every channel of its
        tensor, the channel of the activation, or -1; it makes `outputs` channels of each.
        """
        present = sum(self.shapes[part.tensor][0] for part in layout.parts)
        reached = self._reach(layout, on, border)
        if (
            reached is None
            or (layout.has_zeros and not keeps_zero)
            or (layout.repeats and not repeats)
            or present > WASTE * layout.shape[0]
        ):
            layout = self._gathered(layout, self._fresh(f"{node.name}.gather"))
            reached = [on]
        size = on[0].count(layout.size[0]), on[1].count(layout.size[1])
        parts = []
        for number, (part, windows) in enumerate(zip(layout.parts, reached, strict=True)):
            source = self._store(part.tensor)
            channels = self.shapes[source][0]
            wanted = np.full(channels, NOTHING)
            result, place = layout.channels(number)
            wanted[place] = result
            name = node.name
            if len(layout.parts) > 1:
                name = self._fresh(f"{node.name}.{number}")
            taps = np.full((channels, 1, on[0].kernel, on[1].kernel), weight)
            term = _term(source, taps, windows, channels, constant=True)
            parts += self._open(make(name, term, wanted), size).parts
        source = np.repeat(layout.source, outputs)
        channel = (layout.channel[:, None] * outputs + np.arange(outputs)).ravel()
        return Layout(tuple(parts), source, channel, size)

    # Nodes

    def _layout(self, node: Node) -> Layout:
        match node:
            case Input():
                channels, height, width = node.shape
                self.shapes[INPUT] = (channels, height, width)
                return plain(INPUT, node.shape)
            case Arrange():
                return self._arrange(node)
            case Conv2d():
                return self._conv(node)
            case Linear():
                return self._linear(node)
            case BatchNorm():
                return self._batch_norm(node)
            case Requantize():
                return self._requantize(node)
            case ReLU():
                return self._clamp(node, 0, np.inf)
            case Clamp():
                return self._clamp(node, node.low, node.high)
            case Add():
                return self._add(node)
            case MaxPool():
                return self._max_pool(node)
            case AvgPool():
                on = _windows(node.kernel, node.stride, node.padding, (1, 1))
                return self._channelwise(
                    node,
                    self._operand(node),
                    on,
                    lambda name, term, wanted: FloatLayer(name, (term,), np.zeros(wanted.size)),
                    weight=node.weight,
                )
        raise ValueError(f"layer {node.name!r}: {type(node).__name__} is not supported")

    def _arrange(self, node: Arrange) -> Layout:
        parts: dict[Part, int] = {}
        source = np.full(node.source.size, NOTHING)
        channel = np.zeros(node.source.size, np.int64)
        for number, name in enumerate(node.inputs):
            layout = self._operand(node, number)
            if layout.shape[0] != self.graph.shapes[name][0]:
                raise ValueError(
                    f"layer {node.name!r}: it moves features of {name!r} after a flatten; "
                    "flatten last, or flatten images of one pixel"
                )
            axes = [
                Axis(*pair) for pair in zip(node.offset[number], node.stride[number], strict=True)
            ]
            # The pixels that this node reads, as windows of one pixel with that stride.
            on = tuple(
                Window(1, axis.stride, -axis.offset, _end(axis, count) - size + axis.offset)
                for axis, count, size in zip(axes, node.size, layout.size, strict=True)
            )
            if self._reach(layout, (on[0], on[1])) is None:
                layout = self._gathered(layout, self._fresh(f"{node.name}.gather"))
            (result,) = np.nonzero(node.source == number)
            inner = layout.source[node.channel[result]]
            channel[result] = layout.channel[node.channel[result]]
            for k, part in enumerate(layout.parts):
                moved = Part(
                    part.tensor, _composed(part.rows, axes[0]), _composed(part.columns, axes[1])
                )
                if (inner == k).any():
                    source[result[inner == k]] = parts.setdefault(moved, len(parts))
        return Layout(tuple(parts), source, channel, node.size)

    def _conv(self, node: Conv2d) -> Layout:
        layout, weight = self._operand(node), _weight(node)
        bias = node.bias.astype(np.float64)
        filters, depth, *taps = node.weight.shape
        on = _windows((taps[0], taps[1]), node.stride, node.padding, node.dilation)
        size = on[0].count(layout.size[0]), on[1].count(layout.size[1])
        outputs = filters // node.groups
        if depth == 1 and node.groups > 1 and not self._is_plain(layout):

            def depthwise(name: str, term: FloatTerm, wanted: NDArray[np.int64]) -> FloatLayer:
                chosen = np.repeat(wanted, outputs)
                order = (wanted[:, None] * outputs + np.arange(outputs)).ravel()
                own = chosen != NOTHING

                def ordered(values: NDArray) -> NDArray:
                    return np.where(own[:, None, None, None], values[order], values.dtype.type(0))

                return FloatLayer(
                    name,
                    (_with(term, _map(weight, ordered)),),
                    np.where(own, bias[order], 0),
                    macs_per_pixel=int(own.sum()) * taps[0] * taps[1],
                )

            return self._channelwise(
                node, layout, on, depthwise, outputs=outputs, keeps_zero=False, repeats=False
            )
        terms = self._convolution(node.name, layout, weight, on, node.groups)
        layer = FloatLayer(node.name, terms, bias, macs_per_pixel=node.macs_per_pixel)
        return self._open(layer, size)

    def _linear(self, node: Linear) -> Layout:
        layout = self._operand(node)
        weight = _map(_weight(node), lambda values: values.reshape(-1, *layout.shape))
        on = Window(layout.size[0]), Window(layout.size[1])
        terms = self._convolution(node.name, layout, weight, on)
        bias = node.bias.astype(np.float64)
        layer = FloatLayer(node.name, terms, bias, macs_per_pixel=node.macs_per_pixel)
        return self._open(layer, (1, 1))

    def _batch_norm(self, node: BatchNorm) -> Layout:
        layout = self._operand(node)
        if layout.shape[0] != node.scale.size:
            raise ValueError(
                f"layer {node.name!r}: batch norm of {node.scale.size} features after a flatten of "
                f"{layout.shape[0]} channels is not supported; normalise before the flatten"
            )
        growing = self._growing(node.inputs[0])
        if growing and not layout.has_zeros and all(self.open[t].foldable for t in growing):
            for number, tensor in enumerate(growing):
                result, place = layout.channels(number)
                order = result[np.argsort(place)]
                self.open[tensor] = self.open[tensor].scaled(node.scale[order], node.shift[order])
            return layout

        def scaled(name: str, term: FloatTerm, wanted: NDArray[np.int64]) -> FloatLayer:
            scale, shift = (
                np.where(wanted == NOTHING, 0, x[wanted]) for x in (node.scale, node.shift)
            )
            layer = FloatLayer(name, (replace(term, constant=False),), np.zeros(wanted.size))
            return layer.scaled(scale, shift)

        return self._channelwise(node, layout, POINT, scaled, keeps_zero=False, repeats=False)

    def _clamp(self, node: Node, low: float, high: float) -> Layout:
        layout, keeps_zero = self._operand(node), low <= 0 <= high
        growing = self._growing(node.inputs[0])
        if growing and (keeps_zero or not layout.has_zeros):
            for tensor in growing:
                self.open[tensor] = self.open[tensor].clamped(low, high)
            return layout
        return self._channelwise(
            node,
            layout,
            POINT,
            lambda name, term, wanted: FloatLayer(
                name, (term,), np.zeros(wanted.size), limits=(low, high)
            ),
            keeps_zero=keeps_zero,
        )

    def _requantize(self, node: Requantize) -> Layout:
        """Store an activation where it was stored in training: every tensor is requantized."""
        layout = self._operand(node)
        if not node.spec.signed and node.inputs[0] not in self.graph.nonnegative:
            layout = self._clamp(node, 0, np.inf)
        if any(part.tensor == INPUT for part in layout.parts):
            layout = self._gathered(layout, node.name)
        for part in layout.parts:
            tensor = self._store(part.tensor)
            if node.spec.signed:
                self.signed.add(tensor)
        return layout

    def _add(self, node: Add) -> Layout:
        shapes = [self._operand(node, number).shape for number in range(len(node.inputs))]
        for shape in shapes[1:]:
            if shape != shapes[0]:
                raise ValueError(
                    f"layer {node.name!r}: adding {shapes[0]} to {shape} after a flatten is not "
                    "supported; add tensors of the same channels, height and width"
                )
        terms: list[FloatTerm] = []
        bias = np.zeros(shapes[0][0])
        macs_per_pixel = 0
        joined = []
        for name in node.inputs:
            layout = self.layouts[self._behind(name)]
            growing = self._growing(name)
            if growing and self._is_plain(layout) and self.open[growing[0]].sums:
                layer = self.open.pop(growing[0])
                joined.append(layer.name)
                terms += layer.terms
                bias = bias + layer.bias
                macs_per_pixel += layer.macs_per_pixel
            else:
                terms += self._copy(layout)
        name = joined[0] if joined else node.name
        layer = FloatLayer(name, tuple(terms), bias, macs_per_pixel=macs_per_pixel)
        return self._open(layer, shapes[0][1:])

    def _max_pool(self, node: MaxPool) -> Layout:
        layout = self._operand(node)
        if any(part.tensor == INPUT for part in layout.parts):
            # The maximum of a pixel's digit planes is not the maximum of the pixels.
            layout = self._gathered(layout, self._fresh(f"{node.name}.{INPUT}"))
        on = _windows(node.kernel, node.stride, node.padding, node.dilation)
        lowest = float(np.finfo(np.float32).min)
        return self._channelwise(
            node,
            layout,
            on,
            lambda name, term, wanted: FloatLayer(
                name, (term,), np.full(wanted.size, lowest), reduce="max"
            ),
            border=True,
        )

    def _finish(self, node: Output) -> None:
        layout = self._operand(node)
        growing = self._growing(node.inputs[0])
        if growing and self._is_plain(layout):
            # Whatever else is still open is read by nothing.
            self._store(growing[0])
            return
        copy = self._gathered(layout, node.name)
        self._store(copy.parts[0].tensor)


def _end(axis: Axis, count: int) -> int:
    """One past the last of `count` positions."""
    return axis.offset + axis.stride * (count - 1) + 1


def _composed(outer: Axis, inner: Axis) -> Axis:
    return Axis(outer.offset + outer.stride * inner.offset, outer.stride * inner.stride)
