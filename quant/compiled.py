"""Layers of the hardware mode on the compiled kernel: packed weights, and threads.

Tensors are torch's, (blocks, B, N, H, W) and (C, N, H, W), with the images innermost in memory.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from ..golden.bfp import BlockFloat
from ..golden.fixed import Grid
from ..golden.layers import Layer, Term
from ..golden.vqk import VariableQuantizedKernel
from .hardware_kernels import FILTERS, VECTOR, accumulate, requantize

__all__ = ["Accumulated", "CompiledLayer", "Source", "Workers", "encode_blocks", "workers"]

SCRATCH = 1 << 17
"""numbers of a source tensor that a part of the work arranges at most, unless one row has more"""

Span = tuple[int, int]
"""first and last + 1"""
Found = TypeVar("Found")
Workers = Callable[[Callable[[Span, Span], Found], Span, int], list[Found]]
"""Calls work(rows, columns) for all parts of (rows, columns), at least so many; their results."""


def _spans(size: int, parts: int) -> list[Span]:
    """`size` things in that many parts of nearly the same size, or in single ones."""
    parts = min(size, parts)
    ends = [size * part // parts for part in range(parts + 1)]
    return list(pairwise(ends))


@contextmanager
def workers(threads: int) -> Iterator[Workers]:
    """Threads that share the parts of a piece of work."""
    with ThreadPoolExecutor(threads) as pool:

        def run(work: Callable[[Span, Span], Found], size: Span, parts: int) -> list[Found]:
            parts = max(parts, threads)
            rows = _spans(size[0], parts)
            columns = _spans(size[1], -(-parts // len(rows)))
            spans = [(row, column) for column in columns for row in rows]
            if threads == 1 or len(spans) == 1:
                return [work(*span) for span in spans]
            return list(pool.map(lambda span: work(*span), spans))

        yield run


class Source(NamedTuple):
    """A stored tensor, as the kernel reads it."""

    codes: torch.Tensor
    """(blocks, B, N, H, W) float32"""
    fields: torch.Tensor
    """(blocks, N, H, W) int32"""
    unit_exponents: Sequence[int]
    """of each block, the power of two of code 1 under field 0"""


def _innermost(x: torch.Tensor) -> NDArray:
    """(..., N, H, W) to (..., H, W * N)."""
    return x.movedim(-3, -1).flatten(-2).contiguous().numpy()


def _outermost(x: NDArray, images: int) -> torch.Tensor:
    """Inverse of :func:`_innermost`, in place."""
    return torch.from_numpy(x).unflatten(-1, (-1, images)).movedim(-1, -3)


class Accumulated(NamedTuple):
    """The accumulators of a layer and what was seen on the way."""

    numbers: torch.Tensor
    """(Co, N, Ho, Wo) float32, or whole numbers of the layer's grid in float64"""
    saturated: int
    """steps whose result left the range of fixed-point accumulators"""
    peak: float
    """largest magnitude after any step of float32 accumulators, if it was asked for; else 0"""


class _Steps(NamedTuple):
    """What FILTERS filters do with one kernel position of one block, step by step."""

    table: NDArray[np.int64]
    """(steps, 5): group of filters, block, kernel position, first lane, number of lanes"""
    weights: NDArray[np.float32]
    """(lanes of all steps, FILTERS)"""
    scales: NDArray[np.float32]
    """(steps, FILTERS)"""
    absent: NDArray[np.float32]
    """(steps, FILTERS): 0, or -infinity where the filter does not meet the block"""


def _block_steps(kernel: VariableQuantizedKernel, block: int, maximum: bool) -> _Steps:
    """The steps of one block; those without any code only under `maximum`."""
    filters, codes, scales = kernel.block_weights(block)
    groups = np.arange(filters.start // FILTERS, -(-filters.stop // FILTERS))
    first = filters.start % FILTERS

    def grouped(x: NDArray, fill: float) -> NDArray:
        """(filters, ..., Kh, Kw) to (groups, Kh * Kw, ..., FILTERS)."""
        x = x.reshape(*x.shape[:-2], -1)
        whole = np.full((len(groups) * FILTERS, *x.shape[1:]), fill, x.dtype)
        whole[first : first + len(x)] = x
        return np.moveaxis(whole.reshape(len(groups), FILTERS, *x.shape[1:]), (1, -1), (-1, 1))

    weights = grouped(codes, 0)
    filled = np.asarray(weights.any(-1))  # (groups, Kh * Kw, B)
    # The lanes from the first to the last one that has a code.
    used = np.logical_or.accumulate(filled, -1)
    used &= np.logical_or.accumulate(filled[..., ::-1], -1)[..., ::-1]
    count = used.sum(-1)
    kept = (count > 0) | maximum
    group, tap = kept.nonzero()
    columns = (groups[group], np.full_like(tap, block), tap, filled.argmax(-1)[kept], count[kept])
    return _Steps(
        np.stack(columns, -1),
        weights[used].astype(np.float32),
        grouped(scales, 0)[kept],
        grouped(np.zeros_like(scales), -np.inf)[kept],
    )


class _CompiledTerm:
    """The weights of a term, in the order in which the kernel reads them."""

    def __init__(self, term: Term, planes: int, maximum: bool, grid: Grid | None) -> None:
        self.term = term
        kernel = term.kernel
        blocks = -(-kernel.in_channels // kernel.block)
        parts = zip(*(_block_steps(kernel, n, maximum) for n in range(blocks)), strict=True)
        table, weights, scales, absent = (np.concatenate(part) for part in parts)
        group, block, tap, lane, count = table.T
        ky, kx = np.divmod(tap, term.kernel_size[1])
        first = (count.cumsum() - count) * FILTERS
        steps = [
            np.stack([block + plane * blocks, ky, kx, lane, count, first], -1)
            for plane in range(planes)
        ]
        group = np.tile(group, planes)
        order = group.argsort(kind="stable")
        self.starts = np.searchsorted(
            group[order], np.arange(-(-kernel.out_channels // FILTERS) + 1)
        )
        self.steps = np.concatenate(steps)[order]
        self.weights = weights.ravel()
        scales = np.tile(scales, (planes, 1))[order].ravel()
        self.scales = scales if grid is None else grid.whole(scales)
        self.absent = np.tile(absent, (planes, 1))[order].ravel()


class CompiledLayer:
    """One layer with packed weights.

    Parameters
    ----------
    layer : as quantized
    planes : of the source of each term
    """

    def __init__(self, layer: Layer, planes: Sequence[int]) -> None:
        self.layer = layer
        self.terms = [
            _CompiledTerm(term, count, layer.reduce == "max", layer.grid)
            for term, count in zip(layer.terms, planes, strict=True)
        ]
        start, grid = layer.start, layer.grid
        self.ends = () if grid is None else (float(grid.form.low), float(grid.form.high))
        self.biases = np.zeros(-(-start.size // FILTERS) * FILTERS, start.dtype)
        self.biases[: start.size] = start

    def accumulate(
        self,
        sources: Sequence[Source],
        size: tuple[int, int],
        workers: Workers,
        watch: bool = False,
    ) -> Accumulated:
        """The accumulators of the sources of the terms.

        Right where float32 arithmetic neither flushes nor saturates. With `watch` the peak of
        float32 accumulators is found.
        """
        images = sources[0].codes.shape[2]
        numbers = size[1] * images
        accumulators = np.empty(
            (len(self.biases), size[0], -(-numbers // VECTOR) * VECTOR), self.biases.dtype
        )
        inputs = []
        for codes, fields, exponents in sources:
            with np.errstate(over="ignore"):  # of fields that do not occur
                units = np.ldexp(np.float32(1), np.array(exponents)[:, None] + np.arange(256))
            inputs.append((_innermost(codes), _innermost(fields), units))

        def work(rows: Span, groups: Span) -> list[float]:
            biases, found = self.biases, []
            for packed, (codes, fields, units) in zip(self.terms, inputs, strict=True):
                term = packed.term
                each = accumulate(
                    codes, fields, units, images,
                    term.padding, term.stride, term.dilation, term.kernel_size,
                    packed.starts, packed.steps, packed.weights, packed.scales, packed.absent,
                    self.layer.reduce == "max", biases, accumulators, rows, groups,
                    numbers, self.ends, watch,
                )  # fmt: skip
                found.append(each)
                biases = biases[:0]
            return found

        parts = max(source.codes.numel() for source in sources) // SCRATCH
        found = workers(work, (size[0], len(self.biases) // FILTERS), parts)
        result = _outermost(accumulators[: self.layer.bias.size, :, :numbers], images)
        if not self.ends:
            return Accumulated(result, 0, max(map(max, found)))
        return Accumulated(result, int(sum(map(sum, found))), 0.0)


def encode_blocks(
    spec: BlockFloat, acc: torch.Tensor, workers: Workers
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """``spec.compute`` of (C, N, H, W), each normal in float32 or zero: codes, fields, and how many
    were clipped."""
    channels, images, height, width = acc.shape
    blocks = -(-channels // spec.block)
    accumulators = _innermost(acc)
    codes = np.empty((blocks, spec.block, height, width * images), np.float32)
    fields = np.empty((blocks, height, width * images), np.int32)
    clipped = workers(
        lambda rows, part: requantize(
            accumulators, spec.signed, spec.magnitude_bits, spec.rounding == "truncate",
            codes, fields, rows, part,
        ),
        (height, blocks),
        1,
    )  # fmt: skip
    return _outermost(codes, images), _outermost(fields, images), sum(clipped)
