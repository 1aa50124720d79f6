"""Counters of events, in one memory that one adder visits in turn."""

from amaranth.hdl import Array, Cat, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

__all__ = ["CounterBank"]


class CounterBank(wiring.Component):
    """64-bit counters, at most one event a cycle each.

    Every counter has a few bits of its own; low and high half of the number lie in a memory, where
    what was counted since the last visit is added by turns.

    **Latency**: reading takes ``period`` cycles. The number is that of all events before the first
    of them.

    Parameters
    ----------
    counters : how many, 2 or more
    first : what they count from; only tests of the carry set it

    Members
    -------
    i_clear : forget everything, this cycle's events included
    i_events : a bit for each counter
    i_read, i_which : read a number; held until ``o_done``
    o_given, o_low : its low half, once on the way
    o_done : the last cycle of reading
    o_high : the high half of the number that was read last, a cycle after ``o_done``
    """

    def __init__(self, counters: int, first: int = 0):
        self.counters, self.first = counters, first
        super().__init__(
            {
                "i_clear": In(1),
                "i_events": In(counters),
                "i_read": In(1),
                "i_which": In(range(counters)),
                "o_given": Out(1),
                "o_low": Out(32),
                "o_done": Out(1),
                "o_high": Out(32),
            }
        )

    @property
    def period(self) -> int:
        """Cycles of a read: from one visit of a counter to the next, and one more."""
        return 2 * self.counters + 1

    def elaborate(self, platform):
        m = Module()
        count, places = self.counters, 2 * self.counters
        m.submodules.memory = memory = Memory(
            shape=32, depth=places, init=[], attrs={"no_rw_check": True}
        )
        fetch, store = memory.read_port(), memory.write_port()

        # The half whose word is fetched, and the one whose word is here.
        which, high = Signal(range(count)), Signal()
        here, high_here = Signal(range(count)), Signal()
        m.d.sync += [high.eq(~high), here.eq(which), high_here.eq(high)]
        with m.If(high):
            m.d.sync += which.eq(Mux(which == count - 1, 0, which + 1))

        # What is read stands still until its word is here; its events are counted aside.
        cycle = Signal(range(self.period))
        given, asked = Signal(), Signal()
        aside = Signal(range(places + 1))
        waits = self.i_read & ~given
        m.d.comb += [
            self.o_given.eq(waits & ~high_here & (here == self.i_which)),
            self.o_done.eq(self.i_read & (cycle == self.period - 1)),
        ]
        m.d.sync += [
            cycle.eq(Mux(self.i_read & ~self.o_done, cycle + 1, 0)),
            given.eq((given | self.o_given) & ~self.o_done),
            aside.eq(Mux(waits & ~self.o_given, aside + Array(self.i_events)[self.i_which], 0)),
            asked.eq(self.o_given),
        ]

        # What the memory had before it was cleared lasts until every word was visited.
        own = [Signal(range(2 * places + 1), name=f"own_{k}") for k in range(count)]
        # After reset the first word is met twice.
        stale = Signal(range(places + 2), init=places + 1)
        carry = Signal()
        before, after = Signal(32), Signal(33)
        first = Mux(high_here, self.first >> 32, self.first & 0xFFFFFFFF)
        m.d.comb += [
            fetch.addr.eq(Cat(high, which)),
            fetch.en.eq(1),
            before.eq(Mux(stale.any(), first, fetch.data)),
            after.eq(before + Mux(high_here, carry, Array(own)[here])),
            store.addr.eq(Cat(high_here, here)),
            store.data.eq(after),
            store.en.eq(1),
            self.o_low.eq(after),
        ]
        m.d.sync += carry.eq(after[32] & ~high_here)
        with m.If(asked):
            m.d.sync += self.o_high.eq(after)
        with m.If(stale.any()):
            m.d.sync += stale.eq(stale - 1)
        for k, number in enumerate(own):
            event = self.i_events[k]
            with m.If(~high_here & (here == k)):
                m.d.sync += number.eq(Mux(self.o_given, aside, 0) + event)
            with m.Elif(~(waits & (self.i_which == k))):
                m.d.sync += number.eq(number + event)
        with m.If(self.i_clear):
            m.d.sync += [stale.eq(places), carry.eq(0), aside.eq(0)]
            m.d.sync += [number.eq(0) for number in own]
        return m
