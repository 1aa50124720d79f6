"""The AXI4 read manager: one port on memory for three engines."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from ..golden.accelerator import AcceleratorSpec
from .axi import CACHE, INCREMENTING, read_ports, region_layout, run_layout
from .bursts import SharedSplitter
from .fifo import Queue

__all__ = ["ReadDma"]


class ReadDma(wiring.Component):
    """Reads runs of beats for three clients; in each turn the first of them that can has its way.

    A client's beats come in the order of its runs. A run that leaves its region is dropped as a
    whole. A burst is asked for when the client's FIFO has room for the longest one, so that every
    beat is taken in the cycle in which memory offers it.

    **Latency**: ``m_axi_arvalid`` rises 4 cycles after a run is accepted; a beat is offered 2
    cycles after it came.
    **Throughput**: a beat a cycle; a burst is asked for every 2 cycles. Where runs are single
    bursts, it is every 4 cycles for one client and twice in 5 for two.

    Parameters
    ----------
    spec : widths, depths, the longest burst, and how many may be on their way

    Members
    -------
    m_axi_* : see :func:`~shiftcore.hw.axi.read_ports`
    i_weights, i_program, i_loads : runs of the clients, see :func:`~shiftcore.hw.axi.run_layout`;
        the first has priority
    o_weights, o_program, o_loads : their beats
    i_regions : see :func:`~shiftcore.hw.axi.region_layout`; constant while runs are read
    i_halt : ask for nothing more, and drop what still comes
    o_idle : no burst is asked for or on its way
    o_beat : a beat came
    o_memory_range : a run left its region (pulse)
    o_read_failed : a beat came with an error (pulse)
    """

    def __init__(self, spec: AcceleratorSpec):
        self.spec = spec
        runs, beats = stream.Signature(run_layout(spec)), stream.Signature(spec.bus_bits)
        super().__init__(
            {
                **read_ports(spec.bus_bits, spec.address_bits),
                "i_weights": In(runs),
                "i_program": In(runs),
                "i_loads": In(runs),
                "o_weights": Out(beats),
                "o_program": Out(beats),
                "o_loads": Out(beats),
                "i_regions": In(region_layout(spec)),
                "i_halt": In(1),
                "o_idle": Out(1),
                "o_beat": Out(1),
                "o_memory_range": Out(1),
                "o_read_failed": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        spec = self.spec
        shift = exact_log2(spec.beat_bytes)
        program_fifo = 2 * max(spec.burst_beats, spec.instruction_beats)
        clients = {
            "weights": (self.i_weights, self.o_weights, spec.weight_fifo),
            "program": (self.i_program, self.o_program, program_fifo),
            "loads": (self.i_loads, self.o_loads, spec.load_fifo),
        }
        # Which client each burst that was asked for belongs to.
        m.submodules.order = order = SyncFIFO(width=2, depth=spec.outstanding)
        free = Signal()
        m.d.comb += free.eq((~self.m_axi_arvalid | self.m_axi_arready) & order.w_rdy & ~self.i_halt)
        with m.If(self.m_axi_arready):
            m.d.sync += self.m_axi_arvalid.eq(0)
        came = Signal()
        m.d.comb += [
            self.m_axi_arsize.eq(shift),
            self.m_axi_arburst.eq(INCREMENTING),
            self.m_axi_arcache.eq(CACHE),
            self.m_axi_rready.eq(1),
            came.eq(self.m_axi_rvalid & order.r_rdy),
            order.r_en.eq(came & self.m_axi_rlast),
            self.o_idle.eq(~order.r_rdy),
            self.o_beat.eq(came),
            self.o_read_failed.eq(came & self.m_axi_rresp[1]),
        ]

        m.submodules.bursts = bursts = SharedSplitter(spec, len(clients))
        burst = bursts.o.payload
        ask = Signal()
        m.d.comb += [
            bursts.i_regions.eq(self.i_regions),
            bursts.o.ready.eq(free),
            ask.eq(bursts.o.valid & free),
            order.w_en.eq(ask),
            order.w_data.eq(burst.client),
            self.o_memory_range.eq(bursts.o_range),
        ]
        with m.If(ask):
            m.d.sync += [
                self.m_axi_arvalid.eq(1),
                self.m_axi_araddr.eq(burst.address << shift),
                self.m_axi_arlen.eq(burst.beats - 1),
            ]
        for index, (name, (i_run, o_beats, depth)) in enumerate(clients.items()):
            m.submodules[f"{name}_fifo"] = fifo = Queue(width=spec.bus_bits, depth=depth)
            wiring.connect(m, wiring.flipped(i_run), bursts.i[index])
            room = Signal(range(depth + 1), init=depth, name=f"{name}_room")
            m.d.comb += [
                bursts.i_able[index].eq(room >= spec.burst_beats),
                fifo.w_data.eq(self.m_axi_rdata),
                fifo.w_en.eq(came & (order.r_data == index) & ~self.i_halt),
                o_beats.payload.eq(fifo.r_data),
                o_beats.valid.eq(fifo.r_rdy),
                fifo.r_en.eq(o_beats.ready),
            ]
            m.d.sync += room.eq(
                room
                - Mux(ask & (burst.client == index), burst.beats, 0)
                + (o_beats.valid & o_beats.ready)
            )
        return m
