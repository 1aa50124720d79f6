"""What quantization costs, layer by layer, on real images."""

import math
from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..golden.layers import Layer
from ..golden.network import INPUT, QuantizedNetwork
from .accounting import account_network, total
from .calibrate import check_images, float_tensors
from .convert import Model, as_graph
from .float_layer import FloatLayer
from .hardware import HardwareNetwork
from .lower import lower

__all__ = ["LayerReport", "Report", "measure"]


@dataclass(frozen=True)
class LayerReport:
    """One stored tensor, the network input included, and the layer that makes it.

    Parameters
    ----------
    name : of the layer, or "input"
    weight_sqnr_db : signal to quantization noise of the folded weights; None without learnt weights
    output_sqnr_db : of the tensor, against the float network on the same images
    values, saturated : numbers stored, and how many of them were clipped to the code range; none
        of the network's result, which is raw
    saturated_sums : steps whose result left the range of fixed-point accumulators
    average_error : relative error of code * scale as 1/n; None without an average pool
    """

    name: str
    weight_sqnr_db: float | None
    output_sqnr_db: float
    values: int
    saturated: int
    saturated_sums: int = 0
    average_error: float | None = None


@dataclass(frozen=True)
class Report:
    """The cost of quantization.

    Parameters
    ----------
    layers : the input and every layer, in execution order
    weight_bytes : packed codes, scales and biases, those of pools and identities included
    float_bytes : weights and biases of its convolutions and linear layers in float32, batch norm
        folded
    """

    layers: tuple[LayerReport, ...]
    weight_bytes: int
    float_bytes: int

    @property
    def sqnr_db(self) -> float:
        """Of the network's result."""
        return self.layers[-1].output_sqnr_db

    @property
    def saturated_sums(self) -> int:
        """Of all layers."""
        return sum(layer.saturated_sums for layer in self.layers)


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


def _weight_sqnr(layer: Layer, reference: FloatLayer) -> float | None:
    learnt = [
        (term.weight.astype(np.float64).ravel(), stored.kernel.reconstruct().ravel())
        for term, stored in zip(reference.terms, layer.terms, strict=True)
        if not term.constant
    ]
    if not learnt:
        return None
    signal = sum(float((weight**2).sum()) for weight, _ in learnt)
    return _decibels(signal, sum(float(((w - q) ** 2).sum()) for w, q in learnt))


def _average_error(layer: Layer, reference: FloatLayer) -> float | None:
    errors = [
        float(stored.kernel.reconstruct().max()) / float(term.weight.max()) - 1
        for term, stored in zip(reference.terms, layer.terms, strict=True)
        if term.constant and layer.reduce == "add" and term.weight.max() != 1
    ]
    return max(errors, key=abs, default=None)


def measure(model: Model, network: QuantizedNetwork, images: NDArray[np.float32]) -> Report:
    """Compare a quantized network in hardware mode with the float network it was made from.

    Parameters
    ----------
    model : what :func:`.convert.quantize` was given
    network : what it returned
    images : (N, C, H, W) float32

    Raises
    ------
    ValueError
        if the images do not fit, or the network was not made from the model
    """
    images = check_images(images, network.input_shape)
    references = lower(as_graph(model, images))
    if [layer.name for layer in references] != [layer.name for layer in network.layers]:
        raise ValueError("the quantized network was not made from this model: layers differ")
    hardware = HardwareNetwork(network)
    signal, noise = defaultdict[str, float](float), defaultdict[str, float](float)
    values, saturated, sums = Counter[str](), Counter[str](), Counter[str]()
    for tensors in float_tensors(references, images):
        for name, result in hardware.results(tensors[INPUT]).items():
            reference = tensors[name].double()
            if name == INPUT and network.fold is not None:
                reference = torch.from_numpy(network.fold.compute(reference.numpy()))
            stored = result.raw if result.stored is None else result.stored.decode()
            stored = stored.transpose(0, 1).contiguous()  # a sum depends on its order
            signal[name] += reference.square().sum().item()
            noise[name] += (stored - reference).square().sum().item()
            sums[name] += result.saturated
            if result.stored is not None:
                values[name] += tensors[name].numel()
                saturated[name] += int(result.stored.clipped)
    reports = [
        LayerReport(
            INPUT, None, _decibels(signal[INPUT], noise[INPUT]), values[INPUT], saturated[INPUT]
        )
    ]
    for layer, reference in zip(network.layers, references, strict=True):
        name = layer.name
        reports.append(
            LayerReport(
                name,
                _weight_sqnr(layer, reference),
                _decibels(signal[name], noise[name]),
                values[name],
                saturated[name],
                sums[name],
                _average_error(layer, reference),
            )
        )
    account = total(account_network(network))
    return Report(tuple(reports), account.memory.bytes, account.float_bytes)
