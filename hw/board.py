"""The top of a board: a design that knows only a clock, a reset and a serial line, on its pins."""

from amaranth.hdl import ClockSignal, Elaboratable, Instance, Module, ResetSignal

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
        uart = platform.request("uart", 0)
        m.submodules.design = Instance(
            self.name,
            i_clk=ClockSignal(),
            i_rst=ResetSignal(allow_reset_less=True),
            i_i_line=uart.rx.i,
            o_o_line=uart.tx.o,
        )
        return m
