"""Layers in hardware arithmetic: what the accelerator computes, number for number.

Every layer is one accumulation. A linear layer is a 1x1 convolution, an identity shortcut, a max
pool and an average pool are depthwise convolutions with a constant kernel, and a residual add is a
layer with two terms::

    acc = bias
    for term in terms:
        for block in input blocks (plane by plane):
            for ky, kx in kernel positions (row by row):
                S = sum of weight code * activation code over the block      # exact
                p = round(S * scale * 2**e)
                acc = round(acc + p)                                          # or max(acc, p)

With fixed-point accumulators (``Layer.grid``) bias and products are whole numbers of the grid, and
the sums saturate: see :mod:`.fixed`.

In a max layer a kernel position that falls on padding does not take part. In a sum, a step whose
codes are zero for every filter is left out (:meth:`Layer.steps`): its products are +0, and no
accumulator is ever -0, so that adding them would change no bit. Last, the accumulators are clamped
to the layer's limits, if it has any, and stored.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .bfp import BlockFloat, BlockTensor
from .fixed import Grid
from .floats import FLOAT32
from .vqk import VariableQuantizedKernel

__all__ = ["Layer", "Reduce", "Step", "Term", "block_product", "steps"]

Reduce = Literal["add", "max"]


@dataclass(frozen=True, eq=False)
class Term:
    """One convolution that a layer accumulates.

    Parameters
    ----------
    source : name of the tensor it reads
    kernel : its weights
    stride, dilation : (vertical, horizontal)
    padding : (top, bottom, left, right), zeros; a negative number cuts rows or columns off
    """

    source: str
    kernel: VariableQuantizedKernel
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        if min(self.stride) < 1 or min(self.dilation) < 1:
            raise ValueError(
                f"stride and dilation must be at least 1, not {self.stride!r}, {self.dilation!r}"
            )

    @property
    def kernel_size(self) -> tuple[int, int]:
        return self.kernel.codes.shape[2], self.kernel.codes.shape[3]

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """(Ho, Wo) of an input of (height, width). Raises ``ValueError`` if it is empty."""
        top, bottom, left, right = self.padding
        padded = (height + top + bottom, width + left + right)
        size = tuple(
            (padded[i] - self.dilation[i] * (self.kernel_size[i] - 1) - 1) // self.stride[i] + 1
            for i in (0, 1)
        )
        if min(size) < 1:
            raise ValueError(
                f"a {self.kernel_size} kernel does not fit an input of {(height, width)}"
            )
        return size[0], size[1]


class Step(NamedTuple):
    """The part of a term that one kernel position of one input block contributes."""

    block: int
    """input block, plane-major"""
    ky: int
    kx: int
    filters: slice
    """filters that the step touches"""
    codes: NDArray[np.int8]
    """(filters, B) weight codes"""
    scales: NDArray[np.float32]
    """(filters,)"""


def steps(term: Term, planes: int = 1) -> Iterator[Step]:
    """The steps of a term in the order in which they are accumulated."""
    kernel = term.kernel
    height, width = term.kernel_size
    blocks = -(-kernel.in_channels // kernel.block)
    for block in range(planes * blocks):
        weights = kernel.block_weights(block % blocks)
        for ky in range(height):
            for kx in range(width):
                yield Step(
                    block,
                    ky,
                    kx,
                    weights.filters,
                    weights.codes[:, :, ky, kx],
                    weights.scales[:, ky, kx],
                )


def block_product(
    sums: NDArray[np.float64],
    scales: NDArray[np.float32],
    unit_exponents: NDArray[np.int32],
    grid: Grid | None = None,
) -> NDArray[np.floating]:
    """``round(S * scale * 2**e)`` of integer block sums (any common broadcast shape): to float32,
    or to whole numbers of a grid."""
    exact = sums * np.asarray(scales, np.float64)
    if grid is None:
        return FLOAT32.round(np.ldexp(exact, unit_exponents))
    return grid.form.product(np.ldexp(exact, unit_exponents - grid.exponent))


def _padded(x: NDArray, padding: tuple[int, int, int, int]) -> NDArray:
    """(..., H, W) with zeros around it, or without the rows and columns that are cut off."""
    top, bottom, left, right = padding
    x = x[..., max(-top, 0) : x.shape[-2] - max(-bottom, 0), :]
    x = x[..., max(-left, 0) : x.shape[-1] - max(-right, 0)]
    border = ((max(top, 0), max(bottom, 0)), (max(left, 0), max(right, 0)))
    return np.pad(x, ((0, 0),) * (x.ndim - 2) + border)


def _window(x: NDArray, term: Term, ky: int, kx: int, size: tuple[int, int]) -> NDArray:
    """The pixels of padded (..., H, W) that kernel position (ky, kx) sees: (..., Ho, Wo)."""
    y, x0 = ky * term.dilation[0], kx * term.dilation[1]
    return x[
        ...,
        y : y + (size[0] - 1) * term.stride[0] + 1 : term.stride[0],
        x0 : x0 + (size[1] - 1) * term.stride[1] + 1 : term.stride[1],
    ]


@dataclass(frozen=True, eq=False)
class Layer:
    """One accumulation and what becomes of it.

    Parameters
    ----------
    name : of the layer, and of the tensor it writes
    terms : accumulated one after the other, all of the same output shape
    bias : (Co,) float32, where the accumulators start
    reduce : "add", or "max" (one term)
    output : how the result is stored; None leaves raw float32
    limits : (low, high), float32 numbers that the accumulators are clamped to before they are
        stored, raw results too; a ReLU alone needs none, because an unsigned `output` is one
    macs_per_pixel : multiply-accumulates for one output pixel of all channels, Co * Ci / G * Kh *
        Kw of the network's convolutions and linear layers that this one computes: 0 for an
        identity or a pool. By default every weight of its kernels counts
    grid : of fixed-point accumulators; biases and limits must lie on it. None for float32
    """

    name: str
    terms: tuple[Term, ...]
    bias: NDArray[np.float32]
    reduce: Reduce = "add"
    output: BlockFloat | None = None
    limits: tuple[float, float] | None = None
    macs_per_pixel: int | None = None
    grid: Grid | None = None

    def __post_init__(self) -> None:
        if not self.terms:
            raise ValueError(f"layer {self.name!r} must have at least one term")
        if self.macs_per_pixel is not None and self.macs_per_pixel < 0:
            raise ValueError(
                f"macs_per_pixel of layer {self.name!r} must be at least 0, not "
                f"{self.macs_per_pixel!r}"
            )
        if self.reduce not in ("add", "max"):
            raise ValueError(f"reduce must be 'add' or 'max', not {self.reduce!r}")
        if self.reduce == "max" and len(self.terms) > 1:
            raise ValueError(f"max layer {self.name!r} must have one term, not {len(self.terms)}")
        for term in self.terms:
            if term.kernel.out_channels != self.bias.size:
                raise ValueError(
                    f"layer {self.name!r} has {self.bias.size} biases but a kernel of "
                    f"{term.kernel.out_channels} filters"
                )
        finite = np.isfinite(self.bias).all()
        if not finite or not np.array_equal(FLOAT32.round(self.bias), self.bias):
            raise ValueError(f"biases of layer {self.name!r} must be normal float32 numbers or 0")
        if self.limits is not None:
            ends = np.array(self.limits, np.float64)
            exact = ends.shape == (2,) and np.isfinite(ends).all()
            exact = exact and np.array_equal(FLOAT32.round(ends).astype(np.float64), ends)
            if not exact or ends[0] > ends[1] or np.signbit(ends[ends == 0]).any():
                raise ValueError(
                    f"limits of layer {self.name!r} must be normal float32 numbers or 0, the lower "
                    f"one first, not {self.limits!r}"
                )
        if self.grid is not None:
            for kind, values in (("biases", self.bias), ("limits", self.limits or ())):
                if not np.array_equal(self.grid.constants(values), np.array(values, np.float32)):
                    raise ValueError(
                        f"{kind} of layer {self.name!r} must be whole numbers of its accumulators' "
                        f"grid, 2**{self.grid.exponent}, in their range"
                    )

    def machine_scales(self, scales: NDArray[np.float32]) -> NDArray[np.float32]:
        """Scales as the machine multiplies by them: of fixed point, in units of the grid."""
        return scales if self.grid is None else np.ldexp(scales, -self.grid.exponent)

    def machine_constants(self, values: NDArray[np.float32]) -> NDArray[np.floating]:
        """Biases or limits as the machine takes them: of fixed point, whole numbers."""
        return FLOAT32.round(values) if self.grid is None else self.grid.whole(values)

    def output_size(self, sources: Mapping[str, tuple[int, int]]) -> tuple[int, int]:
        """(Ho, Wo) from the (H, W) of the source tensors; all terms must agree."""
        sizes = {term.output_size(*sources[term.source]) for term in self.terms}
        if len(sizes) > 1:
            raise ValueError(f"terms of layer {self.name!r} differ in size: {sorted(sizes)}")
        return sizes.pop()

    def macs(self, height: int, width: int) -> int:
        """Multiply-accumulates for one image whose result has (height, width) pixels."""
        per_pixel = self.macs_per_pixel
        if per_pixel is None:
            per_pixel = sum(term.kernel.codes.size for term in self.terms)
        return height * width * per_pixel

    @property
    def start(self) -> NDArray[np.floating]:
        """(Co,) where accumulators start: values in float32, or whole numbers of the grid."""
        return self.machine_constants(self.bias)

    def constants(self, values: ArrayLike) -> NDArray[np.float32]:
        """The nearest `values` that biases and limits of this layer can have."""
        return FLOAT32.round(values) if self.grid is None else self.grid.constants(values)

    def steps(self, planes: Mapping[str, int]) -> list[tuple[Term, Step]]:
        """Every step, in the order of accumulation, with the term that it belongs to.

        `planes` are those of the source tensors. Of a sum, steps without any code are left out,
        but never all of them: accumulators start with a step.
        """
        every = [(term, step) for term in self.terms for step in steps(term, planes[term.source])]
        if self.reduce == "max":
            return every
        return [(term, step) for term, step in every if step.codes.any()] or every[:1]

    def accumulate(self, sources: Mapping[str, BlockTensor]) -> NDArray[np.floating]:
        """The accumulators (N, Co, Ho, Wo) after the last step: values in float32, or whole numbers
        of the grid."""
        size = self.output_size({t.source: sources[t.source].shape[2:] for t in self.terms})
        images = sources[self.terms[0].source].shape[0]
        grid = self.grid
        add = FLOAT32.add if grid is None else grid.form.add
        acc = np.tile(self.start[:, None, None], (images, 1, *size))
        self._check(sources)
        padded: dict[Term, tuple[NDArray, NDArray, NDArray]] = {}
        for term, step in self.steps({name: x.planes for name, x in sources.items()}):
            if term not in padded:
                x = sources[term.source]
                padded[term] = (
                    _padded(x.codes.astype(np.float64), term.padding),
                    _padded(x.unit_exponents, term.padding),
                    _padded(np.ones(x.shape[2:], bool), term.padding),
                )
            codes, units, inside = padded[term]
            lanes = _window(codes[:, step.block], term, step.ky, step.kx, size)
            unit = _window(units[:, step.block], term, step.ky, step.kx, size)
            sums = np.einsum("nlhw,ol->nohw", lanes, step.codes.astype(np.float64), optimize=True)
            product = block_product(sums, step.scales[:, None, None], unit[:, None], grid)
            target = acc[:, step.filters]
            if self.reduce == "add":
                acc[:, step.filters] = add(target, product)
            else:
                valid = _window(inside, term, step.ky, step.kx, size)
                largest = np.maximum(target, product)
                if grid is not None:
                    largest = grid.form.saturate(largest)
                acc[:, step.filters] = np.where(valid, largest, target)
        return acc

    def _check(self, sources: Mapping[str, BlockTensor]) -> None:
        for term in self.terms:
            x = sources[term.source]
            if x.channels != term.kernel.in_channels or x.block != term.kernel.block:
                raise ValueError(
                    f"layer {self.name!r} expects {term.kernel.in_channels} channels in blocks of "
                    f"{term.kernel.block}, but {term.source!r} has {x.channels} in {x.block}"
                )
            if self.reduce == "max" and x.planes > 1:
                raise ValueError(
                    f"layer {self.name!r} takes the maximum of {term.source!r}, whose digit planes "
                    f"have no maximum of their own: store it first"
                )

    def finish(self, acc: NDArray[np.floating]) -> BlockTensor | NDArray[np.float32]:
        """What becomes of the accumulators (N, Co, Ho, Wo): clamped, and stored."""
        if self.limits is not None:
            acc = np.clip(acc, *self.machine_constants(np.array(self.limits, np.float32)))
        if self.output is not None:
            return self.output.compute(acc if self.grid is None else self.grid.values(acc))
        return acc.astype(np.float32) if self.grid is None else self.grid.raw(acc)

    def compute(self, sources: Mapping[str, BlockTensor]) -> BlockTensor | NDArray[np.float32]:
        """The tensor that the layer writes."""
        return self.finish(self.accumulate(sources))
