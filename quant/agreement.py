"""Whether the layers that were read compute what the network computes."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves

from ..frontend.call import UnsupportedLayer
from ..frontend.graph import Graph, Input, Requantize
from .calibrate import float_tensors
from .lower import lower

__all__ = ["TOLERANCE", "check_agreement"]

TOLERANCE = 1e-4
"""of the largest result: float32 sums in another order stay far below, another network above"""


def _batch(program: ExportedProgram) -> int:
    """Images of the example that a program was exported with."""
    (name,) = program.graph_signature.user_inputs
    (node,) = (node for node in program.graph.nodes if node.name == name)
    size = node.meta["val"].shape[0]
    return size if isinstance(size, int) else int(size.node.hint)


@torch.no_grad()
def check_agreement(program: ExportedProgram, graph: Graph, images: NDArray[np.float32]) -> None:
    """Compare what `program` and the layers of `graph`, which was read from it, make of an image.

    Both compute in float32. Networks trained with requantized activations are left out: theirs are
    not rounded in float layers.

    Parameters
    ----------
    images : (N, C, H, W); the first is compared, or as many as the program takes at a time

    Raises :class:`~..frontend.call.UnsupportedLayer` if the results differ.
    """
    if any(isinstance(node, Requantize) for node in graph.nodes):
        return
    layers = lower(graph)
    shape = next(node.shape for node in graph.nodes if isinstance(node, Input))
    batch = _batch(program)
    chosen = images[np.arange(batch) % len(images)].astype(np.float32)
    if chosen.shape[1:] != tuple(shape) or not np.isfinite(chosen).all():
        return  # refused where they are used
    (result,) = tree_leaves(program.module()(torch.from_numpy(chosen.copy())))
    expected = result.reshape(batch, -1).numpy()
    found = np.concatenate(
        [tensors[layers[-1].name].flatten(1).numpy() for tensors in float_tensors(layers, chosen)]
    )
    largest = float(max(np.abs(expected).max(), np.abs(found).max()))
    worst = float(np.abs(expected - found).max())
    if not worst <= TOLERANCE * largest:
        raise UnsupportedLayer(
            f"the network is misread: its layers' results are off by {worst:.3g} where the largest "
            f"is {largest:.3g}; please report it with the network"
        )
