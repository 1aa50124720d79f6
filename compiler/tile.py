"""A layer cut into column tiles, and the stationary tiles that each of them takes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..golden.array import TileFormat
from ..golden.config import HardwareConfig
from ..golden.layers import Layer, Term
from ..golden.vqk import BlockWeights
from .tensors import Stored, Tensors

__all__ = [
    "MOST_TURNS",
    "ColumnTile",
    "Part",
    "block_at_a_time",
    "column_tiles",
    "cut_filters",
    "pack_tiles",
]

MOST_TURNS = (1 << 12) - 1
"""of a loop of a PASS or a LOAD"""


class Part(NamedTuple):
    """Steps of one term that one PASS can take: blocks x kernel rows x kernel columns."""

    term: int
    block: int
    blocks: int
    ky: int
    kys: int
    kx: int
    kxs: int
    repeated: bool
    """all of them take one and the same tile"""

    @property
    def positions(self) -> int:
        return self.blocks * self.kys * self.kxs

    @property
    def tiles(self) -> int:
        return 1 if self.repeated else self.positions


@dataclass(frozen=True, eq=False)
class ColumnTile:
    """The filters of one column tile and the steps that reach it.

    Parameters
    ----------
    filters : of the layer
    parts : in the order of accumulation
    data : the tiles in this order, as the loader takes them; the first one has biases
    """

    filters: slice
    parts: tuple[Part, ...]
    data: bytes

    @property
    def tiles(self) -> int:
        return sum(part.tiles for part in self.parts)


def block_at_a_time(layer: Layer, source_signed: Sequence[bool]) -> bool:
    """Whether a column tile may only hold filters of one block.

    A column that a step does not touch sees the product 0, which must not enter its maximum unless
    its own products cannot be negative.
    """
    if layer.reduce == "add" or layer.terms[0].kernel.groups == 1:
        return False
    kernel = layer.terms[0].kernel
    return bool(any(source_signed) or kernel.codes.min() < 0 or kernel.scales.min() < 0)


def cut_filters(layer: Layer, config: HardwareConfig, apart: bool) -> list[slice]:
    """The filters of each column tile; tiles are cut so that whole ones make output blocks.

    `apart` says that no tile may hold filters of two blocks.
    """
    channels, cols, block = layer.bias.size, config.cols, config.rows
    spec = config.requantizer
    if apart:
        span = block
    elif layer.output is None:
        span = channels
    else:
        span = block * spec.blocks_per_beat
    tiles = []
    for first in range(0, channels, span):
        end = min(first + span, channels)
        count = -(-(end - first) // cols) if layer.output is None else spec.beats_per_block
        for beat in range(count):
            start = min(first + beat * cols, end)
            tiles.append(slice(start, min(start + cols, end)))
    return tiles


def _section(fields: NDArray, bits: int, bus_bits: int) -> NDArray[np.uint8]:
    """(n, beat bytes) of (n, fields) numbers of `bits` bits, filled up to whole beats."""
    n, count = fields.shape
    spread = (fields.astype(np.int64)[:, :, None] >> np.arange(bits)) & 1
    packed = np.packbits(spread.reshape(n, count * bits).astype(np.uint8), 1, bitorder="little")
    size = -(-count * bits // bus_bits) * (bus_bits // 8)
    return np.pad(packed, ((0, 0), (0, size - packed.shape[1])))


def pack_tiles(
    codes: NDArray[np.int8],
    scales: NDArray[np.float32],
    biases: NDArray[np.floating],
    form: TileFormat,
) -> bytes:
    """Tiles (n, cols, rows) with scales (n, cols) as :meth:`TileFormat.pack` packs each of them.

    The `biases` (cols,) follow the first tile.
    """
    n, cols, rows = codes.shape
    lanes = codes.transpose(0, 2, 1)[:, ::-1].reshape(n * rows, cols)
    parts = [
        _section(lanes, form.array.weight_bits, form.bus_bits).reshape(n, -1),
        _section(form.scale.encode(scales), form.scale.storage_bits, form.bus_bits),
    ]
    tiles = np.concatenate(parts, axis=1)
    first = _section(form.bias.encode(biases)[None], 32, form.bus_bits)
    return tiles[0].tobytes() + first.tobytes() + tiles[1:].tobytes()


def _rectangles(present: NDArray[np.bool_]) -> Iterator[tuple[int, int, int, int]]:
    """(ky, kys, kx, kxs) that cover the kernel positions `present` (Kh, Kw) in their order."""
    height, width = present.shape
    ky = 0
    while ky < height:
        full = ky
        while full < height and present[full].all():
            full += 1
        if full > ky:
            yield ky, full - ky, 0, width
            ky = full
            continue
        kx = 0
        while kx < width:
            end = kx
            while end < width and present[ky, end]:
                end += 1
            if end > kx:
                yield ky, 1, kx, end - kx
            kx = max(end, kx + 1)
        ky += 1


class _TermTile(NamedTuple):
    """What one column tile takes of one term."""

    parts: list[Part]
    codes: list[NDArray[np.int8]]
    scales: list[NDArray[np.float32]]


def _one_tile(codes: NDArray[np.int8], scales: NDArray[np.float32]) -> bool:
    """Whether all tiles (taps, cols, rows) of a block are the same."""
    return bool(len(codes) > 1 and (codes == codes[0]).all() and (scales == scales[0]).all())


def _term_tile(
    index: int,
    term: Term,
    source: Stored,
    weights: list[BlockWeights],
    filters: slice,
    layer: Layer,
    config: HardwareConfig,
) -> _TermTile:
    taps = term.kernel_size
    found = _TermTile([], [], [])
    for block in range(source.blocks):
        part = weights[block % len(weights)]
        low, high = max(filters.start, part.filters.start), min(filters.stop, part.filters.stop)
        if low >= high:
            continue
        codes = np.zeros((taps[0] * taps[1], config.cols, config.rows), np.int8)
        scales = np.zeros((taps[0] * taps[1], config.cols), np.float32)
        chosen = slice(low - part.filters.start, high - part.filters.start)
        target = slice(low - filters.start, high - filters.start)
        # (filters, B, Kh, Kw) to (Kh * Kw, filters, B)
        picked = part.codes[chosen].reshape(high - low, config.rows, -1)
        codes[:, target] = picked.transpose(2, 0, 1)
        scales[:, target] = part.scales[chosen].reshape(high - low, -1).T
        # A sum skips tiles without codes: their products are +0, and no accumulator is ever -0.
        every = layer.reduce == "max"
        present = np.array([every or one.any() for one in codes]).reshape(taps)
        if present.all() and _one_tile(codes, scales):
            found.parts.append(Part(index, block, 1, 0, taps[0], 0, taps[1], True))
            found.codes.append(codes[:1])
            found.scales.append(scales[:1])
            continue
        for rectangle in _rectangles(present):
            found.parts.append(Part(index, block, 1, *rectangle, False))
        where = np.flatnonzero(present)
        found.codes.append(codes[where])
        found.scales.append(scales[where])
    return found


def _merged(
    parts: list[Part], taps: Sequence[tuple[int, int]], sources: list[Stored]
) -> list[Part]:
    """Parts of adjacent blocks as one, where all kernel positions take part."""
    result: list[Part] = []
    for part in parts:
        before = result[-1] if result else None
        if (
            before is not None
            and not (before.repeated or part.repeated)
            and before.term == part.term
            and (before.kys, before.kxs) == (part.kys, part.kxs) == taps[part.term]
            and before.block + before.blocks == part.block
            and before.blocks < MOST_TURNS
            and sources[part.term].signed[before.block] == sources[part.term].signed[part.block]
        ):
            result[-1] = before._replace(blocks=before.blocks + 1)
        else:
            result.append(part)
    return result


def column_tiles(layer: Layer, tensors: Tensors, config: HardwareConfig) -> list[ColumnTile]:
    """The column tiles of `layer`.

    Raises ``ValueError`` if groups of a signed maximum cut an output block.
    """
    sources = [tensors[term.source] for term in layer.terms]
    apart = block_at_a_time(layer, sources[0].signed)
    weights = [
        [term.kernel.block_weights(b) for b in range(-(-term.kernel.in_channels // config.rows))]
        for term in layer.terms
    ]
    taps = [term.kernel_size for term in layer.terms]
    tiles = []
    for filters in cut_filters(layer, config, apart):
        parts: list[Part] = []
        codes: list[NDArray[np.int8]] = []
        scales: list[NDArray[np.float32]] = []
        for index, term in enumerate(layer.terms):
            if apart:
                _check_apart(layer, weights[index], filters)
            found = _term_tile(index, term, sources[index], weights[index], filters, layer, config)
            parts += found.parts
            codes += found.codes
            scales += found.scales
        if not parts:  # nothing reaches it: it is still started, to hold its biases
            parts = [Part(0, 0, 1, 0, 1, 0, 1, False)]
            codes = [np.zeros((1, config.cols, config.rows), np.int8)]
            scales = [np.zeros((1, config.cols), np.float32)]
        biases = np.zeros(config.cols, config.accumulator_format.dtype)
        biases[: filters.stop - filters.start] = layer.start[filters]
        factors = layer.machine_scales(np.concatenate(scales))
        data = pack_tiles(np.concatenate(codes), factors, biases, config.tile)
        tiles.append(ColumnTile(filters, tuple(_merged(parts, taps, sources)), data))
    return tiles


def _check_apart(layer: Layer, weights: list[BlockWeights], filters: slice) -> None:
    for part in weights:
        touched = filters.start < part.filters.stop and part.filters.start < filters.stop
        inside = part.filters.start <= filters.start and filters.stop <= part.filters.stop
        if touched and not inside:
            raise ValueError(f"max layer {layer.name!r}: groups must not cut an output block")
