"""The order of a program: passes with their tiles, loads ahead of them, drains behind them."""

from bisect import bisect_right
from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ..golden.config import HardwareConfig
from ..golden.isa import Drain, End, Form, Instruction, Load, Region, Weights
from ..golden.program import Place
from .group import Group, Piece, View
from .place import Placement
from .tensors import Box
from .tile import MOST_TURNS
from .window import Kept, Slab, Window

__all__ = ["Listing", "schedule"]

_LOADS = 3
"""loads that are put between two passes, at most, so that the passes go on"""
_AHEAD = 48
"""passes that are looked through for what to load next"""
_LATENCY = 100
"""cycles, roughly, that memory or a drain takes beside its words"""


class Listing(NamedTuple):
    """Instructions without tickets; offsets of tiles are counted from the first one."""

    instructions: list[Instruction]
    places: list[Place]
    weights: bytes


class _Written(NamedTuple):
    """What a recent drain wrote, and when it will have, roughly."""

    name: str
    block: int
    blocks: int
    box: Box
    end: int


class _Writer:
    """Emits the instructions of groups, in order."""

    def __init__(
        self,
        groups: Sequence[Group],
        placement: Placement,
        scratch: Mapping[str, int],
        config: HardwareConfig,
    ):
        self.placement, self.scratch = placement, scratch
        self.config, self.spec = config, config.accelerator
        self._word_beats, self._code_beats = self.spec.word_beats, self.spec.code_beats
        self.output = groups[-1].work.layer.name
        self.instructions: list[Instruction] = []
        self.places: list[Place] = []
        self.pieces = [piece for group in groups for piece in group.pieces]
        self._with_slab = [i for i, piece in enumerate(self.pieces) if piece.slab is not None]
        self._begins = [0]
        for piece in self.pieces:
            self._begins.append(self._begins[-1] + piece.cycles(piece.part.blocks))
        self._kept = self._all_kept()
        self._window = Window(config.buffer_depth, list(self._kept.values()))
        self._order_tiles()
        self._turns = 0
        self._now = self._drain_end = self._drained = 0
        self._written: deque[_Written] = deque(maxlen=16)

    def _all_kept(self) -> dict[str, Kept]:
        begin: dict[int, int] = {}
        end: dict[int, int] = {}
        for index, piece in enumerate(self.pieces):
            begin.setdefault(piece.work.index, index)
            end[piece.work.index] = index
        return {
            name: Kept(place.address, place.size, begin[place.first], end[place.last])
            for name, place in self.placement.buffer.items()
        }

    def _order_tiles(self) -> None:
        """Lay out the tiles in the order of their first use, equal ones once."""
        offsets: dict[bytes, int] = {}
        size = 0
        self._weights: list[Weights] = []
        for piece in self.pieces:
            if piece.turn < len(self._weights):
                continue
            data = piece.tile.data
            if data not in offsets:
                offsets[data] = size
                size += len(data) // self.spec.beat_bytes
            self._weights.append(Weights(offset=offsets[data], tiles=piece.tile.tiles, biased=1))
        self.data = b"".join(offsets)

    def group(self, group: Group, first: int) -> None:
        """Emit a group whose first piece is number `first`."""
        fresh = group.work.index != (self.pieces[first - 1].work.index if first else -1)
        if fresh and group.work.layer.name in self._kept:
            self._window.clear(self._kept[group.work.layer.name])
        for index, piece in enumerate(group.pieces, first):
            # As many as the queue takes beside the passes that use them.
            ahead = min(2, self.spec.dispatched_weights - 1)
            while self._turns < min(len(self._weights), piece.turn + ahead + 1):
                self.instructions.append(self._weights[self._turns])
                self._turns += 1
            if piece.slab is not None and piece.slab.address is None:
                placed = self._window.insert(piece.slab, index - 1, index, True)
                assert placed
                self._load(piece.slab)
            self._pass(piece)
            self._prefetch(index)
        self._drain(group)
        self._drained += 1
        self._prefetch(first + len(group.pieces) - 1)

    def _pass(self, piece: Piece) -> None:
        part = piece.part
        if piece.slab is not None:
            view = View.of_slab(piece.slab)
        elif piece.source.name in self._kept:
            view = View.of_tensor(piece.source, self._kept[piece.source.name].address)
        else:  # nothing but padding
            view = View(0, 0, 0, 0, 0, 0)
        first, start = part.block, piece.start
        for blocks in self._runs(piece):
            self.instructions.append(piece.emit(view, first, blocks, start))
            first, start = first + blocks, False

    def _runs(self, piece: Piece) -> list[int]:
        """The blocks of a piece, cut so that the first ones need not wait for the drains of the
        last ones."""
        part = piece.part
        begin = self._now
        runs = [0]
        for block in range(part.block, part.block + part.blocks):
            ready = max(
                (
                    w.end
                    for w in self._written
                    if w.end > begin
                    and w.name == piece.source.name
                    and w.block <= block < w.block + w.blocks
                    and w.box.y < piece.box.y + piece.box.rows
                    and piece.box.y < w.box.y + w.box.rows
                ),
                default=0,
            )
            whole = piece.spread or piece.slab is not None
            if ready > begin and runs[-1] and not whole:
                begin = max(self._now, ready)
                runs.append(0)
            runs[-1] += 1
            if not whole:
                self._now += piece.cycles(1)
        if piece.spread or piece.slab is not None:
            self._now += piece.cycles(part.blocks)
        return runs

    def _prefetch(self, now: int) -> None:
        """Load what the next passes read, as far as there is room, after piece `now`."""
        first = bisect_right(self._with_slab, now)
        left = _LOADS
        for index in self._with_slab[first : first + _AHEAD]:
            slab = self.pieces[index].slab
            assert slab is not None
            if slab.address is not None or slab.ready > self._drained:
                continue
            wait = self._begins[index] - self._begins[now + 1]
            urgent = wait < 8 * (self._beats(slab) + _LATENCY)
            if not left or not self._window.insert(slab, now, index, urgent):
                return
            self._load(slab)
            left -= 1

    def _beats(self, slab: Slab) -> int:
        beats = self._word_beats if slab.source.exponents is None else self._code_beats
        return slab.words * beats

    def _load(self, slab: Slab) -> None:
        source, box = slab.source, slab.box
        assert slab.address is not None
        fixed = source.exponents is not None
        beats = self._code_beats if fixed else self._word_beats
        offset = ((slab.block * source.height + box.y) * source.width + box.x) * beats
        words, rows = box.columns, box.rows
        if box.columns == source.width and box.pixels <= MOST_TURNS:
            words, rows = box.pixels, 1
        self.instructions.append(
            Load(
                offset=offset + (0 if fixed else self.scratch[source.name]),
                region=Region.INPUT if fixed else Region.SCRATCH,
                buffer=slab.address,
                fixed=int(fixed),
                exponent=source.exponents[slab.block] if source.exponents else 0,
                words=words,
                rows=rows,
                blocks=slab.blocks,
                row_step=source.width * beats if rows > 1 else 0,
                block_step=source.height * source.width * beats if slab.blocks > 1 else 0,
                buffer_row_step=words if rows > 1 else 0,
                buffer_block_step=box.pixels if slab.blocks > 1 else 0,
            )
        )

    def _drain(self, group: Group) -> None:
        layer, chunk, work = group.work.layer, group.chunk, group.work
        raw = layer.output is None
        form = Form.RAW
        if layer.output is not None:
            form = Form.SIGNED if layer.output.signed else Form.UNSIGNED
        limits, grid = layer.limits, layer.grid
        ends = layer.machine_constants(np.array(limits or (0, 0), np.float32))
        low, high = self.config.accumulator_format.encode(ends).tolist()
        height, width = work.size
        rows = self.config.rows
        begin = max(self._now, self._drain_end)
        beats = self.spec.raw_beats if raw else self._word_beats
        memory = self.scratch.get(layer.name)
        region = Region.SCRATCH
        if layer.name == self.output:
            memory, region = 0, Region.OUTPUT
        kept = self._kept.get(layer.name)
        for beat in range(0, group.tiles, work.together):
            filters = work.tiles[group.first + beat].filters
            count = 1 if raw else max(1, -(-(filters.stop - filters.start) // rows))
            for select in range(count):
                channel = filters.start + select * rows
                # Raw rows: those of one column tile after those of the other.
                plane = group.first + beat if raw else channel // rows
                pixel = (plane * height + chunk.y) * width + chunk.x
                self.instructions.append(
                    Drain(
                        accumulator=group.accumulator + beat * chunk.pixels,
                        beat_step=chunk.pixels if work.together > 1 else 0,
                        rows=chunk.rows,
                        pixels=chunk.columns,
                        form=form,
                        to_buffer=int(kept is not None),
                        to_memory=int(memory is not None),
                        limited=int(limits is not None),
                        buffer=0 if kept is None else kept.address + pixel,
                        buffer_row_step=0 if kept is None or chunk.rows == 1 else width,
                        select=select,
                        region=0 if memory is None else region,
                        exponent=0 if grid is None else grid.field,
                        offset=0 if memory is None else memory + pixel * beats,
                        row_step=0 if memory is None or chunk.rows == 1 else width * beats,
                        low=low if limits is not None else 0,
                        high=high if limits is not None else 0,
                    )
                )
                self.places.append(Place(layer.name, channel, chunk.y, chunk.x))
                begin += chunk.pixels * work.together
                if kept is not None:
                    end = begin + _LATENCY
                    self._written.append(_Written(layer.name, channel // rows, 1, chunk, end))
        self._drain_end = begin


def schedule(
    groups: Sequence[Group],
    placement: Placement,
    scratch: Mapping[str, int],
    config: HardwareConfig,
) -> Listing:
    """The program of `groups`.

    `scratch` says where the tensors that memory holds are in the region SCRATCH, in beats.
    Raises ``ValueError``, naming the layer, if a number does not fit its field.
    """
    writer = _Writer(groups, placement, scratch, config)
    first = 0
    for group in groups:
        try:
            writer.group(group, first)
        except ValueError as error:
            raise ValueError(f"layer {group.work.layer.name!r}: {error}") from error
        first += len(group.pieces)
    writer.instructions.append(End())
    return Listing(writer.instructions, writer.places, writer.data)
