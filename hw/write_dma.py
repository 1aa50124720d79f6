"""The AXI4 write manager: what DRAIN stores."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from ..golden.accelerator import AcceleratorSpec
from .axi import CACHE, INCREMENTING, region_layout, run_layout, write_ports
from .bursts import BurstSplitter
from .fifo import Queue

__all__ = ["WriteDma"]


class WriteDma(wiring.Component):
    """Writes runs of beats, in order.

    A burst is announced when all its beats are in the FIFO. A run that leaves its region is dropped
    as a whole; its beats stay, so that nothing right comes after it.

    **Latency**: ``m_axi_awvalid`` and ``m_axi_wvalid`` rise together, one cycle after the last beat
    of the burst is in the FIFO and at the earliest 4 cycles after the run was accepted; ``o_done``
    comes with the response.
    **Throughput**: a beat a cycle; a burst every 2 cycles.

    Parameters
    ----------
    spec : widths, depths, the longest burst, and how many may be on their way

    Members
    -------
    m_axi_* : see :func:`~shiftcore.hw.axi.write_ports`
    i_run : see :func:`~shiftcore.hw.axi.run_layout`
    i : the beats of the runs; they may come before their run
    o_done : memory has all beats of the oldest run that was not yet done (pulse)
    i_regions : see :func:`~shiftcore.hw.axi.region_layout`; constant while runs are written
    i_halt : announce nothing more; bursts that were announced are finished
    o_idle : no burst is announced that memory has not confirmed
    o_beat : memory took a beat
    o_memory_range : a run left its region (pulse)
    o_write_failed : memory answered with an error (pulse)
    """

    def __init__(self, spec: AcceleratorSpec):
        self.spec = spec
        super().__init__(
            {
                **write_ports(spec.bus_bits, spec.address_bits),
                "i_run": In(stream.Signature(run_layout(spec))),
                "i": In(stream.Signature(spec.bus_bits)),
                "o_done": Out(1),
                "i_regions": In(region_layout(spec)),
                "i_halt": In(1),
                "o_idle": Out(1),
                "o_beat": Out(1),
                "o_memory_range": Out(1),
                "o_write_failed": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        spec = self.spec
        shift = exact_log2(spec.beat_bytes)
        m.submodules.bursts = bursts = BurstSplitter(spec)
        m.submodules.fifo = fifo = Queue(width=spec.bus_bits, depth=spec.store_fifo)
        # Lengths of the bursts whose data memory has not taken, and for those that it has not
        # confirmed whether they end a run.
        m.submodules.lengths = lengths = SyncFIFO(width=8, depth=spec.outstanding)
        m.submodules.ends = ends = SyncFIFO(width=1, depth=spec.outstanding)
        wiring.connect(m, wiring.flipped(self.i_run), bursts.i)

        # Beats in the FIFO that belong to no burst yet.
        held = Signal(range(spec.store_fifo + 1))
        burst = bursts.o.payload
        announce = Signal()
        free = ~self.m_axi_awvalid | self.m_axi_awready
        m.d.comb += [
            bursts.i_regions.eq(self.i_regions),
            self.o_memory_range.eq(bursts.o_range),
            self.i.ready.eq(fifo.w_rdy),
            fifo.w_en.eq(self.i.valid),
            fifo.w_data.eq(self.i.payload),
            bursts.o.ready.eq(
                free & (burst.beats <= held) & lengths.w_rdy & ends.w_rdy & ~self.i_halt
            ),
            announce.eq(bursts.o.valid & bursts.o.ready),
            lengths.w_en.eq(announce),
            lengths.w_data.eq(burst.beats - 1),
            ends.w_en.eq(announce),
            ends.w_data.eq(burst.last),
            self.m_axi_awsize.eq(shift),
            self.m_axi_awburst.eq(INCREMENTING),
            self.m_axi_awcache.eq(CACHE),
        ]
        m.d.sync += held.eq(held + (self.i.valid & self.i.ready) - Mux(announce, burst.beats, 0))
        with m.If(announce):
            m.d.sync += [
                self.m_axi_awvalid.eq(1),
                self.m_axi_awaddr.eq(burst.address << shift),
                self.m_axi_awlen.eq(burst.beats - 1),
            ]
        with m.Elif(self.m_axi_awready):
            m.d.sync += self.m_axi_awvalid.eq(0)

        beat = Signal(8)
        m.d.comb += [
            self.m_axi_wvalid.eq(lengths.r_rdy & fifo.r_rdy),
            self.m_axi_wdata.eq(fifo.r_data),
            self.m_axi_wstrb.eq(-1),
            self.m_axi_wlast.eq(beat == lengths.r_data),
            self.o_beat.eq(self.m_axi_wvalid & self.m_axi_wready),
            fifo.r_en.eq(self.o_beat),
            lengths.r_en.eq(self.o_beat & self.m_axi_wlast),
        ]
        with m.If(self.o_beat):
            m.d.sync += beat.eq(Mux(self.m_axi_wlast, 0, beat + 1))

        m.d.comb += [
            self.m_axi_bready.eq(1),
            ends.r_en.eq(self.m_axi_bvalid),
            self.o_done.eq(self.m_axi_bvalid & ends.r_rdy & ends.r_data & ~self.m_axi_bresp[1]),
            self.o_write_failed.eq(self.m_axi_bvalid & ends.r_rdy & self.m_axi_bresp[1]),
            self.o_idle.eq(~ends.r_rdy),
        ]
        return m
