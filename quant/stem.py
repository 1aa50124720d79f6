"""The codes of a layer that reads a folded image.

Folded, weights of many kernel positions share one scale, which costs accuracy: 13 points of top-1
for MLPerf Tiny's ResNet-8 at four bits. But real images leave much room, for their pixels are
alike: codes whose errors cancel on them cost nothing. Coordinate descent finds such codes with the
scales as they are, and the bias takes the error that the average image leaves.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..golden.bfp import BlockTensor
from ..golden.floats import FLOAT32
from ..golden.layers import Layer
from ..golden.network import INPUT
from .float_layer import FloatLayer

__all__ = ["settle"]

SWEEPS = 10


def _statistics(windows: BlockTensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean (K,) and covariance (K, K) of the folded channels."""
    pixels = windows.values().swapaxes(0, 1).reshape(windows.channels, -1)
    mean = pixels.mean(1)
    centred = pixels - mean[:, None]
    return mean, centred @ centred.T / pixels.shape[1]


def settle(layer: Layer, reference: FloatLayer, windows: BlockTensor) -> Layer:
    """The layer with the codes and the bias that suit `windows`, the folded images, best.

    `reference` is the folded layer in floating point. A grouped convolution stays as it is.
    """
    number = next(n for n, term in enumerate(layer.terms) if term.source == INPUT)
    term = layer.terms[number]
    kernel = term.kernel
    if kernel.groups > 1:
        return layer
    mean, covariance = _statistics(windows)
    weight = reference.terms[number].weight[:, :, 0, 0].astype(np.float64)
    scales = np.repeat(kernel.scales[:, :, 0, 0].astype(np.float64), kernel.block, axis=1)
    scales = scales[:, : weight.shape[1]]
    codes = kernel.codes[:, :, 0, 0].astype(np.float64)
    error = weight - codes * scales
    limit = 1 << (kernel.weight_bits - 1)
    for _ in range(SWEEPS):
        for channel, variance in enumerate(covariance.diagonal()):
            usable = scales[:, channel] != 0
            if variance <= 0 or not usable.any():
                continue
            scale = np.where(usable, scales[:, channel], 1)
            best = codes[:, channel] + error @ covariance[:, channel] / variance / scale
            code = np.where(usable, np.clip(np.rint(best), -limit, limit - 1), 0)
            error[:, channel] += (codes[:, channel] - code) * scales[:, channel]
            codes[:, channel] = code
    settled = replace(kernel, codes=codes.astype(np.int8)[:, :, None, None])
    terms = tuple(
        replace(other, kernel=settled) if other is term else other for other in layer.terms
    )
    bias = FLOAT32.round(layer.bias.astype(np.float64) + error @ mean)
    return replace(layer, terms=terms, bias=bias)
