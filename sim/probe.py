"""Reads the counters of a simulated run at the end of each of its layers."""

from collections.abc import Mapping, Sequence

import numpy as np

from ..estimate.accelerator import Prediction
from ..golden.isa import Region
from ..golden.program import Program
from ..golden.registers import TIMED, register
from ..host.driver import Accelerator
from .system import SimulatedSystem

__all__ = ["Probe", "count_differences"]


class Probe:
    """Reads counters while the accelerator runs, in the cycles that it is asked for.

    ``counters`` are those of a whole run. Between two reads one after the other `apart` cycles
    pass, and `begun` from the start to the first; both are measured, with the counter of cycles
    itself.
    """

    def __init__(self, program: Program, system: SimulatedSystem):
        self.system, self.driver = system, Accelerator(system)
        self.driver.load(program)
        size = program.sizes[Region.INPUT] * program.config.accelerator.beat_bytes
        self.driver.run(np.zeros((1, size), np.uint8))
        self.counters = self.driver.counters()
        first, second = self._read("CYCLES", [1, 1])
        self.begun, self.apart = first - 1, second - first - 1

    def _read(self, name: str, pauses: Sequence[int]) -> list[int]:
        """Start, and read the low half of a counter after each of some pauses, in cycles."""
        control = register("CONTROL")
        self.driver.write("CONTROL", control.field("CLEAR_INTERRUPT").mask)
        self.driver.write("CONTROL", control.field("START").mask)
        found = []
        for pause in pauses:
            if self.system.wait_at_most(pause):
                raise ValueError(f"the run ends before the counter {name} is read")
            found.append(self.driver.read(f"{name}_LO"))
        self.system.wait()
        return found

    def read(self, name: str, cycles: Sequence[int]) -> list[int]:
        """A counter after so many cycles of a run; each time of a run of its own if they are too
        close.

        Raises ``ValueError`` for a time before the first read or after the end of the run.
        """
        if cycles and min(cycles) <= self.begun:
            raise ValueError(f"cycles must be more than {self.begun}, not {min(cycles)}")
        found: dict[int, int] = {}
        while left := [cycle for cycle in cycles if cycle not in found]:
            now, times, pauses = self.begun, [], []
            for cycle in left:
                if cycle > now:
                    times.append(cycle)
                    pauses.append(cycle - now)
                    now = cycle + self.apart
            found |= dict(zip(times, self._read(name, pauses), strict=True))
        return [found[cycle] for cycle in cycles]


def count_differences(
    program: Program,
    system: SimulatedSystem,
    whole: Prediction,
    shares: Mapping[str, Prediction],
    names: Sequence[str] = TIMED,
) -> dict[str, int]:
    """How far the counters of a run are from a prediction for the memory that `system` has.

    Parameters
    ----------
    whole, shares : from :func:`~shiftcore.estimate.accelerator.predict` and ``predict_layers``
    names : of the counters of the layers; those of the run are all compared

    Returns
    -------
    the largest absolute difference, by counter; for the shares that of their sums, which is read
    when each layer ends
    """
    probe = Probe(program, system)
    expected = whole.counters()
    found = {name: abs(count - expected[name]) for name, count in probe.counters.items()}
    if set(found) != set(expected):
        return found  # without a counter of pixels nothing says where a layer ends
    sums = {
        name: np.cumsum([getattr(share, name) for share in shares.values()]).tolist()
        for name in expected
    }
    for name in names:
        key = name.lower()
        *ends, last = sums[key]
        measured = probe.read(name, sums["cycles"][:-1])
        pairs = zip([*measured, probe.counters[key]], [*ends, last], strict=True)
        found[key] = max(found[key], *(abs(a - b) for a, b in pairs))
    # A layer ends in the cycle of its last pixel, not one later.
    cycles = [cycle - 1 for cycle in sums["cycles"][:-1]]
    pairs = zip(probe.read("PIXELS", cycles), sums["pixels"][:-1], strict=True)
    found["pixels"] = max([found["pixels"], *(abs(a + 1 - b) for a, b in pairs)])
    return found
