"""`ArraySpec` and `TileFormat`: tight widths, exact sums, and tiles read back bit by bit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shiftcore.golden.array import ArraySpec, TileFormat
from shiftcore.golden.floats import BF16, SCALE_FORMATS

WIDTHS = [(b, m) for b in range(2, 9) for m in range(2, 9)]


def signed_bits(low: int, high: int) -> int:
    """The least width of a two's complement number that holds `low` to `high`."""
    return next(n for n in range(1, 64) if -(1 << (n - 1)) <= low and high < 1 << (n - 1))


@pytest.mark.parametrize(("b", "m"), WIDTHS)
def test_widths_hold_the_extremes_and_no_bit_more(b: int, m: int):
    rows = 33
    spec = ArraySpec(rows, 1, b, m)
    weights = [-(1 << (b - 1)), (1 << (b - 1)) - 1]
    lanes = [-(1 << (m - 1)), (1 << m) - 1]
    assert spec.operand_bits == signed_bits(*lanes)
    products = [w * a for w in weights for a in lanes]
    assert spec.product_bits == signed_bits(min(products), max(products))
    for row in range(rows):
        # The extremes are really reached: the same weight and the same lane in every row.
        sums = [
            int(ArraySpec(row + 1, 1, b, m).compute(*full(row + 1, w, a)).item())
            for w in weights
            for a in lanes
        ]
        assert sums == [(row + 1) * p for p in products]
        assert spec.partial_sum_bits(row) == signed_bits(min(sums), max(sums))
    assert spec.sum_bits == spec.partial_sum_bits(rows - 1)


def full(rows: int, weight: int, lane: int) -> tuple[np.ndarray, np.ndarray]:
    return np.full((rows, 1), weight, np.int8), np.full((1, rows), lane, np.int16)


@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from(WIDTHS), st.integers(0, 2**32))
def test_block_sums(rows: int, cols: int, widths: tuple[int, int], seed: int):
    b, m = widths
    rng = np.random.default_rng(seed)
    weights = rng.integers(-(1 << (b - 1)), 1 << (b - 1), (rows, cols)).astype(np.int8)
    lanes = rng.integers(-(1 << (m - 1)), 1 << m, (5, rows)).astype(np.int16)
    expected = [
        [sum(a * w for a, w in zip(pixel, column, strict=True)) for column in weights.T.tolist()]
        for pixel in lanes.tolist()
    ]
    assert ArraySpec(rows, cols, b, m).compute(weights, lanes).tolist() == expected


@pytest.mark.parametrize(
    ("weight", "lane", "message"),
    [
        (4, 0, "weight codes must fit 3 bits"),
        (-5, 0, "weight codes must fit 3 bits"),
        (0, 32, "lanes must fit 5 bits, signed or unsigned"),
        (0, -17, "lanes must fit 5 bits, signed or unsigned"),
    ],
)
def test_operands_that_do_not_fit_are_refused(weight: int, lane: int, message: str):
    spec = ArraySpec(2, 1, 3, 5)
    for held in ((3, 31), (-4, -16)):
        spec.compute(*full(2, *held))
    with pytest.raises(ValueError, match=f"^{message}$"):
        spec.compute(*full(2, weight, lane))


@st.composite
def tiles(draw: st.DrawFn):
    array = ArraySpec(draw(st.integers(1, 9)), draw(st.integers(1, 40)), draw(st.integers(2, 8)), 4)
    scale = SCALE_FORMATS[draw(st.sampled_from(list(SCALE_FORMATS)))]
    tile = TileFormat(array, scale, draw(st.sampled_from([32, 64, 128, 256])))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    limit = 1 << (array.weight_bits - 1)
    codes = rng.integers(-limit, limit, (array.rows, array.cols)).astype(np.int8)
    scales = scale.round(rng.uniform(-1 if scale.signed else 0, 1, array.cols))
    biases = rng.normal(size=array.cols).astype(np.float32)
    return tile, codes, scales, draw(st.sampled_from([biases, None]))


@given(tiles())
def test_a_tile_can_be_read_back(case: tuple):
    tile, codes, scales, biases = case
    rows, cols = codes.shape
    width = tile.bus_bits
    beats = tile.pack(codes, scales, biases)
    assert len(beats) == tile.beats(biases is not None)
    assert all(0 <= beat < 1 << width for beat in beats)

    def section(bits: int) -> list[int]:
        """Fields of all columns from a new beat on, column 0 lowest; what is left over is 0."""
        word = 0
        for index in range(-(-cols * bits // width)):
            word |= beats.pop(0) << index * width
        assert word >> cols * bits == 0
        return [word >> column * bits & ((1 << bits) - 1) for column in range(cols)]

    b = tile.array.weight_bits
    for row in reversed(range(rows)):
        fields = section(b)
        assert [field - (field >> (b - 1) << b) for field in fields] == codes[row].tolist()
    stored = section(tile.scale.storage_bits)
    assert np.array_equal(tile.scale.decode(stored).view(np.uint32), scales.view(np.uint32))
    if biases is not None:
        assert section(32) == biases.view(np.uint32).tolist()
    assert not beats


def test_beats_by_hand():
    tile = TileFormat(ArraySpec(16, 16, 4, 4), BF16, 64)
    assert (tile.row_beats, tile.scale_beats, tile.bias_beats) == (1, 4, 8)
    assert (tile.beats(False), tile.beats(True)) == (20, 28)
    tile = TileFormat(ArraySpec(5, 11, 3, 4), BF16, 32)
    assert (tile.row_beats, tile.scale_beats, tile.bias_beats) == (2, 6, 11)
    codes = np.zeros((2, 3), np.int8)
    codes[1] = [1, -1, 2]
    codes[0, 0] = -8
    beats = TileFormat(ArraySpec(2, 3, 4, 4), BF16, 32).pack(
        codes, np.array([1, -2, 0], np.float32), np.array([1, 0, -0.5], np.float32)
    )
    assert beats == [0x2F1, 0x8, 0xC0003F80, 0, 0x3F800000, 0, 0xBF000000]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ArraySpec(0, 1, 4, 4), r"rows must be at least 1, not 0"),
        (lambda: ArraySpec(1, 0, 4, 4), r"cols must be at least 1, not 0"),
        (lambda: ArraySpec(1, 1, 1, 4), r"weight_bits must be 2 to 8, not 1"),
        (lambda: ArraySpec(1, 1, 4, 9), r"act_bits must be 2 to 8, not 9"),
        (
            lambda: ArraySpec(1, 1, 4, 4, "gate"),  # pyright: ignore[reportArgumentType]
            "multiplier must be one of 'lut', 'dsp', 'ecp5-carry', 'ecp5-ternary', 'packed16', "
            "'packed18', 'packed25', 'packed27', 'ice40-dual', not 'gate'",
        ),
        (
            lambda: ArraySpec(1, 1, 8, 8, "ice40-dual"),
            r"multiplier 'ice40-dual' needs act_bits of at most 7, not 8",
        ),
        (
            lambda: ArraySpec(1, 1, 3, 6, "ecp5-ternary"),
            r"multiplier 'ecp5-ternary' needs weight_bits = 2, not 3",
        ),
        (
            lambda: ArraySpec(1, 1, 2, 4, "ecp5-ternary").compute(
                np.array([[-2]], np.int8), np.zeros((1, 1), np.int16)
            ),
            r"multiplier 'ecp5-ternary' takes weight codes from -1, not -2",
        ),
        (
            lambda: ArraySpec(1, 2, 6, 6, "packed18"),
            r"multiplier 'packed18' needs 2 \* weight_bits \+ act_bits \+ 1 of at most 18, not 19",
        ),
        (
            lambda: TileFormat(ArraySpec(1, 1, 4, 4), BF16, 16),
            r"bus_bits must be 32, 64, 128 or 256, not 16",
        ),
    ],
)
def test_parameters_are_checked(make, message: str):
    with pytest.raises(ValueError, match=f"^{message}$"):
        make()


def test_a_scale_that_the_format_does_not_hold_is_not_packed():
    tile = TileFormat(ArraySpec(1, 1, 4, 4), BF16, 32)
    with pytest.raises(ValueError, match=r"^scales must be representable as bf16; round them firs"):
        tile.pack(np.zeros((1, 1), np.int8), np.array([1.001], np.float32))
