"""What each layer costs: chunks of output pixels, and what they need of the activation buffer."""

from collections import Counter
from collections.abc import Iterator, Set
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from ..golden.config import HardwareConfig
from ..golden.layers import Layer, Term
from .tensors import Box, Stored
from .tile import ColumnTile

__all__ = ["Choice", "LayerWork", "chunks_of", "window_box"]

_MOST_PIXELS = 1024
"""of a chunk; more would only delay the next layer"""
_TIGHT = 0.02
"""part of the time that is lost, roughly, where the buffer has no room for the next chunk"""
_LATENCY = 150
"""cycles, roughly, from the last pass of a group to words that another one can read"""


def window_box(term: Term, source: Stored, chunk: Box, whole_width: bool) -> Box:
    """The pixels of `source` that `term` reads for the output pixels `chunk`."""

    def span(axis: int, first: int, count: int, before: int, size: int) -> tuple[int, int]:
        low = first * term.stride[axis] - before
        reach = (term.kernel_size[axis] - 1) * term.dilation[axis]
        high = low + (count - 1) * term.stride[axis] + reach + 1
        low, high = max(low, 0), min(high, size)
        return low, max(high - low, 0)

    top, _, left, _ = term.padding
    y, rows = span(0, chunk.y, chunk.rows, top, source.height)
    x, columns = span(1, chunk.x, chunk.columns, left, source.width)
    if whole_width and columns:
        x, columns = 0, source.width
    return Box(y, rows, x, columns)


def _cuts(size: int, most: int) -> list[tuple[int, int]]:
    """(first, count) of parts that differ by one at most."""
    count = -(-size // most)
    edges = [size * k // count for k in range(count + 1)]
    return [(a, b - a) for a, b in pairwise(edges)]


def chunks_of(size: tuple[int, int], rows: int, columns: int) -> list[Box]:
    """The picture `size` in chunks of at most `rows` rows, or parts of one row."""
    return [
        Box(y, height, x, width)
        for y, height in _cuts(size[0], rows)
        for x, width in _cuts(size[1], columns)
    ]


@dataclass(frozen=True)
class Choice:
    """How a layer is cut, and the cycles that this takes, roughly.

    Parameters
    ----------
    rows, columns : of a chunk, at most
    cycles : estimated
    """

    rows: int
    columns: int
    cycles: float


@dataclass(frozen=True, eq=False)
class LayerWork:
    """A layer and its column tiles.

    Parameters
    ----------
    index, layer, size : the layer and its output (Ho, Wo)
    sources : the tensor of each term
    tiles : its column tiles
    config : the hardware
    """

    index: int
    layer: Layer
    size: tuple[int, int]
    sources: tuple[Stored, ...]
    tiles: tuple[ColumnTile, ...]
    config: HardwareConfig

    @property
    def together(self) -> int:
        """Column tiles that make one output block."""
        return 1 if self.layer.output is None else self.config.requantizer.beats_per_block

    @cached_property
    def most_pixels(self) -> int:
        """Pixels of a chunk: half of the accumulators, if a block fits there, so that a group can
        be drained beside the next."""
        half = self.config.accumulator_depth // 2
        room = half if half >= self.together else self.config.accumulator_depth
        return min(room // self.together, _MOST_PIXELS)

    @cached_property
    def _plain(self) -> int:
        return sum(p.tiles for tile in self.tiles for p in tile.parts if not p.repeated)

    @cached_property
    def _repeated(self) -> Counter[int]:
        return Counter(p.positions for tile in self.tiles for p in tile.parts if p.repeated)

    @cached_property
    def revisit(self) -> int:
        """Least cycles between two visits of one accumulator."""
        return self.config.scale_unit.revisit

    @cached_property
    def start_beats(self) -> int:
        """Beats of a tile with biases."""
        return self.config.tile.beats(True)

    @cached_property
    def _least(self) -> int:
        return max(self.config.tile.beats(False), self.config.engine.pass_cycles, self.revisit)

    def tile_cycles(self, pixels: int) -> int:
        """Least cycles between two tiles that meet `pixels` pixels each."""
        return max(pixels, self._least)

    def pass_cycles(self, pixels: float) -> float:
        """Cycles of the passes of a chunk of `pixels` pixels, for all column tiles."""
        cycles = self._plain * max(pixels, self._least)
        apart = max(pixels, self.revisit)
        for positions, count in self._repeated.items():
            cycles += count * max(positions * apart, self.tile_cycles(1))
        return cycles

    @cached_property
    def _reach(self) -> tuple[tuple[int, int], ...]:
        """For every term, the blocks that it reads, and those summed over column tiles."""
        result = []
        for index in range(len(self.sources)):
            each = [
                sum(p.blocks for p in {p[:3]: p for p in tile.parts if p.term == index}.values())
                for tile in self.tiles
            ]
            blocks = {
                b
                for tile in self.tiles
                for p in tile.parts
                if p.term == index
                for b in (p.block, p.block + p.blocks - 1)
            }
            result.append((max(blocks) - min(blocks) + 1 if blocks else 0, sum(each)))
        return tuple(result)

    def candidates(self) -> Iterator[tuple[int, int]]:
        """(rows, columns) of chunks, largest first."""
        height, width = self.size
        if width <= self.most_pixels:
            parts = -(-height // min(height, self.most_pixels // width))
            while parts < height:
                yield -(-height // parts), width
                parts *= 2
            yield 1, width
        parts = max(2, -(-width // self.most_pixels))
        while parts < width:
            yield 1, -(-width // parts)
            parts *= 2
        yield 1, 1

    def largest_box(self, term: int, rows: int, columns: int) -> int:
        """Words of one block that a chunk reads of a term's source, at most."""
        source, item = self.sources[term], self.layer.terms[term]
        reach = [(item.kernel_size[k] - 1) * item.dilation[k] + 1 for k in (0, 1)]
        height = min(source.height, (rows - 1) * item.stride[0] + reach[0])
        width = min(source.width, (columns - 1) * item.stride[1] + reach[1])
        return height * (source.width if columns == self.size[1] else width)

    def cost(self, rows: int, columns: int, absent: Set[str], room: int, gap: int) -> float | None:
        """Cycles, roughly, with chunks of (rows, columns), or None if the buffer is too small.

        Parameters
        ----------
        absent : tensors that are not kept in the buffer
        room, gap : words of the buffer for parts of them, in all and in one piece
        """
        spec = self.config.accelerator
        count = -(-self.size[0] // rows) * -(-self.size[1] // columns)
        pixels = self.size[0] * self.size[1] / count
        compute = self.pass_cycles(pixels)
        beats = sum(tile.tiles for tile in self.tiles) * self.config.tile.beats(False)
        need = load = 0
        seen: set[tuple] = set()
        for index, source in enumerate(self.sources):
            if source.name not in absent:
                continue
            box = self.largest_box(index, rows, columns)
            if box > gap:
                return None
            blocks, reads = self._reach[index]
            key = (source.name, box)
            if key in seen:
                continue
            seen.add(key)
            word = spec.word_beats if source.exponents is None else spec.code_beats
            tiles = max(1, len(self.tiles))
            if reads > blocks:  # column tiles share it
                again = (tiles - 1) * max(0.0, blocks * box - 0.8 * room) * (reads / tiles / blocks)
                need += blocks * box
                load += (blocks * box + again) * word
            else:
                need += -(-blocks // tiles) * box
                load += blocks * box * word
        exposed = 0.0
        if need:
            spare = min(1.0, max(0.0, (room - need) / need))
            exposed = max(0.0, load * (1 - spare) - compute / max(1, len(self.tiles)))
            exposed += _TIGHT * compute * (1 - spare)
        waits = 0.0
        # A single block that was drained last; of several, the others come first.
        fresh = any(
            0 <= source.producer == self.index - 1 and source.blocks == 1 for source in self.sources
        )
        if count == 1 and fresh:
            waits = min(self.most_pixels, pixels) + _LATENCY
        # The last summand lets the fewest of otherwise equal chunks win.
        return count * (max(compute, beats + load) + exposed) + waits + count

    def choose(self, absent: Set[str], room: int, gap: int) -> Choice | None:
        """The cheapest chunks, or None if none fits."""
        best = None
        for rows, columns in self.candidates():
            cycles = self.cost(rows, columns, absent, room, gap)
            if cycles is not None and (best is None or cycles < best.cycles):
                best = Choice(rows, columns, cycles)
        return best
