"""The processing element and its multiplier, cycle by cycle."""

import numpy as np
from amaranth.hdl import Cat, Module, Signal
from amaranth.hdl import signed as signed_shape
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from shiftcore.golden.array import ArraySpec, Style
from shiftcore.hw.pe import ProcessingElement, booth_product
from shiftcore.sim.pipeline_bench import PipelineJob
from shiftcore.sim.runner import simulate
from shiftcore.tests.hw.bank import SideBySide, signed, simulated, unpack

# (b, m) and the row, which sets the width of the sums.
SHAPES = [
    (4, 4, 0),
    (4, 4, 3),
    (2, 4, 1),
    (2, 3, 0),
    (3, 3, 0),
    (3, 3, 2),
    (8, 8, 1),
    (5, 2, 0),
    (7, 8, 63),
]
STYLES: list[Style] = ["lut", "dsp", "ecp5-carry", "ecp5-ternary"]
OUTPUTS = ("sum", "code", "act", "swap", "enable")


class BoothProducts(wiring.Component):
    """``w * a`` for `lanes` operands a in a row, from ``lanes * i_base`` on."""

    def __init__(self, w_bits: int, a_bits: int, lanes: int):
        self.w_bits, self.a_bits, self.lanes = w_bits, a_bits, lanes
        super().__init__(
            {
                "i_w": In(signed_shape(w_bits)),
                "i_base": In(a_bits),
                "o": Out(lanes * (w_bits + a_bits - 1)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        products = []
        for k in range(self.lanes):
            a = Signal(signed_shape(self.a_bits), name=f"a_{k}")
            m.d.comb += a.eq(self.i_base * self.lanes + k)
            m.submodules[f"booth_{k}"] = unit = Module()
            value, carry = booth_product(unit, self.i_w, a)
            product = Signal(len(value), name=f"product_{k}")
            unit.d.comb += product.eq(value + carry)
            products.append(product)
        m.d.sync += self.o.eq(Cat(*products))
        return m


def test_booth_product_of_every_pair(simulator):
    shapes = [
        (2, 3, 1),
        (3, 4, 1),
        (4, 5, 1),
        (5, 3, 1),
        (5, 6, 1),
        (6, 9, 4),
        (7, 4, 1),
        (8, 9, 16),
    ]
    pairs = [1 << (w + a) for w, a, _ in shapes]
    length = max(n // k for n, (_, _, k) in zip(pairs, shapes, strict=True)) + 1
    cycle = np.arange(length)
    inputs = {}
    for k, (w_bits, a_bits, lanes) in enumerate(shapes):
        inputs[f"u{k}__i_base"] = (cycle % ((1 << a_bits) // lanes)).tolist()
        inputs[f"u{k}__i_w"] = (cycle * lanes >> a_bits) % (1 << w_bits)
        inputs[f"u{k}__i_w"] = inputs[f"u{k}__i_w"].tolist()
    job = PipelineJob(inputs, tuple(f"u{k}__o" for k in range(len(shapes))))
    answer = simulate(
        SideBySide, BoothProducts, shapes, bench="pipeline_bench", job=job, simulator=simulator
    )
    for k, (w_bits, a_bits, lanes) in enumerate(shapes):
        width, cycles = w_bits + a_bits - 1, pairs[k] // lanes
        found = unpack(answer[f"u{k}__o"][1 : cycles + 1], width, lanes).reshape(-1)
        index = np.arange(pairs[k])
        w = signed(index >> a_bits, w_bits)
        exact = w * signed(index & ((1 << a_bits) - 1), a_bits)
        # Only the product of the two most negative operands needs one more bit.
        fits = signed(exact & ((1 << width) - 1), width) == exact
        assert (fits | (exact == 1 << (width - 1))).all()
        assert np.array_equal(found, exact & ((1 << width) - 1)), (w_bits, a_bits)


class Elements(wiring.Component):
    """Processing elements that get the same inputs, each the low bits that it has ports for."""

    def __init__(self, elements: list[tuple[ArraySpec, int]]):
        self.units = [ProcessingElement(*arguments) for arguments in elements]
        self.widths = [[len(getattr(unit, f"o_{name}")) for name in OUTPUTS] for unit in self.units]
        super().__init__(
            {
                "i_act": In(signed_shape(9)),
                "i_code": In(signed_shape(8)),
                "i_enable": In(1),
                "i_swap": In(1),
                "i_sum": In(signed_shape(24)),
                "o": Out(sum(map(sum, self.widths))),
            }
        )

    def elaborate(self, platform):
        m = Module()
        for k, unit in enumerate(self.units):
            m.submodules[f"pe_{k}"] = unit
            for name in ("i_act", "i_code", "i_enable", "i_swap", "i_sum"):
                if hasattr(unit, name):
                    m.d.comb += getattr(unit, name).eq(getattr(self, name))
        m.d.comb += self.o.eq(
            Cat(*(getattr(unit, f"o_{name}") for unit in self.units for name in OUTPUTS))
        )
        return m


def stimulus(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Inputs of all elements, each of which takes the low bits that it has."""
    # Every pair of a 5-bit weight and a 6-bit operand; the next weight moves in on the way.
    weights = np.arange(32)
    sweep = {
        "act": np.tile(np.arange(64), 32),
        "code": np.repeat(np.roll(weights, -1), 64),
        "enable": np.tile(np.arange(64) == 40, 32),
        "swap": np.tile(np.arange(64) == 63, 32),
    }
    count = 4000
    extremes = np.array([0, 1, -1, 127, -128, 255, -256])
    wild = {
        "act": np.where(
            rng.random(count) < 0.5, rng.choice(extremes, count), rng.integers(-256, 256, count)
        ),
        "code": np.where(
            rng.random(count) < 0.5, rng.choice(extremes, count), rng.integers(-128, 128, count)
        ),
        "enable": rng.random(count) < 0.4,
        "swap": rng.random(count) < 0.3,
    }
    both = {name: np.concatenate([sweep[name], wild[name]]).astype(np.int64) for name in sweep}
    both["sum"] = rng.integers(-(1 << 23), 1 << 23, len(both["act"]))
    # The first values are there while the bench resets.
    both["sum"][0] = 0
    return both


def expected(
    spec: ArraySpec, row: int, given: dict[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``o_sum``, ``o_code`` and the weight in each cycle, all registers zero at first."""
    length = len(given["act"])
    code = signed(given["code"] & ((1 << spec.weight_bits) - 1), spec.weight_bits)
    act = signed(given["act"] & ((1 << spec.operand_bits) - 1), spec.operand_bits)
    shadow, weight = np.zeros(length + 1, np.int64), np.zeros(length + 1, np.int64)
    for t in range(length):
        shadow[t + 1] = code[t] if given["enable"][t] else shadow[t]
        weight[t + 1] = shadow[t] if given["swap"][t] else weight[t]
    product = weight[:-1] * act
    sums = np.zeros(length, np.int64)
    sums[2:] = product[:-2]
    if row:
        bits = spec.partial_sum_bits(row - 1)
        sums[1:] += signed(given["sum"] & ((1 << bits) - 1), bits)[:-1]
    return sums, shadow[:-1], weight[:-1]


def test_element_in_every_cycle(simulator):
    """The sum comes 2 cycles after the operand and 1 after ``i_sum``; the weight is the shadow from
    the cycle after the swap on; the shadow stays while ``i_enable`` is low."""
    elements = [
        (spec, row)
        for b, m, row in SHAPES
        for style in STYLES
        if (style != "ecp5-ternary" or b == 2)
        and simulated(spec := ArraySpec(row + 1, 1, b, m, style))
    ]
    given = stimulus(np.random.default_rng(20))
    bits = {"act": 9, "code": 8, "enable": 1, "swap": 1, "sum": 24}
    inputs = {f"i_{name}": (given[name] & ((1 << n) - 1)).tolist() for name, n in bits.items()}
    job = PipelineJob(inputs, ("o",))
    answer = simulate(Elements, elements, bench="pipeline_bench", job=job, simulator=simulator)
    words = np.array(answer["o"], object)
    for spec, row in elements:
        sums, codes, weights = expected(spec, row, given)
        correct = {
            "sum": (sums, spec.partial_sum_bits(row)),
            "code": (codes, spec.weight_bits),
            "act": (np.r_[0, given["act"][:-1]], spec.operand_bits),
            "swap": (np.r_[0, given["swap"][:-1]], 1),
            "enable": (np.r_[0, given["enable"][:-1]], 1),
        }
        for name in OUTPUTS:
            values, width = correct[name]
            found = (words & ((1 << width) - 1)).astype(np.int64)
            words = words >> width
            if name == "sum":
                # No lane is -2**m, whose product with the most negative weight would not fit.
                act = signed(given["act"] & ((2 << spec.act_bits) - 1), spec.operand_bits)
                lane = np.r_[True, True, act[:-2] != -(1 << spec.act_bits)]
                lane &= np.r_[True, True, weights[:-2] >= spec.least_code]
                found, values = found[lane], values[lane]
            assert np.array_equal(found, values & ((1 << width) - 1)), (spec, row, name)
