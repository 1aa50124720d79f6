"""The requantizer: accumulators become blocks of activation codes (MAX, SHIFT, MASK)."""

import operator
from functools import reduce
from typing import NamedTuple

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from ..golden.fixed import FixedFormat
from ..golden.requantizer import RequantizerSpec
from .fifo import Queue
from .floats import accumulator_shape, left_justify

__all__ = ["Requantizer", "block_layout", "row_layout"]


def row_layout(spec: RequantizerSpec) -> data.StructLayout:
    """A row of accumulators; ``last`` of its block, which is ``signed``."""
    return data.StructLayout(
        {
            "last": 1,
            "signed": 1,
            "values": data.ArrayLayout(accumulator_shape(spec.form), spec.cols),
        }
    )


def block_layout(spec: RequantizerSpec) -> data.StructLayout:
    """A block of codes and its exponent field."""
    return data.StructLayout({"exponent": 8, "codes": data.ArrayLayout(spec.act_bits, spec.block)})


class _Row(NamedTuple):
    """Registers that go along with a row while it is shifted and rounded."""

    valid: Value
    last: Value
    signed: Value
    shared: Value
    """what is known of each block's largest number"""


class Requantizer(wiring.Component):
    """Block floating point of rows of accumulators; an unsigned block applies a ReLU on the way.

    MAX: a registered tree finds the largest exponent of a row, or the highest bit that fixed-point
    numbers have, a register that of the rows of a block. SHIFT and MASK: the rows wait in a queue
    until it is known.

    **Latency**: ``spec.latency`` cycles from the last row of a block to its codes.
    **Throughput**: one row a cycle.

    Members
    -------
    i : rows, see :func:`row_layout`
    i_field : of fixed-point numbers, the exponent field of the number 1; stands still while rows
        are on their way
    o : ``spec.blocks_per_beat`` blocks at a time, see :func:`block_layout`, lowest columns first
    """

    def __init__(self, spec: RequantizerSpec):
        self.spec = spec
        blocks = data.ArrayLayout(block_layout(spec), spec.blocks_per_beat)
        members = {"i": In(stream.Signature(row_layout(spec)))}
        if isinstance(spec.form, FixedFormat):
            members["i_field"] = In(8)
        super().__init__(members | {"o": Out(stream.Signature(blocks))})

    def elaborate(self, platform):
        m = Module()
        spec, form = self.spec, self.spec.form
        fixed = isinstance(form, FixedFormat)
        lanes, groups, width = spec.lanes, spec.blocks_per_beat, form.storage_bits
        used = groups * lanes
        # Of a block the exponent field is shared, or the place of the highest bit.
        size = (width - 1).bit_length() + 1 if fixed else 8
        m.submodules.rows = rows = Queue(width=used * width + 2, depth=spec.waiting_rows)
        m.submodules.shared = shared = Queue(width=size * groups, depth=spec.waiting_rows)

        accept = Signal()
        m.d.comb += [self.i.ready.eq(rows.w_rdy), accept.eq(self.i.valid & self.i.ready)]
        values = [self.i.payload.values[k] for k in range(used)]
        m.d.comb += [
            rows.w_en.eq(accept),
            rows.w_data.eq(
                Cat(self.i.payload.last, self.i.payload.signed, *map(Value.cast, values))
            ),
        ]

        # MAX. The queue of what is shared has room for every row that the queue of rows holds, so
        # the tree never stalls.
        is_signed = self.i.payload.signed
        if fixed:
            found = [_magnitude(value, is_signed, width) for value in values]
            valid, last, totals = self._tree(m, accept, found, operator.or_)
            valid_2 = Signal(name="valid_highest")
            m.d.sync += valid_2.eq(valid & last)
            largest = []
            for g, total in enumerate(totals):
                highest = Signal(size, name=f"highest_{g}", reset_less=True)
                m.d.sync += highest.eq(_highest(m, total, f"total_{g}"))
                largest.append(highest)
            complete = valid_2
        else:
            found = [Mux(value.sign & ~is_signed, 0, value.exponent) for value in values]
            valid, last, largest = self._tree(m, accept, found, _larger)
            complete = valid & last
        m.d.comb += [shared.w_en.eq(complete), shared.w_data.eq(Cat(*largest))]

        # SHIFT and MASK, four steps that move together.
        move, take = Signal(), Signal()
        m.d.comb += [
            move.eq(~self.o.valid | self.o.ready),
            take.eq(move & rows.r_rdy & shared.r_rdy),
        ]
        row = _Row(take, rows.r_data[0], rows.r_data[1], shared.r_data)
        m.d.comb += [rows.r_en.eq(take), shared.r_en.eq(take & row.last)]

        def register(name, value, reset=False):
            held = Signal(value.shape(), name=name, reset_less=not reset)
            with m.If(move):
                m.d.sync += held.eq(value)
            return held

        steps = [row]
        for step in range(1, 4):
            steps.append(
                _Row(
                    *(
                        register(f"{name}_{step}", value, reset=name == "valid")
                        for name, value in steps[-1]._asdict().items()
                    )
                )
            )
        encode = self._fixed_code if fixed else self._float_code
        codes = [
            encode(k, rows.r_data[2 + width * k :][:width], steps, register) for k in range(used)
        ]
        self._output(m, move, steps[3], codes)
        return m

    def _tree(self, m, accept, found, larger):
        """The largest of `found` of the rows of a block, for each block of a row, and whether
        it is valid, of the last row."""
        lanes, groups = self.spec.lanes, self.spec.blocks_per_beat
        size = len(found[0])
        valid, last = accept, self.i.payload.last
        nodes = [found[g * lanes : (g + 1) * lanes] for g in range(groups)]
        for level in range(self.spec.tree_levels + 1):
            flags = Signal(2, name=f"flags_{level}")
            m.d.sync += flags.eq(Cat(valid, last))
            valid, last = flags[0], flags[1]
            together = self.spec.tree_inputs if level else 1
            for g, group in enumerate(nodes):
                parts = [group[k : k + together] for k in range(0, len(group), together)]
                nodes[g] = []
                for k, part in enumerate(parts):
                    held = Signal(size, name=f"largest_{level}_{g}_{k}", reset_less=True)
                    m.d.sync += held.eq(reduce(larger, part))
                    nodes[g].append(held)
        largest = []
        for g, (node,) in enumerate(nodes):
            running = Signal(size, name=f"running_{g}")
            largest.append(larger(running, node))
            with m.If(valid):
                m.d.sync += running.eq(Mux(last, 0, largest[-1]))
        return valid, last, largest

    def _float_code(self, k, value, steps, register):
        """The code of lane `k` in step 3."""
        spec, bits = self.spec, self.spec.act_bits
        fraction, field, sign = value[:23], value[23:31], value[31]
        row = steps[0]
        maximum = row.shared.word_select(k // spec.lanes, 8)

        # Step 0: distance to the shared exponent; a signed code has one bit less.
        distance = (maximum - field + row.signed)[:9]
        none = ~field.any() | (distance > bits) | (sign & ~row.signed)
        significand = Cat(fraction, Const(1, 1))
        top = register(f"top_1_{k}", Mux(none, 0, significand[-bits - 1 :]))
        sticky = register(f"sticky_1_{k}", significand[: -bits - 1].any() & ~none)
        shift = register(f"shift_1_{k}", distance[: bits.bit_length()])
        sign = register(f"sign_1_{k}", sign & row.signed)

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
        full = whole[:-1].all() & (whole[-1] | steps[2].signed)
        up = top[0] & (lost | whole[0]) & ~full
        if spec.rounding == "truncate":
            up = Const(0, 1)
        magnitude = register(f"magnitude_3_{k}", (whole + up)[:bits])
        sign = register(f"sign_3_{k}", sign)

        # Step 3: two's complement.
        return ((magnitude ^ sign.replicate(bits)) + sign)[:bits]

    def _fixed_code(self, k, value, steps, register):
        """The code of lane `k` in step 3."""
        spec, bits = self.spec, self.spec.act_bits
        size = len(steps[0].shared) // spec.blocks_per_beat
        negative = value[-1]
        value = Mux(negative & ~steps[0].signed, 0, Cat(Const(0, bits), value))
        lost = Const(0, 1)

        # Steps 0 to 2: shift right by the place of the highest bit, until two bits are left below
        # the code, and one more if it is signed and has a bit less. What is above is the sign.
        levels = list(reversed(range(size - 1)))
        for step in range(3):
            place = steps[step].shared.word_select(k // spec.lanes, size)
            for level in levels[step * len(levels) // 3 : (step + 1) * len(levels) // 3]:
                value, lost = _shifted(value, lost, place[level], 1 << level, steps[step].signed)
                value = value[: bits + 1 + (1 << level)]
            if step == 2:
                value, lost = _shifted(value, lost, steps[2].signed, 1, steps[2].signed)
                value = value[: bits + 1]
            value = register(f"shifted_{step + 1}_{k}", value)
            lost = register(f"lost_{step + 1}_{k}", lost)

        # Step 3: round to nearest even. The largest code does not grow, and the most negative
        # number of so many bits is no code.
        signed = steps[3].signed
        whole, half = value[1:], value[0]
        full = whole[:-1].all() & (whole[-1] ^ signed)
        least = signed & whole[-1] & ~whole[:-1].any()
        up = half & (lost | whole[0])
        if spec.rounding == "truncate":
            up = signed & whole[-1] & (half | lost)
        return (whole + ((up & ~full) | least))[:bits]

    def _output(self, m, move, row, codes):
        """Blocks of codes and their exponents, assembled of the rows of a block."""
        spec = self.spec
        lanes, groups, bits = spec.lanes, spec.blocks_per_beat, spec.act_bits
        size = len(row.shared) // groups
        fields = []
        for g in range(groups):
            field = row.shared.word_select(g, size)
            if isinstance(spec.form, FixedFormat):
                field = Mux(field[-1], field[:-1] + self.i_field, 0)[:8]
            fields.append(field)
        beats = spec.beats_per_block
        output = Signal(self.o.payload.shape(), reset_less=True)
        m.d.comb += self.o.payload.eq(output)
        with m.If(move):
            m.d.sync += self.o.valid.eq(row.valid & row.last)
            m.d.sync += [output[g].exponent.eq(field) for g, field in enumerate(fields)]
            if beats == 1:
                for g in range(groups):
                    m.d.sync += output[g].codes.eq(Cat(*codes[g * lanes : (g + 1) * lanes]))
            else:
                # Earlier rows wait at the low end; the last row may be wider than what is left.
                earlier = Signal((beats - 1) * lanes * bits, reset_less=True)
                complete = Cat(earlier, *codes)
                with m.If(row.valid):
                    m.d.sync += earlier.eq(complete[lanes * bits :])
                m.d.sync += output[0].codes.eq(complete[: spec.block * bits])


def _larger(a, b):
    return Mux(a > b, a, b)


def _shifted(value, lost, select, distance, signed):
    """`value` shifted right if `select`, and whether a bit was lost, now or before."""
    above = (value[-1] & signed).replicate(distance)
    lost = lost | (select & value[:distance].any())
    return Mux(select, Cat(value[distance:], above), value), lost


def _magnitude(value, is_signed, width):
    """|value| of a fixed-point number; 0 for a negative one of an unsigned block."""
    negative = value[-1]
    magnitude = (value.as_unsigned() ^ negative.replicate(width)) + negative
    return Mux(negative & ~is_signed, 0, magnitude[:width])


def _highest(m, value, name):
    """The place of the highest bit of `value`, and above it whether there is any."""
    distances = [1 << k for k in reversed(range((len(value) - 1).bit_length()))]
    padded = Cat(value, Const(0, 2 * distances[0] - len(value)))
    shifted, leading = left_justify(m, padded, distances, name)
    return Cat(~leading, shifted[-1])
