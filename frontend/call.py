"""One operator of an exported program, as a reader sees it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from .arrange import ZERO, Place
from .graph import Coded, Node

__all__ = ["Activation", "Call", "Made", "Operand", "Reader", "UnsupportedLayer", "Workspace"]


class UnsupportedLayer(ValueError):
    """A layer that Shiftcore does not carry over; the message says which, why and what to do."""

    def __init__(
        self, message: str, layer: str = "", op: str = "", problem: str = "", remedy: str = ""
    ) -> None:
        super().__init__(message)
        self.layer, self.op, self.problem, self.remedy = layer, op, problem or message, remedy


@dataclass(frozen=True, eq=False)
class Activation:
    """What depends on the image.

    Parameters
    ----------
    shape : images included
    node : the graph node that it is, if it has that node's shape
    index : otherwise, where each of its elements comes from: see :mod:`.arrange`
    origin : the operator that gave it
    """

    shape: tuple[int, ...]
    node: str | None
    index: torch.Tensor | None
    origin: "Call"

    @property
    def zero(self) -> bool:
        """Whether it is 0 everywhere."""
        return self.index is not None and bool((self.index == ZERO).all())


class Workspace(Protocol):
    """What a reader may ask of the reading."""

    images: int

    def index(self, value: Activation) -> torch.Tensor:
        """The addresses of every element."""
        ...

    def operand(self, value: Activation) -> str:
        """The node that is (C, H, W) or (features,). Raises ``UnsupportedLayer``."""
        ...

    def one_image(self, value: Activation) -> NDArray[np.int64] | None:
        """The addresses of the first image; None unless the others are like it."""
        ...

    def arranged(self, index: NDArray[np.int64], origin: "Call") -> str | None:
        """The node that is (C, H, W) of these addresses, if there can be one."""
        ...

    def operands(self, value: Activation) -> list["Operand"]:
        """Whose elements the activation holds."""
        ...

    def flattened(self, name: str, origin: "Call") -> str:
        """The node that is the (features,) of a node."""
        ...

    def unique(self, name: str) -> str:
        """The name, or one like it that no node has."""
        ...

    def node_shape(self, name: str) -> tuple[int, ...]:
        """Shape of a node's result."""
        ...


class Operand(NamedTuple):
    """The part of an activation that comes from one node."""

    place: Place
    features: NDArray[np.int64]
    """positions in one image of the flattened activation"""
    elements: NDArray[np.int64]
    """positions in one image of the flattened node"""


class Made(NamedTuple):
    """What a reader makes of an operator."""

    nodes: tuple[Node, ...]
    layout: Callable[[torch.Tensor], torch.Tensor] | None = None
    """from the last node's result (N, ...) to the operator's, by moving data alone"""


Reader = Callable[["Call"], "Made | tuple[Node, ...] | Activation"]


@dataclass(frozen=True)
class Call:
    """One operator of the exported program.

    Parameters
    ----------
    layer : name for the result, the module's path where a module stands for the operator
    op : name of the operator, e.g. ``aten.conv2d.default``
    arguments : every argument by its name in the operator's schema; what depends on the image is an
        :class:`Activation`, a weight a tensor
    shape : of the result, or the first of several, images included; () of what is no tensor
    workspace : of the reading
    """

    layer: str
    op: str
    arguments: Mapping[str, Any]
    shape: tuple[int, ...]
    workspace: Workspace

    def refuse(self, problem: str, advice: str) -> UnsupportedLayer:
        message = f"layer {self.layer!r} ({self.op}): {problem}; {advice}"
        return UnsupportedLayer(message, self.layer, self.op, problem, advice)

    def activation(self, name: str) -> Activation:
        """The activation that argument `name` is."""
        value = self.arguments[name]
        if not isinstance(value, Activation):
            raise self.refuse(f"{name} is a constant", "only activations are supported there")
        return value

    def source(self, name: str) -> str:
        """The node, (C, H, W) or (features,), that argument `name` is."""
        return self.workspace.operand(self.activation(name))

    def image(self, name: str) -> str:
        """The node (C, H, W) that argument `name` is."""
        return self.workspace.operand(self.images(name))

    def images(self, name: str) -> Activation:
        """The images (N, C, H, W) that argument `name` is; one may come without its axis."""
        value = self.activation(name)
        if len(value.shape) == 3 and self.workspace.images == 1:
            index = self.workspace.index(value)[None]
            return Activation(tuple(index.shape), None, index, value.origin)
        self.check_rank(value, 4)
        return value

    def check_rank(self, value: Activation, *ranks: int) -> None:
        """Refuse an input with other dimensions than (N, ...), as many as one of `ranks`."""
        allowed = " or ".join(("(features,)", "(C, H, W)")[rank // 2 - 1] for rank in ranks)
        if value.shape[:1] != (self.workspace.images,):
            found = f"{value.shape} of {self.workspace.images} images"
            raise self.refuse(f"its input is {found}", f"every image must be {allowed}")
        if len(value.shape) not in ranks:
            raise self.refuse(f"its input is {value.shape[1:]}", f"it must be {allowed}")

    def weight(self, name: str, default: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """The constant that argument `name` is, or `default` where it is None."""
        value = self.arguments[name]
        if value is None and default is not None:
            return default
        if isinstance(value, Coded):
            return value.weight.astype(np.float32)
        if not isinstance(value, torch.Tensor):
            raise self.refuse(f"{name} is computed by the network", "it must be a constant tensor")
        return value.to(torch.float32).numpy()

    def coded(self, name: str) -> Coded | None:
        """The codes of argument `name`, if it was made of codes."""
        value = self.arguments[name]
        return value if isinstance(value, Coded) else None

    def pair(self, name: str) -> tuple[int, int]:
        """(vertical, horizontal) of an integer list of one or two entries."""
        value = self.arguments[name]
        value = [value] if isinstance(value, int) else value
        return int(value[0]), int(value[-1])

    def require(self, name: str, allowed: object) -> None:
        """Refuse unless argument `name` is `allowed`."""
        value = self.arguments[name]
        if value != allowed:
            raise self.refuse(f"{name}={value!r} is not supported", f"use {name}={allowed!r}")
