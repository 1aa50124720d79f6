"""Weights: the variable quantized kernel (VQK) and its scales (KDS).

A weight block is the part of one filter, at one kernel position, that meets one activation block:
B consecutive input channels, cut at group boundaries. It holds integers of b bits and one scale.
(DSConv, arXiv 1901.01928 v1, section 3.)
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from .floats import BF16, ScaleFormat

__all__ = [
    "BlockSlice",
    "BlockWeights",
    "Recipe",
    "VariableQuantizedKernel",
    "pack",
    "unpack",
    "weight_blocks",
]

Recipe = Literal["R", "P", "O"]


class BlockSlice(NamedTuple):
    """Where a group's weights meet one activation block."""

    block: int
    """index of the activation block"""
    lane: int
    """first lane of that block"""
    channel: int
    """first input channel within the group"""
    size: int
    """number of channels"""


class BlockWeights(NamedTuple):
    """The weights that one activation block meets; lanes of other groups are zero."""

    filters: slice
    """the filters concerned"""
    codes: NDArray[np.int8]
    """(filters, B, Kh, Kw)"""
    scales: NDArray[np.float32]
    """(filters, Kh, Kw)"""


def weight_blocks(group_channels: int, group: int, block: int) -> tuple[BlockSlice, ...]:
    """The weight blocks of a filter in `group`, whose depth is `group_channels`."""
    first, last = group * group_channels, (group + 1) * group_channels
    slices, channel = [], first
    while channel < last:
        end = min(last, (channel // block + 1) * block)
        lane = channel % block
        slices.append(BlockSlice(channel // block, lane, channel - first, end - channel))
        channel = end
    return tuple(slices)


def _check(shape: tuple[int, ...], weight_bits: int, block: int, groups: int) -> None:
    if weight_bits not in range(2, 9):
        raise ValueError(f"weight_bits must be 2 to 8, not {weight_bits!r}")
    if block < 1:
        raise ValueError(f"block must be at least 1, not {block!r}")
    if len(shape) != 4 or 0 in shape:
        raise ValueError(f"a kernel must be (Co, Ci/groups, Kh, Kw), none 0, not {shape}")
    if groups < 1 or shape[0] % groups:
        raise ValueError(f"groups must divide the {shape[0]} filters, not {groups!r}")


def _divide(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(a, b, out=np.zeros(np.broadcast_shapes(a.shape, b.shape)), where=b != 0)


def _codes(weights: NDArray, scale: NDArray, bits: int) -> NDArray[np.int8]:
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    return np.clip(np.rint(weights * scale), low, high).astype(np.int8)


def _l2(weights: NDArray, codes: NDArray[np.int8]) -> NDArray[np.float64]:
    """Scale that minimises the squared error of each block: sum(w q) / sum(q q) (v1, eq. 4)."""
    q = codes.astype(np.float64)
    return _divide((weights * q).sum(1), (q * q).sum(1))


def _encode_block(
    weights: NDArray[np.float64], bits: int, recipe: Recipe, form: ScaleFormat
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes (Co, n, Kh, Kw) and scales (Co, Kh, Kw) of one block of every filter."""
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    largest, smallest = weights.max(1), weights.min(1)
    if not form.signed:
        # A power of two is too coarse to be corrected after the codes are chosen: choose it first.
        # Beyond the last step nothing is clamped any more, and the grid only gets coarser. Below
        # the first one the clamped extreme alone costs more than all that the finer grid can gain.
        extreme = np.maximum(largest, -smallest)
        base = np.floor(np.log2(np.where(extreme == 0, 1.0, extreme))).astype(np.int64) - bits + 1
        best_error = np.full(extreme.shape, np.inf)
        best_codes = np.zeros(weights.shape, np.int8)
        best_scale = np.zeros(extreme.shape)
        first = min(-1, 2 * bits - 2 - weights.shape[1].bit_length())
        for step in range(first, 3):
            scale = form.round(np.where(extreme == 0, 0.0, np.ldexp(1.0, base + step)))
            scale = scale.astype(np.float64)
            codes = _codes(weights, _divide(np.ones_like(scale), scale)[:, None], bits)
            error = ((weights - codes * scale[:, None]) ** 2).sum(1)
            better = error < best_error
            best_error = np.where(better, error, best_error)
            best_codes = np.where(better[:, None], codes, best_codes)
            best_scale = np.where(better, scale, best_scale)
        return best_codes, best_scale.astype(np.float32)
    if recipe == "R":
        extreme = np.where(np.abs(smallest) >= np.abs(largest), smallest, largest)
        factor = _divide(np.full_like(extreme, low), extreme)
    elif recipe == "O":
        up = np.where(largest > 0, _divide(np.full_like(largest, high), largest), np.inf)
        down = np.where(smallest < 0, _divide(np.full_like(smallest, low), smallest), np.inf)
        factor = np.minimum(up, down)
        factor = np.where(np.isfinite(factor), factor, 0.0)
    else:
        extreme = np.maximum(largest, -smallest)
        factor = _divide(np.full_like(extreme, high), extreme)
    codes = _codes(weights, factor[:, None], bits)
    return codes, form.round(_l2(weights, codes))


@dataclass(frozen=True, eq=False)
class VariableQuantizedKernel:
    """A convolution kernel as integer codes and one scale per weight block.

    Any code of the range is valid, and any scale that the format holds; :meth:`quantize` is one way
    to choose them.

    Parameters
    ----------
    codes : (Co, Ci / groups, Kh, Kw) int8, each -2^(b-1) to 2^(b-1) - 1
    scales : (Co, blocks, Kh, Kw) float32; ``blocks`` is the largest number of weight blocks of any
        group, and entries past a group's own are 0
    weight_bits : b, 2 to 8
    block : B, channels of an activation block
    groups : groups of the convolution
    scale_format : how the scales are stored
    """

    codes: NDArray[np.int8]
    scales: NDArray[np.float32]
    weight_bits: int
    block: int
    groups: int = 1
    scale_format: ScaleFormat = BF16

    def __post_init__(self) -> None:
        _check(self.codes.shape, self.weight_bits, self.block, self.groups)
        filters, depth, *taps = self.codes.shape
        low, high = -(1 << (self.weight_bits - 1)), (1 << (self.weight_bits - 1)) - 1
        if self.codes.min() < low or self.codes.max() > high:
            raise ValueError(f"codes must lie in {low} to {high}")
        blocks = max(len(weight_blocks(depth, g, self.block)) for g in range(self.groups))
        if self.scales.shape != (filters, blocks, *taps):
            raise ValueError(f"scales must be {(filters, blocks, *taps)}, not {self.scales.shape}")
        self.scale_format.encode(self.scales)

    @property
    def in_channels(self) -> int:
        return self.codes.shape[1] * self.groups

    @property
    def out_channels(self) -> int:
        return self.codes.shape[0]

    def group_filters(self, group: int) -> slice:
        """The filters of a group."""
        size = self.out_channels // self.groups
        return slice(group * size, (group + 1) * size)

    def group_blocks(self, group: int) -> tuple[BlockSlice, ...]:
        """The weight blocks of a group's filters."""
        return weight_blocks(self.codes.shape[1], group, self.block)

    @classmethod
    def quantize(
        cls,
        weight: NDArray,
        *,
        weight_bits: int,
        block: int,
        groups: int = 1,
        recipe: Recipe = "R",
        scale_format: ScaleFormat = BF16,
    ) -> "VariableQuantizedKernel":
        """Quantize a float kernel (Co, Ci / groups, Kh, Kw).

        Recipe R maps the weight of largest magnitude of a block, with its sign, to -2^(b-1) and
        clamps; P maps the largest magnitude to 2^(b-1) - 1; O takes the largest positive scale
        under which both ends fit. The stored scale is then the L2-optimal one. With an unsigned
        scale format the best power of two is searched instead, whatever the recipe. An all-zero
        block becomes zero codes and scale 0.

        Raises ``ValueError`` if a weight is not finite.
        """
        weight = np.asarray(weight, np.float64)
        _check(weight.shape, weight_bits, block, groups)
        if recipe not in get_args(Recipe):
            raise ValueError(f"recipe must be 'R', 'P' or 'O', not {recipe!r}")
        if not np.isfinite(weight).all():
            raise ValueError("a non-finite weight cannot be quantized")
        filters, depth, *taps = weight.shape
        blocks = max(len(weight_blocks(depth, g, block)) for g in range(groups))
        codes = np.zeros(weight.shape, np.int8)
        scales = np.zeros((filters, blocks, *taps), np.float32)
        size = filters // groups
        for group in range(groups):
            rows = slice(group * size, (group + 1) * size)
            for index, part in enumerate(weight_blocks(depth, group, block)):
                columns = slice(part.channel, part.channel + part.size)
                codes[rows, columns], scales[rows, index] = _encode_block(
                    weight[rows, columns], weight_bits, recipe, scale_format
                )
        return cls(codes, scales, weight_bits, block, groups, scale_format)

    @classmethod
    def depthwise(
        cls,
        channels: int,
        kernel_size: tuple[int, int],
        code: int,
        scale: float,
        *,
        weight_bits: int,
        block: int,
        scale_format: ScaleFormat = BF16,
    ) -> "VariableQuantizedKernel":
        """The constant depthwise kernel ``code * scale``: identity, pooling."""
        return cls(
            np.full((channels, 1, *kernel_size), code, np.int8),
            np.full((channels, 1, *kernel_size), scale, np.float32),
            weight_bits,
            block,
            channels,
            scale_format,
        )

    def block_weights(self, block: int) -> BlockWeights:
        """What meets activation block `block`, for the filters of the groups that touch it."""
        depth = self.codes.shape[1]
        size = self.out_channels // self.groups
        last = min((block + 1) * self.block, self.in_channels) - 1
        first_group, last_group = block * self.block // depth, last // depth
        filters = slice(first_group * size, (last_group + 1) * size)
        taps = self.codes.shape[2:]
        codes = np.zeros((filters.stop - filters.start, self.block, *taps), np.int8)
        scales = np.zeros((filters.stop - filters.start, *taps), np.float32)
        for group in range(first_group, last_group + 1):
            rows = self.group_filters(group)
            target = slice(rows.start - filters.start, rows.stop - filters.start)
            for index, part in enumerate(self.group_blocks(group)):
                if part.block == block:
                    columns = slice(part.channel, part.channel + part.size)
                    codes[target, part.lane : part.lane + part.size] = self.codes[rows, columns]
                    scales[target] = self.scales[rows, index]
        return BlockWeights(filters, codes, scales)

    def reconstruct(self) -> NDArray[np.float64]:
        """(Co, Ci / groups, Kh, Kw): ``code * scale``."""
        weight = self.codes.astype(np.float64)
        for group in range(self.groups):
            rows = self.group_filters(group)
            for index, part in enumerate(self.group_blocks(group)):
                columns = slice(part.channel, part.channel + part.size)
                weight[rows, columns] *= self.scales[rows, index, None]
        return weight


def pack(codes: NDArray[np.int8], bits: int) -> NDArray[np.uint8]:
    """Codes as a little-endian string of `bits`-bit two's complement fields."""
    fields = codes.reshape(-1).astype(np.uint8)
    string = np.unpackbits(fields[:, None], axis=1, count=bits, bitorder="little")
    return np.packbits(string.reshape(-1), bitorder="little")


def unpack(packed: NDArray[np.uint8], bits: int, shape: tuple[int, ...]) -> NDArray[np.int8]:
    """Inverse of :func:`pack`. Raises ``ValueError`` if the length does not fit `shape`."""
    count = int(np.prod(shape))
    if packed.shape != (-(-count * bits // 8),):
        raise ValueError(f"{count} codes of {bits} bits do not fill {packed.size} bytes")
    string = np.unpackbits(packed, count=count * bits, bitorder="little").reshape(count, bits)
    fields = np.packbits(string, axis=1, bitorder="little")[:, 0].astype(np.int16)
    sign = 1 << (bits - 1)
    return ((fields ^ sign) - sign).astype(np.int8).reshape(shape)
