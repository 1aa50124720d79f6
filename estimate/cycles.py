"""Exact cycle counts of the engine, without simulating it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..golden.config import HardwareConfig
from ..golden.passes import Drain, Pass

__all__ = ["EngineCycles", "closed_form", "engine_cycles"]


@dataclass(frozen=True)
class EngineCycles:
    """When things happen, in cycles from the first beat of the first tile.

    Parameters
    ----------
    issued : for each pass, the issue of its first pixel
    last_issued : the issue of the last pixel
    stored : first cycle in which every pixel is in the accumulators
    total : cycle after the last drained row or block has left; ``stored`` if nothing is drained
    """

    issued: tuple[int, ...]
    last_issued: int
    stored: int
    total: int


def closed_form(work: Sequence[Pass], config: HardwareConfig) -> int:
    """Cycles of passes that all visit the same accumulators in the same order, until ``stored``::

        T_1 + sum(max(P_i, T_i+1, C, revisit if pass i + 1 does not start) for i < n) + P_n
            + retire_cycles - 1

    T_i = ``load_cycles`` of pass i is its number of beats, R or more; P_i its number of pixels, C
    the number of columns. All but the sum is constant for a given first and last pass. No pass has
    an accumulator twice.
    """
    spec = config.engine
    loads = [spec.load_cycles(item.start) for item in work]
    total = loads[0]
    for item, after, load in zip(work, work[1:], loads[1:], strict=False):
        revisit = 1 if after.start else spec.scale_unit.revisit
        total += max(item.pixels, load, spec.pass_cycles, revisit)
    return total + work[-1].pixels + spec.retire_cycles - 1


def engine_cycles(work: Sequence[Pass | Drain], config: HardwareConfig) -> EngineCycles:
    """The exact timing of any `work` when no stream pauses.

    Tiles are offered as soon as they can be taken, a drain when every pixel before it is accepted,
    a pixel when every drain before it is; each one cycle after the transfer that it waits for.
    """
    spec = config.engine
    revisit = spec.scale_unit.revisit
    visited = np.full(config.accumulator_depth, -revisit, np.int64)
    issued: list[int] = []
    load_begins = 0
    next_issue = 1
    last_issue = 0
    last_row = total = 0
    for item in work:
        if isinstance(item, Drain):
            # Its first row waits for the pipeline to empty; the others follow one a cycle.
            first = max(last_row + 1, last_issue + spec.retire_cycles)
            last_row = first + len(item.addresses) - 1
            after = spec.drain_cycles
            if item.form != "raw":
                after += spec.requantizer.latency
            total = max(total, last_row + after + 1)
            next_issue = max(next_issue, last_row + 2)
            continue
        begin = max(next_issue, load_begins + spec.load_cycles(item.start))
        if issued:
            begin = max(begin, issued[-1] + spec.pass_cycles)
        times = _issue_times(item, begin, visited, revisit)
        issued.append(int(times[0]))
        load_begins, last_issue = int(times[0]), int(times[-1])
        next_issue = last_issue + 1
    stored = last_issue + spec.retire_cycles
    return EngineCycles(tuple(issued), last_issue, stored, max(total, stored))


def _issue_times(
    item: Pass, begin: int, visited: NDArray[np.int64], revisit: int
) -> NDArray[np.int64]:
    """Issue cycles of a pass's pixels; updates when each accumulator was `visited`."""
    addresses = np.asarray(item.addresses)
    steps = np.arange(item.pixels)
    if item.start:
        times = begin + steps
    elif len(np.unique(addresses)) == item.pixels:
        earliest = np.maximum(visited[addresses] + revisit, begin) - steps
        times = np.maximum.accumulate(earliest) + steps
    else:
        times = np.empty(item.pixels, np.int64)
        last, seen = begin - 1, visited.copy()
        for step, address in enumerate(addresses.tolist()):
            last = max(last + 1, int(seen[address]) + revisit)
            times[step] = seen[address] = last
    visited[addresses] = times
    return times
