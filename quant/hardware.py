"""Hardware mode: the quantized network in torch, bit for bit what :mod:`..golden` computes.

The sum of a block, scaled by the block's power of two, is exact in a float32 matrix product,
because every product lies on one grid and the sums stay below 2**24 units of it. Its product with
the scale is then rounded once by one float32 multiplication, and sums are float32 additions in the
documented order. Where that does not hold (wide sums, results that could leave float32's normal
range) the same operations run in float64, followed by the rounding rule of :mod:`..golden.floats`.
Fixed-point accumulators are whole numbers in float64.

On the CPU what float32 holds runs in the loops of :mod:`.compiled`, several times as fast.
"""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from ..frontend.block_float import channel_blocks, mantissas, power_of_two
from ..golden.bfp import BlockFloat, BlockTensor, FixedPoint, unit_exponent
from ..golden.fixed import FixedFormat, Grid
from ..golden.floats import FLOAT32
from ..golden.fold import Fold
from ..golden.layers import Layer, Term
from ..golden.network import INPUT, QuantizedNetwork, Tensor
from ..golden.vqk import VariableQuantizedKernel
from .calibrate import check_images
from .compiled import Accumulated, CompiledLayer, Source, Workers, encode_blocks, workers

__all__ = [
    "Evaluation",
    "HardwareLayer",
    "HardwareNetwork",
    "Result",
    "Stored",
    "evaluate",
    "exact_arithmetic",
    "fixed_point",
]

EXACT_FLOAT32 = 1 << 24
"""integers up to this are exact in float32"""
LARGE = FLOAT32.largest / 2
"""sums whose terms together stay below this do not saturate, however they are rounded"""


Device = torch.device | str


@contextmanager
def exact_arithmetic() -> Iterator[None]:
    """No reduced precision in matrix products, whatever the caller allows."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with (
            torch.inference_mode(),
            torch.autocast("cpu", enabled=False),
            torch.autocast("cuda", enabled=False),
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


def _round(exact: torch.Tensor) -> torch.Tensor:
    """Float64 to float32 by the rule of ``FLOAT32.round``."""
    midpoint = FLOAT32.smallest * (1 - 2.0**-25)
    kept = torch.where(exact.abs() < midpoint, 0.0, exact)
    return kept.clamp(-FLOAT32.largest, FLOAT32.largest).float()


def _whole(form: FixedFormat, exact: torch.Tensor) -> torch.Tensor:
    """``form.product``."""
    nearest = (exact + 0.5).floor_()
    nearest.masked_fill_(exact >= form.high + 1, math.inf)
    return nearest.masked_fill_(exact < form.low, -math.inf)


def _magnitudes(values: NDArray[np.float32], default: tuple[float, float]) -> tuple[float, float]:
    """Smallest and largest magnitude of the numbers that are not 0."""
    magnitudes = np.abs(values[values != 0]).astype(np.float64)
    return (float(magnitudes.min()), float(magnitudes.max())) if magnitudes.size else default


@dataclass(frozen=True, eq=False)
class Stored:
    """A stored tensor on the device: :class:`..golden.bfp.BlockTensor` with the images innermost.

    Parameters
    ----------
    codes : (blocks, B, N, H, W) float32, integers
    fields : (blocks, N, H, W) int32, the exponent fields
    signed, bits, channels, planes : as of ``BlockTensor``
    clipped : 0-dimensional, how many values were clipped to the code range
    """

    codes: torch.Tensor
    fields: torch.Tensor
    signed: tuple[bool, ...]
    bits: int
    channels: int
    planes: int
    clipped: torch.Tensor

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.codes.shape[3], self.codes.shape[4]

    @property
    def unit_exponents(self) -> list[int]:
        """Of each block, the power of two of code 1 where the field is 0."""
        return [unit_exponent(self.bits, signed) for signed in self.signed]

    def units(self) -> torch.Tensor:
        """(blocks, N, H, W) float64: what code 1 stands for."""
        offset = torch.tensor(self.unit_exponents, device=self.fields.device)
        return power_of_two(self.fields + offset[:, None, None, None])

    @cached_property
    def unit_bounds(self) -> tuple[float, float]:
        """The smallest and the largest of :meth:`units` of blocks that are not all zero."""
        fields = self.fields.flatten(1)
        ends = torch.stack([fields.where(fields > 0, 255).amin(1), fields.amax(1)], 1).tolist()
        exponents = [
            (low + offset, high + offset)
            for (low, high), offset in zip(ends, self.unit_exponents, strict=True)
            if high > 0
        ]
        if not exponents:
            return math.inf, 0.0
        return 2.0 ** min(low for low, _ in exponents), 2.0 ** max(high for _, high in exponents)

    def values(self, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        """(blocks, B, N, H, W): what the codes stand for."""
        return self.codes.to(dtype) * self.units().to(dtype)[:, None]

    def decode(self) -> torch.Tensor:
        """(C, N, H, W) float64: what the tensor stands for, the planes summed."""
        planes = self.values().unflatten(0, (self.planes, -1)).sum(0)
        return planes.flatten(0, 1)[: self.channels]

    def decode_images(self) -> torch.Tensor:
        """(N, C, H, W) float32: the nearest to :meth:`decode`."""
        return self.decode().transpose(0, 1).float().contiguous()

    def to_golden(self) -> BlockTensor:
        return BlockTensor(
            self.codes.permute(2, 0, 1, 3, 4).cpu().numpy().astype(np.int16),
            self.fields.permute(1, 0, 2, 3).cpu().numpy().astype(np.uint8),
            self.signed,
            self.bits,
            self.channels,
            self.planes,
        )


def _unfold(q: torch.Tensor, fold: Fold) -> torch.Tensor:
    """``fold.compute`` of (C, N, H, W)."""
    shape = fold.shape((len(q), q.shape[2], q.shape[3]))
    top, bottom, left, right = fold.padding
    padded = functional.pad(q, (left, right, top, bottom))
    taps = [
        padded[
            :,
            :,
            ky * fold.dilation[0] :: fold.stride[0],
            kx * fold.dilation[1] :: fold.stride[1],
        ][:, :, : shape[1], : shape[2]]
        for ky in range(fold.kernel[0])
        for kx in range(fold.kernel[1])
    ]
    return torch.stack(taps, 1).flatten(0, 1)


def fixed_point(spec: FixedPoint, images: torch.Tensor, fold: Fold | None = None) -> Stored:
    """``QuantizedNetwork.encode_input`` of (N, C, H, W) float32."""
    pixels = images.double().transpose(0, 1) * 2.0**-spec.exponent
    limit = 1 << (spec.bits - 1)
    whole = pixels.round()
    clipped = ((whole < -limit) | (whole > limit - 1)).sum()
    q = whole.clamp(-limit, limit - 1).int()
    if fold is not None:
        q = _unfold(q, fold)
    digits, fields = [], []
    for plane in range(spec.planes):
        shift = spec.act_bits * (spec.planes - 1 - plane)
        shifted = q >> shift
        digits.append(shifted if plane == 0 else shifted & ((1 << spec.act_bits) - 1))
        fields.append(spec.exponent + shift - unit_exponent(spec.act_bits, signed=plane == 0))
    codes = torch.cat([channel_blocks(digit, spec.block) for digit in digits]).float()
    per_plane = len(codes) // spec.planes
    exponents = torch.tensor(fields, dtype=torch.int32, device=q.device)
    exponents = exponents.repeat_interleave(per_plane)
    signed = tuple(index < per_plane for index in range(len(codes)))
    shape = (len(codes), *codes.shape[2:])
    return Stored(
        codes,
        exponents[:, None, None, None].expand(shape),
        signed,
        spec.act_bits,
        len(q),
        spec.planes,
        clipped,
    )


def _block_float(spec: BlockFloat, acc: torch.Tensor, workers: Workers | None = None) -> Stored:
    """``spec.compute`` of (C, N, H, W), each normal in float32 or zero, by the compiled loops if
    there are `workers`."""
    if workers is not None:
        codes, fields, clipped = encode_blocks(spec, acc, workers)
        signed = (spec.signed,) * len(codes)
        return Stored(codes, fields, signed, spec.bits, len(acc), 1, torch.tensor(clipped))
    whole, fields = mantissas(spec, acc)
    limit = (1 << spec.magnitude_bits) - 1
    codes = whole.clamp(-limit, limit).float()
    clipped = (whole.abs() > limit).sum()
    return Stored(codes, fields, (spec.signed,) * len(codes), spec.bits, len(acc), 1, clipped)


class _BlockKernel(NamedTuple):
    """The weights that one activation block meets."""

    filters: slice
    codes: torch.Tensor
    """(Kh * Kw, filters, B) float32"""
    scales: torch.Tensor
    """(Kh * Kw, filters, 1) float32"""
    empty: tuple[bool, ...]
    """of each kernel position, whether it has no code"""


def _block_kernel(kernel: VariableQuantizedKernel, block: int, device: Device) -> _BlockKernel:
    weights = kernel.block_weights(block)
    codes = torch.tensor(weights.codes, dtype=torch.float32, device=device)
    scales = torch.tensor(weights.scales, device=device)
    return _BlockKernel(
        weights.filters,
        codes.permute(2, 3, 0, 1).flatten(0, 1).contiguous(),
        scales.permute(1, 2, 0).flatten(0, 1)[:, :, None].contiguous(),
        tuple((~weights.codes.any((0, 1))).ravel().tolist()),
    )


class _HardwareTerm:
    """One term of a layer with accumulators on `grid`, with its weights on the device."""

    def __init__(self, term: Term, grid: Grid | None, device: Device) -> None:
        self.term = term
        self.grid = grid
        self.device = device
        kernel = term.kernel
        blocks = [kernel.block_weights(n) for n in range(-(-kernel.in_channels // kernel.block))]
        self.scale_bounds = _magnitudes(kernel.scales, default=(1.0, 1.0))
        self.code_sum = max(
            int(np.abs(codes, dtype=np.int32).sum(1).max()) for _, codes, _ in blocks
        )
        """largest sum of the magnitudes of a block's codes"""

    @cached_property
    def blocks(self) -> list[_BlockKernel]:
        kernel = self.term.kernel
        blocks = range(-(-kernel.in_channels // kernel.block))
        return [_block_kernel(kernel, block, self.device) for block in blocks]

    def bounds(self, source: Stored) -> tuple[float, float]:
        """Smallest magnitude except 0 of its sums and products, and the largest they add up to."""
        smallest, largest = source.unit_bounds
        largest *= self.code_sum << source.bits
        steps = len(source.codes) * math.prod(self.term.kernel_size)
        low, high = self.scale_bounds
        return smallest * min(low, 1), largest * max(high, 1) * steps

    def products(
        self, source: Stored, size: tuple[int, int], dtype: torch.dtype, skip: bool
    ) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
        """Filters, products (filters, N, Ho, Wo) and pixels inside (Ho, Wo) of every step.

        With `skip`, steps without any code are left out.
        """
        term = self.term
        top, bottom, left, right = term.padding
        border = (left, right, top, bottom)
        images = source.codes.shape[2]
        inside = source.codes.new_ones(source.codes.shape[3:], dtype=torch.bool)
        inside = functional.pad(inside, border)
        # Narrow scales leave room for themselves: then even the scaled sums are exact.
        width = term.kernel.scale_format.significand_bits + source.bits
        folds = dtype is torch.float32 and self.code_sum << width <= EXACT_FLOAT32
        for index, values in enumerate(source.values(dtype)):
            padded = functional.pad(values, border)
            filters, taps, tap_scales, empty = self.blocks[index % len(self.blocks)]
            for tap, (codes, scales) in enumerate(zip(taps, tap_scales, strict=True)):
                if skip and empty[tap]:
                    continue
                ky, kx = divmod(tap, term.kernel_size[1])
                rows = slice(ky * term.dilation[0], None, term.stride[0])
                columns = slice(kx * term.dilation[1], None, term.stride[1])
                pixels = padded[..., rows, columns][..., : size[0], : size[1]]
                pixels = pixels.reshape(len(pixels), -1)  # (B, N * Ho * Wo)
                if folds:
                    product = (codes * scales) @ pixels
                else:
                    product = (codes.to(dtype) @ pixels).mul_(scales)
                if self.grid is not None:
                    product = _whole(self.grid.form, product.mul_(2.0**-self.grid.exponent))
                elif dtype is torch.float64:
                    product = _round(product)
                yield (
                    filters,
                    product.view(-1, images, *size),
                    inside[rows, columns][: size[0], : size[1]],
                )


class Result(NamedTuple):
    """One tensor of the network, on the device."""

    raw: torch.Tensor
    """(C, N, H, W) float32: the clamped accumulators as they leave the machine, or the images"""
    stored: Stored | None
    """the clamped accumulators as they are stored; None of the network's result"""
    saturated: int = 0
    """steps whose result left the range of fixed-point accumulators"""
    peak: float = 0.0
    """of float32 accumulators, if it was asked for: see :meth:`HardwareLayer.result`"""


class HardwareLayer:
    """One layer, with its weights on the device.

    Parameters
    ----------
    layer : of a network whose input has `input_planes` digit planes
    device, compiled : as of :class:`HardwareNetwork`
    """

    def __init__(
        self, layer: Layer, input_planes: int, device: Device = "cpu", *, compiled: bool = True
    ) -> None:
        self.layer = layer
        self.terms = [_HardwareTerm(term, layer.grid, device) for term in layer.terms]
        self.compiled = None
        if compiled:
            planes = [input_planes if term.source == INPUT else 1 for term in layer.terms]
            self.compiled = CompiledLayer(layer, planes)
        self.start = torch.tensor(layer.start, device=device)
        self.bias_bounds = (math.inf, 0.0)
        if layer.reduce == "add":  # a maximum never adds to it
            self.bias_bounds = _magnitudes(layer.bias, default=self.bias_bounds)

    def _plain(self, sources: list[Stored]) -> bool:
        """Whether float32 arithmetic follows the rules without flushing or saturating.

        All values of a layer are multiples of the last place of the smallest one, so that none is
        subnormal if that is a normal number.
        """
        pairs = list(zip(self.terms, sources, strict=True))
        if any(term.code_sum << source.bits > EXACT_FLOAT32 for term, source in pairs):
            return False
        bounds = [self.bias_bounds, *(term.bounds(source) for term, source in pairs)]
        last_place = min(low for low, _ in bounds) * 2.0**-FLOAT32.fraction_bits
        return last_place >= FLOAT32.smallest and sum(high for _, high in bounds) < LARGE

    def accumulate(
        self, tensors: Mapping[str, Stored], workers: Workers | None, watch: bool = False
    ) -> Accumulated:
        """The accumulators of stored tensors, with their peak if `watch` is set."""
        sources = [tensors[term.source] for term in self.layer.terms]
        size = self.layer.output_size({name: stored.size for name, stored in tensors.items()})
        plain, add = self._plain(sources), self.layer.reduce == "add"
        if plain and self.compiled is not None and workers is not None:
            inputs = [Source(x.codes, x.fields, x.unit_exponents) for x in sources]
            return self.compiled.accumulate(inputs, size, workers, watch)
        form = None if self.layer.grid is None else self.layer.grid.form
        dtype = torch.float32 if plain and form is None else torch.float64
        images = sources[0].codes.shape[2]
        acc = self.start[:, None, None, None].repeat(1, images, *size)
        saturated, peak = acc.new_zeros((), dtype=torch.int64), 0.0
        for term, source in zip(self.terms, sources, strict=True):
            for filters, product, inside in term.products(source, size, dtype, add):
                target = acc[filters]
                if not add:
                    # Adding 0 makes a -0, of no code times a negative scale, the +0 of the rules.
                    result = torch.where(inside, target.maximum(product + 0), target)
                elif form is not None:
                    result = target + product
                elif plain:
                    result = target.add_(product)
                else:
                    result = _round(target.double() + product)
                if form is None:
                    target.copy_(result)
                else:
                    target.copy_(result.clamp(form.low, form.high))
                    saturated += (target != result).sum()
                if watch:
                    peak = max(peak, float(target.abs().max()))
        return Accumulated(acc, int(saturated), peak)

    def result(
        self, tensors: Mapping[str, Stored], workers: Workers | None, watch: bool = False
    ) -> Result:
        """What the layer makes of stored tensors; to be called in :func:`exact_arithmetic`.

        With `watch`, the peak of float32 accumulators is the largest magnitude of the biases and of
        the accumulators after every step. That of a max layer is the largest at the end, where they
        are not the lowest number that they started from: maxima only rise, so that of a range that
        holds these no smaller product is missed.
        """
        acc, saturated, peak = self.accumulate(tensors, workers, watch)
        if watch and self.layer.reduce == "max":
            peak = float(acc.where(acc > -FLOAT32.largest, 0).abs().max())
        elif watch:
            peak = max(peak, float(self.start.abs().max()))
        layer, grid = self.layer, self.layer.grid
        if layer.limits is not None:
            acc = acc.clamp(*(layer.limits if grid is None else grid.whole(layer.limits).tolist()))
        raw = acc
        if grid is not None:
            kept = (acc * 2.0**-grid.form.dropped_bits).floor_()
            raw = (kept * 2.0 ** (grid.form.dropped_bits + grid.exponent)).float()
            acc = acc.mul_(2.0**grid.exponent)
        stored = None if layer.output is None else _block_float(layer.output, acc, workers)
        return Result(raw, stored, saturated, peak)


class HardwareNetwork:
    """A quantized network that computes in torch exactly what the accelerator does.

    Calling it with images (N, C, H, W) float32 gives the network's result (N, Co, Ho, Wo) float32.

    Parameters
    ----------
    network : as quantized
    device : where it computes; the numbers are the same everywhere
    compiled : on the CPU, with compiled loops on ``torch.get_num_threads()`` threads; False takes
        torch's operations, as other devices do. The numbers are the same
    """

    def __init__(
        self, network: QuantizedNetwork, device: Device = "cpu", *, compiled: bool = True
    ) -> None:
        self.network = network
        self.device = torch.device(device)
        self.compiled = compiled and self.device.type == "cpu"
        planes = network.input.planes
        self._layers = [
            HardwareLayer(layer, planes, self.device, compiled=self.compiled)
            for layer in network.layers
        ]

    @exact_arithmetic()
    def results(self, x: torch.Tensor, *, watch: bool = False) -> dict[str, Result]:
        """Every tensor of the network, the input included, by name; with `watch` their peaks."""
        x = x.to(self.device)
        tensors = {INPUT: fixed_point(self.network.input, x, self.network.fold)}
        results = {INPUT: Result(x.transpose(0, 1), tensors[INPUT])}
        with self._workers() as workers:
            for hardware in self._layers:
                name, result = hardware.layer.name, hardware.result(tensors, workers, watch)
                results[name] = result
                if result.stored is not None:
                    tensors[name] = result.stored
        return results

    def _workers(self) -> AbstractContextManager[Workers | None]:
        return workers(torch.get_num_threads()) if self.compiled else nullcontext()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.results(x)[self.network.layers[-1].name].raw.transpose(0, 1)

    def compute(self, x: NDArray[np.float32]) -> dict[str, Tensor]:
        """What ``QuantizedNetwork.compute`` gives, in the same types."""
        images = check_images(x, self.network.input_shape)
        return {
            name: result.raw.transpose(0, 1).cpu().numpy()
            if result.stored is None
            else result.stored.to_golden()
            for name, result in self.results(torch.from_numpy(images)).items()
        }


class Evaluation(NamedTuple):
    """Top-1 accuracy in percent, how fast it was measured, and steps whose result left the range of
    fixed-point accumulators."""

    images: int
    top1: float
    images_per_s: float
    saturated_sums: int = 0


def evaluate(
    network: QuantizedNetwork | HardwareNetwork,
    x: NDArray[np.float32],
    y: NDArray[np.integer],
    batch: int = 25,
) -> Evaluation:
    """Top-1 accuracy in hardware mode.

    Parameters
    ----------
    network : computed on the device where it is; a ``QuantizedNetwork`` on the CPU
    x : (N, C, H, W) float32, normalised as in training
    y : (N,) class numbers
    batch : images at a time; it changes the speed only

    Raises
    ------
    ValueError
        if `x` and `y` do not belong together or do not fit the network
    """
    if isinstance(network, QuantizedNetwork):
        network = HardwareNetwork(network)
    images = check_images(x, network.network.input_shape)
    labels = np.asarray(y)
    if labels.shape != images.shape[:1]:
        raise ValueError(f"labels must be ({len(images)},), not {labels.shape}")
    start = time.perf_counter()
    right = saturated = 0
    for first in range(0, len(images), batch):
        results = network.results(torch.from_numpy(images[first : first + batch]))
        scores = results[network.network.layers[-1].name].raw.transpose(0, 1).flatten(1)
        right += int((scores.argmax(1).cpu().numpy() == labels[first : first + batch]).sum())
        saturated += sum(result.saturated for result in results.values())
    seconds = time.perf_counter() - start
    return Evaluation(len(images), 100 * right / len(images), len(images) / seconds, saturated)
