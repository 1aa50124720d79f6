"""The rule of every handshake, checked cycle by cycle."""

from dataclasses import dataclass, field

from cocotb.types import Logic

__all__ = ["HIGH", "Handshake"]

HIGH = Logic(1)
"""What a port of one bit is compared with: of the number 1 every comparison would make it anew."""


@dataclass
class Handshake:
    """A channel with valid and ready, looked at in every cycle.

    Once valid, it must stay valid and its payload the same until it is taken.

    Members
    -------
    name : of the channel
    violations : a sentence for each time it did not
    cycles, idle, stalled : in all, without valid, and with valid but not ready
    transfers : the other cycles
    """

    name: str
    violations: list[str] = field(default_factory=list)
    cycles: int = 0
    idle: int = 0
    stalled: int = 0
    _waiting: dict[str, int] | None = None

    @property
    def transfers(self) -> int:
        return self.cycles - self.idle - self.stalled

    def sample(self, payload: dict[str, int] | None, ready: bool) -> dict[str, int] | None:
        """One cycle, `payload` None if it is not valid; what was transferred."""
        if self._waiting is not None and self._waiting != payload:
            self.violations.append(
                f"{self.name} in cycle {self.cycles}: {self._waiting} became {payload}"
            )
        self.cycles += 1
        self.idle += payload is None
        self.stalled += payload is not None and not ready
        self._waiting = None if ready else payload
        return payload if ready else None
