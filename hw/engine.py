"""The engine: array, scale units, tile loader, issue stage, drain and requantizer."""

from functools import partial

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from ..golden.engine import EngineSpec
from ..golden.fixed import FixedFormat
from .array import SystolicArray
from .delay import delayed
from .floats import ordered
from .issue import PixelIssue, pixel_layout
from .library import place
from .loader import TileLoader
from .requantizer import Requantizer, block_layout
from .scale_unit import ScaleUnit, constant

__all__ = ["Engine", "drain_layout", "engine_signature"]


def drain_layout(spec: EngineSpec) -> data.StructLayout:
    """One read of all columns: the ``address``, and whether the row leaves ``raw`` or as (part of)
    a ``signed`` block whose ``last`` row it is. ``wait`` until no pixel is on its way."""
    return data.StructLayout(
        {
            "wait": 1,
            "last": 1,
            "signed": 1,
            "raw": 1,
            "address": spec.scale_unit.address_bits,
        }
    )


def engine_signature(spec: EngineSpec) -> wiring.Signature:
    """The members of :class:`Engine`."""
    tile = data.StructLayout({"data": spec.tile.bus_bits, "last": 1})
    row = data.ArrayLayout(32, spec.array.cols)
    blocks = data.ArrayLayout(block_layout(spec.requantizer), spec.requantizer.blocks_per_beat)
    fixed = {"i_field": In(8), "o_saturated": Out(1)}
    return wiring.Signature(
        (fixed if isinstance(spec.scale_unit.form, FixedFormat) else {})
        | {
            "i_tile": In(stream.Signature(tile)),
            "i_pixel": In(stream.Signature(pixel_layout(spec))),
            "i_drain": In(stream.Signature(drain_layout(spec))),
            "o_raw": Out(stream.Signature(row)),
            "o_block": Out(stream.Signature(blocks)),
            "i_limits": In(limits_layout()),
            "o_busy": Out(1),
            "o_issued": Out(1),
            "o_retired": Out(1),
            "o_starved": Out(1),
            "o_hazard": Out(1),
            "o_empty": Out(1),
            "o_mismatch": Out(1),
        }
    )


def limits_layout() -> data.StructLayout:
    """Two bounds, as memory holds accumulators, between which these are clamped where ``enable`` is
    set; ``low`` is not above ``high``, and zero is +0."""
    return data.StructLayout({"enable": 1, "low": 32, "high": 32})


def _clamped(number, limits, form):
    """``min(max(number, low), high)`` where limits are enabled; ``low`` is not above ``high``."""
    bits, low, high = Value.cast(number), constant(limits.low, form), constant(limits.high, form)
    inside = Mux(ordered(bits, form) < ordered(low, form), low, bits)
    bounded = Mux(ordered(bits, form) > ordered(high, form), high, inside)
    return Mux(limits.enable, bounded, bits)


def _in_memory(number, form):
    """The 32 bits of an accumulator in memory."""
    if isinstance(form, FixedFormat):
        kept = number[form.dropped_bits :]
        return Cat(kept, kept[-1].replicate(32 - len(kept)))
    return number


class Engine(wiring.Component):
    """Runs passes: tiles and pixels in, raw accumulators or blocks of codes out.

    A pass is one tile and the pixels from one with ``first`` to the next. A drain with ``wait``
    waits until every pixel accepted before it is in the accumulators; one without may read beside
    passes that do not touch its accumulators; where they have a shared port, no
    pixel may come from then on until the rows have left.

    **Latency**: the first pixel of the first pass is issued ``spec.load_cycles(start)`` cycles
    after its first beat; a pixel is in the accumulators ``spec.retire_cycles`` cycles after its
    issue; a raw row leaves ``spec.drain_cycles`` cycles after its drain is accepted.
    **Throughput**: a pass of P pixels takes ``max(P, spec.load_cycles(start of the next pass),
    spec.pass_cycles)`` cycles, and as many more as keep two updates of one accumulator
    ``spec.scale_unit.revisit`` cycles apart; one row is drained a cycle.

    Members
    -------
    i_tile : beats of tiles, see :class:`~shiftcore.hw.loader.TileLoader`
    i_pixel : pixels, see :func:`~shiftcore.hw.issue.pixel_layout`
    i_drain : reads of the accumulators, see :func:`drain_layout`
    o_raw : rows of ``cols`` accumulators, 32 bits each
    o_block : ``blocks_per_beat`` blocks, see :func:`~shiftcore.hw.requantizer.block_layout`
    i_limits : bounds of what is drained; only where the hardware has ``clamp``
    i_field : exponent field of the number 1, with fixed-point accumulators; stands still while
        blocks are drained
    o_saturated : a pixel saturated one of them; some cycles after it is in the accumulators
    o_busy : pixels are on their way to the accumulators
    o_issued : a pixel is issued
    o_retired : a pixel with ``final`` is in the accumulators
    o_starved, o_hazard : a pixel waits for its tile; for anything else
    o_empty : neither a pixel nor a beat of a tile waits to be used
    o_mismatch : a tile is swapped in that has biases although its first pixel does not start from
        them, or has none although it does
    """

    def __init__(self, spec: EngineSpec):
        self.spec = spec
        super().__init__(engine_signature(spec))

    def elaborate(self, platform):
        m = Module()
        spec, form = self.spec, self.spec.scale_unit.form
        fixed, size = isinstance(form, FixedFormat), form.storage_bits
        m.submodules.loader = loader = TileLoader(spec)
        m.submodules.issue = issue = PixelIssue(spec)
        m.submodules.array = array = SystolicArray(spec.array)
        wiring.connect(m, wiring.flipped(self.i_tile), loader.i)
        wiring.connect(m, wiring.flipped(self.i_pixel), issue.i)
        m.d.comb += [
            issue.i_loaded.eq(loader.o_loaded),
            loader.i_take.eq(issue.o_take),
            array.i_lanes.eq(issue.o_lanes),
            array.i_swap.eq(issue.o_wave.first),
            array.i_codes.eq(loader.o_codes),
            array.i_enable.eq(loader.o_enable),
            self.o_busy.eq(issue.o_busy),
            self.o_issued.eq(issue.o_issued),
            self.o_retired.eq(issue.o_retired),
            self.o_starved.eq(issue.o_starved),
            self.o_hazard.eq(issue.o_hazard),
            self.o_empty.eq(loader.o_empty & ~issue.o_held),
            self.o_mismatch.eq(issue.o_take & (issue.o_start != loader.o_biased)),
        ]

        begin = issue.o_wave.valid & issue.o_wave.first
        start = delayed(m, begin & issue.o_wave.start, spec.bias_play, "bias_play", reset=True)
        wave = delayed(m, issue.o_wave, spec.wave_delay, "wave", reset=True)
        m.d.comb += [
            loader.i_play_scale.eq(delayed(m, begin, spec.scale_play, "scale_play", reset=True)),
            loader.i_play_bias.eq(start),
        ]

        fetch, fetched = Signal(), Signal()
        inside = spec.scale_unit.drain_cycles > 1
        drain = Signal(drain_layout(spec), reset_less=True)
        units, columns, saturated = [], [], Const(0, 1)
        for c in range(spec.array.cols):
            unit = place(
                m, platform, f"scale_unit_{c}", "scale_unit", partial(ScaleUnit, spec.scale_unit)
            )
            m.d.comb += [
                unit.i_wave.eq(wave),
                unit.i_sum.eq(array.o_sums[c]),
                unit.i_scale.eq(loader.o_scale),
                unit.i_bias.eq(loader.o_bias),
                unit.i_drain_address.eq(self.i_drain.payload.address),
                unit.i_drain_enable.eq(fetch),
            ]
            units.append(unit)
            wave = unit.o_wave
            columns.append(unit.o_drain)
            if fixed:
                m.d.comb += unit.i_saturated.eq(saturated)
                saturated = unit.o_saturated

        m.submodules.requantizer = requantizer = Requantizer(spec.requantizer)
        if fixed:
            m.d.comb += [self.o_saturated.eq(saturated), requantizer.i_field.eq(self.i_field)]
        free = Signal()
        valid, row, values = fetched, drain, Cat(*columns)
        if spec.clamp:
            values = Cat(*(_clamped(column, self.i_limits, form) for column in columns))
        if spec.drain_cycles > 1:
            # The second register of the numbers is after the clamp, or else that of the memories.
            stage = [Signal(name="valid_2"), Signal.like(drain, name="drain_2")]
            if inside:
                m.d.comb += [unit.i_drain_move.eq(free) for unit in units]
            else:
                stage.append(Signal.like(values))
            with m.If(free):
                m.d.sync += [s.eq(v) for s, v in zip(stage, (valid, row, values), strict=False)]
            valid, row, values = *stage, *[values][: 3 - len(stage)]
        m.d.comb += [
            free.eq(~valid | Mux(row.raw, self.o_raw.ready, requantizer.i.ready)),
            self.i_drain.ready.eq(free & ~(self.i_drain.payload.wait & issue.o_busy)),
            fetch.eq(self.i_drain.valid & self.i_drain.ready),
            self.o_raw.valid.eq(valid & row.raw),
            self.o_raw.payload.as_value().eq(
                Cat(*(_in_memory(values[c * size :][:size], form) for c in range(len(columns))))
            ),
            requantizer.i.valid.eq(valid & ~row.raw),
            Cat(*requantizer.i.payload.values).eq(values),
            requantizer.i.payload.last.eq(row.last),
            requantizer.i.payload.signed.eq(row.signed),
        ]
        with m.If(free):
            m.d.sync += [fetched.eq(fetch), drain.eq(self.i_drain.payload)]
        wiring.connect(m, requantizer.o, wiring.flipped(self.o_block))
        return m
