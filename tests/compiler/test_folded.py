"""Clamped layers, cropped and folded inputs."""

from dataclasses import replace

import numpy as np
import pytest

from shiftcore.compiler.network import compile_network
from shiftcore.golden.config import HardwareConfig
from shiftcore.golden.fold import Fold
from shiftcore.golden.isa import Drain
from shiftcore.golden.layers import Term
from shiftcore.golden.network import INPUT, QuantizedNetwork
from shiftcore.tests.compiler.compare import assert_computes
from shiftcore.tests.compiler.random_networks import Builder


def network(
    config: HardwareConfig, folded: bool, limits: tuple[float, float] | None
) -> QuantizedNetwork:
    window = Fold((3, 3), (2, 2), (1, 1, 1, 1)) if folded else None
    builder = Builder((3, 9, 9), config, np.random.default_rng(0))
    if window is not None:
        builder.shapes[INPUT] = window.shape((3, 9, 9))
    x = builder.convolution(INPUT, 8, (1, 1) if folded else (3, 3))
    kernel = builder.kernel(6, 8, (3, 3))
    # Rows and columns are cut off on two sides.
    x = builder.add(Term(x, kernel, padding=(-1, 2, 1, -2)), signed=True)
    builder.convolution(x, 5, (1, 1), raw=True)
    layers = tuple(replace(layer, limits=limits) for layer in builder.layers)
    options = {} if window is None else {"fold": window}
    return QuantizedNetwork(builder.input, (3, 9, 9), layers, **options)


@pytest.mark.parametrize("depth", [16, 64, 4096])
@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("limits", [None, (0.0, 0.75), (-0.5, 0.25)])
def test_it_runs(depth: int, folded: bool, limits: tuple[float, float] | None):
    config = HardwareConfig(4, 4, buffer_depth=depth, accumulator_depth=24)
    made = network(config, folded, limits)
    program = compile_network(made, config)
    assert_computes(program, made)
    drains = [item for item in program.instructions if isinstance(item, Drain)]
    assert all(item.limited == (limits is not None) for item in drains)


def test_hardware_without_clamp_is_refused():
    config = HardwareConfig(4, 4, clamp=False)
    message = r"^layer 'layer0' clamps its output, the hardware cannot: set clamp = true$"
    with pytest.raises(ValueError, match=message):
        compile_network(network(config, False, (0.0, 6.0)), config)
