"""Whole accelerators with each form of processing elements."""

from dataclasses import replace

import numpy as np
import pytest

from shiftcore.compiler.network import compile_network
from shiftcore.estimate.accelerator import predict
from shiftcore.explore.resources import estimated
from shiftcore.golden.array import TileFormat
from shiftcore.golden.config import ConfigError, HardwareConfig
from shiftcore.golden.floats import BF16, FP16, FP32
from shiftcore.golden.network import QuantizedNetwork
from shiftcore.golden.vqk import VariableQuantizedKernel
from shiftcore.sim.accelerate import run_program
from shiftcore.tests.compiler.random_networks import random_network
from shiftcore.toolchain.devices import FAMILIES

SMALL = HardwareConfig(
    2, 3, accumulator_depth=64, bus_bits=32, buffer_depth=256, queue_depth=2, weight_fifo=16,
    load_fifo=16, store_fifo=16, burst_beats=4, outstanding=2,
)  # fmt: skip
TERNARY = replace(SMALL, weight_bits=2, multiplier="ecp5-ternary")


def ternary(network: QuantizedNetwork) -> QuantizedNetwork:
    """The network with -1 for each code -2."""

    def changed(term):
        return replace(term, kernel=replace(term.kernel, codes=np.maximum(term.kernel.codes, -1)))

    layers = [replace(each, terms=tuple(map(changed, each.terms))) for each in network.layers]
    return replace(network, layers=tuple(layers))


@pytest.mark.parametrize(
    "config",
    [
        replace(SMALL, rows=3, cols=2, multiplier="ecp5-carry"),
        replace(SMALL, multiplier="packed18"),
        replace(SMALL, multiplier="ice40-dual"),
        TERNARY,
        replace(SMALL, scale_multiplier="ecp5-dsp", pipeline="ecp5-fast"),
        replace(SMALL, rows=3, accumulator="fixed24", pipeline="short"),
    ],
    ids=lambda config: f"{config.multiplier}-{config.pipeline}",
)
def test_a_small_network(config):
    """Every stored word, and every cycle; the form of the PEs costs none."""
    network = random_network(np.random.default_rng(4), config)
    if config is TERNARY:
        network = ternary(network)
    program = compile_network(network, config)
    rng = np.random.default_rng(2)
    images = rng.normal(size=(1, *network.input_shape)).astype(np.float32)
    inputs = program.encode_input(network.encode_input(images))
    found = run_program(program, inputs)
    assert (found.mismatches, found.first) == (0, None)
    assert found.compared > 200
    assert found.counters == (predict(program).counters(),)


FOREIGN = [
    ({"multiplier": "ice40-dual"}, {"multiplier": "dsp"}),
    ({"multiplier": "ecp5-carry"}, {"multiplier": "lut"}),
    ({"multiplier": "ecp5-ternary"}, {"multiplier": "lut"}),
    ({"scale_multiplier": "ecp5-dsp"}, {"scale_multiplier": "dsp"}),
    (
        {"scale_multiplier": "ecp5-dsp", "pipeline": "ecp5-fast", "accumulator": "fixed24"},
        {"scale_multiplier": "dsp", "pipeline": "fast", "accumulator": "fixed24"},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("asked", "plain"), FOREIGN, ids=lambda each: "-".join(each.values()))
def test_plain_forms_where_the_cells_are_not(asked, plain):
    small = replace(SMALL, weight_bits=2)
    config = replace(small, **asked)
    for family in (*FAMILIES, None):
        given = config.on(family)
        own = {*config.families.values()} == {family}
        assert given == (config if own else replace(small, **plain))
    for portable in (small, replace(small, multiplier="packed16"), replace(small, pipeline="fast")):
        assert portable.on(None) == portable


def test_a_program_runs_on_the_plain_form():
    """The numbers are those of the form that was asked for, and so are the cycles."""
    config = replace(TERNARY, scale_multiplier="ecp5-dsp", pipeline="ecp5-fast")
    network = ternary(random_network(np.random.default_rng(4), config))
    program = compile_network(network, config)
    images = np.random.default_rng(2).normal(size=(1, *network.input_shape)).astype(np.float32)
    inputs = program.encode_input(network.encode_input(images))
    found = run_program(replace(program, config=config.on("xilinx7")), inputs)
    assert (found.mismatches, found.first) == (0, None)
    assert found.compared > 200
    assert found.counters == (predict(program).counters(),)


def test_what_yosys_gets_wrong_is_not_made():
    """The scale unit's netlist for iCE40 loses floating-point products between two registers."""
    for changes in ({"pipeline": "fast"}, {"pipeline": "ecp5-fast"}):
        for multiplier in ("dsp", "ecp5-dsp"):
            config = replace(SMALL, scale_multiplier=multiplier, **changes)
            made = replace(SMALL, pipeline="fast", scale_multiplier="lut")
            assert config.on("ice40") == made
            assert config.on("xilinx7") == replace(made, scale_multiplier="dsp")
            assert estimated(config, "ice40-hx8k") == estimated(made, "ice40-hx8k")
    for changes in (
        {"pipeline": "balanced"}, {"pipeline": "short"},
        {"pipeline": "fast", "accumulator": "fixed24"},
    ):  # fmt: skip
        config = replace(SMALL, scale_multiplier="dsp", **changes)
        assert config.on("ice40") == config


@pytest.mark.parametrize(
    ("style", "bits", "widest"),
    [("packed16", 4, 7), ("packed16", 6, 3), ("packed18", 5, 7), ("packed18", 7, 3)],
)
def test_operands_that_cannot_be_packed_are_refused(style, bits, widest):
    """Two columns fit up to the width that is stated, and no further."""
    assert replace(SMALL, weight_bits=bits, act_bits=widest, multiplier=style).array.groups[0] == 2
    limit = int(style[-2:])
    message = (
        rf"^multiplier '{style}' needs 2 \* weight_bits \+ act_bits \+ 1 of at most {limit}, "
        f"not {limit + 1}$"
    )
    with pytest.raises(ConfigError, match=message):
        replace(SMALL, weight_bits=bits, act_bits=widest + 1, multiplier=style)


def test_codes_that_ternary_elements_lack_are_refused():
    network = random_network(np.random.default_rng(4), TERNARY)
    message = (
        "^layer '.*' has the weight code -2, which multiplier 'ecp5-ternary' lacks: quantize with "
        "method='l2', recipe='P' and no 'e8m0' scales, or take another multiplier$"
    )
    with pytest.raises(ValueError, match=message):
        compile_network(network, TERNARY)
    weights = np.random.default_rng(6).normal(size=(8, 4, 3, 3)).astype(np.float32)
    for scale in (BF16, FP16, FP32):
        kernel = VariableQuantizedKernel.quantize(
            weights, weight_bits=2, block=2, recipe="P", scale_format=scale
        )
        assert kernel.codes.min() == TERNARY.array.least_code
    codes, one = np.full((1, 2, 3), -2, np.int8), np.ones((1, 3), np.float32)
    any_codes = TileFormat(replace(TERNARY, multiplier="lut").array, BF16, 32)
    beats = any_codes.pack(codes[0], one[0])
    data = np.array([beats], "<u4").view(np.uint8)
    assert np.array_equal(any_codes.unpack(data, False)[0], codes)
    message = "^multiplier 'ecp5-ternary' takes weight codes from -1, not -2$"
    with pytest.raises(ValueError, match=message):
        TERNARY.tile.unpack(data, False)
