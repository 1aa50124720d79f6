"""Groups of work: what is accumulated together, piece by piece, and then drained."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ..golden.isa import COUNT_BITS, Loop, Pass
from .place import Placement
from .plan import LayerWork, chunks_of, window_box
from .tensors import Box, Stored
from .tile import MOST_TURNS, ColumnTile, Part
from .window import Slab

__all__ = ["Group", "Piece", "View", "groups_of"]

_ADDRESSES = 1 << 20


@dataclass(frozen=True)
class View:
    """Where words of a tensor are in the activation buffer.

    Parameters
    ----------
    address : of the pixel (y, x) of block `block`
    block_step, row_step : to the next block, to the next row
    """

    address: int
    block: int
    y: int
    x: int
    block_step: int
    row_step: int

    @classmethod
    def of_slab(cls, slab: Slab) -> "View":
        assert slab.address is not None
        box = slab.box
        return cls(slab.address, slab.block, box.y, box.x, box.pixels, box.columns)

    @classmethod
    def of_tensor(cls, tensor: Stored, address: int) -> "View":
        return cls(address, 0, 0, 0, tensor.height * tensor.width, tensor.width)


@dataclass(frozen=True, eq=False)
class Piece:
    """Part of a group's work that is one PASS, or a PASS for each of its blocks.

    Parameters
    ----------
    work, part, chunk : the layer, the steps, the output pixels
    tile, turn : its column tile, and how many came before in the program
    accumulator : of the first pixel
    start : whether the accumulators begin here
    spread : whether each block has accumulators of its own, and all blocks one tile
    slab : what it reads, unless the tensor is kept in the buffer
    box : the pixels that it reads
    """

    work: LayerWork
    part: Part
    chunk: Box
    tile: ColumnTile
    turn: int
    accumulator: int
    start: bool
    spread: bool
    slab: Slab | None
    box: Box

    @property
    def source(self) -> Stored:
        return self.work.sources[self.part.term]

    def cycles(self, blocks: int) -> int:
        """Cycles that the passes of some of the blocks take."""
        pixels, part = self.chunk.pixels, self.part
        positions = part.kys * part.kxs
        if self.part.repeated:
            together = pixels * (blocks if self.spread else 1)
            apart = max(together, self.work.revisit)
            return max(positions * apart, self.work.tile_cycles(1))
        cycles = blocks * positions * self.work.tile_cycles(pixels)
        if self.start:
            cycles += max(0, self.work.start_beats - self.work.tile_cycles(pixels))
        return cycles

    def emit(self, view: View, first: int, blocks: int, start: bool) -> Pass:
        """The PASS for `blocks` blocks from `first` on."""
        term, part, chunk = self.work.layer.terms[self.part.term], self.part, self.chunk
        (sy, sx), (dy, dx) = term.stride, term.dilation
        y = chunk.y * sy - term.padding[0] + part.ky * dy
        x = chunk.x * sx - term.padding[2] + part.kx * dx
        buffer = view.address + (first - view.block) * view.block_step
        buffer += (y - view.y) * view.row_step + x - view.x
        block = Loop(blocks, view.block_step % _ADDRESSES, chunk.pixels if self.spread else 0)
        kernel = (
            Loop(part.kys, dy * view.row_step % _ADDRESSES, 0, dy),
            Loop(part.kxs, dx, 0, 0, dx),
        )
        outer = (*kernel, block) if part.repeated else (block, *kernel)
        # A step of a loop that does not turn may be anything, and is 0.
        outer = tuple(loop if loop.count > 1 else Loop() for loop in outer)
        rows = Loop(chunk.rows, sy * view.row_step % _ADDRESSES, chunk.columns, sy)
        columns = Loop(chunk.columns, sx, 1, 0, sx)
        return Pass(
            buffer=buffer % _ADDRESSES,
            accumulator=self.accumulator,
            start=int(start),
            maximum=int(self.work.layer.reduce == "max"),
            signed=int(self.source.signed[first]),
            tile_level=0 if part.repeated else 3,
            start_level=(2 if part.repeated else 3) if start else 0,
            y=y,
            x=x,
            height=self.source.height,
            width=self.source.width,
            loops=(
                *outer,
                rows if rows.count > 1 else Loop(),
                columns if columns.count > 1 else Loop(),
            ),
        )


@dataclass(eq=False)
class Group:
    """Pieces whose accumulators are drained together.

    Parameters
    ----------
    work, chunk : the layer, the output pixels
    first, tiles : its column tiles, `tiles` of them from `first` on
    accumulator : where it begins; column tiles follow one another
    pieces : in order
    """

    work: LayerWork
    chunk: Box
    first: int
    tiles: int
    accumulator: int
    pieces: list[Piece] = field(default_factory=list)


class _Accumulators:
    """Gives groups their accumulators so that each meets those of the group before the last."""

    def __init__(self, depth: int):
        self._depth = depth
        self._end = self._begin = 0

    def take(self, size: int) -> int:
        half = self._depth // 2
        if 3 * size > self._depth:
            base = 0 if self._begin >= half or size > half else half
        else:
            base = self._end if self._end + size <= self._depth else 0
        self._begin, self._end = base, base + size
        return base


class _Slabs:
    """The slabs that a program reads, one object for each."""

    def __init__(self, groups: Mapping[int, list[tuple[int, Group]]], depth: int):
        self._groups = groups
        self._depth = depth
        self._known: dict[tuple, Slab] = {}

    def get(self, source: Stored, block: int, box: Box, gap: int, begin: bool) -> Slab:
        """The slab that holds `block`, of as many blocks as make a good load."""
        target = min(max(box.pixels, self._depth // 16), gap // 3)
        count = 1 if begin else min(MOST_TURNS, max(1, target // box.pixels))
        plane = source.blocks // source.planes
        first = block // plane * plane + block % plane // count * count
        blocks = min(count, plane - first % plane)
        key = (source.name, first, blocks, box)
        if key not in self._known:
            ready = self._ready(source, first, blocks, box)
            self._known[key] = Slab(source, first, blocks, box, ready)
        return self._known[key]

    def _ready(self, source: Stored, first: int, blocks: int, box: Box) -> int:
        latest = -1
        for index, group in reversed(self._groups.get(source.producer, [])):
            chunk, tiles = group.chunk, group.work.tiles
            low = tiles[group.first].filters.start
            high = tiles[group.first + group.tiles - 1].filters.stop
            size = group.work.config.rows
            if (
                chunk.y < box.y + box.rows
                and box.y < chunk.y + chunk.rows
                and chunk.x < box.x + box.columns
                and box.x < chunk.x + chunk.columns
                and low < (first + blocks) * size
                and first * size < high
            ):
                latest = index
                break
        return latest + 1


def _spread(work: LayerWork, chunk: Box, first: int, tiles: Sequence[ColumnTile]) -> int:
    """How many column tiles from `first` on can share one tile and one PASS."""
    part = tiles[first].parts[0]
    if (
        len(tiles[first].parts) > 1
        or not part.repeated
        or work.together > 1
        or chunk.pixels > 2 * work.revisit
    ):
        return 1
    most = max(1, work.most_pixels // chunk.pixels)
    signed = work.sources[0].signed
    count = 1
    while (
        count < most
        and first + count < len(tiles)
        and tiles[first + count].data == tiles[first].data
        and tiles[first + count].parts == (part._replace(block=part.block + count),)
        and signed[part.block + count] == signed[part.block]
    ):
        count += 1
    return count


def _group_cuts(
    work: LayerWork, chunk: Box, placement: Placement, slabs: _Slabs, gap: int, begin: bool
) -> Iterator[tuple[int, int]]:
    """(first, count) of the column tiles of each group."""
    boxes = _boxes(work, chunk)
    first = 0
    while first < len(work.tiles):
        count = max(work.together, _spread(work, chunk, first, work.tiles))
        source = work.sources[0]
        loaded = source.name not in placement.buffer and boxes[0].pixels
        if count > work.together and loaded:
            block = work.tiles[first].parts[0].block
            slab = slabs.get(source, block, boxes[0], gap, begin)
            count = min(count, slab.block + slab.blocks - block)
        yield first, count
        first += count


def _boxes(work: LayerWork, chunk: Box) -> list[Box]:
    """What each term reads for the output pixels `chunk`."""
    whole = chunk.columns == work.size[1]
    return [
        window_box(term, source, chunk, whole)
        for term, source in zip(work.layer.terms, work.sources, strict=True)
    ]


def groups_of(
    works: Sequence[LayerWork],
    placement: Placement,
    gaps: Sequence[int],
    depth: int,
) -> list[Group]:
    """The groups of all layers, in order; their pieces know the slabs that they read.

    `gaps` are the largest slabs that each layer can load, `depth` the words of the buffer.
    """
    result: list[Group] = []
    by_layer: dict[int, list[tuple[int, Group]]] = {}
    slabs = _Slabs(by_layer, depth)
    accumulators = _Accumulators(works[0].config.accumulator_depth)
    turns = step = 0
    for work, choice, gap in zip(works, placement.choices, gaps, strict=True):
        members = by_layer.setdefault(work.index, [])
        for chunk in chunks_of(work.size, choice.rows, choice.columns):
            begin = step == 0
            for first, count in _group_cuts(work, chunk, placement, slabs, gap, begin):
                group = Group(work, chunk, first, count, accumulators.take(count * chunk.pixels))
                for piece in _pieces(group, placement, slabs, gap, turns, begin):
                    if piece.slab is not None:
                        piece.slab.uses.append(step)
                    group.pieces.append(piece)
                    step += 1
                turns = group.pieces[-1].turn + 1
                members.append((len(result), group))
                result.append(group)
    if step >> COUNT_BITS:
        raise ValueError(f"the network takes {step} passes, more than an image can have")
    return result


def _pieces(
    group: Group, placement: Placement, slabs: _Slabs, gap: int, turn: int, begin: bool
) -> list[Piece]:
    work, chunk = group.work, group.chunk
    boxes = _boxes(work, chunk)
    together = work.together
    spread = group.tiles > together
    result: list[Piece] = []
    for beat in range(1 if spread else group.tiles):
        accumulator = group.accumulator + beat * chunk.pixels
        start = True
        tile = work.tiles[group.first + beat]
        for part in tile.parts:
            source, box = work.sources[part.term], boxes[part.term]
            if spread:
                part = part._replace(blocks=group.tiles)
            if source.name in placement.buffer or not box.pixels:
                pieces = [(part, None)]
            else:
                pieces = []
                block, end = part.block, part.block + part.blocks
                while block < end:
                    slab = slabs.get(source, block, box, gap, begin)
                    stop = min(end, slab.block + slab.blocks)
                    pieces.append((part._replace(block=block, blocks=stop - block), slab))
                    block = stop
            for piece, slab in pieces:
                result.append(
                    Piece(
                        work,
                        piece,
                        chunk,
                        tile,
                        turn + beat,
                        accumulator,
                        start,
                        spread,
                        slab,
                        box,
                    )
                )
                start = False
    return result
