"""Fixed-point accumulators for a network: each layer's grid, chosen on real images."""

import math
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from ..golden.fixed import FixedFormat, Grid
from ..golden.floats import SCALE_FORMATS
from ..golden.network import QuantizedNetwork
from .calibrate import BATCH, check_images
from .hardware import HardwareNetwork

__all__ = ["check_scale", "choose_grid", "fix_accumulators"]


def check_scale(name: str) -> None:
    """Raise ``ValueError`` if the machine cannot keep scales of a format in units of a grid."""
    allowed = [form.name for form in SCALE_FORMATS.values() if form.exponent_bits == 8]
    if name not in allowed:
        raise ValueError(
            f"scale must be {' or '.join(allowed)} with fixed-point accumulators, not {name!r}, "
            "whose exponents are too few for their grids"
        )


def choose_grid(peak: float, form: FixedFormat, margin_bits: int) -> Grid:
    """The finest grid whose range is larger than ``2**margin_bits`` times the magnitude `peak`; the
    coarsest that there is, if none is so large."""
    exponent = math.frexp(peak)[1] + margin_bits - (form.bits - 1)
    return Grid(form, min(max(exponent, form.exponents[0]), form.exponents[-1]))


def _peaks(network: QuantizedNetwork, images: NDArray[np.float32]) -> dict[str, float]:
    """Of every layer, on images; see :meth:`.hardware.HardwareLayer.result`."""
    hardware = HardwareNetwork(network)
    found = {layer.name: 0.0 for layer in network.layers}
    for first in range(0, len(images), BATCH):
        results = hardware.results(torch.from_numpy(images[first : first + BATCH]), watch=True)
        found = {name: max(peak, results[name].peak) for name, peak in found.items()}
    return found


def fix_accumulators(
    network: QuantizedNetwork,
    images: NDArray[np.float32],
    form: FixedFormat,
    margin_bits: int = 3,
) -> QuantizedNetwork:
    """The network with fixed-point accumulators; biases and limits are rounded to their grids.

    Parameters
    ----------
    network : with accumulators of any format
    images : (N, C, H, W) float32, images like those that the network will see. It runs on them in
        hardware mode with float32 accumulators, and each layer's largest partial sum decides
    form : of the accumulators
    margin_bits : room of each layer's range above its largest partial sum

    Raises ``ValueError`` if the images do not fit or a layer's scales have too few exponents.
    """
    images = check_images(images, network.input_shape)
    for layer in network.layers:
        for term in layer.terms:
            try:
                check_scale(term.kernel.scale_format.name)
            except ValueError as error:
                raise ValueError(f"layer {layer.name!r}: {error}") from None
    plain = replace(network, layers=tuple(replace(each, grid=None) for each in network.layers))
    peaks = _peaks(plain, images)
    layers = []
    for layer in plain.layers:
        grid, limits = choose_grid(peaks[layer.name], form, margin_bits), layer.limits
        if limits is not None:
            low, high = grid.constants(limits).tolist()
            limits = low, high
        layers.append(replace(layer, bias=grid.constants(layer.bias), limits=limits, grid=grid))
    return replace(network, layers=tuple(layers))
