"""What a standalone image holds: the host driver's own steps, recorded."""

import numpy as np
from numpy.typing import NDArray

from ..golden.block_memory import BlockMemorySpec
from ..golden.fixed import FixedFormat, Grid
from ..golden.isa import ISA_VERSION, Drain, Form, Region
from ..golden.link import LinkSpec
from ..golden.program import Program
from ..golden.registers import ID, configuration_hash, register
from ..golden.standalone import RunSpec, StandaloneSpec
from ..golden.uart import UartSpec
from .driver import Accelerator

__all__ = ["SILENCE", "at_clock", "standalone"]

SILENCE = 0.1
"""seconds without a byte after which a request is over"""


class _Recorder:
    """A transport whose accelerator computes nothing and is done at once."""

    def __init__(self, program: Program):
        done = register("STATUS").field("DONE").mask
        found = {
            "ID": ID,
            "ISA_VERSION": ISA_VERSION,
            "CONFIG_HASH": configuration_hash(program.config),
            "STATUS": done,
        }
        self._values = {register(name).offset: value for name, value in found.items()}
        self.writes: list[tuple[int, int]] = []
        self.memory: list[tuple[int, NDArray[np.uint8]]] = []
        """byte address and bytes of every write"""
        self.reads: list[tuple[int, int]] = []
        """byte address and size"""

    def read_register(self, offset: int) -> int:
        return self._values[offset]

    def write_register(self, offset: int, value: int) -> None:
        self.writes.append((offset, value))

    def read_memory(self, address: int, size: int) -> NDArray[np.uint8]:
        self.reads.append((address, size))
        return np.zeros(size, np.uint8)

    def write_memory(self, address: int, content: NDArray[np.uint8]) -> None:
        self.memory.append((address, content))

    def wait(self) -> None:
        pass


class _Packed(Accelerator):
    """Regions one after the other: block RAM knows no pages."""

    def place(self, images: int) -> dict[Region, tuple[int, int]]:
        assert self.program is not None
        beat_bytes = self.program.config.accelerator.beat_bytes
        places, address = {}, self.base
        for region, (_, stride) in super().place(images).items():
            places[region] = (address, stride)
            address += self.program.sizes[region] * beat_bytes
        return places


def standalone(program: Program, uart: UartSpec, silence: int) -> StandaloneSpec:
    """The spec of the image that runs `program`, one image at a time.

    Parameters
    ----------
    uart, silence : of the line, see :class:`~shiftcore.golden.link.LinkSpec`

    Raises ``ValueError`` if the network's result is not one score for each of at most 256 classes.
    """
    channels, height, width = program.shapes[program.output]
    results = [
        item
        for item in program.instructions
        if isinstance(item, Drain) and item.to_memory and item.region == Region.OUTPUT
    ]
    stored = any(drain.form != Form.RAW for drain in results)
    if (height, width) != (1, 1) or channels > 256 or stored:
        kind = "codes" if stored else "numbers"
        raise ValueError(
            f"layer {program.output!r} gives {channels}x{height}x{width} {kind}: a standalone "
            f"image needs one score for each of at most 256 classes"
        )
    beat_bytes = program.config.accelerator.beat_bytes
    recorder = _Recorder(program)
    driver = _Packed(recorder)
    driver.load(program)
    driver.run(np.zeros((1, program.sizes[Region.INPUT] * beat_bytes), np.uint8))
    image, content = recorder.memory[-1]
    ((output, size),) = recorder.reads
    grid = _grid(program, results[0])
    bus_bits = program.config.bus_bits
    empty = BlockMemorySpec(bus_bits, bytes(max(output + size, image + content.size)))
    memory = BlockMemorySpec(bus_bits, empty.compute(recorder.memory).tobytes())
    return StandaloneSpec(
        program.config,
        memory,
        RunSpec(tuple(recorder.writes)),
        LinkSpec(content.size, channels, uart, silence, grid),
        image,
        tuple(output + 4 * int(word) for word in _words(program, grid)),
    )


def _grid(program: Program, result: Drain) -> Grid | None:
    """Of which scores are whole numbers; all of one layer are of one grid."""
    form = program.config.accumulator_format
    return Grid(form, result.exponent - 127) if isinstance(form, FixedFormat) else None


def _words(program: Program, grid: Grid | None) -> NDArray[np.int64]:
    """Where every score is in the region of results, in words of 32 bits: what decoding makes of
    words that are their own numbers."""
    count = program.sizes[Region.OUTPUT] * program.config.accelerator.beat_bytes // 4
    words = np.arange(count, dtype=np.float32 if grid is None else np.uint32)
    decoded = np.asarray(program.decode_output(words.view(np.uint8)[None]), np.float64)
    return (decoded / (1.0 if grid is None else grid.unit)).astype(np.int64).ravel()


def at_clock(program: Program, clock_hz: float, baud: int) -> StandaloneSpec:
    """:func:`standalone` for a board's clock; raises ``ValueError`` if it cannot make `baud`."""
    return standalone(program, UartSpec.at(clock_hz, baud), round(SILENCE * clock_hz))
