"""Memory in block RAM: an AXI4 subordinate, and a second door for what is on the same chip."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from ..golden.accelerator import ADDRESS_BITS
from ..golden.block_memory import BlockMemorySpec
from .axi import OKAY, SLVERR, read_ports, write_ports

__all__ = ["BlockMemory", "subordinate_ports"]


def subordinate_ports(bus_bits: int) -> dict[str, wiring.Member]:
    """The other end of :func:`~shiftcore.hw.axi.read_ports` and ``write_ports``, as ``s_axi_*``."""
    ports = {**read_ports(bus_bits, ADDRESS_BITS), **write_ports(bus_bits, ADDRESS_BITS)}
    return {name.replace("m_", "s_", 1): member.flip() for name, member in ports.items()}


class BlockMemory(wiring.Component):
    """Bursts of whole beats (INCR, ID 0), one in each direction at a time.

    Beats beyond the memory are dropped, read as anything, and answer SLVERR. The door of the chip
    may be used while no burst is on its way.

    **Latency**: ``spec.READ_LATENCY`` cycles from an address to its first beat; a write is
    confirmed in the cycle after its last beat; the door reads in one cycle.
    **Throughput**: a beat a cycle in each direction; a burst of n beats is read every n + 1 cycles
    and written every n + 2 cycles.

    Members
    -------
    s_axi_* : see :func:`subordinate_ports`; strobes are not looked at
    i_read, i_read_beat, o_read : the door for reading; ``o_read`` stays until the next read
    i_write, i_write_beat, i_write_data : the door for writing
    """

    def __init__(self, spec: BlockMemorySpec):
        self.spec = spec
        super().__init__(
            {
                **subordinate_ports(spec.bus_bits),
                "i_read": In(1),
                "i_read_beat": In(spec.address_bits),
                "o_read": Out(spec.bus_bits),
                "i_write": In(1),
                "i_write_beat": In(spec.address_bits),
                "i_write_data": In(spec.bus_bits),
            }
        )

    def elaborate(self, platform):
        m = Module()
        spec = self.spec
        # A beat that is read in the cycle of its write is not used: tickets keep them apart.
        m.submodules.memory = memory = Memory(
            shape=spec.bus_bits, depth=spec.beats, init=spec.words, attrs={"no_rw_check": True}
        )
        self._read(m, memory.read_port())
        self._write(m, memory.write_port())
        return m

    def _beat(self, address) -> Signal:
        """Number of the beat at a byte address, with the bits that tell whether it exists."""
        return address[exact_log2(self.spec.beat_bytes) :]

    def _read(self, m: Module, port) -> None:
        beat = Signal.like(self._beat(self.s_axi_araddr), name="read_beat")
        left = Signal(8, name="read_left")
        reading, step, inside = Signal(), Signal(), Signal(name="read_inside")
        m.d.comb += [
            self.s_axi_arready.eq(~reading),
            step.eq(reading & (~self.s_axi_rvalid | self.s_axi_rready)),
            inside.eq(beat < self.spec.beats),
            port.en.eq(self.i_read | step),
            port.addr.eq(Mux(self.i_read, self.i_read_beat, beat)),
            self.s_axi_rdata.eq(port.data),
            self.o_read.eq(port.data),
        ]
        with m.If(self.s_axi_rready):
            m.d.sync += self.s_axi_rvalid.eq(0)
        with m.If(self.s_axi_arvalid & self.s_axi_arready):
            m.d.sync += [
                reading.eq(1),
                beat.eq(self._beat(self.s_axi_araddr)),
                left.eq(self.s_axi_arlen),
            ]
        with m.If(step):
            m.d.sync += [
                self.s_axi_rvalid.eq(1),
                self.s_axi_rlast.eq(left == 0),
                self.s_axi_rresp.eq(Mux(inside, OKAY, SLVERR)),
                reading.eq(left != 0),
                left.eq(left - 1),
                beat.eq(beat + 1),
            ]

    def _write(self, m: Module, port) -> None:
        beat = Signal.like(self._beat(self.s_axi_awaddr), name="write_beat")
        writing, step, inside = Signal(), Signal(), Signal(name="write_inside")
        m.d.comb += [
            self.s_axi_awready.eq(~writing & ~self.s_axi_bvalid),
            self.s_axi_wready.eq(writing),
            step.eq(self.s_axi_wvalid & self.s_axi_wready),
            inside.eq(beat < self.spec.beats),
            port.en.eq(self.i_write | (step & inside)),
            port.addr.eq(Mux(self.i_write, self.i_write_beat, beat)),
            port.data.eq(Mux(self.i_write, self.i_write_data, self.s_axi_wdata)),
        ]
        with m.If(self.s_axi_bready):
            m.d.sync += self.s_axi_bvalid.eq(0)
        with m.If(self.s_axi_awvalid & self.s_axi_awready):
            m.d.sync += [
                writing.eq(1),
                beat.eq(self._beat(self.s_axi_awaddr)),
                self.s_axi_bresp.eq(OKAY),
            ]
        with m.If(step):
            m.d.sync += beat.eq(beat + 1)
            with m.If(~inside):
                m.d.sync += self.s_axi_bresp.eq(SLVERR)
            with m.If(self.s_axi_wlast):
                m.d.sync += [writing.eq(0), self.s_axi_bvalid.eq(1)]
