"""Runs of beats cut into AXI bursts."""

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from ..golden.accelerator import PAGE_BYTES, AcceleratorSpec
from .axi import region_layout, run_layout

__all__ = ["BurstSplitter", "SharedSplitter", "burst_layout"]


def burst_layout(spec: AcceleratorSpec, clients: int = 1) -> data.StructLayout:
    """A burst of ``beats`` (1 to 256) from ``address``, counted in beats; ``last`` of its run, and
    of which ``client`` where there are several."""
    members = {"address": spec.address_bits - exact_log2(spec.beat_bytes), "beats": 9, "last": 1}
    return data.StructLayout(members | ({"client": range(clients)} if clients > 1 else {}))


def _next_burst(m: Module, spec: AcceleratorSpec, address: Value, few: Value, many: Value):
    """Beats of the next burst, and whether it is the last, of a run with `few` beats left, or with
    `many` more, as a burst never has."""
    burst, page = spec.burst_beats, PAGE_BYTES >> exact_log2(spec.beat_bytes)
    to_page = Signal(range(page + 1))
    room, beats = Signal(9), Signal(9)
    m.d.comb += [
        to_page.eq(Cat(~address[: exact_log2(page)], Const(0, 1)) + 1),
        room.eq(Mux(to_page < burst, to_page, burst)),
        beats.eq(Mux(~many & (few < room), few, room)),
    ]
    return beats, ~many & (few <= room)


class _Lookup:
    """Registers with a run and the region in which it is to be: ``inside`` or not."""

    def __init__(self, m: Module, spec: AcceleratorSpec, take: Value, run: data.View, regions):
        shift = exact_log2(spec.beat_bytes)
        base = Signal(spec.address_bits - shift, reset_less=True)
        offset = Signal(spec.offset_bits, reset_less=True)
        size = Signal.like(offset)
        self.beats = Signal.like(run.beats, name="beats", reset_less=True)
        with m.If(take):
            m.d.sync += [
                base.eq(regions.base[run.region][shift:]),
                size.eq(regions.size[run.region]),
                offset.eq(run.offset),
                self.beats.eq(run.beats),
            ]
        self.inside = Signal()
        m.d.comb += self.inside.eq(offset + self.beats <= size)
        self.address = (base + offset)[: len(base)]


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
                "i": In(stream.Signature(run_layout(spec))),
                "i_regions": In(region_layout(spec)),
                "o": Out(stream.Signature(burst_layout(spec))),
                "o_range": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        spec = self.spec
        # Cycle 0: look the region up. Cycle 1: add the base, judge the range.
        checked, check, take = Signal(), Signal(), Signal()
        m.d.comb += [self.i.ready.eq(~checked | check), take.eq(self.i.valid & self.i.ready)]
        run = _Lookup(m, spec, take, self.i.payload, self.i_regions)
        with m.If(take):
            m.d.sync += checked.eq(1)
        with m.Elif(check):
            m.d.sync += checked.eq(0)

        # Cycle 2: the length of the next burst. Cycle 3: offer it, and step to the one after it.
        active = Signal()
        burst = self.o.payload
        address = Signal(burst.address.shape(), reset_less=True)
        left = Signal(spec.offset_bits, reset_less=True)
        length = Signal(9, reset_less=True)
        offered, final, step = Signal(), Signal(reset_less=True), Signal()
        m.d.comb += [
            step.eq(self.o.valid & self.o.ready),
            check.eq(checked & (~active | (step & final))),
        ]
        m.d.sync += self.o_range.eq(check & ~run.inside)
        with m.If(check):
            m.d.sync += [active.eq(run.inside), address.eq(run.address), left.eq(run.beats)]
        with m.Elif(step):
            m.d.sync += [active.eq(~final), address.eq(address + length), left.eq(left - length)]
        beats, last = _next_burst(m, spec, address, left[:9], left[9:].any())
        with m.If(active & ~offered):
            m.d.sync += [offered.eq(1), length.eq(beats), final.eq(last)]
        with m.Elif(step):
            m.d.sync += offered.eq(0)
        m.d.comb += [
            self.o.valid.eq(offered),
            burst.address.eq(address),
            burst.beats.eq(length),
            burst.last.eq(final),
        ]
        return m


class SharedSplitter(wiring.Component):
    """What :class:`BurstSplitter` does, for several clients, which take turns burst by burst.

    In each turn the first client that has a run and may have a burst is served.

    **Latency**: the first burst is offered 3 cycles after its run is accepted, if no other client
    is served.
    **Throughput**: a burst every 2 cycles; a run is accepted 1 cycle after the last burst of the
    client's run before it was taken.

    Members
    -------
    i : runs of each client, see :func:`~shiftcore.hw.axi.run_layout`
    i_able : whether a client may have a burst; it stays able until that is taken
    i_regions : see :func:`~shiftcore.hw.axi.region_layout`
    o : bursts, see :func:`burst_layout`
    o_range : a run left its region, a cycle ago (pulse)
    """

    def __init__(self, spec: AcceleratorSpec, clients: int):
        self.spec, self.clients = spec, clients
        super().__init__(
            {
                "i": In(stream.Signature(run_layout(spec))).array(clients),
                "i_able": In(clients),
                "i_regions": In(region_layout(spec)),
                "o": Out(stream.Signature(burst_layout(spec, clients))),
                "o_range": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        spec, clients = self.spec, self.clients
        burst = self.o.payload
        active = Signal(clients)
        addresses = Array(
            Signal(burst.address.shape(), name=f"address_{k}", reset_less=True)
            for k in range(clients)
        )
        left = Array(
            Signal(spec.offset_bits, name=f"left_{k}", reset_less=True) for k in range(clients)
        )

        # Cycle 0: look the region of a run up. Cycle 1: add the base, judge the range, and begin.
        checked, check, step = Signal(), Signal(), Signal()
        owner = Signal(range(clients), reset_less=True)
        m.d.comb += [step.eq(self.o.valid & self.o.ready), check.eq(checked & ~step)]
        chosen = Signal.like(owner)
        wanted = Cat(
            each.valid & ~active[k] & ~(checked & (owner == k)) for k, each in enumerate(self.i)
        )
        take = Signal()
        m.d.comb += [chosen.eq(_first(wanted)), take.eq(wanted.any() & (~checked | check))]
        for k, each in enumerate(self.i):
            m.d.comb += each.ready.eq(take & (chosen == k))
        run = _Lookup(m, spec, take, Array(each.payload for each in self.i)[chosen], self.i_regions)
        with m.If(take):
            m.d.sync += [checked.eq(1), owner.eq(chosen)]
        with m.Elif(check):
            m.d.sync += checked.eq(0)
        m.d.sync += self.o_range.eq(check & ~run.inside)

        # Cycle 2: the length of a client's next burst. Cycle 3: offer it, and step on.
        able = Signal(clients)
        offered = Signal()
        served = Signal.like(owner)
        m.d.comb += [able.eq(active & self.i_able), served.eq(_first(able))]
        many = Array(each[9:].any() for each in left)
        beats, last = _next_burst(m, spec, addresses[served], left[served][:9], many[served])
        after = Signal(spec.offset_bits, reset_less=True)
        with m.If(~offered):
            m.d.sync += [
                offered.eq(able.any()),
                burst.client.eq(served),
                burst.address.eq(addresses[served]),
                burst.beats.eq(beats),
                burst.last.eq(last),
                after.eq(left[served]),
            ]
        with m.Elif(step):
            m.d.sync += offered.eq(0)
        m.d.comb += self.o.valid.eq(offered)

        # Either begins a run or goes on with one.
        place = Mux(step, burst.address + burst.beats, run.address)
        rest = Mux(step, after - burst.beats, run.beats)
        which = Mux(step, burst.client, owner)
        with m.If(step | check):
            m.d.sync += [
                addresses[which].eq(place),
                left[which].eq(rest),
                active.bit_select(which, 1).eq(Mux(step, ~burst.last, run.inside)),
            ]
        return m


def _first(bits: Value) -> Value:
    """The number of the lowest bit that is set; the last one's if none is."""
    found = Const(len(bits) - 1)
    for k in reversed(range(len(bits) - 1)):
        found = Mux(bits[k], k, found)
    return found
