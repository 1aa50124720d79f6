"""Access to an accelerator in an FPGA from Linux: UIO for registers, u-dma-buf for memory."""

import mmap
import os
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from ..golden.registers import MAP_BITS

__all__ = ["MappedTransport"]


class MappedTransport:
    """A :class:`~shiftcore.host.driver.Transport` over two device files.

    The registers and the interrupt are a UIO device (``generic-uio`` in the device tree); the
    memory is one contiguous buffer (u-dma-buf) to which the accelerator's ``m_axi`` has access.
    Addresses of :meth:`read_memory` and :meth:`write_memory` are physical, as the accelerator sees
    them: pass ``base=transport.address`` to the driver. The buffer must be coherent, or opened with
    ``sync`` so that the processor does not cache it.

    Parameters
    ----------
    registers : UIO device, such as ``/dev/uio0``
    memory : buffer, such as ``/dev/udmabuf0``
    address : physical address of the buffer; by default what the driver of u-dma-buf says in
        ``/sys/class/u-dma-buf``
    size : its bytes; by default the same

    Raises ``OSError`` if a file cannot be opened.
    """

    def __init__(
        self,
        registers: Path | str,
        memory: Path | str,
        *,
        address: int | None = None,
        size: int | None = None,
    ):
        about = Path("/sys/class/u-dma-buf") / Path(memory).name
        if address is None:
            address = int((about / "phys_addr").read_text(), 0)
        if size is None:
            size = int((about / "size").read_text(), 0)
        self.address, self.size = address, size
        self._uio = os.open(registers, os.O_RDWR | os.O_SYNC)
        try:
            self._registers = mmap.mmap(self._uio, 1 << MAP_BITS)
            memory_file = os.open(memory, os.O_RDWR | os.O_SYNC)
        except OSError:
            os.close(self._uio)
            raise
        try:
            self._memory = mmap.mmap(memory_file, size)
        finally:
            os.close(memory_file)
        # Whole words: a register is read and written in one access of 32 bits.
        self._words = memoryview(self._registers).cast("I")
        self._bytes = np.frombuffer(self._memory, np.uint8)

    def __enter__(self) -> "MappedTransport":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Unmap and close the device files."""
        self._words.release()
        self._registers.close()
        del self._bytes
        self._memory.close()
        os.close(self._uio)

    def read_register(self, offset: int) -> int:
        """The 32-bit register at byte `offset`."""
        return self._words[offset // 4]

    def write_register(self, offset: int, value: int) -> None:
        """Write the 32-bit register at byte `offset`."""
        self._words[offset // 4] = value

    def _part(self, address: int, size: int) -> slice:
        first = address - self.address
        if first < 0 or first + size > self.size:
            raise ValueError(
                f"the buffer is {self.size} bytes at 0x{self.address:x}; "
                f"{size} bytes at 0x{address:x} are not in it"
            )
        return slice(first, first + size)

    def read_memory(self, address: int, size: int) -> NDArray[np.uint8]:
        """`size` bytes from physical `address` on."""
        return self._bytes[self._part(address, size)].copy()

    def write_memory(self, address: int, content: NDArray[np.uint8]) -> None:
        """Write bytes from physical `address` on."""
        self._bytes[self._part(address, content.size)] = content

    def wait(self) -> None:
        """Return when the interrupt is raised: enables it in UIO and blocks."""
        os.write(self._uio, (1).to_bytes(4, "little"))
        os.read(self._uio, 4)
