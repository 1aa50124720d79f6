"""The control registers, an AXI4-Lite subordinate."""

from amaranth.hdl import Module
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from ..golden.registers import COUNTERS
from .axi import control_ports, region_layout

__all__ = ["ControlRegisters", "events_layout"]


def events_layout() -> data.StructLayout:
    """For each counter but ``cycles`` whether it counts in this cycle; the names are lower case."""
    return data.StructLayout({name.lower(): 1 for name in list(COUNTERS)[1:]})


class ControlRegisters(wiring.Component):
    """The registers of :data:`shiftcore.golden.registers.REGISTERS`.

    Address and data of a write may come in any order. An address where no register is answers
    SLVERR. The component is reset with the bus, and not by ``o_soft_reset``.

    **Latency**: a response is valid 2 cycles after the address, and the data of a write, came in.

    Parameters
    ----------
    configuration_hash : see :func:`shiftcore.golden.registers.configuration_hash`

    Members
    -------
    s_axi_* : see :func:`~shiftcore.hw.axi.control_ports`
    o_start, o_soft_reset : pulses; no start while ``i_busy``
    o_images : images of a run, at least 1
    o_timeout : cycles, 0 for none
    o_regions : see :func:`~shiftcore.hw.axi.region_layout`; of the first image
    o_strides : from image to image, in beats, indexed by region
    o_interrupt : level
    i_busy : a run, or the reset after one, is under way; counted in CYCLES
    i_finished : the run ended well (pulse)
    i_failed, i_error, i_instruction : the run halted (pulse), why, and after how many instructions;
        only the first one after a start counts
    i_events : see :func:`events_layout`
    """

    def __init__(self, configuration_hash: int):
        self.configuration_hash = configuration_hash
        super().__init__(
            {
                **control_ports(),
                "o_start": Out(1),
                "o_soft_reset": Out(1),
                "o_images": Out(32),
                "o_timeout": Out(32),
                "o_regions": Out(region_layout()),
                "o_strides": Out(data.ArrayLayout(32, 4)),
                "o_interrupt": Out(1),
                "i_busy": In(1),
                "i_finished": In(1),
                "i_failed": In(1),
                "i_error": In(8),
                "i_instruction": In(24),
                "i_events": In(events_layout()),
            }
        )

    def elaborate(self, platform):
        raise NotImplementedError
