"""Comparisons bit for bit: tensors, what two runs of a program wrote, a program and its layers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .bfp import BlockTensor
from .machine import Written
from .network import Tensor
from .passes import BlockRows
from .program import Program

__all__ = [
    "Mismatch",
    "count_mismatches",
    "difference",
    "different_tensors",
    "first_difference",
    "first_mismatch",
    "same_numbers",
]


def _bits(x: NDArray) -> NDArray:
    """Floats as bit patterns, since -0 is not +0; integers as they are."""
    return x.view(np.uint32) if x.dtype == np.float32 else x


def _pairs(
    expected: Tensor | Written, found: Tensor | Written
) -> list[tuple[str, NDArray, NDArray]]:
    """What to compare with what: values, or exponents (..., 1) and codes."""
    if isinstance(expected, np.ndarray) and isinstance(found, np.ndarray):
        return [("value", expected, found)]
    if isinstance(expected, np.ndarray) or isinstance(found, np.ndarray):
        raise ValueError("raw numbers cannot be compared with blocks")
    return [
        ("exponent", expected.exponents[..., None], found.exponents[..., None]),
        ("code", expected.codes, found.codes),
    ]


def same_numbers(a: Tensor | Written, b: Tensor | Written) -> bool:
    """Whether both hold the same numbers, bit for bit; of tensors also the same layout."""
    if isinstance(a, np.ndarray) != isinstance(b, np.ndarray):
        return False
    if isinstance(a, BlockTensor) and isinstance(b, BlockTensor):
        layouts = [(x.signed, x.bits, x.channels, x.planes) for x in (a, b)]
        if layouts[0] != layouts[1]:
            return False
    return all(np.array_equal(_bits(x), _bits(y)) for _, x, y in _pairs(a, b))


def different_tensors(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that are not in both, or not the same: see :func:`same_numbers`."""
    return [
        name
        for name in {**a, **b}
        if name not in a or name not in b or not same_numbers(a[name], b[name])
    ]


def count_mismatches(
    expected: Sequence[Tensor | Written], found: Sequence[Tensor | Written]
) -> tuple[int, int]:
    """Numbers compared, and how many of them differ."""
    pairs = [pair for a, b in zip(expected, found, strict=True) for pair in _pairs(a, b)]
    compared = sum(x.size for _, x, _ in pairs)
    return compared, sum(int((_bits(x) != _bits(y)).sum()) for _, x, y in pairs)


def first_difference(
    expected: Sequence[Tensor | Written], found: Sequence[Tensor | Written]
) -> str | None:
    """The first number in which the results of some images differ, in words; None without one."""
    for image, (a, b) in enumerate(zip(expected, found, strict=True)):
        for what, x, y in _pairs(a, b):
            differs = np.argwhere(_bits(x) != _bits(y))
            if len(differs):
                at = tuple(differs[0].tolist())
                return f"image {image}, {what} {at} must be {x[at].item()}, not {y[at].item()}"
    return None


@dataclass(frozen=True)
class Mismatch:
    """The first number at which two traces differ."""

    drain: int
    """which DRAIN of the program"""
    image: int
    layer: str
    row: int
    column: int
    channel: int
    what: str
    """"code", "exponent" or "value" """
    expected: float
    found: float

    def __str__(self) -> str:
        return (
            f"image {self.image}, layer {self.layer!r}, pixel ({self.row}, {self.column}), channel "
            f"{self.channel}: {self.what} must be {self.expected}, not {self.found}"
        )


def first_mismatch(
    program: Program, expected: Sequence[Written], found: Sequence[Written]
) -> Mismatch | None:
    """Where two traces of a program differ first: in program order, then image by image, word by
    word, and in a word the exponent before the codes. A trace may end early."""
    both = zip(program.drains, expected, found, strict=False)
    for index, ((drain, where), a, b) in enumerate(both):
        pairs = _pairs(a, b)
        differing = []
        for order, (_, x, y) in enumerate(pairs):
            differs = np.argwhere(_bits(x) != _bits(y))
            if len(differs):
                image, pixel, lane = differs[0].tolist()
                differing.append((image, pixel, order, lane))
        if differing:
            image, pixel, order, lane = min(differing)
            what, x, y = pairs[order]
            return Mismatch(
                index,
                image,
                where.layer,
                where.row + pixel // drain.pixels,
                where.column + pixel % drain.pixels,
                where.channel + lane,
                what,
                x[image, pixel, lane].item(),
                y[image, pixel, lane].item(),
            )
    return None


def difference(
    program: Program, trace: Sequence[Written], expected: Mapping[str, Tensor]
) -> str | None:
    """Where a trace is not what the layers compute, bit for bit; None if it is, and whole.

    Parameters
    ----------
    trace : what every DRAIN of `program` wrote, of N images
    expected : the tensors of the layers for these images
    """
    rows = program.config.rows
    covered = {name: np.zeros(shape, bool) for name, shape in program.shapes.items()}
    for (drain, place), found in zip(program.drains, trace, strict=True):
        right = expected[place.layer]
        pixels = np.arange(drain.rows * drain.pixels)
        y, x = place.row + pixels // drain.pixels, place.column + pixels % drain.pixels
        same, channels = False, rows
        if isinstance(right, BlockTensor) and isinstance(found, BlockRows):
            block, within = divmod(place.channel, rows)
            codes = right.codes[:, block][:, :, y, x].transpose(0, 2, 1)
            exponents = right.exponents[:, block][:, y, x]
            same = not within and same_numbers(BlockRows(codes, exponents), found)
        elif isinstance(right, np.ndarray) and isinstance(found, np.ndarray):
            some = right[:, place.channel : place.channel + program.config.cols][:, :, y, x]
            some = some.transpose(0, 2, 1)
            # Exact numbers of fixed point are rounded where they leave the accelerator.
            rounded = found.astype(np.float32)[:, :, : some.shape[2]]
            equal = _bits(rounded) == _bits(some)
            # Rows of a maximum that is taken block by block hold one block and zeros.
            same = bool(equal[:, :, :rows].all())
            channels = np.flatnonzero(equal.all((0, 1)))[-1] + 1 if same else 0
        if not same:
            return f"{place}: other numbers"
        covered[place.layer][place.channel : place.channel + channels, y, x] = True
    parts = [name for name, every in covered.items() if not every.all()]
    return f"layer {parts[0]!r}: not all of it is written" if parts else None
