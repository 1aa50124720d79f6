"""The comparison of programs with layers sees every number."""

from dataclasses import replace

import numpy as np

from shiftcore.compiler.network import compile_network
from shiftcore.golden.compare import difference
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
