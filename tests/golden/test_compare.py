"""The comparisons see every bit."""

from dataclasses import replace

import numpy as np
import pytest

from shiftcore.compiler.network import compile_network
from shiftcore.golden.bfp import BlockFloat
from shiftcore.golden.compare import (
    count_mismatches,
    difference,
    different_tensors,
    first_difference,
    same_numbers,
)
from shiftcore.golden.config import HardwareConfig
from shiftcore.golden.machine import Machine
from shiftcore.golden.passes import BlockRows
from shiftcore.tests.compiler.test_network import bottleneck


def test_one_wrong_bit_is_seen():
    config = HardwareConfig(4, 4, buffer_depth=100)
    network = bottleneck(config)
    program = compile_network(network, config)
    x = np.random.default_rng(0).normal(size=(2, *network.input_shape)).astype(np.float32)
    expected = network.compute(x)
    trace = Machine(program).run(program.encode_input(network.encode_input(x)), trace=True).trace
    assert difference(program, trace, expected) is None
    forms = set()
    for found, place in zip(trace, program.places, strict=True):
        arrays = [found.codes, found.exponents] if isinstance(found, BlockRows) else [found]
        for array in arrays:
            forms.add(array.dtype)
            bits = array.view(f"u{array.itemsize}")
            bits[1, -1, ...].flat[0] ^= 1
            assert difference(program, trace, expected) == f"{place}: other numbers"
            bits[1, -1, ...].flat[0] ^= 1
    assert forms == {np.dtype(np.int16), np.dtype(np.uint8), np.dtype(np.float32)}
    assert difference(program, trace, expected) is None


def test_a_layer_that_is_not_written_is_seen():
    config = HardwareConfig(4, 4, buffer_depth=100)
    network = bottleneck(config)
    program = compile_network(network, config)
    x = np.zeros((1, *network.input_shape), np.float32)
    trace = Machine(program).run(program.encode_input(network.encode_input(x)), trace=True).trace
    channels, *size = program.shapes[program.output]
    larger = replace(
        program, shapes={**program.shapes, program.output: (channels + config.cols, *size)}
    )
    message = f"layer {program.output!r}: not all of it is written"
    assert difference(larger, trace, network.compute(x)) == message


def test_first_difference_of_images():
    rng = np.random.default_rng(5)
    blocks = [
        BlockRows(rng.integers(0, 16, (6, 4), np.int16), rng.integers(90, 99, 6, np.uint8))
        for _ in range(3)
    ]
    raw = [rng.normal(size=(2, 5)).astype(np.float32) for _ in range(3)]
    raw[1][0, 3] = 0.0
    assert first_difference(blocks, blocks) is first_difference(raw, raw) is None
    exponents = blocks[1].exponents.copy()
    exponents[4] += 2
    codes = blocks[2].codes.copy()
    codes[0, 0] ^= 1
    found = [blocks[0], replace(blocks[1], exponents=exponents), replace(blocks[2], codes=codes)]
    right = blocks[1].exponents[4]
    expected = f"image 1, exponent (4, 0) must be {right}, not {right + 2}"
    assert first_difference(blocks, found) == expected
    assert count_mismatches(blocks, found) == (3 * 6 * 5, 2)
    negative = [raw[0], raw[1].copy(), raw[2]]
    negative[1][0, 3] = -0.0
    assert first_difference(raw, negative) == "image 1, value (0, 3) must be 0.0, not -0.0"


def test_tensors_are_the_same_in_every_bit_and_in_layout():
    zero, minus = np.zeros((1, 2), np.float32), np.array([[0, -0.0]], np.float32)
    assert same_numbers(zero, zero.copy())
    assert not same_numbers(zero, minus)
    assert count_mismatches([zero, zero], [zero, minus]) == (4, 1)
    blocks = BlockFloat(4, 4, True).compute(np.ones((1, 8, 2, 3), np.float32))
    codes, exponents = blocks.codes.copy(), blocks.exponents.copy()
    codes[0, 1, 3, 1, 2] ^= 1
    exponents[0, 1, 1, 2] += 1
    others = {
        "codes": replace(blocks, codes=codes),
        "exponents": replace(blocks, exponents=exponents),
        "channels": replace(blocks, channels=7),
        "raw": zero,
    }
    assert same_numbers(blocks, replace(blocks, codes=blocks.codes.copy()))
    assert not any(same_numbers(blocks, other) for other in others.values())
    assert count_mismatches([blocks], [others["codes"]]) == (8 * 6 + 2 * 6, 1)
    expected = {**dict.fromkeys(others, blocks), "same": blocks, "missing": blocks}
    found = {**others, "same": blocks, "more": blocks}
    assert different_tensors(expected, found) == [*others, "missing", "more"]
    with pytest.raises(ValueError, match=r"^raw numbers cannot be compared with blocks$"):
        count_mismatches([blocks], [zero])
