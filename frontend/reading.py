"""One pass over an exported program."""

import operator
from collections.abc import Sequence
from itertools import zip_longest
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from ..golden.vqk import block_map
from .arrange import ZERO, Memory, Place, arrange
from .block_float import BLOCK_FLOAT
from .call import Activation, Call, Made, Operand, UnsupportedLayer
from .coded import EXPAND, steps
from .graph import Coded, Flatten, Graph, Input, Node, Output, Shape, result_shape, same
from .moves import ALIASES, INDICES, MOVES, zeros
from .ops import READERS, hint

__all__ = ["Reading", "read_program"]

IMAGES = 2
"""the fewest images of a program whose batch is dynamic, if it may be so few"""
MORE = (0, 1, 9)
"""so many more, too: what such a program computes must not depend on the number of images"""
LEAVES = "torch.nn.modules."
"""package whose modules stand for one layer"""
MARKS = (BLOCK_FLOAT, EXPAND)
"""operators whose use in a module says that it stands for one layer"""


class Reading:
    """Reads a program node by node; see :class:`.call.Workspace` for what readers use."""

    def __init__(self, program: ExportedProgram, more: int = 0) -> None:
        """`more` images than the fewest, where their number is dynamic."""
        self.program = program
        self.more = more
        self.nodes: list[Node] = []
        self.shapes: dict[str, Shape] = {}
        self.values: dict[fx.Node, Any] = {}
        """what every value is: an activation, a constant tensor, a number, or several of these"""
        self.images = IMAGES
        self.memory = Memory(IMAGES)
        self._sizes: dict[Any, int] = {}
        """what the symbols of a dynamic batch stand for"""
        self._layer_read = ""
        """name that the layer which is being read will have"""
        self._leaves = {_module(node)[0] for node in program.graph.nodes if node.target in MARKS}
        """paths of the modules that say by an operator that they stand for one layer"""
        self._known: dict[Activation, str] = {}
        self._moves: dict[Activation, tuple[object, Any, Any]] = {}
        """how a moved activation was made: what was executed, and its arguments"""

    @property
    def dynamic(self) -> bool:
        """Whether the number of images is; known when the input was read."""
        return bool(self._sizes)

    def run(self) -> None:
        """Read every node."""
        self._check_signature()
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                self._placeholder(node)
            elif node.op == "get_attr":
                value = getattr(self.program.graph_module, str(node.target), None)
                self.values[node] = value
            elif node.op == "call_function":
                self._call(node)
            elif node.op == "output":
                self._output(node)

    # What readers ask for

    def node_shape(self, name: str) -> Shape:
        return self.shapes[name]

    def index(self, value: Activation) -> torch.Tensor:
        if value.index is not None:
            return value.index
        assert value.node is not None
        return self.memory.addresses(value.node, value.shape)

    def operand(self, value: Activation) -> str:
        if value.node is not None:
            return value.node
        if value not in self._known:
            self._known[value] = self._gather(value)
        return self._known[value]

    def one_image(self, value: Activation) -> NDArray[np.int64] | None:
        return self.memory.one_image(self.index(value))

    def arranged(self, index: NDArray[np.int64], origin: Call) -> str | None:
        node = arrange(self.unique(origin.layer), index, self.memory)
        return node if node is None or isinstance(node, str) else self.append(node)

    def operands(self, value: Activation) -> list[Operand]:
        index = self._one_image(value).ravel()
        owners = np.where(index == ZERO, ZERO, self.memory.owners(index))
        parts = []
        for owner in np.unique(owners[owners != ZERO]):
            place: Place = self.memory.places[owner]
            (features,) = np.nonzero(owners == owner)
            parts.append(Operand(place, features, index[features] - place.start))
        return parts

    def flattened(self, name: str, origin: Call) -> str:
        if len(self.shapes[name]) == 1:
            return name
        for node in self.nodes:
            if isinstance(node, Flatten) and node.inputs == (name,):
                return node.name
        return self.append(Flatten(self._flat_name(origin), (name,)))

    def _flat_name(self, origin: Call) -> str:
        taken = self.unique(origin.layer) != origin.layer
        return self.unique(f"{origin.layer}.flatten" if taken else origin.layer)

    def _one_image(self, value: Activation) -> NDArray[np.int64]:
        index = self.one_image(value)
        if index is None:
            raise self._no_place(value)
        return index

    def _no_place(self, value: Activation) -> UnsupportedLayer:
        if "view" in value.origin.op or "shape" in value.origin.op:
            return value.origin.refuse("this reshape is not supported", "use torch.flatten(x, 1)")
        return value.origin.refuse(
            "moving data like this is not supported",
            "use concatenations, slices, zero pads and shuffles of channels, strided slices of "
            "space, and torch.flatten(x, 1)",
        )

    def _gather(self, value: Activation) -> str:
        """The node that a moved activation is: (C, H, W), or (features,)."""
        index = self._one_image(value)
        if index.ndim == 3:
            node = self.arranged(index, value.origin)
            if node is None:
                return self._step_by_step(value)
            if len(self.shapes[node]) != 3:
                raise self._no_place(value)
            return node
        if index.ndim != 1:
            raise self._no_place(value)
        parts = self.operands(value)
        if len(parts) == 1:
            place = parts[0].place
            if np.array_equal(index, place.start + np.arange(place.size)):
                return self.flattened(place.name, value.origin)
        if any(part.place.planes[1:] != (1, 1) for part in parts):
            raise self._no_place(value)
        node = self.arranged(index[:, None, None], value.origin)
        if node is None:
            raise self._no_place(value)
        return self.flattened(node, value.origin)

    def _step_by_step(self, value: Activation) -> str:
        """The node of a move that only makes sense after the moves before it, as padding a crop."""
        target, arguments, options = self._moves.get(value, (None, (), {}))
        moved = [part for part in _activations((arguments, options)) if part.node is None]
        if not moved or any(len(part.shape) != 4 or part.zero for part in moved):
            raise self._no_place(value)

        def settled(part: Any) -> Any:
            if isinstance(part, Activation) and part.node is None:
                return Activation(part.shape, self.operand(part), None, part.origin)
            if isinstance(part, list | tuple):
                return type(part)(settled(each) for each in part)
            return part

        again = self._move(value.origin, target, settled(arguments), settled(options))
        for part in again if isinstance(again, list) else [again]:
            self._moves.pop(part, None)
        if isinstance(again, list):
            raise self._no_place(value)
        return self.operand(again)

    # Reading

    def append(self, node: Node) -> str:
        """Add a graph node, whose operands are known; returns its name."""
        shape = result_shape(node, self.shapes)
        self.nodes.append(node)
        self.shapes[node.name] = shape
        self.memory.allocate(node.name, shape)
        return node.name

    def refused(self, node: fx.Node, call: Call, error: ValueError) -> Any:
        """What to do about an operator that cannot be read; by default, nothing can be done."""
        raise error

    def _check_signature(self) -> None:
        signature = self.program.graph_signature
        for spec in signature.output_specs:
            if spec.kind not in (OutputKind.USER_OUTPUT, OutputKind.USER_INPUT_MUTATION):
                layer, _, tensor = str(spec.target).rpartition(".")
                raise UnsupportedLayer(
                    f"layer {layer!r}: it updates its {tensor}; "
                    "export the network in evaluation mode: model.eval()"
                )
        for kind, names in (("input", signature.user_inputs), ("output", signature.user_outputs)):
            if len(names) != 1:
                raise UnsupportedLayer(f"the network must have one {kind}, not {len(names)}")

    def _placeholder(self, node: fx.Node) -> None:
        spec = next(s for s in self.program.graph_signature.input_specs if s.arg.name == node.name)
        if spec.kind is not InputKind.USER_INPUT:
            target = str(spec.target)
            tensors = {**self.program.constants, **self.program.state_dict}
            self.values[node] = tensors[target].detach().to("cpu")
            return
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
        batch: int | torch.SymInt = value.shape[0]
        if isinstance(batch, torch.SymInt):
            for symbol in batch.node.expr.free_symbols:
                ends = self.program.range_constraints[symbol]
                least = max(ends.lower, IMAGES)
                self._sizes[symbol] = int(min(ends.upper, least + self.more))
        self.images = self._size(batch)
        self.memory = Memory(self.images)
        call = Call("input", "input", {}, (self.images, *shape), self)
        name = self.append(Input(self.unique("input"), (), shape))
        self.values[node] = Activation((self.images, *shape), name, None, call)

    def _output(self, node: fx.Node) -> None:
        results: Any = node.args[0]
        # An input that was written to is a result too, but none that anybody asked for.
        (result,) = (
            result
            for result, spec in zip(results, self.program.graph_signature.output_specs, strict=True)
            if spec.kind is OutputKind.USER_OUTPUT
        )
        value = self.values.get(result) if isinstance(result, fx.Node) else None
        if not isinstance(value, Activation) or value.zero:
            raise UnsupportedLayer("the network's result does not depend on its input")
        self.append(Output(self.unique("output"), (self.operand(value),)))

    def _call(self, node: fx.Node) -> None:
        arguments, options = fx.map_arg((node.args, node.kwargs), self.values.__getitem__)
        schema = getattr(node.target, "_schema", None)
        if schema is None:
            self._compute(node, arguments, options)
            return
        named = _named(schema, arguments, options)
        call = Call(self._layer(node), str(node.target), named, self._shape(node), self)
        self._layer_read = call.layer
        try:
            value = self._value(node, call, arguments, options)
            self._check_result(node, call, value)
        except ValueError as error:
            self._layer_read = ""
            value = self.refused(node, call, error)
        finally:
            self._layer_read = ""
        self.values[node] = value

    def _check_result(self, node: fx.Node, call: Call, value: Any) -> None:
        """Refuse what is read as another kind of tensor than the program has there."""
        expected = node.meta.get("val")
        values = value if isinstance(value, list | tuple) else [value]
        tensors = expected if isinstance(expected, list | tuple) else [expected]
        for part, tensor in zip(values, tensors, strict=False):
            if not isinstance(part, Activation) or not isinstance(tensor, torch.Tensor):
                continue
            if tensor.dtype is not torch.float32:
                raise call.refuse(f"its result is {tensor.dtype}", "only float32 is supported")
            shape = self._sizes_of(tensor)
            if part.shape != shape:
                raise call.refuse(
                    f"its result is read as {part.shape} and is {shape}",
                    "use another spelling",
                )

    def _compute(self, node: fx.Node, arguments: Any, options: Any) -> None:
        """Sizes and their arithmetic, and the parts of results."""
        if not callable(node.target) or (
            _activations(arguments) and (node.target is not operator.getitem)
        ):
            raise UnsupportedLayer(f"layer {self._layer(node)!r}: {node.target} is not supported")
        if node.target is operator.getitem and isinstance(arguments[0], Activation):
            if arguments[1] != 0:
                raise UnsupportedLayer(
                    f"layer {self._layer(node)!r}: only the first result of "
                    f"{getattr(node.args[0], 'target', node.args[0])} is supported"
                )
            self.values[node] = arguments[0]
            return
        self.values[node] = node.target(*arguments, **options)

    def _value(self, node: fx.Node, call: Call, arguments: Any, options: Any) -> Any:
        target = node.target
        active = _activations((arguments, options))
        if node.meta.get("val") is None and not node.users:
            return None  # assertions
        if target is torch.ops.aten.sym_size.int:
            return arguments[0].shape[arguments[1]]
        if not active:
            if target is EXPAND:
                return _coded(call)
            if any(isinstance(value, Coded) for value in call.arguments.values()):
                return _moved_codes(call, target, arguments, options)
            if torch.Tag.nondeterministic_seeded in getattr(target, "tags", ()):
                raise call.refuse("it is random", "export the network in evaluation mode")
            return target(*arguments, **options)  # pyright: ignore[reportCallIssue]
        if target in ALIASES:
            return self._alias(call)
        if target in MOVES:
            return self._move(call, target, arguments, options)
        if target not in READERS:
            raise call.refuse("not supported", hint(call.op))
        result = READERS[target](call)
        if isinstance(result, Activation):
            return result
        made = result if isinstance(result, Made) else Made(result)
        return self._made(call, made)

    def _made(self, call: Call, made: Made) -> Activation:
        name = ""
        for part in made.nodes:
            name = self.append(part)
        shape = (self.images, *self.shapes[name])
        if made.layout is None and call.shape == shape:
            return Activation(shape, name, None, call)
        index = self.memory.addresses(name, shape)
        if made.layout is not None:
            return self._moved(made.layout(index), call)
        if index.numel() != prod(call.shape):
            raise call.refuse(
                f"its result is {call.shape[1:]}, made of {shape[1:]}",
                "broadcasting is not supported",
            )
        return self._moved(index.reshape(call.shape), call)

    def _alias(self, call: Call) -> Any:
        if call.arguments.get("train", False) is not False:
            raise call.refuse("it drops", "export the network in evaluation mode: model.eval()")
        if call.arguments.get("dtype") not in (None, torch.float32):
            raise call.refuse(f"dtype={call.arguments['dtype']} is not supported", "use float32")
        return next(iter(call.arguments.values()))

    def _move(self, call: Call, target: object, arguments: Any, options: Any) -> Any:
        def on_addresses(value: Any) -> Any:
            if isinstance(value, Activation):
                return self.index(value)
            if isinstance(value, Coded):
                raise call.refuse("it moves a weight of codes", "only layers may read it")
            if isinstance(value, torch.Tensor):
                if value.any():
                    raise call.refuse("it moves a constant", "only zeros are supported there")
                return zeros(*value.shape)
            if isinstance(value, list | tuple):
                return type(value)(on_addresses(part) for part in value)
            return value

        # An index says where; every other tensor is what is moved.
        names = tuple(call.arguments)
        moving = [
            value if name in INDICES else on_addresses(value)
            for name, value in zip(names, arguments, strict=False)
        ]
        named = {
            name: value if name in INDICES else on_addresses(value)
            for name, value in options.items()
        }
        try:
            moved = MOVES[target](*moving, **named)
        except (ValueError, RuntimeError, IndexError) as error:
            if isinstance(error, UnsupportedLayer):
                raise
            problem, _, advice = " ".join(str(error).split()).partition("; ")
            raise call.refuse(problem, advice or "use another spelling") from None
        parts = [moved] if isinstance(moved, torch.Tensor) else moved
        results = [self._moved(part, call) for part in parts]
        for result in results:
            self._moves[result] = target, arguments, options
        return results[0] if isinstance(moved, torch.Tensor) else results

    def _moved(self, index: torch.Tensor, call: Call) -> Activation:
        first = index.flatten()[:1].tolist()
        if index.dim() in (2, 4) and first and first[0] != ZERO:
            place = self.memory.owner(first[0])
            shape = (self.images, *place.shape)
            if tuple(index.shape) == shape and torch.equal(
                index, self.memory.addresses(place.name, shape)
            ):
                return Activation(shape, place.name, None, call)
        return Activation(tuple(index.shape), None, index, call)

    def _shape(self, node: fx.Node) -> tuple[int, ...]:
        value = node.meta.get("val")
        if isinstance(value, list | tuple) and value:
            value = value[0]
        return self._sizes_of(value) if isinstance(value, torch.Tensor) else ()

    def _sizes_of(self, value: torch.Tensor) -> tuple[int, ...]:
        return tuple(map(self._size, value.shape))

    def _size(self, size: int | torch.SymInt) -> int:
        """A size for as many images as are read; -1 if something else decides it."""
        if isinstance(size, int):
            return size
        found = size.node.expr.subs(self._sizes)
        return int(found) if found.is_Integer else -1

    def _layer(self, node: fx.Node) -> str:
        """A unique name: the path of the module, and the operator unless the module is a leaf."""
        path, kind = _module(node)
        if path and (kind.startswith(LEAVES) or path in self._leaves):
            return self.unique(path)
        schema = getattr(node.target, "_schema", None)
        op = schema.name.rpartition("::")[2] if schema else node.name
        return self.unique(f"{path}.{op}" if path else op)

    def unique(self, name: str) -> str:
        number, unique = 1, name
        while unique in self.shapes or unique == self._layer_read:
            unique, number = f"{name}_{number}", number + 1
        return unique


def read_program(program: ExportedProgram) -> Graph:
    """The graph of a program in functional form. Raises ``ValueError``, naming the layer.

    A program whose batch is dynamic is read with several numbers of images.
    """
    first = Reading(program)
    first.run()
    for more in MORE[1:] if first.dynamic else ():
        again = Reading(program, more)
        again.run()
        for node, other in zip_longest(first.nodes, again.nodes):
            if not same(node, other):
                raise UnsupportedLayer(
                    f"layer {(node or other).name!r}: it depends on the number of images; compute "
                    "every image by itself, or export the network with a fixed batch"
                )
    return Graph(tuple(first.nodes))


def _module(node: fx.Node) -> tuple[str, str]:
    """Path and qualified class name of the innermost module that a node belongs to."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path, kind = stack[-1] if stack else ("", "")
    return path, kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"


def _named(schema: Any, arguments: Sequence[Any], options: dict[str, Any]) -> dict[str, Any]:
    """Every argument by its name, defaults included."""
    named = {}
    for index, argument in enumerate(schema.arguments):
        if index < len(arguments):
            named[argument.name] = arguments[index]
        else:
            named[argument.name] = options.get(argument.name, argument.default_value)
    return named


def _coded(call: Call) -> Coded:
    """A weight that the program makes of codes and scales."""
    codes, scale, bias, channel_scale, weight_bits, block, groups = call.arguments.values()
    if bias is not None and bias.any():
        raise call.refuse(
            "its weight blocks have a bias, for which the accelerator would have to add up "
            "activations",
            "train with scale_bias=False",
        )
    number = block_map(codes.shape[1], groups, block).number
    return Coded(codes.numpy(), steps(scale, channel_scale, number).numpy(), weight_bits, block)


def _moved_codes(call: Call, target: Any, arguments: Any, options: Any) -> Coded:
    """A weight of codes, flattened or transposed."""
    value, *rest = arguments
    if target not in MOVES or not isinstance(value, Coded):
        raise call.refuse(
            "it computes with a weight of codes", "only convolutions and linear layers may read it"
        )
    return value.map(lambda part: target(torch.from_numpy(part), *rest, **options).numpy())


def _activations(values: Any) -> list[Activation]:
    if isinstance(values, Activation):
        return [values]
    if isinstance(values, dict):
        values = list(values.values())
    if isinstance(values, list | tuple):
        return [found for value in values for found in _activations(value)]
    return []
