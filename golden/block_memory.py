"""Spec and model of the memory in block RAM that stands behind the accelerator's memory port."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["BlockMemorySpec"]


@dataclass(frozen=True)
class BlockMemorySpec:
    """Memory of whole beats, from address 0 on.

    Parameters
    ----------
    bus_bits : of a beat: 32, 64, 128 or 256
    content : its bytes after power-on, one beat or more
    """

    bus_bits: int
    content: bytes

    READ_LATENCY = 2
    """cycles from an address on AXI to its first beat"""

    def __post_init__(self):
        if self.bus_bits not in (32, 64, 128, 256):
            raise ValueError(f"bus_bits must be 32, 64, 128 or 256, not {self.bus_bits!r}")
        if not self.content or len(self.content) % self.beat_bytes:
            raise ValueError(
                f"content must be whole beats of {self.beat_bytes} bytes, not {len(self.content)} "
                f"bytes"
            )

    @property
    def beat_bytes(self) -> int:
        return self.bus_bits // 8

    @property
    def beats(self) -> int:
        return len(self.content) // self.beat_bytes

    @property
    def address_bits(self) -> int:
        """Of a beat's number."""
        return max(1, (self.beats - 1).bit_length())

    @property
    def words(self) -> list[int]:
        """The beats after power-on, as numbers."""
        step = self.beat_bytes
        return [
            int.from_bytes(self.content[k : k + step], "little")
            for k in range(0, len(self.content), step)
        ]

    def compute(self, writes: Iterable[tuple[int, NDArray[np.uint8]]]) -> NDArray[np.uint8]:
        """The bytes after `writes`, (byte address, whole beats) in order; beats beyond the memory
        are dropped."""
        memory = np.frombuffer(self.content, np.uint8).copy()
        for address, data in writes:
            if address % self.beat_bytes or len(data) % self.beat_bytes:
                raise ValueError(f"a write must be of whole beats, not {len(data)} at {address}")
            room = max(0, len(memory) - address)
            memory[address : address + len(data)] = data[:room]
        return memory
