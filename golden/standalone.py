"""Spec of a standalone image: the accelerator, its memory in block RAM, and a serial line."""

from dataclasses import dataclass

from .block_memory import BlockMemorySpec
from .config import HardwareConfig
from .link import LinkSpec
from .registers import register

__all__ = ["RunSpec", "StandaloneSpec"]


@dataclass(frozen=True)
class RunSpec:
    """How one run is started and judged over the registers.

    Parameters
    ----------
    writes : (byte offset, value) in order, the last one starts the run
    """

    writes: tuple[tuple[int, int], ...]

    def __post_init__(self):
        if not self.writes:
            raise ValueError("writes must start a run, not be empty")

    def compute(self, status: int, error: int) -> tuple[list[int], int]:
        """Offsets of the registers that are read after the interrupt, and the code of the run, 0 if
        it ended well.

        Parameters
        ----------
        status, error : what the registers of these names read
        """
        reads = [register("STATUS").offset]
        if not register("STATUS").field("ERROR").of(status):
            return reads, 0
        return [*reads, register("ERROR").offset], register("ERROR").field("CODE").of(error)


@dataclass(frozen=True)
class StandaloneSpec:
    """Everything that a standalone image is built from.

    Parameters
    ----------
    config : of the accelerator
    memory : program, weights, and room for image and result
    run : as the host driver starts it
    link : the protocol
    image : byte address of the encoded image, the beginning of a beat
    scores : byte address of the score of every class, each of 32 bits
    """

    config: HardwareConfig
    memory: BlockMemorySpec
    run: RunSpec
    link: LinkSpec
    image: int
    scores: tuple[int, ...]

    def __post_init__(self):
        size = self.memory.beats * self.memory.beat_bytes
        if self.memory.bus_bits != self.config.bus_bits:
            raise ValueError(f"memory must have beats of {self.config.bus_bits} bits")
        if len(self.scores) != self.link.classes:
            raise ValueError(f"scores must be {self.link.classes} addresses")
        if self.image % self.memory.beat_bytes or self.link.image_bytes % self.memory.beat_bytes:
            raise ValueError("the image must be whole beats")
        if self.image + self.link.image_bytes > size or max(self.scores) + 4 > size:
            raise ValueError("image and scores must be in the memory")
