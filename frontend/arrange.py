"""What moving data about does: every element by the address that it came from.

Views, transpositions, slices, concatenations and pads have too many spellings to be read one by
one. They are executed instead, on addresses: an integer for every element of every activation, and
-1 for a zero. What a convolution is then given is recognized by its addresses alone.
"""

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from .graph import Arrange, Shape

__all__ = ["Memory", "Place", "arrange"]

ZERO = -1


class Place(NamedTuple):
    """Where a node's result lies."""

    name: str
    start: int
    shape: Shape
    """of one image"""

    @property
    def size(self) -> int:
        """Elements of one image."""
        return int(np.prod(self.shape))

    @property
    def planes(self) -> tuple[int, int, int]:
        """The shape as (C, H, W)."""
        if len(self.shape) != 3:
            return self.size, 1, 1
        return self.shape[0], self.shape[1], self.shape[2]


class Memory:
    """Gives every node's result, of `images` images, its addresses."""

    def __init__(self, images: int) -> None:
        self.images = images
        self.places: list[Place] = []
        self._starts: list[int] = []
        self._end = 0

    def allocate(self, name: str, shape: Shape) -> None:
        """Addresses for the result of a node."""
        place = Place(name, self._end, shape)
        self.places.append(place)
        self._starts.append(place.start)
        self._end += self.images * place.size

    def addresses(self, name: str, shape: Sequence[int]) -> torch.Tensor:
        """The result of a node as a tensor `shape`, images included."""
        place = next(place for place in reversed(self.places) if place.name == name)
        count = self.images * place.size
        return torch.arange(place.start, place.start + count).reshape(tuple(shape))

    def one_image(self, index: torch.Tensor) -> NDArray[np.int64] | None:
        """The addresses (...) of the first image; None unless the others are like it.

        One image alone need not have an axis of its own: a squeeze of everything drops it.
        """
        if self.images == 1 and (index.dim() < 2 or index.shape[0] != 1):
            index = index[None]
        if not index.dim() or index.shape[0] != self.images:
            return None
        images = index.numpy()
        first = images[0]
        if self.images > 1:
            sizes = np.array([place.size for place in self.places])
            step = np.where(first == ZERO, 0, sizes[self.owners(first)])
            if not all(np.array_equal(images[n], first + n * step) for n in range(self.images)):
                return None
        inside = first - np.array(self._starts)[self.owners(first)]
        beyond = inside >= np.array([place.size for place in self.places])[self.owners(first)]
        return None if (beyond & (first != ZERO)).any() else first

    def owners(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """The number of the place of every address; -1 of a zero."""
        return np.searchsorted(self._starts, index, side="right") - 1

    def owner(self, address: int) -> Place:
        """The place of one address."""
        return self.places[bisect_right(self._starts, address) - 1]


class _View(NamedTuple):
    """How one channel of the result reads its operand."""

    owner: int
    channel: int
    rows: tuple[int, int]
    """offset and stride"""
    columns: tuple[int, int]


def _axis(positions: NDArray[np.int64], extent: int) -> tuple[int, int] | None:
    """Offset and stride of positions along an axis of the operand; ZERO is outside it."""
    (taken,) = np.nonzero(positions != ZERO)
    first, last = int(taken[0]), int(taken[-1])
    at = int(positions[first])
    if first < last:
        stride = int(positions[first + 1]) - at
    else:
        # One row says nothing of the stride, but its neighbours must fall outside.
        clear = (first == 0 or at == 0) and (first == len(positions) - 1 or at == extent - 1)
        stride = 1 if clear else max(at + 1, extent - at)
    if stride < 1:
        return None
    offset = at - stride * first
    expected = offset + stride * np.arange(len(positions))
    expected = np.where((expected >= 0) & (expected < extent), expected, ZERO)
    return (offset, stride) if np.array_equal(expected, positions) else None


def _view(index: NDArray[np.int64], memory: Memory) -> _View | None:
    """How one channel (H, W) of the result reads one channel of one operand."""
    taken = index != ZERO
    address = int(index[taken][0])
    place = memory.owner(address)
    _, height, width = place.planes
    channel = (address - place.start) // (height * width)
    local = index - place.start - channel * height * width
    if (taken & ((local < 0) | (local >= height * width))).any():
        return None
    rows = np.where(taken, local // width, ZERO).max(1)
    columns = np.where(taken, local % width, ZERO).max(0)
    inside = (rows != ZERO)[:, None] & (columns != ZERO)
    expected = np.where(inside, rows[:, None] * width + columns, ZERO)
    if not np.array_equal(expected, np.where(taken, local, ZERO)):
        return None
    vertical, horizontal = _axis(rows, height), _axis(columns, width)
    if vertical is None or horizontal is None:
        return None
    return _View(memory.places.index(place), channel, vertical, horizontal)


def arrange(name: str, index: NDArray[np.int64], memory: Memory) -> Arrange | str | None:
    """The node that gives (C, H, W) of these addresses; the operand itself if it is just that.

    None if there is no such node.
    """
    if index.ndim != 3 or not index.size:
        return None
    first = int(index.flat[0])
    if first != ZERO:
        place = memory.owner(first)
        whole = place.start + np.arange(place.size)
        if place.planes == index.shape and np.array_equal(index.ravel(), whole):
            return place.name
    operands: dict[tuple, int] = {}
    source = np.full(len(index), ZERO)
    channel = np.zeros(len(index), np.int64)
    # Channels of one operand mostly differ by their start only.
    known: dict[bytes, _View] = {}
    for c, plane in enumerate(index):
        taken = plane != ZERO
        if not taken.any():
            continue
        base = int(plane[taken][0])
        place = memory.owner(base)
        area = place.planes[1] * place.planes[2]
        start = base - (base - place.start) % area
        inside = np.where(taken, plane - start, 0).tobytes()
        key = inside + taken.tobytes() + str(place.start).encode()
        view = known.get(key)
        if view is None:
            view = _view(plane, memory)
            if view is None:
                return None
            known[key] = view
        operand = (view.owner, view.rows, view.columns)
        source[c] = operands.setdefault(operand, len(operands))
        channel[c] = (start - place.start) // area
    if not operands:
        return None
    return Arrange(
        name,
        tuple(memory.places[owner].name for owner, _, _ in operands),
        source,
        channel,
        tuple((rows[0], columns[0]) for _, rows, columns in operands),
        tuple((rows[1], columns[1]) for _, rows, columns in operands),
        (index.shape[1], index.shape[2]),
    )
