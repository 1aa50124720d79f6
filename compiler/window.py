"""The rest of the activation buffer, as a cache of parts of tensors that are in memory."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from .tensors import Box, Stored

__all__ = ["Kept", "Slab", "Window"]


class Kept(NamedTuple):
    """Words that a tensor takes, from the first to the last of some steps of the program."""

    address: int
    size: int
    first: int
    last: int


@dataclass(eq=False)
class Slab:
    """Some pixels of some blocks of a tensor, ``(blocks, rows, columns)`` where it is loaded.

    Parameters
    ----------
    source, block, blocks, box : which
    ready : how many groups of the program must have been drained before it can be loaded
    uses : steps that read it, ascending
    address : where it is in the buffer now, if it is
    """

    source: Stored
    block: int
    blocks: int
    box: Box
    ready: int
    uses: list[int] = field(default_factory=list)
    address: int | None = None

    @property
    def words(self) -> int:
        return self.blocks * self.box.pixels

    def next_use(self, now: int) -> int | None:
        """The first use after step `now`."""
        index = bisect_right(self.uses, now)
        return self.uses[index] if index < len(self.uses) else None


class Window:
    """Gives slabs their addresses.

    A slab makes way only for one that is used before its own next use; those whose next use is
    farthest go first. Every step is known beforehand: this is the best that a cache can do.

    Parameters
    ----------
    depth : words of the buffer
    kept : what else is in the buffer, and when
    """

    def __init__(self, depth: int, kept: Sequence[Kept]):
        self._depth = depth
        self._kept = kept
        self._slabs: list[Slab] = []
        self._cursor = 0

    def insert(self, slab: Slab, now: int, use: int, evict: bool) -> bool:
        """Place `slab`, after step `now` and for step `use`; False if there is no room."""
        for other in self._slabs:
            if other.next_use(now) is None:
                other.address = None
        self._slabs = [other for other in self._slabs if other.address is not None]
        walls = [k for k in self._kept if k.first <= use and k.last > now]
        address = self._free(slab.words, walls)
        if address is None and evict:
            address = self._farthest(slab.words, walls, now, use)
        if address is None:
            return False
        self._remove(address, slab.words)
        slab.address = address
        self._slabs.append(slab)
        self._cursor = address + slab.words
        return True

    def clear(self, kept: Kept) -> None:
        """Forget the slabs where a tensor is about to be written."""
        self._remove(kept.address, kept.size)

    def _remove(self, address: int, size: int) -> None:
        for other in self._slabs:
            assert other.address is not None
            if other.address < address + size and address < other.address + other.words:
                other.address = None
        self._slabs = [other for other in self._slabs if other.address is not None]

    def _candidates(self, words: int, walls: list[Kept]) -> list[int]:
        """Addresses next to walls and slabs where `words` words meet no wall, cursor first."""
        starts = {0, self._cursor, *(k.address + k.size for k in walls)}
        for slab in self._slabs:
            assert slab.address is not None
            starts |= {slab.address, slab.address + slab.words}
        fitting = [
            a
            for a in starts
            if a + words <= self._depth
            and not any(k.address < a + words and a < k.address + k.size for k in walls)
        ]
        return sorted(fitting, key=lambda a: (a < self._cursor, a))

    def _meets(self, address: int, words: int) -> list[Slab]:
        return [
            s
            for s in self._slabs
            if s.address is not None
            and s.address < address + words
            and address < s.address + s.words
        ]

    def _free(self, words: int, walls: list[Kept]) -> int | None:
        for address in self._candidates(words, walls):
            if not self._meets(address, words):
                return address
        return None

    def _farthest(self, words: int, walls: list[Kept], now: int, use: int) -> int | None:
        best, best_use = None, use
        for address in self._candidates(words, walls):
            following = min(s.next_use(now) or use for s in self._meets(address, words))
            if following > best_use:
                best, best_use = address, following
        return best
