"""A program against the layers that it was compiled from, word for word."""

import numpy as np

from shiftcore.golden.bfp import BlockTensor
from shiftcore.golden.machine import Machine
from shiftcore.golden.network import INPUT, QuantizedNetwork
from shiftcore.golden.passes import BlockRows
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
    rows = program.config.rows
    covered = {name: np.zeros(shape, bool) for name, shape in program.shapes.items()}
    for (drain, place), found in zip(program.drains, run.trace, strict=True):
        right = expected[place.layer]
        pixels = np.arange(drain.rows * drain.pixels)
        y, x0 = place.row + pixels // drain.pixels, place.column + pixels % drain.pixels
        if isinstance(right, BlockTensor):
            assert isinstance(found, BlockRows)
            assert place.channel % rows == 0
            codes = right.codes[:, place.channel // rows][:, :, y, x0].transpose(0, 2, 1)
            assert np.array_equal(found.codes, codes), (place, drain)
            exponents = right.exponents[:, place.channel // rows][:, y, x0]
            assert np.array_equal(found.exponents, exponents), (place, drain)
            covered[place.layer][place.channel : place.channel + rows, y, x0] = True
        else:
            assert isinstance(found, np.ndarray)
            some = right[:, place.channel : place.channel + program.config.cols][:, :, y, x0]
            same = found[:, :, : some.shape[1]].transpose(0, 2, 1) == some
            # Rows of a maximum that is taken block by block hold one block and zeros.
            assert same[:, :rows].all(), (place, drain)
            last = np.flatnonzero(same.all((0, 2)))[-1] + 1
            covered[place.layer][place.channel : place.channel + last, y, x0] = True
    for name, every in covered.items():
        assert every.all(), name
    result, right = program.decode_output(run.outputs), expected[program.output]
    if isinstance(right, BlockTensor):
        assert isinstance(result, BlockTensor)
        assert np.array_equal(result.codes, right.codes)
        assert np.array_equal(result.exponents, right.exponents)
        assert (result.signed, result.channels) == (right.signed, right.channels)
    else:
        assert isinstance(result, np.ndarray)
        assert np.array_equal(result.view(np.uint32), right.view(np.uint32))
