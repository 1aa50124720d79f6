"""A standalone image: a network that answers on a serial line, with nothing around it."""

from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ..golden.standalone import StandaloneSpec
from .accelerator import Accelerator
from .block_memory import BlockMemory
from .link import Link
from .run_control import RunControl
from .uart import UartReceiver, UartTransmitter

__all__ = ["Standalone"]


class Standalone(wiring.Component):
    """The accelerator, its memory in block RAM, and the link.

    **Latency**: from the last byte of a request to the first of the reply the accelerator's cycles
    for one image, about 6 for each register write, and 3 for each class.
    **Throughput**: one request at a time.

    Members
    -------
    i_line, o_line : the serial line
    """

    def __init__(self, spec: StandaloneSpec):
        self.spec = spec
        super().__init__({"i_line": In(1, init=1), "o_line": Out(1, init=1)})

    def elaborate(self, platform):
        m = Module()
        spec = self.spec
        m.submodules.accelerator = accelerator = Accelerator(spec.config)
        m.submodules.memory = memory = BlockMemory(spec.memory)
        m.submodules.run_control = run_control = RunControl(spec.run)
        m.submodules.link = link = Link(spec)
        m.submodules.receiver = receiver = UartReceiver(spec.link.uart)
        m.submodules.transmitter = transmitter = UartTransmitter(spec.link.uart)
        for manager, subordinate in ((accelerator, memory), (run_control, accelerator)):
            for name, member in manager.signature.members.items():
                if name.startswith("m_axi_"):
                    ours, theirs = getattr(manager, name), getattr(subordinate, f"s{name[1:]}")
                    m.d.comb += theirs.eq(ours) if member.flow == Out else ours.eq(theirs)
        wiring.connect(m, receiver.o, link.i)
        wiring.connect(m, link.o, transmitter.i)
        m.d.comb += [
            receiver.i_line.eq(self.i_line),
            self.o_line.eq(transmitter.o_line),
            link.i_broken.eq(receiver.o_broken),
            memory.i_write.eq(link.o_write),
            memory.i_write_beat.eq(link.o_write_beat),
            memory.i_write_data.eq(link.o_write_data),
            memory.i_read.eq(link.o_read),
            memory.i_read_beat.eq(link.o_read_beat),
            link.i_read.eq(memory.o_read),
            run_control.i_start.eq(link.o_start),
            run_control.i_interrupt.eq(accelerator.o_interrupt),
            link.i_done.eq(run_control.o_done),
            link.i_code.eq(run_control.o_code),
        ]
        return m
