"""`RequantizerSpec`: rows of any width make blocks, bit for bit as MAX, SHIFT and MASK."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shiftcore.golden.requantizer import RequantizerSpec
from shiftcore.tests.golden.exact import max_shift_mask


@given(
    st.integers(1, 12),
    st.integers(1, 30),
    st.integers(2, 8),
    st.booleans(),
    st.sampled_from(["nearest", "truncate"]),
    st.integers(0, 2**32),
)
def test_rows_to_blocks(block: int, cols: int, bits: int, signed: bool, rounding, seed: int):
    rng = np.random.default_rng(seed)
    spec = RequantizerSpec(block, cols, bits, rounding)
    count = 4
    beats = -(-block // cols)
    rows = rng.normal(size=(count * beats, cols)) * 2.0 ** rng.integers(-4, 5, (count * beats, 1))
    rows = rows.astype(np.float32)
    rows[rng.random(rows.shape) < 0.1] = 0
    if cols < block:
        rows.reshape(count, -1)[:, block:] = 0
    codes, exponents = spec.compute(rows, signed)
    blocks = []
    for index in range(count):
        lanes = rows[index * beats : (index + 1) * beats].reshape(-1)
        # Lanes left over at the end of a row belong to no block.
        per_row = max(1, cols // block)
        blocks += [lanes[k * block : (k + 1) * block] for k in range(per_row)]
    assert codes.shape == (len(blocks), block)
    for lanes, got, exponent in zip(blocks, codes.tolist(), exponents.tolist(), strict=True):
        words = lanes.view(np.uint32).tolist()
        assert (got, exponent) == max_shift_mask(words, bits, signed, rounding)


@pytest.mark.parametrize(
    ("block", "cols", "beats", "blocks", "lanes", "levels"),
    [
        (16, 16, 1, 1, 16, 4),
        (16, 4, 4, 1, 4, 2),
        (16, 5, 4, 1, 5, 3),
        (16, 17, 1, 1, 16, 4),
        (16, 33, 1, 2, 16, 4),
        (4, 32, 1, 8, 4, 2),
        (7, 1, 7, 1, 1, 0),
        (1, 3, 1, 3, 1, 0),
    ],
)
def test_shape(block: int, cols: int, beats: int, blocks: int, lanes: int, levels: int):
    spec = RequantizerSpec(block, cols, 4)
    assert (spec.beats_per_block, spec.blocks_per_beat) == (beats, blocks)
    assert (spec.lanes, spec.tree_levels) == (lanes, levels)
    assert spec.latency == levels + beats + 6


def test_lanes_left_over_in_the_last_row_of_a_block_must_be_zero():
    spec = RequantizerSpec(3, 2, 4)
    rows = np.array([[1, 2], [3, 0], [1, 1], [1, 1]], np.float32)
    assert spec.compute(rows[:2], False)[0].tolist() == [[4, 8, 12]]
    with pytest.raises(ValueError, match=r"^lanes past channel 3 of a block must be zero$"):
        spec.compute(rows, False)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ((0, 1, 4), "block must be at least 1, not 0"),
        ((1, 0, 4), "cols must be at least 1, not 0"),
        ((1, 1, 9), "bits must be 2 to 8, not 9"),
        ((1, 1, 4, "up"), "rounding must be 'nearest' or 'truncate', not 'up'"),
    ],
)
def test_parameters_are_checked(parameters: tuple, message: str):
    with pytest.raises(ValueError, match=f"^{message}$"):
        RequantizerSpec(*parameters)
