"""A program against the layers that it was compiled from, word for word."""

from collections.abc import Mapping, Sequence

import numpy as np

from shiftcore.golden.bfp import BlockTensor
from shiftcore.golden.machine import Machine, Written
from shiftcore.golden.network import INPUT, QuantizedNetwork, Tensor
from shiftcore.golden.passes import BlockRows
from shiftcore.golden.program import Program
from shiftcore.golden.tickets import check_order, check_written
from shiftcore.tests.networks import assert_same_tensors

__all__ = ["assert_computes", "difference"]


def difference(
    program: Program, trace: Sequence[Written], expected: Mapping[str, Tensor]
) -> str | None:
    """Where a trace is not what the layers compute, bit for bit; None if it is, and whole.

    Parameters
    ----------
    trace : what every DRAIN of `program` wrote, of N images
    expected : the tensors of the layers for these images
    """
    rows = program.config.rows
    covered = {name: np.zeros(shape, bool) for name, shape in program.shapes.items()}
    for (drain, place), found in zip(program.drains, trace, strict=True):
        right = expected[place.layer]
        pixels = np.arange(drain.rows * drain.pixels)
        y, x = place.row + pixels // drain.pixels, place.column + pixels % drain.pixels
        same, channels = False, rows
        if isinstance(right, BlockTensor) and isinstance(found, BlockRows):
            block, within = divmod(place.channel, rows)
            codes = right.codes[:, block][:, :, y, x].transpose(0, 2, 1)
            exponents = right.exponents[:, block][:, y, x]
            same = np.array_equal(found.codes, codes) and np.array_equal(found.exponents, exponents)
            same = same and not within
        elif isinstance(right, np.ndarray) and isinstance(found, np.ndarray):
            some = right[:, place.channel : place.channel + program.config.cols][:, :, y, x]
            some = some.transpose(0, 2, 1)
            equal = found[:, :, : some.shape[2]].view(np.uint32) == some.view(np.uint32)
            # Rows of a maximum that is taken block by block hold one block and zeros.
            same = bool(equal[:, :, :rows].all())
            channels = np.flatnonzero(equal.all((0, 1)))[-1] + 1 if same else 0
        if not same:
            return f"{place}: other numbers"
        covered[place.layer][place.channel : place.channel + channels, y, x] = True
    parts = [name for name, every in covered.items() if not every.all()]
    return f"layer {parts[0]!r}: not all of it is written" if parts else None


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
    output = {program.output: program.decode_output(run.outputs)}
    assert_same_tensors(output, {program.output: expected[program.output]})
