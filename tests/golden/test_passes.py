"""`Engine` against a model that takes one pixel of one column at a time."""

from dataclasses import replace
from fractions import Fraction
from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shiftcore.golden.config import HardwareConfig
from shiftcore.golden.floats import SCALE_FORMATS
from shiftcore.golden.passes import BlockRows, Drain, DrainFormat, Engine, Pass
from shiftcore.tests.golden.exact import max_shift_mask, nearest, pattern, power


class OnePixelAtATime:
    def __init__(self, config: HardwareConfig) -> None:
        self.config = config
        self.accumulators = {}

    def take(self, item: Pass) -> None:
        m = self.config.act_bits
        for pixel, address in enumerate(item.addresses.tolist()):
            exponent = int(item.exponents[pixel]) - 127 - (m - 2 if item.signed else m - 1)
            for column in range(self.config.cols):
                pairs = zip(item.lanes[pixel].tolist(), item.codes[:, column].tolist(), strict=True)
                total = sum(lane * code for lane, code in pairs)
                product = nearest(total * Fraction(float(item.scales[column])) * power(exponent))
                if item.biases is None:
                    value = self.accumulators.get((address, column), Fraction(0))
                else:
                    value = Fraction(float(item.biases[column]))
                if not item.maximum:
                    value = nearest(value + product)
                elif not item.keep[pixel]:
                    value = max(value, product)
                self.accumulators[address, column] = value

    def row(self, address: int) -> list[int]:
        values = [self.accumulators.get((address, c), Fraction(0)) for c in range(self.config.cols)]
        return [pattern(value) for value in values]

    def blocks(self, item: Drain) -> list[tuple[list[int], int]]:
        block, cols = self.config.rows, self.config.cols
        rows = [self.row(address) for address in item.addresses.tolist()]
        beats = -(-block // cols)
        whole = [list(chain(*rows[i : i + beats])) for i in range(0, len(rows), beats)]
        per_row = max(1, cols // block)
        return [
            max_shift_mask(
                words[k * block : (k + 1) * block],
                self.config.act_bits,
                item.form == "signed",
                "nearest",
            )
            for words in whole
            for k in range(per_row)
        ]


@st.composite
def configs(draw: st.DrawFn) -> HardwareConfig:
    return HardwareConfig(
        draw(st.integers(1, 6)),
        draw(st.integers(1, 6)),
        draw(st.integers(2, 8)),
        draw(st.integers(2, 8)),
        draw(st.sampled_from(list(SCALE_FORMATS))),
        accumulator_depth=draw(st.integers(6, 9)),
    )


def random_pass(rng: np.random.Generator, config: HardwareConfig) -> Pass:
    pixels = int(rng.integers(1, 10))
    limit = 1 << (config.weight_bits - 1)
    signed = bool(rng.integers(2))
    low, high = (-(1 << (config.act_bits - 1)), 1 << (config.act_bits - 1))
    lanes = rng.integers(low if signed else 0, high if signed else 2 * high, (pixels, config.rows))
    form = SCALE_FORMATS[config.scale]
    scales = rng.uniform(-1 if form.signed else 0, 1, config.cols) * (rng.random(config.cols) < 0.9)
    biases = rng.normal(size=config.cols).astype(np.float32)
    extreme = rng.random() < 0.2
    return Pass(
        rng.integers(-limit, limit, (config.rows, config.cols)).astype(np.int8),
        form.round(scales),
        biases if rng.random() < 0.4 else None,
        lanes.astype(np.int16),
        (
            rng.choice([0, 1, 254, 255], pixels) if extreme else rng.integers(120, 135, pixels)
        ).astype(np.uint8),
        rng.integers(0, config.accumulator_depth, pixels),
        signed,
        bool(rng.random() < 0.4),
        rng.random(pixels) < 0.3,
    )


@given(configs(), st.integers(0, 2**32))
def test_one_pixel_at_a_time(config: HardwareConfig, seed: int):
    rng = np.random.default_rng(seed)
    engine, model = Engine(config.engine), OnePixelAtATime(config)
    # Where columns are left over in the last row of a block, they would have to be zero.
    whole = config.cols >= config.rows or config.rows % config.cols == 0
    forms: list[DrainFormat] = ["raw", "unsigned", "signed"] if whole else ["raw"]
    for _ in range(3):
        passes = [random_pass(rng, config) for _ in range(2)]
        beats = -(-config.rows // config.cols)
        drains = [
            Drain(rng.integers(0, config.accumulator_depth, 3 * beats), form) for form in forms
        ]
        for item in passes:
            model.take(item)
        raw, *stored = engine.run([*passes, *drains])
        assert isinstance(raw, np.ndarray)
        expected = [model.row(address) for address in drains[0].addresses.tolist()]
        assert raw.view(np.uint32).tolist() == expected
        for rows, drain in zip(stored, drains[1:], strict=True):
            assert isinstance(rows, BlockRows)
            assert list(zip(rows.codes.tolist(), rows.exponents.tolist(), strict=True)) == (
                model.blocks(drain)
            )


CONFIG = HardwareConfig(2, 3, 3, 4, accumulator_depth=5)


def small_pass(addresses: list[int], **change) -> Pass:
    """Every product is 1 for exponent field 130, which makes code 1 the number 1."""
    pixels = len(addresses)
    good = Pass(
        np.array([[1, 1, 1], [0, 0, 0]], np.int8),
        np.ones(3, np.float32),
        None,
        np.ones((pixels, 2), np.int16),
        np.full(pixels, 130, np.uint8),
        np.array(addresses),
    )
    return replace(good, **change)


def column(engine: Engine) -> list[float]:
    return engine.accumulators[:, 0].tolist()


def test_an_address_that_comes_twice_accumulates_twice():
    engine = Engine(CONFIG.engine)
    engine.run([small_pass([0, 3, 0, 0, 4, 3])])
    assert column(engine) == [3.0, 0.0, 0.0, 2.0, 1.0]


def test_every_pixel_of_a_starting_pass_starts():
    engine = Engine(CONFIG.engine)
    lanes = np.array([[1, 0], [2, 0], [3, 0], [4, 0]], np.int16)
    bias = np.full(3, 10, np.float32)
    engine.run([small_pass([0, 1, 0, 1]), small_pass([0, 1, 0, 2], lanes=lanes, biases=bias)])
    assert column(engine) == [13.0, 12.0, 14.0, 0.0, 0.0]


def test_the_order_of_pixels_is_the_order_of_sums():
    engine = Engine(CONFIG.engine)
    fields = np.array([130 + 24, 130, 130 + 24], np.uint8)
    lanes = np.array([[1, 0], [1, 0], [-1, 0]], np.int16)
    engine.run([small_pass([0, 0, 0], lanes=lanes, exponents=fields)])
    engine.run([small_pass([1, 1, 1], lanes=lanes[[0, 2, 1]], exponents=fields[[0, 2, 1]])])
    assert column(engine)[:2] == [0.0, 1.0]


def test_keep_acts_only_under_maximum():
    engine = Engine(CONFIG.engine)
    keep = np.array([True, False])
    bias = np.full(3, -5, np.float32)
    engine.run([small_pass([0, 1], maximum=True, keep=keep, biases=bias)])
    assert column(engine)[:2] == [-5.0, 1.0]
    engine.run([small_pass([0, 1], maximum=False, keep=keep)])
    assert column(engine)[:2] == [-4.0, 2.0]


def test_a_bias_of_minus_zero_is_zero():
    engine = Engine(CONFIG.engine)
    minus = np.full(3, -0.0, np.float32)
    engine.run([small_pass([0], maximum=True, keep=np.array([True]), biases=minus)])
    assert not engine.accumulators.view(np.uint32).any()


def test_a_drain_reads_in_its_order():
    engine = Engine(CONFIG.engine)
    lanes = np.arange(1, 6).repeat(2).reshape(5, 2).astype(np.int16)
    (rows,) = engine.run(
        [small_pass([0, 1, 2, 3, 4], lanes=lanes), Drain(np.array([4, 0, 4]), "raw")]
    )
    assert isinstance(rows, np.ndarray)
    assert rows[:, 0].tolist() == [5.0, 1.0, 5.0]
    # The result is a copy: later passes do not change it.
    engine.run([small_pass([4])])
    assert rows[0, 0] == 5.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": np.full((2, 3), 4, np.int8)}, r"weight codes must fit 3 bits"),
        ({"codes": np.full((2, 3), -5, np.int8)}, r"weight codes must fit 3 bits"),
        ({"lanes": np.full((1, 2), 16, np.int16)}, r"lanes must fit 4 bits, signed or unsigned"),
        ({"lanes": np.full((1, 2), -9, np.int16)}, r"lanes must fit 4 bits, signed or unsigned"),
        ({"exponents": np.array([256])}, r"exponent fields must fit 8 bits"),
        ({"addresses": np.array([5])}, r"accumulator addresses must be 0 to 4"),
        ({"addresses": np.array([-1])}, r"accumulator addresses must be 0 to 4"),
        (
            {"scales": np.full(3, 1.001, np.float32)},
            r"scales must be representable as bf16; round them first",
        ),
        ({"scales": np.full(3, np.nan, np.float32)}, r"a non-finite value has no encoding"),
        ({"biases": np.full(3, np.inf, np.float32)}, r"a non-finite value has no encoding"),
        (
            {"biases": np.full(3, 1e-40, np.float32)},
            r"values must be representable in the format; round them first",
        ),
    ],
)
def test_what_the_hardware_cannot_hold_is_refused(change: dict, message: str):
    engine = Engine(CONFIG.engine)
    engine.run([small_pass([4], biases=np.ones(3, np.float32))])
    with pytest.raises(ValueError, match=f"^{message}$"):
        engine.run([replace(small_pass([0]), **change)])


@pytest.mark.parametrize("address", [5, -1])
def test_a_drain_beyond_the_memory_is_refused(address: int):
    with pytest.raises(ValueError, match=r"^accumulator addresses must be 0 to 4$"):
        Engine(CONFIG.engine).run([Drain(np.array([0, address]), "raw")])


def test_nothing_to_do_is_refused():
    message = r"^a pass or drain must have at least one address$"
    with pytest.raises(ValueError, match=message):
        small_pass([])
    with pytest.raises(ValueError, match=message):
        Drain(np.array([], np.int64), "raw")


def test_properties():
    item = small_pass([0, 1, 1])
    assert (item.pixels, item.start, item.keep.tolist()) == (3, False, [False] * 3)
    assert small_pass([0], biases=np.ones(3, np.float32)).start


@pytest.mark.parametrize("scale", SCALE_FORMATS)
@pytest.mark.parametrize(("rows", "cols", "bus"), [(16, 16, 64), (4, 9, 32), (7, 2, 256)])
def test_a_tile_loads_a_beat_a_cycle(rows: int, cols: int, bus: int, scale: str):
    config = HardwareConfig(rows, cols, 3, 4, scale, bus_bits=bus)
    codes, ones = np.zeros((rows, cols), np.int8), np.ones(cols, np.float32)
    assert config.engine.load_cycles(False) == len(config.tile.pack(codes, ones))
    assert config.engine.load_cycles(True) == len(config.tile.pack(codes, ones, ones))
    assert config.engine.pass_cycles == cols
