"""What stays on chip: tensors in the activation buffer, the others in memory."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..golden.config import HardwareConfig
from ..golden.network import INPUT
from .plan import Choice, LayerWork
from .tensors import Stored, Tensors

__all__ = ["Interval", "Placement", "first_fit", "gaps", "place"]


class Interval(NamedTuple):
    """Some words for some layers, both ends included in `first` and `last`."""

    address: int
    size: int
    first: int
    last: int

    def overlaps(self, first: int, last: int) -> bool:
        """Whether it lives at any time from `first` to `last`."""
        return self.first <= last and first <= self.last


def first_fit(placed: Iterable[Interval], size: int, first: int, last: int) -> int:
    """The lowest address of `size` free words from layer `first` to layer `last`."""
    address = 0
    for other in sorted(item for item in placed if item.overlaps(first, last)):
        if address + size <= other.address:
            break
        address = max(address, other.address + other.size)
    return address


@dataclass(frozen=True, eq=False)
class Placement:
    """Where tensors are, and how each layer is cut.

    Parameters
    ----------
    buffer : the place of each tensor that stays in the activation buffer
    choices : the chunks of every layer
    """

    buffer: dict[str, Interval]
    choices: tuple[Choice, ...]


def gaps(placed: Iterable[Interval], layer: int, depth: int) -> tuple[int, int]:
    """Free words while a layer runs: in all, and of the largest gap."""
    address, free, largest = 0, 0, 0
    alive = sorted(item for item in placed if item.overlaps(layer, layer))
    for item in [*alive, Interval(depth, 0, layer, layer)]:
        gap = item.address - address
        free, largest = free + gap, max(largest, gap)
        address = item.address + item.size
    return free, largest


def place(works: Sequence[LayerWork], tensors: Tensors, config: HardwareConfig) -> Placement:
    """Choose tensors to keep on chip, and the chunks of every layer.

    Small tensors come first; one is kept if the layers of its life do not get slower by it, in the
    rough count of :meth:`LayerWork.cost`.

    Raises ``ValueError`` if a layer does not fit the buffer even when nothing is kept there.
    """
    depth = config.buffer_depth
    placed: dict[str, Interval] = {}
    absent = set(tensors)

    def choose(work: LayerWork, intervals: Iterable[Interval], missing: set[str]) -> Choice | None:
        return work.choose(missing, *gaps(intervals, work.index, depth))

    first = [choose(work, (), absent) for work in works]
    choices = [choice for choice in first if choice is not None]
    if len(choices) < len(works):
        least = [max(w.largest_box(t, 1, 1) for t in range(len(w.sources))) for w in works]
        worst = max(works, key=lambda work: least[work.index])
        raise ValueError(
            f"layer {worst.layer.name!r} needs {least[worst.index]} words of the activation buffer "
            f"for one output pixel, but there are {depth}: set buffer_depth = "
            f"{least[worst.index]} or more"
        )

    output = works[-1].layer.name
    kept = [t for t in tensors.values() if t.name not in (INPUT, output) and t.last > t.producer]
    for tensor in sorted(kept, key=lambda t: (t.words, t.producer)):
        interval = _interval(placed, tensor)
        if interval.address + interval.size > depth:
            continue
        trial = [*placed.values(), interval]
        found: dict[int, Choice] = {}
        for work in works[tensor.producer : tensor.last + 1]:
            choice = choose(work, trial, absent - {tensor.name})
            if choice is None:
                break
            found[work.index] = choice
        else:
            before = sum(choices[index].cycles for index in found)
            if sum(choice.cycles for choice in found.values()) <= before:
                placed[tensor.name] = interval
                absent.remove(tensor.name)
                for index, choice in found.items():
                    choices[index] = choice
    return Placement(placed, tuple(choices))


def _interval(placed: dict[str, Interval], tensor: Stored) -> Interval:
    address = first_fit(placed.values(), tensor.words, tensor.producer, tensor.last)
    return Interval(address, tensor.words, tensor.producer, tensor.last)
