"""Weights: the variable quantized kernel (VQK) and its scales (KDS).

A weight block is the part of one filter, at one kernel position, that meets one activation block:
B consecutive input channels, cut at group boundaries. It holds integers of b bits and one scale.
(DSConv, arXiv 1901.01928 v1, section 3.)
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from .floats import BF16, ScaleFormat

__all__ = [
    "BlockMap",
    "BlockSlice",
    "BlockWeights",
    "Recipe",
    "VariableQuantizedKernel",
    "block_map",
    "divide",
    "l2_scale",
    "nearest_codes",
    "pack",
    "power_of_two_codes",
    "recipe_codes",
    "unpack",
    "weight_blocks",
    "weight_lanes",
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


class BlockMap(NamedTuple):
    """Which channel of a group is in which of its weight blocks, as indices for whole arrays.

    A channel has a lane in its block, counted from the block's first channel; L is the number of
    channels of the largest block.
    """

    number: NDArray[np.int64]
    """(groups, Ci / groups): of every channel, the block"""
    slot: NDArray[np.int64]
    """(groups, Ci / groups): of every channel, ``block * L + lane``"""
    channel: NDArray[np.int64]
    """(groups, blocks, L): of every lane, the channel; Ci / groups where there is none"""

    @property
    def blocks(self) -> int:
        """The largest number of blocks of any group."""
        return self.channel.shape[1]

    def filled(self, filters: int) -> NDArray[np.bool_]:
        """(L, Co, blocks, 1, 1): which :meth:`lanes` have a channel."""
        lanes = np.moveaxis(self.channel < self.number.shape[1], 2, 0)
        return lanes.repeat(filters // len(self.channel), 1)[..., None, None]

    def lanes(self, weight: NDArray) -> NDArray:
        """(Co, Ci / groups, Kh, Kw) to (L, Co, blocks, Kh, Kw), zeros where there is no channel."""
        filters, _, *taps = weight.shape
        padded = np.concatenate([weight, np.zeros((filters, 1, *taps), weight.dtype)], 1)
        found = _along(padded, self.channel.reshape(len(self.channel), -1))
        found = found.reshape(filters, self.blocks, -1, *taps)
        return np.ascontiguousarray(np.moveaxis(found, 2, 0))

    def kernel(self, lanes: NDArray) -> NDArray:
        """Inverse of :meth:`lanes`."""
        moved = np.moveaxis(lanes, 0, 2)  # (Co, blocks, L, Kh, Kw)
        return _along(moved.reshape(len(moved), -1, *moved.shape[3:]), self.slot)

    def expand(self, scales: NDArray) -> NDArray:
        """(Co, blocks, Kh, Kw) to (Co, Ci / groups, Kh, Kw): every channel its block's value."""
        return _along(scales, self.number)


def _along(values: NDArray, index: NDArray[np.int64]) -> NDArray:
    """(Co, n, Kh, Kw) to (Co, m, Kh, Kw): of the filters of every group the entries `index`."""
    grouped = values.reshape(len(index), -1, *values.shape[1:])
    taken = np.take_along_axis(grouped, index[:, None, :, None, None], 2)
    return taken.reshape(len(values), -1, *values.shape[2:])


@lru_cache(maxsize=256)
def block_map(group_channels: int, groups: int, block: int) -> BlockMap:
    """The weight blocks (:func:`weight_blocks`) of the filters of all groups."""
    first = np.arange(groups)[:, None] * group_channels
    channels = np.arange(group_channels)
    number = (first + channels) // block - first // block
    blocks = int(number.max()) + 1
    starts = (first // block + np.arange(blocks + 1)) * block - first
    starts = np.clip(starts, 0, group_channels)
    sizes = np.diff(starts)
    lanes = np.arange(sizes.max())
    channel = np.where(lanes < sizes[..., None], starts[:, :-1, None] + lanes, group_channels)
    slot = number * lanes.size + channels - np.take_along_axis(starts, number, 1)
    for index in (number, slot, channel):
        index.flags.writeable = False
    return BlockMap(number, slot, channel)


def _check(shape: tuple[int, ...], weight_bits: int, block: int, groups: int) -> None:
    if weight_bits not in range(2, 9):
        raise ValueError(f"weight_bits must be 2 to 8, not {weight_bits!r}")
    if block < 1:
        raise ValueError(f"block must be at least 1, not {block!r}")
    if len(shape) != 4 or 0 in shape:
        raise ValueError(f"a kernel must be (Co, Ci/groups, Kh, Kw), none 0, not {shape}")
    if groups < 1 or shape[0] % groups:
        raise ValueError(f"groups must divide the {shape[0]} filters, not {groups!r}")


def weight_lanes(
    weight: NDArray, weight_bits: int, block: int, groups: int
) -> tuple[BlockMap, NDArray[np.float64]]:
    """The blocks of a float kernel that shall be quantized, and its weights in them.

    Raises ``ValueError`` if a parameter is out of its range or a weight is not finite.
    """
    weight = np.asarray(weight, np.float64)
    _check(weight.shape, weight_bits, block, groups)
    if not np.isfinite(weight).all():
        raise ValueError("a non-finite weight cannot be quantized")
    blocks = block_map(weight.shape[1], groups, block)
    return blocks, blocks.lanes(weight)


# What follows works on lanes (L, ...) of any number of blocks at once.


def divide(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """``a / b``, and 0 where `b` is 0."""
    return np.divide(a, b, out=np.zeros(np.broadcast_shapes(a.shape, b.shape)), where=b != 0)


def nearest_codes(
    lanes: NDArray[np.float64], factor: NDArray[np.float64], bits: int
) -> NDArray[np.int8]:
    """``lanes * factor`` rounded to nearest even and clamped to the range of `bits`."""
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    scaled = lanes * factor
    np.rint(scaled, out=scaled)
    return np.clip(scaled, low, high, out=scaled).astype(np.int8)


def l2_scale(lanes: NDArray[np.float64], codes: NDArray[np.int8]) -> NDArray[np.float64]:
    """Scale that minimises the squared error of each block: sum(w q) / sum(q q) (v1, eq. 4)."""
    q = codes.astype(np.float64)
    return divide((lanes * q).sum(0), (q * q).sum(0))


def recipe_codes(lanes: NDArray[np.float64], bits: int, recipe: Recipe) -> NDArray[np.int8]:
    """Codes by a recipe; see :meth:`VariableQuantizedKernel.quantize`."""
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    largest, smallest = lanes.max(0), lanes.min(0)
    if recipe == "R":
        extreme = np.where(np.abs(smallest) >= np.abs(largest), smallest, largest)
        factor = divide(np.full_like(extreme, low), extreme)
    elif recipe == "O":
        up = np.where(largest > 0, divide(np.full_like(largest, high), largest), np.inf)
        down = np.where(smallest < 0, divide(np.full_like(smallest, low), smallest), np.inf)
        factor = np.minimum(up, down)
        factor = np.where(np.isfinite(factor), factor, 0.0)
    else:
        extreme = np.maximum(largest, -smallest)
        factor = divide(np.full_like(extreme, high), extreme)
    return nearest_codes(lanes, factor, bits)


def power_of_two_codes(
    lanes: NDArray[np.float64], bits: int, form: ScaleFormat
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """The codes and the power of two that together reconstruct each block best.

    A power of two is too coarse to be corrected after the codes are chosen: it is chosen first.
    """
    extreme = np.abs(lanes).max(0)
    base = np.floor(np.log2(np.where(extreme == 0, 1.0, extreme))).astype(np.int64) - bits + 1
    best_error = np.full(extreme.shape, np.inf)
    best_codes = np.zeros(lanes.shape, np.int8)
    best_scale = np.zeros(extreme.shape)
    # Beyond the last step nothing is clamped any more, and the grid only gets coarser. Below the
    # first one the clamped extreme alone costs more than all that the finer grid can gain.
    for step in range(min(-1, 2 * bits - 2 - len(lanes).bit_length()), 3):
        scale = form.round(np.where(extreme == 0, 0.0, np.ldexp(1.0, base + step)))
        scale = scale.astype(np.float64)
        codes = nearest_codes(lanes, divide(np.ones_like(scale), scale), bits)
        error = ((lanes - codes * scale) ** 2).sum(0)
        better = error < best_error
        best_error = np.where(better, error, best_error)
        best_codes = np.where(better, codes, best_codes)
        best_scale = np.where(better, scale, best_scale)
    return best_codes, best_scale.astype(np.float32)


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
        filters, _, *taps = self.codes.shape
        low, high = -(1 << (self.weight_bits - 1)), (1 << (self.weight_bits - 1)) - 1
        if self.codes.min() < low or self.codes.max() > high:
            raise ValueError(f"codes must lie in {low} to {high}")
        blocks = self.blocks.blocks
        if self.scales.shape != (filters, blocks, *taps):
            raise ValueError(f"scales must be {(filters, blocks, *taps)}, not {self.scales.shape}")
        self.scale_format.encode(self.scales)

    @property
    def in_channels(self) -> int:
        return self.codes.shape[1] * self.groups

    @property
    def out_channels(self) -> int:
        return self.codes.shape[0]

    @property
    def blocks(self) -> BlockMap:
        """Where the channels are in the blocks."""
        return block_map(self.codes.shape[1], self.groups, self.block)

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
        blocks, lanes = weight_lanes(weight, weight_bits, block, groups)
        if recipe not in get_args(Recipe):
            raise ValueError(f"recipe must be 'R', 'P' or 'O', not {recipe!r}")
        if scale_format.signed:
            codes = recipe_codes(lanes, weight_bits, recipe)
            scales = scale_format.round(l2_scale(lanes, codes))
        else:
            codes, scales = power_of_two_codes(lanes, weight_bits, scale_format)
        codes = blocks.kernel(codes)
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
        return self.codes * self.blocks.expand(self.scales).astype(np.float64)


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
