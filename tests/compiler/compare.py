"""A program against the layers that it was compiled from, word for word."""

import numpy as np

from shiftcore.golden.bfp import BlockTensor
from shiftcore.golden.compare import difference, same_numbers
from shiftcore.golden.machine import Machine
from shiftcore.golden.network import INPUT, QuantizedNetwork
from shiftcore.golden.program import Program
from shiftcore.golden.tickets import check_order, check_written

__all__ = ["assert_computes"]


def assert_computes(
    program: Program,
    network: QuantizedNetwork,
    images: int = 2,
    interleaving: np.random.Generator | None = None,
) -> None:
    """The order is safe, every word of every layer is written and right, and so is the output."""
    check_order(program)
    check_written(program)
    rng = np.random.default_rng(1)
    x = rng.normal(size=(images, *network.input_shape)).astype(np.float32)
    expected = network.compute(x)
    stored = expected[INPUT]
    assert isinstance(stored, BlockTensor)
    run = Machine(program).run(program.encode_input(stored), trace=True, interleaving=interleaving)
    assert difference(program, run.trace, expected) is None
    assert same_numbers(program.decode_output(run.outputs), expected[program.output])
