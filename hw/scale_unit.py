"""The scale unit at the foot of a column: scale, accumulate, remember."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from ..golden.fixed import AccumulatorFormat, FixedFormat
from ..golden.scale_unit import AddSpec, FixedAddSpec, FixedProductSpec, ProductSpec, ScaleUnitSpec
from .adder import FloatAdder
from .block_ram import RegisteredMemory
from .cuts import Cut
from .delay import delayed
from .fixed_adder import FixedAdder
from .fixed_product import FixedProduct
from .floats import accumulator_shape, scale_layout
from .product import FloatProduct

__all__ = ["ScaleUnit", "constant", "wave_layout"]


def constant(bits: Value, form: AccumulatorFormat) -> Value:
    """The 32 bits of a bias or a limit as a number of the accumulators' format."""
    if isinstance(form, FixedFormat):
        return Cat(Const(0, form.dropped_bits), bits[: form.kept_bits]).as_signed()
    return bits


def _product(spec: ProductSpec | FixedProductSpec) -> FloatProduct | FixedProduct:
    return FixedProduct(spec) if isinstance(spec, FixedProductSpec) else FloatProduct(spec)


def _adder(spec: AddSpec | FixedAddSpec) -> FloatAdder | FixedAdder:
    return FixedAdder(spec) if isinstance(spec, FixedAddSpec) else FloatAdder(spec)


def wave_layout(spec: ScaleUnitSpec) -> data.StructLayout:
    """What travels along the feet of the columns with each pixel.

    ``exponent`` and ``signed`` of its block, the ``address`` of its accumulator, ``first`` pixel of
    a tile, ``start`` from the bias instead of the accumulator, ``maximum`` instead of sum, and
    ``keep`` the accumulator (a padding pixel under ``maximum``).
    """
    return data.StructLayout(
        {
            "valid": 1,
            "first": 1,
            "start": 1,
            "maximum": 1,
            "keep": 1,
            "signed": 1,
            "exponent": 8,
            "address": spec.address_bits,
        }
    )


class ScaleUnit(wiring.Component):
    """``acc[address] = round(start + round(S * scale * 2**e))`` or the maximum, one column.

    Rounding is that of the accumulators' format, floating or fixed point.

    ``start`` is the accumulator or, if the pixel says so, the column's bias. Scale and bias are
    stationary: the scale is taken from ``i_scale`` in the cycle in which a pixel with ``first`` is
    at ``i_wave``, the bias from ``i_bias`` ``spec.bias_stage + 1`` cycles later.

    **Latency**: a block sum, one cycle after its wave, is in the memory ``spec.write_stage + 1``
    cycles later; the same accumulator may be updated again ``spec.revisit`` cycles after a sum.
    A read of ``i_drain_address`` takes ``spec.drain_cycles``.
    **Throughput**: one block sum and one drain read a cycle.

    Members
    -------
    i_wave, o_wave : see :func:`wave_layout`, moving right, one cycle a column
    i_sum : block sum, one cycle after its wave
    i_scale, i_bias : buses over which all columns take their constants
    i_saturated, o_saturated : of fixed point, whether a pixel saturated an accumulator of a column
        to the left, of this one or one to the left; ``spec.write_stage + 1`` cycles after the sums
    i_drain_address, i_drain_enable, o_drain : the second read port
    i_drain_move : where it has an output register, that takes what was read
    """

    def __init__(self, spec: ScaleUnitSpec):
        self.spec = spec
        members = {
            "i_wave": In(wave_layout(spec)),
            "o_wave": Out(wave_layout(spec)),
            "i_sum": In(signed(spec.product.sum_bits)),
            "i_scale": In(scale_layout(spec.product.scale_bits)),
            "i_bias": In(32),
            "i_drain_address": In(spec.address_bits),
            "i_drain_enable": In(1),
            "o_drain": Out(accumulator_shape(spec.form)),
        }
        if spec.drain_cycles > 1:
            members["i_drain_move"] = In(1)
        if isinstance(spec.form, FixedFormat):
            members |= {"i_saturated": In(1), "o_saturated": Out(1)}
        super().__init__(members)

    def elaborate(self, platform):
        m = Module()
        spec = self.spec
        form = accumulator_shape(spec.form)
        read, choose, join = spec.read_stage, spec.bias_stage, spec.product.latency

        wave = Signal(wave_layout(spec))
        m.d.sync += wave.eq(self.i_wave)
        m.d.comb += self.o_wave.eq(wave)

        scale = Signal(self.i_scale.shape(), reset_less=True)
        with m.If(self.i_wave.valid & self.i_wave.first):
            m.d.sync += scale.eq(self.i_scale)
        m.submodules.product = product = _product(spec.product)
        m.d.comb += [
            product.i_sum.eq(self.i_sum),
            product.i_scale.eq(scale),
            product.i_exponent.eq(wave.exponent),
            product.i_signed.eq(wave.signed),
        ]

        # Counted from the block sum: the accumulator is read at stage `read`, it or the bias chosen
        # in the cycle after stage `choose`; at stage `join` that meets the product, and the result
        # goes back at stage `spec.write_stage`.
        valid = delayed(m, wave.valid, choose, "valid", reset=True)
        first = delayed(m, wave.first, choose, "first")
        start = delayed(m, wave.start, choose, "start")
        maximum = delayed(m, wave.maximum, join, "maximum")
        keep = delayed(m, wave.keep, join, "keep")
        address = delayed(m, wave.address, read, "address")

        # What a read returns in the cycle of a write to the same address is never used: pixels are
        # issued `spec.revisit` cycles apart and a drain waits for them.
        size, registered = spec.form.storage_bits, "read" in spec.cuts
        if registered:
            memory = RegisteredMemory(size, spec.depth, instanced=spec.memory == "ecp5")
        else:
            memory = Memory(shape=size, depth=spec.depth, init=[], attrs={"no_rw_check": True})
        m.submodules.memory = memory
        fetch = memory.read_port()
        if spec.shared:
            m.d.comb += [
                fetch.addr.eq(Mux(self.i_drain_enable, self.i_drain_address, address)),
                fetch.en.eq(
                    delayed(m, wave.valid, read, "valid_read", reset=True) | self.i_drain_enable
                ),
                self.o_drain.eq(fetch.data),
            ]
        else:
            drain = memory.read_port()
            m.d.comb += [
                fetch.addr.eq(address),
                fetch.en.eq(1),
                drain.addr.eq(self.i_drain_address),
                drain.en.eq(self.i_drain_enable),
                self.o_drain.eq(drain.data),
            ]
            if registered:
                m.d.comb += [fetch.move.eq(1), drain.move.eq(self.i_drain_move)]
        bias = Signal(form, reset_less=True)
        with m.If(valid & first & start):
            m.d.sync += bias.eq(constant(self.i_bias, spec.form))
        started = delayed(m, start, 1, "start_fetched")
        chosen = Cut(m, "choose" in spec.cuts)
        operand = chosen.signal("operand", Mux(started, Value.cast(bias), fetch.data), form)

        m.submodules.adder = adder = _adder(spec.add)
        m.d.comb += [
            adder.i_a.eq(operand),
            adder.i_b.eq(product.o),
            adder.i_maximum.eq(maximum),
            adder.i_keep.eq(keep),
        ]
        store = memory.write_port()
        valid_stored = delayed(m, valid, spec.write_stage - choose, "valid_stored", reset=True)
        m.d.comb += [
            store.addr.eq(delayed(m, address, spec.write_stage - read, "address_stored")),
            store.data.eq(adder.o),
            store.en.eq(valid_stored),
        ]
        if isinstance(adder, FixedAdder):
            saturated = valid_stored & adder.o_saturated
            m.d.sync += self.o_saturated.eq(self.i_saturated | saturated)
        return m
