"""The AXI4 read manager: one port on memory for three engines."""

from amaranth.hdl import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from ..golden.accelerator import AcceleratorSpec
from .axi import read_ports, region_layout, run_layout

__all__ = ["ReadDma"]


class ReadDma(wiring.Component):
    """Reads runs of beats for three clients; in each cycle the first of them that can has its way.

    A client's beats come in the order of its runs. A run that leaves its region is dropped as a
    whole. A burst is asked for when the client's FIFO has room for all of it, so that every beat is
    taken in the cycle in which memory offers it.

    Parameters
    ----------
    spec : widths, depths and the longest burst
    outstanding : bursts that may be on their way at once

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

    def __init__(self, spec: AcceleratorSpec, outstanding: int = 4):
        self.spec, self.outstanding = spec, outstanding
        runs, beats = stream.Signature(run_layout()), stream.Signature(spec.bus_bits)
        super().__init__(
            {
                **read_ports(spec.bus_bits),
                "i_weights": In(runs),
                "i_program": In(runs),
                "i_loads": In(runs),
                "o_weights": Out(beats),
                "o_program": Out(beats),
                "o_loads": Out(beats),
                "i_regions": In(region_layout()),
                "i_halt": In(1),
                "o_idle": Out(1),
                "o_beat": Out(1),
                "o_memory_range": Out(1),
                "o_read_failed": Out(1),
            }
        )

    def elaborate(self, platform):
        raise NotImplementedError
