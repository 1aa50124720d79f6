"""The top of a board: a design that knows only a clock, a reset and a serial line, on its pins."""

from amaranth.hdl import ClockSignal, Elaboratable, Instance, Module, ResetSignal
from amaranth.lib import io

__all__ = ["BoardTop"]


class BoardTop(Elaboratable):
    """The module `name` with the board's clock and first UART; its platform makes the clock domain.

    Parameters
    ----------
    name : of a module with the ports ``clk``, ``rst``, ``i_line`` and ``o_line``
    """

    def __init__(self, name: str):
        self.name = name

    def elaborate(self, platform):
        m = Module()
        pins = platform.request("uart", 0, dir="-")
        m.submodules.receive = receive = io.Buffer("i", pins.rx)
        m.submodules.send = send = io.Buffer("o", pins.tx)
        m.submodules.design = Instance(
            self.name,
            i_clk=ClockSignal(),
            i_rst=ResetSignal(allow_reset_less=True),
            i_i_line=receive.i,
            o_o_line=send.o,
        )
        return m
