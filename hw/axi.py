"""Ports of the two buses, under their usual flat names, and the runs that DMA engines move."""

from amaranth.hdl import Const, Module, Mux, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from ..golden.accelerator import AcceleratorSpec
from ..golden.registers import MAP_BITS

__all__ = [
    "CACHE",
    "INCREMENTING",
    "OKAY",
    "SLVERR",
    "control_ports",
    "forward",
    "read_ports",
    "region_layout",
    "run_beats",
    "run_layout",
    "times",
    "write_ports",
]

OKAY, SLVERR = 0b00, 0b10
INCREMENTING = 0b01
"""burst type"""
CACHE = 0b0011
"""normal memory, bufferable, not cached"""


def run_layout(spec: AcceleratorSpec) -> data.StructLayout:
    """Adjacent beats of memory: ``beats`` of them, from beat ``offset`` of ``region`` on."""
    return data.StructLayout(
        {"offset": spec.offset_bits, "region": 2, "beats": spec.offset_bits + 1}
    )


def run_beats(spec: AcceleratorSpec, beats: Value) -> Value:
    """A number of `beats` in a run, where the highest stands for all that no region has."""
    bits = spec.offset_bits + 1
    return Mux(beats[bits:].any(), (1 << bits) - 1, beats[:bits]) if len(beats) > bits else beats


def region_layout(spec: AcceleratorSpec) -> data.StructLayout:
    """The memory regions: ``base`` in bytes, of which the bits below a beat are ignored, and
    ``size`` in beats; both arrays are indexed by :class:`~shiftcore.golden.isa.Region`."""
    return data.StructLayout(
        {
            "base": data.ArrayLayout(spec.address_bits, 4),
            "size": data.ArrayLayout(spec.offset_bits, 4),
        }
    )


def read_ports(bus_bits: int, address_bits: int) -> dict[str, wiring.Member]:
    """Read channels of an AXI4 manager; its transactions have ID 0."""
    return {
        "m_axi_arid": Out(1),
        "m_axi_araddr": Out(address_bits),
        "m_axi_arlen": Out(8),
        "m_axi_arsize": Out(3),
        "m_axi_arburst": Out(2),
        "m_axi_arcache": Out(4),
        "m_axi_arprot": Out(3),
        "m_axi_arvalid": Out(1),
        "m_axi_arready": In(1),
        "m_axi_rid": In(1),
        "m_axi_rdata": In(bus_bits),
        "m_axi_rresp": In(2),
        "m_axi_rlast": In(1),
        "m_axi_rvalid": In(1),
        "m_axi_rready": Out(1),
    }


def write_ports(bus_bits: int, address_bits: int) -> dict[str, wiring.Member]:
    """Write channels of an AXI4 manager; its transactions have ID 0."""
    return {
        "m_axi_awid": Out(1),
        "m_axi_awaddr": Out(address_bits),
        "m_axi_awlen": Out(8),
        "m_axi_awsize": Out(3),
        "m_axi_awburst": Out(2),
        "m_axi_awcache": Out(4),
        "m_axi_awprot": Out(3),
        "m_axi_awvalid": Out(1),
        "m_axi_awready": In(1),
        "m_axi_wdata": Out(bus_bits),
        "m_axi_wstrb": Out(bus_bits // 8),
        "m_axi_wlast": Out(1),
        "m_axi_wvalid": Out(1),
        "m_axi_wready": In(1),
        "m_axi_bid": In(1),
        "m_axi_bresp": In(2),
        "m_axi_bvalid": In(1),
        "m_axi_bready": Out(1),
    }


def control_ports() -> dict[str, wiring.Member]:
    """An AXI4-Lite subordinate of 32 bits."""
    return {
        "s_axi_awaddr": In(MAP_BITS),
        "s_axi_awvalid": In(1),
        "s_axi_awready": Out(1),
        "s_axi_wdata": In(32),
        "s_axi_wstrb": In(4),
        "s_axi_wvalid": In(1),
        "s_axi_wready": Out(1),
        "s_axi_bresp": Out(2),
        "s_axi_bvalid": Out(1),
        "s_axi_bready": In(1),
        "s_axi_araddr": In(MAP_BITS),
        "s_axi_arvalid": In(1),
        "s_axi_arready": Out(1),
        "s_axi_rdata": Out(32),
        "s_axi_rresp": Out(2),
        "s_axi_rvalid": Out(1),
        "s_axi_rready": In(1),
    }


def forward(m: Module, inner: wiring.Component, outer: wiring.Component) -> None:
    """Connect the ``m_axi_`` and ``s_axi_`` ports of `inner` to their namesakes of `outer`."""
    for name, member in inner.signature.members.items():
        if name.startswith(("m_axi_", "s_axi_")):
            inside, outside = getattr(inner, name), getattr(outer, name)
            if member.flow == wiring.In:
                m.d.comb += inside.eq(outside)
            else:
                m.d.comb += outside.eq(inside)


def times(value: Value, constant: int) -> Value:
    """The product of an unsigned `value` and a `constant`, of additions: DSP blocks are scarce."""
    product = Const(0)
    for bit in range(constant.bit_length()):
        if constant >> bit & 1:
            product = product + (value << bit)
    return product
