"""The tile loader: beats in, weight rows for the array and constants for the columns out."""

from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from ..golden.engine import EngineSpec
from ..golden.floats import ScaleFormat
from .floats import scale_layout

__all__ = ["ConstantPlayer", "TileLoader", "normalized_scale"]


def normalized_scale(m: Module, code: Signal, form: ScaleFormat):
    """The stored `code` of a scale in the scale units' layout (see :func:`scale_layout`)."""
    scale = Signal(scale_layout(form.significand_bits))
    fraction = code[: form.fraction_bits]
    exponent = code[form.fraction_bits :][: form.exponent_bits]
    target = scale.as_value()[: form.fraction_bits]
    m.d.comb += scale.sign.eq(code[-1] if form.signed else 0)
    if not form.subnormals:
        m.d.comb += [scale.exponent.eq(exponent), target.eq(fraction)]
        return scale
    rebias = 127 - ((1 << (form.exponent_bits - 1)) - 1)
    with m.If(exponent.any()):
        m.d.comb += [scale.exponent.eq(exponent + rebias), target.eq(fraction)]
    for position in range(form.fraction_bits):
        # The highest set bit comes last and wins.
        with m.If(~exponent.any() & fraction[position]):
            leading = form.fraction_bits - position
            m.d.comb += [scale.exponent.eq(1 + rebias - leading), target.eq(fraction << leading)]
    return scale


class ConstantPlayer(wiring.Component):
    """Buffers one constant per column for a few tiles and plays them in column order.

    **Latency**: the constant of column c is on ``o`` ``c + 1`` cycles after ``i_play``.
    **Throughput**: a tile every ``cols`` cycles.

    Parameters
    ----------
    cols : constants of a tile
    bits : width of a constant; divides ``bus_bits``
    bus_bits : width of a beat
    tiles : tiles that fit
    block : keep them in block RAM even where they are few; a tile is then played 2 cycles after its
        last beat, or later

    Members
    -------
    i_beat, i_write : a beat of constants, column 0 lowest; the last beat of a tile may be partial
    i_play : start to play the oldest tile, at most every ``cols`` cycles
    o : constant of the column whose turn it is
    o_space : another tile fits
    """

    def __init__(self, cols: int, bits: int, bus_bits: int, tiles: int, block: bool = False):
        self.cols, self.bits, self.bus_bits, self.tiles = cols, bits, bus_bits, tiles
        self.block = block
        super().__init__(
            {
                "i_beat": In(bus_bits),
                "i_write": In(1),
                "i_play": In(1),
                "o": Out(bits),
                "o_space": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        per_beat = self.bus_bits // self.bits
        beats = -(-self.cols // per_beat)
        depth = max(2, beats * self.tiles)
        attrs = {"ram_style": "block", "no_rw_check": True} if self.block else {}
        m.submodules.memory = memory = Memory(
            shape=self.bus_bits, depth=depth, init=[], attrs=attrs
        )
        write = memory.write_port()
        read = memory.read_port(domain="sync" if self.block else "comb")
        place = Signal.like(read.addr)

        def following(pointer):
            return Mux(pointer == depth - 1, 0, pointer + 1)

        m.d.comb += [write.data.eq(self.i_beat), write.en.eq(self.i_write)]
        with m.If(self.i_write):
            m.d.sync += write.addr.eq(following(write.addr))

        column = Signal(range(max(self.cols, 2)))
        playing = Signal()
        step = Signal()
        last, advance = Signal(), Signal()
        m.d.comb += [step.eq(self.i_play | playing), last.eq(step & (column == self.cols - 1))]
        word = Signal(range(max(per_beat, 2)))
        chosen = Signal(self.bits)
        if per_beat == 1:
            m.d.comb += chosen.eq(read.data)
        else:
            with m.Switch(word):
                for index in range(per_beat):
                    with m.Case(index):
                        m.d.comb += chosen.eq(read.data.word_select(index, self.bits))
        with m.If(step):
            m.d.sync += [playing.eq(~last), column.eq(Mux(last, 0, column + 1)), self.o.eq(chosen)]
            with m.If(last | (word == per_beat - 1)):
                m.d.comb += advance.eq(1)
                m.d.sync += word.eq(0)
            with m.Else():
                m.d.sync += word.eq(word + 1)
        with m.If(advance):
            m.d.sync += place.eq(following(place))
        m.d.comb += read.addr.eq(Mux(advance, following(place), place) if self.block else place)

        # Tiles are counted when their first beat comes in and when their last constant goes out.
        beat = Signal(range(max(beats, 2)))
        held = Signal(range(self.tiles + 1))
        begin = self.i_write & ~beat.any()
        with m.If(self.i_write):
            m.d.sync += beat.eq(Mux(beat == beats - 1, 0, beat + 1))
        m.d.sync += held.eq(held + begin - last)
        m.d.comb += self.o_space.eq((held != self.tiles) | beat.any())
        return m


class TileLoader(wiring.Component):
    """Takes a tile from a stream of beats (:class:`~shiftcore.golden.array.TileFormat`).

    Weight rows go to the array at once; when the last beat is in, ``o_loaded`` says that the tile
    can be swapped in, and nothing more is taken until ``i_take`` says that it was. Scales and
    biases are played to the columns later, when the first pixel gets there.

    **Latency**: a weight row is at ``o_codes`` one cycle after its last beat; ``o_loaded`` rises
    one cycle after the last beat.
    **Throughput**: one beat a cycle; the first beat of the next tile is taken in the cycle of
    ``i_take``.

    Members
    -------
    i : beats; ``last`` marks the last of a tile, which says whether biases came
    o_codes, o_enable : a weight row and the rows of the array that take it
    o_loaded, i_take : hand-over of a complete tile
    o_biased : the complete tile came with biases
    o_empty : no beat of a further tile was taken
    i_play_scale, i_play_bias : start to play the constants of the oldest tile
    o_scale, o_bias : constant of the column whose turn it is
    """

    def __init__(self, spec: EngineSpec):
        self.spec = spec
        array = spec.array
        super().__init__(
            {
                "i": In(
                    stream.Signature(data.StructLayout({"data": spec.tile.bus_bits, "last": 1}))
                ),
                "o_codes": Out(data.ArrayLayout(signed(array.weight_bits), array.cols)),
                "o_enable": Out(array.rows),
                "o_loaded": Out(1),
                "o_biased": Out(1),
                "o_empty": Out(1),
                "i_take": In(1),
                "i_play_scale": In(1),
                "i_play_bias": In(1),
                "o_scale": Out(scale_layout(spec.tile.scale.significand_bits)),
                "o_bias": Out(32),
            }
        )

    def elaborate(self, platform):
        m = Module()
        spec, tile = self.spec, self.spec.tile
        rows, row_beats = spec.array.rows, tile.row_beats
        m.submodules.scales = scales = ConstantPlayer(
            spec.array.cols, tile.scale.storage_bits, tile.bus_bits, spec.scale_tiles,
            spec.scale_unit.shared,
        )  # fmt: skip
        m.submodules.biases = biases = ConstantPlayer(
            spec.array.cols, 32, tile.bus_bits, spec.bias_tiles
        )

        # Rows still to come, as a thermometer: all ones before the first row, none after the last.
        pending = Signal(rows, init=(1 << rows) - 1)
        in_codes, in_scales = pending[0], Signal()
        row_beat = Signal(range(max(row_beats, 2)))
        scale_beat = Signal(range(max(tile.scale_beats, 2)))
        done = Signal()
        accept = Signal()
        begun = Signal()
        m.d.comb += [self.o_loaded.eq(done), self.o_empty.eq(~done & ~begun)]
        room = in_codes | Mux(in_scales, scales.o_space, biases.o_space)
        m.d.comb += self.i.ready.eq((~done | self.i_take) & room)
        m.d.comb += accept.eq(self.i.valid & self.i.ready)

        with m.If(self.i_take):
            m.d.sync += done.eq(0)
        with m.If(accept):
            m.d.sync += begun.eq(~self.i.payload.last)
            with m.If(self.i.payload.last):
                m.d.sync += self.o_biased.eq(~in_codes & ~in_scales)
                m.d.sync += [
                    done.eq(1),
                    pending.eq(pending.init),
                    scale_beat.eq(0),
                    in_scales.eq(0),
                ]
            with m.Elif(in_codes):
                with m.If(row_beat == row_beats - 1):
                    m.d.sync += [pending.eq(pending >> 1), row_beat.eq(0)]
                    m.d.sync += in_scales.eq(~pending[1] if rows > 1 else 1)
                with m.Else():
                    m.d.sync += row_beat.eq(row_beat + 1)
            with m.Elif(in_scales):
                m.d.sync += scale_beat.eq(scale_beat + 1)
                with m.If(scale_beat == tile.scale_beats - 1):
                    m.d.sync += in_scales.eq(0)

        row = Signal(row_beats * tile.bus_bits, reset_less=True)
        with m.If(accept & in_codes):
            with m.Switch(row_beat):
                for index in range(row_beats):
                    with m.Case(index) if index < row_beats - 1 else m.Default():
                        m.d.sync += row.word_select(index, tile.bus_bits).eq(self.i.payload.data)
        shift = accept & in_codes & (row_beat == row_beats - 1)
        m.d.sync += self.o_enable.eq(Mux(shift, pending, 0))
        m.d.comb += self.o_codes.as_value().eq(row)

        for player, write in (
            (scales, accept & ~in_codes & in_scales),
            (biases, accept & ~in_codes & ~in_scales),
        ):
            m.d.comb += [player.i_beat.eq(self.i.payload.data), player.i_write.eq(write)]
        m.d.comb += [
            scales.i_play.eq(self.i_play_scale),
            biases.i_play.eq(self.i_play_bias),
            self.o_scale.eq(normalized_scale(m, scales.o, tile.scale)),
            self.o_bias.eq(biases.o),
        ]
        return m
