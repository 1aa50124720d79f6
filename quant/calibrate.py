"""What real images tell: the sign of every tensor and the grid of the network input."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from ..golden.bfp import code_limits
from ..golden.network import INPUT
from .float_layer import FloatLayer, FloatTerm

__all__ = [
    "BATCH",
    "check_images",
    "convolved",
    "float_tensors",
    "input_exponent",
    "layer_result",
    "signed_tensors",
]

BATCH = 50
"""images at a time of :func:`float_tensors`"""


def check_images(images: NDArray[np.float32], shape: Sequence[int]) -> NDArray[np.float32]:
    """`images` as float32. Raises ``ValueError`` unless they are finite, (N >= 1, *shape)."""
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[1:] != tuple(shape) or not len(images):
        raise ValueError(f"images must be (N, {', '.join(map(str, shape))}), not {images.shape}")
    if not np.isfinite(images).all():
        raise ValueError("images hold NaN or infinities")
    return images.astype(np.float32, copy=False)


def convolved(x: torch.Tensor, term: FloatTerm) -> torch.Tensor:
    """(N, Co, Ho, Wo): what a term of a sum adds for its source `x`, (N, C, H, W)."""
    top, bottom, left, right = term.padding
    padded = functional.pad(x, (left, right, top, bottom))
    weight = torch.from_numpy(term.weight).to(x.device)
    return functional.conv2d(padded, weight, None, term.stride, 0, term.dilation, term.groups)


def _maximum(x: torch.Tensor, term: FloatTerm) -> torch.Tensor:
    top, bottom, left, right = term.padding
    padded = functional.pad(x, (left, right, top, bottom), value=-torch.inf)
    return functional.max_pool2d(padded, term.weight.shape[2:], term.stride, 0, term.dilation)


def layer_result(layer: FloatLayer, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """What a layer makes of tensors (N, C, H, W), before it is clamped."""
    if layer.reduce == "max":
        (term,) = layer.terms
        return _maximum(tensors[term.source], term)
    sums = torch.stack([convolved(tensors[term.source], term) for term in layer.terms]).sum(0)
    return sums.add_(torch.from_numpy(layer.bias).to(sums.device)[:, None, None])


@torch.inference_mode()
def float_tensors(
    layers: Sequence[FloatLayer], images: NDArray[np.float32]
) -> Iterator[dict[str, torch.Tensor]]:
    """Every tensor (n, C, H, W) of the float network, for one batch of `images` after another."""
    for start in range(0, len(images), BATCH):
        tensors = {INPUT: torch.from_numpy(images[start : start + BATCH])}
        for layer in layers:
            tensors[layer.name] = layer_result(layer, tensors).clamp(*layer.limits)
        yield tensors


def signed_tensors(layers: Sequence[FloatLayer], images: NDArray[np.float32]) -> frozenset[str]:
    """The tensors with a sign: no ReLU makes them, and they were trained with one or `images` give
    them negative values."""
    relus = {layer.name for layer in layers if layer.relu}
    negative = {layer.name for layer in layers if layer.signed}
    for tensors in float_tensors(layers, images):
        negative |= {name for name, values in tensors.items() if values.min() < 0}
    return frozenset(negative - relus)


def input_exponent(images: NDArray[np.float32], bits: int) -> int:
    """The finest power of two g on whose grid no pixel saturates.

    ``rint(x / 2**g)`` of every pixel fits a signed integer of `bits` bits. The next finer
    grid would clip images like these; not clipping any costs at most one bit of resolution.
    """
    low, high = code_limits(bits, signed=True)
    ends = np.array([images.min(), images.max()], np.float64)
    # The bound keeps the exponent fields of all planes within float32's, even for black images.
    exponent = int(np.floor(np.log2(max(np.abs(ends).max(), 2.0**-64)))) - bits
    while True:
        codes = np.rint(np.ldexp(ends, -exponent))
        if low <= codes[0] and codes[1] <= high:
            return exponent
        exponent += 1
