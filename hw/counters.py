"""Counters of events, in one memory that one adder visits in turn."""

from amaranth.hdl import Array, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

__all__ = ["CounterBank"]


class CounterBank(wiring.Component):
    """64-bit counters, at most one event a cycle each.

    Every counter has a few bits of its own; low and high half of the number lie in a memory, where
    what was counted since the last visit is added every ``period`` cycles.

    **Latency**: a number that is asked for comes within ``period + 1`` cycles, and is right then.

    Parameters
    ----------
    counters : how many, 2 or more
    first : what they count from; only tests of the carry set it

    Members
    -------
    i_clear : forget everything, this cycle's events included
    i_events : a bit for each counter
    i_read, i_which : ask for a number; held until ``o_valid``
    o_valid, o_low : its low half
    o_high : the high half of the number that was asked for last, from a cycle later on
    """

    def __init__(self, counters: int, first: int = 0):
        self.counters, self.first = counters, first
        super().__init__(
            {
                "i_clear": In(1),
                "i_events": In(counters),
                "i_read": In(1),
                "i_which": In(range(counters)),
                "o_valid": Out(1),
                "o_low": Out(32),
                "o_high": Out(32),
            }
        )

    @property
    def period(self) -> int:
        """Cycles from one visit of a counter to the next."""
        return 2 * self.counters

    def elaborate(self, platform):
        m = Module()
        count, period = self.counters, self.period
        m.submodules.memory = memory = Memory(
            shape=32, depth=period, init=[], attrs={"no_rw_check": True}
        )
        fetch, store = memory.read_port(), memory.write_port()
        own = [Signal(range(period + 1), name=f"own_{k}") for k in range(count)]

        # The half whose word is fetched, and the one whose word is here.
        which, high = Signal(range(count)), Signal()
        here, high_here = Signal(range(count)), Signal()
        m.d.sync += [high.eq(~high), here.eq(which), high_here.eq(high)]
        with m.If(high):
            m.d.sync += which.eq(Mux(which == count - 1, 0, which + 1))

        # What the memory had before it was cleared lasts until every word was visited.
        stale = Signal(range(period + 1), init=period)
        carry = Signal()
        before, after = Signal(32), Signal(33)
        first = Mux(high_here, self.first >> 32, self.first & 0xFFFFFFFF)
        added = Mux(high_here, carry, Array(own)[here])
        m.d.comb += [
            fetch.addr.eq((which << 1) | high),
            fetch.en.eq(1),
            before.eq(Mux(stale.any(), first, fetch.data)),
            after.eq(before + added),
            store.addr.eq((here << 1) | high_here),
            store.data.eq(after),
            store.en.eq(1),
            self.o_valid.eq(self.i_read & ~high_here & (here == self.i_which)),
            self.o_low.eq(after),
        ]
        asked = Signal()
        m.d.sync += asked.eq(self.o_valid)
        with m.If(asked):
            m.d.sync += self.o_high.eq(after)
        m.d.sync += carry.eq(after[32] & ~high_here)
        with m.If(stale.any()):
            m.d.sync += stale.eq(stale - 1)
        for k, number in enumerate(own):
            event = self.i_events[k]
            m.d.sync += number.eq(Mux(~high_here & (here == k), event, number + event))
        with m.If(self.i_clear):
            m.d.sync += [stale.eq(period), carry.eq(0), *(number.eq(0) for number in own)]
        return m
