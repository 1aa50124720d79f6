"""Activations as the accelerator stores them, for training: block floating point.

:func:`requantize_` puts them where the reference implementation of DSConv has them: after every
ReLU, or after the max pool that alone reads one. A clamp from 0 is a ReLU here; other activations
are refused. The images, sums before their ReLU, results of batch norms and the network's result
stay as they are.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy

import torch
from torch import fx, nn
from torch.nn import functional

from ..frontend.block_float import BLOCK_FLOAT
from ..golden.bfp import BlockFloat

__all__ = [
    "BlockFloatActivation",
    "Requantized",
    "block_float",
    "requantize_",
    "requantized_modules",
]

RELUS = (nn.ReLU, nn.ReLU6)
NO_ACTIVATIONS = (nn.Softmax, nn.Softmax2d, nn.LogSoftmax, nn.Softmin, nn.MultiheadAttention)
"""modules that torch has among the activations"""


def block_float(x: torch.Tensor, spec: BlockFloat) -> torch.Tensor:
    """The values that `spec` stores, with the gradient 1 everywhere.

    Parameters
    ----------
    x : (N, C, H, W) or (N, C), computed in float32 and returned in its own type
    spec : block, bits, sign and rounding

    Raises ``ValueError`` if a value is not finite.
    """
    return BLOCK_FLOAT(x, spec.block, spec.bits, spec.signed, spec.rounding)


class BlockFloatActivation(nn.Module):
    """:func:`block_float` as a module."""

    def __init__(self, spec: BlockFloat) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return block_float(x, self.spec)

    def extra_repr(self) -> str:
        spec = self.spec
        sign = "signed" if spec.signed else "unsigned"
        return f"block={spec.block}, bits={spec.bits}, {sign}, {spec.rounding}"


class Requantized(nn.Sequential):
    """A module, and its result as it is stored."""

    def __init__(self, module: nn.Module, spec: BlockFloat) -> None:
        super().__init__(module, BlockFloatActivation(spec))
        self.train(module.training)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        own = type(m).__module__.startswith(f"{__package__}.")
        return own or super().is_leaf_module(m, module_qualified_name)


_CALLS = frozenset(
    {
        *(functional.relu, functional.relu_, functional.relu6),
        *(torch.relu, torch.relu_, "relu", "relu_"),
        *(functional.hardtanh, functional.hardtanh_, torch.clamp, torch.clamp_),
        *("clamp", "clamp_", "clip", "clip_"),
    }
)


def _is_relu(module: nn.Module | None) -> bool:
    from_zero = isinstance(module, nn.Hardtanh) and module.min_val == 0
    return isinstance(module, RELUS) or from_zero


def _is_other_activation(module: nn.Module | None) -> bool:
    kinds = type(module).__mro__
    listed = any(kind.__module__ == "torch.nn.modules.activation" for kind in kinds)
    return listed and not _is_relu(module) and not isinstance(module, NO_ACTIVATIONS)


@contextmanager
def _separated(model: nn.Module) -> Iterator[None]:
    """Every place of a ReLU or a max pool has a module of its own; afterwards as it was before."""
    shared: list[tuple[nn.Module, str, nn.Module]] = []
    seen: set[nn.Module] = set()
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None and (_is_relu(child) or isinstance(child, nn.MaxPool2d)):
                if child in seen:
                    shared.append((parent, name, child))
                seen.add(child)
    for parent, name, child in shared:
        parent._modules[name] = copy(child)
    try:
        yield
    finally:
        for parent, name, child in shared:
            parent._modules[name] = child


def _traced(model: nn.Module) -> fx.Graph:
    try:
        return _Tracer().trace(model)
    except Exception as error:  # whatever the network's own code raises
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"activations cannot be placed: torch.fx cannot trace the network ({reason})"
        ) from error


def requantized_modules(model: nn.Module) -> tuple[str, ...]:
    """The names of the modules whose results are stored: ReLUs, or the max pools right after them.

    A module that stands in several places has a name in each of them. The model stays as it is.

    Raises
    ------
    ValueError
        if the network cannot be traced or has no ReLU, or naming an activation that is a function
        call or no ReLU
    """
    with _separated(model):
        found = _stored(model)
    if not found:
        raise ValueError("activations cannot be placed: the network has no ReLU")
    return found


def _stored(model: nn.Module) -> tuple[str, ...]:
    graph, modules = _traced(model), dict(model.named_modules())

    def kind(node: fx.Node) -> nn.Module | None:
        return modules[str(node.target)] if node.op == "call_module" else None

    chosen: dict[str, set[str]] = {}
    readings: dict[str, set[str]] = {}
    """of each max pool, what it reads"""
    for node in graph.nodes:
        if node.op in ("call_function", "call_method") and node.target in _CALLS:
            path, _ = next(reversed(node.meta["nn_module_stack"].values()), (node.name, None))
            raise ValueError(
                f"layer {path or node.name!r}: a ReLU is a function call; make it a module, "
                "nn.ReLU(), so that an activation can follow it"
            )
        if _is_other_activation(kind(node)):
            raise ValueError(
                f"layer {str(node.target)!r}: block floating point follows ReLUs and clamps from "
                f"0, not {type(kind(node)).__name__}"
            )
        if isinstance(kind(node), nn.MaxPool2d):
            readings.setdefault(str(node.target), set()).update(
                str(source.target) for source in node.all_input_nodes
            )
        if _is_relu(kind(node)):
            readers = list(node.users)
            pooled = len(readers) == 1 and isinstance(kind(readers[0]), nn.MaxPool2d)
            place = readers[0] if pooled else node
            chosen.setdefault(str(node.target), set()).add(str(place.target))
    return tuple(_place(relu, places, readings) for relu, places in chosen.items())


def _place(relu: str, places: set[str], readings: dict[str, set[str]]) -> str:
    """The max pool that always reads the ReLU, and nothing else; or the ReLU."""
    (place,) = places if len(places) == 1 else (relu,)
    return place if readings.get(place) == {relu} else relu


def requantize_(model: nn.Module, spec: BlockFloat) -> None:
    """Put block floating point into a network, in place, after :func:`requantized_modules`.

    What stands in several places gets one for each. After an error nothing has changed.
    """
    for name in requantized_modules(model):
        parent, _, last = name.rpartition(".")
        owner = model.get_submodule(parent)
        setattr(owner, last, Requantized(owner.get_submodule(last), spec))
