"""A layer of a quantized network as passes and drains of the engine."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..golden.bfp import BlockTensor
from ..golden.config import HardwareConfig
from ..golden.layers import Layer, Step, Term
from ..golden.network import QuantizedNetwork
from ..golden.passes import BlockRows, Drain, Pass
from .tile import block_at_a_time, cut_filters

__all__ = ["LayerProgram", "check", "lower"]


def check(network: QuantizedNetwork, config: HardwareConfig) -> None:
    """Raise ``ValueError`` if `config` cannot run `network`, with what to change."""
    if network.block != config.rows:
        raise ValueError(
            f"the network has blocks of {network.block} channels but the array has {config.rows} "
            f"rows: quantize with block={config.rows} or set rows = {network.block}"
        )
    if network.act_bits != config.act_bits:
        raise ValueError(
            f"the network has {network.act_bits}-bit activations, the hardware {config.act_bits}: "
            f"quantize with act_bits={config.act_bits} or set act_bits = {network.act_bits}"
        )
    if network.weight_bits > config.weight_bits:
        raise ValueError(
            f"the network has {network.weight_bits}-bit weights, the hardware "
            f"{config.weight_bits}: set weight_bits = {network.weight_bits}"
        )
    if network.accumulator != config.accumulator:
        raise ValueError(
            f"the network has {network.accumulator} accumulators, the hardware "
            f"{config.accumulator}: quantize with accumulator={config.accumulator!r} or set "
            f"accumulator = {network.accumulator!r}"
        )
    for layer in network.layers:
        if layer.output is not None and layer.output.rounding != "nearest":
            raise ValueError(
                f"layer {layer.name!r} truncates its output, the hardware rounds: quantize with "
                f"rounding='nearest'"
            )
        for term in layer.terms:
            name = term.kernel.scale_format.name
            if name != config.scale:
                raise ValueError(
                    f"layer {layer.name!r} has {name} scales, the hardware {config.scale}: set "
                    f"scale = {name!r}"
                )
            if layer.grid is not None and not layer.grid.holds(
                term.kernel.scales, term.kernel.scale_format
            ):
                raise ValueError(
                    f"layer {layer.name!r} has {name} scales that this format does not hold in "
                    f"units of its accumulators' grid, 2**{layer.grid.exponent}: quantize with "
                    f"accumulator='float32', or another scale if it is fp16"
                )
            if term.kernel.codes.min() < config.array.least_code:
                raise ValueError(
                    f"layer {layer.name!r} has the weight code {term.kernel.codes.min()}, which "
                    f"multiplier {config.multiplier!r} lacks: quantize with method='l2', "
                    "recipe='P' and no 'e8m0' scales, or take another multiplier"
                )


def _refuse_accelerator_only(layer: Layer, config: HardwareConfig) -> None:
    grid = "float32" if layer.grid is None else layer.grid.name
    for what, name in ((f"layer {layer.name!r}", grid), ("the hardware", config.accumulator)):
        if name != "float32":
            raise ValueError(
                f"{what} has {name} accumulators, which the engine by itself does not know: use "
                f"float32"
            )
    if layer.limits is not None:
        raise ValueError(
            f"layer {layer.name!r} clamps its result to {layer.limits[0]:g} ... "
            f"{layer.limits[1]:g}, which the engine cannot: use ReLU"
        )


@dataclass(frozen=True, eq=False)
class LayerProgram:
    """The work of one layer for one image.

    Parameters
    ----------
    work : passes and drains, in order
    places : for each drain, the output blocks (of a raw layer, channels) and pixels it covers
    layer, size : the layer and its output (Ho, Wo)
    config : the hardware
    """

    work: tuple[Pass | Drain, ...]
    places: tuple[tuple[slice, NDArray[np.int64]], ...]
    layer: Layer
    size: tuple[int, int]
    config: HardwareConfig

    def collect(
        self, results: list[NDArray[np.float32] | BlockRows]
    ) -> BlockTensor | NDArray[np.float32]:
        """The tensor of one image from the results of the drains."""
        pixels = self.size[0] * self.size[1]
        channels = self.layer.bias.size
        if self.layer.output is None:
            raw = np.zeros((channels, pixels), np.float32)
            for (filters, where), rows in zip(self.places, results, strict=True):
                assert isinstance(rows, np.ndarray)
                raw[filters, where] = rows[:, : filters.stop - filters.start].T
            return raw.reshape(1, channels, *self.size)
        block = self.config.rows
        blocks = -(-channels // block)
        per_beat = self.config.requantizer.blocks_per_beat
        codes = np.zeros((blocks, block, pixels), np.int16)
        exponents = np.zeros((blocks, pixels), np.uint8)
        for (covered, where), rows in zip(self.places, results, strict=True):
            assert isinstance(rows, BlockRows)
            for k in range(covered.stop - covered.start):
                codes[covered.start + k][:, where] = rows.codes[k::per_beat].T
                exponents[covered.start + k][where] = rows.exponents[k::per_beat]
        output = self.layer.output
        return BlockTensor(
            codes.reshape(1, blocks, block, *self.size),
            exponents.reshape(1, blocks, *self.size),
            (output.signed,) * blocks,
            output.bits,
            channels,
        )


def _covers(outer: slice, inner: slice) -> bool:
    return outer.start <= inner.start and inner.stop <= outer.stop


def _tile(
    step: Step, filters: slice, bias: NDArray | None, config: HardwareConfig
) -> tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.float32] | None]:
    """Codes (rows, cols), scales and biases (cols,) of a step for a column tile."""
    codes = np.zeros((config.rows, config.cols), np.int8)
    scales = np.zeros(config.cols, np.float32)
    low = max(filters.start, step.filters.start)
    high = min(filters.stop, step.filters.stop)
    if low < high:
        target = slice(low - filters.start, high - filters.start)
        chosen = slice(low - step.filters.start, high - step.filters.start)
        codes[:, target] = step.codes[chosen].T
        scales[target] = step.scales[chosen]
    if bias is None:
        return codes, scales, None
    biases = np.zeros(config.cols, np.float32)
    biases[: filters.stop - filters.start] = bias[filters]
    return codes, scales, biases


def lower(layer: Layer, sources: Mapping[str, BlockTensor], config: HardwareConfig) -> LayerProgram:
    """Passes and drains that compute `layer` for one image.

    Output pixels are cut into chunks and filters into column tiles that together fit the
    accumulators. Within such a group the steps are in the order of
    :meth:`~shiftcore.golden.layers.Layer.steps`, and each is issued for every column tile in turn,
    so that an accumulator is not revisited sooner than necessary.
    """
    _refuse_accelerator_only(layer, config)
    images = {sources[t.source].shape[0] for t in layer.terms}
    if images != {1}:
        raise ValueError(f"a program is made for one image, not {sorted(images)}")
    size = layer.output_size({t.source: sources[t.source].shape[2:] for t in layer.terms})
    pixels = size[0] * size[1]
    depth = config.accumulator_depth
    apart = block_at_a_time(layer, sources[layer.terms[0].source].signed)
    tiles = cut_filters(layer, config, apart)
    together = 1 if layer.output is None else config.requantizer.beats_per_block
    chunk = min(pixels, depth // together)
    group = max(1, depth // (together * chunk)) * together
    form = "raw" if layer.output is None else "signed" if layer.output.signed else "unsigned"

    planes = {term.source: sources[term.source].planes for term in layer.terms}
    gathered = [
        (term, step, *_gather(term, step, sources[term.source], size))
        for term, step in layer.steps(planes)
    ]
    work: list[Pass | Drain] = []
    places: list[tuple[slice, NDArray[np.int64]]] = []
    for first_pixel in range(0, pixels, chunk):
        where = np.arange(first_pixel, min(first_pixel + chunk, pixels))
        for first_tile in range(0, len(tiles), group):
            members = range(first_tile, min(first_tile + group, len(tiles)))
            begun: set[int] = set()
            last_step = len(gathered) - 1
            for index, (term, step, lanes, exponents, inside) in enumerate(gathered):
                signed = sources[term.source].signed[step.block]
                for tile in members:
                    filters = tiles[tile]
                    touched = filters.start < step.filters.stop and (
                        step.filters.start < filters.stop
                    )
                    # A tile that no step touches is still started, to hold its zeros.
                    if not touched and (tile in begun or index != last_step):
                        continue
                    if apart and touched and not _covers(step.filters, filters):
                        raise ValueError(
                            f"max layer {layer.name!r}: groups must not cut an output block"
                        )
                    bias = None if tile in begun else layer.bias
                    begun.add(tile)
                    work.append(
                        Pass(
                            *_tile(step, filters, bias, config),
                            lanes[where],
                            exponents[where],
                            (tile - first_tile) * len(where) + np.arange(len(where)),
                            signed,
                            layer.reduce == "max",
                            ~inside[where] & (layer.reduce == "max"),
                        )
                    )
            for tile in range(first_tile, members.stop, together):
                base = (tile - first_tile) * len(where)
                rows = (
                    base + np.arange(together)[None] * len(where) + np.arange(len(where))[:, None]
                )
                work.append(Drain(rows.reshape(-1), form))
                covered = slice(tiles[tile].start, tiles[tile + together - 1].stop)
                if layer.output is not None:
                    covered = slice(covered.start // config.rows, -(-covered.stop // config.rows))
                places.append((covered, where))
    return LayerProgram(tuple(work), tuple(places), layer, size, config)


def _gather(
    term: Term, step: Step, x: BlockTensor, size: tuple[int, int]
) -> tuple[NDArray[np.int16], NDArray[np.uint8], NDArray[np.bool_]]:
    """Lanes (P, rows), exponents (P,) and whether each pixel is inside the image."""
    _, _, height, width = x.shape
    y = np.arange(size[0]) * term.stride[0] + step.ky * term.dilation[0] - term.padding[0]
    x0 = np.arange(size[1]) * term.stride[1] + step.kx * term.dilation[1] - term.padding[2]
    inside = ((y >= 0) & (y < height))[:, None] & ((x0 >= 0) & (x0 < width))[None]
    ys, xs = np.clip(y, 0, height - 1), np.clip(x0, 0, width - 1)
    lanes = x.codes[0, step.block][:, ys][:, :, xs] * inside
    exponents = x.exponents[0, step.block][ys][:, xs] * inside
    return (
        lanes.reshape(lanes.shape[0], -1).T.astype(np.int16),
        exponents.reshape(-1).astype(np.uint8),
        inside.reshape(-1),
    )
