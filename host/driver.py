"""Drives an accelerator through registers and memory, real or simulated."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..golden.accelerator import PAGE_BYTES
from ..golden.array import CELLS_OF
from ..golden.isa import ISA_VERSION, Error, Region
from ..golden.program import Program
from ..golden.registers import COUNTERS, ID, TIMED, configuration_hash, counters, register

__all__ = ["Accelerator", "AcceleratorError", "Transport"]

RESET_READS = 100_000
"""of the status, after which memory is taken to answer no more"""


class AcceleratorError(RuntimeError):
    """The accelerator is not the one expected, or halted.

    Parameters
    ----------
    message : what happened
    code : why the run halted, ``Error.NONE`` if it did not
    instruction : instructions dispatched by then; under serial control they are not counted
    """

    def __init__(self, message: str, code: Error = Error.NONE, instruction: int = 0):
        super().__init__(message)
        self.code, self.instruction = code, instruction


class Transport(Protocol):
    """Access to the registers and to the memory that the accelerator sees."""

    def read_register(self, offset: int) -> int:
        """The 32-bit register at byte `offset`."""
        ...

    def write_register(self, offset: int, value: int) -> None:
        """Write the 32-bit register at byte `offset`."""
        ...

    def read_memory(self, address: int, size: int) -> NDArray[np.uint8]:
        """`size` bytes from byte `address` of the accelerator's memory."""
        ...

    def write_memory(self, address: int, content: NDArray[np.uint8]) -> None:
        """Write bytes from byte `address` of the accelerator's memory on."""
        ...

    def wait(self) -> None:
        """Return when the interrupt is raised."""
        ...


class Accelerator:
    """One accelerator behind a transport.

    Parameters
    ----------
    transport : registers and memory
    base : byte address of the memory that may be used, a multiple of 4096
    """

    def __init__(self, transport: Transport, base: int = 0):
        if base % PAGE_BYTES:
            raise ValueError(f"base must be a multiple of {PAGE_BYTES}, not {base}")
        self.transport, self.base = transport, base
        self.program: Program | None = None
        found = self.read("ID")
        if found != ID:
            raise AcceleratorError(f"no accelerator: register ID reads 0x{found:08x}")
        if self.read("ISA_VERSION") != ISA_VERSION:
            raise AcceleratorError(
                f"the accelerator has instruction set {self.read('ISA_VERSION')}, this driver "
                f"{ISA_VERSION}"
            )

    def read(self, name: str) -> int:
        """The register of that name."""
        return self.transport.read_register(register(name).offset)

    def write(self, name: str, value: int) -> None:
        """Write the register of that name."""
        self.transport.write_register(register(name).offset, value)

    def load(self, program: Program) -> None:
        """Put a program into memory.

        Raises :class:`AcceleratorError` if it was compiled for another configuration, and not for
        this one with forms that the FPGA's family lacks (:meth:`HardwareConfig.on`).
        """
        expected, found = configuration_hash(program.config), self.read("CONFIG_HASH")
        same = {configuration_hash(program.config.on(family)) for family in (*CELLS_OF, None)}
        if found not in {expected, *same}:
            raise AcceleratorError(
                f"the program is for configuration 0x{expected:08x}, the accelerator is "
                f"0x{found:08x}: compile with its hardware.toml"
            )
        self.program = program
        self.transport.write_memory(self.base, program.model)

    def place(self, images: int) -> dict[Region, tuple[int, int]]:
        """Base address and stride in beats of every region, for a run of so many images."""
        assert self.program is not None
        spec = self.program.config.accelerator
        places, address = {}, self.base
        for region in Region:
            size = self.program.sizes[region]
            own = region in (Region.INPUT, Region.OUTPUT)
            places[region] = (address, size if own else 0)
            address += (
                -(-size * spec.beat_bytes * (images if own else 1) // PAGE_BYTES) * PAGE_BYTES
            )
        if address > 1 << spec.address_bits:
            raise AcceleratorError(
                f"{images} images need memory up to byte {address - 1}, and address_bits = "
                f"{spec.address_bits} ends at {(1 << spec.address_bits) - 1}: run fewer at a time"
            )
        return places

    def run(self, inputs: NDArray[np.uint8], *, timeout: int = 0) -> NDArray[np.uint8]:
        """Compute images: (N, input bytes) to (N, output bytes).

        ``Program.encode_input`` and ``decode_output`` convert them. Under serial control every
        image has a start of its own.

        Parameters
        ----------
        timeout : cycles after which the run halts, 0 for none; only that under serial control

        Raises :class:`AcceleratorError` if the run halts, or the one before it has not ended.
        """
        if self.program is None:
            raise AcceleratorError("load a program first")
        if self._busy:
            raise AcceleratorError(
                "a run is under way, whose end was not waited for: reset it first"
            )
        spec = self.program.config.accelerator
        if spec.serial and timeout:
            raise ValueError(f"timeout must be 0 under serial control, not {timeout}")
        images = len(inputs)
        places = self.place(images)
        size = self.program.sizes[Region.OUTPUT] * spec.beat_bytes
        for region, (address, stride) in places.items():
            self._write_base(region, address)
            self.write(f"{region.name}_SIZE", self.program.sizes[region])
            if not spec.serial:
                self.write(f"{region.name}_STRIDE", stride)
        self.transport.write_memory(places[Region.INPUT][0], inputs.ravel())
        self.write("INTERRUPT_ENABLE", 3)
        if spec.serial:
            for image in range(images):
                for region, (address, stride) in places.items():
                    if image and stride:
                        self._write_base(region, address + image * stride * spec.beat_bytes)
                self._start()
        else:
            self.write("IMAGES", images)
            self.write("TIMEOUT", timeout)
            self._start()
        return self.transport.read_memory(places[Region.OUTPUT][0], images * size).reshape(
            images, size
        )

    def _write_base(self, region: Region, address: int) -> None:
        self.write(f"{region.name}_BASE_LO", address & 0xFFFFFFFF)
        self.write(f"{region.name}_BASE_HI", address >> 32)

    def _start(self) -> None:
        """Start a run and wait for its end."""
        self.write("CONTROL", register("CONTROL").field("CLEAR_INTERRUPT").mask)
        self.write("CONTROL", register("CONTROL").field("START").mask)
        self.transport.wait()
        while self._busy:  # an interrupt that an interrupted wait has left
            self.transport.wait()
        status = register("STATUS")
        value = self.read("STATUS")
        if status.field("ERROR").of(value):
            error = register("ERROR")
            found = self.read("ERROR")
            code = Error(error.field("CODE").of(found))
            instruction = error.field("INSTRUCTION").of(found)
            assert self.program is not None
            serial = self.program.config.accelerator.serial
            after = "" if serial else f" after {instruction} instructions"
            raise AcceleratorError(
                f"the accelerator halted with {code.name}{after}", code, instruction
            )
        if not status.field("DONE").of(value):
            raise AcceleratorError(f"an interrupt came, but STATUS reads 0x{value:08x}")

    def reset(self) -> None:
        """Abandon a run, reset everything but the registers, and wait until memory owes nothing.

        Raises :class:`AcceleratorError` if that does not come to an end.
        """
        self.write("CONTROL", register("CONTROL").field("SOFT_RESET").mask)
        for _ in range(RESET_READS):
            if not self._busy:
                return
        raise AcceleratorError(
            "after a reset the accelerator is busy still: memory does not answer"
        )

    @property
    def _busy(self) -> bool:
        return bool(register("STATUS").field("BUSY").of(self.read("STATUS")))

    def counters(self) -> dict[str, int]:
        """The counters since the last start that no number of an image changes, by lower-case
        name."""
        return {name.lower(): self._counter(name) for name in self._counters if name in TIMED}

    def saturated(self) -> int | None:
        """Pixels since the last start that saturated a fixed-point accumulator; None where they are
        not counted."""
        return self._counter("SATURATED") if "SATURATED" in self._counters else None

    @property
    def _counters(self) -> tuple[str, ...]:
        """Those that the accelerator has; all, if nothing was loaded."""
        return counters(self.program.config.accelerator) if self.program else tuple(COUNTERS)

    def _counter(self, name: str) -> int:
        return self.read(f"{name}_LO") | self.read(f"{name}_HI") << 32
