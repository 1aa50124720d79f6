"""From a ``torch.export`` archive, an exported program or a module to the network graph."""

import warnings
from copy import deepcopy
from pathlib import Path

import torch
from torch import nn
from torch.export import ExportedProgram

from .call import UnsupportedLayer
from .graph import Graph
from .reading import read_program

__all__ = ["exported", "load", "read"]


def _reason(error: Exception) -> str:
    """The first line of a message, or what kind of error has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _load(path: Path) -> ExportedProgram:
    if not path.is_file():
        raise ValueError(f"no model file at {path}")
    try:
        return torch.export.load(path)
    except Exception as error:  # torch raises whatever its unpickler, zip reader or schema raise
        raise ValueError(f"{path} is no torch.export archive: {_reason(error)}") from error


def _export(module: nn.Module, example: torch.Tensor | None) -> ExportedProgram:
    if example is None:
        raise ValueError("a module needs an example input, (N, C, H, W) float32")
    training = [name for name, part in module.named_modules() if part.training]
    if training:
        raise UnsupportedLayer(
            f"layer {training[0]!r}: it is in training mode; call eval() on the network first"
        )
    try:
        return torch.export.export(module, (example,))
    except Exception as error:  # of torch, or of the module itself
        raise ValueError(f"the network cannot be exported: {_reason(error)}") from error


DROPOUTS = (
    torch.ops.aten.dropout.default,
    torch.ops.aten.feature_dropout.default,
    torch.ops.aten.alpha_dropout.default,
    torch.ops.aten.feature_alpha_dropout.default,
)
"""What drops nothing is its input itself: who writes to it in place writes to its input."""


def _without_dropouts(program: ExportedProgram) -> None:
    """Take the dropouts that drop nothing out of a program."""
    graph = program.graph_module.graph
    for node in graph.nodes:
        if node.target not in DROPOUTS:
            continue
        given = dict(zip(("input", "p", "train"), node.args, strict=False)) | node.kwargs
        if not (given["p"] and given["train"]):
            source = given["input"]
            node.replace_all_uses_with(source)
            for spec in program.graph_signature.output_specs:
                if spec.arg.name == node.name:
                    spec.arg.name = source.name
            graph.erase_node(node)
    program.graph_module.recompile()


def exported(
    model: nn.Module | ExportedProgram | Path | str, example: torch.Tensor | None = None
) -> ExportedProgram:
    """The program of a network as it was exported; see :func:`read`."""
    if isinstance(model, nn.Module):
        return _export(model, example)
    return model if isinstance(model, ExportedProgram) else _load(Path(model))


def load(
    model: nn.Module | ExportedProgram | Path | str, example: torch.Tensor | None = None
) -> ExportedProgram:
    """The program of a network in functional form; see :func:`read`."""
    with warnings.catch_warnings():
        # torch 2.13 warns about its own use of a deprecated class when it copies a program.
        warnings.simplefilter("ignore", FutureWarning)
        program = exported(model, example)
        if isinstance(model, ExportedProgram):
            program = deepcopy(program)
        _without_dropouts(program)
        # Without decompositions this only turns in-place operators into functional ones.
        try:
            return program.run_decompositions({})
        except Exception as error:  # of torch 2.13 on batches that are multiples
            reason = _reason(error)
            raise ValueError(f"torch cannot make the network functional: {reason}") from error


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
    return read_program(load(model, example))
