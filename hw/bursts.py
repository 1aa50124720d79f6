"""Runs of beats cut into AXI bursts."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from ..golden.accelerator import PAGE_BYTES, AcceleratorSpec
from ..golden.registers import ADDRESS_BITS
from .axi import BEATS_BITS, region_layout, run_layout

__all__ = ["BurstSplitter", "burst_layout"]


def burst_layout(spec: AcceleratorSpec) -> data.StructLayout:
    """A burst of ``beats`` (1 to 256) from ``address``, counted in beats; ``last`` of its run."""
    return data.StructLayout(
        {"address": ADDRESS_BITS - exact_log2(spec.beat_bytes), "beats": 9, "last": 1}
    )


class BurstSplitter(wiring.Component):
    """Cuts runs into the fewest bursts of at most ``spec.burst_beats`` in pages of 4 KiB.

    A run has at least one beat. One that leaves its region yields nothing.

    **Latency**: the first burst is offered 3 cycles after its run is accepted.
    **Throughput**: a burst every 2 cycles, also across runs.

    Members
    -------
    i : runs, see :func:`~shiftcore.hw.axi.run_layout`
    i_regions : see :func:`~shiftcore.hw.axi.region_layout`
    o : bursts, see :func:`burst_layout`
    o_range : a run left its region, a cycle ago (pulse)
    """

    def __init__(self, spec: AcceleratorSpec):
        self.spec = spec
        super().__init__(
            {
                "i": In(stream.Signature(run_layout())),
                "i_regions": In(region_layout()),
                "o": Out(stream.Signature(burst_layout(spec))),
                "o_range": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        shift = exact_log2(self.spec.beat_bytes)
        burst, page = self.spec.burst_beats, PAGE_BYTES >> shift

        # Cycle 0: look the region up. Cycle 1: add the base, judge the range.
        checked = Signal()
        base = Signal(ADDRESS_BITS - shift, reset_less=True)
        offset, size = Signal(32, reset_less=True), Signal(32, reset_less=True)
        beats = Signal(BEATS_BITS, reset_less=True)
        end = Signal(BEATS_BITS + 1, reset_less=True)
        check, take = Signal(), Signal()
        run = self.i.payload
        m.d.comb += [self.i.ready.eq(~checked | check), take.eq(self.i.valid & self.i.ready)]
        with m.If(take):
            m.d.sync += [
                base.eq(self.i_regions.base[run.region][shift:]),
                size.eq(self.i_regions.size[run.region]),
                offset.eq(run.offset),
                beats.eq(run.beats),
                end.eq(run.offset + run.beats),
            ]
        with m.If(take):
            m.d.sync += checked.eq(1)
        with m.Elif(check):
            m.d.sync += checked.eq(0)

        # Cycle 2: the length of the next burst. Cycle 3: offer it, and step to the one after it.
        active = Signal()
        address = Signal(ADDRESS_BITS - shift, reset_less=True)
        left = Signal(32, reset_less=True)
        length = Signal(9, reset_less=True)
        offered, final, step = Signal(), Signal(reset_less=True), Signal()
        inside = Signal()
        m.d.comb += [
            step.eq(self.o.valid & self.o.ready),
            check.eq(checked & (~active | (step & final))),
            inside.eq(end <= size),
        ]
        m.d.sync += self.o_range.eq(check & ~inside)
        with m.If(check):
            m.d.sync += [
                active.eq(inside),
                address.eq(base + offset),
                left.eq(beats),
            ]
        with m.Elif(step):
            m.d.sync += [active.eq(~final), address.eq(address + length), left.eq(left - length)]

        to_page = Signal(range(page + 1))
        room = Signal(9)
        few = Signal(9)
        limit = Signal(9)
        m.d.comb += [
            to_page.eq(Cat(~address[: exact_log2(page)], Const(0, 1)) + 1),
            room.eq(Mux(to_page < burst, to_page, burst)),
            few.eq(left[:9]),
            limit.eq(Mux(~left[9:].any() & (few < room), few, room)),
        ]
        with m.If(active & ~offered):
            m.d.sync += [
                offered.eq(1),
                length.eq(limit),
                final.eq(~left[9:].any() & (few <= room)),
            ]
        with m.Elif(step):
            m.d.sync += offered.eq(0)
        m.d.comb += [
            self.o.valid.eq(offered),
            self.o.payload.address.eq(address),
            self.o.payload.beats.eq(length),
            self.o.payload.last.eq(final),
        ]
        return m
