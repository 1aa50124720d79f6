"""Spec and model of an asynchronous serial line: 8 data bits, no parity, one stop bit."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["UartSpec"]


@dataclass(frozen=True)
class UartSpec:
    """A byte is a start bit (low), 8 data bits, lowest first, and a stop bit (high).

    Parameters
    ----------
    divisor : cycles of a bit, at least 4
    """

    divisor: int

    BITS = 10
    """of a byte on the line"""
    SYNCHRONIZER = 2
    """registers between the line and the receiver"""

    def __post_init__(self):
        if self.divisor < 4:
            raise ValueError(f"divisor must be at least 4 cycles of a bit, not {self.divisor!r}")

    @classmethod
    def at(cls, clock_hz: float, baud: int) -> "UartSpec":
        """The nearest divisor. Raises ``ValueError`` if it is too small or off by over 2 %: both
        ends together may be off by half a bit in the 9.5 up to the middle of the stop bit."""
        divisor = round(clock_hz / baud)
        if divisor < 4 or abs(clock_hz / divisor / baud - 1) > 0.02:
            raise ValueError(
                f"baud {baud} cannot be made of a clock of {clock_hz / 1e6:g} MHz: the clock must "
                f"be, within 2 %, 4 or more times the baud rate"
            )
        return cls(divisor)

    @property
    def byte_cycles(self) -> int:
        return self.BITS * self.divisor

    @property
    def receive_latency(self) -> int:
        """Cycles from the first low one of the start bit to the byte."""
        return self.SYNCHRONIZER + self.divisor // 2 + 9 * self.divisor + 1

    def compute(self, content: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The line's level in every cycle, (n * byte_cycles,), while bytes (n,) are sent."""
        bits = np.unpackbits(np.asarray(content, np.uint8)[:, None], axis=1, bitorder="little")
        framed = np.pad(bits, ((0, 0), (1, 1)), constant_values=((0, 0), (0, 1)))
        return np.repeat(framed.ravel(), self.divisor)

    def receive(self, levels: NDArray[np.uint8]) -> list[tuple[int, int | None]]:
        """What a receiver makes of the line's level in every cycle: for each start bit the cycle in
        which it reports, and the byte, or None if the stop bit is low. After that it waits until
        the line is high. A low level that does not last to the middle of a bit is no start."""
        found: list[tuple[int, int | None]] = []
        middle = self.divisor // 2
        cycle = 0
        while cycle < len(levels):
            if levels[cycle]:
                cycle += 1
                continue
            samples = levels[cycle + middle :: self.divisor][: self.BITS].astype(int)
            if len(samples) and samples[0]:
                cycle += middle + 1
                continue
            if len(samples) < self.BITS:
                break
            byte = int(samples[1:9] @ (1 << np.arange(8)))
            found.append((cycle + self.receive_latency, byte if samples[9] else None))
            cycle += middle + 9 * self.divisor + 1
            while cycle < len(levels) and not samples[9] and not levels[cycle]:
                cycle += 1
        return found
