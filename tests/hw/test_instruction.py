"""Instruction layouts of the gateware against the encoder."""

import numpy as np
import pytest
from amaranth.lib import data

from shiftcore.golden.config import HardwareConfig
from shiftcore.golden.isa import LAYOUTS, LEVELS, Load, Loop, Opcode, Pass, encode
from shiftcore.hw.instruction import instruction_layout

WIDE = HardwareConfig(
    2, 2, bus_bits=32, address_bits=40, buffer_depth=1 << 20, accumulator_depth=1 << 16
).accelerator
NARROW = HardwareConfig(
    2, 2, bus_bits=32, address_bits=16, buffer_depth=63, accumulator_depth=64
).accelerator
KEPT = {"memory": 14, "buffer": 6, "accumulators": 7, None: 64}


@pytest.mark.parametrize("opcode", list(Opcode), ids=lambda opcode: opcode.name)
def test_every_field_is_where_the_encoding_has_it(opcode):
    for spec in (WIDE, NARROW):
        layout = instruction_layout(opcode, spec)
        assert layout.size == 512
        for field in LAYOUTS[opcode]:
            bits = min(field.bits, KEPT[field.space]) if spec is NARROW else field.bits
            assert layout[field.name].offset == 64 * field.word + field.offset
            assert layout[field.name].shape.width == bits
            assert layout[field.name].shape.signed == field.signed
        others = {name for name, _ in layout} - {field.name for field in LAYOUTS[opcode]}
        assert all(name.startswith("reserved_") for name in others)


def constant(opcode, instruction) -> data.Const:
    value = sum(int(word) << 64 * k for k, word in enumerate(encode([instruction])[0]))
    return data.Const(instruction_layout(opcode, WIDE), value)


def test_an_encoded_instruction_reads_back():
    rng = np.random.default_rng(1)
    loops = tuple(
        Loop(int(rng.integers(4096)), 1 << 19, 9, int(rng.integers(-128, 128)), -k)
        for k in range(LEVELS)
    )
    found = constant(Opcode.PASS, Pass(buffer=77, y=-5, height=9, width=3, loops=loops))
    assert (found.opcode, found.buffer, found.y, found.height) == (4, 77, -5, 9)
    assert [found[f"y_step_{k}"] for k in range(LEVELS)] == [loop.y_step for loop in loops]
    load = constant(Opcode.LOAD, Load(offset=5, region=1, buffer=3, exponent=250, words=4095))
    assert (load.offset, load.region, load.exponent, load.words, load.rows) == (5, 1, 250, 4095, 1)
