"""Fields of instructions that come in beats: good or bad as the model of the machine says."""

from dataclasses import replace

import numpy as np
import pytest

from shiftcore.golden.config import HardwareConfig
from shiftcore.golden.fixed import FixedFormat
from shiftcore.golden.isa import LAYOUTS, WORDS, Error, Opcode
from shiftcore.golden.validity import fetched
from shiftcore.hw.field_check import FieldCheck
from shiftcore.sim.pipeline_bench import PipelineJob
from shiftcore.sim.runner import simulate

CONFIG = HardwareConfig(2, 6)  # three blocks in a row of accumulators, so that one of four is bad


def draw(rng: np.random.Generator, opcode: Opcode, config: HardwareConfig) -> int:
    """512 bits of an instruction: most fields good, some 0 or at a bound, now and then any bit."""
    bits = int(opcode)
    for field in LAYOUTS[opcode][1:]:
        value = int(rng.integers(1, 1 << min(field.bits, 3)))
        if field.name in ("to_buffer", "limited", "form", "region", "select"):
            value = int(rng.integers(0, min(4, 1 << field.bits)))
        elif field.name.endswith("_level"):
            value = int(rng.integers(0, 6))
        elif (opcode, field.name) == (Opcode.DRAIN, "exponent"):
            form = config.accumulator_format
            fixed = isinstance(form, FixedFormat)
            value = int(rng.integers(1, form.highest_field + 1)) if fixed else 0
            if fixed and rng.random() < 0.1:
                value = form.highest_field + int(rng.integers(0, 2))
        if rng.random() < 0.03:
            value = int(rng.choice([0, 6, 7, 1 << field.bits - 1])) & ((1 << field.bits) - 1)
        bits |= value << 64 * field.word + field.offset
    if rng.random() < 0.15:
        bits ^= 1 << int(rng.integers(4, 64 * WORDS))
    return bits


@pytest.mark.parametrize(("clamp", "accumulator"), [(False, "float32"), (True, "fixed33")])
@pytest.mark.parametrize("bus_bits", [32, 64, 128, 256])
def test_as_the_model_says(bus_bits: int, clamp: bool, accumulator: str, simulator) -> None:
    config = replace(
        CONFIG, bus_bits=bus_bits, clamp=clamp, accumulator=accumulator, weight_fifo=128
    )
    rng = np.random.default_rng([bus_bits, clamp])
    opcodes = [Opcode(int(code)) for code in rng.choice(list(Opcode), 2000)]
    instructions = [draw(rng, opcode, config) for opcode in opcodes]
    count = config.accelerator.instruction_beats
    steps: list[tuple[int, int, int]] = []
    ends = []
    for bits in instructions:
        for index in range(count):
            for _ in range(int(rng.integers(0, 3)) if rng.random() < 0.3 else 0):
                steps.append((0, int(rng.integers(count)), int(rng.integers(1 << 31))))
            steps.append((1, index, bits >> bus_bits * index & ((1 << bus_bits) - 1)))
        ends.append(len(steps))
    steps.append((0, 0, 0))
    take, index, beat = (list(column) for column in zip(*steps, strict=True))
    job = PipelineJob({"i_take": take, "i_index": index, "i_beat": beat}, ("o_opcode", "o_bad"))
    answer = simulate(
        FieldCheck, config.accelerator, bench="pipeline_bench", job=job, simulator=simulator
    )
    expected = {opcode: [0, 0] for opcode in Opcode}
    for opcode, bits, end in zip(opcodes, instructions, ends, strict=True):
        words = np.frombuffer(bits.to_bytes(8 * WORDS, "little"), np.uint8)
        _, error = fetched(words, config, count)
        bad = error is Error.BAD_FIELD
        expected[opcode][bad] += 1
        if not take[end]:
            assert answer["o_opcode"][end] == opcode
        assert answer["o_bad"][end] == bad, f"{opcode.name} {bits:#x}"
    print(expected)
    assert min(min(good_and_bad) for good_and_bad in expected.values()) >= 8
