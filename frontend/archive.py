"""From a ``torch.export`` archive, an exported program or a module to the network graph."""

import operator
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from .graph import Graph, Input, Node, Output, Shape, result_shape
from .ops import ALIASES, READERS, Call, UnsupportedLayer, hint

__all__ = ["read"]


def _load(path: Path) -> ExportedProgram:
    if not path.is_file():
        raise ValueError(f"no model file at {path}")
    try:
        return torch.export.load(path)
    except Exception as error:  # torch raises whatever its unpickler, zip reader or schema raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is no torch.export archive: {reason}") from error


def _export(module: nn.Module, example: torch.Tensor | None) -> ExportedProgram:
    if example is None:
        raise ValueError("a module needs an example input, (N, C, H, W) float32")
    training = [name for name, part in module.named_modules() if part.training]
    if training:
        raise UnsupportedLayer(
            f"layer {training[0]!r}: it is in training mode; call eval() on the network first"
        )
    return torch.export.export(module, (example,))


def read(
    model: nn.Module | ExportedProgram | Path | str, example: torch.Tensor | None = None
) -> Graph:
    """The graph of a network.

    Parameters
    ----------
    model : a ``.pt2`` archive, what ``torch.export.export`` returned (batch size fixed or dynamic),
        or a module in evaluation mode
    example : one input, (N, C, H, W) float32; needed for a module only

    Raises
    ------
    UnsupportedLayer
        naming the layer, the operator or attribute that is not supported, and what to do
    ValueError
        if the file cannot be read, or a weight is not finite
    """
    with warnings.catch_warnings():
        # torch 2.13 warns about its own use of a deprecated class when it copies a program.
        warnings.simplefilter("ignore", FutureWarning)
        if isinstance(model, nn.Module):
            model = _export(model, example)
        program = model if isinstance(model, ExportedProgram) else _load(Path(model))
        # Without decompositions this only turns in-place operators into functional ones.
        program = program.run_decompositions({})
    return _Reading(program).graph()


class _Reading:
    """One pass over the exported program."""

    def __init__(self, program: ExportedProgram) -> None:
        self.program = program
        self.nodes: list[Node] = []
        self.shapes: dict[str, Shape] = {}
        self.values: dict[fx.Node, str | np.ndarray] = {}
        """what every value of the program is: the name of a graph node, or a constant"""

    def graph(self) -> Graph:
        self._check_signature()
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                self._placeholder(node)
            elif node.op == "call_function":
                self._call(node)
            elif node.op == "output":
                (result,) = node.args[0]
                source = self.values.get(result)
                if not isinstance(source, str):
                    raise UnsupportedLayer("the network's result does not depend on its input")
                self._append(Output(self._unique("output"), (source,)))
        return Graph(tuple(self.nodes))

    def _check_signature(self) -> None:
        signature = self.program.graph_signature
        if signature.buffers_to_mutate:
            buffer = next(iter(signature.buffers_to_mutate.values()))
            raise UnsupportedLayer(
                f"layer {buffer.rpartition('.')[0]!r}: it updates its {buffer.rpartition('.')[2]}; "
                "export the network in evaluation mode: model.eval()"
            )
        for kind, names in (("input", signature.user_inputs), ("output", signature.user_outputs)):
            if len(names) != 1:
                raise UnsupportedLayer(f"the network must have one {kind}, not {len(names)}")

    def _placeholder(self, node: fx.Node) -> None:
        spec = next(s for s in self.program.graph_signature.input_specs if s.arg.name == node.name)
        if spec.kind is InputKind.USER_INPUT:
            value = node.meta["val"]
            if not isinstance(value, torch.Tensor) or value.dim() != 4:
                raise UnsupportedLayer("the network's input must be one tensor (N, C, H, W)")
            if value.dtype is not torch.float32:
                raise UnsupportedLayer(f"the network's input must be float32, not {value.dtype}")
            shape = tuple(value.shape[1:])
            if not all(isinstance(size, int) for size in shape):
                raise UnsupportedLayer(
                    f"the network's input must have fixed channels, height and width, not {shape}; "
                    "only the batch may be dynamic"
                )
            self.values[node] = self._append(Input(self._unique("input"), (), shape))
        else:
            target = str(spec.target)
            tensors = {**self.program.constants, **self.program.state_dict}
            self.values[node] = tensors[target].detach().to("cpu", torch.float32).numpy()

    def _call(self, node: fx.Node) -> None:
        target = node.target
        if target in ALIASES or (target is operator.getitem and node.args[1] == 0):
            self.values[node] = self.values[node.all_input_nodes[0]]
        elif target is not torch.ops.aten.sym_size.int:
            value = node.meta["val"]
            result = tuple(value.shape[1:]) if isinstance(value, torch.Tensor) else ()
            call = Call(self._layer(node), str(target), self._arguments(node), self.shapes, result)
            if target not in READERS:
                raise call.refuse("not supported", hint(call.op))
            for part in READERS[target](call):
                self.values[node] = self._append(part)

    def _append(self, node: Node) -> str:
        """Add a graph node, whose operands are known; returns its name."""
        self.nodes.append(node)
        self.shapes[node.name] = result_shape(node, self.shapes)
        return node.name

    def _arguments(self, node: fx.Node) -> dict[str, Any]:
        schema = getattr(node.target, "_schema", None)
        if schema is None:
            raise UnsupportedLayer(f"layer {self._layer(node)!r}: {node.target} is not supported")
        arguments: dict[str, Any] = {}
        for index, argument in enumerate(schema.arguments):
            if index < len(node.args):
                value = node.args[index]
            else:
                value = node.kwargs.get(argument.name, argument.default_value)
            if isinstance(value, fx.Node):
                value = self.values.get(value, value)
            arguments[argument.name] = value
        return arguments

    def _layer(self, node: fx.Node) -> str:
        """A unique name: the path of the module, and the operator unless the module is a leaf."""
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        path, kind = stack[-1] if stack else ("", "")
        kind = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
        if path and kind.startswith("torch.nn.modules."):
            return self._unique(path)
        schema = getattr(node.target, "_schema", None)
        op = schema.name.rpartition("::")[2] if schema else node.name
        return self._unique(f"{path}.{op}" if path else op)

    def _unique(self, name: str) -> str:
        number, unique = 1, name
        while unique in self.shapes:
            unique, number = f"{name}_{number}", number + 1
        return unique
