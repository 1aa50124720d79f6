"""The requantizer: accumulators become blocks of activation codes (MAX, SHIFT, MASK)."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from ..golden.floats import FLOAT32
from ..golden.requantizer import RequantizerSpec
from .fifo import Queue
from .floats import float_layout

__all__ = ["Requantizer", "block_layout", "row_layout"]


def row_layout(spec: RequantizerSpec) -> data.StructLayout:
    """A row of accumulators; ``last`` of its block, which is ``signed``."""
    return data.StructLayout(
        {
            "last": 1,
            "signed": 1,
            "values": data.ArrayLayout(float_layout(FLOAT32), spec.cols),
        }
    )


def block_layout(spec: RequantizerSpec) -> data.StructLayout:
    """A block of codes and its exponent field."""
    return data.StructLayout({"exponent": 8, "codes": data.ArrayLayout(spec.act_bits, spec.block)})


class Requantizer(wiring.Component):
    """Block floating point of float32 rows; an unsigned block applies a ReLU on the way.

    MAX: a registered tree finds the largest exponent of a row, a register that of the rows of a
    block. SHIFT and MASK: the rows wait in a queue until it is known.

    **Latency**: ``spec.latency`` cycles from the last row of a block to its codes.
    **Throughput**: one row a cycle.

    Members
    -------
    i : rows, see :func:`row_layout`
    o : ``spec.blocks_per_beat`` blocks at a time, see :func:`block_layout`, lowest columns first
    """

    def __init__(self, spec: RequantizerSpec):
        self.spec = spec
        blocks = data.ArrayLayout(block_layout(spec), spec.blocks_per_beat)
        super().__init__(
            {
                "i": In(stream.Signature(row_layout(spec))),
                "o": Out(stream.Signature(blocks)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        spec = self.spec
        bits, lanes, groups = spec.act_bits, spec.lanes, spec.blocks_per_beat
        depth = 2 * spec.beats_per_block + spec.tree_levels + 4
        used = groups * lanes
        m.submodules.rows = rows = Queue(width=used * 32 + 2, depth=depth)
        m.submodules.shared = shared = Queue(width=8 * groups, depth=depth)

        accept = Signal()
        m.d.comb += [self.i.ready.eq(rows.w_rdy), accept.eq(self.i.valid & self.i.ready)]
        values = [self.i.payload.values[k] for k in range(used)]
        m.d.comb += [
            rows.w_en.eq(accept),
            rows.w_data.eq(
                Cat(self.i.payload.last, self.i.payload.signed, *(v.as_value() for v in values))
            ),
        ]

        # MAX. The queue of exponents has room for every row that the queue of rows holds, so the
        # tree never stalls.
        def exponent(value):
            return Mux(value.sign & ~self.i.payload.signed, 0, value.exponent)

        valid, last = accept, self.i.payload.last
        exponents = [
            [exponent(v) for v in values[g * lanes : (g + 1) * lanes]] for g in range(groups)
        ]
        for level in range(spec.tree_levels + 1):
            flags = Signal(2, name=f"flags_{level}")
            m.d.sync += flags.eq(Cat(valid, last))
            valid, last = flags[0], flags[1]
            for g, group in enumerate(exponents):
                if level:
                    group = [_larger(*group[k : k + 2]) for k in range(0, len(group), 2)]
                exponents[g] = []
                for k, value in enumerate(group):
                    held = Signal(8, name=f"exponent_{level}_{g}_{k}", reset_less=True)
                    m.d.sync += held.eq(value)
                    exponents[g].append(held)
        largest = []
        for g, (found,) in enumerate(exponents):
            running = Signal(8, name=f"running_{g}")
            largest.append(_larger(running, found))
            with m.If(valid):
                m.d.sync += running.eq(Mux(last, 0, largest[-1]))
        m.d.comb += [shared.w_en.eq(valid & last), shared.w_data.eq(Cat(*largest))]

        # SHIFT and MASK, four steps that move together.
        move = Signal()
        m.d.comb += move.eq(~self.o.valid | self.o.ready)
        take = Signal()
        m.d.comb += take.eq(move & rows.r_rdy & shared.r_rdy)
        row_last, row_signed = rows.r_data[0], rows.r_data[1]
        m.d.comb += [rows.r_en.eq(take), shared.r_en.eq(take & row_last)]

        def register(name, value, reset=False):
            held = Signal(value.shape(), name=name, reset_less=not reset)
            with m.If(move):
                m.d.sync += held.eq(value)
            return held

        is_signed = row_signed
        signs = [is_signed]
        valids = [take]
        ends = [row_last]
        fields = [shared.r_data]
        for step in range(1, 4):
            signs.append(register(f"signed_{step}", signs[-1]))
            valids.append(register(f"valid_{step}", valids[-1], reset=True))
            ends.append(register(f"end_{step}", ends[-1]))
            fields.append(register(f"fields_{step}", fields[-1]))
        codes = []
        for k in range(used):
            value = rows.r_data[2 + 32 * k :][:32]
            fraction, field, sign = value[:23], value[23:31], value[31]
            maximum = shared.r_data.word_select(k // lanes, 8)

            # Step 0: distance to the shared exponent; a signed code has one bit less.
            distance = Signal(9, name=f"distance_{k}")
            m.d.comb += distance.eq(maximum - field + is_signed)
            none = ~field.any() | (distance > bits) | (sign & ~is_signed)
            significand = Cat(fraction, Const(1, 1))
            top = register(f"top_1_{k}", Mux(none, 0, significand[-bits - 1 :]))
            sticky = register(f"sticky_1_{k}", significand[: -bits - 1].any() & ~none)
            shift = register(f"shift_1_{k}", distance[: bits.bit_length()])
            sign = register(f"sign_1_{k}", sign & is_signed)

            # Step 1: align.
            lost = sticky
            for position in reversed(range(len(shift))):
                width = 1 << position
                lost = lost | (shift[position] & top[:width].any())
                top = Mux(shift[position], top >> width, top)
            top = register(f"top_2_{k}", top)
            lost = register(f"lost_2_{k}", lost)
            sign = register(f"sign_2_{k}", sign)

            # Step 2: round to nearest even; the largest code does not grow.
            whole = top[1:]
            full = whole[:-1].all() & (whole[-1] | signs[2])
            up = top[0] & (lost | whole[0]) & ~full
            if spec.rounding == "truncate":
                up = Const(0, 1)
            magnitude = register(f"magnitude_3_{k}", (whole + up)[:bits])
            sign = register(f"sign_3_{k}", sign)

            # Step 3: two's complement.
            codes.append(((magnitude ^ sign.replicate(bits)) + sign)[:bits])

        beats = spec.beats_per_block
        output = Signal(self.o.payload.shape(), reset_less=True)
        m.d.comb += self.o.payload.eq(output)
        with m.If(move):
            m.d.sync += self.o.valid.eq(valids[3] & ends[3])
            if beats == 1:
                for g in range(groups):
                    m.d.sync += output[g].codes.eq(Cat(*codes[g * lanes : (g + 1) * lanes]))
                    m.d.sync += output[g].exponent.eq(fields[3].word_select(g, 8))
            else:
                # Earlier rows wait at the low end; the last row may be wider than what is left.
                earlier = Signal((beats - 1) * lanes * bits, reset_less=True)
                complete = Cat(earlier, *codes)
                with m.If(valids[3]):
                    m.d.sync += earlier.eq(complete[lanes * bits :])
                m.d.sync += output[0].codes.eq(complete[: spec.block * bits])
                m.d.sync += output[0].exponent.eq(fields[3])
        return m


def _larger(a, b=None):
    return a if b is None else Mux(a > b, a, b)
