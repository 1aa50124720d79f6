"""The issue stage: lets pixels into the array when their tile and their accumulator are ready."""

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from ..golden.engine import EngineSpec
from .delay import delayed
from .scale_unit import wave_layout

__all__ = ["PixelIssue", "pixel_layout"]


def pixel_layout(spec: EngineSpec) -> data.StructLayout:
    """One pixel of a pass: the lanes of a block, and the flags of :func:`wave_layout`.

    ``final`` is reported on ``o_retired`` when the pixel is in the accumulators.
    """
    return data.StructLayout(
        {
            "final": 1,
            "first": 1,
            "start": 1,
            "maximum": 1,
            "keep": 1,
            "signed": 1,
            "exponent": 8,
            "address": spec.scale_unit.address_bits,
            "lanes": data.ArrayLayout(spec.array.act_bits, spec.array.rows),
        }
    )


class PixelIssue(wiring.Component):
    """Issues pixels in order, one a cycle unless a pixel has to wait.

    A ``first`` pixel waits for its tile to be loaded, and until ``spec.pass_cycles`` cycles after
    the tile before it. A pixel that does not ``start`` waits until ``spec.scale_unit.revisit``
    cycles after the last pixel with its address, so that it reads what that one wrote.

    **Latency**: a pixel that need not wait is issued one cycle after it is accepted; it is at the
    array's input port, ``o_lanes`` and ``o_wave``, one cycle after its issue.
    **Throughput**: one pixel a cycle.

    Members
    -------
    i : pixels, see :func:`pixel_layout`
    i_loaded, o_take : the next tile is loaded; it is swapped in
    o_lanes : operands, sign- or zero-extended
    o_wave : see :func:`wave_layout`; its ``first`` is the array's swap
    o_busy : a pixel is held back, or was issued less than ``spec.retire_cycles`` ago
    o_retired : a ``final`` pixel was issued ``spec.retire_cycles`` ago
    o_issued : a pixel is issued
    o_held, o_start : a pixel waits or is issued; it starts from the bias
    o_starved, o_hazard : it waits for its tile; for anything else
    """

    def __init__(self, spec: EngineSpec):
        self.spec = spec
        super().__init__(
            {
                "i": In(stream.Signature(pixel_layout(spec))),
                "i_loaded": In(1),
                "o_take": Out(1),
                "o_lanes": Out(data.ArrayLayout(signed(spec.array.operand_bits), spec.array.rows)),
                "o_wave": Out(wave_layout(spec.scale_unit)),
                "o_busy": Out(1),
                "o_retired": Out(1),
                "o_issued": Out(1),
                "o_held": Out(1),
                "o_start": Out(1),
                "o_starved": Out(1),
                "o_hazard": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        spec = self.spec
        pixel = Signal(pixel_layout(spec), reset_less=True)
        held = Signal()
        issue = Signal()
        accept = Signal()
        m.d.comb += self.i.ready.eq(~held | issue)
        m.d.comb += accept.eq(self.i.valid & self.i.ready)
        with m.If(accept):
            m.d.sync += [pixel.eq(self.i.payload), held.eq(1)]
        with m.Elif(issue):
            m.d.sync += held.eq(0)

        # recent[k] is what was issued k + 1 cycles ago; clash[k] says that the held pixel's address
        # equals it. The comparison is made one step ahead, while the pixel is accepted.
        window = spec.scale_unit.revisit - 1
        recent = [
            Signal(
                data.StructLayout({"address": spec.scale_unit.address_bits, "valid": 1}),
                name=f"recent_{k}",
            )
            for k in range(window)
        ]
        now = Signal(recent[0].shape())
        m.d.comb += [now.address.eq(pixel.address), now.valid.eq(issue)]
        clash, clash_next = Signal(window), Signal(window)
        following = []
        for k, older in enumerate([now, *recent[:-1]]):
            m.d.sync += recent[k].eq(older)
            following.append(older.valid & (older.address == self.i.payload.address))
        m.d.comb += clash_next.eq(Mux(accept, Cat(*following), clash << 1))
        m.d.sync += clash.eq(clash_next)

        wait = Signal(range(max(spec.pass_cycles, 2)))
        wait_next = Signal.like(wait)
        with m.If(self.o_take):
            m.d.comb += wait_next.eq(spec.pass_cycles - 1)
        with m.Elif(wait.any()):
            m.d.comb += wait_next.eq(wait - 1)
        m.d.sync += wait.eq(wait_next)

        # That a pixel is issued is known all over the engine in the same cycle. So most of it is
        # decided in the cycle before: one is held, and neither an accumulator nor the tile before
        # it is in the way.
        ready = Signal()
        start_next = Mux(accept, self.i.payload.start, pixel.start)
        first_next = Mux(accept, self.i.payload.first, pixel.first)
        m.d.sync += ready.eq(
            (accept | (held & ~issue))
            & (start_next | ~clash_next.any())
            & ~(first_next & wait_next.any())
        )
        m.d.comb += issue.eq(ready & (~pixel.first | self.i_loaded))
        m.d.comb += self.o_take.eq(issue & pixel.first)
        m.d.comb += [
            self.o_issued.eq(issue),
            self.o_held.eq(held),
            self.o_start.eq(pixel.start),
            self.o_starved.eq(held & pixel.first & ~self.i_loaded),
            self.o_hazard.eq(held & ~issue & ~self.o_starved),
        ]

        for lane, operand in zip(pixel.lanes, self.o_lanes, strict=True):
            m.d.sync += operand.eq(Cat(lane, lane[-1] & pixel.signed).as_signed())
        m.d.sync += self.o_wave.valid.eq(issue)
        for flag in ("start", "maximum", "keep", "signed", "exponent", "address"):
            m.d.sync += getattr(self.o_wave, flag).eq(getattr(pixel, flag))
        m.d.sync += self.o_wave.first.eq(self.o_take)

        # One cycle of the wait is the one in which the counter is loaded.
        retire = Signal(range(spec.retire_cycles))
        with m.If(issue):
            m.d.sync += retire.eq(spec.retire_cycles - 1)
        with m.Elif(retire.any()):
            m.d.sync += retire.eq(retire - 1)
        m.d.comb += self.o_busy.eq(held | retire.any())
        final = issue & pixel.final
        m.d.comb += self.o_retired.eq(delayed(m, final, spec.retire_cycles, "final", reset=True))
        return m
