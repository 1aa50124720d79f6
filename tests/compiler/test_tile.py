"""Column tiles: which steps reach them, and the bytes of their tiles."""

import numpy as np
import pytest

from shiftcore.compiler.tensors import Stored
from shiftcore.compiler.tile import Part, column_tiles, pack_tiles
from shiftcore.golden.config import HardwareConfig
from shiftcore.golden.floats import SCALE_FORMATS
from shiftcore.golden.layers import Layer, Term
from shiftcore.golden.vqk import VariableQuantizedKernel


@pytest.mark.parametrize("scale", SCALE_FORMATS)
@pytest.mark.parametrize("bus_bits", [32, 64, 128, 256])
@pytest.mark.parametrize(("rows", "cols", "bits"), [(4, 4, 4), (3, 5, 7), (1, 1, 2), (8, 17, 8)])
def test_tiles_are_packed_as_the_format_says(
    scale: str, bus_bits: int, rows: int, cols: int, bits: int
):
    rng = np.random.default_rng(0)
    config = HardwareConfig(rows, cols, bits, scale=scale, bus_bits=bus_bits)
    codes = rng.integers(-(1 << (bits - 1)), 1 << (bits - 1), (5, cols, rows)).astype(np.int8)
    scales = SCALE_FORMATS[scale].round(np.ldexp(rng.uniform(1, 2, (5, cols)), -3))
    biases = rng.normal(size=cols).astype(np.float32)
    beats: list[int] = []
    for index in range(5):
        first = biases if index == 0 else None
        beats += config.tile.pack(codes[index].T, scales[index], first)
    expected = b"".join(beat.to_bytes(bus_bits // 8, "little") for beat in beats)
    assert pack_tiles(codes, scales, biases, config.tile) == expected


def source(blocks: int, signed: tuple[bool, ...] | None = None) -> dict[str, Stored]:
    return {"x": Stored("x", 1, 5, 5, signed or (False,) * blocks, None, 0, 1)}


def parts_of(weight: np.ndarray, config: HardwareConfig, groups: int = 1) -> list[list[Part]]:
    kernel = VariableQuantizedKernel.quantize(
        weight, weight_bits=4, block=config.rows, groups=groups
    )
    layer = Layer("layer", (Term("x", kernel),), np.zeros(len(weight), np.float32))
    blocks = -(-kernel.in_channels // config.rows)
    tiles = column_tiles(layer, source(blocks), config)
    form = config.tile
    for tile in tiles:
        beats = tile.tiles * form.beats(False) + form.bias_beats
        assert len(tile.data) == beats * form.bus_bits // 8
    return [list(tile.parts) for tile in tiles]


def test_a_dense_kernel_is_one_part_for_each_column_tile():
    weight = np.random.default_rng(0).normal(size=(10, 12, 3, 2))
    parts = parts_of(weight, HardwareConfig(4, 4))
    assert parts == [[Part(0, 0, 3, 0, 3, 0, 2, False)]] * 3


def test_groups_reach_their_own_tiles():
    weight = np.random.default_rng(0).normal(size=(8, 1, 3, 3))
    parts = parts_of(weight, HardwareConfig(4, 4), groups=8)
    assert parts == [[Part(0, b, 1, 0, 3, 0, 3, False)] for b in (0, 1)]


def test_empty_kernel_positions_are_left_out():
    weight = np.random.default_rng(0).normal(size=(4, 8, 3, 3))
    weight[:, 4:, 0] = 0
    weight[:, 4:, 1, 1] = 0
    (parts,) = parts_of(weight, HardwareConfig(4, 4))
    assert parts == [
        Part(0, 0, 1, 0, 3, 0, 3, False),
        Part(0, 1, 1, 1, 1, 0, 1, False),
        Part(0, 1, 1, 1, 1, 2, 1, False),
        Part(0, 1, 1, 2, 1, 0, 3, False),
    ]


def test_equal_tiles_are_taken_once():
    (first, second) = parts_of(np.ones((8, 1, 3, 3)), HardwareConfig(4, 4), groups=8)
    assert first == [Part(0, 0, 1, 0, 3, 0, 3, True)]
    assert second == [Part(0, 1, 1, 0, 3, 0, 3, True)]


def test_a_tile_that_nothing_reaches_still_starts():
    parts = parts_of(np.zeros((4, 4, 3, 3)), HardwareConfig(4, 4))
    assert parts == [[Part(0, 0, 1, 0, 1, 0, 1, False)]]


def test_a_part_has_one_sign():
    config = HardwareConfig(4, 4)
    weight = np.random.default_rng(0).normal(size=(4, 12, 1, 1))
    kernel = VariableQuantizedKernel.quantize(weight, weight_bits=4, block=4)
    layer = Layer("layer", (Term("x", kernel),), np.zeros(4, np.float32))
    (tile,) = column_tiles(layer, source(3, (True, False, False)), config)
    assert [(part.block, part.blocks) for part in tile.parts] == [(0, 1), (1, 2)]
