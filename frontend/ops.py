"""ATen operators to graph nodes.

A reader takes one :class:`Call` and returns the node or nodes that compute the same. It looks at
every argument of the operator and refuses what it does not carry over.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .graph import (
    Add,
    AvgPool,
    BatchNorm,
    Conv2d,
    Flatten,
    Linear,
    MaxPool,
    Node,
    Padding,
    ReLU,
    Shape,
)

__all__ = ["ALIASES", "READERS", "Call", "Reader", "UnsupportedLayer", "hint"]


class UnsupportedLayer(ValueError):
    """A layer that Shiftcore does not carry over; the message says which, why and what to do."""


@dataclass(frozen=True)
class Call:
    """One operator of the exported program.

    Parameters
    ----------
    layer : name for the result, the module's path where a module stands for the operator
    op : name of the operator, e.g. ``aten.conv2d.default``
    arguments : every argument by its name in the operator's schema; an activation is the
        :class:`str` name of its node, a weight is an array
    shapes : of the activations, by name
    result : shape of the result
    """

    layer: str
    op: str
    arguments: Mapping[str, Any]
    shapes: Mapping[str, Shape]
    result: Shape

    def refuse(self, problem: str, advice: str) -> UnsupportedLayer:
        return UnsupportedLayer(f"layer {self.layer!r} ({self.op}): {problem}; {advice}")

    def source(self, name: str) -> str:
        """The activation that argument `name` is."""
        value = self.arguments[name]
        if not isinstance(value, str):
            raise self.refuse(f"{name} is a constant", "only activations are supported there")
        return value

    def weight(self, name: str, default: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """The constant that argument `name` is, or `default` where it is None."""
        value = self.arguments[name]
        if value is None and default is not None:
            return default
        if not isinstance(value, np.ndarray):
            raise self.refuse(f"{name} is computed by the network", "it must be a constant tensor")
        return value

    def pair(self, name: str) -> tuple[int, int]:
        """(vertical, horizontal) of an integer list of one or two entries."""
        value = self.arguments[name]
        return int(value[0]), int(value[-1])

    def require(self, name: str, allowed: object) -> None:
        """Refuse unless argument `name` is `allowed`."""
        value = self.arguments[name]
        if value != allowed:
            raise self.refuse(f"{name}={value!r} is not supported", f"use {name}={allowed!r}")


Reader = Callable[[Call], tuple[Node, ...]]


def _symmetric(pad: tuple[int, int]) -> Padding:
    return pad[0], pad[0], pad[1], pad[1]


def _convolution(call: Call, padding: Padding) -> tuple[Node, ...]:
    weight = call.weight("weight")
    return (
        Conv2d(
            call.layer,
            (call.source("input"),),
            weight,
            call.weight("bias", np.zeros(len(weight), np.float32)),
            call.pair("stride"),
            padding,
            call.pair("dilation"),
            call.arguments["groups"],
        ),
    )


def _conv2d(call: Call) -> tuple[Node, ...]:
    return _convolution(call, _symmetric(call.pair("padding")))


def _conv2d_named_padding(call: Call) -> tuple[Node, ...]:
    """``padding="valid"`` or ``"same"``; an odd total puts the larger half at the end."""
    if call.arguments["padding"] == "valid":
        return _convolution(call, (0, 0, 0, 0))
    taps, dilation = call.weight("weight").shape[2:], call.pair("dilation")
    height, width = (dilation[i] * (taps[i] - 1) for i in (0, 1))
    top, left = height // 2, width // 2
    return _convolution(call, (top, height - top, left, width - left))


def _linear(call: Call) -> tuple[Node, ...]:
    weight = call.weight("weight")
    bias = call.weight("bias", np.zeros(len(weight), np.float32))
    return (Linear(call.layer, (call.source("input"),), weight, bias),)


def _batch_norm(call: Call) -> tuple[Node, ...]:
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


def _relu(call: Call) -> tuple[Node, ...]:
    return (ReLU(call.layer, (call.source("self"),)),)


def _add(call: Call) -> tuple[Node, ...]:
    call.require("alpha", 1)
    return (Add(call.layer, (call.source("self"), call.source("other"))),)


def _max_pool(call: Call) -> tuple[Node, ...]:
    call.require("ceil_mode", False)
    kernel = call.pair("kernel_size")
    stride = call.pair("stride") if call.arguments["stride"] else kernel
    padding, dilation = _symmetric(call.pair("padding")), call.pair("dilation")
    return (MaxPool(call.layer, (call.source("self"),), kernel, stride, padding, dilation),)


def _avg_pool(call: Call) -> tuple[Node, ...]:
    call.require("ceil_mode", False)
    call.require("divisor_override", None)
    kernel, padding = call.pair("kernel_size"), _symmetric(call.pair("padding"))
    if any(padding):
        call.require("count_include_pad", True)
    stride = call.pair("stride") if call.arguments["stride"] else kernel
    return (AvgPool(call.layer, (call.source("self"),), kernel, stride, padding),)


def _global_pool(call: Call) -> AvgPool:
    source = call.source("self")
    if len(call.shapes[source]) != 3:
        raise call.refuse(f"its input is {call.shapes[source]}", "it must be (C, H, W)")
    _, height, width = call.shapes[source]
    return AvgPool(call.layer, (source,), (height, width), (height, width))


def _adaptive_pool(call: Call) -> tuple[Node, ...]:
    call.require("output_size", [1, 1])
    return (_global_pool(call),)


def _mean(call: Call) -> tuple[Node, ...]:
    dimensions = call.arguments["dim"]
    if not isinstance(dimensions, list | tuple) or {d % 4 for d in dimensions} != {2, 3}:
        raise call.refuse(f"dim={dimensions!r} is not supported", "take the mean over dims (2, 3)")
    call.require("dtype", None)
    pool = _global_pool(call)
    if call.arguments["keepdim"]:
        return (pool,)
    return pool, Flatten(f"{call.layer}.flatten", (pool.name,))


def _reshape(call: Call) -> tuple[Node, ...]:
    source = call.source("self")
    if call.result != (int(np.prod(call.shapes[source])),):
        raise call.refuse("this reshape is not supported", "use torch.flatten(x, 1)")
    return (Flatten(call.layer, (source,)),)


ATEN = torch.ops.aten
ALIASES = frozenset({ATEN.clone.default, ATEN.alias.default, ATEN.detach.default})
"""Operators whose result is their first argument (dropout in evaluation mode is a clone)."""

READERS: Mapping[object, Reader] = {
    ATEN.conv2d.default: _conv2d,
    ATEN.conv2d.padding: _conv2d_named_padding,
    ATEN.linear.default: _linear,
    ATEN._native_batch_norm_legit_no_training.default: _batch_norm,
    ATEN.relu.default: _relu,
    ATEN.add.Tensor: _add,
    ATEN.max_pool2d.default: _max_pool,
    ATEN.avg_pool2d.default: _avg_pool,
    ATEN.adaptive_avg_pool2d.default: _adaptive_pool,
    ATEN.mean.dim: _mean,
    ATEN.view.default: _reshape,
}

_SUPPORTED = (
    "use Conv2d, BatchNorm, ReLU, add, MaxPool2d, AvgPool2d, AdaptiveAvgPool2d(1), flatten, Linear"
)
_HINTS = {
    "hardtanh": "use ReLU",
    "pad": "pad with zeros in the convolution itself",
    "softmax": "leave it out: it does not change which class is the largest",
    "log_softmax": "leave it out: it does not change which class is the largest",
    "native_dropout": "export the network in evaluation mode: model.eval()",
    "squeeze": "use torch.flatten(x, 1)",
}


def hint(op: str) -> str:
    """What to do about an operator, ``aten.<name>.<overload>``, that has no reader."""
    return _HINTS.get(op.split(".")[1], _SUPPORTED)
