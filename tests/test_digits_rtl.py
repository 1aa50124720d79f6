"""The digits network on the simulated engine."""

import numpy as np
import pytest

from shiftcore.estimate.cycles import engine_cycles
from shiftcore.examples.digits import data, model
from shiftcore.golden.config import HardwareConfig
from shiftcore.golden.network import QuantizedNetwork
from shiftcore.quant.convert import QuantConfig, quantize
from shiftcore.quant.hardware import HardwareNetwork
from shiftcore.sim.network import LayerRun, run_network
from shiftcore.sim.runner import Simulator

# Fewer columns than in the demo: another shape, and blocks that take four drained rows.
CONFIG = HardwareConfig(rows=16, cols=4)


@pytest.fixture(scope="module")
def network() -> QuantizedNetwork:
    training, _ = data.load()
    return quantize(model.load(), training.x[:256], QuantConfig())


def check(runs: list[LayerRun], network: QuantizedNetwork, images: np.ndarray) -> None:
    assert [run.layer.name for run in runs] == [layer.name for layer in network.layers]
    for run in runs:
        assert run.first is None
        assert run.mismatches == 0
        assert run.accumulators == len(images) * run.layer.bias.size * np.prod(run.programs[0].size)
        work = [item for program in run.programs for item in program.work]
        assert run.total_cycles == engine_cycles(work, CONFIG).total
    # The same again by another road: torch's hardware mode.
    scores = HardwareNetwork(network).compute(images)[network.layers[-1].name]
    found = np.concatenate([np.asarray(t) for t in runs[-1].tensors])
    assert np.array_equal(found.view(np.uint32), np.asarray(scores).view(np.uint32))


@pytest.mark.parametrize(("simulator", "images"), [("verilator", 3), ("icarus", 1)])
def test_every_layer(network: QuantizedNetwork, simulator: Simulator, images: int) -> None:
    _, held_out = data.load()
    chosen = held_out.x[:images]
    check(run_network(network, CONFIG, chosen, simulator=simulator), network, chosen)
