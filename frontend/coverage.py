"""What of a network the accelerator computes: every layer, and every one that it does not."""

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.utils.flop_counter import FlopCounterMode

from .archive import load
from .call import Activation, Call, UnsupportedLayer
from .graph import Graph, Input, Node, Output, Shape, Unknown
from .moves import ALIASES, MOVES
from .ops import READERS
from .reading import Reading, read_program

__all__ = ["Coverage", "LayerCoverage", "Problem", "survey"]


@dataclass(frozen=True)
class Problem:
    """A layer that is not supported: its name, its operator, what is wrong and what to do."""

    name: str
    op: str
    problem: str
    remedy: str

    @classmethod
    def of(cls, error: ValueError) -> "Problem":
        """What an error says, by its fields or by its text ``layer 'name': ...``."""
        if isinstance(error, UnsupportedLayer) and error.layer:
            return cls(error.layer, error.op, error.problem, error.remedy)
        text = str(error)
        name = text.split("'")[1] if text.startswith("layer '") else "network"
        problem, _, remedy = text.partition("; ")
        return cls(name, "", problem, remedy)


@dataclass(frozen=True)
class LayerCoverage:
    """One node of the graph.

    Parameters
    ----------
    name, op : of the node; the operator of what is not supported
    shape : of its result for one image
    macs : multiply-accumulates for one image: those of convolutions and linear layers
    on_array : whether the accelerator computes it
    """

    name: str
    op: str
    shape: Shape
    macs: int
    on_array: bool


@dataclass(frozen=True)
class Coverage:
    """A network's layers and problems; `graph` is None if there are any problems."""

    layers: tuple[LayerCoverage, ...]
    unsupported: tuple[Problem, ...]
    graph: Graph | None

    @property
    def macs(self) -> int:
        return sum(layer.macs for layer in self.layers)

    @property
    def on_array(self) -> float:
        """The part, 0 to 1, of the multiply-accumulates (of the layers, if there are none)."""
        weights = [layer.macs if self.macs else 1 for layer in self.layers]
        here = sum(w for w, layer in zip(weights, self.layers, strict=True) if layer.on_array)
        return here / sum(weights) if weights else 0.0


class _Survey(Reading):
    """A reading that goes on after what it cannot read."""

    def __init__(self, program: ExportedProgram) -> None:
        super().__init__(program)
        self.problems: list[Problem] = []
        self.unknown: set[str] = set()

    def refused(self, node: fx.Node, call: Call, error: ValueError) -> Any:
        operands = self._operands(call)
        known = node.target in READERS or node.target in MOVES or node.target in ALIASES
        # What fails only because of what it reads is no problem of its own.
        if not (known and operands & self.unknown):
            self.problems.append(Problem.of(error))
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor):
            return self._unknown(node, call, value, operands)
        if isinstance(value, list | tuple):
            return [
                self._unknown(node, call, part, operands)
                if isinstance(part, torch.Tensor)
                else part
                for part in value
            ]
        return None

    def _operands(self, call: Call) -> set[str]:
        found = set()
        for value in call.arguments.values():
            for part in value if isinstance(value, list | tuple) else [value]:
                if isinstance(part, Activation):
                    index = self.index(part).flatten()
                    owners = {int(n) for n in self.memory.owners(index.unique().numpy()) if n >= 0}
                    found |= {self.memory.places[n].name for n in owners}
        return found

    def _unknown(
        self, node: fx.Node, call: Call, value: torch.Tensor, operands: set[str]
    ) -> Activation:
        shape = tuple(size if isinstance(size, int) else -1 for size in value.shape[1:])
        if not value.dim() or -1 in shape:
            shape = (1,)
        macs = _macs(node) if node.target not in MOVES else 0
        name = self.append(
            Unknown(self.unique(call.layer), tuple(sorted(operands)), call.op, shape, macs)
        )
        self.unknown.add(name)
        return Activation((self.images, *shape), name, None, call)


def _macs(node: fx.Node) -> int:
    """Multiply-accumulates for one image of any operator, as torch counts them, or 0."""

    def meta(value: Any) -> Any:
        if not isinstance(value, fx.Node):
            return value
        value = value.meta["val"]
        if isinstance(value, torch.SymInt):
            return 1
        if not isinstance(value, torch.Tensor):
            return value
        sizes = [size if isinstance(size, int) else 1 for size in value.shape]
        return torch.empty(sizes, dtype=value.dtype, device="meta")

    value = node.meta.get("val")
    images = value.shape[0] if isinstance(value, torch.Tensor) and value.dim() else 1
    try:
        arguments, options = fx.map_arg((node.args, node.kwargs), meta)
        with FlopCounterMode(display=False) as counter:
            node.target(*arguments, **options)  # pyright: ignore[reportCallIssue]
    except Exception:  # whatever an operator that nobody expected raises on meta tensors
        return 0
    return counter.get_total_flops() // 2 // (images if isinstance(images, int) else 1)


def _node_macs(node: Node, shape: Shape) -> int:
    return node.macs if isinstance(node, Unknown) else prod(shape[1:]) * node.macs_per_pixel


def survey(
    model: nn.Module | ExportedProgram | Path | str, example: torch.Tensor | None = None
) -> Coverage:
    """All layers of a network, and all that is not supported; see :func:`.archive.read`.

    Raises ``ValueError`` if the file cannot be read or a weight is not finite.
    """
    program = load(model, example)
    reading = _Survey(program)
    graph = None
    try:
        reading.run()
        graph = None if reading.problems else read_program(program)
    except ValueError as error:
        reading.problems.append(Problem.of(error))
    layers = tuple(
        LayerCoverage(
            node.name,
            node.op if isinstance(node, Unknown) else _operator(node),
            reading.shapes[node.name],
            _node_macs(node, reading.shapes[node.name]),
            not isinstance(node, Unknown),
        )
        for node in reading.nodes
        if not isinstance(node, Input | Output)
    )
    return Coverage(layers, tuple(reading.problems), graph)


def _operator(node: Node) -> str:
    return type(node).__name__.lower()
