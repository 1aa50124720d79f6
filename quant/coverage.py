"""Coverage of a network by the front end, and by the machine."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.export import ExportedProgram

from ..frontend.coverage import Coverage, Problem, survey
from .lower import lower

__all__ = ["coverage"]


def coverage(
    model: nn.Module | ExportedProgram | Path | str, example: torch.Tensor | None = None
) -> Coverage:
    """What :func:`.frontend.coverage.survey` finds, and what the machine could not compute."""
    found = survey(model, example)
    if found.graph is None:
        return found
    try:
        lower(found.graph)
    except ValueError as error:
        problem = Problem.of(error)
        layers = tuple(
            replace(layer, on_array=layer.on_array and layer.name != problem.name)
            for layer in found.layers
        )
        return Coverage(layers, (problem,), None)
    return found
