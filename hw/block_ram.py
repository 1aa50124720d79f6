"""Memories whose read ports have an output register."""

from dataclasses import dataclass

from amaranth.hdl import Cat, ClockSignal, Const, Elaboratable, Instance, Module, Signal
from amaranth.lib.memory import Memory

from ..golden.scale_unit import block_ram_bits

__all__ = ["RegisteredMemory"]


@dataclass(frozen=True)
class Port:
    """A port: ``data`` of ``addr`` if ``en``; of reading, ``data`` follows if ``move``."""

    addr: Signal
    en: Signal
    data: Signal
    move: Signal


class RegisteredMemory(Elaboratable):
    """A memory of ``depth`` words of ``width`` bits with one port to write.

    What a read returns in the cycle of a write to the same address is not defined.

    **Latency**: a read takes 2 cycles, the second one, into the output register, where ``move`` is
    set.
    **Throughput**: one word a cycle at each port.

    Parameters
    ----------
    instanced : make it of ECP5's DP16KD, with the registers inside; else of plain Verilog, whose
        registers a synthesizer may move into block RAMs
    """

    def __init__(self, width: int, depth: int, *, instanced: bool):
        self.width, self.depth, self.instanced = width, depth, instanced
        self._reads: list[Port] = []
        self._write = self._port("write")

    def _port(self, name: str) -> Port:
        return Port(
            Signal((self.depth - 1).bit_length(), name=f"{name}_addr"),
            Signal(name=f"{name}_en"),
            Signal(self.width, name=f"{name}_data"),
            Signal(name=f"{name}_move"),
        )

    def read_port(self) -> Port:
        """One more port to read."""
        self._reads.append(self._port(f"read_{len(self._reads)}"))
        return self._reads[-1]

    def write_port(self) -> Port:
        """The port to write, of which ``move`` is not used."""
        return self._write

    def elaborate(self, platform) -> Module:
        m = Module()
        if self.instanced:
            for k, port in enumerate(self._reads):
                self._blocks(m, f"block_{k}", port)
            return m
        m.submodules.words = words = Memory(
            shape=self.width, depth=self.depth, init=[], attrs={"no_rw_check": True}
        )
        write = words.write_port()
        m.d.comb += [
            write.addr.eq(self._write.addr),
            write.en.eq(self._write.en),
            write.data.eq(self._write.data),
        ]
        for port in self._reads:
            read = words.read_port()
            m.d.comb += [read.addr.eq(port.addr), read.en.eq(port.en)]
            held = Signal(self.width, name=f"{port.data.name}_held", reset_less=True)
            with m.If(port.move):
                m.d.sync += held.eq(read.data)
            m.d.comb += port.data.eq(held)
        return m

    def _blocks(self, m: Module, name: str, port: Port) -> None:
        """A copy of the memory for one port to read, in slices of the words."""
        bits = block_ram_bits(self.depth)
        for low in range(0, self.width, bits):
            part = self._write.data[low : low + bits]
            data = Signal(36, name=f"{name}_{low}")
            m.submodules[f"{name}_{low}"] = _block(self._write, part, port, data, bits)
            m.d.comb += port.data[low : low + bits].eq(data)


def _block(write: Port, written, port: Port, read: Signal, bits: int) -> Instance:
    """A DP16KD that port A writes and port B reads, both `bits` wide.

    Of 36 bits the upper half is on B's pins. Enables of bytes take the place of address bits that
    a wide word does not need.
    """
    place = {1: 0, 2: 1, 4: 2, 9: 3, 18: 4, 36: 5}[bits]
    enables = Const((1 << bits // 9) - 1, place)
    pins = {}
    for letter, address in (
        ("A", Cat(enables, write.addr)),
        ("B", Cat(Const(0, place), port.addr)),
    ):
        address = Cat(address, Const(0, 14))[:14]
        pins |= {f"i_AD{letter}{k}": bit for k, bit in enumerate(address)}
        pins |= {f"i_CS{letter}{k}": Const(0, 1) for k in range(3)}
    written = Cat(written, Const(0, 36))[:36]
    for k in range(18):
        pins |= {f"i_DIA{k}": written[k], f"i_DIB{k}": written[18 + k]}
        # What is narrower than 36 bits is read at B alone.
        low, high = (read[k], read[18 + k]) if bits == 36 else (Signal(name=f"unused_{k}"), read[k])
        pins |= {f"o_DOA{k}": low, f"o_DOB{k}": high}
    return Instance(
        "DP16KD",
        p_DATA_WIDTH_A=bits,
        p_DATA_WIDTH_B=bits,
        p_REGMODE_A="OUTREG",
        p_REGMODE_B="OUTREG",
        p_RESETMODE="SYNC",
        p_ASYNC_RESET_RELEASE="SYNC",
        p_CSDECODE_A="0b000",
        p_CSDECODE_B="0b000",
        p_CLKAMUX="CLKA",
        p_CLKBMUX="CLKB",
        p_WRITEMODE_A="NORMAL",
        p_WRITEMODE_B="NORMAL",
        p_GSR="DISABLED",
        i_CLKA=ClockSignal(),
        i_CEA=write.en,
        i_WEA=Const(1, 1),
        i_OCEA=port.move,
        i_RSTA=Const(0, 1),
        i_CLKB=ClockSignal(),
        i_CEB=port.en,
        i_WEB=Const(0, 1),
        i_OCEB=port.move,
        i_RSTB=Const(0, 1),
        **pins,
    )
