"""The AXI4 write manager: what DRAIN stores."""

from amaranth.hdl import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from ..golden.accelerator import AcceleratorSpec
from .axi import region_layout, run_layout, write_ports

__all__ = ["WriteDma"]


class WriteDma(wiring.Component):
    """Writes runs of beats, in order.

    A burst is announced when all its beats are in the FIFO. A run that leaves its region is dropped
    as a whole; its beats stay, so that nothing right comes after it.

    Parameters
    ----------
    spec : widths, depths and the longest burst
    outstanding : bursts that may wait for their response at once

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

    def __init__(self, spec: AcceleratorSpec, outstanding: int = 4):
        self.spec, self.outstanding = spec, outstanding
        super().__init__(
            {
                **write_ports(spec.bus_bits),
                "i_run": In(stream.Signature(run_layout())),
                "i": In(stream.Signature(spec.bus_bits)),
                "o_done": Out(1),
                "i_regions": In(region_layout()),
                "i_halt": In(1),
                "o_idle": Out(1),
                "o_beat": Out(1),
                "o_memory_range": Out(1),
                "o_write_failed": Out(1),
            }
        )

    def elaborate(self, platform):
        raise NotImplementedError
