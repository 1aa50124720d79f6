"""Starts runs of the accelerator over its registers, as the host driver does, and judges them."""

from amaranth.hdl import Module, Signal
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from ..golden.registers import MAP_BITS, register
from ..golden.standalone import RunSpec
from .axi import control_ports

__all__ = ["RunControl"]


class RunControl(wiring.Component):
    """For every pulse the writes of ``spec.writes``, one after the other; then it waits for the
    interrupt and reads why the run ended.

    **Latency**: the first write is offered 2 cycles after the start, the others 3 cycles after the
    response before; STATUS is asked for one cycle after the interrupt, and ``o_done`` comes with
    the data of the last read.
    **Throughput**: one run at a time.

    Members
    -------
    m_axi_* : AXI4-Lite manager, the other end of :func:`~shiftcore.hw.axi.control_ports`
    i_start : do a run (pulse); ignored while one is under way
    i_interrupt : of the accelerator
    o_done : the run is over (pulse)
    o_code : why, with ``o_done``: 0, or what register ERROR says
    """

    def __init__(self, spec: RunSpec):
        self.spec = spec
        ports = control_ports().items()
        super().__init__(
            {name.replace("s_", "m_", 1): member.flip() for name, member in ports}
            | {"i_start": In(1), "i_interrupt": In(1), "o_done": Out(1), "o_code": Out(8)}
        )

    def elaborate(self, platform):
        m = Module()
        writes = self.spec.writes
        layout = data.StructLayout({"offset": MAP_BITS, "value": 32})
        m.submodules.script = script = Memory(
            shape=layout,
            depth=max(2, len(writes)),  # else its address has no bits
            init=[{"offset": offset, "value": value} for offset, value in writes],
        )
        index = Signal(range(len(writes) + 1))
        read = script.read_port()
        m.d.comb += [
            read.addr.eq(index),
            self.m_axi_awaddr.eq(read.data.offset),
            self.m_axi_wdata.eq(read.data.value),
            self.m_axi_wstrb.eq(-1),
        ]
        with m.If(self.m_axi_awready):
            m.d.sync += self.m_axi_awvalid.eq(0)
        with m.If(self.m_axi_wready):
            m.d.sync += self.m_axi_wvalid.eq(0)
        with m.If(self.m_axi_arready):
            m.d.sync += self.m_axi_arvalid.eq(0)
        status, error = register("STATUS"), register("ERROR")

        def read_register(offset: int):
            return [self.m_axi_araddr.eq(offset), self.m_axi_arvalid.eq(1)]

        with m.FSM(name="state"):
            with m.State("IDLE"):
                m.d.sync += index.eq(0)
                with m.If(self.i_start):
                    m.next = "FETCH"
            with m.State("FETCH"):
                m.d.sync += [self.m_axi_awvalid.eq(1), self.m_axi_wvalid.eq(1)]
                m.next = "WRITE"
            with m.State("WRITE"):
                m.d.comb += self.m_axi_bready.eq(1)
                with m.If(self.m_axi_bvalid):
                    m.d.sync += index.eq(index + 1)
                    with m.If(index == len(writes) - 1):
                        m.next = "RUN"
                    with m.Else():
                        m.next = "NEXT"
            with m.State("NEXT"):
                m.next = "FETCH"
            with m.State("RUN"):
                with m.If(self.i_interrupt):
                    m.d.sync += read_register(status.offset)
                    m.next = "STATUS"
            with m.State("STATUS"):
                m.d.comb += self.m_axi_rready.eq(1)
                with m.If(self.m_axi_rvalid):
                    with m.If((self.m_axi_rdata & status.field("ERROR").mask).any()):
                        m.d.sync += read_register(error.offset)
                        m.next = "ERROR"
                    with m.Else():
                        m.d.comb += self.o_done.eq(1)
                        m.next = "IDLE"
            with m.State("ERROR"):
                m.d.comb += self.m_axi_rready.eq(1)
                with m.If(self.m_axi_rvalid):
                    field = error.field("CODE")
                    m.d.comb += [
                        self.o_done.eq(1),
                        self.o_code.eq(self.m_axi_rdata[field.offset :][: field.bits]),
                    ]
                    m.next = "IDLE"
        return m
