"""A trained network to a quantized one: weights as VQK, activations as block floating point."""

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.export import ExportedProgram

from ..frontend.archive import exported, read
from ..frontend.graph import Coded, Graph, Input, Requantize
from ..golden.bfp import BlockFloat, FixedPoint, Rounding
from ..golden.fixed import FixedFormat, accumulator_format
from ..golden.floats import FLOAT32, ScaleFormat
from ..golden.layers import Layer, Term
from ..golden.network import INPUT, QuantizedNetwork
from ..golden.vqk import Recipe, VariableQuantizedKernel
from .accumulators import check_scale, fix_accumulators
from .agreement import check_agreement
from .calibrate import check_images, input_exponent, signed_tensors
from .config import Choices, LayerConfig
from .float_layer import UNLIMITED, FloatLayer, FloatTerm
from .fold import fold_input
from .lower import lower
from .rounding import compensate
from .scales import Method, encode

__all__ = ["Model", "QuantConfig", "as_graph", "constant_code", "quantize"]

Model = Graph | nn.Module | ExportedProgram | Path | str
CalibratedMethod = Literal["compensated"] | Method


@dataclass(frozen=True)
class QuantConfig(LayerConfig):
    """How a network is quantized.

    Parameters
    ----------
    weight_bits : b, 2 to 8
    act_bits : m, 2 to 8, storage bits of an activation
    block : B, channels that share an exponent, the array's rows
    scale : format of the weight blocks' scales, a key of ``SCALE_FORMATS``
    method : how codes and scales are chosen: "compensated" as in :mod:`.rounding`, on the
        calibration images, or without these "l2", "kl" or "joint" as in :func:`.scales.encode`
    recipe : how "l2" and "kl" choose codes, "R", "P" or "O"
    rounding : of activations, "nearest" or "truncate"
    input_bits : width of the fixed-point network input, 2 to 16
    accumulator : format of all layers' accumulators, one of ``ACCUMULATORS``
    margin_bits : 0 to 8, room of fixed-point accumulators above the largest partial sum on the
        calibration images; see :func:`.accumulators.fix_accumulators`
    overrides : by layer name, other values for some of weight_bits, scale, method, recipe and
        rounding
    """

    PER_LAYER = frozenset({"weight_bits", "scale", "method", "recipe", "rounding"})
    OTHERS: ClassVar[Mapping[str, Choices]] = {"method": ("compensated", *get_args(Method))}

    weight_bits: int = 4
    act_bits: int = 4
    block: int = 16
    scale: str = "bf16"
    method: CalibratedMethod = "compensated"
    recipe: Recipe = "R"
    rounding: Rounding = "nearest"
    input_bits: int = 8
    accumulator: str = "float32"
    margin_bits: int = 3
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, hash=False)

    def _check_fields(self) -> None:
        super()._check_fields()
        if isinstance(accumulator_format(self.accumulator), FixedFormat):
            check_scale(self.scale)


def as_graph(model: Model, images: NDArray[np.float32]) -> Graph:
    """The graph of `model`, which is compared with `model` on an image and on noise.

    A module is exported with the first of `images` as its example, from a copy on the CPU in
    float32 if it is elsewhere or in another type.

    Raises ``ValueError`` as :func:`~..frontend.archive.read` and
    :func:`.agreement.check_agreement`.
    """
    if isinstance(model, Graph):
        return model
    images = np.asarray(images)
    if np.ndim(images) != 4 or not len(images):
        raise ValueError(f"images must be (N, C, H, W), not {np.shape(images)}")
    if isinstance(model, nn.Module) and any(
        tensor.device.type != "cpu"
        or (tensor.is_floating_point() and tensor.dtype != torch.float32)
        for tensor in model.state_dict().values()
    ):
        model = deepcopy(model).cpu().float()
    program = exported(model, torch.from_numpy(np.asarray(images[:1], np.float32)))
    graph = read(program)
    check_agreement(program, graph, images)
    return graph


def constant_code(value: float, bits: int, scale_format: ScaleFormat) -> tuple[int, float]:
    """The code and the scale whose product is nearest to a positive `value`.

    Of equally good ones the smallest code; a power of two, such as the 1 of an identity, is exact.
    """
    codes = np.arange(1, 1 << (bits - 1))
    scales = scale_format.round(value / codes)
    best = int(np.abs(codes * scales.astype(np.float64) - value).argmin())
    return int(codes[best]), float(scales[best])


def _constant_kernel(term: FloatTerm, config: QuantConfig) -> VariableQuantizedKernel:
    """The kernel of weights that are 0 or one number."""
    value = float(term.weight.max())
    code, scale = constant_code(value, config.weight_bits, config.scale_format)
    kernel = VariableQuantizedKernel.quantize(
        term.weight != 0,
        weight_bits=config.weight_bits,
        block=config.block,
        groups=term.groups,
        scale_format=config.scale_format,
    )
    codes = np.where(term.weight != 0, code, 0).astype(np.int8)
    scales = np.where(kernel.scales != 0, scale, 0).astype(np.float32)
    return replace(kernel, codes=codes, scales=scales)


def _coded_kernel(coded: Coded, groups: int, config: QuantConfig) -> VariableQuantizedKernel:
    """The kernel of a weight that is codes already: in the blocks of the machine."""
    steps = coded.block_steps(groups, config.block)
    if steps is None:
        raise ValueError(
            f"blocks of {config.block} channels would hold codes of several scales; quantize with "
            f"the layer's own block, {coded.block} (and make a linear layer with its pixels)"
        )
    return VariableQuantizedKernel(
        coded.codes,
        config.scale_format.round(steps),
        coded.weight_bits,
        config.block,
        groups,
        config.scale_format,
    )


def _kernel(term: FloatTerm, config: QuantConfig) -> VariableQuantizedKernel:
    if term.coded is not None:
        return _coded_kernel(term.coded, term.groups, config)
    if term.constant:
        return _constant_kernel(term, config)
    return encode(
        term.weight,
        weight_bits=config.weight_bits,
        block=config.block,
        groups=term.groups,
        method="l2" if config.method == "compensated" else config.method,
        recipe=config.recipe,
        scale_format=config.scale_format,
    )


def _check_requantization(graph: Graph, config: QuantConfig) -> None:
    """Raise ``ValueError`` if the network was trained with other activations than it shall have."""
    for node in graph.nodes:
        if isinstance(node, Requantize):
            spec = node.spec
            trained = {"block": spec.block, "act_bits": spec.bits, "rounding": spec.rounding}
            for name, value in trained.items():
                if value != getattr(config, name):
                    raise ValueError(
                        f"layer {node.name!r}: it was trained with {name} {value!r}, not "
                        f"{getattr(config, name)!r}; quantize with {value!r}"
                    )
            if spec.signed and node.inputs[0] in graph.nonnegative:
                raise ValueError(
                    f"layer {node.name!r}: it was trained with a sign, but what cannot be negative "
                    "is stored without one; train with signed=False"
                )


def _limits(layer: FloatLayer, signed: bool | None) -> tuple[float, float] | None:
    """What the accumulators are clamped to; None where the format of the result does it."""
    low, high = layer.limits
    if layer.limits == UNLIMITED or (signed is False and (low, high) == (0, math.inf)):
        return None
    largest = float(FLOAT32.largest)
    low, high = (float(np.clip(end, -largest, largest)) for end in (low, high))
    ends = FLOAT32.round(np.array([low, high]))
    return float(ends[0]), float(ends[1])


def _layer(layer: FloatLayer, config: QuantConfig, signed: bool | None) -> Layer:
    """Encode one layer; its result is stored signed or unsigned, or raw if `signed` is None."""
    try:
        kernels = [_kernel(term, config) for term in layer.terms]
    except ValueError as error:
        raise ValueError(f"layer {layer.name!r}: {error}") from None
    terms = tuple(
        Term(term.source, kernel, term.stride, term.padding, term.dilation)
        for term, kernel in zip(layer.terms, kernels, strict=True)
    )
    output = None
    if signed is not None:
        output = BlockFloat(config.block, config.act_bits, signed, config.rounding)
    limits = _limits(layer, signed)
    bias = FLOAT32.round(layer.bias)
    return Layer(layer.name, terms, bias, layer.reduce, output, limits, layer.macs_per_pixel)


def quantize(
    model: Model, calibration: NDArray[np.float32], config: QuantConfig | None = None
) -> QuantizedNetwork:
    """Quantize a trained network without retraining.

    Parameters
    ----------
    model : graph, exported program or its ``.pt2`` archive, or module in evaluation mode
    calibration : (N, C, H, W) float32, images like those that the network will see, without
        labels. They fix the grids of the network input and of fixed-point accumulators, which
        tensors carry a sign, and where ``config.method`` is "compensated" the codes; some hundred
        images serve for that
    config : default ``QuantConfig()``

    Raises
    ------
    ValueError
        naming the layer, if it is not supported, if its weights are not finite, or if an override
        names no layer
    """
    config = config or QuantConfig()
    graph = as_graph(model, calibration)
    shape = next(node.shape for node in graph.nodes if isinstance(node, Input))
    images = check_images(calibration, shape)
    _check_requantization(graph, config)
    layers = lower(graph)
    unknown = sorted(set(config.overrides) - {layer.name for layer in layers})
    if unknown:
        known = ", ".join(layer.name for layer in layers)
        raise ValueError(f"overrides name {unknown[0]!r}, which is no layer; layers are {known}")
    signed = signed_tensors(layers, images)
    exponent = input_exponent(images, config.input_bits)
    fold, layers = fold_input(layers, config.block)
    network = QuantizedNetwork(
        FixedPoint(exponent, config.block, config.act_bits, config.input_bits),
        (shape[0], shape[1], shape[2]),
        tuple(
            _layer(
                layer,
                config.layer(layer.name),
                None if layer is layers[-1] else layer.name in signed,
            )
            for layer in layers
        ),
        fold,
    )
    network = compensate(network, layers, images, _compensated(layers, config, fold is not None))
    form = accumulator_format(config.accumulator)
    if isinstance(form, FixedFormat):
        network = fix_accumulators(network, images, form, config.margin_bits)
    return network


def _compensated(layers: Sequence[FloatLayer], config: QuantConfig, folded: bool) -> set[str]:
    """The layers whose rounding errors are compensated.

    One that reads a folded image always is: there weights of many kernel positions share a scale,
    which else costs 13 points of top-1 in MLPerf Tiny's ResNet-8 at four bits.
    """
    return {
        layer.name
        for layer in layers
        if config.layer(layer.name).method == "compensated"
        or (folded and any(term.source == INPUT for term in layer.terms))
    }
