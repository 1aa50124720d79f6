"""The layers of a quantized network as a torch module that trains, for distillation.

A :class:`Student` computes what hardware mode does, up to the order of float32 additions and the
rounding of fixed-point accumulators, with gradients straight through every rounding. Every learnt
weight has a shadow in floating point, in units of its block's scale. In each step the codes are the
shadows rounded, so that weights are on the grid all the time. Codes, scales and biases train, and
:meth:`Student.network` gives them back unchanged, biases rounded to the grid of fixed-point
accumulators.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ..golden.floats import FLOAT32
from ..golden.layers import Layer, Term
from ..golden.network import INPUT, QuantizedNetwork
from ..golden.vqk import VariableQuantizedKernel
from .activation import block_float
from .calibrate import layer_result
from .float_layer import FloatLayer
from .hardware import fixed_point

__all__ = ["Student", "Teacher"]

GAIN = 0.1
"""relative change of scales and biases where a shadow moves by one code: they need smaller steps"""


def _through(value: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
    """`rounded`, with the gradient of `value`."""
    return value + (rounded - value).detach()


class _Weight(nn.Module):
    """The weights of one learnt term."""

    number: torch.Tensor
    start: torch.Tensor

    def __init__(self, kernel: VariableQuantizedKernel) -> None:
        super().__init__()
        self.kernel = kernel
        self.shadow = nn.Parameter(torch.tensor(kernel.codes, dtype=torch.float32))
        self.change = nn.Parameter(torch.zeros(kernel.scales.shape))
        blocks = np.arange(kernel.scales.shape[1])[:, None, None]
        number = kernel.blocks.expand(np.broadcast_to(blocks, kernel.scales.shape))
        self.register_buffer("number", torch.from_numpy(number), False)
        self.register_buffer("start", torch.from_numpy(kernel.scales))

    def codes(self) -> torch.Tensor:
        """(Co, Ci / groups, Kh, Kw): whole numbers in range."""
        limit = 1 << (self.kernel.weight_bits - 1)
        shadow = self.shadow.clamp(-limit, limit - 1)
        return _through(shadow, shadow.round())

    def scales(self) -> torch.Tensor:
        """(Co, blocks, Kh, Kw): as the format holds them; they keep their sign."""
        scales = self.start * (1 + GAIN * self.change).clamp(min=0)
        stored = self.kernel.scale_format.round(scales.detach().cpu().numpy())
        return _through(scales, torch.from_numpy(stored).to(scales))

    def forward(self) -> torch.Tensor:
        return self.codes() * self.scales().gather(1, self.number)

    @torch.no_grad()
    def stored(self) -> VariableQuantizedKernel:
        codes = self.codes().round().cpu().numpy().astype(np.int8)
        return replace(self.kernel, codes=codes, scales=self.scales().cpu().numpy())


class _Layer(nn.Module):
    """One layer; the weights of terms that do not train are buffers."""

    unit: torch.Tensor
    start: torch.Tensor

    def __init__(self, layer: Layer, constant: Sequence[bool]) -> None:
        super().__init__()
        self.layer = layer
        self.weights: dict[int, _Weight] = {}
        for number, (term, fixed) in enumerate(zip(layer.terms, constant, strict=True)):
            if fixed:
                weight = torch.from_numpy(term.kernel.reconstruct().astype(np.float32))
                self.register_buffer(f"constant{number}", weight)
            else:
                self.weights[number] = _Weight(term.kernel)
                self.add_module(f"weight{number}", self.weights[number])
        start = torch.from_numpy(FLOAT32.round(layer.bias))
        size = float(start.square().mean().sqrt()) if self.weights else 0.0
        self.change = nn.Parameter(torch.zeros_like(start), bool(self.weights))
        self.register_buffer("start", start)
        self.register_buffer("unit", torch.tensor(GAIN * (size if size > 0 else 1.0)), False)

    def bias(self) -> torch.Tensor:
        return self.start + self.unit * self.change

    def weight(self, number: int) -> torch.Tensor:
        if number in self.weights:
            return self.weights[number]()
        return self.get_buffer(f"constant{number}")

    def _term(self, number: int, term: Term, x: torch.Tensor) -> torch.Tensor:
        top, bottom, left, right = term.padding
        border = (left, right, top, bottom)
        weight = self.weight(number)
        if self.layer.reduce == "max":
            # The kernel is one constant, which may be tiny but is positive.
            padded = functional.pad(x * weight.amax(), border, value=-torch.inf)
            return functional.max_pool2d(padded, term.kernel_size, term.stride, 0, term.dilation)
        padded = functional.pad(x, border)
        groups = term.kernel.groups
        return functional.conv2d(padded, weight, None, term.stride, 0, term.dilation, groups)

    def forward(self, sources: Sequence[torch.Tensor]) -> torch.Tensor:
        pairs = zip(self.layer.terms, sources, strict=True)
        parts = torch.stack([self._term(n, term, x) for n, (term, x) in enumerate(pairs)])
        bias = self.bias()[:, None, None]
        y = parts.sum(0) + bias if self.layer.reduce == "add" else parts.amax(0).maximum(bias)
        if self.layer.limits is not None:
            y = y.clamp(*self.layer.limits)
        if self.layer.output is None:
            return y
        return block_float(y if self.layer.output.signed else y.relu(), self.layer.output)

    @torch.no_grad()
    def stored(self) -> Layer:
        terms = tuple(
            replace(term, kernel=self.weights[number].stored()) if number in self.weights else term
            for number, term in enumerate(self.layer.terms)
        )
        bias = self.bias().cpu().numpy()
        kept, grid = self.layer.constants(bias), self.layer.grid
        if grid is not None and (np.abs(kept - bias) > grid.unit).any():
            raise ValueError(
                f"layer {self.layer.name!r}: learning led a bias out of the range of its "
                f"{grid.name} accumulators, 2**{grid.exponent} each: learn in float32 and choose "
                f"grids then, or give them a larger margin_bits"
            )
        return replace(self.layer, terms=terms, bias=kept)


class Teacher(nn.Module):
    """A network in floating point, as layers of the machine: images (N, C, H, W) to scores (N, Co).

    It has nothing to train.

    Parameters
    ----------
    layers : those of :func:`.lower.lower`, the image not folded
    """

    def __init__(self, layers: Sequence[FloatLayer]) -> None:
        super().__init__()
        self.layers = layers
        # Training knows the teacher by its state.
        for number, layer in enumerate(layers):
            self.register_buffer(f"bias{number}", torch.from_numpy(layer.bias))
            for index, term in enumerate(layer.terms):
                self.register_buffer(f"weight{number}_{index}", torch.from_numpy(term.weight))

    @torch.no_grad()
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tensors = {INPUT: x}
        for layer in self.layers:
            tensors[layer.name] = layer_result(layer, tensors).clamp(*layer.limits)
        return tensors[self.layers[-1].name].flatten(1)


class Student(nn.Module):
    """A quantized network that trains: images (N, C, H, W) float32 to scores (N, Co).

    Parameters
    ----------
    network : where training starts from
    references : its layers in floating point, which tell what trains from weights that are constant
        or the codes of a DSConv layer
    """

    def __init__(self, network: QuantizedNetwork, references: Sequence[FloatLayer]) -> None:
        super().__init__()
        self.start = network
        self.layers: list[_Layer] = []
        for layer, reference in zip(network.layers, references, strict=True):
            fixed = [term.constant or term.coded is not None for term in reference.terms]
            self.layers.append(_Layer(layer, fixed))
            self.add_module(f"layer{len(self.layers)}", self.layers[-1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            image = fixed_point(self.start.input, x, self.start.fold).decode_images()
        tensors = {INPUT: image}
        for layer, module in zip(self.start.layers, self.layers, strict=True):
            tensors[layer.name] = module([tensors[term.source] for term in layer.terms])
        return tensors[self.start.layers[-1].name].flatten(1)

    def formats(self) -> str:
        """What does not train: how every tensor is stored."""
        kernels = [t.kernel for layer in self.start.layers for t in layer.terms]
        weights = [(k.weight_bits, k.scale_format.name) for k in kernels]
        limits = [(layer.output, layer.limits) for layer in self.start.layers]
        return str((self.start.input, self.start.fold, weights, limits))

    def network(self) -> QuantizedNetwork:
        """The network with the codes, scales and biases as they are now."""
        return replace(self.start, layers=tuple(module.stored() for module in self.layers))
