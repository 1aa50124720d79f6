"""Layers of the hardware mode on the compiled kernel: packed weights, and threads.

Tensors are torch's, (blocks, B, N, H, W) and (C, N, H, W), with the images innermost in memory.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from ..golden.bfp import BlockFloat
from ..golden.floats import FLOAT32
from ..golden.layers import Layer, Term
from .hardware_kernels import FILTERS, VECTOR, accumulate, requantize

__all__ = ["CompiledLayer", "Source", "Workers", "block_float", "workers"]

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
    return list(zip(ends, ends[1:], strict=False))


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


class _CompiledTerm:
    """The weights of a term in the order in which the kernel reads them."""

    def __init__(self, term: Term, planes: int, maximum: bool) -> None:
        self.term = term
        kernel = term.kernel
        taps = term.kernel_size[0] * term.kernel_size[1]
        blocks = -(-kernel.in_channels // kernel.block)
        ky, kx = np.divmod(np.arange(taps), term.kernel_size[1])
        tables, owners, weights, scales, absent = [], [], [], [], []
        end = 0
        for block in range(blocks):
            filters, block_codes, block_scales = kernel.block_weights(block)
            groups = range(filters.start // FILTERS, -(-filters.stop // FILTERS))
            place = slice(filters.start - groups.start * FILTERS, filters.stop - groups.start * FILTERS)
            codes = np.zeros((len(groups) * FILTERS, taps, kernel.block), np.float32)
            codes[place] = block_codes.reshape(-1, kernel.block, taps).swapaxes(1, 2)
            codes = codes.reshape(-1, FILTERS, taps, kernel.block).transpose(0, 2, 3, 1)
            factors = np.zeros((len(groups) * FILTERS, taps), np.float32)
            factors[place] = block_scales.reshape(-1, taps)
            missing = np.full(factors.shape, -np.inf, np.float32)
            missing[place] = 0
            # Only lanes between the first and the last that any of the filters has a code for.
            filled = codes.any(3)  # (groups, taps, B)
            used = np.logical_or.accumulate(filled, 2)
            used &= np.logical_or.accumulate(filled[..., ::-1], 2)[..., ::-1]
            count = used.sum(2)
            first = np.where(count > 0, filled.argmax(2), 0)
            begin = end + (count.cumsum() - count.ravel()).reshape(count.shape) * FILTERS
            end += int(count.sum()) * FILTERS
            weights.append(codes[used].ravel())
            steps = np.broadcast_arrays(block, ky, kx, first, count, begin)
            kept = (count > 0) | maximum
            tables.append(np.stack(steps, -1)[kept])
            owners.append(np.broadcast_to(np.array(groups)[:, None], count.shape)[kept])
            for parts, numbers in ((scales, factors), (absent, missing)):
                parts.append(numbers.reshape(-1, FILTERS, taps).swapaxes(1, 2)[kept])
        self.weights = np.concatenate(weights)
        table = np.concatenate(tables * planes)
        table[:, 0] += np.repeat(np.arange(planes) * blocks, len(table) // planes)
        owner = np.concatenate(owners * planes)
        order = owner.argsort(kind="stable")
        self.steps = np.ascontiguousarray(table[order], np.int64)
        self.scales = np.concatenate(scales * planes)[order].ravel()
        self.absent = np.concatenate(absent * planes)[order].ravel()
        groups = -(-kernel.out_channels // FILTERS)
        self.starts = np.searchsorted(owner[order], np.arange(groups + 1))


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
            _CompiledTerm(term, count, layer.reduce == "max")
            for term, count in zip(layer.terms, planes, strict=True)
        ]
        self.biases = np.zeros(-(-layer.bias.size // FILTERS) * FILTERS, np.float32)
        self.biases[: layer.bias.size] = FLOAT32.round(layer.bias)

    def accumulate(
        self, sources: Sequence[Source], size: tuple[int, int], workers: Workers
    ) -> torch.Tensor:
        """The accumulators (Co, N, Ho, Wo) float32 of the sources of the terms.

        Right where float32 arithmetic neither flushes nor saturates.
        """
        images = sources[0].codes.shape[2]
        numbers = size[1] * images
        accumulators = np.empty(
            (len(self.biases), size[0], -(-numbers // VECTOR) * VECTOR), np.float32
        )
        inputs = []
        for codes, fields, exponents in sources:
            units = np.ldexp(1.0, np.array(exponents)[:, None] + np.arange(256))
            inputs.append((_innermost(codes), _innermost(fields), units.astype(np.float32)))

        def work(rows: Span, groups: Span) -> None:
            biases = self.biases
            for packed, (codes, fields, units) in zip(self.terms, inputs, strict=True):
                term = packed.term
                accumulate(
                    codes, fields, units, images,
                    term.padding, term.stride, term.dilation, term.kernel_size,
                    packed.starts, packed.steps, packed.weights, packed.scales, packed.absent,
                    self.layer.reduce == "max", biases, accumulators, rows, groups,
                )  # fmt: skip
                biases = biases[:0]

        parts = max(source.codes.numel() for source in sources) // SCRATCH
        workers(work, (size[0], len(self.biases) // FILTERS), parts)
        return _outermost(accumulators[: self.layer.bias.size, :, :numbers], images)


def block_float(
    spec: BlockFloat, acc: torch.Tensor, workers: Workers
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """``spec.compute`` of (C, N, H, W) float32: codes, fields, and how many were clipped."""
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
