"""Whether the layers that were read compute what the network computes."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves, tree_unflatten

from ..frontend.call import UnsupportedLayer
from ..frontend.graph import Graph, Input, Requantize
from .calibrate import float_tensors
from .lower import lower

__all__ = ["TOLERANCE", "check_agreement"]

TOLERANCE = 1e-4
"""of the largest result: float32 sums in another order stay far below, another network above"""
LOOKED_AT = 64
"""images, of which the one with the most contrast is compared"""


def _batch(program: ExportedProgram) -> int:
    """Images of the example that a program was exported with."""
    (name,) = program.graph_signature.user_inputs
    (node,) = (node for node in program.graph.nodes if node.name == name)
    size = node.meta["val"].shape[0]
    return size if isinstance(size, int) else int(size.node.hint)


def _computed(program: ExportedProgram, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """What a program with one input and one result makes of `images`, (N, numbers)."""
    form = program.call_spec.in_spec
    assert form is not None
    arguments, options = tree_unflatten([torch.from_numpy(images.copy())], form)
    (result,) = tree_leaves(program.module()(*arguments, **options))
    return result.reshape(len(images), -1).numpy()


@torch.no_grad()
def check_agreement(program: ExportedProgram, graph: Graph, images: NDArray[np.float32]) -> None:
    """Compare what `program` and the layers of `graph`, which was read from it, compute.

    Both compute in float32, of an image and of noise between the least and the largest pixel.
    Networks trained with requantized activations are left out: float layers do not round theirs.

    Parameters
    ----------
    images : (N, C, H, W)

    Raises :class:`~..frontend.call.UnsupportedLayer` if the results differ, ``ValueError`` if those
    of the program are not finite.
    """
    if any(isinstance(node, Requantize) for node in graph.nodes):
        return
    shape = next(node.shape for node in graph.nodes if isinstance(node, Input))
    some = np.asarray(images[:LOOKED_AT], np.float32)
    if some.shape[1:] != tuple(shape) or not np.isfinite(some).all():
        return  # refused where they are used
    layers, batch = lower(graph), _batch(program)
    image = some[some.std(axis=(1, 2, 3), dtype=np.float64).argmax()]
    noise = np.random.default_rng(0).uniform(some.min(), some.max(), shape).astype(np.float32)
    for one in (image, noise):
        given = np.repeat(one[None], batch, axis=0)
        expected = _computed(program, given)
        if not np.isfinite(expected).all():
            raise ValueError("the network's results are not finite on the images")
        parts = float_tensors(layers, given)
        found = np.concatenate([each[layers[-1].name].flatten(1).numpy() for each in parts])
        largest = float(max(np.abs(expected).max(), np.abs(found).max()))
        worst = float(np.abs(expected - found).max())
        if not worst <= TOLERANCE * largest:
            raise UnsupportedLayer(
                f"the network is misread: its layers' results are off by {worst:.3g} where the "
                f"largest is {largest:.3g}; please report it with the network"
            )
