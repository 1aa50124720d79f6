"""From a ``torch.export`` archive, an exported program or a module to the network graph."""

import warnings
from pathlib import Path

import torch
from torch import nn
from torch.export import ExportedProgram

from .call import UnsupportedLayer
from .graph import Graph
from .reading import Reading

__all__ = ["load", "read"]


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


def load(
    model: nn.Module | ExportedProgram | Path | str, example: torch.Tensor | None = None
) -> ExportedProgram:
    """The program of a network in functional form; see :func:`read`."""
    with warnings.catch_warnings():
        # torch 2.13 warns about its own use of a deprecated class when it copies a program.
        warnings.simplefilter("ignore", FutureWarning)
        if isinstance(model, nn.Module):
            model = _export(model, example)
        program = model if isinstance(model, ExportedProgram) else _load(Path(model))
        # Without decompositions this only turns in-place operators into functional ones.
        return program.run_decompositions({})


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
    return Reading(load(model, example)).graph()
