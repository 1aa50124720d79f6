"""ATen operators that compute, to graph nodes.

A reader takes one :class:`~.call.Call` and returns what computes the same. It looks at every
argument of the operator and refuses what it does not carry over.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch

from ..golden.bfp import BlockFloat
from .arrange import ZERO
from .block_float import BLOCK_FLOAT
from .call import Activation, Call, Made, Operand, Reader
from .graph import Add, BatchNorm, Clamp, Coded, Conv2d, Linear, Node, Padding, ReLU, Requantize
from .pools import POOLS

__all__ = ["READERS", "hint"]


def _symmetric(pad: tuple[int, int]) -> Padding:
    return pad[0], pad[0], pad[1], pad[1]


def _conv(call: Call, padding: Padding) -> tuple[Node, ...]:
    weight = call.weight("weight")
    if weight.ndim != 4:
        raise call.refuse(f"its kernel is {weight.shape}", "only 2d convolutions are supported")
    return (
        Conv2d(
            call.layer,
            (call.image("input"),),
            weight,
            call.weight("bias", np.zeros(len(weight), np.float32)),
            call.pair("stride"),
            padding,
            call.pair("dilation"),
            call.arguments["groups"],
            call.coded("weight"),
        ),
    )


def _conv2d(call: Call) -> tuple[Node, ...]:
    return _conv(call, _symmetric(call.pair("padding")))


def _convolution(call: Call) -> tuple[Node, ...]:
    if call.arguments["transposed"]:
        raise call.refuse("a transposed convolution is not supported", HINTS["conv_transpose2d"])
    return _conv2d(call)


def _conv2d_named_padding(call: Call) -> tuple[Node, ...]:
    """``padding="valid"`` or ``"same"``; an odd total puts the larger half at the end."""
    if call.arguments["padding"] == "valid":
        return _conv(call, (0, 0, 0, 0))
    taps, dilation = call.weight("weight").shape[2:], call.pair("dilation")
    height, width = (dilation[i] * (taps[i] - 1) for i in (0, 1))
    top, left = height // 2, width // 2
    return _conv(call, (top, height - top, left, width - left))


def _product(
    call: Call, name: str, weight: np.ndarray, bias: np.ndarray, coded: Coded | None
) -> tuple[Node, ...] | Made:
    """``x @ weight.T + bias`` over the last dimension of argument `name`."""
    value = call.activation(name)
    workspace = call.workspace
    if weight.ndim != 2:
        raise call.refuse(f"its weight is {weight.shape}", "it must be (out, in)")
    index = workspace.one_image(value)
    if index is None:
        raise call.refuse(
            f"its input is {value.shape} of {workspace.images} images", "flatten every image"
        )
    if math.prod(index.shape[:-1]) > 1:
        # Channels last: a linear layer at every pixel.
        pixels = index.transpose(2, 0, 1) if index.ndim == 3 else None
        source = None if pixels is None else workspace.arranged(pixels, call)
        if source is None:
            raise call.refuse(f"its input is {index.shape}", "flatten its input")
        pixelwise = None if coded is None else coded.map(_as_kernel)
        node = Conv2d(call.layer, (source,), _as_kernel(weight), bias, coded=pixelwise)
        return Made((node,), lambda index: index.permute(0, 2, 3, 1).reshape(call.shape))
    if value.shape[-1] != weight.shape[1]:
        raise call.refuse(
            f"it takes {weight.shape[1]} features, not {index.shape}", "flatten its input"
        )
    parts = workspace.operands(value)
    if not parts:
        raise call.refuse("its input is zero", "leave it out")
    flat = [workspace.flattened(part.place.name, value.origin) for part in parts]
    if len(parts) == 1 and _in_order(parts[0], weight.shape[1]):
        return (Linear(call.layer, (flat[0],), weight, bias, coded),)
    # Features in another order, or of several tensors: the weights go where the features are.
    nodes: list[Node] = []
    for number, (source, part) in enumerate(zip(flat, parts, strict=True)):

        def moved(values: np.ndarray, part: Operand = part) -> np.ndarray:
            placed = np.zeros((part.place.size, len(values)), values.dtype)
            np.add.at(placed, part.elements, values.T[part.features])
            return np.ascontiguousarray(placed.T)

        if coded is not None and np.unique(part.elements).size < part.elements.size:
            raise call.refuse("a feature is read twice by a weight of codes", "read it once")
        layer = call.layer if len(parts) == 1 else workspace.unique(f"{call.layer}.{number}")
        start = np.zeros_like(bias) if number else bias
        own = None if coded is None else coded.map(moved)
        nodes.append(Linear(layer, (source,), moved(weight), start, own))
    if len(parts) > 1:
        nodes.append(Add(call.layer, tuple(node.name for node in nodes)))
    return tuple(nodes)


def _as_kernel(weight: np.ndarray) -> np.ndarray:
    return weight[:, :, None, None]


def _in_order(part: Operand, count: int) -> bool:
    return part.place.size == count and all(
        np.array_equal(order, np.arange(count)) for order in (part.features, part.elements)
    )


def _linear(call: Call) -> tuple[Node, ...] | Made:
    weight = call.weight("weight")
    bias = call.weight("bias", np.zeros(len(weight), np.float32))
    return _product(call, "input", weight, bias, call.coded("weight"))


def _addmm(call: Call) -> tuple[Node, ...] | Made:
    call.require("alpha", 1)
    call.require("beta", 1)
    weight, coded = _transposed(call, "mat2")
    bias = np.broadcast_to(call.weight("self"), call.shape)
    if (bias != bias[:1]).any():
        raise call.refuse("its bias differs from image to image", "use one bias for all")
    return _product(call, "mat1", weight, bias[0].copy(), coded)


def _transposed(call: Call, name: str) -> tuple[np.ndarray, Coded | None]:
    weight, coded = np.ascontiguousarray(call.weight(name).T), call.coded(name)
    return weight, None if coded is None else coded.map(np.transpose)


def _matmul(second: str) -> Reader:
    def read(call: Call) -> tuple[Node, ...] | Made:
        weight, coded = _transposed(call, second)
        return _product(call, "self", weight, np.zeros(len(weight), np.float32), coded)

    return read


def _batch_norm(call: Call) -> tuple[Node, ...]:
    if call.arguments.get("training") or call.arguments.get("train"):
        raise call.refuse("it is in training mode", "export in evaluation mode: model.eval()")
    call.check_rank(call.activation("input"), 2, 4)
    mean = call.weight("running_mean")
    return (
        BatchNorm(
            call.layer,
            (call.source("input"),),
            call.weight("weight", np.ones_like(mean)),
            call.weight("bias", np.zeros_like(mean)),
            mean,
            call.weight("running_var"),
            call.arguments["eps"],
        ),
    )


def _elementwise(call: Call, make: Callable[[str], Node]) -> tuple[Node, ...] | Made:
    """A function of every element, which keeps zero."""
    value, workspace = call.activation("self"), call.workspace
    try:
        return (make(workspace.operand(value)),)
    except ValueError:
        # Whatever was moved where: compute it in place, and move the results instead.
        parts = workspace.operands(value)
        if len(parts) != 1:
            raise
        place = parts[0].place
        index = workspace.index(value)
        inside = (index - place.start).clamp(min=0)

        def layout(result: torch.Tensor) -> torch.Tensor:
            return torch.where(index == ZERO, ZERO, result.flatten()[inside])

        return Made((make(place.name),), layout)


def _bounded(call: Call, low: float | None, high: float | None) -> tuple[Node, ...] | Made:
    low = -math.inf if low is None else float(low)
    high = math.inf if high is None else float(high)
    if (low, high) == (0, math.inf):
        return _elementwise(call, lambda source: ReLU(call.layer, (source,)))
    if not low <= high:
        raise call.refuse(f"clamps to {low} ... {high}, which is no range", "use low < high")
    if low <= 0 <= high:
        return _elementwise(call, lambda source: Clamp(call.layer, (source,), low, high))
    return (Clamp(call.layer, (call.source("self"),), low, high),)


def _relu(call: Call) -> tuple[Node, ...] | Made:
    return _bounded(call, 0, None)


def _clamp(low: str | None, high: str | None) -> Reader:
    def read(call: Call) -> tuple[Node, ...] | Made:
        ends = [None if name is None else call.arguments[name] for name in (low, high)]
        return _bounded(call, *ends)

    return read


def _threshold(call: Call) -> tuple[Node, ...] | Made:
    call.require("threshold", 0)
    call.require("value", 0)
    return _relu(call)


def _extreme(largest: bool) -> Reader:
    """``maximum`` or ``minimum`` with one constant is a clamp."""

    def read(call: Call) -> tuple[Node, ...] | Made:
        value = call.arguments["other"]
        if isinstance(value, Activation) and value.zero:
            end = 0.0
        elif isinstance(value, torch.Tensor) and value.unique().numel() == 1:
            end = float(value.flatten()[0])
        else:
            raise call.refuse("other is computed by the network", "it must be one number")
        return _bounded(call, end if largest else None, None if largest else end)

    return read


def _add(call: Call) -> tuple[Node, ...] | Activation:
    call.require("alpha", 1)
    left, right = call.arguments["self"], call.arguments["other"]
    for kept, dropped in ((left, right), (right, left)):
        zero = dropped.zero if isinstance(dropped, Activation) else _is_zero(dropped)
        if zero and isinstance(kept, Activation) and kept.shape == call.shape:
            return kept  # sum() of a list starts from 0
    shapes = [call.activation(name).shape for name in ("self", "other")]
    if any(math.prod(shape) != math.prod(call.shape) for shape in shapes):
        one, other = (shape[1:] for shape in shapes)
        raise call.refuse(f"adds {one} and {other}", "broadcasting is not supported")
    return (Add(call.layer, (call.source("self"), call.source("other"))),)


def _requantize(call: Call) -> tuple[Node, ...]:
    spec = BlockFloat(*(call.arguments[name] for name in ("block", "bits", "signed", "rounding")))
    return (Requantize(call.layer, (call.source("x"),), spec),)


def _is_zero(value: object) -> bool:
    if isinstance(value, torch.Tensor):
        return not bool(value.any())
    return isinstance(value, int | float) and value == 0


ATEN = torch.ops.aten

READERS: Mapping[object, Reader] = {
    ATEN.conv2d.default: _conv2d,
    ATEN.conv2d.padding: _conv2d_named_padding,
    ATEN.convolution.default: _convolution,
    ATEN.linear.default: _linear,
    ATEN.addmm.default: _addmm,
    ATEN.mm.default: _matmul("mat2"),
    ATEN.matmul.default: _matmul("other"),
    ATEN._native_batch_norm_legit_no_training.default: _batch_norm,
    ATEN._native_batch_norm_legit.default: _batch_norm,
    ATEN.native_batch_norm.default: _batch_norm,
    ATEN.batch_norm.default: _batch_norm,
    ATEN.relu.default: _relu,
    ATEN.relu6.default: lambda call: _bounded(call, 0, 6),
    ATEN.hardtanh.default: _clamp("min_val", "max_val"),
    ATEN.clamp.default: _clamp("min", "max"),
    ATEN.clip.default: _clamp("min", "max"),
    ATEN.clamp_min.default: _clamp("min", None),
    ATEN.clamp_max.default: _clamp(None, "max"),
    ATEN.threshold.default: _threshold,
    ATEN.maximum.default: _extreme(True),
    ATEN.minimum.default: _extreme(False),
    ATEN.add.Tensor: _add,
    BLOCK_FLOAT: _requantize,
    **POOLS,
}

SUPPORTED = (
    "use Conv2d, Linear, BatchNorm, ReLU, clamp, add, cat, max and average pools, and what moves "
    "data: views, slices, pads, transpositions"
)
_ACTIVATION = "use ReLU or ReLU6"
_OUTSIDE = "leave it out and compute it on the host: it does not change which class is the largest"
HINTS = {
    "conv_transpose2d": "use Conv2d; nothing that enlarges an image is supported",
    "upsample_nearest2d": "nothing that enlarges an image is supported",
    "upsample_bilinear2d": "nothing that enlarges an image is supported",
    "conv1d": "use Conv2d with a height of 1",
    "conv3d": "use Conv2d",
    "softmax": _OUTSIDE,
    "_softmax": _OUTSIDE,
    "log_softmax": _OUTSIDE,
    "sigmoid": _ACTIVATION,
    "silu": _ACTIVATION,
    "gelu": _ACTIVATION,
    "hardswish": _ACTIVATION,
    "hardsigmoid": _ACTIVATION,
    "leaky_relu": _ACTIVATION,
    "prelu": _ACTIVATION,
    "elu": _ACTIVATION,
    "tanh": _ACTIVATION,
    "mish": _ACTIVATION,
    "native_dropout": "export the network in evaluation mode: model.eval()",
    "layer_norm": "use BatchNorm2d",
    "native_layer_norm": "use BatchNorm2d",
    "group_norm": "use BatchNorm2d",
    "native_group_norm": "use BatchNorm2d",
    "instance_norm": "use BatchNorm2d",
    "mul": "fold factors into the weights of a layer; products of activations are not supported",
    "div": "fold factors into the weights of a layer",
    "sub": "fold the subtraction into the weights of a layer: add the negated tensor",
}


def hint(op: str) -> str:
    """What to do about an operator, ``aten.<name>.<overload>``, that has no reader."""
    name = op.split(".")[1] if "." in op else op
    return HINTS.get(name, SUPPORTED)
